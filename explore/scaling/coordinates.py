"""The coordinate check: do activations keep their size over the first training steps as a model gets wider?

It tests a muP implementation as the gradient check tests backpropagation (Yang et al. 2022, arXiv:2203.03466, appendix
D.1). It misses one error: attention scores divided by sqrt(K) instead of K, which shows only after training has aligned
queries and keys. `aligned_probe` finds that error.

    coord_check({64: lambda: Net(64), 128: lambda: Net(128), 256: lambda: Net(256)}, loader, optimizer)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from explore.plots import Line, Panel, draw_panels
from explore.scaling.report import ScalingReport, beyond, with_variant
from model.generation.sampling import eval_mode
from model.lm import LM
from model.mup.scores import aligned_score
from model.transformer.attention import Attention

# Activations of our layers that the check leaves out. It measures all others, and so those that an edit names by ctx.tap.
NOT_MEASURED = {
    *("resid_pre", "resid_mid", "head_out", "pattern", "router", "latent"),
    *("beta", "log_decay", "log_input"),
}
LOW, HIGH = -0.6, 0.2  # band of allowed slopes; random initial values may shrink as 1 / sqrt(width)
# These activations, and the output of a model that is not an LM, may still shrink at t = SETTLED.
FREE = ("scores", "logits")
STEPS, SETTLED = 4, 4  # t counts from 1, before any update
MAX_ALIGNED_SLOPE = 0.1  # maximum absolute slope of the scores of aligned queries and keys
BUG = 0.3  # a wrong parametrization moves a slope out of its band by at least this much
# Error rates of confidence intervals: a model fails by the first, and is doubted by the second.
BROKEN, UNCLEAR = 0.001, 0.05
FINITE = 0.1  # a correct model's slope may deviate this much at widths of some hundreds
MIN_SEEDS, MAX_SEEDS = 4, 16  # numbers of default seeds: the maximum only if the verdict is unclear
MakeModel = Callable[[], nn.Module]
AnyBatch = TypeVar("AnyBatch")
Loss = Callable[[nn.Module, AnyBatch], Tensor]


def coord_check(
    models: Mapping[int, MakeModel] | Mapping[str, Mapping[int, MakeModel]],
    loader: Iterable[AnyBatch],
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    loss: Loss[AnyBatch] | None = None,
    n_steps: int = STEPS,
    seeds: Sequence[int] | None = None,
    controls: Sequence[str] = (),
) -> ScalingReport:
    """Check that activations, and their changes since the first step, do not grow or vanish with the width.

    `models` maps each width to a function that makes a model. A mapping of such mappings names several kinds of models.
    Each model trains for `n_steps` steps on the first batch of `loader`, with the optimizer `optimizer(model)`. The
    default `loss(model, batch)` is that of an LM, or the cross entropy of model(x) and y for a batch (x, y). `controls`
    are kinds that are expected to fail. If one passes, the check has no power, and fails. Without `seeds`, the check
    uses 4, and up to 16 if the verdict is unclear.

    Slopes are least squares fits of log size over log width, over all seeds. A kind fails if the 99.9 % t interval of a
    slope lies outside its band. The high level keeps false alarms rare among many slopes. The verdict is "fail: cannot
    tell", with advice, if the estimate lies outside and the 95 % interval includes the slope of a real bug.
    """
    kinds: Any = models if isinstance(next(iter(models.values())), Mapping) else {"": models}
    batch = next(iter(loader))
    frames, probes = [], []
    first_seeds, max_seeds = (range(MIN_SEEDS), MAX_SEEDS) if seeds is None else (seeds, len(seeds))
    measure = partial(measure_sizes, loss=loss or default_loss, n_steps=n_steps)
    for kind, of_width in kinds.items():
        own, probe = measure_kind(
            kind, of_width, batch, optimizer, seeds=first_seeds, max_seeds=max_seeds, measure=measure
        )
        frames.append(own)
        probes.append(probe)
    return coordinate_report(pd.concat(frames), pd.concat(probes), controls)


def measure_kind(
    variant: str,
    models: Mapping[int, MakeModel],
    batch: object,
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    seeds: Sequence[int],
    max_seeds: int,
    measure: Callable[..., pd.DataFrame] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of sizes and the table of probes of one kind of model.

    Double the number of seeds, up to `max_seeds`, until it is clear whether a slope lies outside its band.
    """
    frames, probes, start = [], [], 0
    seeds = list(seeds)
    while True:
        frames.append((measure or measure_sizes)(variant, models, batch, optimizer, seeds=seeds[start:]))
        probes.append(aligned_probe(variant, models, batch, seeds[start:]))
        own, probe = pd.concat(frames), pd.concat(probes)
        found = findings(own, fit_slope(probe, "score"))
        if not found or found[0].broken or len(seeds) >= max_seeds:
            return own, probe
        start = len(seeds)
        seeds += range(max(seeds) + 1, max(seeds) + 1 + min(start, max_seeds - start))


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of an LM, or for another model the cross entropy of model(x) and y for a batch (x, y)."""
    if isinstance(model, LM):
        return model.get_losses(batch, None)[0]["main"]
    x, y = batch
    return F.cross_entropy(model(x), y)


def measure_sizes(
    variant: str,
    models: Mapping[int, MakeModel],
    batch: AnyBatch,
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    loss: Loss[AnyBatch] = default_loss,
    n_steps: int = STEPS,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Train one kind of model at each width and seed, and measure its activations at each step.

    The table has a row for each width, seed, step and activation. `size` is the mean absolute value of the activation,
    `update` that of its change since the first step.
    """
    rows = []
    for width, make in models.items():
        for seed in seeds:
            torch.manual_seed(seed)
            model = make()
            train, first = optimizer(model), None
            for t in range(1, n_steps + 1):
                activations = named_activations(model, batch)
                first = activations if first is None else first
                for name, x in activations.items():
                    change = size(x - first[name]) if t > 1 else math.nan
                    rows.append((variant, width, seed, t, name, size(x), change))
                train.zero_grad()
                loss(model, batch).backward()
                train.step()
    return pd.DataFrame(rows, columns=["variant", "width", "seed", "t", "module", "size", "update"])


