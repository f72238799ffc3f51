"""Rows of tokens and how they become a batch.   Shape suffixes:  B row  T position

A Batch is a dict of tensors. x_indices [B, T+1]: whole rows, bos ... eos. mask: True at real tokens. target_mask: True
where the token is scored when it is predicted, so never at position 0. The batch holds no counts: whoever needs the number
of rows or tokens takes it from these tensors, so a batch can be cropped anywhere on its way.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(dict[str, Tensor]):
    """A dict of tensors whose first dimension is the row and whose second, where there is one, is the position."""

    def cut(self, n: int) -> "Batch":
        """Return the first `n` predicted tokens of every row, and what stands before them, for a curriculum of lengths.

        That is the first n + 1 of the T + 1 positions, so that the model is shown n tokens; rows that are not longer
        stay as they are. Every tensor with T + 1 positions is cut, also one that a user added. The tensors are views of
        this batch, on its device. Raise ValueError if `n` is less than 1.
        """
        if n < 1:
            raise ValueError(f"Batch.cut: n={n} must be at least 1")
        width = self["x_indices"].shape[1]
        return Batch({name: t[:, : n + 1] if t.shape[1:2] == (width,) else t for name, t in self.items()})


class Row(NamedTuple):
    """The token ids of one row, and which of them are scored."""

    ids: Sequence[int]
    scored: Sequence[bool]


class Block(NamedTuple):
    """Several rows as arrays, padded already."""

    x_BT: np.ndarray
    mask_BT: np.ndarray
    target_mask_BT: np.ndarray


def mycollate(samples: Block | Sequence[Row] | Sequence[Sequence[int]], pad: int = 0) -> Batch:
    """A batch of lists of token ids (every token but the first scored), or of what the datasets of this package hand out."""
    block = samples if isinstance(samples, Block) else padded([as_row(sample) for sample in samples], pad)
    return Batch(
        x_indices=torch.from_numpy(block.x_BT),
        mask=torch.from_numpy(block.mask_BT),
        target_mask=torch.from_numpy(block.target_mask_BT),
    )


def as_row(sample: Row | Sequence[int]) -> Row:
    return sample if isinstance(sample, Row) else Row(sample, [True] * len(sample))


def padded(rows: list[Row], pad: int) -> Block:
    """Rows of any lengths in arrays as wide as the longest."""
    shape = len(rows), max((len(row.ids) for row in rows), default=0)
    block = Block(np.full(shape, pad, np.int64), np.zeros(shape, bool), np.zeros(shape, bool))
    for i, (ids, scored) in enumerate(rows):
        block.x_BT[i, : len(ids)] = ids
        block.mask_BT[i, : len(ids)] = True
        block.target_mask_BT[i, : len(ids)] = scored
    block.target_mask_BT[:, :1] = False
    return block


def n_real_tokens(batch: Batch) -> Tensor:
    """Count the real tokens that are predicted, scored or not: a scalar tensor on the device of the batch."""
    return batch["mask"][:, 1:].sum()


def parts(batch: Batch, b: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Yield the batch in pieces of `b` rows, each cut to its longest row.

    Each of `world` processes gets every `world`-th piece, and all get equally many. A process without rows of its own at
    the end gets a filler: a copy of another piece in which nothing is scored.
    """
    x_BT, mask_BT, target_mask_BT = batch["x_indices"], batch["mask"], batch["target_mask"]
    for first in range(0, len(x_BT), b * world):
        idle = first + rank * b >= len(x_BT)
        start = first if idle else first + rank * b
        rows = slice(start, start + b)
        width = int(mask_BT[rows].sum(dim=1).max())
        scored_BT = torch.zeros_like(target_mask_BT[rows]) if idle else target_mask_BT[rows]
        yield Batch(
            x_indices=x_BT[rows, :width],
            mask=mask_BT[rows, :width],
            target_mask=scored_BT[:, :width],
        )
