"""Attention patterns as one HTML file that needs nothing else: all heads of all layers, of one model or along its training.

The page itself is in page/: attention.html, weights.js and view.js. Here it is filled with numbers.

Shape suffixes:  H head  T position  S position attended to
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from explore.inspection.patterns import Patterns, attention_patterns, film_of
from model.inputs import Input
from model.lm import LM
from train.saving.run_folder import output_root

PAGE = Path(__file__).parent / "page"
HEIGHT = 760  # pixels of a page in a notebook
# A weight is kept as the root of it in steps of 1/LEVELS: by root, because that is how it is colored too.
LEVELS = 2047  # so a weight w is off by at most root(w) / LEVELS: the third decimal is right but for rounding
LARGEST = 32767  # a code is an int16, so weights above (LARGEST / LEVELS)² = 256 are cut off
NOT_A_NUMBER = -32768
MOST = 200_000_000  # weights that a browser has room for


class Page:
    """A page that shows itself in a notebook. `html` is all of it."""

    def __init__(self, html: str, title: str = "Attention patterns") -> None:
        self.html = html
        self.title = title

    def _repr_html_(self) -> str:
        """In a frame of its own and of fixed height: its styles stay inside, and nothing moves outside."""
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" title="{escape(self.title)}" '
            f'style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.html) / 1000:,.0f} kB>"


class AttentionPage(Page):
    """The attention of every head to one sequence, at one step of training or at several."""


def attention_html(
    lm: LM, sample: Input, filename: str | None = None, out: str | None = None
) -> AttentionPage:
    """A page with the attention of every head to one sequence. In a notebook it shows as a cell's value.

    With `filename` it is saved as attentions/{filename}.html under the output root.
    """
    return finished([(None, attention_patterns(lm, sample))], filename, out)


def attention_film(
    checkpoints: Iterable[tuple[int, LM]], sample: Input, filename: str | None = None, out: str | None = None
) -> AttentionPage:
    """The same page with a slider over training. `checkpoints` are (step, lm), one at a time is enough."""
    return finished(film_of(checkpoints, sample), filename, out)


def finished(
    film: Iterable[tuple[int | None, Patterns]], filename: str | None, out: str | None
) -> AttentionPage:
    page = AttentionPage(fill_page(film))
    if filename is not None:
        path = output_root(out) / "attentions" / f"{filename}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.html, encoding="utf-8")
        print(f"saved {path}")
    return page


def fill_page(film: Iterable[tuple[int | None, Patterns]]) -> str:
    """The text of the page. Of each step only its packed weights are held."""
    packer, packed, steps = zlib.compressobj(), bytearray(), []
    kinds: set[str] = set()
    leaks_H = np.zeros(1)
    for step, patterns in film:
        steps.append(step)
        weights_HTS = np.concatenate(list(patterns.of_layer.values()))
        if (n := weights_HTS.size * len(steps)) > MOST:
            raise ValueError(
                f"a page of {n:,} weights is too large, over {MOST:,}: take a shorter sample, or fewer steps"
            )
        packed += packer.compress(coded(weights_HTS))
        future_HTS = np.triu(np.nan_to_num(weights_HTS), 1) * patterns.causal
        kinds |= kinds_of(weights_HTS, future_HTS)
        leaks_H = np.maximum(leaks_H, np.abs(future_HTS).max(axis=(1, 2)))
    data = {
        "about": about_patterns(patterns),
        "tokens": patterns.tokens,
        "layers": list(patterns.heads.items()),
        "steps": steps,
        "causal": patterns.causal,
        "levels": LEVELS,
        "kinds": sorted(kinds),
        "leaks": [(int(head), float(leaks_H[head])) for head in leaks_H.nonzero()[0]],
    }
    values = {
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "weights": base64.b64encode(packed + packer.flush()).decode(),
    }
    return in_place("attention.html", ["weights.js", "view.js"], {"title": "Attention patterns", **values})


def about_patterns(patterns: Patterns) -> str:
    without = [str(layer) for layer in range(patterns.n_layers) if layer not in patterns.of_layer]
    gaps = f"; no patterns in layer {', '.join(without)}" if without else ""
    return f"{sum(patterns.heads.values())} heads, {len(patterns.tokens)} tokens{gaps}"


def kinds_of(weights_HTS: np.ndarray, future_HTS: np.ndarray) -> set[str]:
    """Return the kinds of unusual weights: negative, on future tokens, NaN. The page has a color for each."""
    present = {
        "negative": (weights_HTS < 0).any(),
        "future": future_HTS.any(),
        "nan": not np.isfinite(weights_HTS).all(),
    }
    return {kind for kind, is_there in present.items() if is_there}


def coded(weights_HTS: np.ndarray) -> bytes:
    """A code for each weight: first the high bytes of all, then the low ones, which packs better than pairs."""
    finite_HTS = np.nan_to_num(weights_HTS, posinf=0, neginf=0)
    sizes_HTS = np.rint(np.sqrt(np.abs(finite_HTS)) * LEVELS).clip(0, LARGEST)
    leaks_HTS = np.triu(finite_HTS != 0, 1)  # however small a weight on the future is, it does not become 0
    codes_HTS = np.copysign(np.maximum(sizes_HTS, leaks_HTS), finite_HTS)
    codes_HTS[~np.isfinite(weights_HTS)] = NOT_A_NUMBER
    low_high = codes_HTS.astype("<i2").view(np.uint8).reshape(-1, 2)
    return low_high[:, 1].tobytes() + low_high[:, 0].tobytes()


def in_place(template: str, scripts: Sequence[str], values: dict[str, str]) -> str:
    """A page of page/ with the head that all have and everything in it. Values are safe text: they end no script and begin none."""
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in scripts)
    digest = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page, head = ((PAGE / name).read_text(encoding="utf-8") for name in (template, "head.html"))
    for name, value in {"head": head.rstrip(), "digest": digest, **values, "script": script}.items():
        page = page.replace(f"<!--{name}-->", value)
    return page