def size(x: Tensor) -> float:
    """Return the mean absolute value of the finite entries, since masked scores are -inf. NaN if any entry is NaN."""
    if x.isnan().any():
        return math.nan
    return x[x.isfinite()].abs().mean().item() if x.isfinite().any() else math.nan


@torch.no_grad()
def named_activations(model: nn.Module, batch: object) -> dict[str, Tensor]:
    """Return the activations of an LM, or the outputs of all modules of another model, by name.

    The output of the other model itself has the name "output".
    """
    if isinstance(model, LM):
        names = [name for name in model.activation_names() if name.rpartition(".")[2] not in NOT_MEASURED]
        with eval_mode(model), model.record(*names) as seen:
            model(inputs_of(model, batch))
        return dict(seen)
    with eval_mode(model), record_outputs(model) as outputs:
        model(inputs_of(model, batch))
    last = outputs["output"]
    return {name: x for name, x in outputs.items() if name == "output" or not torch.equal(x, last)}


def inputs_of(model: nn.Module, batch: object) -> object:
    """Return the inputs in `batch`: the token ids for an LM, else x of (x, y), else the batch itself."""
    if isinstance(model, LM) and isinstance(batch, Mapping):
        return batch["x_indices"][:, :-1]
    return batch[0] if isinstance(batch, tuple | list) else batch


