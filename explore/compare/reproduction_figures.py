"""Figures of published results: what the claims of a config are about, as an SVG file that needs no page around it.

A figure has a panel for each unit that claims compare. Its form follows from the claims and the grid: curves for a time such
as `steps_to`, lines where a field or a trend has three numbers or more, and otherwise a row of dots for each variant.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from explore.compare.charts import AxisScale, ChartRow, FigurePanel, ValueRange, panels_as_svg
from explore.compare.claims import Unknown, margin_of, values_by_seed, values_of_pick, x_of
from explore.compare.metrics import RunRow, is_number, measured, read_metric
from explore.compare.parts import widened
from explore.compare.variants import Variant, fields_as_label, gather, value_as_label, varied_fields
from train.grid.claims import SEED, SPREADS, TIME_TO, TRENDS, TUNED, Claim, Comparison, Pick
from train.grid.params import measured_column

MAX_PANELS = 3
MAX_DOT_ROWS = 30  # variants in a panel of dots
MAX_LABEL = 40  # characters of the name of a variant, if it can be shorter
MAX_TICKS = 10  # values of a field that an axis names one by one
MIN_AXIS = 3  # different numbers that a field needs for an axis
LOG_FIELD = 8.0  # the axis of a field whose largest number is so many times its smallest is logarithmic
LOG_VALUES = 30.0  # the same for measured values: 1.5 decades
WEDGE_POINTS = 12  # of the area that a slope may reach
SHARE, NATS = "share that is right", "nats a token"  # units of columns
AXIS_LABELS = {
    "val_loss": "validation loss, nats a token",
    "val_accuracy": "validation accuracy",
    "val_exact_match": "exact match on the validation set",
}


class Subject(NamedTuple):
    """Claims whose columns share an axis: what one panel shows."""

    columns: tuple[str, ...]
    claims: tuple[Claim, ...]

    @property
    def unit(self) -> str:
        return unit_of(self.columns[0])

    @property
    def picks(self) -> list[Pick]:
        return [pick for claim in self.claims for pick in claim.picks.values()]


class FigurePoint(NamedTuple):
    """The values of a column over the seeds of a variant, in a series and at a number or in a row."""

    series: str
    at: float | str
    column: str
    runs: Sequence[RunRow]
    values: Sequence[float]

    @property
    def mean(self) -> float:
        return mean_of(self.values)


def figure_of(claims: Sequence[Claim], rows: Sequence[RunRow]) -> str:
    """Return the figure of a config with these runs as the text of an SVG file, or "" if its claims show nothing."""
    panels = panels_of(claims, rows)
    return panels_as_svg(panels) if panels else ""


def panels_of(claims: Sequence[Claim], rows: Sequence[RunRow]) -> list[FigurePanel]:
    """Return the panels of a figure, in the order of the claims and at most MAX_PANELS of them."""
    panels = [panel_about(one, rows) for one in subjects_of(claims)] if rows else []
    return [panel for panel in panels if panel.points][:MAX_PANELS]


def subjects_of(claims: Sequence[Claim]) -> list[Subject]:
    """Return what the claims are about: columns of one unit, and columns that a claim compares, share an axis."""
    subjects: list[Subject] = []
    for claim in claims:
        own = Subject(tuple(dict.fromkeys(pick.columns[-1] for pick in claim.picks.values())), (claim,))
        units = {unit_of(name) for name in own.columns}
        same = [one for one in subjects if not units.isdisjoint(map(unit_of, one.columns))]
        joined = [*same, own]
        columns = dict.fromkeys(name for one in joined for name in one.columns)
        merged = Subject(tuple(columns), tuple(claim for one in joined for claim in one.claims))
        at = subjects.index(same[0]) if same else len(subjects)
        subjects = [one for one in subjects if one not in same]
        subjects.insert(at, merged)
    return subjects


def unit_of(column: str) -> str:
    """Return what a column counts; columns of one unit can share an axis."""
    if TIME_TO.fullmatch(column):
        return f"time of {read_metric(column).name}"
    name = column.partition("[")[0]
    if "accuracy" in name or "exact_match" in name:
        return SHARE
    return NATS if "loss" in name else name


def panel_about(subject: Subject, rows: Sequence[RunRow]) -> FigurePanel:
    """Return the panel about some claims. It has no points if nothing is known of their columns."""
    if TIME_TO.fullmatch(subject.columns[0]):
        return curves_panel(subject, rows)
    varied = [name for name in varied_fields(rows) if name != SEED]
    axis = x_axis_of(subject, rows, varied)
    tuned = [name for name in TUNED if name != axis]
    known = {name for row in rows for name, value in row.items() if is_number(value)}
    columns = [name for name in subject.columns if measured_column(name) in known]
    variants = {name: gather(pd.DataFrame(rows, dtype=object), tuned, name)[0] for name in columns}
    fields = independent_fields(axis, subject, [name for name in varied if name not in tuned], rows)
    if axis:
        points = [*line_points(axis, variants, fields, rows)]
        return lines_panel(axis, points, subject, rows, is_field=axis in fields)
    return points_panel("dots", "", [*dot_points(variants, fields)], subject, rows)


def independent_fields(
    axis: str, subject: Subject, fields: Sequence[str], rows: Sequence[RunRow]
) -> list[str]:
    """Return the fields without those that follow from others, such as heads from a width. Fields of claims stay."""
    named = {axis, *(name for pick in subject.picks for name in pick.fields)}
    kept: list[str] = []
    for name in sorted(fields, key=lambda name: name not in named):
        if not any(follows(name, other, rows) for other in kept):
            kept.append(name)
    return [name for name in fields if name in kept]


def follows(name: str, other: str, rows: Sequence[RunRow]) -> bool:
    """Return True if runs with the same value of the field `other` have the same value of `name`."""
    pairs = {(value_as_label(row.get(other)), value_as_label(row.get(name))) for row in rows}
    return len(pairs) == len({first for first, _ in pairs})


def x_axis_of(subject: Subject, rows: Sequence[RunRow], varied: Sequence[str]) -> str:
    """Return the x axis of a panel, or "" if it has a row for each variant instead.

    It is the measured number of a trend, or a field that has at least MIN_AXIS numbers: first those that claims name. A
    tuned field is an axis only if claims are about its values.
    """
    if trend := next((pick for pick in subject.picks if pick.function in TRENDS), None):
        return trend.columns[0]
    named = [name for pick in subject.picks for name in pick.fields if name in varied]
    if any(pick.function in SPREADS for pick in subject.picks):
        named = [*TUNED, *named]
    named = sorted(named, key=lambda name: name not in TUNED)
    others = [name for name in varied if name not in TUNED]
    return next((name for name in [*named, *others] if is_numeric(name, rows)), "")


def is_numeric(field: str, rows: Sequence[RunRow]) -> bool:
    """Return True for a field with at least MIN_AXIS different numbers, and no other values."""
    values = {value_as_label(row.get(field)): row.get(field) for row in rows}
    return len(values) >= MIN_AXIS and all(is_number(value) for value in values.values())


def variant_labels(rows: Sequence[RunRow], fields: Sequence[str]) -> list[str]:
    """Return the names of variants, each by one of its runs. If some are long, words stand without the names of fields."""
    labels = [variant_label(row, fields, rows) for row in rows]
    if max(map(len, labels), default=0) > MAX_LABEL:
        labels = [variant_label(row, fields, rows, is_short=True) for row in rows]
    return labels


def variant_label(
    row: RunRow, fields: Sequence[str], others: Sequence[RunRow], is_short: bool = False
) -> str:
    """Return the name of a variant: the values of the fields that vary, of dicts only the keys that do."""
    parts = []
    for name in fields:
        value = row.get(name)
        if isinstance(value, Mapping):
            dicts = [other for one in others if isinstance(other := one.get(name), Mapping)]
            parts += [
                f"{key}={part}" for key, part in value.items() if any(one.get(key) != part for one in dicts)
            ]
        elif is_short and isinstance(value, str | tuple):
            parts.append(value if isinstance(value, str) else "/".join(map(str, value)))
        else:
            parts.append(fields_as_label(row, [name]))
    return ", ".join(parts)


def line_points(
    axis: str, variants: Mapping[str, Sequence[Variant]], fields: Sequence[str], rows: Sequence[RunRow]
) -> Iterator[FigurePoint]:
    """Yield the points over a field, or over a measured number such as `state_size`, which follows from a field."""
    along = axis if axis in fields else next((name for name in fields if is_numeric(name, rows)), "")
    others = [name for name in fields if name != along]
    for column, of_column in variants.items():
        labels = variant_labels([next(iter(one.runs.values())) for one in of_column], others)
        for one, label in zip(of_column, labels, strict=True):
            names = [label, column if len(variants) > 1 else ""]
            runs, by_seed = one.runs_of(one.best or 0), values_by_seed(one)
            if by_seed:
                x = x_of(one, axis, next(iter(by_seed)))
                yield FigurePoint(", ".join(filter(None, names)), x, column, runs, [*by_seed.values()])


def dot_points(variants: Mapping[str, Sequence[Variant]], fields: Sequence[str]) -> Iterator[FigurePoint]:
    """Yield the points of a panel with a row for each variant."""
    for column, of_column in variants.items():
        labels = variant_labels([next(iter(one.runs.values())) for one in of_column], fields)
        for one, label in zip(of_column[:MAX_DOT_ROWS], labels, strict=False):
            series, values = column if len(variants) > 1 else "", [*values_by_seed(one).values()]
            yield FigurePoint(series, label or "all runs", column, one.runs_of(one.best or 0), values)


def lines_panel(
    axis: str, points: Sequence[FigurePoint], subject: Subject, rows: Sequence[RunRow], is_field: bool
) -> FigurePanel:
    """Return a panel of points over a number: small ones for seeds, large ones and lines for means."""
    points = sorted((one for one in points if math.isfinite(float(one.at))), key=lambda one: float(one.at))
    xs = sorted({float(one.at) for one in points})
    panel = points_panel("lines", axis, points, subject, rows)
    wedges = [row for claim in subject.claims for row in wedge_of(claim, points, rows)]
    return panel._replace(
        areas=[*bands_inside(wedges, panel.domain)],
        at_scale=scale_of_field(xs),
        ticks=xs if is_field and len(xs) <= MAX_TICKS else [],
    )


def scale_of_field(numbers: Sequence[float]) -> AxisScale:
    """Return the scale of an axis for these numbers: "symlog" is logarithmic, and has a place for 0."""
    positive = [number for number in numbers if number > 0]
    if not positive or min(numbers) < 0 or max(positive) / min(positive) < LOG_FIELD:
        return "linear"
    return "log" if len(positive) == len(numbers) else "symlog"


def points_panel(
    kind: Literal["dots", "lines"],
    title: str,
    points: Sequence[FigurePoint],
    subject: Subject,
    rows: Sequence[RunRow],
) -> FigurePanel:
    """Return a panel of points, with the values that claims expect of them."""
    expected = expected_values(subject.claims, points, rows)
    values = [value for one in points for value in one.values]
    ends = [end for row in expected for end in (row["low"], row["high"])]
    domain, scale = value_range([*values, *ends], subject.unit)
    shown = [row for one in points for row in rows_of_point(one, domain)]
    bands = [*bands_inside(expected, domain)]
    return FigurePanel(
        kind, title, axis_label([*dict.fromkeys(one.column for one in points)]), shown, bands, domain, scale
    )


def rows_of_point(point: FigurePoint, domain: ValueRange) -> Iterator[ChartRow]:
    """Yield a row for each seed, then one for the mean. Diverged runs lie at the end of the axis, and leave no mean."""
    own: ChartRow = {"series": point.series, "at": point.at}
    edges = ("left", "right") if isinstance(point.at, str) else ("down", "up")
    for value in point.values:
        shape = "circle" if math.isfinite(value) else f"triangle-{edges[value > 0]}"
        yield own | {"value": min(max(value, domain[0]), domain[1]), "shape": shape}
    yield own | {"value": point.mean if math.isfinite(point.mean) else None, "mean": True}


def curves_panel(subject: Subject, rows: Sequence[RunRow]) -> FigurePanel:
    """Return a panel of a statistic over steps: a thin line for each run, and the mean of each variant.

    It shows the variants that the claims are about, each at its best setting, and the values that they wait for.
    """
    column = subject.columns[0]
    statistic = read_metric(column).name
    variants = gather(pd.DataFrame(rows, dtype=object), TUNED, column)[0]
    groups = [one.runs_of(one.best or 0) for one in variants]
    groups = [runs for runs in groups if any(pick.takes(runs[0]) for pick in subject.picks)]
    varied = [name for name in varied_fields(rows) if name not in (SEED, *TUNED)]
    labels = variant_labels([runs[0] for runs in groups], varied)
    shown: list[ChartRow] = []
    for series, runs in zip(labels, groups, strict=True):
        shown += rows_of_curves(series, [one for run in runs if (one := curves_of(run).get(statistic))])
    values = [row["value"] for row in shown]
    times = [read_metric(pick.columns[0]) for pick in subject.picks if TIME_TO.fullmatch(pick.columns[0])]
    limits = dict.fromkeys(time.limit for time in times)
    seen = without_beginning(values) if "loss" in statistic else values
    domain, scale = value_range([*seen, *limits], unit_of(statistic))
    return FigurePanel(
        "curves", "optimizer steps", axis_label([statistic]), shown, [], domain, scale, limits=[*limits]
    )


def rows_of_curves(series: str, curves: Sequence[Sequence[tuple[int, float]]]) -> Iterator[ChartRow]:
    """Yield the points of the curve of each run, then those of their mean over the steps that all have."""
    known = [{step: value for step, value in curve if math.isfinite(value)} for curve in curves]
    for run, of_run in enumerate(known):
        for step, value in of_run.items():
            yield {"series": series, "at": step, "value": value, "run": run}
    for step in sorted(set.intersection(*map(set, known))) if known else []:
        yield {"series": series, "at": step, "value": mean_of([one[step] for one in known]), "mean": True}


def curves_of(row: RunRow) -> Mapping[str, list[tuple[int, float]]]:
    """Return the curves that a record keeps of a run, by the name of the statistic."""
    kept = measured(row, "curves")
    return kept if isinstance(kept, Mapping) else {}


def without_beginning(values: Sequence[float]) -> list[float]:
    """Return the values without the highest tenth, so that the steep beginning of losses does not hide the rest."""
    return sorted(value for value in values if math.isfinite(value))[: math.ceil(0.9 * len(values))]


def expected_values(
    claims: Sequence[Claim], points: Sequence[FigurePoint], rows: Sequence[RunRow]
) -> list[ChartRow]:
    """Return a band for each point of which claims expect something: the values with which all of them hold.

    A claim about several values gives a band for the first, with the others as they are in the mean over the seeds.
    """
    found: dict[int, ValueRange] = {}
    for claim in claims:
        pick = next(iter(claim.picks.values()))
        own = [i for i, one in enumerate(points) if one.column == pick.columns[0] and pick.takes(one.runs[0])]
        interval = None if pick.function or len(own) != 1 else expected_interval(claim, rows)
        if interval is not None:
            low, high = found.get(own[0], (-math.inf, math.inf))
            found[own[0]] = (max(low, interval[0]), min(high, interval[1]))
    return [
        {"series": points[i].series, "at": points[i].at, "low": low, "high": high}
        for i, (low, high) in found.items()
        if low < high
    ]


def expected_interval(claim: Claim, rows: Sequence[RunRow]) -> ValueRange | None:
    """Return the values of a claim's first pick with which it holds, or None if that is unknown or no interval."""
    try:
        picked = {name: values_of_pick(pick, rows)[0] for name, pick in claim.picks.items()}
        means = {name: mean_of([*values.values()]) for name, values in picked.items()}
        ends = [end_of(one, next(iter(means)), means) for one in claim.comparisons]
    except (Unknown, ValueError):
        return None
    low = max((end for end, slope in ends if slope > 0), default=-math.inf)
    high = min((end for end, slope in ends if slope < 0), default=math.inf)
    return (low, high) if low < high and (low, high) != (-math.inf, math.inf) else None


