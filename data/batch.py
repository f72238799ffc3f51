"""Rows of tokens, and collation of rows into a batch.   Shape suffixes:  B row  T position

A Batch is a dict of tensors of shape [B, T+1]. `x_indices`: token ids of the rows, bos and eos included. `mask`: True
at real tokens, False at padding. `target_mask`: True where the prediction of this token is scored, so never at
position 0. `shown`, only in batches of tasks that hide answers: the ids that the model sees in place of `x_indices`.

A batch stores no counts, so it can be cropped anywhere. Count rows and tokens from its tensors.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(dict[str, Tensor]):
    """A dict of tensors of shape [B, ...]: dimension 0 is the row; dimension 1, if any, is the position."""

    def cut(self, n: int) -> "Batch":
        """Return a batch with at most the first n + 1 positions of every row, for a curriculum of lengths.

        The model then sees `n` input tokens and predicts `n`. The method crops every tensor with T + 1 positions,
        including tensors that a user added. The results are views of this batch on the same device. Raise ValueError if
        `n` is less than 1.
        """
        if n < 1:
            raise ValueError(f"Batch.cut: n={n} must be at least 1")
        width = self["x_indices"].shape[1]
        return Batch({name: t[:, : n + 1] if t.shape[1:2] == (width,) else t for name, t in self.items()})


class Row(NamedTuple):
    """The token ids of one row, which of them are scored, and which of them the model does not see."""

    ids: Sequence[int]
    scored: Sequence[bool]
    hidden: Sequence[bool] = ()  # empty: it sees all


class Block(NamedTuple):
    """Padded rows as arrays of shape [B, T]."""

    x_BT: np.ndarray
    mask_BT: np.ndarray
    target_mask_BT: np.ndarray
    hidden_BT: np.ndarray | None = None  # None: the model sees all tokens


def mycollate(samples: Block | Sequence[Row] | Sequence[Sequence[int]], pad: int = 0) -> Batch:
    """Collate rows into a Batch, padded to the longest row with the id `pad`.

    `samples` is a Block, a list of Rows, or a list of lists of token ids. In plain lists every token except the first
    is scored.
    """
    block = samples if isinstance(samples, Block) else pad_rows([as_row(sample) for sample in samples], pad)
    batch = Batch(
        x_indices=torch.from_numpy(block.x_BT),
        mask=torch.from_numpy(block.mask_BT),
        target_mask=torch.from_numpy(block.target_mask_BT),
    )
    if block.hidden_BT is not None:
        batch["shown"] = torch.from_numpy(np.where(block.hidden_BT, pad, block.x_BT))
    return batch


def as_row(sample: Row | Sequence[int]) -> Row:
    return sample if isinstance(sample, Row) else Row(sample, [True] * len(sample))


def pad_rows(rows: list[Row], pad: int) -> Block:
    """Return rows of any length as one Block, padded to the longest row with the id `pad`."""
    shape = len(rows), max((len(row.ids) for row in rows), default=0)
    hidden_BT = np.zeros(shape, bool) if any(row.hidden for row in rows) else None
    block = Block(np.full(shape, pad, np.int64), np.zeros(shape, bool), np.zeros(shape, bool), hidden_BT)
    for i, (ids, scored, hidden) in enumerate(rows):
        block.x_BT[i, : len(ids)] = ids
        block.mask_BT[i, : len(ids)] = True
        block.target_mask_BT[i, : len(ids)] = scored
        if hidden_BT is not None:
            hidden_BT[i, : len(hidden)] = hidden
    block.target_mask_BT[:, :1] = False
    return block


def n_real_tokens(batch: Batch) -> Tensor:
    """Return the number of real tokens to predict, scored or not, as a scalar tensor on the device of the batch."""
    return batch["mask"][:, 1:].sum()


def parts(batch: Batch, b: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Yield this process's pieces of the batch: `b` rows each, cropped to their longest row.

    Process `rank` of `world` gets every `world`-th piece, and every process gets the same number. If the rows run out,
    a process gets a copy of another piece in which no token is scored.
    """
    n_rows = len(batch["x_indices"])
    for first in range(0, n_rows, b * world):
        idle = first + rank * b >= n_rows
        start = first if idle else first + rank * b
        part = Batch({name: tensor[start : start + b] for name, tensor in batch.items()})
        if idle:
            part["target_mask"] = torch.zeros_like(part["target_mask"])
        yield part.cut(max(1, int(part["mask"].sum(dim=1).max()) - 1))
