"""The coordinate check: whether what is inside a model keeps its size as the model gets wider, over its first steps.

For muP what the gradient check is for backpropagation (Yang et al. 2022, arXiv:2203.03466, appendix D.1). It does not see
scores that are divided by sqrt(K) where they should be by K, as queries and keys that training has aligned would show;
`aligned_probe` does.

    coord_check({64: lambda: Net(64), 128: lambda: Net(128), 256: lambda: Net(256)}, loader, optimizer)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from explore.judgement import Judgement, Line, Panel, named, slope
from explore.plots import draw_panels
from model.lm import LM
from model.sampling import eval_mode
from model.transformer.attention import Attention

ACTIVATIONS = {
    *("embed", "q", "k", "v", "scores", "z", "attn_out"),
    *("mlp_pre", "mlp_post", "mlp_out", "resid_post", "final_norm", "logits"),
}
LOW, HIGH = -0.6, 0.2  # slopes that a size may have: what begins at random may shrink as 1 / sqrt(width)
FREE = ("scores", "logits")  # and the output of any model: what may shrink for longer: attention and readout
STEPS, SETTLED = 4, 4  # t counts from 1, before any update
PROBE = 0.1  # the largest slope of scores of aligned queries and keys
Make = Callable[[], nn.Module]
Loss = Callable[[nn.Module, Any], Tensor]


def coord_check(
    models: Mapping[int, Make] | Mapping[str, Mapping[int, Make]],
    loader: Iterable[Any],
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    loss: Loss | None = None,
    n_steps: int = STEPS,
    seeds: Sequence[int] = (0,),
    controls: Sequence[str] = (),
) -> Judgement:
    """Sizes of activations, and of their changes since the first step, against width, over `n_steps` on one batch.

    `models` makes a model of each width; a mapping of such mappings names several kinds. `controls` are those that are
    expected to fail: if one does not, the check has seen nothing. `loss(model, batch)` is by default that of an LM, or the
    cross entropy of model(x) and y for a batch (x, y). The batch is the first one of `loader`.
    """
    kinds: Any = models if isinstance(next(iter(models.values())), Mapping) else {"": models}
    batch = next(iter(loader))
    frames, probes = [], []
    for kind, of_width in kinds.items():
        frames.append(
            sizes(kind, of_width, batch, optimizer, loss=loss or default_loss, n_steps=n_steps, seeds=seeds)
        )
        probes.append(aligned_probe(kind, of_width, batch, seeds))
    return judged(pd.concat(frames), pd.concat(probes), controls)


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    if isinstance(model, LM):
        return model.get_losses(batch, None)[0]["main"]
    x, y = batch
    return F.cross_entropy(model(x), y)


def sizes(
    variant: str,
    models: Mapping[int, Make],
    batch: Any,
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    loss: Loss = default_loss,
    n_steps: int = STEPS,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """A row for each width, seed, step and activation of one kind of model: mean absolute value, and that of its change."""
    rows = []
    for width, make in models.items():
        for seed in seeds:
            torch.manual_seed(seed)
            model = make()
            train, first = optimizer(model), None
            for t in range(1, n_steps + 1):
                seen = activations(model, batch)
                first = seen if first is None else first
                for name, x in seen.items():
                    change = size(x - first[name]) if t > 1 else math.nan
                    rows.append((variant, width, seed, t, name, size(x), change))
                train.zero_grad()
                loss(model, batch).backward()
                train.step()
    return pd.DataFrame(rows, columns=["variant", "width", "seed", "t", "module", "size", "update"])


def size(x: Tensor) -> float:
    """The mean absolute value of what is finite: scores of the future are not."""
    return x[x.isfinite()].abs().mean().item() if x.isfinite().any() else math.nan


@torch.no_grad()
def activations(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Of an LM those that have names; of any other model the outputs of its modules, its own as "output"."""
    if isinstance(model, LM):
        wanted = [name for name in model.activation_names() if name.rpartition(".")[2] in ACTIVATIONS]
        with eval_mode(model), model.record(*wanted) as seen:
            model(batch["x_indices"][:, :-1])
        return dict(seen)
    with eval_mode(model), watching(model) as outputs:
        model(batch[0] if isinstance(batch, tuple | list) else batch)
    last = outputs["output"]
    return {name: x for name, x in outputs.items() if name == "output" or not torch.equal(x, last)}


