"""The noise of a config: against statistics, scipy and statsmodels."""

import math
import statistics

import pytest
from scipy import stats
from statsmodels.stats.power import TTestIndPower

from explore.compare.noise import SHARES, noise
from tests.explore.compare.test_verdicts import noisy, runs


def test_deviation_interval_and_seeds_equal_references():
    losses = {"a": noisy(3, n=6, seed=1), "b": noisy(4, n=6, seed=2)}
    found = noise(runs({kind: [of_seeds] for kind, of_seeds in losses.items()}, (0.001,)).to_dict("records"))
    assert [one.name for one in found] == ["positions=a", "positions=b"]
    for one, values in zip(found, losses.values(), strict=True):
        deviation = statistics.stdev(values)
        assert (one.n_seeds, one.mean, one.deviation) == pytest.approx(
            (6, statistics.mean(values), deviation)
        )
        # The interval holds all deviations that a chi-squared test of the variance does not refuse.
        for end, level in ((one.low, 0.975), (one.high, 0.025)):
            assert stats.chi2.cdf(5 * deviation**2 / end**2, 5) == pytest.approx(level)
        for share in SHARES:
            n, power = one.seeds_for[share], TTestIndPower().power
            effect = share * one.mean / deviation
            assert power(effect, n, 0.05) >= 0.8 > power(effect, n - 1, 0.05)


def test_learning_rates_are_configs_of_their_own():
    table = runs({"a": [noisy(3), noisy(4)]})
    assert [one.name for one in noise(table.to_dict("records"))] == ["lr=0.001", "lr=0.01"]


def test_failed_runs_do_not_count_and_one_seed_says_nothing():
    table = runs({"a": [[3.0, math.nan, 3.1]]}, (0.001,)).to_dict("records")
    table[1]["stopped"] = "diverged: training loss nan at step 3"
    assert noise(table)[0].n_seeds == 2
    [one] = noise(table[:2])
    assert math.isnan(one.deviation)
    assert set(one.seeds_for.values()) == {None}
