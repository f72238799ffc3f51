"""Judge claims about the results of a grid, over its seeds: each holds, fails, or cannot be told.

A comparison of a claim gives one number for each seed: by how much it holds with the runs of this seed. A one-sided t test
asks whether the mean of these numbers is above 0, and another one whether it is below. Both are corrected for the number of
claims (Holm 1979), and for the choice of the best learning rate where a grid tries several.

Shape suffixes:  L setting of the tuned fields  S seed
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from explore.compare.against import Decision, overall
from explore.compare.metrics import RunRow, float_in, measured, number_text
from explore.compare.variants import Variant, ended_badly, gather
from explore.compare.verdicts import (
    ALPHA,
    WINNERS,
    at_seeds,
    complete_seeds,
    holm,
    mean_and_error,
    more_for_effect,
    near_optimal_p_values,
    p_as_text,
    style_of_verdict,
    what_would,
)
from explore.load import open_run
from train.final_metrics import final_metrics, values_of_metrics
from train.fitted_table import FittedTable, TableColumn
from train.grid.claims import TIMES, TUNED, Claim, Comparison, Pick
from train.grid.params import measured_column

FLIPPED = {"<": ">", "<=": ">", ">": "<", ">=": "<"}  # what is seen where a comparison does not hold
# Columns that a narrow terminal may leave out, the highest rank first.
CLAIM_RANKS = {"p": 4, "seeds": 3, "expected": 2, "run on": 1}
NUMBER_CELLS = ("seeds", "p")  # columns that are aligned on the right
CONSTANT = 1e-9  # numbers over seeds count as equal up to this share of their mean


class Unknown(ValueError):
    """Raised with the reason why a claim cannot be judged, and with what is seen all the same."""

    def __init__(self, reason: str, seen: str = "-", n_seeds: int = 0) -> None:
        super().__init__(reason)
        self.seen, self.n_seeds = seen, n_seeds


class ClaimVerdict(NamedTuple):
    """The verdict on a claim, and what it rests on."""

    name: str
    expected: str  # the claim, as it is written
    seen: str  # the numbers that it compares: means over the seeds
    margin: float  # by how much it holds, in the mean; negative if it does not
    margin_low: float  # bounds of that, each with 95 % confidence
    margin_high: float
    n_seeds: int
    p: float  # corrected p-value of the verdict, or of the nearer one if it cannot be told
    verdict: str  # "holds", "fails", or "cannot tell" with a reason or a number of seeds
    decision: Decision

    def entry(self) -> dict[str, object]:
        """Return the verdict as an entry of the JSON document."""
        return {name: value for name, value in self._asdict().items() if name != "decision"}


class Measured(NamedTuple):
    """The numbers that runs give for a claim."""

    sides: list[np.ndarray]  # the numbers that it compares [S]
    margins: list[np.ndarray]  # by how much each comparison holds [S]
    operators: list[str]
    factor: float = 1.0  # of the p-values, for the choice of learning rates
    steps_only: bool = False  # True: numbers are times, which are known to a validation only


class TwoP(NamedTuple):
    """p-values of a claim: that it is false (small if it holds), and that it is true (small if it fails)."""

    is_false: float
    is_true: float


def judge_all(claims: Sequence[Claim], rows: Sequence[RunRow]) -> list[ClaimVerdict]:
    """Return the verdict on each claim about these runs, which are rows of `runs()`."""
    found: list[Measured | Unknown] = []
    for claim in claims:
        try:
            found.append(measure(claim, rows))
        except Unknown as reason:
            found.append(reason)
    known = [one for one in found if isinstance(one, Measured)]
    pairs = [p_values(one) for one in known]
    holds, fails = (holm([getattr(pair, name) for pair in pairs]) for name in TwoP._fields)
    ends = iter(zip(holds, fails, strict=True))
    return [
        unknown(claim, one)
        if isinstance(one, Unknown)
        else verdict_on(claim, one, TwoP(*next(ends)), len(known))
        for claim, one in zip(claims, found, strict=True)
    ]


def fill_metrics(claims: Sequence[Claim], rows: Sequence[RunRow], root: Path) -> list[RunRow]:
    """Return the rows with the registered metrics that claims name. Of runs saved without them, the weights are read."""
    picks = [pick for claim in claims for pick in claim.picks.values()]
    names = {column for pick in picks for column in pick.columns if column in final_metrics}
    return [
        row if names <= row.keys() or ended_badly(row) else row | saved_metrics(row, names, root)
        for row in rows
    ]


def saved_metrics(row: RunRow, names: Collection[str], root: Path) -> RunRow:
    folder = measured(row, "folder")
    if folder is None:
        return {}
    opened = open_run(Path(str(folder)), root)
    return {**values_of_metrics([name for name in names if name not in row], opened.lm, opened.dataset)}


def measure(claim: Claim, rows: Sequence[RunRow]) -> Measured:
    """Return the numbers that a claim compares, over the seeds that all its picks have. Raise Unknown if these are not two."""
    values, factor = {}, 1.0
    for name, pick in claim.picks.items():
        values[name], choices = values_of_pick(pick, rows)
        factor *= choices
    seeds = sorted(set.intersection(*(set(of_pick) for of_pick in values.values())))
    if not seeds:
        raise Unknown("no seed has all the runs")
    own = [{name: of_pick[seed] for name, of_pick in values.items()} for seed in seeds]
    try:
        margins = [np.array([margin_of(one, numbers) for numbers in own]) for one in claim.comparisons]
        expressions = [claim.comparisons[0].left, *(one.right for one in claim.comparisons)]
        sides = [np.array([float(side(numbers)) for numbers in own]) for side in expressions]  # type: ignore[arg-type]
    except ValueError as error:
        raise Unknown(str(error)) from None
    steps_only = any(pick.columns[0].split(":")[0] in TIMES for pick in claim.picks.values())
    found = Measured(sides, margins, [one.operator for one in claim.comparisons], factor, steps_only)
    if len(seeds) == 1:
        raise Unknown("only one seed has all the runs, and a verdict needs two", seen(claim, found), 1)
    return found


def margin_of(comparison: Comparison, numbers: Mapping[str, float]) -> float:
    left, right = (float(side(numbers)) for side in (comparison.left, comparison.right))  # type: ignore[arg-type]
    return right - left if comparison.operator.startswith("<") else left - right


def values_of_pick(pick: Pick, rows: Sequence[RunRow]) -> tuple[dict[int, float], float]:
    """Return the number of a pick by seed, and the number of learning rates that are about as good as the best one."""
    picked = [row for row in rows if pick.takes(row)]
    if not picked:
        raise Unknown(f"no run of `{pick.text}` has ended")
    tuned = [
        name for name in TUNED if name not in pick.fields and name not in pick.columns and not is_spread(pick)
    ]
    try:
        variants = gather(pd.DataFrame(picked, dtype=object), tuned, pick.columns[-1])[0]
    except ValueError as error:
        raise Unknown(str(error)) from None
    ready = [one for one in variants if one.best is not None or np.isinf(one.losses_LS).all()]
    if not ready:
        raise Unknown(f"no run of `{pick.text}` has ended well")
    of_variants = [values_by_seed(one) for one in ready]
    choices = math.prod(near_optimal_settings(one) for one in ready)
    if not pick.function:
        if len(ready) > 1:
            raise Unknown(
                f"`{pick.text}` picks {len(ready)} variants: {'; '.join(one.name for one in ready[:3])}"
            )
        return of_variants[0], choices
    seeds = set.intersection(*(set(one) for one in of_variants))
    return {seed: over_runs(pick, ready, of_variants, seed) for seed in seeds}, choices


def is_spread(pick: Pick) -> bool:
    return pick.function == "spread"


def values_by_seed(one: Variant) -> dict[int, float]:
    """Return the metric at the best setting by seed: infinite, or its negative, for runs that diverged or failed."""
    losses_S = one.losses_LS[one.best or 0]
    return {
        seed: one.sign * float(loss)
        for seed, loss in zip(one.seeds, losses_S, strict=True)
        if not math.isnan(loss)
    }


def near_optimal_settings(one: Variant) -> float:
    """Return how many settings may be the best one, at least 1; see WINNERS in verdicts.py."""
    seeds = complete_seeds(one)
    if len(one.settings) == 1 or len(seeds) < 2 or one.best is None:
        return 1.0
    return max(1.0, float(np.minimum(1, WINNERS * near_optimal_p_values(at_seeds(one, seeds))).sum()))


def over_runs(
    pick: Pick, variants: Sequence[Variant], values: Sequence[Mapping[int, float]], seed: int
) -> float:
    """Return the trend or the spread over all picked runs of a seed."""
    y = np.array([of_variant[seed] for of_variant in values])
    if is_spread(pick):
        return float(y.max() - y.min()) if np.isfinite(y).all() else math.inf
    x = np.array([x_of(one, pick.columns[0], seed) for one in variants])
    if pick.log:
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = np.log(x), np.log(y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise Unknown(f"`{pick.text}`: not all runs have finite numbers")
    if len(set(x)) < 2:
        raise Unknown(f"`{pick.text}`: {pick.columns[0]} has the same value in all runs")
    return float(stats.spearmanr(x, y)[0] if pick.function == "spearman" else stats.linregress(x, y).slope)


def x_of(one: Variant, column: str, seed: int) -> float:
    """Return a field or a measured number of a variant's run."""
    row = one.runs[one.settings[one.best or 0], seed]
    return float_in(row, column if column in row else measured_column(column))