@contextmanager
def watching(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, what the modules of `model` put out is noted: what a module passes on from one inside of it, once."""
    outputs: dict[str, Tensor] = {}
    noted: dict[int, tuple[str, Tensor]] = {}  # by identity, which lasts as long as the tensor is kept here

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            inner, _ = noted.get(id(output), (name, output))
            outputs.pop(inner, None)
            noted[id(output)] = name, output
            outputs[name] = output.detach().clone()

    hooks = [m.register_forward_hook(partial(note, name or "output")) for name, m in model.named_modules()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def aligned_probe(
    variant: str, models: Mapping[int, Make], batch: Any, seeds: Sequence[int] = (0,)
) -> pd.DataFrame:
    """The mean score of a position with itself by width, where keys are made by the matrices of queries.

    Only of LMs with attention of ours, and as many heads of keys as of queries; without rows for others.
    """
    rows = []
    for width, make in models.items():
        for seed in seeds:
            torch.manual_seed(seed)
            model = make()
            if isinstance(model, LM) and (layers := align(model)):
                with eval_mode(model), model.record(*(f"layers.{i}.scores" for i in layers)) as seen:
                    model(batch["x_indices"][:, :-1])
                means = [scores.diagonal(dim1=-2, dim2=-1).mean().item() for scores in seen.values()]
                rows.append((variant, width, seed, sum(means) / len(means)))
    return pd.DataFrame(rows, columns=["variant", "width", "seed", "score"])


def align(model: LM) -> list[int]:
    """Copies queries to keys; says in which layers that could be done."""
    done = []
    for i, layer in model.decoder.passes():
        mixers = [module for module in layer.modules() if isinstance(module, Attention)]
        for mixer in mixers:
            queries, keys, _ = mixer.query_key_value()
            if [q.shape for q in queries] == [k.shape for k in keys]:
                for q, k in zip(queries, keys, strict=True):
                    k.copy_(q)
                done.append(i)
    return done


def judged(sizes: pd.DataFrame, probes: pd.DataFrame, controls: Sequence[str] = ()) -> Judgement:
    """The verdict on tables of sizes and of probes."""
    sentences, problems, panels = [], [], []
    table = slopes(sizes)
    for variant in dict.fromkeys(sizes["variant"]):
        own = table[table["variant"] == variant]
        wrong = out_of_band(own)
        probe = probe_slope(probes[probes["variant"] == variant])
        if abs(probe) > PROBE:
            wrong.append(f"scores of aligned queries and keys grow as width^{probe:.2f} (at most {PROBE})")
        inside = f"all sizes go as width^{smallest(own):.2f} to width^{largest(own):.2f}"
        inside += "" if math.isnan(probe) else f", scores of aligned queries and keys as width^{probe:.2f}"
        is_control = variant in controls
        if wrong:
            sentence = f"fails{', as expected' * is_control}: {first_of(wrong)}"
            problems += [] if is_control else [named(variant, wrong[0])]
        else:
            sentence = f"passes{', unexpectedly' * is_control}: {inside}"
            too_mild = f"{variant} is no worse: lr is too small, or widths too near, to see anything"
            problems += [too_mild] if is_control else []
        sentences.append(named(variant, sentence))
        panels.append(panels_of(variant, sizes[sizes["variant"] == variant]))
    figure = draw_panels(panels, ("width", "mean size"))
    return Judgement("coord-check", table.drop(columns="settles"), sentences, problems, figure)


def first_of(sentences: Sequence[str]) -> str:
    return f"{sentences[0]}, and {len(sentences) - 1} more" if len(sentences) > 1 else sentences[0]


def slopes(sizes: pd.DataFrame) -> pd.DataFrame:
    """A row for each activation, and for its change, with the power of the width that it goes as at each step."""
    rows = []
    for (variant, module), own in sizes.groupby(["variant", "module"], sort=False):
        for what in ("size", "update"):
            row: dict[str, Any] = {"variant": variant, "module": module, "of": what}
            for t, at_t in own.groupby("t"):
                means = at_t.groupby("width")[what].mean()
                row[f"t={t}"] = slope([float(width) for width in means.index], means.to_list())
            row["settles"] = what == "size" and not is_free(module)
            rows.append(row)
    return pd.DataFrame(rows)


def out_of_band(table: pd.DataFrame) -> list[str]:
    """A sentence for each activation whose size goes with the width, the worst first."""
    found = []
    times = [column for column in table if str(column).startswith("t=")]
    for row in table.to_dict("records"):
        for time in times:
            value, what = row[time], "the change of " * (row["of"] == "update") + str(row["module"])
            at_least = -HIGH if row["settles"] and time == f"t={SETTLED}" else LOW
            if value > HIGH:
                found.append((value - HIGH, f"{what} grows as width^{value:.2f} at {time} (at most {HIGH})"))
            elif value < at_least:
                found.append(
                    (at_least - value, f"{what} shrinks as width^{value:.2f} at {time} (at least {at_least})")
                )
    return [sentence for _, sentence in sorted(found, key=lambda one: -one[0])]


def is_free(module: object) -> bool:
    return module == "output" or str(module).rpartition(".")[2] in FREE


def smallest(table: pd.DataFrame) -> float:
    return float(table.filter(like="t=").min(axis=None))


def largest(table: pd.DataFrame) -> float:
    return float(table.filter(like="t=").max(axis=None))


def probe_slope(probes: pd.DataFrame) -> float:
    means = probes.groupby("width")["score"].mean()
    return slope([float(width) for width in means.index], means.to_list())


def panels_of(variant: str, own: pd.DataFrame) -> list[Panel]:
    """A panel for each step, with a line for each activation."""
    panels = []
    for t, at_t in own.groupby("t"):
        lines = []
        for module, of_module in at_t.groupby("module", sort=False):
            means = of_module.groupby("width")["size"].mean()
            lines.append(Line(str(module), [int(width) for width in means.index], means.to_list()))
        panels.append(Panel(f"{variant}, t = {t}" if variant else f"t = {t}", lines))
    return panels
