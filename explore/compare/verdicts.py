"""Comparison of variants, each at its own best learning rate: paired t tests over seeds, and a verdict in words.

Shape suffixes:  L setting of the tuned fields, such as a learning rate  S seed
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict, cast

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from common.text import did_you_mean
from explore.compare.variants import (
    CODE,
    RunRow,
    Variant,
    best_setting,
    code_notes,
    float_in,
    gather,
    is_number,
    measured,
    with_plural,
)
from train.grid.params import SECTION_OF, measured_column

ALPHA = 0.05  # significance level: the maximum share of equal variants that are called different
POWER = 0.8  # statistical power of the number of seeds that a verdict recommends
MAX_UNKNOWN = 0.001  # with more unknown bytes, bits per byte measure the tokenizer instead of the model
MAX_SEEDS = 100  # maximum number of seeds that a verdict recommends
EQUAL = 0.05  # conditions count as equal up to this relative difference
CONDITIONS = {"steps": "steps", "params": "n_params", "flops": "flops"}  # condition -> measured value
TOKENIZER = [name for name in SECTION_OF if name.startswith("tokenizer_")]
# A setting counts as near-optimal with the weight min(1, factor * p), where p is from `near_optimal_p_values`. The
# winner's factor is larger, so that doubtful settings count against it. tests/explore/compare/test_promise.py tests the
# error rates.
WINNERS, LOSERS = 3, 2


class ComparisonRow(TypedDict):
    """A row of the table that compare() returns. Losses are those of the metric."""

    data: str  # fields of DataParams that vary
    variant: str  # the other fields that vary, without seed and tuned fields
    best: str  # the tuned fields at the setting of lowest mean loss; empty if there is none
    edge: str  # "smallest" or "largest" if the best setting is that number among those tried, else empty
    n_settings: int  # settings tried
    n_seeds: int  # seeds that ran with every setting
    n_bad: int  # runs that failed or diverged
    mean: float  # final loss at the best setting, mean over seeds
    low: float  # 95 % interval of the mean
    high: float
    difference: float  # mean loss minus the baseline's, over the seeds of both
    difference_low: float  # 95 % interval of the difference, corrected as p is
    difference_high: float
    p: float  # p-value, corrected
    verdict: str


class CompareOptions(TypedDict, total=False):
    """The keyword arguments of compare()."""

    baseline: str | None
    at: str
    tuned: str | Sequence[str]
    metric: str
    same_code: bool


@dataclass
class Match:
    """The comparison of one variant with its baseline."""

    variant: Variant
    baseline: Variant | None
    reason: str = ""  # the reason why no test is possible
    difference: float = math.nan  # mean loss minus the baseline's
    difference_S: np.ndarray = field(default_factory=lambda: np.array([]))
    interval: tuple[float, float] = (math.nan, math.nan)  # of the difference, corrected as p is
    effect: float = math.nan  # effect size: mean difference / standard deviation over seeds
    n_seeds: int = 0
    p: float = math.nan  # p-value, corrected for the choice of settings
    factor: float = 1.0  # factor of that correction
    corrected: float = math.nan  # p, also corrected for the number of comparisons


def compare(
    table: pd.DataFrame,
    baseline: str | None = None,
    *,
    at: str = "steps",
    tuned: str | Sequence[str] = "lr",
    metric: str = "val_loss",
    same_code: bool = False,
) -> pd.DataFrame:
    """Compare variants with a baseline. Return a row for each variant: best learning rate, mean loss, verdict.

    `table` is a table from runs(). A variant is a set of runs that differ only in `random_seed` and the `tuned` fields.
    `baseline` is the name of a variant; the default is the first one. `metric` is "val_loss" (nats per token) or
    "bits_per_byte". Each variant is compared at its best setting of the tuned fields. That setting has the lowest mean
    final loss over the seeds that ran with all settings.

    The verdicts "better" and "worse" rest on a paired t test over common seeds. They need equal conditions: `at` is
    "steps", "params" or "flops". The p-value is corrected for the choice of settings and for the number of comparisons.
    The other verdict is "cannot tell", with a reason or the number of seeds that would probably suffice. Variants on
    different data are not compared. Runs trained by different code (column `code`) are different variants, unless
    `same_code` is True.

    The columns are the fields of ComparisonRow. Raise ValueError for an unknown `at`, `tuned` field, `metric` or
    `baseline`.
    """
    return compare_variants(table, baseline, at=at, tuned=tuned, metric=metric, same_code=same_code)[1]


def compare_variants(
    table: pd.DataFrame,
    baseline: str | None = None,
    *,
    at: str = "steps",
    tuned: str | Sequence[str] = "lr",
    metric: str = "val_loss",
    same_code: bool = False,
) -> tuple[list[Variant], pd.DataFrame]:
    """Return the variants and the table of `compare`, which has a row for each of them."""
    if at not in CONDITIONS:
        raise ValueError(f"at={at!r} is not a condition; {did_you_mean(at, CONDITIONS)}")
    tuned = [tuned] if isinstance(tuned, str) else list(tuned)
    notes = code_notes(table, same_code)
    if same_code:
        table = table.drop(columns=measured_column(CODE), errors="ignore")
    variants, left_out = gather(table, tuned, metric)
    names = [variant.name for variant in variants]
    if baseline is not None and baseline not in names:
        raise ValueError(f"there is no variant {baseline!r}; {did_you_mean(baseline, names)}")
    matches = [match(variant, baseline_of(variant, variants, baseline), at, metric) for variant in variants]
    n_tests = correct(matches)
    result = pd.DataFrame(
        [comparison_row(match, n_tests) for match in matches], columns=list(ComparisonRow.__annotations__)
    )
    result.attrs |= {"left_out": left_out, "notes": notes, "at": at}
    return variants, result


def baseline_of(variant: Variant, variants: Sequence[Variant], name: str | None) -> Variant | None:
    """Return the baseline of `variant`: on the same data, the variant `name`, or the first one if `name` is None.

    Return None if that variant did not run on this data.
    """
    same_data = [other for other in variants if other.data == variant.data]
    return next((other for other in same_data if name in (None, other.name)), None)


def match(variant: Variant, baseline: Variant | None, at: str, metric: str) -> Match:
    """Compare one variant with its baseline, or store the reason why they cannot be compared."""
    result = Match(variant, baseline)
    if baseline is None or variant is baseline:
        result.reason = "the baseline did not run on this data" if baseline is None else ""
        return result
    common = set(complete_seeds(variant)) & set(complete_seeds(baseline))
    seeds, result.n_seeds = sorted(common), len(common)
    result.reason = why_not_comparable(variant, baseline, seeds, metric)
    if result.reason:
        return result
    variant_LS, baseline_LS = at_seeds(variant, seeds), at_seeds(baseline, seeds)
    best, other = best_setting(variant_LS), best_setting(baseline_LS)
    if best is None or other is None:
        whose = "its" if best is None else "the baseline's"
        result.reason = f"{whose} runs failed or diverged, with every {variant.tuned} at some seed"
        return result
    result.reason = condition_difference(
        variant.runs_of(best, seeds), baseline.runs_of(other, seeds), CONDITIONS[at]
    )
    difference_S = variant_LS[best] - baseline_LS[other]
    paired_t_test(result, difference_S, near_optimal_p_values(variant_LS), near_optimal_p_values(baseline_LS))
    return result


def complete_seeds(variant: Variant) -> list[int]:
    return [seed for seed, complete in zip(variant.seeds, variant.complete_S, strict=True) if complete]


def at_seeds(variant: Variant, seeds: Sequence[int]) -> np.ndarray:
    return variant.losses_LS[:, [variant.seeds.index(seed) for seed in seeds]]


def why_not_comparable(variant: Variant, baseline: Variant, seeds: list[int], metric: str) -> str:
    """Return the reason why two variants cannot be compared, or an empty string."""
    tried, tried_there = len(variant.settings), len(baseline.settings)
    if tried != tried_there:
        return f"{with_plural(tried, 'value')} of {variant.tuned} tried, {tried_there} of the baseline"
    if variant.only_best or baseline.only_best:
        return "with patience, only the loss of the best weights is known, not that of the last weights"
    if baseline.leak is not None:
        return f"leak of the baseline: {baseline.leak}"
    one, other = (next(iter(v.runs.values())) for v in (variant, baseline))
    if metric == "val_loss" and any(str(one.get(name)) != str(other.get(name)) for name in TOKENIZER):
        return "the tokenizers differ, so losses per token do not compare; use metric='bits_per_byte'"
    if (
        metric == "bits_per_byte"
        and (share := max(unknown_bytes(variant), unknown_bytes(baseline))) > MAX_UNKNOWN
    ):
        return f"{share:.2%} of the text's bytes are in unknown tokens; at most {MAX_UNKNOWN:.1%} are allowed"
    if len(seeds) < 2:
        return f"{'only one seed' if seeds else 'no seed'} ran with every {variant.tuned} of both"
    return ""


def unknown_bytes(variant: Variant) -> float:
    """Return the largest share of unknown bytes among the runs, from 0 to 1. Runs without a record count as 0."""
    shares = [measured(run, "unknown_bytes") for run in variant.runs.values()]
    return max((float(share) for share in shares if is_number(share)), default=0.0)


def condition_difference(runs: Sequence[RunRow], others: Sequence[RunRow], name: str) -> str:
    """Return in words how runs and the baseline's runs differ in the condition `name`. Return "" if they are equal."""
    here, there = (
        np.mean([float_in(run, measured_column(name)) or math.nan for run in group])
        for group in (runs, others)
    )
    if math.isnan(here + there):
        return f"{name} is unknown: some runs were saved before it was recorded"
    if abs(here / there - 1) > EQUAL:
        return f"{here / there:.3g} times the baseline's {name}"
    return ""


