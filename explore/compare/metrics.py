"""Metrics by which runs are compared: final numbers, and the steps, FLOPs or seconds until a statistic gets somewhere.

A run that ends before its statistic gets there is censored: its time is only known to be longer than the run. Times are
compared as restricted times, min(time, length of the run), as in the restricted mean survival time (Royston and Parmar
2013, "Restricted mean survival time", BMC Medical Research Methodology 13:152): a run that never gets there counts as if
it did so at its end. This is sound, because the length is the same for all runs. It understates how much slower a variant
is, and never overstates it. Restricted times of the same seed are compared by the same paired t test as final losses.
Rank tests for censored pairs would need at least six seeds: of five, the smallest p-value is 2 / 2**5 = 6 %.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np

from common.text import did_you_mean
from train.grid.claims import COST_UNITS, TIME_TO
from train.grid.params import SECTION_OF, measured_column
from train.metrics import HIGHER_IS_BETTER
from train.saving.weights import regular_file
from train.stats import Stat, Stats

RunRow = dict[str, object]  # a run: its params by field, and its measured values by `measured_column`
LOSSES = ("val_loss", "bits_per_byte")
# Parts of the names of metrics of which higher values are better.
HIGHER_WORDS = (*HIGHER_IS_BETTER, "tokens_per_second", "achieved_flops")
# Metrics of lm_eval of which higher values are better. Their columns are "acc[blimp]" or, with a filter, "acc,strict[gsm8k]".
HIGHER_IN_HARNESS = {
    "acc",
    "acc_all",
    "acc_bytes",
    "acc_mutual_info",
    "acc_norm",
    "bleu",
    "bypass",
    "chrf",
    "chrf++",
}
HIGHER_IN_HARNESS |= {"f1", "likelihood", "mcc"}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
EXAMPLE = "steps_to: val_loss < 3.3"
# X axes of curves, with their titles. Reports have all but the first: their means are over steps.
X_AXES = {
    "samples": "trained samples",
    "steps": "steps",
    "tokens": "tokens",
    "flops": "training FLOPs",
    "seconds": "seconds of training",
}


class Metric(NamedTuple):
    """A metric of runs. `cost` is "" for a final number, else the unit of the time until `name` gets to `limit`."""

    text: str  # as the user names it
    name: str  # the final number, or the statistic
    cost: str = ""
    comparison: str = ""
    limit: float = math.nan

    @property
    def sign(self) -> int:
        """-1 if higher values are better, else 1."""
        return sign_of(self.text)

    @property
    def depends_on_tokenizer(self) -> bool:
        """True for numbers per token, which do not compare if tokens differ."""
        return "loss" in self.name or "accuracy" in self.name

    def is_reached(self, value: float) -> bool:
        return COMPARISONS[self.comparison](value, self.limit)


def read_metric(text: str, rows: Sequence[RunRow] = ()) -> Metric:
    """Return the metric that `text` names: a final number of `rows`, or "steps_to: val_loss < 3.3".

    Raise ValueError for any other text.
    """
    if match := TIME_TO.fullmatch(text.strip()):
        cost, name, comparison, limit = match.groups()
        try:
            found = Metric(text, name, cost, comparison, float(limit))
        except ValueError:
            raise ValueError(f"metric={text!r}: {limit!r} is no number; write {EXAMPLE!r}") from None
        logged = {
            key for row in rows if measured(row, "folder") for key in all_stats(str(measured(row, "folder")))
        }
        if logged and not logged.intersection(statistic_names(name)):
            names = sorted(key.removeprefix("stat/").removesuffix(":main") for key in logged)
            raise ValueError(f"metric={text!r}: no run has logged {name!r}; {did_you_mean(name, names)}")
        return found
    if "_to" in text.partition(":")[0] and ":" in text:
        raise ValueError(f"metric={text!r} is not of the form {EXAMPLE!r}; costs: {', '.join(COST_UNITS)}")
    numbers = {
        column for row in rows for column, value in row.items() if is_number(value)
    } - SECTION_OF.keys()
    if text not in LOSSES and measured_column(text) not in numbers:
        known = sorted({*LOSSES, *numbers})
        raise ValueError(f"metric={text!r} is not a final number of runs; {did_you_mean(text, known)}")
    return Metric(text, text)


def sign_of(metric: str) -> int:
    """Return -1 if higher values of a metric are better, else 1."""
    if TIME_TO.fullmatch(metric.strip()):
        return 1
    of_harness = re.split(r"[,\[]", metric)[0] in HIGHER_IN_HARNESS
    return -1 if of_harness or any(word in metric for word in HIGHER_WORDS) else 1


class Time(NamedTuple):
    """The time until a run's statistic gets to a limit, or the length of the run if it never does."""

    value: float
    is_reached: bool


