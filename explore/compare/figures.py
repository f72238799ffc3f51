"""Figures of a report: loss curves, differences from the baseline, loss against cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

import numpy as np

from explore.compare.curves import TRAINING, VALIDATION, Curve
from explore.compare.svg import LETTER, Plot, short_label, widened
from explore.compare.variants import SEED, Variant, is_number, measured, varied_fields
from explore.compare.verdicts import ComparisonRow

COLORS = [f"var(--c{i})" for i in range(8)]
OTHER, ACCENT = "var(--other)", "var(--accent)"
MAX_PANELS = 60  # panels of a figure with one panel per variant
MAX_CURVES = 1000  # curves of a plot
MAX_LABELS = 40  # labels beside a plot: values of an axis, or variants
Curves = dict[tuple[int, int], Curve]


@dataclass(frozen=True)
class ReportPart:
    """The part of a report about one kind of data: its variants, their comparison and their curves."""

    data: str
    variants: list[Variant]
    rows: list[ComparisonRow]  # one for each variant
    curves: dict[str, Curves]
    metric: str = "val_loss"

    @cached_property
    def order(self) -> list[int]:
        """Indices of the variants, the best first."""
        return sorted(range(len(self.rows)), key=lambda i: self.variants[i].sign * self.rows[i]["mean"])

    @property
    def label(self) -> str:
        """The name of the metric on an axis."""
        return "final loss" if self.metric == "val_loss" else self.metric

    @property
    def label_of_losses(self) -> str:
        """The name of the metric where the plotted values are `losses_LS`, of which lower ones are better."""
        return self.label if self.variants[0].sign > 0 else f"negative {self.label}"

    @cached_property
    def tuned(self) -> list[str]:
        return self.variants[0].tuned.split(" and ")

    @cached_property
    def varied(self) -> list[str]:
        """Fields in which the runs differ."""
        return varied_fields([run for variant in self.variants for run in variant.runs.values()])

    @cached_property
    def fields(self) -> list[str]:
        """Fields in which the variants differ: varied fields except seed and tuned fields."""
        return [name for name in self.varied if name not in (SEED, *self.tuned)]

    @cached_property
    def best(self) -> dict[tuple[int, int], int]:
        """Index of each variant by (index of the variant, index of its best setting)."""
        return {(i, v.best): i for i, v in enumerate(self.variants) if v.best is not None}

    @cached_property
    def colors(self) -> dict[int, str]:
        """Colors by index of the variant: of the baseline and of as many of the best variants as there are colors."""
        baseline = [i for i, row in enumerate(self.rows) if row["verdict"] == "baseline"]
        colored = [*baseline, *(i for i in self.order if i not in baseline)][: len(COLORS)]
        return dict(zip(baseline + sorted(set(colored) - set(baseline)), COLORS, strict=False))


def figure(plots: Sequence[str], caption: str, legend: str = "") -> str:
    return (
        f"<figure><div class=plots>{''.join(plots)}</div>{legend}<figcaption>{caption}</figcaption></figure>"
    )


def legend(names: dict[str, str]) -> str:
    """Return a legend with a swatch for each name and its color."""
    items = "".join(
        f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in names.items()
    )
    return f"<ul class=legend>{items}</ul>"


# ---- loss curves


def curve_figures(part: ReportPart) -> str:
    if not any(part.curves.values()):
        return "<p>The statistics of these runs are missing or unreadable.</p>"
    colors = part.colors
    plots = [
        all_curves(part, part.curves[name], colors, label)
        for name, label in ((VALIDATION, "validation loss"), (TRAINING, "training loss"))
        if part.curves[name]
    ]
    names = {part.variants[i].name: color for i, color in colors.items()}
    several = any(len(variant.settings) > 1 for variant in part.variants)
    others = len(part.variants) > len(colors) or several
    if others:
        names["all other runs"] = OTHER
    best = f"at its best {escape(part.variants[0].tuned)}" if several else "over its seeds"
    caption = f"Each variant {best}: mean and 95 % interval over seeds. The steep beginning is cut off."
    return figure(plots, caption, legend(names)) + (multiples(part) if several else "")


def all_curves(part: ReportPart, curves: Curves, colors: dict[int, str], label: str) -> str:
    """Plot all curves in gray. Curves of colored variants at their best setting are in color, with intervals."""
    plot = Plot((486, 330), x_range(curves), loss_range(part, curves), labels=("trained samples", label))
    best = part.best
    front = [key for key, i in best.items() if i in colors and key in curves]
    for key in [key for key in curves if key not in front][:MAX_CURVES]:
        plot.line(curves[key].x, curves[key].mean, OTHER, name_of(part, key), kind="thin")
    for key in front:
        plot.band(curves[key].x, curves[key].low, curves[key].high, colors[best[key]])
    for key in front:
        plot.line(curves[key].x, curves[key].mean, colors[best[key]], name_of(part, key))
    return plot.svg(f"{label} over trained samples")


def name_of(part: ReportPart, key: tuple[int, int]) -> str:
    variant = part.variants[key[0]]
    return f"{variant.name}, {variant.settings[key[1]]}"


def x_range(curves: Curves) -> tuple[float, float]:
    return 0.0, max(1.0, *(curve.x.max() for curve in curves.values()))


def loss_range(part: ReportPart, curves: Curves) -> tuple[float, float]:
    """Return the y range, from the lowest loss to the median loss after a tenth of the training.

    Cut off the steep beginning, so that the final losses are distinguishable.
    """
    ends = {key: curve.mean[np.isfinite(curve.mean)] for key, curve in curves.items()}
    means = [mean for mean in ends.values() if mean.size]
    if not means:
        return 0.0, 1.0
    early = float(np.median([mean[min(len(mean) - 1, math.ceil(len(mean) / 10))] for mean in means]))
    lasts = [float(mean[-1]) for key, mean in ends.items() if mean.size and key in part.best]
    return widened([min(float(mean.min()) for mean in means), early, *lasts], 0.06)


def multiples(part: ReportPart) -> str:
    """Return a small plot for each variant with the curves of all its settings."""
    longest = max((len(curve.x) for curve in part.curves[VALIDATION].values()), default=0)
    curves = part.curves[VALIDATION if longest > 2 else TRAINING] or part.curves[VALIDATION]
    settings = sorted_settings(part)
    shades = {text: shade(n, len(settings)) for n, text in enumerate(settings)}
    low, high = loss_range(part, curves)
    panels = []
    for i in part.order[:MAX_PANELS]:
        variant = part.variants[i]
        plot = Plot((240, 160), x_range(curves), (low, high + (high - low) / 4), left=40)
        own = {text: curves[i, j] for j, text in enumerate(variant.settings) if (i, j) in curves}
        for text, curve in own.items():
            plot.band(curve.x, curve.low, curve.high, shades[text])
            plot.line(curve.x, curve.mean, shades[text], text)
        panels.append(
            f"<div><h4>{escape(variant.name)}</h4>{plot.svg(f'loss curves of {variant.name}')}</div>"
        )
    what = "validation" if curves is part.curves[VALIDATION] else "training"
    hidden = len(part.variants) - MAX_PANELS
    rest = f" The {hidden} variants with the highest losses are not shown." if hidden > 0 else ""
    caption = f"All runs: {what} loss of every {escape(part.variants[0].tuned)}, over seeds, the best variant first.{rest}"
    return figure(panels, caption, legend(shades))


def sorted_settings(part: ReportPart) -> list[str]:
    """Return all settings that were tried, sorted by value if they are numbers."""
    values = {
        text: run[part.tuned[0]]
        for v in part.variants
        for (text, _), run in v.runs.items()
        if part.tuned[0] in run
    }
    numbers = {text: value for text, value in values.items() if is_number(value)}
    return sorted(numbers, key=numbers.__getitem__) if len(numbers) == len(values) else list(values)


def shade(n: int, of: int) -> str:
    """Return color number `n` of `of`, from blue over green to orange."""
    return f"hsl({250 - 220 * n / max(1, of - 1):.0f} 62% 50%)"


# ---- differences, and loss against cost


def final_range(losses: Sequence[float], at_least: float = -math.inf) -> tuple[float, float]:
    """Return the y range of final losses without the highest 5 %, but up to `at_least`."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    high = (
        max(float(np.percentile(finite, 95)), at_least if math.isfinite(at_least) else -math.inf)
        if finite
        else 0
    )
    return widened([min(finite), high], 0.08) if finite else (0.0, 1.0)


