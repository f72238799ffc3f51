"""Figures of the effect of each axis of a grid on the final loss."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from explore.compare.figures import ACCENT, MAX_CURVES, MAX_LABELS, OTHER, ReportPart, figure, final_range
from explore.compare.svg import Plot, widened
from explore.compare.variants import SEED, is_number, value_as_label
from explore.compare.verdicts import interval

MAX_DOTS = 600  # dots of a plot


def axis_figures(part: ReportPart) -> str:
    """Return a plot for each varied field except the seed, or "" if there is none."""
    plots = [tuned_plot(part, name) for name in part.varied if [name] == part.tuned]
    plots += [axis_plot(part, name) for name in part.varied if name != SEED and [name] != part.tuned]
    caption = (
        f"{escape(part.label_of_losses.capitalize())}. The tuned field has a line for each variant, the mean over seeds. Any other field has a dot for each "
        "run, and in color the lowest mean over seeds that each value reached. × marks a run that failed, diverged, or lies "
        "above the plot."
    )
    return figure(plots, caption) if plots else ""


class Axis(NamedTuple):
    """Positions of the values of a field on an x axis."""

    at: dict[str, float]  # position by the value's label
    range: tuple[float, float]
    ticks: dict[float, str] | None  # label by position; None: round numbers
    log: bool
    in_order: bool  # the values are numbers, so a line may connect them


def axis_of(values: Sequence[object]) -> Axis:
    """Return the axis for these values: evenly spaced, or to scale if they are more than 12 numbers."""
    different = {value_as_label(value): value for value in values}
    numbers = {text: value for text, value in different.items() if is_number(value)}
    all_numbers = len(numbers) == len(different)
    labels = sorted(numbers, key=numbers.__getitem__) if all_numbers else list(different)
    if not all_numbers or len(labels) <= 12:
        at = {text: float(i) for i, text in enumerate(labels)}
        names = labels[:: max(1, math.ceil(len(labels) / MAX_LABELS))]
        return Axis(at, (-0.5, len(at) - 0.5), {at[text]: text for text in names}, False, all_numbers)
    at = {text: float(numbers[text]) for text in labels}
    low, high = min(at.values()), max(at.values())
    if low > 0 and high / low > 30:
        return Axis(at, (low / 1.2, high * 1.2), None, True, True)
    return Axis(at, widened([low, high]), None, False, True)


def tuned_plot(part: ReportPart, field: str) -> str:
    """Plot the mean final loss over the values of the tuned field, a line for each variant."""
    axis = axis_of([run.get(field) for v in part.variants for run in v.runs.values()])
    colors = part.colors
    means = [[mean_loss(losses) for losses in variant.losses_LS] for variant in part.variants]
    ends = [interval(losses[np.isfinite(losses)])[0] for i in colors for losses in part.variants[i].losses_LS]
    y = final_range([*(mean for row in means for mean in row), *ends])
    plot = Plot(
        (486, 300), axis.range, y, labels=(field, part.label_of_losses), log_x=axis.log, x_ticks=axis.ticks
    )
    for i in sorted(range(len(means)), key=lambda i: i in colors)[-MAX_CURVES:]:
        variant, color = part.variants[i], colors.get(i, OTHER)
        x_of = [
            axis.at[value_as_label(variant.runs_of(j)[0].get(field))] for j in range(len(variant.settings))
        ]
        points = sorted(zip(x_of, means[i], variant.losses_LS, strict=True), key=lambda point: point[0])
        if i in colors:
            for x, _, losses_S in points:
                low, high = interval(losses_S[np.isfinite(losses_S)])
                if math.isfinite(low):
                    plot.y_interval(x, low, high, color)
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        plot.line(xs, ys, color, variant.name, kind="line" if i in colors else "thin")
        if i in colors:
            plot.dots(xs, ys, color, 2.5)
        plot.crosses([x for x, mean in zip(xs, ys, strict=True) if not mean <= y[1]], color, variant.name)
    return plot.svg(f"final loss over {field}")


def mean_loss(losses_S: np.ndarray) -> float:
    """Return the mean loss of the runs: infinity if one is infinite, NaN if there are none."""
    ran_S = losses_S[~np.isnan(losses_S)]
    return float(ran_S.mean()) if ran_S.size else math.nan


def axis_plot(part: ReportPart, field: str) -> str:
    """Plot the final loss over the values of a field: a dot for each run, and the lowest mean with each value."""
    axis = axis_of([run.get(field) for v in part.variants for run in v.runs.values()])
    dots: list[tuple[float, float]] = []
    best: dict[float, float] = {}
    for variant in part.variants:
        for j, losses_S in enumerate(variant.losses_LS):
            at = axis.at[value_as_label(variant.runs_of(j)[0].get(field))]
            best[at] = min(best.get(at, math.inf), mean_loss(losses_S))
            dots += [(at, float(loss)) for loss in losses_S if not math.isnan(loss)]
    y = final_range([loss for _, loss in dots], at_least=max(best.values()))
    width = min(980.0, max(320.0, 40.0 + 46.0 * len(axis.ticks or [])))
    plot = Plot(
        (width, 300), axis.range, y, labels=(field, part.label_of_losses), log_x=axis.log, x_ticks=axis.ticks
    )
    shown_dots = dots[:: math.ceil(len(dots) / MAX_DOTS)]
    spread = 0.0 if axis.ticks is None else 0.3
    xs = [x + spread * (i * 0.618 % 1 - 0.5) for i, (x, _) in enumerate(shown_dots)]
    inside = [(x, loss) for x, (_, loss) in zip(xs, shown_dots, strict=True) if loss <= y[1]]
    plot.dots([x for x, _ in inside], [loss for _, loss in inside], OTHER)
    plot.crosses(
        [x for x, (_, loss) in zip(xs, shown_dots, strict=True) if not loss <= y[1]],
        OTHER,
        "above, or failed",
    )
    xs = sorted(best)
    if axis.in_order:
        plot.line(xs, [best[x] for x in xs], ACCENT)
    plot.dots(xs, [best[x] for x in xs], ACCENT, 3.5)
    return plot.svg(f"final loss by {field}")