def time_to(row: RunRow, metric: Metric) -> Time | None:
    """Return the time of one run, or None if its statistics are unknown.

    The statistic counts at the moments at which it was logged: no value between them is assumed.
    """
    if isinstance(known := row.get(metric.text), Time):
        return known
    stats = all_stats(str(measured(row, "folder")))
    found = next((stats[name] for name in statistic_names(metric.name) if name in stats), None)
    if found is None:
        return None
    first = next((stat for stat in found if metric.is_reached(stat.v)), None)
    n_steps = float_in(row, measured_column("steps"))
    if first is None:
        return Time(cost_at(Stat(int(n_steps), 0, 0, 0.0), metric.cost, row, stats, at_end=True), False)
    return Time(cost_at(first, metric.cost, row, stats), True)


def statistic_names(name: str) -> list[str]:
    """Return the names that a statistic may have in stats.json: `val_loss` is "stat/val_loss:main"."""
    return [f"stat/{name}:main", f"stat/{name}", f"stat/val_{name}"]


def cost_at(stat: Stat, cost: str, row: RunRow, stats: dict[str, list[Stat]], at_end: bool = False) -> float:
    """Return what a run had cost by the moment of `stat`, in steps, FLOPs or seconds of training; NaN if it is unknown."""
    if cost == "flops" and at_end:
        return float_in(row, measured_column("flops"))
    return places_of([stat], cost, row, stats)[0]


def places_of(values: Sequence[Stat], axis: str, row: RunRow, stats: Mapping[str, list[Stat]]) -> list[float]:
    """Return where the values of a run lie on one of X_AXES. NaN where that is unknown, as it may be before the run ends."""
    if axis in ("samples", "steps"):
        return [float(stat.n if axis == "samples" else stat.s) for stat in values]
    if axis != "seconds":
        per_sample = ratio_of(row, "flops" if axis == "flops" else "trained_tokens", "trained_samples")
        return [per_sample * stat.n for stat in values]
    known = {0: 0.0} | {one.s: one.v for one in stats.get("stat/train_seconds", [])}
    if is_number(steps := measured(row, "steps")):
        known[int(steps)] = ratio_of(row, "trained_tokens", "tokens_per_second")
    at = sorted(known)
    return np.interp([stat.s for stat in values], at, [known[step] for step in at], right=math.nan).tolist()


def ratio_of(row: RunRow, above: str, below: str) -> float:
    """Return the ratio of two measured values of a run, or NaN if it is unknown."""
    divisor = float_in(row, measured_column(below))
    return float_in(row, measured_column(above)) / divisor if divisor else math.nan


@lru_cache(maxsize=256)
def all_stats(folder: str) -> dict[str, list[Stat]]:
    """Return the statistics of the run in `folder`, or an empty dict if they are missing or unreadable."""
    try:
        return Stats.load(regular_file(Path(folder) / "stats.json")).train_stats
    except (OSError, ValueError):
        return {}


def measured(row: RunRow, name: str, default: object = None) -> object:
    """Return the measured value `name` of a run, such as its final loss or status. Return `default` if it has none."""
    return row.get(measured_column(name), default)


def float_in(row: RunRow, column: str) -> float:
    """Return the number in `column` of `row`, or NaN if there is none."""
    value = row.get(column)
    return float(value) if isinstance(value, str | int | float | np.number) else math.nan


def is_number(value: object) -> TypeGuard[float]:
    """Return True if `value` is a finite int or float, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number_text(value: float, sign: str = "") -> str:
    """Return a value of a metric as text: four decimals, and none of numbers from 1,000. `sign="+"` shows a plus."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1e6:
        return format(value, f"{sign}.4g")
    return format(value, f"{sign},.0f" if abs(value) >= 1000 else f"{sign}.4f")