def p_values(one: Measured) -> TwoP:
    """Return the p-values of a claim. It is true if all its comparisons hold, and false if one of them does not."""
    pairs = [
        p_of_comparison(margin_S, operator, one.steps_only)
        for margin_S, operator in zip(one.margins, one.operators, strict=True)
    ]
    return TwoP(
        min(1.0, one.factor * max(pair.is_false for pair in pairs)),
        min(1.0, one.factor * len(pairs) * min(pair.is_true for pair in pairs)),
    )


def p_of_comparison(margin_S: np.ndarray, operator: str, steps_only: bool) -> TwoP:
    """Return the p-values of a comparison, by one-sided t tests.

    Where all seeds give the same number, it is taken as exact, but for times, which are known to a validation only: there,
    and where runs diverge, a sign test counts the seeds on each side.
    """
    n = len(margin_S)
    if np.isnan(margin_S).any():
        return TwoP(1.0, 1.0)
    if not np.isfinite(margin_S).all():
        return sign_test(margin_S)
    mean, error = map(float, mean_and_error(margin_S))
    if error <= CONSTANT * abs(mean):
        if steps_only and mean:
            return sign_test(margin_S)
        return TwoP(0.0, 1.0) if holds_in_the_mean(mean, operator) else TwoP(1.0, 0.0)
    return TwoP(float(stats.t.sf(mean / error, n - 1)), float(stats.t.cdf(mean / error, n - 1)))


