"""Differential attention: the pattern of a head is the difference of two softmaxes (Ye et al. 2024, arXiv:2410.05258).

    z = (softmax(q1 k1 / sqrt(K)) - lambda softmax(q2 k2 / sqrt(K))) v        v is twice as wide as q and k
    lambda = exp(lambda_q1 lambda_k1) - exp(lambda_q2 lambda_k2) + lambda_init

Two heads form a pair: head i has q1, k1 and the first half of v, head i + H/2 has q2, k2 and the second half. Both mix
their half of v by the difference.

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head  P pair of heads  K dim of a head
                 M dim of a pair, twice K
"""

import math

import torch
from torch import Tensor, nn

from model.model_params import ModelParams
from model.transformer.norms import make_norm
from model.transformer.scaling import head_mult  # muP


def lambda_init(model_params: ModelParams) -> float:
    """Return the constant part of lambda: 0.2 in the first layer, near 0.8 in deep ones."""
    return 0.8 - 0.6 * math.exp(-0.3 * (model_params.layer_index or 0))


class PatternDifference(nn.Module):
    """Subtract lambda times the pattern of the second head of each pair from that of the first.

    `before` is called first, with the patterns and their scores: a sink, or a part that is off.
    """

    def __init__(self, model_params: ModelParams, before: nn.Module) -> None:
        super().__init__()
        p = model_params
        self.before = before
        self.lambda_init = lambda_init(p)
        self.head_mult = head_mult(p)  # muP
        self.q1_K, self.k1_K, self.q2_K, self.k2_K = (
            nn.Parameter(0.1 * torch.randn(p.head_width)) for _ in range(4)
        )

    def forward(self, pattern_BHTS: Tensor, scores_BHTS: Tensor) -> Tensor:
        first_BPTS, second_BPTS = self.before(pattern_BHTS, scores_BHTS).chunk(2, dim=1)
        difference_BPTS = first_BPTS - self.weight() * second_BPTS
        return torch.cat([difference_BPTS, difference_BPTS], dim=1)

    def weight(self) -> Tensor:
        """Return lambda, which all pairs share."""
        first = torch.exp((self.q1_K * self.k1_K).sum() / self.head_mult)  # muP: 1 in the base
        second = torch.exp((self.q2_K * self.k2_K).sum() / self.head_mult)  # muP
        return first - second + self.lambda_init


class PairNorm(nn.Module):
    """Normalize the output of each pair, and multiply it by 1 - lambda_init. `after` is called last: a gate, or nothing."""

    def __init__(self, model_params: ModelParams, after: nn.Module) -> None:
        super().__init__()
        self.norm = make_norm(model_params, 2 * model_params.head_width)
        self.size = 1 - lambda_init(model_params)
        self.after = after

    def forward(self, z_BHTK: Tensor, x_BTD: Tensor) -> Tensor:
        z_BPTM = torch.cat(z_BHTK.chunk(2, dim=1), dim=-1)
        z_BPTM = self.size * self.norm(z_BPTM)
        return self.after(torch.cat(z_BPTM.chunk(2, dim=-1), dim=1), x_BTD)
