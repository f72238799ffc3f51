"""Group the runs of a table into variants: runs that differ only in seed and tuned fields.

Shape suffixes:  L setting of the tuned fields, such as a learning rate  S seed
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, SupportsInt

import numpy as np
import pandas as pd

from explore.compare.metrics import (
    LOSSES,
    Metric,
    RunRow,
    Time,
    is_number,
    measured,
    read_metric,
    time_to,
)
from train.grid.claims import SEED
from train.grid.config_text import VARIANT
from train.grid.params import MEASURING, SECTION_OF, Params, field_hint, measured_column
from train.saving.outcome import Ending, ending_of
from train.train_params import TrainParams

DATA = "DataParams"  # the section whose fields separate incomparable losses
CODE = "code"  # the measured value that identifies the code that trained a run


def row_of(values: Mapping[str, object], params: Params | None = None) -> RunRow:
    """Return the row of a run: its measured values (final numbers, status, folder ...) and its params."""
    return {measured_column(name): value for name, value in values.items()} | (
        {} if params is None else params.flat()
    )


def records(table: pd.DataFrame) -> list[RunRow]:
    """Return the rows of a table of runs, such as that of `runs()`."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def seed_of(row: RunRow) -> int:
    seed = row.get(SEED)
    return int(seed) if isinstance(seed, str | SupportsInt) else TrainParams.random_seed


@dataclass(frozen=True)
class Variant:
    """Runs that differ only in seed and tuned fields, with their final losses [L, S] or another metric of them.

    A loss is NaN if there is no such run, and infinite if the run failed or diverged. If higher values of the metric are
    better, `losses_LS` are the negative values.
    """

    data: str  # fields of DataParams that vary
    name: str  # all other fields that vary, except seed and tuned fields
    tuned: str  # fields that are tuned for each variant
    settings: list[str]  # values of the tuned fields
    seeds: list[int]
    losses_LS: np.ndarray
    runs: dict[tuple[str, int], RunRow]  # by setting and seed
    only_best: bool  # True: losses are those of the best weights, and those of the last weights are unknown
    sign: int = 1  # -1 if higher values of the metric are better
    # Runs, by setting and seed, that ended before they got to the limit of a metric such as "steps_to: val_loss < 3"
    censored: frozenset[tuple[str, int]] = frozenset()

    @cached_property
    def complete_S(self) -> np.ndarray:
        """Mask [S] of the seeds that ran with every setting."""
        return ~np.isnan(self.losses_LS).any(axis=0)

    @cached_property
    def best(self) -> int | None:
        """Index of the setting with the lowest mean loss. None if every setting has a failed or diverged run."""
        losses_LS = self.losses_LS[:, self.complete_S] if self.complete_S.any() else self.losses_LS
        return best_setting(losses_LS)

    @property
    def best_runs(self) -> list[RunRow]:
        """Runs with the best setting, none if there is no best setting."""
        return [] if self.best is None else self.runs_of(self.best)

    @property
    def edge(self) -> str:
        """Text "smallest" or "largest" if the best setting is that number among those tried, else ""."""
        values = [self.runs_of(i)[0].get(self.tuned) for i in range(len(self.settings))]
        numbers = [value for value in values if is_number(value)]
        if self.best is None or len(values) < 2 or len(numbers) < len(values):
            return ""
        best = numbers[self.best]
        return "smallest" if best == min(numbers) else "largest" if best == max(numbers) else ""

    @property
    def leak(self) -> str | None:
        """Description of the first leak that a run recorded, or None."""
        return next(
            (leak for run in self.runs.values() if isinstance(leak := measured(run, "leak"), str)), None
        )

    def runs_of(self, setting: int, seeds: Sequence[int] | None = None) -> list[RunRow]:
        """Return the runs with the setting of this index, at `seeds` or at all seeds."""
        keys = [(self.settings[setting], seed) for seed in (self.seeds if seeds is None else seeds)]
        return [self.runs[key] for key in keys if key in self.runs]


def best_setting(losses_LS: np.ndarray) -> int | None:
    """Return the index of the setting with the lowest mean loss, or None if no mean is finite.

    A failed or diverged run makes the mean of its setting infinite.
    """
    if not losses_LS.size:
        return None
    ran_LS = ~np.isnan(losses_LS)
    means_L = np.where(ran_LS, losses_LS, 0).sum(axis=1) / ran_LS.sum(axis=1)
    best = int(means_L.argmin())
    return best if math.isfinite(means_L[best]) else None


class Grouped(NamedTuple):
    """The runs of a table that can be compared, in groups."""

    # By data, variant and block, in order of their first runs.
    groups: dict[tuple[str, str, str], list[RunRow]]
    costs: "Costs"
    n_rows: int
    left_out: list[str]  # a sentence about each kind of run that is left out


