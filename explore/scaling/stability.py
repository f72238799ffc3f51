"""The stability check: how much does a small change of all weights change the output, as a model gets deeper?

The output change of n plain post-norm sub-layers grows as O(n), which is why deep ones do not train. With Admin it grows
as O(log n) or O(1) (Liu et al. 2020, arXiv:2004.08249).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from scipy.stats import gmean
from torch import Tensor, nn

from explore.plots import Line, Panel, draw_panels
from explore.scaling.report import ScalingReport, beyond, slope, with_variant
from model.generation.sampling import eval_mode
from model.lm import LM
from model.model_params import ModelParams

DELTA = 1e-4  # default change of each weight
MakeDeepModel = Callable[[int, int], nn.Module]  # (depth, seed) -> model

# Growth of the output change in theory, with the number n of sub-layers.
GROWTH: dict[str, Callable[[float], float]] = {
    "O(n)": lambda n: n,
    "O(logn)": lambda n: math.log(n + 1),
    "O(1)": lambda n: 1.0,
}
# Band of the measured growth over the theoretical one, from 6 to 48 layers of width 64, with three seeds.
BANDS = {"O(n)": (0.6, 1.65), "O(logn)": (0.78, 1.24), "O(1)": (0.8, 1.3)}
# A plain model's output change must be at least APART * n / log(n + 1) times that of Admin with O(log n).
APART = 0.28


def stability(
    make: MakeDeepModel | Mapping[str, MakeDeepModel],
    x: object,
    depths: Sequence[int],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    expected: Mapping[str, str] | None = None,
    sub_layers: int = 2,
    delta: float = DELTA,
) -> ScalingReport:
    """Measure how the output change under a small change of all weights grows with the depth of a model.

    `make(depth, seed)` makes a model of any type that can be called with `x`. A mapping of such functions names several
    kinds of models. `expected` gives the growth of each kind by its name: "O(n)", "O(logn)" or "O(1)". `sub_layers` is
    the number of residual connections in a layer. `delta` is the change of each weight. A kind fails if its growth
    between two depths lies outside the band of the expected growth.
    """
    kinds: Mapping[str, MakeDeepModel] = make if isinstance(make, Mapping) else {"": make}
    frames = [changes(name, make_one, x, depths, seeds, delta=delta) for name, make_one in kinds.items()]
    return stability_report(pd.concat(frames), expected or {}, sub_layers)


def changes(
    variant: str,
    make: MakeDeepModel,
    x: object,
    depths: Sequence[int],
    seeds: Sequence[int],
    *,
    delta: float = DELTA,
) -> pd.DataFrame:
    """Return the output change of one kind of model, with a row for each depth and seed."""
    rows = [
        {
            "variant": variant,
            "layers": depth,
            "seed": seed,
            "change": seeded_output_change(make, depth, seed, x, delta),
        }
        for depth in depths
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def seeded_output_change(make: MakeDeepModel, depth: int, seed: int, x: object, delta: float) -> float:
    torch.manual_seed(seed)
    return output_change(make(depth, seed), x, delta, torch.Generator().manual_seed(seed))


@torch.no_grad()
def output_change(
    model: nn.Module, x: object, delta: float = DELTA, generator: torch.Generator | None = None
) -> float:
    """Return the mean squared change of the output if every weight in the matrices of `model` changes by +-`delta`.

    Embeddings stay as they are. The output of an LM is its residual stream after the final norm. The weights are restored
    before the call returns or fails.
    """
    with eval_mode(model):
        before, weights = output(model, x), matrices(model)
        originals = [weight.clone() for weight in weights]
        try:
            for weight in weights:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.sub_(delta * noise.sign())
            return (output(model, x) - before).double().square().mean().item()
        finally:
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


def output(model: nn.Module, x: object) -> Tensor:
    if not isinstance(model, LM):
        return model(x)
    with model.record("final_norm") as recording:
        model(x)
    return recording["final_norm"]


def matrices(model: nn.Module) -> list[nn.Parameter]:
    embeddings = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return [p for p in model.parameters() if p.ndim >= 2 and p not in embeddings]


def stability_report(runs: pd.DataFrame, expected: Mapping[str, str], sub_layers: int = 2) -> ScalingReport:
    """Return the report on a table of output changes, which has a row for each variant, depth and seed."""
    rows, sentences, problems, lines = [], [], [], []
    for variant, own in runs.groupby("variant", sort=False):
        # Geometric mean, because squared changes differ by large factors between seeds.
        means = own.groupby("layers")["change"].agg(gmean)
        depths, changes = [int(n) for n in means.index], means.to_list()
        growth = expected.get(str(variant), "")
        rows.append(stability_row(str(variant), depths, changes, growth, sub_layers))
        sentence, problem = stability_verdict(rows[-1])
        sentences.append(with_variant(str(variant), sentence))
        problems += [with_variant(str(variant), problem)] * bool(problem)
        by_seed = own.groupby("layers")["change"]
        low, high = by_seed.min().to_list(), by_seed.max().to_list()
        lines.append(Line(str(variant) or "output change", depths, changes, low, high))
    problems += too_close(rows, sub_layers)
    figure = draw_panels([[Panel("", lines)]], ("layers", "output change"))
    return ScalingReport(
        "stability", pd.DataFrame([row.as_columns() for row in rows]), sentences, problems, figure
    )


class StabilityRow(NamedTuple):
    """The growth of one variant's output change between two depths."""

    variant: str
    change_at: dict[int, float]  # output change by number of layers
    exponent: float  # of a power law of the change in the number of sub-layers
    start: int  # layers
    end: int  # layers
    ratio: float  # output change at `end` over that at `start`
    expected: str  # a key of GROWTH, or empty
    low: float  # bounds of the ratio; NaN if no growth is expected
    high: float
    nearest: str  # the key of GROWTH whose ratio is nearest

    def as_columns(self) -> dict[str, object]:
        """Return the row of the result table."""
        return {
            "variant": self.variant,
            **{f"{depth} layers": change for depth, change in self.change_at.items()},
            "exponent": self.exponent,
            "from": self.start,
            "to": self.end,
            "ratio": self.ratio,
            "expected": self.expected or "-",
            "low": self.low,
            "high": self.high,
            "nearest": self.nearest,
        }


