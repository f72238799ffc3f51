"""The verdict on training losses: healthy noise is none, and the first bad step is named."""

import math
import random

import pytest

from train.divergence import WINDOW, Divergence
from train.stats import Stat


def stats_of(*losses, accumulate=1, name="main", first=0):
    values = [Stat(first + i // accumulate, 8 * i, i, loss) for i, loss in enumerate(losses)]
    return {f"stat/train_loss:{name}": values}


def test_single_bad_batches_of_a_healthy_fine_tuning_do_not_count():
    dice = random.Random(0)
    losses = [dice.choice([0.2, 0.5, 1.0, 6.0, 40.0]) for _ in range(400)]
    assert Divergence(50257).judge(stats_of(*losses)) is None


@pytest.mark.parametrize("first", [0.0, 1e-9, 3.4, 80.0])
def test_the_first_loss_does_not_decide_about_divergence(first):
    assert Divergence(30).judge(stats_of(first, *[2.0] * 100)) is None


def test_a_rise_far_above_chance_and_the_best_has_diverged():
    healthy, bad = [3.4, 3.0, 2.5] + [1.0] * 60, [50.0] * WINDOW
    why = Divergence(30).judge(stats_of(*healthy, *bad))
    assert why.startswith("diverged: training loss 50 since step 63 ")
    assert "best 1," in why


def test_losses_on_another_scale_are_judged_by_the_best_so_far():
    assert Divergence(30).judge(stats_of(*[1000.0] * 40)) is None
    assert Divergence(30).judge(stats_of(*[1000.0] * 40, *[3500.0] * WINDOW)).startswith("diverged")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_step_that_is_not_finite_is_named(bad):
    why = Divergence(30).judge(stats_of(3.4, *[bad] * 43))
    assert why == f"diverged: training loss {bad} at step 1"
    assert Divergence(30).judge(stats_of(bad, *[bad] * 43)) == f"diverged: training loss {bad} at step 0"


def test_a_bad_step_that_a_run_left_behind_is_no_divergence():
    assert Divergence(30).judge(stats_of(3.4, math.nan, 3.4)) is None


def test_a_further_loss_is_named():
    both = stats_of(3.4, 3.3) | stats_of(0.1, math.nan, name="balance")
    assert Divergence(30).judge(both) == "diverged: training loss nan at step 1 (balance)"


def test_batches_of_a_step_are_judged_together():
    """Two batches in three would be far above the limit; their steps are not."""
    losses = [0.0, 15.0, 15.0] * 40
    assert Divergence(30).judge(stats_of(*losses)) is not None
    assert Divergence(30).judge(stats_of(*losses, accumulate=3)) is None


def test_the_loss_of_a_step_is_the_mean_over_its_batches():
    healthy, bad = [1.0] * 40, [100.0, 0.0] * WINDOW
    why = Divergence(30).judge(stats_of(*healthy, *bad, accumulate=2))
    assert why.startswith("diverged: training loss 50 since step 20 ")


def test_two_steps_are_too_few_for_a_verdict():
    assert Divergence(30).judge(stats_of(1.0, 50.0)) is None
    assert Divergence(30).judge(stats_of(1.0, 50.0, 50.0)).startswith("diverged")


def test_each_value_is_judged_once():
    stats, verdict = stats_of(1.0, *[50.0] * WINDOW), Divergence(30)
    assert verdict.judge(stats).startswith("diverged")
    assert verdict.judge(stats) is None


def test_statistics_may_come_in_pieces_and_over_a_resume():
    healthy, bad = [3.4] * 30, [50.0] * 30
    whole, first, second = Divergence(30), Divergence(30), Divergence(30)
    expected = whole.judge(stats_of(*healthy, *bad))
    assert first.judge(stats_of(*healthy)) is None
    second.load_state_dict(first.state_dict())
    assert second.judge(stats_of(*healthy, *bad)) == expected
