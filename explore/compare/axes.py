"""Charts of the fields of a grid: the effect of each on the final loss, of two at once, and of all at once."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from explore.compare.parts import (
    GROUPS,
    OTHERS,
    X_TITLE,
    Y_TITLE,
    Figures,
    ReportPart,
    finite_or_none,
    range_without_outliers,
    table_data,
    widened,
)
from explore.compare.variants import SEED, RunRow, fields_as_label, is_number, value_as_label
from explore.compare.verdicts import interval

MAX_DOTS = 600  # dots of a chart
MAX_LINES = 200  # lines of a chart
MAX_EVEN = 12  # values of a field that are evenly spaced; more numbers are drawn to scale
MAX_AXIS_LABELS = 40  # values of a field that have a label in a chart of all fields


def axis_figures(part: ReportPart, figures: Figures) -> str:
    """Return charts of each varied field except the seed, of pairs of fields, and of all fields."""
    axes = [name for name in part.varied if name != SEED]
    if not axes:
        return ""
    plots = [tuned_figure(part, name, figures) for name in axes if [name] == part.tuned]
    plots += [effect_figure(part, name, figures) for name in axes if [name] != part.tuned]
    several = heat_figure(part, axes, figures) + parallel_figure(part, axes, figures) if len(axes) > 1 else ""
    return f"<div class=plots>{''.join(plots)}</div>{several}"


class FieldAxis(NamedTuple):
    """The values of a field on an axis."""

    labels: list[str]  # in their order
    is_even: bool  # evenly spaced, by label; else to scale
    are_numbers: bool  # so a line may connect them

    @property
    def chart(self) -> str:
        """The end of the name of the chart."""
        return "" if self.is_even else "-many"

    def at(self, value: object) -> str | float:
        return value_as_label(value) if self.is_even or not is_number(value) else float(value)

    def place(self, value: object) -> int:
        return self.labels.index(value_as_label(value))


def axis_of(values: Sequence[object]) -> FieldAxis:
    """Return the axis for these values: evenly spaced, or to scale if they are more than MAX_EVEN numbers."""
    different = {value_as_label(value): value for value in values}
    numbers = {text: value for text, value in different.items() if is_number(value)}
    are_numbers = len(numbers) == len(different)
    labels = sorted(numbers, key=numbers.__getitem__) if are_numbers else list(different)
    return FieldAxis(labels, not are_numbers or len(labels) <= MAX_EVEN, are_numbers)


def runs_of_part(part: ReportPart) -> list[tuple[RunRow, float]]:
    """Return each run of a part with its value of the metric."""
    return [
        (variant.runs[setting, seed], variant.sign * float(loss))
        for variant in part.variants
        for setting, losses_S in zip(variant.settings, variant.losses_LS, strict=True)
        for seed, loss in zip(variant.seeds, losses_S, strict=True)
        if not math.isnan(loss)
    ]


def values_of_field(part: ReportPart, field: str) -> list[object]:
    return [run.get(field) for variant in part.variants for run in variant.runs.values()]


def mean_loss(losses_S: np.ndarray) -> float:
    """Return the mean loss of the runs: infinity if one is infinite, NaN if there are none."""
    ran_S = losses_S[~np.isnan(losses_S)]
    return float(ran_S.mean()) if ran_S.size else math.nan


def tuned_figure(part: ReportPart, field: str, figures: Figures) -> str:
    """Return the chart of the mean loss over the values of the tuned field, a line for each variant."""
    axis, rows = axis_of(values_of_field(part, field)), []
    shown = [*[i for i in part.order if i not in part.colored][:MAX_LINES], *part.colored]
    for i in shown:
        variant, group = part.variants[i], part.group_of[i]
        for j, losses_S in enumerate(variant.losses_LS):
            finite_S = losses_S[np.isfinite(losses_S)]
            low, high = interval(finite_S) if group != OTHERS and len(finite_S) > 1 else (math.nan, math.nan)
            value = variant.runs_of(j)[0].get(field)
            row = {"place": axis.place(value), "at": axis.at(value), "group": group, "name": variant.name}
            row |= {"loss": part.sign * mean_loss(losses_S), "low": part.sign * low, "high": part.sign * high}
            rows.append(row | {"width": 1 if group == OTHERS else 2})
    rows.sort(key=lambda row: row["place"])
    caption = f"Mean {escape(part.label)} over seeds and its 95 % interval, for each {escape(field)} that was tried."
    tokens, drawn = part.tokens(field), {row["group"] for row in rows}
    tokens[GROUPS] = [name for name in part.groups if name in drawn]
    signals = {"yrange": range_with_intervals(rows, part)}
    return figures.add(f"tuned{axis.chart}", {"tuned": table_data(rows)}, tokens, caption, signals=signals)


def range_with_intervals(rows: Sequence[Mapping[str, Any]], part: ReportPart) -> tuple[float, float]:
    """Return the range of the mean losses, with the intervals that reach at most as far again on either side."""
    means = [float(row["loss"]) for row in rows]
    low, high = range_without_outliers(means) if part.sign > 0 else widened(means)
    span = high - low
    ends = [float(row[end]) for row in rows for end in ("low", "high")]
    return widened([low, high, *(end for end in ends if low - span <= end <= high + span)])


def effect_figure(part: ReportPart, field: str, figures: Figures) -> str:
    """Return the chart of the loss over the values of a field: a dot for each run, and the best mean at each value."""
    axis = axis_of(values_of_field(part, field))
    best: dict[str, float] = {}
    values: dict[str, object] = {}
    for variant in part.variants:
        for j, losses_S in enumerate(variant.losses_LS):
            value = variant.runs_of(j)[0].get(field)
            label = value_as_label(value)
            values[label] = value
            mean = mean_loss(losses_S)
            if not math.isnan(mean):
                best[label] = min(best.get(label, math.inf), mean)
    labels = [label for label in axis.labels if label in best]
    best_rows = [
        {"at": axis.at(values[label]), "loss": part.sign * best[label], "joined": int(axis.are_numbers)}
        for label in labels
    ]
    runs = runs_of_part(part)
    runs.sort(key=lambda pair: axis.place(pair[0].get(field)))
    others = [name for name in part.varied if name != field]
    dots = [
        {
            "at": axis.at(run.get(field)),
            "loss": loss,
            "run": fields_as_label(run, others),
            "spread": round(0.7 * (i * 0.618 % 1) - 0.35, 3),
        }
        for i, (run, loss) in enumerate(runs[:: math.ceil(len(runs) / MAX_DOTS) or 1])
    ]
    losses = [loss for _, loss in runs]
    at_least = max(best.values(), default=math.nan)
    y_range = range_without_outliers(losses, at_least) if part.sign > 0 else widened(losses)
    n_bad = sum(not math.isfinite(loss) for loss in losses)
    bad = f" {n_bad} failed or diverged." if n_bad else ""
    caption = f"A dot for each run; in color the best mean over seeds at each {escape(field)}.{bad}"
    data = {"dots": table_data(dots), "best": table_data(best_rows)}
    return figures.add(f"effect{axis.chart}", data, part.tokens(field), caption, signals={"yrange": y_range})


def heat_figure(part: ReportPart, axes: Sequence[str], figures: Figures) -> str:
    """Return the heat map of two fields, which the reader chooses."""
    named = {name: axis_of(values_of_field(part, name)) for name in axes}
    small = [name for name in axes if len(named[name].labels) <= MAX_AXIS_LABELS]
    if len(small) < 2:
        return ""
    runs = [
        [*(named[name].place(run.get(name)) for name in small), finite_or_none(loss)]
        for run, loss in runs_of_part(part)
        if math.isfinite(loss)
    ]
    table = {"columns": [*small, "loss"], "rows": runs}
    labels = {name: named[name].labels for name in small}
    caption = f"Mean {escape(part.label)} at each pair of values, over all other fields and seeds."
    return figures.add(
        "heat",
        {"heat": []},
        {X_TITLE: small[0], Y_TITLE: small[1]},
        caption,
        pairs=table,
        labels=labels,
        reversed=part.sign < 0,
    )


def parallel_figure(part: ReportPart, axes: Sequence[str], figures: Figures) -> str:
    """Return the parallel coordinates of the runs: a line through the values of all fields and the loss."""
    named = {name: axis_of(values_of_field(part, name)) for name in axes}
    runs = [(run, loss) for run, loss in runs_of_part(part) if math.isfinite(loss)]
    runs = sorted(runs, key=lambda pair: -part.sign * pair[1])[-MAX_DOTS:]
    if not runs:
        return ""
    losses = sorted({loss for _, loss in runs}, reverse=part.sign > 0)
    rank = {loss: i / max(1, len(losses) - 1) for i, loss in enumerate(losses)}
    lines, marks = [], []
    for i, (run, loss) in enumerate(runs):
        places = {
            name: spread_place(axis.place(run.get(name)), len(axis.labels)) for name, axis in named.items()
        }
        places[part.label] = rank[loss]
        lines += [{"run": i, "axis": name, "at": at, "rank": 1 - rank[loss]} for name, at in places.items()]
    for name, axis in named.items():
        step = math.ceil(len(axis.labels) / 15)
        for place, label in list(enumerate(axis.labels))[::step]:
            marks.append({"axis": name, "at": spread_place(place, len(axis.labels)), "label": label})
    for place in sorted({0, len(losses) // 2, len(losses) - 1}):
        marks.append({"axis": part.label, "at": rank[losses[place]], "label": f"{losses[place]:.4g}"})
    caption = "Each line is a run; the better its rank, the stronger its color. The best is at the top."
    data = {"parallel": table_data(lines), "labels": table_data(marks)}
    return figures.add("parallel", data, {}, caption)


def spread_place(place: int, n: int) -> float:
    return round(place / (n - 1), 4) if n > 1 else 0.5
