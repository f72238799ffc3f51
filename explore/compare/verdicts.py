"""Comparison of variants, each at its own best learning rate: paired t tests over seeds, and a verdict in words.

Shape suffixes:  L setting of the tuned fields, such as a learning rate  S seed
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict, cast

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.power import TTestPower

from common.text import did_you_mean
from explore.compare.metrics import Metric, RunRow, float_in, is_number, measured, read_metric
from explore.compare.variants import (
    CODE,
    Variant,
    best_setting,
    code_notes,
    gather,
    grouped,
    repeated_note,
    value_as_label,
    variant,
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
    """A row of the table that compare() returns. Losses are values of the metric."""

    data: str  # fields of DataParams that vary
    variant: str  # the other fields that vary, without seed and tuned fields
    best: str  # the tuned fields at the setting of lowest mean loss; empty if there is none
    edge: str  # "smallest" or "largest" if the best setting is that number among those tried, else empty
    n_settings: int  # settings tried
    n_seeds: int  # seeds that ran with every setting
    n_bad: int  # runs that failed or diverged
    # Runs at the best setting that ended before a metric such as "steps_to: ..." was reached.
    n_censored: int
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
    by: str | None


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
    n_blocks: int = 1  # blocks over which the differences were taken, each with its own runs of a seed


def compare(
    table: pd.DataFrame,
    baseline: str | None = None,
    *,
    at: str = "steps",
    tuned: str | Sequence[str] = "lr",
    metric: str = "val_loss",
    same_code: bool = False,
    by: str | None = None,
) -> pd.DataFrame:
    """Compare variants with a baseline. Return a row for each variant: best learning rate, mean loss, verdict.

    `table` is a table from runs(). A variant is a set of runs that differ only in `random_seed` and the `tuned` fields.
    `baseline` is the name of a variant, or values of fields that only one variant has, such as "positions=none"; the
    default is the first variant. Each variant is compared at its best setting of the tuned fields. That setting has the
    lowest mean over the seeds that ran with all settings.

    `metric` is "val_loss" (nats per token), "bits_per_byte", any other final number of the runs, such as "val_accuracy"
    or "val_loss[long]", or the cost of getting there: "steps_to: val_loss < 3.3", also with flops_to and seconds_to.
    For accuracies, exact matches and rates, higher is better. A run that never gets there counts as if it did so at its
    end. Such times are compared whatever `at` is. See explore/compare/metrics.py for the reasons.

    `by` asks for the main effect of one field, over all others: "does rotary help, over all dims?" is by="positions".
    The variants are then the values of that field. Values of all other varied fields, and seeds, are blocks: a variant
    and the baseline are compared within each block, each at its own best setting there.

    The verdicts "better" and "worse" rest on a paired t test over common seeds. They need equal conditions: `at` is
    "steps", "params" or "flops". The p-value is corrected for the choice of settings and for the number of comparisons.
    The other verdict is "cannot tell", with a reason or the number of seeds that would probably suffice. Variants on
    different data are not compared. Runs trained by different code (column `code`) are different variants, unless
    `same_code` is True.

    The columns are the fields of ComparisonRow. Raise ValueError for an unknown `at`, `tuned` field, `metric`,
    `baseline` or `by`.
    """
    return compare_variants(table, baseline, at=at, tuned=tuned, metric=metric, same_code=same_code, by=by)[1]


def compare_variants(
    table: pd.DataFrame,
    baseline: str | None = None,
    *,
    at: str = "steps",
    tuned: str | Sequence[str] = "lr",
    metric: str = "val_loss",
    same_code: bool = False,
    by: str | None = None,
) -> tuple[list[Variant], pd.DataFrame]:
    """Return the variants and the table of `compare`, which has a row for each of them."""
    if at not in CONDITIONS:
        raise ValueError(f"at={at!r} is not a condition; {did_you_mean(at, CONDITIONS)}")
    tuned = [tuned] if isinstance(tuned, str) else list(tuned)
    notes = code_notes(table, same_code)
    if same_code:
        table = table.drop(columns=measured_column(CODE), errors="ignore")
    if by is None:
        variants, left_out = gather(table, tuned, metric)
        blocks: dict[int, Blocks] = {}
    else:
        variants, blocks, left_out = gather_by(table, by, tuned, metric)
    notes += censored_notes(variants, metric)
    chosen = named_baseline(variants, baseline)
    matches = []
    for one in variants:
        other = baseline_of(one, variants, chosen)
        if blocks and other is not None and other is not one:
            matches.append(match_blocks(one, other, (blocks[id(one)], blocks[id(other)]), at, metric))
        else:
            matches.append(match(one, other, at, metric))
    n_tests = correct(matches)
    result = pd.DataFrame(
        [comparison_row(match, n_tests) for match in matches], columns=list(ComparisonRow.__annotations__)
    )
    if by is not None:  # blocks differ for other reasons than noise
        result[["low", "high"]] = math.nan
    result.attrs |= {"left_out": left_out, "notes": notes, "at": at, "metric": metric, "by": by}
    return variants, result


def censored_notes(variants: Sequence[Variant], metric: str) -> list[str]:
    """Return a note, in a list, if runs end before they get to the limit of a metric. Else return an empty list."""
    n = sum(len(one.censored) for one in variants)
    if not n:
        return []
    n_runs = sum(len(one.runs) for one in variants)
    return [
        f"{metric!r}: {n} of {with_plural(n_runs, 'run')} did not get there in the length of the shortest of them, and count "
        "with that length"
    ]


Blocks = dict[str, Variant]  # the runs of one value of a field, in each block


def gather_by(
    table: pd.DataFrame, by: str, tuned: Sequence[str], metric: str
) -> tuple[list[Variant], dict[int, Blocks], list[str]]:
    """Return a variant for each value of the field `by`, its blocks by the variant's id, and notes on runs left out.

    The variant has one setting and a "seed" for each seed of each block: the run at the best setting in that block.
    """
    groups, costs, n_rows, left_out = grouped(table, tuned, metric, by)
    of_values: dict[tuple[str, str], Blocks] = {}
    for (data, name, block), rows in groups.items():
        of_values.setdefault((data, name), {})[block] = variant(data, name, rows, tuned, costs)
    pairs = [
        (block, seed) for blocks in of_values.values() for block, one in blocks.items() for seed in one.seeds
    ]
    number = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    variants = [pooled(data, name, blocks, number) for (data, name), blocks in of_values.items()]
    n_runs = sum(len(one.runs) for blocks in of_values.values() for one in blocks.values())
    by_id = {id(one): blocks for one, blocks in zip(variants, of_values.values(), strict=True)}
    return variants, by_id, left_out + repeated_note(n_rows - n_runs)


def pooled(data: str, name: str, blocks: Blocks, number: dict[tuple[str, int], int]) -> Variant:
    """Return all blocks as one variant. `number` numbers the pairs of block and seed."""
    losses, runs, censored = dict[int, float](), dict[tuple[str, int], RunRow](), set[tuple[str, int]]()
    for block, one in blocks.items():
        best = 0 if one.best is None else one.best  # of settings that all failed, any
        for seed, loss in zip(one.seeds, one.losses_LS[best], strict=True):
            key = (one.settings[best], seed)
            if key in one.runs:
                pair = number[block, seed]
                losses[pair], runs["", pair] = float(loss), one.runs[key]
                censored |= {("", pair)} if key in one.censored else set()
    first = next(iter(blocks.values()))
    pairs = sorted(losses)
    losses_LS = np.array([[losses[pair] for pair in pairs]])
    only_best = any(one.only_best for one in blocks.values())
    return Variant(
        data, name, first.tuned, [""], pairs, losses_LS, runs, only_best, first.sign, frozenset(censored)
    )


def named_baseline(variants: Sequence[Variant], text: str | None) -> str | None:
    """Return the name of the variant that `text` names: its name, or values of fields that only this variant has.

    Raise ValueError if there is none or several.
    """
    names = list(dict.fromkeys(variant.name for variant in variants))
    if text is None or text in names:
        return text
    wanted = [part.strip().partition("=") for part in text.split(",")]
    found = list(dict.fromkeys(one.name for one in variants if has_values(one, wanted)))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"baseline={text!r} fits {len(found)} variants; add a field to tell them apart: {'; '.join(found[:5])}"
        )
    raise ValueError(f"there is no variant {text!r}; {did_you_mean(text, names)}")


def has_values(one: Variant, wanted: Sequence[tuple[str, str, str]]) -> bool:
    """Return True if all runs of a variant have these values. `wanted` are parts (field, "=", value)."""
    return all(
        equals and run.get(field) is not None and value_as_label(run[field]) == value.strip("'\"")
        for field, equals, value in wanted
        for run in one.runs.values()
    )


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
    pair = paired_runs(variant, baseline, at, metric)
    result.n_seeds, result.reason = len(pair.difference_S), pair.reason
    if result.n_seeds >= 2:
        paired_t_test(result, [pair], read_metric_name(metric))
    else:
        result.n_seeds = pair.n_seeds
    return result


def match_blocks(
    variant: Variant, baseline: Variant, blocks: tuple[Blocks, Blocks], at: str, metric: str
) -> Match:
    """Compare two values of a field over the blocks that both ran in.

    The test is a paired t test over the pairs of block and seed. In each block both values are at their own best
    setting, so the correction for the choice of settings is the product of those of the blocks. If the effect differs
    between blocks, its variation counts as noise.
    """
    result = Match(variant, baseline)
    common = [name for name in blocks[0] if name in blocks[1]]
    pairs = [paired_runs(blocks[0][name], blocks[1][name], at, metric, in_blocks=True) for name in common]
    result.n_blocks, result.n_seeds = max(1, len(common)), sum(len(pair.difference_S) for pair in pairs)
    reasons = [pair.reason for pair in pairs if pair.reason]
    if reasons or result.n_seeds < 2:
        where = f" (in {len(reasons)} of {with_plural(len(pairs), 'block')})" if len(pairs) > 1 else ""
        result.reason = f"{reasons[0]}{where}" if reasons else "they have no two blocks or seeds in common"
    if result.n_seeds >= 2 and not any(pair.reason and not len(pair.difference_S) for pair in pairs):
        paired_t_test(result, pairs, read_metric_name(metric))
    return result


class PairedRuns(NamedTuple):
    """Runs of a variant and of its baseline with the same seeds, both at their best settings."""

    reason: str = ""  # the reason why they cannot be compared
    difference_S: np.ndarray = np.array([])
    variant_p_L: np.ndarray = np.array([])  # see near_optimal_p_values
    baseline_p_L: np.ndarray = np.array([])
    n_seeds: int = 0


def paired_runs(
    variant: Variant, baseline: Variant, at: str, metric: str, in_blocks: bool = False
) -> PairedRuns:
    """Return the differences of a variant from its baseline by seed, or the reason why there are none.

    `in_blocks` allows a single seed where no setting was chosen: other blocks show the noise.
    """
    seeds = sorted(set(complete_seeds(variant)) & set(complete_seeds(baseline)))
    least = 1 if in_blocks and len(variant.settings) == 1 else 2
    if reason := why_not_comparable(variant, baseline, seeds, metric, least):
        return PairedRuns(reason, n_seeds=len(seeds))
    variant_LS, baseline_LS = at_seeds(variant, seeds), at_seeds(baseline, seeds)
    best, other = best_setting(variant_LS), best_setting(baseline_LS)
    if best is None or other is None:
        whose = "its" if best is None else "the baseline's"
        reason = f"{whose} runs failed or diverged, with every {variant.tuned} at some seed"
        return PairedRuns(reason, n_seeds=len(seeds))
    if not read_metric_name(metric).cost:
        reason = condition_difference(
            variant.runs_of(best, seeds), baseline.runs_of(other, seeds), CONDITIONS[at]
        )
    return PairedRuns(
        reason,
        variant_LS[best] - baseline_LS[other],
        near_optimal_p_values(variant_LS),
        near_optimal_p_values(baseline_LS),
        len(seeds),
    )


def read_metric_name(metric: str) -> Metric:
    """Return the metric that a text names, when it is known to be valid."""
    return read_metric(metric, [{measured_column(metric): 0.0}])


def complete_seeds(variant: Variant) -> list[int]:
    return [seed for seed, complete in zip(variant.seeds, variant.complete_S, strict=True) if complete]


def at_seeds(variant: Variant, seeds: Sequence[int]) -> np.ndarray:
    return variant.losses_LS[:, [variant.seeds.index(seed) for seed in seeds]]


def why_not_comparable(
    variant: Variant, baseline: Variant, seeds: list[int], metric: str, least: int = 2
) -> str:
    """Return the reason why two variants cannot be compared, or an empty string. `least` is the smallest number of seeds."""
    tried, tried_there = len(variant.settings), len(baseline.settings)
    if tried != tried_there:
        return f"{with_plural(tried, 'value')} of {variant.tuned} tried, {tried_there} of the baseline"
    if variant.only_best or baseline.only_best:
        return "with patience, only the loss of the best weights is known, not that of the last weights"
    if baseline.leak is not None:
        return f"leak of the baseline: {baseline.leak}"
    one, other = (next(iter(v.runs.values())) for v in (variant, baseline))
    found = read_metric_name(metric)
    if found.depends_on_tokenizer and str(one.get("objective")) != str(other.get("objective")):
        return "the objectives differ, so their losses and accuracies do not compare"
    if found.depends_on_tokenizer and any(str(one.get(name)) != str(other.get(name)) for name in TOKENIZER):
        return "the tokenizers differ, so losses per token do not compare; use metric='bits_per_byte'"
    if (
        found.name.startswith("bits_per_byte")
        and (share := max(unknown_bytes(variant), unknown_bytes(baseline))) > MAX_UNKNOWN
    ):
        return f"{share:.2%} of the text's bytes are in unknown tokens; at most {MAX_UNKNOWN:.1%} are allowed"
    if len(seeds) < least:
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
    if losses_LS.shape == (1, 1):
        return np.array([0.5])
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


def paired_t_test(result: Match, pairs: Sequence[PairedRuns], metric: Metric) -> None:
    """Store in `result` a paired t test of all differences, corrected for the choice of settings.

    The minimum of several means is biased low. The bias grows with the number of near-optimal settings. Therefore p is
    multiplied by the ratio of the winner's number of near-optimal settings to the loser's, if that ratio exceeds 1. Over
    several blocks it is the ratio of the numbers of combinations of settings.

    Choosing each seed's setting by the other seeds would avoid the bias but make the choices dependent. With three
    equal settings, the t test then finds a difference in 17 % of cases instead of 5 %.

    Times may be the same at every seed, as when one variant never gets to the limit and the other always does so at the
    same validation. A t test has no answer there, so it is a sign test: p = 2 / 2**n.
    """
    difference_S = np.concatenate([pair.difference_S for pair in pairs])
    n = len(difference_S)
    result.difference, error = map(float, mean_and_error(difference_S))
    is_constant = error <= 1e-9 * abs(result.difference)  # also if both are 0
    if is_constant and not (metric.cost and result.difference):
        why = "the seed changes nothing" if result.difference else "the same loss at every seed"
        both = (result.variant, result.baseline)
        if metric.cost and all(one is not None and len(one.censored) == len(one.runs) for one in both):
            why = f"no run of either gets to {metric.name} {metric.comparison} {metric.limit:g}"
        result.reason = result.reason or why
        return
    result.difference_S, result.interval = difference_S, interval(difference_S)
    wins = result.difference < 0
    ratio = 1.0
    for pair in pairs:
        winner_p_L, loser_p_L = (
            (pair.variant_p_L, pair.baseline_p_L) if wins else (pair.baseline_p_L, pair.variant_p_L)
        )
        n_winner = np.minimum(1, WINNERS * winner_p_L).sum()
        ratio *= float(n_winner / np.minimum(1, LOSERS * loser_p_L).sum())
    result.factor = max(1.0, ratio)
    if is_constant:
        result.effect, p = math.inf, 2.0 ** (1 - n)
    else:
        result.effect = result.difference / (error * math.sqrt(n))
        p = 2 * float(stats.t.sf(abs(result.difference) / error, n - 1))
    result.p = min(1.0, p * result.factor)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979). statsmodels' function takes a second on a busy heap."""
    p, order = np.array(p_values, dtype=float), np.argsort(p_values)
    steps = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(step) for step in steps[np.argsort(order)]]