def grouped(table: pd.DataFrame, tuned: Sequence[str], metric_text: str, by: str | None = None) -> Grouped:
    """Group a table of runs by the values of their varied fields, without seed and tuned fields.

    Without `by`, the fields make the variant. With it, the variant is the value of the field `by`, and all other varied
    fields make the block. Raise ValueError for an unknown field or metric.
    """
    for name in set(tuned) - SECTION_OF.keys():
        raise ValueError(f"tuned={name!r} is not a field; {field_hint(name, SECTION_OF)}")
    rows, left_out = usable(table)
    varied = varied_fields(rows)
    data = [name for name in varied if SECTION_OF.get(name) == DATA]
    own = [name for name in varied if name not in (*data, *tuned, SEED)]
    blocks: list[str] = []
    if by is not None:
        if by not in own:
            raise ValueError(
                f"by={by!r} is no field whose values can be compared in this table; {field_hint(by, own)}"
            )
        own, blocks = [by], [name for name in own if name != by]
    metric = read_metric(metric_text, rows)
    known = [row for row in rows if is_measured(row, metric)]
    if n_unknown := len(rows) - len(known):
        left_out.append(f"{with_plural(n_unknown, 'run')} left out: nothing measured for {metric.text}")
    groups: dict[tuple[str, str, str], list[RunRow]] = {}
    for row in known:
        names = (
            fields_as_label(row, data),
            fields_as_label(row, own) or "all runs",
            fields_as_label(row, blocks),
        )
        groups.setdefault(names, []).append(row)
    return Grouped(groups, Costs(metric, groups), len(known), left_out)


def is_measured(row: RunRow, metric: Metric) -> bool:
    """Return False for a run that ended well but lacks the metric, as runs do that had no such evaluation set."""
    if metric.cost:
        return ended_badly(row) or time_to(row, metric) is not None
    return ended_badly(row) or metric.name in LOSSES or is_number(measured(row, metric.name))


def gather(
    table: pd.DataFrame, tuned: Sequence[str] = ("lr",), metric: str = "val_loss"
) -> tuple[list[Variant], list[str]]:
    """Group a table of runs into variants, in order of their first runs.

    Return the variants, and a sentence about each kind of run that is left out. Raise ValueError for an unknown field
    or metric.
    """
    groups, costs, n_rows, left_out = grouped(table, tuned, metric)
    variants = [variant(data, name, rows, tuned, costs) for (data, name, _), rows in groups.items()]
    return variants, left_out + repeated_note(n_rows - sum(len(one.runs) for one in variants))


def repeated_note(n: int) -> list[str]:
    """Return a note, in a list, if `n` runs were repeated later. Else return an empty list."""
    return [f"{with_plural(n, 'run')} left out: repeated later with the same params and code"] if n else []


class Costs:
    """Values of a metric by run: lower is better, and infinite if the run failed or diverged.

    Times are cut at the length of the shortest run on the same data that never got to the limit.
    """

    def __init__(self, metric: Metric, groups: Mapping[tuple[str, str, str], Sequence[RunRow]]) -> None:
        self.metric = metric
        self.times: dict[int, Time | None] = {}  # by the id of the row
        self.longest: dict[int, float] = {}
        if metric.cost:
            lengths: dict[str, float] = {}
            for (data, _, _), rows in groups.items():
                for row in rows:
                    time = self.times[id(row)] = None if ended_badly(row) else time_to(row, metric)
                    if time is not None and not time.is_reached:
                        lengths[data] = min(lengths.get(data, math.inf), time.value)
            of_rows = ((id(row), names[0]) for names, rows in groups.items() for row in rows)
            self.longest = {key: lengths.get(data, math.inf) for key, data in of_rows}

    def of(self, row: RunRow) -> float:
        if not self.metric.cost:
            return final_loss(row, self.metric.name, self.metric.sign)
        time = self.times[id(row)]
        return math.inf if time is None or math.isnan(time.value) else min(time.value, self.longest[id(row)])

    def is_censored(self, row: RunRow) -> bool:
        """Return True if the run did not get to the limit before the times are cut."""
        time = self.times.get(id(row))
        return time is not None and (not time.is_reached or time.value > self.longest[id(row)])


def code_notes(table: pd.DataFrame, same_code: bool) -> list[str]:
    """Return a note, in a list, if different versions of the code trained the runs. Else return an empty list."""
    rows = (
        [row for row in table.to_dict("records") if has_ended(row)] if measured_column(CODE) in table else []
    )
    versions = Counter(value_as_label(row[measured_column(CODE)]) for row in rows)
    if len(versions) < 2:
        return []
    named = ", ".join(f"{code} ({with_plural(n, 'run')})" for code, n in versions.items())
    how = (
        "same_code=True compares them as one"
        if same_code
        else "each version makes separate variants; compare(..., same_code=True) ignores the version"
    )
    return [f"these runs were trained by {len(versions)} versions of the code: {named}; {how}"]


