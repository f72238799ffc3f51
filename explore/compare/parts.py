"""Parts of a report: the variants trained on one kind of data, with their comparison and their curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from explore.compare.curves import Curve
from explore.compare.variants import SEED, Variant, varied_fields
from explore.compare.verdicts import ComparisonRow

# Placeholders in the specification of a chart: titles of its axes, names of groups, and their colors.
X_TITLE, Y_TITLE, GROUPS, COLORS = "@x", "@y", "@groups", "@colors"
GROUP_COLORS = [f"@c{i}" for i in range(8)]
OTHER_COLOR = "@other"
OTHERS = "all other runs"  # the group of runs without a color
COLUMN_INCHES = 3.25  # width of a column of a paper in two columns
Averages = dict[tuple[int, int], Curve]  # by the index of the variant and of its setting


@dataclass(frozen=True)
class ReportPart:
    """The part of a report about one kind of data: its variants, their comparison and their curves."""

    data: str
    variants: list[Variant]
    rows: list[ComparisonRow]  # one for each variant
    curves: dict[str, Averages]
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
    def sign(self) -> int:
        """-1 if higher values of the metric are better, else 1."""
        return self.variants[0].sign

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
    def baseline(self) -> int | None:
        """Index of the baseline, or None if there is none."""
        return next((i for i, row in enumerate(self.rows) if row["verdict"] == "baseline"), None)

    @cached_property
    def colored(self) -> list[int]:
        """Indices of the variants with a color: the baseline, then as many of the best as there are colors."""
        first = [] if self.baseline is None else [self.baseline]
        best = [i for i in self.order if i not in first][: len(GROUP_COLORS) - len(first)]
        return first + sorted(best)

    @cached_property
    def groups(self) -> list[str]:
        """Names of the groups of the charts: the variants with a color, then all other runs if there are any."""
        have_others = len(self.variants) > len(self.colored) or any(
            len(v.settings) > 1 for v in self.variants
        )
        return [*(self.variants[i].name for i in self.colored), *[OTHERS] * have_others]

    @cached_property
    def group_of(self) -> dict[int, str]:
        """Group by index of the variant."""
        return {i: self.variants[i].name if i in self.colored else OTHERS for i in range(len(self.variants))}

    def group(self, i: int, j: int) -> str:
        """Return the group of the runs of variant `i` with its setting `j`: only the best setting has a color."""
        return self.group_of[i] if j == self.variants[i].best else OTHERS

    def tokens(self, x: str, y: str | None = None) -> dict[str, Any]:
        """Return the values for the placeholders of a chart: titles of the axes, groups and colors."""
        colors = [*GROUP_COLORS[: len(self.colored)], OTHER_COLOR]
        return {X_TITLE: x, Y_TITLE: self.label if y is None else y, GROUPS: self.groups, COLORS: colors}


class Figures:
    """The charts of a page. The page's script draws figure number i into the element with data-figure=i."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(
        self,
        chart: str,
        data: Mapping[str, object],
        tokens: Mapping[str, object],
        caption: str,
        **extra: object,
    ) -> str:
        """Add a chart and return its HTML. `caption` is safe HTML, `data` holds rows by name."""
        self.entries.append({"chart": chart, "data": dict(data), "tokens": dict(tokens), **extra})
        number = len(self.entries) - 1
        return (
            f'<figure class="chart {chart}" data-figure={number}><figcaption>{caption}</figcaption></figure>'
        )


def table_data(rows: Sequence[Mapping[str, object]]) -> dict[str, list]:
    """Return rows as the page reads them: names of columns once, then the values of each row. NaN becomes null."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "rows": [[finite_or_none(row.get(name)) for name in columns] for row in rows]}


def finite_or_none(value: object) -> object:
    """Return a number with six significant digits, or None if it is not finite. Return other values unchanged."""
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def widened(values: Sequence[float], share: float = 0.05) -> tuple[float, float]:
    """Return the range of the finite values, with a margin of `share` of it at both ends."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def range_without_outliers(losses: Sequence[float], at_least: float = -math.inf) -> tuple[float, float]:
    """Return the range of the losses without the highest 5 %, extended to `at_least`."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return 0.0, 1.0
    high = max(float(np.percentile(finite, 95)), at_least if math.isfinite(at_least) else -math.inf)
    return widened([min(finite), high], 0.08)
