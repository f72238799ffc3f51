"""Length of a run: optimizer steps from any of the fields in LENGTHS, and the share of a run that is done."""

import math
from typing import NamedTuple

from data.batch import mycollate, n_real_tokens
from data.dataloader import LMDataModule
from model.lm import LM, n_params
from train.flops import flops_per_row
from train.optimizers import replace_beta2
from train.stopwatch import Stopwatch
from train.train_params import TrainParams

MEASURED_ROWS = 4096  # rows whose mean length is that of all rows
ROUNDING = 1e-9  # of shares: 7 / (0.7 * 10) is below 1
BY_TOKENS = ("max_tokens", "tokens_per_parameter", "max_flops")  # lengths that depend on the tokens of a row


class RunCosts(NamedTuple):
    """Costs of a run, from which its length follows."""

    tokens_per_row: float  # real tokens, in the mean
    n_params: int
    flops_per_row: int | None = None  # of training on a row of that length; None: not counted


def count_steps(train: TrainParams, n_rows: int, costs: RunCosts | None = None) -> int | None:
    """Return the number of optimizer steps of a run with `n_rows` training rows per epoch.

    Return None if only time ends the run (`max_seconds`). `costs` are needed for the lengths in BY_TOKENS. Raise
    ValueError if the operations of a row are needed and unknown.
    """
    if train.max_seconds is not None:
        return None
    if train.max_steps is not None:
        return train.max_steps
    steps_per_epoch = math.ceil(n_rows / rows_per_step(train))  # the last step may have fewer rows
    epochs, rest = divmod(rows_of_run(train, n_rows, costs), n_rows)
    return epochs * steps_per_epoch + math.ceil(rest / rows_per_step(train))


def rows_per_step(train: TrainParams) -> int:
    """Return the number of rows in a full optimizer step."""
    return train.batch_size * train.accumulate_grad_batches * train.devices


def rows_of_run(train: TrainParams, n_rows: int, costs: RunCosts | None) -> int:
    """Return the number of rows after which a run reaches its length."""
    if train.early_stop_nsamples is not None:
        return train.early_stop_nsamples
    if not any(name in train.lengths for name in BY_TOKENS):
        return (train.epochs or 1) * n_rows
    assert costs is not None
    if train.max_flops is None:
        n_tokens = train.max_tokens or (train.tokens_per_parameter or 0) * costs.n_params
        return math.ceil(n_tokens / costs.tokens_per_row)
    if not costs.flops_per_row:
        raise ValueError(
            f"max_flops={train.max_flops} needs the operations of this model, which cannot be counted; use max_tokens"
        )
    return math.ceil(train.max_flops / costs.flops_per_row)


def costs_of(lm: LM, data: LMDataModule, train: TrainParams) -> RunCosts | None:
    """Return the costs of a run if its length depends on them. Frozen parameters of `lm` are frozen already."""
    if not any(name in train.lengths for name in BY_TOKENS):
        return None
    length = mean_row_length(data)
    flops = flops_per_row(lm, max(1, round(length)), train) if train.max_flops else None
    return RunCosts(length, n_params(lm), flops)


def mean_row_length(data: LMDataModule) -> float:
    """Return the mean number of real tokens in a training row, from rows at equal distances if there are many.

    For a mixture it is the mean over its texts, weighted by their shares.
    """
    if data.parts:
        return sum(data.shares[name] * mean_row_length(part) for name, part in data.parts.items())
    rows = data.rows("train")
    indices = range(0, len(rows), max(1, len(rows) // MEASURED_ROWS))[:MEASURED_ROWS]
    parts = [list(indices[first : first + 256]) for first in range(0, len(indices), 256)]
    return sum(int(n_real_tokens(mycollate(rows.__getitems__(part)))) for part in parts) / len(indices)


def with_beta2(train: TrainParams, data: LMDataModule) -> TrainParams:
    """Return params whose second beta follows from `beta2_half_life`, if that is set (arXiv:2507.07101).

    The squared gradient of a step then counts half after `beta2_half_life` real tokens, at any batch size.
    """
    if train.beta2_half_life is None:
        return train
    beta2 = 0.5 ** (rows_per_step(train) * mean_row_length(data) / train.beta2_half_life)
    return replace_beta2(train, beta2)


class RunLength:
    """The progress of a run, as a share of its optimizer steps or, with `max_seconds`, of its time.

    `n_steps` is None with `max_seconds`. `training_time` measures seconds of training.
    """

    def __init__(
        self, n_steps: int | None, max_seconds: float | None = None, training_time: Stopwatch | None = None
    ) -> None:
        self.n_steps = n_steps
        self.max_seconds = max_seconds
        self.training_time = training_time
        # With max_seconds, measured once after each step, so that all who ask get the same share.
        self.step, self.share, self.share_before = 0, 0.0, 0.0

    def share_after(self, step: int) -> float:
        """Return the share of the run that is done after `step` optimizer steps, from 0 to 1."""
        if self.n_steps is not None:
            return min(1.0, step / self.n_steps)
        if step > self.step:
            assert self.max_seconds is not None
            assert self.training_time is not None
            share = min(1.0, self.training_time.seconds / self.max_seconds)
            self.step, self.share, self.share_before = step, share, self.share
        return self.share

    @property
    def is_time_up(self) -> bool:
        """True if the seconds of the run are over."""
        return self.n_steps is None and self.share >= 1

    def is_due(self, every: int | float, step: int) -> bool:
        """Return True if something is due after `step` steps that recurs every so many steps or shares of the run."""
        if isinstance(every, int) or step == 0:
            return step % every == 0
        after = self.share_after(step)
        before = self.share_before if self.n_steps is None else self.share_after(step - 1)
        return math.floor(after / every + ROUNDING) > math.floor(before / every + ROUNDING)

    def state_dict(self) -> dict[str, float]:
        return {"step": self.step, "share": self.share, "share_before": self.share_before}

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)