def usable(table: pd.DataFrame) -> tuple[list[RunRow], list[str]]:
    """Return the runs that have ended, and a sentence for each reason why other runs are left out."""
    rows: list[RunRow] = []
    reasons: list[str] = []
    names = list(table)
    columns = [table[name].tolist() for name in names]
    for values in zip(*columns, strict=True):
        row = dict(zip(names, values, strict=True))
        if not has_ended(row):
            reasons.append(str(measured(row, "status")))
        elif ending_of(measured(row, "stopped")) is Ending.INTERRUPTED:
            reasons.append("interrupted before its end")
        else:
            rows.append(row)
    return rows, [f"{with_plural(n, 'run')} left out: {reason}" for reason, n in Counter(reasons).items()]


def has_ended(row: RunRow) -> bool:
    """Return True if a run has a result or failed."""
    return measured(row, "status", "complete") == "complete" or ended_badly(row)


def differing_fields(rows: Sequence[RunRow]) -> list[str]:
    """Return the fields of params in which the runs differ. Fields that only add measurements do not count."""
    fields = [name for name in SECTION_OF if rows and name in rows[0] and name not in MEASURING]
    return [name for name in fields if any_differ([row.get(name) for row in rows])]


def any_differ(values: list[object]) -> bool:
    """Return True if any two values of a field have different labels."""
    # Fast path: converting long values to text takes time.
    if len(set(map(type, values))) == 1 and values.count(values[0]) == len(values):
        return False
    return len(set(map(value_as_label, values))) > 1


def varied_fields(rows: Sequence[RunRow]) -> list[str]:
    """Return the columns in which runs differ: fields, and the version of the code.

    If the grid names its variants, the column of the name replaces all fields that it determines.
    """
    fields, variants, code = differing_fields(rows), measured_column(VARIANT), measured_column(CODE)
    by_code = [code] if any_differ([row.get(code) for row in rows]) else []
    names = {row.get(variants) for row in rows}
    if len(names) < 2:
        return fields + by_code

    def follows(name: str) -> bool:
        pairs = {(row.get(variants), value_as_label(row.get(name))) for row in rows}
        return SECTION_OF[name] != DATA and name != SEED and len(pairs) == len(names)

    return [variants, *(name for name in fields if not follows(name)), *by_code]


def fields_as_label(row: RunRow, fields: Sequence[str]) -> str:
    """Return "field=value, ..." of a run. Of a named variant, return only the name."""
    parts = [(name, value_as_label(row.get(name))) for name in fields]
    return ", ".join(
        value if name == measured_column(VARIANT) else f"{name}={value}" for name, value in parts
    )


def value_as_label(value: object) -> str:
    """Return a field's value as text, 8.0 as "8" and NaN as "None".

    A table with missing cells converts integers to floats and None to NaN.
    """
    if isinstance(value, float):
        return "None" if math.isnan(value) else f"{value:.10g}"
    return str(value)


def variant(data: str, name: str, rows: list[RunRow], tuned: Sequence[str], costs: Costs) -> Variant:
    """Return the variant of these runs. If two runs have equal params, the later one counts."""
    runs = {(fields_as_label(row, tuned), seed_of(row)): row for row in rows}
    settings, seeds = list(dict.fromkeys(key[0] for key in runs)), sorted({key[1] for key in runs})
    losses_LS = np.full((len(settings), len(seeds)), math.nan)
    for (setting, seed), row in runs.items():
        losses_LS[settings.index(setting), seeds.index(seed)] = costs.of(row)
    metric = costs.metric
    only_best = not metric.cost and any(is_best_so_far(row, metric.name) for row in runs.values())
    censored = frozenset(key for key, row in runs.items() if costs.is_censored(row))
    tuned_fields = " and ".join(tuned)
    return Variant(
        data, name, tuned_fields, settings, seeds, losses_LS, runs, only_best, metric.sign, censored
    )


def final_loss(row: RunRow, metric: str, sign: int = 1) -> float:
    """Return the loss of the last weights, or that of the best weights if it is unknown, times `sign`.

    Return infinity if the run failed or diverged.
    """
    loss = measured(row, metric)
    if metric == "val_loss" and measured(row, "weights") == "best" and not is_best_so_far(row, metric):
        loss = measured(row, "final_loss")
    if ended_badly(row) or not isinstance(loss, int | float) or math.isnan(loss):
        return math.inf
    return sign * loss


def is_best_so_far(row: RunRow, metric: str) -> bool:
    """Return True if only the loss of the best weights is known: the run has `patience` and no `final_loss`."""
    last = measured(row, "final_loss") if metric == "val_loss" else None
    return measured(row, "weights") == "best" and not is_number(last)


def ended_badly(row: RunRow) -> bool:
    """Return True if a run failed or diverged."""
    endings = {ending_of(measured(row, name)) for name in ("stopped", "status")}
    return not endings.isdisjoint({Ending.FAILED, Ending.DIVERGED})


def with_plural(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
