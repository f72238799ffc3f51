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
        return F.cross_entropy(z_NV, y_N, ignore_index=NOT_SCORED, reduction="sum")
    return ChunkedCrossEntropy.apply(z_NV, y_N)


class ChunkedCrossEntropy(torch.autograd.Function):
    """`cross_entropy_sum` that saves only the logits and one number per row, and recomputes probabilities in backward."""

    @staticmethod
    def forward(ctx: Any, z_NV: Tensor, y_N: Tensor) -> Tensor:
        dtype = torch.promote_types(z_NV.dtype, torch.float32)
        log_total_N = torch.cat([z_CV.to(dtype).logsumexp(dim=1) for z_CV in z_NV.split(rows_of_chunk(z_NV))])
        is_scored_N = y_N != NOT_SCORED
        target_N = y_N.masked_fill(~is_scored_N, 0)
        ctx.save_for_backward(z_NV, target_N, is_scored_N, log_total_N)
        z_of_target_N = z_NV.gather(1, target_N[:, None])[:, 0].to(dtype)
        return (log_total_N - z_of_target_N).masked_fill(~is_scored_N, 0).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return grad * (softmax - one-hot), and 0 in rows without a target."""
        z_NV, target_N, is_scored_N, log_total_N = ctx.saved_tensors
        weight_N1 = (grad * is_scored_N)[:, None]
        if torch.is_grad_enabled():  # create_graph=True: this gradient will be differentiated itself
            p_NV = z_NV.to(log_total_N.dtype).softmax(dim=1) * weight_N1
            return p_NV.scatter_add(1, target_N[:, None], -weight_N1).to(z_NV.dtype), None
        n, dz_NV = rows_of_chunk(z_NV), torch.empty_like(z_NV)
        columns = (
            part.split(n) for part in (z_NV, dz_NV, target_N[:, None], weight_N1, log_total_N[:, None])
        )
        for z_CV, dz_CV, target_C1, weight_C1, log_total_C1 in zip(*columns, strict=True):
            p_CV = (z_CV - log_total_C1).exp_().mul_(weight_C1)
            dz_CV.copy_(p_CV.scatter_add_(1, target_C1, -weight_C1))
        return dz_NV, None


def rows_of_chunk(z_NV: Tensor) -> int:
    return max(1, LOGITS_AT_ONCE // z_NV.shape[1])
