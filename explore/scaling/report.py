"""The result of a scaling check: a table, a figure and a verdict in words."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from explore.compare.csv_files import write_csv
from explore.compare.variants import (
    CODE,
    SEED,
    RunRow,
    any_differ,
    fields_as_label,
    value_as_label,
    varied_fields,
)
from explore.plots import save_for_paper
from train.document import document
from train.fitted_table import FittedTable, TableColumn
from train.grid.params import measured_column
from train.logs import log


@dataclass
class ScalingReport:
    """The result of a scaling check. A notebook shows it as a cell's value."""

    name: str  # name of the check, and of its files
    table: pd.DataFrame
    sentences: list[str]  # findings, one line each
    problems: list[str]  # reasons for "fail"
    figure: Any  # a matplotlib figure
    undecided: list[str] = field(default_factory=list)  # reasons for "cannot tell"

    @property
    def verdict(self) -> str:
        """Text "pass", or "fail: ..." or "cannot tell: ..." with all reasons."""
        if self.problems:
            return f"fail: {'; '.join(self.problems)}"
        return f"cannot tell: {'; '.join(self.undecided)}" if self.undecided else "pass"

    @property
    def passed(self) -> bool:
        return not self.problems and not self.undecided

    def save(self, folder: Path) -> None:
        """Write {name}.csv, and the figure as PNG, to `folder`, and create it if needed.

        The figure is also written as SVG and PDF, as wide as a column of a paper.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(self.table, folder / f"{self.name}.csv")
        self.figure.savefig(folder / f"{self.name}.png", dpi=200, bbox_inches="tight")
        save_for_paper(self.figure, [folder / f"{self.name}.{kind}" for kind in ("svg", "pdf")])

    def say(self, folder: Path) -> int:
        """Log the table, the sentences and the verdict, and save the report in `folder` if possible.

        Return the exit code: 0 for "pass", else 1.
        """
        log.info(as_rich(self.table))
        for sentence in self.sentences:
            log.info(sentence)
        try:
            self.save(folder)
            log.info(f"saved {folder / self.name}.csv, .png, .svg and .pdf")
        except OSError as error:
            log.error(f"failed to save the table and the figure: {error}")
        document.add_check(self.name, folder.name, self.verdict, "; ".join(self.problems or self.undecided))
        log.info(self.verdict)
        return int(not self.passed)

    def __str__(self) -> str:
        return "\n".join([self.table.to_string(index=False), *self.sentences, self.verdict])

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in [*self.sentences, self.verdict])
        return f"{self.table.to_html(index=False)}{lines}"


def as_rich(table: pd.DataFrame) -> FittedTable:
    return FittedTable([TableColumn(str(name), [cell(value) for value in table[name]]) for name in table])


def cell(value: object) -> str:
    if isinstance(value, float | np.floating):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least squares slope of log y over log x. Return NaN if a y is not positive and finite."""
    if len(x) < 2 or not all(math.isfinite(value) and value > 0 for value in y):
        return math.nan
    return float(np.polyfit(np.log2(x), np.log2(y), 1)[0])


def variants_over(rows: Sequence[RunRow], scale: str, ignored: Collection[str] = ()) -> dict[str, list[int]]:
    """Group runs that differ only in `scale`, fields that it determines, the seed and `ignored` fields.

    Return the indices of each group's runs, by the name of the group.
    """

    def follows(field: str) -> bool:
        """Return True if the scale determines `field`, such as the number of heads. It never determines the code."""
        if field == measured_column(CODE):
            return False
        pairs = {(value_as_label(row[scale]), value_as_label(row[field])) for row in rows}
        return len(pairs) == len({value_as_label(row[scale]) for row in rows})

    varied = [name for name in varied_fields(rows) if name not in (scale, SEED, *ignored)]
    own = [name for name in varied if not follows(name)]
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(fields_as_label(row, own), []).append(i)
    return groups


def sizes_of(rows: Sequence[RunRow], scale: str) -> list[Any]:
    """Return the distinct values of `scale`, sorted."""
    return sorted({row[scale] for row in rows})


def varies(rows: Sequence[RunRow], field: str) -> bool:
    return any_differ([row.get(field) for row in rows])


def beyond(value: float, bound: float) -> str:
    """Return a value with two decimals, or as many more as tell it from a bound that it is not equal to."""
    texts = (f"{value:.{digits}f}" for digits in range(2, 10))
    return next((text for text in texts if float(text) != bound), f"{value}")


def with_variant(variant: str, sentence: str) -> str:
    return f"{variant}: {sentence}" if variant else sentence