def near_optimal_p_values(losses_LS: np.ndarray) -> np.ndarray:
    """Return the p-value [L] of a one-sided paired t test that each setting is as good as the best one.

    The best setting itself has 0.5. A setting with a failed or missing run has 0.
    """
    best = best_setting(losses_LS)
    assert best is not None
    p_L = np.zeros(len(losses_LS))
    fine_L = np.isfinite(losses_LS).all(axis=1)
    excess_L, errors_L = mean_and_error(losses_LS[fine_L] - losses_LS[best])
    # 0 / 0 is the best setting itself. A setting with the same positive excess at every seed gets p = 0.
    t_L = np.divide(excess_L, errors_L, out=np.where(excess_L > 0, math.inf, 0.0), where=errors_L > 0)
    p_L[fine_L] = stats.t.sf(t_L, losses_LS.shape[1] - 1)
    return p_L


def mean_and_error(values_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over seeds (the last axis) and its standard error."""
    return values_S.mean(axis=-1), values_S.std(axis=-1, ddof=1) / math.sqrt(values_S.shape[-1])


def interval(values_S: np.ndarray, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the t confidence interval of the mean at level 1 - alpha; NaN for a single value."""
    n = len(values_S)
    if n < 2:
        return math.nan, math.nan
    mean, error = mean_and_error(values_S)
    margin = error * stats.t.isf(alpha / 2, n - 1)
    return float(mean - margin), float(mean + margin)


def paired_t_test(
    result: Match, difference_S: np.ndarray, variant_p_L: np.ndarray, baseline_p_L: np.ndarray
) -> None:
    """Store in `result` a paired t test of the differences [S], corrected for the choice of settings.

    The minimum of several means is biased low. The bias grows with the number of near-optimal settings. Therefore p is
    multiplied by the ratio of the winner's number of near-optimal settings to the loser's, if that ratio exceeds 1.

    Choosing each seed's setting by the other seeds would avoid the bias but make the choices dependent. With three
    equal settings, the t test then finds a difference in 17 % of cases instead of 5 %.
    """
    n = len(difference_S)
    result.difference, error = map(float, mean_and_error(difference_S))
    if error <= 1e-9 * abs(result.difference):  # also if both are 0
        why = "the seed changes nothing" if result.difference else "the same loss at every seed"
        result.reason = result.reason or why
        return
    result.difference_S, result.interval = difference_S, interval(difference_S)
    result.effect = result.difference / (error * math.sqrt(n))
    wins = result.difference < 0
    winner_p_L, loser_p_L = (variant_p_L, baseline_p_L) if wins else (baseline_p_L, variant_p_L)
    n_winner = np.minimum(1, WINNERS * winner_p_L).sum()
    n_loser = np.minimum(1, LOSERS * loser_p_L).sum()
    result.factor = float(max(1.0, n_winner / n_loser))
    p = 2 * stats.t.sf(abs(result.difference) / error, n - 1)
    result.p = min(1.0, float(p) * result.factor)


def correct(matches: Sequence[Match]) -> int:
    """Apply Holm's correction to all tested matches, and return their number.

    The interval of a difference gets the level that the correction leaves to its test, so that it excludes 0 if, and only
    if, p is below ALPHA.
    """
    tested = [match for match in matches if not match.reason and not math.isnan(match.p)]
    if tested:
        corrected = multipletests([match.p for match in tested], ALPHA, method="holm")[1]
        for match, p in zip(tested, corrected, strict=True):
            match.corrected = float(p)
            factor = match.corrected / match.p if match.corrected < 1 else len(tested)
            match.interval = interval(match.difference_S, ALPHA / (factor * match.factor))
    return len(tested)


def verdict(match: Match, n_tests: int) -> str:
    """Return "baseline", "better", "worse", or "cannot tell" with a reason or a number of seeds."""
    if match.variant is match.baseline:
        return "baseline"
    if match.reason:
        return f"cannot tell: {match.reason}"
    if match.corrected < ALPHA:
        if match.difference > 0:
            return "worse"
        return "better" if match.variant.leak is None else f"cannot tell: leak: {match.variant.leak}"
    more = more_seeds(match, ALPHA / match.factor / n_tests)
    if more is None:
        return f"cannot tell; not even {MAX_SEEDS:,} seeds would"
    return f"cannot tell; about {with_plural(more, 'more seed')} would"


def more_seeds(match: Match, level: float) -> int | None:
    """Return how many more seeds would show the observed difference with POWER at significance `level`.

    Return None if even MAX_SEEDS seeds would not.
    """
    n = np.arange(2, MAX_SEEDS + 1)
    enough = TTestPower().power(abs(match.effect), n, level) >= POWER
    return max(1, int(n[enough.argmax()]) - match.n_seeds) if enough.any() else None


def comparison_row(match: Match, n_tests: int) -> ComparisonRow:
    """Return the row of a variant in the table of `compare`."""
    variant = match.variant
    losses_S = np.array([])
    if variant.best is not None:
        losses_S = variant.losses_LS[variant.best, variant.complete_S]
        if not losses_S.size:
            losses_S = variant.losses_LS[variant.best][~np.isnan(variant.losses_LS[variant.best])]
    low, high = interval(losses_S)
    return {
        "data": variant.data,
        "variant": variant.name,
        "best": "" if variant.best is None else variant.settings[variant.best],
        "edge": variant.edge,
        "n_settings": len(variant.settings),
        "n_seeds": int(variant.complete_S.sum()),
        "n_bad": int(np.isinf(variant.losses_LS).sum()),
        "mean": float(losses_S.mean()) if losses_S.size else math.inf,
        "low": low,
        "high": high,
        "difference": match.difference,
        "difference_low": match.interval[0],
        "difference_high": match.interval[1],
        "p": match.corrected,
        "verdict": verdict(match, n_tests),
    }


def comparison_rows(comparison: pd.DataFrame) -> list[ComparisonRow]:
    """Return the rows of the table of `compare`."""
    return cast(list[ComparisonRow], comparison.to_dict("records"))