def difference_figure(
    rows: Sequence[ComparisonRow], order: Sequence[int], metric: str = "final loss", sign: int = 1
) -> str:
    """Return a figure of each variant's difference from the baseline with its interval."""
    tested = [rows[i] for i in order if math.isfinite(rows[i]["difference_low"])][:MAX_LABELS]
    if not tested:
        return ""
    largest = max(abs(row["difference"]) for row in tested)
    ends = [
        min(2.5 * largest, max(-2.5 * largest, end))
        for row in tested
        for end in (row["difference_low"], row["difference_high"])
    ]
    longest = max(len(row["variant"]) for row in tested)
    left = min(400.0, 24 + LETTER * longest)
    names = {
        float(-i): short_label(row["variant"], int((left - 14) / LETTER)) for i, row in enumerate(tested)
    }
    size = (min(980.0, left + 520), 60.0 + 22 * len(tested))
    better = "lower" if sign > 0 else "higher"
    label = (f"difference in {metric} from the baseline ({better} is better)", "")
    plot = Plot(size, widened([0.0, *ends]), (0.6 - len(tested), 0.6), labels=label, left=left, y_ticks=names)
    plot.rule(0)
    for i, row in enumerate(tested):
        color = {"better": "var(--better)", "worse": "var(--worse)"}.get(row["verdict"], "var(--quiet)")
        plot.x_interval(
            -i, row["difference_low"], row["difference_high"], color, f"{row['variant']}: {row['verdict']}"
        )
        plot.dots([row["difference"]], [-i], color, 4)
    caption = (
        f"Difference of the mean {escape(metric)} over the seeds of both, and its 95 % interval. Intervals and verdicts are corrected "
        "for the number of comparisons."
    )
    return figure([plot.svg("differences from the baseline")], caption)


