"""Claims are judged over seeds: error rates by simulation, and verdicts that are certain."""

import math

import numpy as np
import pytest
from scipy import stats

from explore.compare.against import Decision
from explore.compare.claims import decision_on, judge_all
from explore.compare.metrics import Time
from train.grid.claims import Claim, read_claim
from train.grid.config_text import Place
from train.grid.params import measured_column


def claim(text: str) -> Claim:
    return read_claim("c", text, Place("t.txt", 1))


def rows(
    values: dict[float, list[float]], column: str = "val_loss", lrs: tuple = (1e-3,), **more
) -> list[dict]:
    """Runs of each dim with these values by seed; with several learning rates, the values of each in turn."""
    return [
        {"dim": dim, "random_seed": i // len(lrs), "lr": lrs[i % len(lrs)], column: value, **more}
        | {"status": "complete", measured_column("stopped"): "finished", measured_column("steps"): 100}
        for dim, of_dim in values.items()
        for i, value in enumerate(of_dim)
    ]


def verdict(text: str, runs: list[dict]) -> str:
    [one] = judge_all([claim(text)], runs)
    return one.verdict


def test_certain_verdicts():
    runs = rows({32: [2.0, 2.1, 1.9, 2.05], 64: [1.0, 1.1, 0.9, 1.0]})
    assert verdict("val_loss(dim=64) < val_loss(dim=32)", runs) == "holds"
    assert verdict("val_loss(dim=64) > val_loss(dim=32)", runs) == "fails"
    assert verdict("0.9 <= val_loss(dim=32) - val_loss(dim=64) <= 1.1", runs) == "holds"
    assert verdict("val_loss(dim=32) / val_loss(dim=64) < 1.5", runs) == "fails"
    assert verdict("val_loss(dim=64) < 1.001", runs).startswith("cannot tell; ")
    assert verdict("val_loss(dim=16) < 1", runs) == "cannot tell: no run of `val_loss(dim=16)` has ended"
    assert verdict("val_acuracy(dim=64) < 1", runs).startswith("cannot tell: metric='val_acuracy'")


def test_the_p_value_is_that_of_a_one_sided_t_test_of_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 0.1, 5), rng.normal(1.1, 0.1, 5)
    [one] = judge_all([claim("val_loss(dim=64) < val_loss(dim=32)")], rows({64: list(a), 32: list(b)}))
    assert one.p == pytest.approx(stats.ttest_rel(b, a, alternative="greater").pvalue)
    assert one.margin == pytest.approx(float((b - a).mean()))
    low = stats.ttest_rel(b, a, alternative="greater").confidence_interval(0.95).low
    assert one.margin_low == pytest.approx(low)


def test_a_true_claim_fails_in_at_most_5_percent_and_a_false_one_is_found():
    rng = np.random.default_rng(1)
    number, pairs = claim("val_loss(dim=64) <= 3"), claim("val_loss(dim=64) <= val_loss(dim=32)")

    def share(one: Claim, mean: float, n: int = 300) -> float:
        runs = (rows({64: list(rng.normal(mean, 1, 5)), 32: list(rng.normal(3, 1, 5))}) for _ in range(n))
        return np.mean([judge_all([one], own)[0].verdict == "fails" for own in runs])

    noise = 3 * math.sqrt(0.05 * 0.95 / 300)
    assert share(number, 3.0) < 0.05 + noise
    assert share(pairs, 3.0) < 0.05 + noise
    assert share(number, 4.5) > 0.8


def test_several_claims_are_corrected_together():
    runs = rows({64: [2.9, 2.8, 2.75, 2.95], 32: [3.0, 3.1, 2.9, 3.05]})
    alone = judge_all([claim("val_loss(dim=64) < 3")], runs)[0]
    among = judge_all(
        [claim("val_loss(dim=64) < 3")] + [claim(f"val_loss(dim=32) < {2 + i}") for i in range(4)], runs
    )[0]
    assert among.p == pytest.approx(3 * alone.p)  # two of the five have smaller ones


