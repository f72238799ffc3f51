"""Perplexities of an LM over many samples, each token counted once.

Shape suffixes:  B batch  T position  V vocabulary
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOT_SCORED = -100  # a target that no loss counts; torch's own default for ignore_index
NO_LOSS = -1.0  # stands where nothing is scored: no cross entropy is negative, though it may be NaN
ROWS = 16  # that go through the model at once when they come as a list


class Perplexities(NamedTuple):
    mean: float  # exp of the mean cross entropy over all scored tokens
    max: float  # of a single token
    min: float
    total_tokens: int
    per_token_res: Tensor | list  # [samples, longest sample - 1], or [] if not asked for


def summary(rows: list[Tensor], per_token: bool, before_exp: bool, dummy_res: float) -> Perplexities:
    """Of one 1-D tensor of `token_losses` for each sample."""
    losses = torch.cat(rows) if rows else torch.empty(0)
    losses = losses[losses != NO_LOSS].double()
    if not len(losses):
        raise ValueError(
            "perplexities of samples in which no token is scored: give longer samples, or more of them"
        )
    shown = torch.clone if before_exp else torch.exp
    mean, high, low = (shown(x).item() for x in (losses.mean(), losses.max(), losses.min()))
    table: Tensor | list = []
    if per_token:
        table = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_LOSS)
        table = torch.where(table == NO_LOSS, dummy_res, shown(table))
    return Perplexities(mean, high, low, len(losses), table)


def token_losses(y_BT: Tensor, z_BTV: Tensor) -> Tensor:
    """Cross entropy at every position, [B, T], NO_LOSS where nothing is scored."""
    losses_BT = F.cross_entropy(
        z_BTV.transpose(1, 2).float(), y_BT, ignore_index=NOT_SCORED, reduction="none"
    )
    return losses_BT.masked_fill(y_BT == NOT_SCORED, NO_LOSS)


def in_batches(samples: Sequence[Sequence[int]], pad: int) -> Iterator[dict]:
    """Batches like those of a DataLoader, every token but the first of a sample scored."""
    for start in range(0, len(samples), ROWS):
        rows = samples[start : start + ROWS]
        lengths = torch.tensor([len(row) for row in rows])
        ids_BT = padded(rows, pad)
        mask_BT = torch.arange(ids_BT.shape[1]) < lengths[:, None]
        yield {"x_indices": ids_BT, "target_mask": mask_BT}


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """[B, T] int64, rows filled up on the right: no real token ever sees the padding."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad)