def cost_figure(part: ReportPart) -> str:
    """Return a figure of loss against FLOPs, or against parameters if the FLOPs are nearly equal.

    Return "" if the variants differ by less than 5 % in both.
    """
    costs = (("flops", "training FLOPs"), ("n_params", "parameters"))
    return next(filter(None, (figure_against(part, *cost) for cost in costs)), "")


def state_figure(part: ReportPart) -> str:
    """Return a figure of loss against the size of the state in generation, or "" if the variants hardly differ in it."""
    return figure_against(part, "state_size", "state size")


def figure_against(part: ReportPart, column: str, label: str) -> str:
    """Return a figure of loss against a measured value, or "" if the variants differ by less than 5 % in it."""
    costs = {i: cost_of(variant, column) for i, variant in enumerate(part.variants)}
    costs = {i: cost for i, cost in costs.items() if cost > 0 and math.isfinite(part.rows[i]["mean"])}
    if not costs or max(costs.values()) < 1.05 * min(costs.values()):
        return ""
    low, high = min(costs.values()), max(costs.values())
    y = widened([part.rows[i]["mean"] for i in costs], 0.08)
    plot = Plot((486, 300), (low / 1.15, high * 1.15), y, labels=(label, part.label), log_x=True)
    colors = part.colors
    for i, cost in sorted(costs.items(), key=lambda item: item[0] in colors):
        row, color = part.rows[i], colors.get(i, OTHER)
        if math.isfinite(row["low"]):
            plot.y_interval(cost, row["low"], row["high"], color)
        plot.dots([cost], [row["mean"]], color, 3.5)
    return figure(
        [plot.svg(f"{part.label} against {label}")],
        f"{escape(part.label)} against {label}; colors as above.",
    )


def cost_of(variant: Variant, column: str) -> float:
    runs = [] if variant.best is None else variant.runs_of(variant.best)
    values = [float(value) for run in runs if is_number(value := measured(run, column))]
    return float(np.mean(values)) if values else math.nan