def test_the_best_learning_rate_is_taken_and_its_choice_costs():
    lrs = (1e-3, 1e-2)
    clear = rows({64: [1.0, 3.0, 1.1, 3.1, 0.9, 2.9]}, lrs=lrs)
    [one] = judge_all([claim("val_loss(dim=64) < 1.5")], clear)
    assert one.seen == "1.0000 < 1.5000"
    close = rows({64: [1.0, 1.1, 1.1, 1.0, 0.9, 0.9]}, lrs=lrs)
    [two] = judge_all([claim("val_loss(dim=64) < 1.5")], close)
    assert two.p == pytest.approx(2 * one.p, rel=0.7)
    assert two.p > 1.5 * one.p
    assert judge_all([claim("val_loss(dim=64, lr=1e-2) < 1.5")], clear)[0].seen == "3.0000 > 1.5000"


def test_trends_and_spreads_over_runs():
    runs = rows({16: [4.0, 4.1], 32: [2.0, 2.05], 64: [1.0, 1.02]})
    assert verdict("slope('dim', 'val_loss', log=True) < -0.9", runs) == "holds"
    assert judge_all([claim("slope('dim', 'val_loss', log=True) < -0.9")], runs)[0].seen.startswith("-1.00")
    assert verdict("spearman('dim', 'val_loss') <= -1", runs) == "holds"
    assert verdict("spread('val_loss') > 2", runs) == "holds"
    assert verdict("slope('lr', 'val_loss') > 2", runs).endswith("lr has the same value in all runs")


def test_runs_that_diverge_count_by_their_side():
    lost = rows({64: [math.inf] * 5, 32: [2.0, 2.1, 1.9, 2.05, 2.0]})
    assert verdict("val_loss(dim=64) > val_loss(dim=32)", lost) == "holds"
    assert verdict("val_loss(dim=64) < 10", lost) == "fails"
    some = rows({64: [1.0, 1.1, math.inf, 1.0, 1.0]})
    assert verdict("val_loss(dim=64) < 2", some).startswith("cannot tell")


def test_times_that_are_all_the_same_need_a_sign_test():
    column = "steps_to: val_accuracy >= 0.9"
    runs = rows({64: [Time(40, True)] * 3, 32: [Time(80, True)] * 3}, column)
    text = 'steps_to("val_accuracy >= 0.9", dim=64) < steps_to("val_accuracy >= 0.9", dim=32)'
    assert verdict(text, runs) == "cannot tell; about 2 more seeds would"
    assert verdict(text, rows({64: [Time(40, True)] * 5, 32: [Time(80, True)] * 5}, column)) == "holds"
    exact = rows({64: [1.0, 1.0, 1.0]}, "val_accuracy")
    assert verdict("val_accuracy(dim=64) >= 1", exact) == "holds"
    assert verdict("val_accuracy(dim=64) > 1", exact) == "fails"
    assert judge_all([claim("val_accuracy(dim=64) > 1")], exact)[0].seen == "1.0000 == 1.0000"


def test_one_seed_tells_nothing():
    [one] = judge_all([claim("val_loss(dim=64) < 2")], rows({64: [1.0]}))
    assert one.verdict == "cannot tell: only one seed has all the runs, and a verdict needs two"
    assert (one.seen, one.n_seeds) == ("1.0000 < 2.0000", 1)


def test_the_exit_code_of_all_claims():
    runs = rows({64: [1.0, 1.1, 0.9, 1.0]})
    good, bad, open_ = (claim(f"val_loss(dim=64) < {x}") for x in (2, 0, 1.001))
    assert decision_on(judge_all([good], runs)) is Decision.NO_WORSE
    assert decision_on(judge_all([good, open_], runs)) is Decision.CANNOT_TELL
    assert decision_on(judge_all([good, open_, bad], runs)) is Decision.WORSE
