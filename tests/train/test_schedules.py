"""Learning rates over a run: warm-up, where each schedule ends, and against torch's own."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from train.schedules import Schedule, schedules
from train.train_params import TrainParams


def learning_rates(params: TrainParams, n_steps: int) -> list[float]:
    schedule = Schedule(params, n_steps)
    return [params.lr * schedule(step) for step in range(n_steps)]


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "cooldown"])
@pytest.mark.parametrize(("warmup", "n_steps"), [(0, 2), (0, 100), (10, 100), (99, 101)])
def test_falling_schedules_train_their_last_step_at_exactly_min_lr(name, warmup, n_steps):
    params = TrainParams(lr=1e-2, min_lr=1e-4, lr_schedule=name, warmup_steps=warmup)
    rates = learning_rates(params, n_steps)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-12)
    assert max(rates) <= 1e-2 * (1 + 1e-12)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize("name", list(schedules))
def test_warm_up_rises_in_equal_steps_to_the_full_rate(name):
    params = TrainParams(lr=1.0, lr_schedule=name, warmup_steps=4)
    rates = learning_rates(params, 1000)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("name", list(schedules))
def test_without_warm_up_the_first_step_has_the_full_rate(name):
    assert learning_rates(TrainParams(lr=0.5, lr_schedule=name), 50)[0] == pytest.approx(0.5)


def test_cosine_equals_torch():
    params = TrainParams(lr=3e-3, min_lr=3e-4, lr_schedule="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=params.lr)
    reference = CosineAnnealingLR(optimizer, T_max=49, eta_min=params.min_lr)
    expected = []
    for _ in range(50):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert learning_rates(params, 50) == pytest.approx(expected, rel=1e-9)


def test_wsd_is_level_until_its_last_part():
    params = TrainParams(lr=1.0, min_lr=0.1, lr_schedule="wsd", wsd_decay_frac=0.25)
    rates = learning_rates(params, 101)
    assert rates[:76] == pytest.approx([1.0] * 76)
    assert rates[88] == pytest.approx(0.1 + 0.9 * 12 / 25)


@pytest.mark.parametrize("warmup", [0, 5])
def test_a_cooldown_is_the_end_of_wsd(warmup):
    """With 1-sqrt, half of lr is lost after a quarter of the fall (arXiv:2405.18392)."""
    fields = {"lr": 1.0, "min_lr": 0.0, "lr_decay_shape": "1-sqrt"}
    whole = learning_rates(TrainParams(**fields, lr_schedule="wsd", wsd_decay_frac=0.5), 201)
    fall = learning_rates(TrainParams(**fields, lr_schedule="cooldown", warmup_steps=warmup), 101 + warmup)
    assert fall[warmup:] == pytest.approx(whole[100:])
    assert whole[:101] == [1.0] * 101
    assert fall[warmup + 25] == pytest.approx(0.5)
    linear = learning_rates(TrainParams(lr=1.0, lr_schedule="cooldown"), 101)
    assert linear[25] == pytest.approx(0.75)


def test_cyclic_returns_to_the_full_rate_every_cycle():
    params = TrainParams(lr=1.0, min_lr=0.2, lr_schedule="cyclic", lr_cycle_steps=20)
    rates = learning_rates(params, 61)
    assert [rates[i] for i in (0, 20, 40, 60)] == pytest.approx([1.0] * 4)
    assert [rates[i] for i in (10, 30, 50)] == pytest.approx([0.2] * 3)


def test_plateau_halves_after_validations_without_gain_and_stops_at_min_lr():
    params = TrainParams(lr=1.0, min_lr=0.3, lr_schedule="plateau", lr_plateau_patience=2)
    schedule = Schedule(params, 100)
    seen = []
    for loss in (3.0, 2.0, 2.5, 2.0, 1.9, 1.95, 1.95, 1.95, 1.95):
        schedule.add_val_loss(loss)
        seen.append(schedule(50))
    assert seen == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3])


def test_a_schedule_survives_saving_through_lambdalr():
    params = TrainParams(lr_schedule="plateau", lr_plateau_patience=1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule(params, 10)
    scheduler = LambdaLR(optimizer, schedule)
    schedule.add_val_loss(1.0)
    schedule.add_val_loss(2.0)
    other = Schedule(params, 10)
    LambdaLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), other).load_state_dict(
        scheduler.state_dict()
    )
    assert (other.reductions, other.best) == (1, 1.0)
    assert math.isclose(other(3), 0.5)
