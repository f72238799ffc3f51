"""Perplexities of an LM over many samples, each token counted once.

Shape suffixes:  B batch  T position  V vocabulary
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.inputs import Tokenizer, too_long

NOT_SCORED = -100  # a target that no loss counts; torch's own default for ignore_index
NO_LOSS = -1.0  # the loss of tokens that are not scored: no cross entropy is negative, though it may be NaN
ROWS_PER_PASS = 16  # rows in a forward pass, for samples in a list


class Perplexities(NamedTuple):
    """The result of `LM.perplexities`."""

    mean: float  # exp of the mean cross entropy over all scored tokens
    max: float  # of a single token
    min: float
    total_tokens: int
    per_token_res: Tensor | list  # [samples, longest sample - 1], or [] if not asked for


class TokenLosses(NamedTuple):
    """Cross entropy in nats of every token of a row but the first, [B, T - 1]."""

    y: Tensor  # the tokens
    losses: Tensor  # NO_LOSS where no token is scored


def summarize(rows: list[Tensor], per_token: bool, before_exp: bool, dummy_res: float) -> Perplexities:
    """Summarize the `token_losses` of samples, one 1-D tensor for each. Raise ValueError if no token is scored."""
    losses = torch.cat(rows) if rows else torch.empty(0)
    losses = losses[losses != NO_LOSS].double()
    if not len(losses):
        raise ValueError(
            "no token is scored in these samples, so there are no perplexities: give longer samples, or more of them"
        )
    shown = torch.clone if before_exp else torch.exp
    mean, high, low = (shown(x).item() for x in (losses.mean(), losses.max(), losses.min()))
    table: Tensor | list = []
    if per_token:
        table = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_LOSS)
        table = torch.where(table == NO_LOSS, dummy_res, shown(table))
    return Perplexities(mean, high, low, len(losses), table)


def token_losses(y_BT: Tensor, z_BTV: Tensor) -> Tensor:
    """Return the cross entropy at every position in nats, [B, T], NO_LOSS where no token is scored."""
    losses_BT = F.cross_entropy(
        z_BTV.transpose(1, 2).float(), y_BT, ignore_index=NOT_SCORED, reduction="none"
    )
    return losses_BT.masked_fill(y_BT == NOT_SCORED, NO_LOSS)


def in_batches(
    samples: Sequence[str] | Sequence[Sequence[int]], tokenizer: Tokenizer, longest: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yield strings, or lists of ids, in batches like those of a DataLoader. All tokens but the first are scored.

    `longest` is the maximum length for a masked model; strings then end with eos, which is not scored.
    Raise ValueError for a longer sample.
    """
    for start in range(0, len(samples), ROWS_PER_PASS):
        some = samples[start : start + ROWS_PER_PASS]
        rows = [tokenizer(sample) if isinstance(sample, str) else sample for sample in some]
        n_scored = torch.tensor([len(row) for row in rows])
        if longest is not None:
            end = [] if tokenizer.eos is None else [tokenizer.eos]
            ends = [end if isinstance(sample, str) else [] for sample in some]
            rows = [[*row, *end] for row, end in zip(rows, ends, strict=True)]
            if (n := max(map(len, rows))) > longest:
                raise too_long(n, longest)
        lengths = torch.tensor([len(row) for row in rows])
        ids_BT = pad_ids(rows, tokenizer.pad)
        at_T = torch.arange(ids_BT.shape[1])
        yield {"x_indices": ids_BT, "mask": at_T < lengths[:, None], "target_mask": at_T < n_scored[:, None]}


def pad_ids(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return int64 ids [B, T], padded on the right, where no causal model attends to the padding."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad)
