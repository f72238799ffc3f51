"""Token embeddings, and positions of every kind.

Shape suffixes:  B batch  T position  D model dim  H head  K dim of a head  A half of K (an angle each)
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.init import embedding, readout_std
from model.model_params import ModelParams


class Embedding(nn.Module):
    """Ids to the first state of the residual stream."""

    def __init__(self, model_params: ModelParams, n_tokens: int, dropout: float) -> None:
        super().__init__()
        self.tokens = embedding(n_tokens, model_params)
        self.positions = position_kinds[model_params.positions].on_embeddings(model_params)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.positions(self.tokens(ids_BT))
        return self.dropout(x_BTD)


class Learned(nn.Module):
    """Adds a trained vector for each position."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        self.table = embedding(model_params.max_seq_len, model_params)

    def forward(self, x_BTD: Tensor) -> Tensor:
        T = x_BTD.shape[1]
        return x_BTD + self.table.weight[:T]


class Sinusoidal(nn.Module):
    """Adds fixed waves of wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017, section 3.5)."""

    table_TD: Tensor

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        angles = angles_of(model_params.max_seq_len, model_params.dim, base=10_000.0)
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, : model_params.dim]
        # As large as the initial token embeddings, which the paper achieves by a factor of sqrt(dim) on those.
        waves = waves * math.sqrt(2) * readout_std(model_params)
        self.register_buffer("table_TD", waves.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        T = x_BTD.shape[1]
        return x_BTD + self.table_TD[:T]


class Rotary(nn.Module):
    """Turns queries and keys by angles that grow with their position (Su et al. 2021), in halves as Llama does."""

    cos_TA: Tensor
    sin_TA: Tensor

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        head_dim = model_params.dim // model_params.n_heads
        angles = angles_of(model_params.max_seq_len, head_dim, model_params.rotary_base)
        self.register_buffer("cos_TA", angles.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sin_TA", angles.sin().to(torch.get_default_dtype()), persistent=False)

    def forward(self, x_BHTK: Tensor) -> Tensor:
        T = x_BHTK.shape[2]
        cos_TA, sin_TA = self.cos_TA[:T], self.sin_TA[:T]
        a_BHTA, b_BHTA = x_BHTK.chunk(2, dim=-1)
        return torch.cat([a_BHTA * cos_TA - b_BHTA * sin_TA, b_BHTA * cos_TA + a_BHTA * sin_TA], dim=-1)


def angles_of(n_positions: int, dim: int, base: float) -> Tensor:
    """[n_positions, dim / 2 rounded up]: position * base^(-2i / dim), in float64."""
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies


class PositionKind(NamedTuple):
    """Where a kind of positions acts; a module made from the ModelParams for each place."""

    on_embeddings: type[nn.Module] = nn.Identity  # x_BTD -> x_BTD, once, before the first layer
    on_heads: type[nn.Module] = nn.Identity  # x_BHTK -> x_BHTK, on queries and on keys in every layer


position_kinds = {
    "none": PositionKind(),
    "learned": PositionKind(on_embeddings=Learned),
    "sin": PositionKind(on_embeddings=Sinusoidal),
    "rotary": PositionKind(on_heads=Rotary),
}
