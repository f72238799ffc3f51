"""Attention patterns as one self-contained HTML file: all heads of all layers, of one model or at several steps.

The templates and scripts of the page are in page/. This file fills them with numbers.

Shape suffixes:  H head  T position  S position attended to
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from explore.inspection.patterns import Patterns, attention_patterns, film_of
from explore.inspection.scores import pattern_scores
from model.inputs import Input
from model.lm import LM
from train.saving.run_folder import output_root

ATTENTION_SCRIPTS = ("weights.js", "heads.js", "view.js")
PAGE = Path(__file__).parent / "page"
HEIGHT = 760  # pixels of a page in a notebook
# A weight is stored as an int16: its square root, on which its color depends, in steps of 1 / LEVELS.
LEVELS = 2047  # the error of a weight w is at most sqrt(w) / LEVELS: 0.0005 for w = 1
MAX_CODE = 32767  # largest int16: weights above (MAX_CODE / LEVELS)² = 256 are clipped
NAN_CODE = -32768  # stands for NaN and infinite weights
MAX_TITLE_CHARS = 60
MAX_WEIGHTS = 200_000_000  # a browser runs out of memory above this number


class Page:
    """A self-contained HTML page. A notebook shows it as a cell's value; `html` is its text."""

    height = HEIGHT

    def __init__(self, html: str, title: str = "Attention patterns") -> None:
        self.html = html
        self.title = title

    def _repr_html_(self) -> str:
        """Return the page in an iframe of fixed height (`height` pixels), which keeps its styles from affecting the notebook."""
        style = f"width: 100%; height: {min(self.height, HEIGHT)}px; border: 0"
        return in_iframe(self.html, self.title, style)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.html) / 1000:,.0f} kB>"


class AttentionPage(Page):
    """The attention of every head on one sequence, at one step of training or at several."""


def attention_html(
    lm: LM, sample: Input, filename: str | None = None, out: str | None = None
) -> AttentionPage:
    """Return a page with the attention of every head on one sequence. A notebook shows it as a cell's value.

    `sample` is a text, a list of ids or a tensor of ids. With `filename`, save the page as attentions/{filename}.html
    under the output root (`out`). Raise ValueError for a batch, for a model without attention patterns, and for a page
    that is too large for a browser.
    """
    return attention_page([(None, attention_patterns(lm, sample))], filename, out)


def attention_film(
    checkpoints: Iterable[tuple[int, LM]], sample: Input, filename: str | None = None, out: str | None = None
) -> AttentionPage:
    """Return the page of `attention_html` with a slider over training steps.

    `checkpoints` yields (step, lm) pairs, such as those of checkpoints(). Only one model is in memory at a time. Raise
    ValueError also if there are no checkpoints, or if their models differ in tokens, layers or heads.
    """
    return attention_page(film_of(checkpoints, sample), filename, out)


def attention_pair(
    left: AttentionPage, right: AttentionPage, filename: str | None = None, out: str | None = None
) -> AttentionPage:
    """Return a page with two attention pages: of two models, or of one model on two texts.

    Heads, filters and options that you choose on one side are chosen on the other side, too. With `filename`, save the
    page as attentions/{filename}.html under the output root (`out`).
    """
    frames = "".join(in_iframe(page.html, title) for title, page in (("left", left), ("right", right)))
    # The frames obey this page's policy as well as their own.
    inner = [digest_of(read_scripts(ATTENTION_SCRIPTS))]
    values = {"title": "Attention patterns, side by side", "frames": frames}
    return save_page(AttentionPage(fill_template("pair.html", ["pair.js"], values, inner)), filename, out)


def attention_page(
    film: Iterable[tuple[int | None, Patterns]], filename: str | None, out: str | None
) -> AttentionPage:
    """Return the page of (step, patterns) pairs. With `filename`, save it."""
    return save_page(AttentionPage(fill_page(film)), filename, out)


def save_page(page: AttentionPage, filename: str | None, out: str | None) -> AttentionPage:
    """Return `page`. With `filename`, save it in attentions/ under the output root (`out`)."""
    if filename is not None:
        path = output_root(out) / "attentions" / f"{filename}.html"
        save_html(page, path)
    return page


def save_html(page: Page, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.html, encoding="utf-8")
    print(f"saved {path}")


def in_iframe(html: str, title: str, style: str = "") -> str:
    """Return an iframe with a page, whose scripts may run and offer downloads."""
    sandbox = "allow-scripts allow-downloads"
    return f'<iframe srcdoc="{escape(html)}" sandbox="{sandbox}" title="{escape(title)}" style="{style}"></iframe>'


