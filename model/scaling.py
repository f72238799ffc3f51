"""How a model's forward factors follow from its size under muP and CompleteP: each is 1 at the size of the base.

muP: Yang et al. 2022, arXiv:2203.03466, table 8. CompleteP: Dey et al. 2025, arXiv:2505.01618, with alpha = 1.
All of this file is there for the sake of muP; in others its lines say so.
"""

import math

from torch import Tensor, nn

from model.model_params import ModelParams


def base_dim(model_params: ModelParams) -> int:
    """The width at which nothing differs from the standard parametrization."""
    p = model_params
    return p.dim if p.parametrization == "standard" else p.mup_base_dim or p.dim


def width_mult(model_params: ModelParams) -> float:
    """How many times as wide as the base."""
    return model_params.dim / base_dim(model_params)


def base_layers(model_params: ModelParams) -> int:
    """The depth at which nothing differs from muP."""
    p = model_params
    return p.mup_base_layers or p.depth if p.parametrization == "completep" else p.depth


def depth_mult(model_params: ModelParams) -> float:
    """How many times as deep as the base."""
    return model_params.depth / base_layers(model_params) if model_params.depth else 1.0


def head_mult(model_params: ModelParams) -> float:
    """How many times as wide as the base's a head is."""
    p = model_params
    base_heads = p.mup_base_heads if p.parametrization != "standard" else 0
    return p.head_dim * (base_heads or p.n_heads) / base_dim(p)


def temperature(model_params: ModelParams) -> float:
    """What scores are divided by besides sqrt(K), so that a head K / K0 times as wide divides by K / sqrt(K0).

    Queries and keys that have learned from each other are aligned: their product grows as K, not as sqrt(K).
    """
    return math.sqrt(head_mult(model_params)) / model_params.mup_attn_mult


class Readout(nn.Linear):
    """A linear map from a width to outputs whose number is fixed: of `mult` times its input."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, mult: float = 1.0) -> None:
        super().__init__(n_in, n_out, bias)
        self.mult = mult

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.mult == 1 else x * self.mult)
