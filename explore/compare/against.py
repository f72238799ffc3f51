"""The verdict of --against: is the code of the working tree better or worse than that of a git ref?

The same grid ran with both. At each grid point, runs of the same seed are compared in pairs.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from explore.compare.variants import RunRow, Variant, gather, with_plural
from explore.compare.verdicts import (
    ALPHA,
    MAX_SEEDS,
    Match,
    correct,
    match,
    p_as_text,
    style_of_verdict,
    verdict,
    what_would,
)
from train.fitted_table import FittedTable, TableColumn

MARGIN_FRACTION = 1 / 3  # of the standard deviation over seeds: the default margin


class Decision(IntEnum):
    """The exit codes of a call that asks for a judgement."""

    NO_WORSE = 0
    FAILED = 1
    NOTHING_RAN = 2
    WORSE = 3
    CANNOT_TELL = 4


class Point(NamedTuple):
    """A grid point, and what was decided on it."""

    variant: str  # the fields that vary, except seed and tuned fields
    n_seeds: int
    baseline_mean: float  # over the common seeds
    mean: float
    difference: float  # mean minus the baseline's
    difference_low: float  # 95 % interval of the difference, corrected for the number of points
    difference_high: float
    p: float  # corrected, too
    verdict: str  # "better", "no worse", "the same", "worse", or "cannot tell" with a reason
    decision: Decision


class CodeVerdict(NamedTuple):
    """The verdict on a change of the code."""

    decision: Decision
    points: list[Point]
    margin: float  # the smallest loss that matters
    metric: str
    sentence: str

    def entries(self) -> list[dict[str, object]]:
        """Return the points as entries of the JSON document."""
        rows = [{**point._asdict(), "metric": self.metric} for point in self.points]
        return [{name: value for name, value in row.items() if name != "decision"} for row in rows]


def decide(
    rows: Sequence[RunRow],
    baseline_rows: Sequence[RunRow],
    margin: float | None = None,
    metric: str = "val_loss",
    tuned: Sequence[str] = ("lr",),
) -> CodeVerdict:
    """Compare runs with those of the baseline's code. `baseline_rows` have the params of `rows`, in the same order.

    `margin` is the smallest loss that matters, in the unit of `metric`; the default is a third of the standard deviation
    over seeds. The change is no worse if the interval of every point lies below the margin. Else it is worse if a test finds
    one point worse. It is better at a point if a test says so and the interval holds differences beyond the margin.
    """
    variants, others = (
        gather(pd.DataFrame(list(side), dtype=object), tuned, metric)[0] for side in (rows, baseline_rows)
    )
    by_name = {(other.data, other.name): other for other in others}
    matches = [match(one, by_name.get((one.data, one.name)), "steps", metric) for one in variants]
    n_tests = correct(matches)
    margin = margin if margin is not None else MARGIN_FRACTION * seeds_deviation(others)
    points = [point_of(match, n_tests, margin) for match in matches]
    decision = overall(point.decision for point in points)
    return CodeVerdict(decision, points, margin, metric, sentence_of(decision, points, margin, metric))


def seeds_deviation(variants: Sequence[Variant]) -> float:
    """Return the standard deviation of the loss over seeds, pooled over variants at their best settings. NaN if unknown."""
    groups = [one.losses_LS[one.best, one.complete_S] for one in variants if one.best is not None]
    many = [losses_S for losses_S in groups if len(losses_S) > 1]
    degrees = sum(len(losses_S) - 1 for losses_S in many)
    squares = sum(float(losses_S.var(ddof=1)) * (len(losses_S) - 1) for losses_S in many)
    return math.sqrt(squares / degrees) if degrees else math.nan


def point_of(match: Match, n_tests: int, margin: float) -> Point:
    """Return the judgement on one grid point."""
    one, other = match.variant, match.baseline
    name = ", ".join(filter(None, [one.data, one.name]))
    seeds = [seed for seed in one.seeds if other is not None and seed in other.seeds]
    loss, before = mean_at(one, seeds), math.nan if other is None else mean_at(other, seeds)
    if is_equal(one, other, seeds):
        return Point(name, len(seeds), before, loss, 0.0, 0.0, 0.0, 1.0, "the same", Decision.NO_WORSE)
    low, high = match.interval
    decision, words = Decision.CANNOT_TELL, verdict(match, n_tests)
    if len(seeds) > 1 and math.isinf(loss) != math.isinf(before):  # all runs of one side diverged
        words, decision = (
            ("worse: it diverges", Decision.WORSE) if math.isinf(loss) else ("better", Decision.NO_WORSE)
        )
    elif match.reason or words.startswith("cannot tell: "):
        pass
    elif high < margin:
        words, decision = "better" if words == "better" and low < -margin else "no worse", Decision.NO_WORSE
    elif words == "worse":
        decision = Decision.WORSE
    else:
        words = f"cannot tell; {seeds_that_would(match, n_tests, margin)}"
    return Point(
        name, match.n_seeds, before, loss, match.difference, low, high, match.corrected, words, decision
    )


def mean_at(variant: Variant, seeds: Sequence[int]) -> float:
    """Return the mean loss at the best setting over these seeds: infinite if all runs diverged, else NaN if it is unknown."""
    if not seeds:
        return math.nan
    if variant.best is None:
        return math.inf if np.isinf(variant.losses_LS).all() else math.nan
    return float(variant.losses_LS[variant.best, [variant.seeds.index(seed) for seed in seeds]].mean())


def is_equal(one: Variant, other: Variant | None, seeds: Sequence[int]) -> bool:
    """Return True if every run has exactly the loss that it had before: the change has no effect on this grid point."""
    if other is None or not seeds or one.settings != other.settings or one.seeds != other.seeds:
        return False
    return bool(np.isfinite(one.losses_LS).all()) and np.array_equal(one.losses_LS, other.losses_LS)


def seeds_that_would(match: Match, n_tests: int, margin: float) -> str:
    """Return how many more seeds would show, if differences stay as they are, that the change is worse or no worse."""
    n = np.arange(match.n_seeds + 1, MAX_SEEDS + 1)
    deviation = float(match.difference_S.std(ddof=1))
    half = deviation / np.sqrt(n) * stats.t.isf(ALPHA / (2 * match.factor * n_tests), n - 1)
    enough = (match.difference + half < margin) | (match.difference - half > 0)
    return what_would(int(n[enough.argmax()]) - match.n_seeds if enough.any() else None)


def overall(decisions: Iterable[Decision]) -> Decision:
    """Return the judgement on all: worse if one is worse, no worse if all are no worse."""
    found = set(decisions)
    if Decision.WORSE in found:
        return Decision.WORSE
    return Decision.NO_WORSE if found == {Decision.NO_WORSE} else Decision.CANNOT_TELL


def sentence_of(decision: Decision, points: Sequence[Point], margin: float, metric: str) -> str:
    """Return the verdict in one sentence."""
    unit = "bits per byte" if metric == "bits_per_byte" else "nats"
    if decision is Decision.CANNOT_TELL:
        open_points = [point for point in points if point.decision is decision]
        where = (
            f" at {with_plural(len(open_points), 'grid point')} of {len(points)}" if len(points) > 1 else ""
        )
        reason = (
            open_points[0].verdict.removeprefix("cannot tell").lstrip(":; ")
            if open_points
            else "no run has ended"
        )
        return f"cannot tell{where}: {reason}"
    if decision is Decision.WORSE:
        return f"worse{where_found(points, 'worse')}"
    if all(point.verdict == "the same" for point in points):
        return "no worse: every run has exactly the loss that it had before"
    if n_better := sum(point.verdict == "better" for point in points):
        return f"better{where_found(points, 'better')}{'; no worse elsewhere' * (n_better < len(points))}"
    return f"no worse: each interval ends below the margin of {margin:.2g} {unit}"


def where_found(points: Sequence[Point], word: str) -> str:
    """Return the largest difference with this verdict and, if there are several points, where it was found."""
    found = [point for point in points if point.verdict.startswith(word)]
    largest = max(found, key=lambda point: 0 if math.isnan(point.difference) else abs(point.difference))
    where = f" at {len(found)} of {len(points)} points, most at {largest.variant}" if len(points) > 1 else ""
    reason = largest.verdict.removeprefix(word).removeprefix(": ")
    size = f"loss {largest.difference:+.3g}, p {p_as_text(largest.p)}"
    return f"{where}: {reason if math.isnan(largest.difference) else size}"


def table_of_points(verdict: CodeVerdict, ref: str) -> FittedTable:
    """Return the table of all grid points, with the code of `ref` as the baseline."""
    points = verdict.points
    widths = [point.difference_high - point.difference_low for point in points]
    digits = max([4, *(1 - math.floor(math.log10(width)) for width in widths if width > 0)])
    signed = f"+.{min(digits, 8)}f"
    styles = [style_of_verdict(point.verdict) for point in points]

    def column(title: str, cell: Callable[[Point], str], rank: int = 0, is_text: bool = False) -> TableColumn:
        cells = [cell(point) for point in points]
        return TableColumn(title, cells, rank, wraps=is_text, is_left=is_text, styles=styles)

    def number(value: float, form: str) -> str:
        return "-" if math.isnan(value) else f"{value:{form}}"

    def interval(point: Point) -> str:
        ends = (point.difference_low, point.difference_high)
        return "-" if math.isnan(ends[0]) else " to ".join(f"{end:{signed}}" for end in ends)

    return FittedTable(
        [
            column("grid point", lambda point: point.variant, is_text=True),
            column("seeds", lambda point: str(point.n_seeds), rank=3),
            column(ref, lambda point: number(point.baseline_mean, ".4f"), rank=1),
            column("now", lambda point: number(point.mean, ".4f"), rank=1),
            column("difference", lambda point: number(point.difference, signed)),
            column("95 % interval", interval, rank=2),
            column("p", lambda point: p_as_text(point.p)),
            column("verdict", lambda point: point.verdict, is_text=True),
        ]
    )