def fill_page(film: Iterable[tuple[int | None, Patterns]]) -> str:
    """Return the HTML of the page. In memory are the compressed weights of all steps, and the patterns of one."""
    packer, packed, steps = zlib.compressobj(), bytearray(), []
    scores, norms = [], []
    kinds: set[str] = set()
    leaks_H = np.zeros(1)
    for step, patterns in film:
        steps.append(step)
        weights_HTS = np.concatenate(list(patterns.of_layer.values()))
        if (n := weights_HTS.size * len(steps)) > MAX_WEIGHTS:
            raise ValueError(
                f"a page of {n:,} attention weights is too large for a browser (at most {MAX_WEIGHTS:,}): "
                "take a shorter sample or fewer checkpoints"
            )
        packed += packer.compress(encode_weights(weights_HTS))
        scores.append(rounded_scores(patterns))
        norms.append(relative_norms(patterns))
        future_HTS = np.triu(np.nan_to_num(weights_HTS), 1) * patterns.causal
        kinds |= unusual_kinds(weights_HTS, future_HTS)
        leaks_H = np.maximum(leaks_H, np.abs(future_HTS).max(axis=(1, 2)))
    title = f"{patterns.model or 'Attention patterns'}: {title_of_text(patterns.tokens)}"
    data = {
        "name": patterns.model or "Attention",
        "about": about_patterns(patterns),
        "tokens": patterns.tokens,
        "layers": list(patterns.heads.items()),
        "steps": steps,
        "scores": scores,  # by step, name and head
        "norms": norms,  # by step, head and key
        "causal": patterns.causal,
        "levels": LEVELS,
        "kinds": sorted(kinds),
        "leaks": [(int(head), float(leaks_H[head])) for head in leaks_H.nonzero()[0]],
    }
    values = {
        "data": as_json(data),
        "weights": base64.b64encode(packed + packer.flush()).decode(),
    }
    return fill_template("attention.html", ATTENTION_SCRIPTS, {"title": escape(title), **values})


def short_label(text: str, max_chars: int) -> str:
    """Return `text`, cut to `max_chars` characters with an ellipsis at the end if it is longer."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def title_of_text(tokens: Sequence[str]) -> str:
    """Return the beginning of the text as a title."""
    return short_label("".join(tokens).replace("·", " "), MAX_TITLE_CHARS)


def rounded_scores(patterns: Patterns) -> dict[str, list[float]]:
    """Return the scores of all heads by name, rounded for the page. One layer after the other, to save memory."""
    by_layer = [pattern_scores(pattern_HTS, patterns.tokens) for pattern_HTS in patterns.of_layer.values()]
    return {
        name.replace("_", " "): np.concatenate([scores[name] for scores in by_layer])
        .astype(float)
        .round(4)
        .tolist()
        for name in by_layer[0]
    }


def relative_norms(patterns: Patterns) -> list[list[float] | None]:
    """Return the norms of the values of each head over the largest one, by key. None stands for a head without values."""
    found: list[list[float] | None] = []
    for layer, n_heads in patterns.heads.items():
        norms_HS = patterns.value_norms.get(layer)
        if norms_HS is None or not np.isfinite(norms_HS).all():
            found += [None] * n_heads
        else:
            largest_H1 = np.maximum(norms_HS.max(axis=1, keepdims=True), 1e-30)
            found += (norms_HS / largest_H1).astype(float).round(4).tolist()
    return found


def about_patterns(patterns: Patterns) -> str:
    without = [str(layer) for layer in range(patterns.n_layers) if layer not in patterns.of_layer]
    gaps = f"; no patterns in layer {', '.join(without)}" if without else ""
    return f"{sum(patterns.heads.values())} heads, {len(patterns.tokens)} tokens{gaps}"


def unusual_kinds(weights_HTS: np.ndarray, future_HTS: np.ndarray) -> set[str]:
    """Return the kinds of unusual weights: negative, on future tokens, NaN. The page has a color for each."""
    present = {
        "negative": (weights_HTS < 0).any(),
        "future": future_HTS.any(),
        "nan": not np.isfinite(weights_HTS).all(),
    }
    return {kind for kind, is_there in present.items() if is_there}


def encode_weights(weights_HTS: np.ndarray) -> bytes:
    """Return an int16 code for each weight: the high bytes of all codes, then the low bytes.

    Separate high and low bytes compress better than pairs.
    """
    finite_HTS = np.nan_to_num(weights_HTS, posinf=0, neginf=0)
    sizes_HTS = np.rint(np.sqrt(np.abs(finite_HTS)) * LEVELS).clip(0, MAX_CODE)
    leaks_HTS = np.triu(finite_HTS != 0, 1)  # the code of a weight on a later token is at least 1
    codes_HTS = np.copysign(np.maximum(sizes_HTS, leaks_HTS), finite_HTS)
    codes_HTS[~np.isfinite(weights_HTS)] = NAN_CODE
    low_high = codes_HTS.astype("<i2").view(np.uint8).reshape(-1, 2)
    return low_high[:, 1].tobytes() + low_high[:, 0].tobytes()


def as_json(data: Mapping[str, object]) -> str:
    """Return data as JSON that may stand in a script element: no text in it can end the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def fill_template(
    template: str,
    scripts: Sequence[str],
    values: dict[str, str],
    digests: Sequence[str] = (),
    *,
    library: str = "",
) -> str:
    """Return a template of page/ with the common head, the scripts and `values` in its placeholders.

    The values must be safe HTML: this function escapes nothing. `library` is JavaScript that runs before the scripts. The
    page's policy allows its own scripts, and those with one of `digests`.
    """
    script = "\n".join(filter(None, (library, read_scripts(scripts))))
    allowed = "' '".join([digest_of(script), *digests])
    page, head = ((PAGE / name).read_text(encoding="utf-8") for name in (template, "head.html"))
    for name, value in {"head": head.rstrip(), "digest": allowed, **values, "script": script}.items():
        page = page.replace(f"<!--{name}-->", value)
    return page


def read_scripts(names: Sequence[str]) -> str:
    return "\n".join((PAGE / name).read_text(encoding="utf-8") for name in names)


def digest_of(script: str) -> str:
    """Return the hash by which a content security policy allows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