def holds_in_the_mean(mean: float, operator: str) -> bool:
    return mean > 0 or (mean == 0 and operator.endswith("="))


def sign_test(margin_S: np.ndarray) -> TwoP:
    n, n_held = len(margin_S), int((margin_S > 0).sum())
    return TwoP(float(stats.binom.sf(n_held - 1, n, 0.5)), float(stats.binom.cdf(n_held, n, 0.5)))


def verdict_on(claim: Claim, one: Measured, p: TwoP, n_tests: int) -> ClaimVerdict:
    smallest = min(
        one.margins, key=lambda margin_S: -math.inf if np.isnan(margin_S).any() else margin_S.mean()
    )
    mean, low, high = bounds_of_margin(smallest)
    if p.is_false < ALPHA:
        verdict, decision = "holds", Decision.NO_WORSE
    elif p.is_true < ALPHA:
        verdict, decision = "fails", Decision.WORSE
    else:
        verdict, decision = f"cannot tell; {seeds_that_tell(smallest, one, n_tests)}", Decision.CANNOT_TELL
    return ClaimVerdict(
        claim.name, claim.text, seen(claim, one), mean, low, high, len(smallest), min(p), verdict, decision
    )


def unknown(claim: Claim, reason: Unknown) -> ClaimVerdict:
    none = (math.nan, math.nan, math.nan)
    verdict = f"cannot tell: {reason}"
    return ClaimVerdict(
        claim.name, claim.text, reason.seen, *none, reason.n_seeds, math.nan, verdict, Decision.CANNOT_TELL
    )


