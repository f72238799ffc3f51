"""Rows of tokens and how they become a batch.   Shape suffixes:  B row  T position

The batch is a dict. x_indices [B, T+1]: whole rows, bos ... eos. mask: True at real tokens. target_mask: True where the
token is scored when it is predicted, so never at position 0. n_rows: how many rows. n_tokens, n_scored: how many tokens
are predicted, and scored. n_scored_step: how many are scored in the whole optimiser step, of which this batch may be a part.
Where several processes train together, n_rows and n_tokens count what all of them work on at this moment.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

Batch = dict[str, Any]


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
    n_scored = int(np.count_nonzero(block.target_mask_BT))
    return {
        "x_indices": torch.from_numpy(block.x_BT),
        "mask": torch.from_numpy(block.mask_BT),
        "target_mask": torch.from_numpy(block.target_mask_BT),
        "n_rows": len(block.x_BT),
        "n_tokens": int(np.count_nonzero(block.mask_BT[:, 1:])),
        "n_scored": n_scored,
        "n_scored_step": n_scored,
    }


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


def parts(batch: Batch, b: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The batch in pieces of `b` rows, each cut to its longest row; all know how many tokens the whole batch scores.

    Each of `world` processes has every `world`-th piece, and all have equally many: what a process lacks at the end is
    filled up by a piece of another one that counts for nothing here (n_scored 0).
    """
    x_BT, mask_BT, target_mask_BT = batch["x_indices"], batch["mask"], batch["target_mask"]
    for first in range(0, len(x_BT), b * world):
        together = slice(first, first + b * world)  # what all processes work on at this moment
        idle = first + rank * b >= len(x_BT)
        start = first if idle else first + rank * b
        rows = slice(start, start + b)
        width = int(mask_BT[rows].sum(dim=1).max())
        part = Block(*(t[rows, :width].numpy() for t in (x_BT, mask_BT, target_mask_BT)))
        counts = {
            "n_rows": len(x_BT[together]),
            "n_tokens": int(mask_BT[together, 1:].sum()),
            "n_scored_step": batch["n_scored_step"],
        }
        yield mycollate(part) | counts | ({"n_scored": 0} if idle else {})
