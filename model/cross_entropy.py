"""Cross entropy over a large vocabulary, computed a few rows at a time.

Shape suffixes:  N row: a position of a batch  V vocabulary  C row of a chunk
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.perplexity import NOT_SCORED

LOGITS_AT_ONCE = 2**20  # logits in a chunk: a few MB, which stay in the processor's cache
# Fewer logits cost little memory, and torch's own function keeps small runs bitwise what they were.
MIN_LOGITS = 2**22


def cross_entropy_sum(z_NV: Tensor, y_N: Tensor) -> Tensor:
    """Return the sum of the cross entropies of all rows whose target is not NOT_SCORED, in at least float32.

    With many logits this takes less memory than torch's function, which keeps several copies of them in float32.
    """
    if z_NV.numel() < MIN_LOGITS:
        return torch_cross_entropy_sum(z_NV, y_N)
    return ChunkedCrossEntropy.apply(z_NV, y_N)


class ChunkedCrossEntropy(torch.autograd.Function):
    """`cross_entropy_sum` that saves only the logits, and computes probabilities once more in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z_NV: Tensor, y_N: Tensor) -> Tensor:
        ctx.save_for_backward(z_NV, y_N)
        n, dtype = rows_of_chunk(z_NV), dtype_of_loss(z_NV)
        chunks = zip(z_NV.split(n), y_N.split(n), strict=True)
        sums = [torch_cross_entropy_sum(z_CV.to(dtype), y_C) for z_CV, y_C in chunks]
        return torch.stack(sums).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return grad * (softmax - one-hot), and 0 in rows without a target."""
        z_NV, y_N = ctx.saved_tensors
        dtype, is_scored_N = dtype_of_loss(z_NV), y_N != NOT_SCORED
        weight_N1, target_N1 = (grad * is_scored_N)[:, None], y_N.masked_fill(~is_scored_N, 0)[:, None]
        if torch.is_grad_enabled():  # create_graph=True: this gradient will be differentiated itself
            p_NV = z_NV.to(dtype).softmax(dim=1) * weight_N1
            return p_NV.scatter_add(1, target_N1, -weight_N1).to(z_NV.dtype), None
        n, dz_NV = rows_of_chunk(z_NV), torch.empty_like(z_NV)
        columns = (part.split(n) for part in (z_NV, dz_NV, target_N1, weight_N1))
        for z_CV, dz_CV, target_C1, weight_C1 in zip(*columns, strict=True):
            p_CV = z_CV.to(dtype).softmax(dim=1).mul_(weight_C1)
            dz_CV.copy_(p_CV.scatter_add_(1, target_C1, -weight_C1))
        return dz_NV, None


def torch_cross_entropy_sum(z_NV: Tensor, y_N: Tensor) -> Tensor:
    return F.cross_entropy(z_NV, y_N, ignore_index=NOT_SCORED, reduction="sum")


def dtype_of_loss(z_NV: Tensor) -> torch.dtype:
    return torch.promote_types(z_NV.dtype, torch.float32)


def rows_of_chunk(z_NV: Tensor) -> int:
    return max(1, LOGITS_AT_ONCE // z_NV.shape[1])