def correct(matches: Sequence[Match]) -> int:
    """Apply Holm's correction to all tested matches, and return their number.

    The interval of a difference gets the level that the correction leaves to its test, so that it excludes 0 if, and only
    if, p is below ALPHA.
    """
    tested = [match for match in matches if not match.reason and not math.isnan(match.p)]
    if tested:
        for match, p in zip(tested, holm([match.p for match in tested]), strict=True):
            match.corrected = p
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
    if more is not None:
        more = -(-more // match.n_blocks)
    return f"cannot tell; {what_would(more)}"


def what_would(more: int | None) -> str:
    """Return in words how many more seeds would tell. `more` is None if even MAX_SEEDS seeds would not."""
    return (
        f"not even {MAX_SEEDS:,} seeds would"
        if more is None
        else f"about {with_plural(more, 'more seed')} would"
    )


def more_seeds(match: Match, level: float) -> int | None:
    """Return how many more seeds would show the observed difference with POWER at significance `level`.

    Return None if even MAX_SEEDS seeds would not.
    """
    if math.isinf(match.effect):  # a sign test
        return max(1, math.floor(1 - math.log2(level)) + 1 - match.n_seeds)
    return more_for_effect(abs(match.effect), match.n_seeds, level)


def more_for_effect(effect: float, n_seeds: int, level: float, alternative: str = "two-sided") -> int | None:
    """Return how many seeds more than `n_seeds` show an effect, in standard deviations, with POWER by a t test.

    Return None if even MAX_SEEDS seeds would not.
    """
    n = np.arange(2, MAX_SEEDS + 1)
    enough = TTestPower().power(effect, n, level, alternative=alternative) >= POWER
    return max(1, int(n[enough.argmax()]) - n_seeds) if enough.any() else None


def comparison_row(match: Match, n_tests: int) -> ComparisonRow:
    """Return the row of a variant in the table of `compare`."""
    variant = match.variant
    losses_S = np.array([])
    if variant.best is not None:
        losses_S = variant.losses_LS[variant.best, variant.complete_S]
        if not losses_S.size:
            losses_S = variant.losses_LS[variant.best][~np.isnan(variant.losses_LS[variant.best])]
    sign = variant.sign
    low, high = sorted(sign * end + 0.0 for end in interval(losses_S))
    difference_low, difference_high = sorted(sign * end + 0.0 for end in match.interval)
    best = "" if variant.best is None else variant.settings[variant.best]
    return {
        "data": variant.data,
        "variant": variant.name,
        "best": best,
        "edge": variant.edge,
        "n_settings": len(variant.settings),
        "n_seeds": int(variant.complete_S.sum()),
        "n_bad": int(np.isinf(variant.losses_LS).sum()),
        "n_censored": sum(setting == best for setting, _ in variant.censored),
        "mean": sign * float(losses_S.mean()) + 0.0 if losses_S.size else math.inf,  # no -0.0
        "low": low,
        "high": high,
        "difference": sign * match.difference + 0.0,
        "difference_low": difference_low,
        "difference_high": difference_high,
        "p": match.corrected,
        "verdict": verdict(match, n_tests),
    }


def comparison_rows(comparison: pd.DataFrame) -> list[ComparisonRow]:
    """Return the rows of the table of `compare`."""
    return cast(list[ComparisonRow], comparison.to_dict("records"))


def p_as_text(p: float) -> str:
    """Return p with two digits, or with as many as show on which side of ALPHA it lies. Return "-" for NaN."""
    if math.isnan(p):
        return "-"
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if (float(text) < ALPHA) == (p < ALPHA))


def style_of_verdict(text: str) -> str:
    """Return the style of a text that contains a verdict: green for better, red for worse, yellow if undecided."""
    found = re.search(r"\b(better|worse|cannot tell)\b", text)
    return {"better": "green", "worse": "red", "cannot tell": "yellow"}[found[1]] if found else ""