def stability_row(
    variant: str, depths: list[int], changes: list[float], growth: str, sub_layers: int
) -> StabilityRow:
    n = [sub_layers * depth for depth in depths]
    first, last = reference_depth(depths), len(depths) - 1
    theory = {name: f(n[last]) / f(n[first]) for name, f in GROWTH.items()}
    measured_ratio = max(changes[last], 1e-300) / max(changes[first], 1e-300)
    return StabilityRow(
        variant,
        dict(zip(depths, changes, strict=True)),
        exponent=slope(n, changes),
        start=depths[first],
        end=depths[last],
        ratio=changes[last] / changes[first] if changes[first] else math.nan,
        expected=growth,
        low=BANDS[growth][0] * theory[growth] if growth else math.nan,
        high=BANDS[growth][1] * theory[growth] if growth else math.nan,
        nearest=min(theory, key=lambda name: abs(math.log(measured_ratio / theory[name]))),
    )


def reference_depth(depths: list[int]) -> int:
    """Return the index of the depth that the deepest model is compared with: the first of at least 6 layers, if any.

    In shallower models the change does not yet grow as in theory.
    """
    return next((i for i, depth in enumerate(depths[:-1]) if depth >= 6), 0)


def stability_verdict(row: StabilityRow) -> tuple[str, str]:
    """Return a sentence about a variant, and its problem, or an empty string if it has none."""
    what = (
        f"output change grows {row.ratio:.3g} times from {row.start} to {row.end} layers "
        f"(exponent {row.exponent:.2f}, nearest to {row.nearest})"
    )
    if not math.isfinite(row.ratio):
        problem = "the output does not change, or is NaN"
        return problem, problem
    if math.isnan(row.low):
        return f"{what}; no expected growth", ""
    band = f"{row.expected} is {row.low:.2f} to {row.high:.2f}"
    if row.low <= row.ratio <= row.high:
        return f"{what}, as expected: {band}", ""
    # The bounds are shown with two decimals: a ratio that is barely outside gets more.
    ratio = f"{row.ratio:.3g}"
    if ratio in (f"{row.low:.3g}", f"{row.high:.3g}"):
        ratio = beyond(row.ratio, round(row.low if row.ratio < row.low else row.high, 2))
    return (
        f"{what}, not as expected: {band}",
        f"{ratio} times from {row.start} to {row.end} layers, but {band}",
    )


def too_close(rows: list[StabilityRow], sub_layers: int) -> list[str]:
    """Return a problem for each plain model whose output change is not much larger than Admin's at the same depth."""
    deepest = {growth: [row for row in rows if row.expected == growth] for growth in GROWTH}
    problems = []
    for plain in deepest["O(n)"]:
        for admin in deepest["O(logn)"]:
            n = sub_layers * plain.end
            min_times = APART * n / math.log(n + 1)
            times = plain.change_at[plain.end] / admin.change_at.get(plain.end, math.nan)
            if times < min_times:
                problems.append(
                    f"at {plain.end} layers {plain.variant} changes only {times:.3g} times as much as {admin.variant}, not {min_times:.3g}"
                )
    return problems


def expected_growth(model: ModelParams) -> str:
    """Return the growth of an architecture's output change in theory, or "" if it is unknown (arXiv:2004.08249)."""
    if model.norm_position != "post" or model.residual in ("rezero", "layerscale"):
        return ""
    if model.residual == "admin":
        return model.residual_change if not model.residual_profile else "O(logn)"
    return "O(n)" if model.residual == "plain" else "O(1)"