@contextmanager
def record_outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the output of each module of `model` by name, inside the `with` block.

    A tensor that several nested modules return is recorded once, under the name of the outermost module.
    """
    outputs: dict[str, Tensor] = {}
    # By id(), which is unique while this dict keeps the tensor alive.
    noted: dict[int, tuple[str, Tensor]] = {}

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
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
    variant: str, models: Mapping[int, MakeModel], batch: object, seeds: Sequence[int] = (0,)
) -> pd.DataFrame:
    """Return the mean attention score of positions with themselves, after copying the query matrices to the keys.

    The table has a row for each width and seed. Two kinds of models have rows: LMs with as many key heads as query heads
    in an Attention layer, and models that `aligned_score` supports, such as those of transformers.
    """
    rows = []
    for width, make in models.items():
        for seed in seeds:
            torch.manual_seed(seed)
            model = make()
            if isinstance(model, LM) and (layers := align_keys(model)):
                with eval_mode(model), model.record(*(f"layers.{i}.scores" for i in layers)) as seen:
                    model(inputs_of(model, batch))
                means = [scores.diagonal(dim1=-2, dim2=-1).mean().item() for scores in seen.values()]
                rows.append((variant, width, seed, sum(means) / len(means)))
            elif not isinstance(model, LM):
                with eval_mode(model):
                    score = aligned_score(model, partial(model, inputs_of(model, batch)))
                rows += [] if score is None else [(variant, width, seed, score)]
    return pd.DataFrame(rows, columns=["variant", "width", "seed", "score"])


def align_keys(model: LM) -> list[int]:
    """Copy the query matrices to the keys in every layer where their shapes agree. Return the layer numbers."""
    aligned = []
    for i, layer in model.decoder.passes():
        mixers = [module for module in layer.modules() if isinstance(module, Attention)]
        for mixer in mixers:
            queries, keys, _ = mixer.query_key_value()
            if [q.shape for q in queries] == [k.shape for k in keys]:
                for q, k in zip(queries, keys, strict=True):
                    k.copy_(q)
                aligned.append(i)
    return aligned


class Slope(NamedTuple):
    """The exponent of a power law, size ~ width^value, from a least squares fit of logarithms."""

    value: float
    error: float  # standard error
    dof: int  # degrees of freedom: number of points (a width at a seed) minus 2

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the t confidence interval at level 1 - `alpha`. It is infinite without degrees of freedom.

        FINITE is added in quadrature, since slopes at these widths differ a little from those of very wide models.
        """
        margin = math.hypot(self.error * stats.t.isf(alpha / 2, self.dof), FINITE) if self.dof else math.inf
        return self.value - margin, self.value + margin


def fit_slope(table: pd.DataFrame, column: str) -> Slope:
    """Fit the slope of log `column` over log width, one point per row. It is NaN if a value is not positive and finite."""
    x, y = (table[name].to_numpy(dtype=float) for name in ("width", column))
    dof = len(x) - 2
    if len(set(x)) < 2 or not (np.isfinite(y) & (y > 0)).all():
        return Slope(math.nan, math.nan, dof)
    x, y = np.log2(x), np.log2(y)
    value, offset = np.polyfit(x, y, 1)
    rest = ((y - offset - value * x) ** 2).sum() / max(1, dof)
    return Slope(float(value), math.sqrt(rest / ((x - x.mean()) ** 2).sum()), dof)


class Finding(NamedTuple):
    """The judgement of a slope outside its band."""

    excess: float  # distance of the estimate from the band
    sentence: str
    broken: bool  # False: outside the band, but not significantly


def finding(what: str, slope: Slope, low: float, high: float, when: str = "") -> Finding | None:
    """Judge one slope by the band from `low` to `high`. Return None if the slope is acceptable."""
    grows = slope.value > high
    excess = slope.value - high if grows else low - slope.value
    if not excess > 0:
        return None
    (strict_low, strict_high), (lower, upper) = slope.interval(BROKEN), slope.interval(UNCLEAR)
    power = beyond(slope.value, high if grows else low)
    sentence = f"{what} {'grows' if grows else 'shrinks'} as width^{power}{when}"
    bound = f"at most {high}" if grows else f"at least {low}"
    if strict_low > high or strict_high < low:
        return Finding(excess, f"{sentence} ({bound})", broken=True)
    if upper < high + BUG if grows else lower > low - BUG:
        return None
    between = f"{bound}, 95 % interval {lower:.2f} to {upper:.2f}" if slope.dof else bound
    return Finding(excess, f"{sentence} ({between})", broken=False)


