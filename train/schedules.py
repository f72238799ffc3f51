"""Learning-rate schedules: each maps the progress of a run to a share of `lr`."""

import math
from collections.abc import Callable
from typing import NamedTuple

from common.registry import Registry
from train.length import RunLength
from train.train_params import TrainParams

MIN_SHARE = 1e-9  # of the time of a run, so that nothing is divided by 0


class Moment(NamedTuple):
    """The state of a run that a schedule may depend on."""

    step: int  # optimizer steps since the end of the warm-up
    progress: float  # 0 at the end of the warm-up, 1 at the last step
    reductions: int  # times that "plateau" has halved lr
    params: TrainParams

    @property
    def floor(self) -> float:
        """min_lr as a share of lr."""
        return self.params.min_lr / self.params.lr

    def falling(self, left: float) -> float:
        """Return the value in a fall from 1 to `floor` of which the share `left` of the steps is to come."""
        if self.params.lr_decay_shape == "1-sqrt":
            left = 1 - math.sqrt(1 - left)
        return self.floor + (1 - self.floor) * left


# The function returns the learning rate as a share of `lr`. Its name is a value of `lr_schedule`.
schedules: Registry[Callable[[Moment], float]] = Registry("schedule")


@schedules.register
def constant(now: Moment) -> float:
    """Keep `lr` after the warm-up."""
    return 1.0


@schedules.register
def linear(now: Moment) -> float:
    """Fall in a straight line from `lr` to `min_lr`."""
    return 1 + (now.floor - 1) * now.progress


@schedules.register
def cosine(now: Moment) -> float:
    """Fall along half a cosine wave from `lr` to `min_lr` (arXiv:1608.03983, without restarts)."""
    return now.floor + (1 - now.floor) * (1 + math.cos(math.pi * now.progress)) / 2


@schedules.register
def wsd(now: Moment) -> float:
    """Keep `lr`, then fall to `min_lr` over the last `wsd_decay_frac` of the steps (arXiv:2404.06395)."""
    left = (1 - now.progress) / now.params.wsd_decay_frac
    return now.falling(min(1.0, left))


@schedules.register
def cooldown(now: Moment) -> float:
    """Fall to `min_lr` over all steps, as "wsd" does at its end: for weights of `from_saved` (arXiv:2405.18392)."""
    return now.falling(1 - now.progress)


@schedules.register
def cyclic(now: Moment) -> float:
    """Fall to `min_lr` and rise again within every `lr_cycle_steps`, in straight lines (arXiv:1506.01186)."""
    phase = now.step % now.params.lr_cycle_steps / now.params.lr_cycle_steps
    return now.floor + (1 - now.floor) * abs(1 - 2 * phase)


@schedules.register
def plateau(now: Moment) -> float:
    """Halve `lr` whenever the validation loss has not improved for `lr_plateau_patience` validations."""
    return max(now.floor, 0.5**now.reductions)


class Schedule:
    """The learning rate as a share of `lr` at every optimizer step, warm-up included. LambdaLR calls it.

    The last of n steps, number n - 1, has progress 1, so schedules that fall to `min_lr` train one step at it. With
    `max_seconds` the number of steps is unknown, and progress is the share of the training time.
    """

    def __init__(self, params: TrainParams, length: RunLength | int) -> None:
        self.params = params
        self.length = RunLength(length) if isinstance(length, int) else length
        self.warmed_up = 0, 0.0  # with max_seconds: steps and share of the time that the warm-up took
        self.best, self.waited, self.reductions = math.inf, 0, 0

    def __call__(self, step: int) -> float:
        if self.length.n_steps is None:
            return self.by_time(step, self.length.share_after(step))
        warmup = self.params.warmup_steps
        if isinstance(warmup, float):
            warmup = round(warmup * self.length.n_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.at(step - warmup, (step - warmup) / max(1, self.length.n_steps - 1 - warmup))

    def by_time(self, step: int, share: float) -> float:
        """Return the same when this share of the training time has passed."""
        warmup = self.params.warmup_steps
        if step < warmup if isinstance(warmup, int) else share < warmup:
            self.warmed_up = step + 1, share
            return (step + 1) / (warmup + 1) if isinstance(warmup, int) else share / warmup
        steps, began = self.warmed_up
        return self.at(step - steps, (share - began) / max(1 - began, MIN_SHARE))

    def at(self, step: int, progress: float) -> float:
        """Return the value of the schedule `step` steps after the warm-up."""
        moment = Moment(step, min(1.0, progress), self.reductions, self.params)
        return schedules[self.params.lr_schedule](moment)

    def add_val_loss(self, val_loss: float) -> None:
        """Take a validation loss into account, as "plateau" does."""
        if val_loss < self.best:
            self.best, self.waited = val_loss, 0
            return
        self.waited += 1
        if self.waited >= self.params.lr_plateau_patience:
            self.reductions, self.waited = self.reductions + 1, 0

    def state_dict(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("params", "length")}

    def load_state_dict(self, state: dict[str, object]) -> None:
        vars(self).update(state)