def end_of(comparison: Comparison, name: str, means: Mapping[str, float]) -> tuple[float, float]:
    """Return where a comparison begins or ceases to hold as the pick `name` changes, and the slope of its margin there.

    The slope is 0 for a comparison that does not depend on the pick. Raise ValueError for one that is not linear in it.
    """

    def margin(value: float) -> float:
        return margin_of(comparison, {**means, name: value})

    at = means[name] if math.isfinite(means[name]) else 0.0
    width = max(1e-3 * abs(at), 1e-9)
    slope = (margin(at + width) - margin(at - width)) / (2 * width)
    if not slope:
        return at, 0.0
    end = at - margin(at) / slope
    if not abs(margin(end)) <= 1e-6 * max(abs(slope * end), abs(slope * at)):
        raise ValueError(f"{comparison} is not linear in {name}")
    return end, slope


def wedge_of(claim: Claim, points: Sequence[FigurePoint], rows: Sequence[RunRow]) -> Iterator[ChartRow]:
    """Yield where the line of a series may go for a claim about its slope, from the mean of its first point on."""
    pick = next(iter(claim.picks.values()))
    taken = [one for one in points if pick.takes(one.runs[0])]
    one_series = len({one.series for one in taken}) == 1 and math.isfinite(taken[0].mean)
    interval = expected_interval(claim, rows) if pick.function == "slope" and one_series else None
    if interval is None:
        return
    first, last = taken[0], float(taken[-1].at)
    start, space = float(first.at), np.geomspace if pick.log else np.linspace

    def line(x: float, slope: float) -> float:
        if math.isinf(slope):
            return slope
        return first.mean * (x / start) ** slope if pick.log else first.mean + (x - start) * slope

    for x in space(start, last, WEDGE_POINTS).tolist():
        low, high = (line(x, slope) for slope in interval)
        yield {"series": first.series, "at": x, "low": low, "high": high}


def bands_inside(bands: Iterable[ChartRow], domain: ValueRange) -> Iterator[ChartRow]:
    """Yield bands with their ends inside the axis."""
    for band in bands:
        low, high = (min(max(band[name], domain[0]), domain[1]) for name in ("low", "high"))
        yield band | {"low": low, "high": high}


def value_range(values: Iterable[float], unit: str) -> tuple[ValueRange, AxisScale]:
    """Return the ends and the scale of an axis for these values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    if unit != SHARE and min(finite) > 0 and max(finite) / min(finite) >= LOG_VALUES:
        low, high = widened([math.log(min(finite)), math.log(max(finite))])
        return (math.exp(low), math.exp(high)), "log"
    return widened(finite), "linear"


def mean_of(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def axis_label(columns: Sequence[str]) -> str:
    """Return the label of an axis that shows the columns."""
    names = {AXIS_LABELS.get(name, name) for column in columns for name in [column.partition("[")[0]]}
    if len(names) != 1:
        return unit_of(columns[0]) if columns else ""
    evaluation_sets = {column.partition("[")[2].rstrip("]") for column in columns}
    own = next(iter(evaluation_sets))
    return f"{next(iter(names))} ({own})" if len(evaluation_sets) == 1 and own else next(iter(names))