def coordinate_report(
    sizes: pd.DataFrame, probes: pd.DataFrame, controls: Sequence[str] = ()
) -> ScalingReport:
    """Return the report on the tables of sizes and of probes. `controls` are variants that are expected to fail."""
    sentences, problems, undecided, panels = [], [], [], []
    table = slopes(sizes)
    for variant in dict.fromkeys(sizes["variant"]):
        own = sizes[sizes["variant"] == variant]
        powers = table[table["variant"] == variant]
        probe = fit_slope(probes[probes["variant"] == variant], "score")
        sentence, problem, doubt = coordinate_verdict(own, powers, probe, is_control=variant in controls)
        sentences.append(with_variant(variant, sentence))
        problems += [problem if variant in controls else with_variant(variant, problem)] if problem else []
        undecided += [with_variant(variant, doubt)] * bool(doubt)
        panels += panel_rows(variant, own)
    figure = draw_panels(panels, ("width", "size / narrowest"))
    return ScalingReport("coord-check", table, sentences, problems, figure, undecided)


def coordinate_verdict(
    own: pd.DataFrame, powers: pd.DataFrame, probe: Slope, is_control: bool
) -> tuple[str, str, str]:
    """Return a sentence about one kind of model, its problem, and what cannot be decided; both are empty if there is none."""
    found = findings(own, probe)
    broken = [one.sentence for one in found if one.broken]
    if broken:
        return f"fails{', as expected' * is_control}: {first_of(broken)}", "" if is_control else broken[0], ""
    if is_control:
        inside = f"sizes go as width^{lowest_value(powers):.2f} to width^{highest_value(powers):.2f}"
        too_mild = f"{own['variant'].iloc[0]} was expected to fail, but passes: raise lr or take widths that differ more"
        return f"passes, unexpectedly: {inside}", too_mild, ""
    if found:
        doubt = f"{first_of([one.sentence for one in found])}; {what_would_tell(own)}"
        return f"cannot tell: {doubt}", "", doubt
    inside = f"all sizes go as width^{lowest_value(powers):.2f} to width^{highest_value(powers):.2f}"
    inside += (
        "" if math.isnan(probe.value) else f", scores of aligned queries and keys as width^{probe.value:.2f}"
    )
    return f"passes: {inside}", "", ""


def what_would_tell(own: pd.DataFrame) -> str:
    """Return advice on the grid. More seeds or a wider range of widths narrow the confidence intervals."""
    n_seeds, widths = own["seed"].nunique(), sorted(own["width"].unique())
    more = f"{2 * n_seeds + 2} seeds (now {n_seeds}), or a width of {2 * widths[-1]} beside {widths[-1]}"
    return f"{more}, would narrow the intervals"


def first_of(sentences: Sequence[str]) -> str:
    """Return the first sentence and the number of others."""
    return f"{sentences[0]}, and {len(sentences) - 1} more" if len(sentences) > 1 else sentences[0]


def findings(own: pd.DataFrame, probe: Slope) -> list[Finding]:
    """Return all findings about one kind of model, broken ones first, and the worst first among equals."""
    found = [
        one
        for one in (
            *not_finite(own),
            finding("mean score of aligned queries and keys", probe, -MAX_ALIGNED_SLOPE, MAX_ALIGNED_SLOPE),
        )
        if one
    ]
    for module, of, t, slope in fitted_slopes(own):
        what = "the change of " * (of == "update") + module
        one = finding(what, slope, *allowed_slopes(module, of, t), f" at t={t}")
        found += [one] if one else []
    return sorted(found, key=lambda one: (not one.broken, -one.excess))


