"""The verdict on a change of the code: against scipy, and by simulation of changes without an effect."""

import math
from statistics import variance

import numpy as np
import pytest
from scipy import stats

from explore.compare.against import Decision, decide
from tests.explore.compare.test_verdicts import noisy, runs

RATE = (0.001,)


def rows(losses: dict[str, list[float]], **columns) -> list[dict]:
    return runs({kind: [of_seeds] for kind, of_seeds in losses.items()}, RATE, **columns).to_dict("records")


def judged(before: list[float], now: list[float], margin: float | None = None):
    return decide(rows({"a": now}), rows({"a": before}), margin)


def test_numbers_of_a_point_equal_scipys():
    before, now = noisy(3, seed=1), noisy(3.2, seed=2)
    [point] = judged(before, now, margin=0.01).points
    test = stats.ttest_rel(now, before)
    assert point.p == pytest.approx(test.pvalue)
    assert (point.difference_low, point.difference_high) == pytest.approx(tuple(test.confidence_interval()))
    assert (point.baseline_mean, point.mean) == pytest.approx((np.mean(before), np.mean(now)))
    assert point.n_seeds == 5


def test_the_margin_is_a_third_of_the_deviation_over_the_baselines_seeds():
    one, other = noisy(3, seed=1), noisy(4, n=5, seed=2)
    found = decide(rows({"a": [2 * loss for loss in one], "b": other}), rows({"a": one, "b": other}))
    assert found.margin == pytest.approx(math.sqrt((variance(one) + variance(other)) / 2) / 3)


BEFORE = [3.0, 3.1, 2.9, 3.05, 2.95]
SMALL = [0.001, 0.002, 0.0015, 0.001, 0.002]  # always worse, by less than any margin here


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ([0.0] * 5, Decision.NO_WORSE, "the same"),
        (SMALL, Decision.NO_WORSE, "no worse"),
        ([-d for d in SMALL], Decision.NO_WORSE, "no worse"),
        ([0.2 + d for d in SMALL], Decision.WORSE, "worse"),
        ([-0.2 + d for d in SMALL], Decision.NO_WORSE, "better"),
        ([0.1, -0.1, 0.05, -0.02, 0.03], Decision.CANNOT_TELL, "cannot tell; "),
        ([math.inf] * 5, Decision.WORSE, "worse: it diverges"),
        ([math.inf, 0, 0, 0, 0.1], Decision.CANNOT_TELL, "cannot tell: its runs failed or diverged"),
    ],
)
def test_a_change_is_judged_by_its_interval_and_the_margin(change, code, words):
    found = judged(BEFORE, [loss + d for loss, d in zip(BEFORE, change, strict=True)])
    assert found.decision is code
    assert found.points[0].verdict.startswith(words)


def test_a_change_that_cures_divergence_is_better():
    assert judged([math.inf] * 3, [3.0, 3.1, 3.2]).points[0].verdict == "better"


def test_one_seed_cannot_tell():
    found = judged([3.0], [4.0])
    assert found.decision is Decision.CANNOT_TELL
    assert "only one seed" in found.sentence


def test_one_worse_point_is_enough_and_every_point_must_be_no_worse():
    worse, open_ = [loss + 0.2 + d for loss, d in zip(BEFORE, SMALL, strict=True)], noisy(3, seed=3)
    same = rows({"a": BEFORE, "b": BEFORE, "c": BEFORE})
    assert decide(rows({"a": BEFORE, "b": worse, "c": open_}), same).decision is Decision.WORSE
    assert decide(rows({"a": BEFORE, "b": BEFORE, "c": open_}), same).decision is Decision.CANNOT_TELL
    assert decide(same, same).decision is Decision.NO_WORSE


def test_the_seeds_that_would_tell_do_tell():
    change = np.random.default_rng(5).normal(0.02, 0.05, size=5)
    before = np.array(noisy(3, n=5))
    found = judged(before.tolist(), (before + change).tolist(), margin=0.05)
    more = int(found.points[0].verdict.split("about ")[1].split()[0])
    n = 5 + more
    half = change.std(ddof=1) / math.sqrt(n) * stats.t.isf(0.025, n - 1)
    assert change.mean() + half < 0.05 or change.mean() - half > 0
    half = change.std(ddof=1) / math.sqrt(n - 1) * stats.t.isf(0.025, n - 2)
    assert not change.mean() + half < 0.05
    assert not change.mean() - half > 0


@pytest.mark.parametrize("n_points", [pytest.param(n, marks=pytest.mark.slow) for n in (1, 4)])
def test_changes_without_effect_are_called_better_or_worse_in_at_most_one_of_twenty(n_points):
    dice, wrong, n = np.random.default_rng(0), 0, 600
    kinds = "abcd"[:n_points]
    for _ in range(n):
        seeds = 0.1 * dice.normal(size=(n_points, 5))  # shared by both codes
        sides = [3 + seeds + 0.05 * dice.normal(size=seeds.shape) for _ in range(2)]
        tables = [rows(dict(zip(kinds, side.tolist(), strict=True))) for side in sides]
        found = decide(*tables, margin=1e-6)
        wrong += any(point.verdict in ("better", "worse") for point in found.points)
    assert wrong / n <= 0.065
