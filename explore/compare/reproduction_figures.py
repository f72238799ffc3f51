"""Figures of published results: what the first claim of a config is about, as an SVG file that needs no page around it.

The form follows from the claim and the grid: curves for a time such as `steps_to`, lines where a field or a trend has
three numbers or more, and otherwise a row of dots for each variant.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd

from explore.compare.claims import values_by_seed, x_of
from explore.compare.metrics import RunRow, is_number, measured, read_metric
from explore.compare.svg import LETTER, Plot, short_label, widened
from explore.compare.variants import Variant, fields_as_label, gather, value_as_label, varied_fields
from train.grid.claims import SEED, TIME_TO, TRENDS, TUNED, Claim, Pick
from train.grid.params import measured_column

SIZE = (620.0, 260.0)  # of a plot, without its legend
ROW_HEIGHT = 26.0  # of a variant in a plot of dots
MAX_ROWS = 30  # variants in a plot of dots
MAX_LABEL = 40  # characters of a variant's name
MAX_SERIES = 8  # in a legend; as many as there are colors
MIN_AXIS = 3  # different numbers that a field needs for an axis
LOG_RATIO = 8.0  # an axis whose largest number is so many times its smallest is logarithmic
# Colors that people with any kind of color vision tell apart (Okabe and Ito 2008, "Color Universal Design").
SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#1b1f24", "#7a5195")
STYLE = (
    "text{font:12px sans-serif;fill:#333}.tick{font-size:11px}.grid{stroke:#e4e7eb}.axis{stroke:#8a94a3}"
    ".line,.thin{fill:none;stroke:currentColor;stroke-width:2}.thin{stroke-width:1;opacity:.35}"
    ".dot{fill:currentColor}.seed{fill:currentColor;opacity:.45}"
    ".rule{fill:none;stroke:#8a94a3;stroke-width:1.2;stroke-dasharray:5 4}"
)
AXIS_LABELS = {
    "val_loss": "validation loss, nats a token",
    "val_accuracy": "validation accuracy",
    "val_exact_match": "exact match on the validation set",
}


class Series(NamedTuple):
    """Points with one color: the values of each seed at each x."""

    name: str
    points: Sequence[tuple[float, Sequence[float]]]


def figure_of(claims: Sequence[Claim], rows: Sequence[RunRow]) -> str:
    """Return the figure of a config with these runs as the text of an SVG file, or "" if its claims show nothing."""
    if not claims or not rows:
        return ""
    pick = next(iter(claims[0].picks.values()))
    column = pick.columns[-1]
    varied = [name for name in varied_fields(rows) if name not in (SEED, *TUNED)]
    if TIME_TO.fullmatch(column):
        name = read_metric(column).name
        return curves_figure(name, curve_series(runs_at_best(rows, column), varied, name))
    columns = columns_shown(column, claims, rows)
    variants = {name: measured_variants(rows, name) for name in columns}
    if pick.function in TRENDS:
        return lines_figure(pick.columns[0], variants, varied, claims)
    axis = numeric_axis(rows, varied, claims)
    return lines_figure(axis, variants, varied, claims) if axis else dots_figure(variants, varied, claims)


def measured_variants(rows: Sequence[RunRow], column: str) -> list[Variant]:
    """Return the variants of a grid, measured by a column: those that have it in some run."""
    return gather(pd.DataFrame(rows, dtype=object), TUNED, column)[0]


def runs_at_best(rows: Sequence[RunRow], column: str) -> list[list[RunRow]]:
    """Return the runs of each variant at its best setting."""
    return [one.runs_of(one.best or 0) for one in measured_variants(rows, column)]


def columns_shown(first: str, claims: Sequence[Claim], rows: Sequence[RunRow]) -> list[str]:
    """Return the column `first`, and those of other claims that have the same unit."""
    columns = [first, *(pick.columns[-1] for claim in claims for pick in claim.picks.values())]
    same = [name for name in dict.fromkeys(columns) if unit_of(name) == unit_of(first)]
    known = {name for row in rows for name, value in row.items() if is_number(value)}
    return [name for name in same if name == first or measured_column(name) in known]


def unit_of(column: str) -> str:
    """Return what a column counts; columns of one unit can share an axis."""
    name = column.partition("[")[0]
    if "accuracy" in name or "exact_match" in name:
        return "share"
    return "loss" if "loss" in name and not TIME_TO.fullmatch(column) else column


def numeric_axis(rows: Sequence[RunRow], varied: Sequence[str], claims: Sequence[Claim]) -> str:
    """Return the field that has at least MIN_AXIS numbers in the grid, first of those that claims name. "" without one."""
    named = [name for claim in claims for pick in claim.picks.values() for name in pick.fields]
    for name in dict.fromkeys([*(name for name in named if name in varied), *varied]):
        values = {value_as_label(row.get(name)): row.get(name) for row in rows}
        if len(values) >= MIN_AXIS and all(is_number(value) for value in values.values()):
            return name
    return ""


def variant_label(row: RunRow, fields: Sequence[str], others: Sequence[RunRow]) -> str:
    """Return the name of a variant: the values of the fields that vary, of dicts only the keys that do."""
    parts = []
    for name in fields:
        value = row.get(name)
        if isinstance(value, Mapping):
            dicts = [other for one in others if isinstance(other := one.get(name), Mapping)]
            parts += [
                f"{key}={part}" for key, part in value.items() if any(one.get(key) != part for one in dicts)
            ]
        else:
            parts.append(fields_as_label(row, [name]))
    return ", ".join(parts)


def lines_figure(
    axis: str, variants: Mapping[str, Sequence[Variant]], varied: Sequence[str], claims: Sequence[Claim]
) -> str:
    """Return a plot of the columns over a field, or over a measured number such as `state_size`."""
    is_field = axis in varied
    fields = [name for name in varied if name != axis]
    several = len(variants) > 1
    found: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for column, of_column in variants.items():
        firsts = [next(iter(one.runs.values())) for one in of_column]
        for one, first in zip(of_column, firsts, strict=True):
            name = ", ".join(filter(None, [variant_label(first, fields, firsts), column if several else ""]))
            by_seed = values_by_seed(one)
            if by_seed:
                found.setdefault(name, []).append((x_of(one, axis, next(iter(by_seed))), [*by_seed.values()]))
    series = [Series(name, sorted(points)) for name, points in found.items()]
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, values in one.points for y in values]
    if not xs:
        return ""
    limits = limits_of(variants, claims)
    log = min(xs) > 0 and max(xs) / min(xs) >= LOG_RATIO
    ends = (min(xs) / 1.15, max(xs) * 1.15) if log else widened(xs)
    different = sorted(set(xs))
    ticks = {x: value_as_label(x) for x in different} if is_field and len(different) <= 10 else None
    plot = Plot(
        SIZE,
        ends,
        widened([*ys, *limits]),
        labels=(axis, axis_label([*variants])),
        log_x=log,
        x_ticks=ticks,
    )
    for limit in limits:
        plot.line(ends, [limit, limit], "", kind="rule")
    for i, line in enumerate(series):
        color = color_of(i)
        at, means = [x for x, _ in line.points], [mean_of(values) for _, values in line.points]
        for x, values in line.points:
            plot.dots([x] * len(values), values, color, 2.2, "seed")
        if is_field:
            plot.line(at, means, color)
        plot.dots(at, means, color, 3.5)
    return framed(plot, [one.name for one in series], f"{axis_label([*variants])} over {axis}", limits)


def dots_figure(
    variants: Mapping[str, Sequence[Variant]], varied: Sequence[str], claims: Sequence[Claim]
) -> str:
    """Return a plot with a row for each variant: a small dot for each seed, and a large one for the mean."""
    values: dict[str, dict[str, list[float]]] = {}
    for column, of_column in variants.items():
        firsts = [next(iter(one.runs.values())) for one in of_column]
        for one, first in zip(of_column, firsts, strict=True):
            of_label = values.setdefault(variant_label(first, varied, firsts) or "all runs", {})
            of_label[column] = list(values_by_seed(one).values())
    values = dict(list(values.items())[:MAX_ROWS])
    numbers = [value for of_label in values.values() for found in of_label.values() for value in found]
    limits = limits_of(variants, claims)
    labels = [row_label(name, of_label) for name, of_label in values.items()]
    heights = {len(labels) - 1.0 - i: label for i, label in enumerate(labels)}
    left = 14 + LETTER * max(map(len, labels), default=0)
    plot = Plot(
        (SIZE[0], 50 + ROW_HEIGHT * len(labels)),
        widened([*numbers, *limits]),
        (-0.6, len(labels) - 0.4),
        labels=(axis_label([*variants]), ""),
        left=min(left, SIZE[0] / 2),
        y_ticks=heights,
    )
    for limit in limits:
        plot.rule(limit)
    shift = 0.5 / len(variants)
    for y, of_label in zip(heights, values.values(), strict=True):
        for i, column in enumerate(variants):
            at = y + shift * ((len(variants) - 1) / 2 - i)
            found = [value for value in of_label.get(column, []) if math.isfinite(value)]
            plot.dots(found, [at] * len(found), color_of(i), 2.6, "seed")
            plot.dots([mean_of(found)], [at], color_of(i), 4.2)
    names = [*variants] if len(variants) > 1 else []
    return framed(plot, names, f"{axis_label([*variants])} of each variant", limits)


def row_label(name: str, of_label: Mapping[str, Sequence[float]]) -> str:
    n_bad = max((sum(not math.isfinite(one) for one in found) for found in of_label.values()), default=0)
    return short_label(name, MAX_LABEL) + (f" ({n_bad} diverged)" if n_bad else "")


def curve_series(
    groups: Sequence[Sequence[RunRow]], varied: Sequence[str], statistic: str
) -> Iterator[tuple[str, list[list[tuple[int, float]]]]]:
    """Yield the name of each variant, and the curve of a statistic of each of its runs."""
    firsts = [runs[0] for runs in groups]
    for runs in groups:
        found = [curves[statistic] for run in runs if statistic in (curves := curves_of(run))]
        if found:
            yield variant_label(runs[0], varied, firsts) or "all runs", found


def curves_of(row: RunRow) -> Mapping[str, list[tuple[int, float]]]:
    """Return the curves that a record keeps of a run, by the name of the statistic."""
    kept = measured(row, "curves")
    return kept if isinstance(kept, Mapping) else {}


def curves_figure(statistic: str, series: Iterator[tuple[str, list[list[tuple[int, float]]]]]) -> str:
    """Return a plot of a statistic over steps: a thin line for each run, and the mean of each variant."""
    found = list(series)
    if not found:
        return ""
    points = [point for _, curves in found for curve in curves for point in curve]
    steps, values = zip(*points, strict=True)
    y = widened(without_beginning(values) if "loss" in statistic else values)
    plot = Plot(SIZE, widened(steps, 0.02), y, labels=("optimizer steps", axis_label([statistic])))
    for i, (_, curves) in enumerate(found):
        for curve in curves:
            plot.line([step for step, _ in curve], [value for _, value in curve], color_of(i), kind="thin")
        common = set.intersection(*({step for step, _ in curve} for curve in curves))
        known = [dict(curve) for curve in curves]
        xs = sorted(common)
        plot.line(xs, [mean_of([one[x] for one in known]) for x in xs], color_of(i))
    return framed(plot, [name for name, _ in found], f"{axis_label([statistic])} over steps")


def without_beginning(values: Sequence[float]) -> list[float]:
    """Return the values without the highest tenth, so that the steep beginning of losses does not hide the rest."""
    return sorted(value for value in values if math.isfinite(value))[: math.ceil(0.9 * len(values))]


def limits_of(columns: Mapping[str, object], claims: Sequence[Claim]) -> list[float]:
    """Return the numbers with which claims compare one of the columns."""
    limits = []
    for claim in claims:
        for left, _, right in claim.comparisons:
            for side, other in ((left, right), (right, left)):
                pick = claim.picks.get(side.text)
                if is_value_of(pick, columns) and (number := literal_number(other.text)) is not None:
                    limits.append(number)
    return list(dict.fromkeys(limits))


def is_value_of(pick: Pick | None, columns: Mapping[str, object]) -> bool:
    return pick is not None and not pick.function and pick.columns[0] in columns


def literal_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def mean_of(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def color_of(i: int) -> str:
    return SERIES_COLORS[i] if i < MAX_SERIES else "#b4bcc8"


def axis_label(columns: Sequence[str]) -> str:
    """Return the label of an axis that shows the columns."""
    shown = {AXIS_LABELS.get(name.partition("[")[0], name.partition("[")[0]) for name in columns}
    if len(shown) > 1:
        return unit_of(columns[0])
    [name] = shown
    evaluation_sets = {column.partition("[")[2].rstrip("]") for column in columns}
    own = next(iter(evaluation_sets))
    return f"{name} ({own})" if len(evaluation_sets) == 1 and own else name


def framed(plot: Plot, names: Sequence[str], about: str, limits: Sequence[float] = ()) -> str:
    """Return a file with the plot, a legend below it and a white background."""
    shown = [*names[:MAX_SERIES], *(["others"] if len(names) > MAX_SERIES else [])]
    entries = [(short_label(name, MAX_LABEL), color_of(i)) for i, name in enumerate(shown) if name]
    entries += [("limits in claims", "")] * bool(limits)
    items, x, y = [], 12.0, plot.height + 14
    for name, color in entries:
        width = 30 + LETTER * len(name)
        if x > 12 and x + width > plot.width:
            x, y = 12.0, y + 18
        items.append(swatch(x, y, color) + f'<text x="{x + 18:.0f}" y="{y}">{escape(name)}</text>')
        x += width
    height = (y + 10 if entries else plot.height) + 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {plot.width:g} {height:g}" width="{plot.width:g}" '
        f'height="{height:g}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>\n'
        f"{plot.svg(about)}\n{''.join(items)}</svg>\n"
    )


def swatch(x: float, y: float, color: str) -> str:
    """Return a dot in the color of a series, or a dashed line without a color."""
    if color:
        return f'<circle class="dot" style="color:{color}" cx="{x + 7:.0f}" cy="{y - 4}" r="4.2"/>'
    return f'<path class="rule" d="M{x:.0f},{y - 4}h15"/>'