def bounds_of_margin(margin_S: np.ndarray) -> tuple[float, float, float]:
    """Return the mean over seeds and two one-sided bounds of it, each at level 1 - ALPHA."""
    with np.errstate(invalid="ignore"):
        mean, error = map(float, mean_and_error(margin_S))
    half = error * float(stats.t.isf(ALPHA, len(margin_S) - 1))
    return mean, mean - half, mean + half


def seen(claim: Claim, one: Measured) -> str:
    """Return the means of the numbers that a claim compares, such as "0.9921 >= 0.9500"."""
    first, *others = (number_text(float(side_S.mean())) for side_S in one.sides)
    text = first
    for margin_S, operator, other in zip(one.margins, one.operators, others, strict=True):
        mean = float(margin_S.mean())
        if not holds_in_the_mean(mean, operator):
            operator = "==" if mean == 0 else FLIPPED[operator]
        text += f" {operator} {other}"
    return text


def seeds_that_tell(margin_S: np.ndarray, one: Measured, n_tests: int) -> str:
    """Return how many more seeds would probably tell, if the numbers stay as they are."""
    mean, error = map(float, mean_and_error(margin_S))
    n_seeds, level = len(margin_S), ALPHA / (one.factor * n_tests * len(one.margins))
    if math.isfinite(error) and error > CONSTANT * abs(mean):
        return what_would(more_for_effect(abs(mean) / (error * math.sqrt(n_seeds)), n_seeds, level, "larger"))
    # A sign test: p = 1 / 2**n if all seeds are on one side.
    return what_would(max(1, math.floor(1 - math.log2(level)) - n_seeds))


def decision_on(verdicts: Sequence[ClaimVerdict]) -> Decision:
    """Return the exit code of a call that judges claims: all hold, one fails, or some cannot be told."""
    return overall([one.decision for one in verdicts] or [Decision.NO_WORSE])


def claim_cells(verdicts: Sequence[ClaimVerdict]) -> list[list[str]]:
    """Return the header of the table of claims, and its rows."""
    rows = [
        [one.name, one.expected, one.seen, str(one.n_seeds), p_as_text(one.p), one.verdict]
        for one in verdicts
    ]
    return [["claim", "expected", "seen", "seeds", "p", "verdict"], *rows]


def table_of_claims(verdicts: Sequence[ClaimVerdict]) -> FittedTable:
    """Return the table of claims for a terminal."""
    return fitted_claims(claim_cells(verdicts), [style_of_claim(one.verdict) for one in verdicts])


def fitted_claims(
    cells: Sequence[Sequence[str]], styles: Sequence[str] = (), notes: Sequence[str] = ()
) -> FittedTable:
    """Return a table with claims for a terminal. The first of `cells` are its header, and `notes` stand below it."""
    header, *rows = cells
    return FittedTable(
        [
            TableColumn(
                title,
                [row[i] for row in rows],
                CLAIM_RANKS.get(title, 0),
                wraps=title not in ("seen", *NUMBER_CELLS),
                is_left=title not in NUMBER_CELLS,
                styles=styles,
            )
            for i, title in enumerate(header)
        ],
        notes,
    )


def style_of_claim(verdict: str) -> str:
    return {"holds": "green", "fails": "red"}.get(verdict) or style_of_verdict(verdict)