def not_finite(own: pd.DataFrame) -> list[Finding]:
    """Return a finding about the first NaN activation, in a list. Return an empty list if all are finite."""
    bad = own[own["size"].isna()].sort_values("t", kind="stable").head(1)
    return [
        Finding(
            math.inf, f"{row.module} is not finite at t={row.t}, width {row.width}, seed {row.seed}", True
        )
        for row in bad.itertuples()
    ]


def fitted_slopes(own: pd.DataFrame) -> Iterator[tuple[str, str, int, Slope]]:
    """Yield (activation, "size" or "update", t, slope) for one kind of model."""
    for module, of_module in own.groupby("module", sort=False):
        for of in ("size", "update"):
            for t, at_t in of_module.groupby("t"):
                yield str(module), of, int(t), fit_slope(at_t, of)


def slopes(sizes: pd.DataFrame) -> pd.DataFrame:
    """Return a table of slopes: a row for each activation and for its change, a column for each step."""
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    for variant, own in sizes.groupby("variant", sort=False):
        for module, of, t, slope in fitted_slopes(own):
            rows.setdefault((str(variant), module, of), {})[f"t={t}"] = slope.value
    return pd.DataFrame(
        [{"variant": v, "module": m, "of": of, **powers} for (v, m, of), powers in rows.items()]
    )


def allowed_slopes(module: str, of: str, t: int) -> tuple[float, float]:
    """Return the band of slopes that are allowed for an activation, or for its change, at step `t`."""
    settles = of == "size" and t == SETTLED and not is_free(module)
    return -HIGH if settles else LOW, HIGH


def is_free(module: object) -> bool:
    """Return whether an activation may still shrink with the width at t = SETTLED."""
    return module == "output" or str(module).rpartition(".")[2] in FREE


def lowest_value(table: pd.DataFrame) -> float:
    return float(table.filter(like="t=").min(axis=None))


def highest_value(table: pd.DataFrame) -> float:
    return float(table.filter(like="t=").max(axis=None))


def panel_rows(variant: str, own: pd.DataFrame) -> list[list[Panel]]:
    """Return a panel for each activation, with a row for each layer."""
    rows: dict[str, list[Panel]] = {}
    for module, of_module in own.groupby("module", sort=False):
        rows.setdefault(str(module).rpartition(".")[0], []).append(panel_of(variant, str(module), of_module))
    return list(rows.values())


def panel_of(variant: str, module: str, of_module: pd.DataFrame) -> Panel:
    """Return a panel with the sizes of one activation at each step, relative to the narrowest model.

    Gray bands show what is allowed. Sizes outside their band are red. A change since the first step is drawn, in red, only
    if it is outside its band.
    """
    lines = []
    for _, of, t, slope in fitted_slopes(of_module):
        low, high = allowed_slopes(module, of, t)
        found = finding(module, slope, low, high)
        is_bad = found is not None and found.broken
        if of == "size" or is_bad:
            means = of_module[of_module["t"] == t].groupby("width")[of].mean()
            name = f"t = {t}" if of == "size" else f"change, t = {t}"
            relative = [float(mean / means.iloc[0]) if means.iloc[0] else math.nan for mean in means]
            lines.append(Line(name, [int(width) for width in means.index], relative, is_bad=is_bad))
    widths = sorted(int(width) for width in of_module["width"].unique())
    shares = [width / widths[0] for width in widths]
    bands = [
        Line(f"allowed ({LOW} to {HIGH})", widths, (), [x**LOW for x in shares], [x**HIGH for x in shares])
    ]
    if not is_free(module):
        settled = [x**-HIGH for x in shares]
        bands.append(Line(f"allowed at t = {SETTLED}", widths, (), settled, bands[0].high))
    return Panel(f"{variant}\n{module}" if variant else module, lines, bands)
