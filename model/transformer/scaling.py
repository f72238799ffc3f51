"""Forward factors of a model under muP and CompleteP, by its size: each factor is 1 at the size of the base.

muP: Yang et al. 2022, arXiv:2203.03466, table 8. CompleteP: Dey et al. 2025, arXiv:2505.01618, with alpha = 1.
This whole file serves muP; in other files a comment marks the lines that do.
"""

import math

from torch import Tensor, nn

from model.model_params import ModelParams


def base_dim(model_params: ModelParams) -> int:
    """Return the width at which muP equals the standard parametrization."""
    p = model_params
    return p.dim if p.parametrization == "standard" else p.mup_base_dim or p.dim


def width_mult(model_params: ModelParams) -> float:
    """Return the width divided by the base's width."""
    return model_params.dim / base_dim(model_params)


def base_layers(model_params: ModelParams) -> int:
    """Return the depth at which CompleteP equals muP."""
    p = model_params
    return p.mup_base_layers or p.depth if p.parametrization == "completep" else p.depth


def depth_mult(model_params: ModelParams) -> float:
    """Return the depth divided by the base's depth."""
    return model_params.depth / base_layers(model_params) if model_params.depth else 1.0


def head_mult(model_params: ModelParams) -> float:
    """Return the dimension of a head divided by that of a head in the base. With head_dim both have the same."""
    p = model_params
    if p.head_dim is not None:
        return 1.0
    base_heads = p.mup_base_heads if p.parametrization != "standard" else 0
    return p.head_width * (base_heads or p.n_heads) / base_dim(p)


def temperature(model_params: ModelParams) -> float:
    """Return the divisor of attention scores besides sqrt(K).

    A head of K numbers then divides by K / sqrt(K0), where K0 is its size in the base. Trained queries and keys are
    aligned: their product grows as K, not as sqrt(K).
    """
    return math.sqrt(head_mult(model_params)) / model_params.mup_attn_mult


class Readout(nn.Linear):
    """A linear map from a width to a fixed number of outputs. Its input is multiplied by `mult`."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, mult: float = 1.0) -> None:
        super().__init__(n_in, n_out, bias)
        self.mult = mult

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.mult == 1 else x * self.mult)
