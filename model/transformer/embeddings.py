"""Token embeddings, and positions of every kind.

Shape suffixes:  B batch  T position  D model dim  H head  K dim of a head  S position attended to
                 A angle: half the rotated numbers of a head  N range of distances
"""

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.model_params import ModelParams
from model.transformer.attention_parts import Softcap
from model.transformer.linear import embedding, embedding_std
from model.transformer.norms import make_norm
from model.transformer.rotary_scaling import scaled_frequencies

T5_BUCKETS = 32  # ranges of distances in T5
T5_MAX_DISTANCE = 128  # all distances from here on are one range
POSITION_TABLE = "embed.positions.table.weight"  # parameter of an LM with learned positions


class Embedding(nn.Module):
    """Token and position embeddings, from ids to the initial residual stream."""

    def __init__(self, model_params: ModelParams, n_tokens: int, dropout: float) -> None:
        super().__init__()
        self.tokens = embedding(n_tokens, model_params)
        # Positions that act on the embeddings do not take turns.
        self.positions = position_kinds[model_params.at(0).positions].on_embeddings(model_params)
        self.mult = model_params.mup_input_mult  # muP
        self.norm = make_norm(model_params) if model_params.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids_BT: Tensor, start: int = 0, padding_B: Tensor | None = None) -> Tensor:
        """Return the residual stream [B, T, D]. The first id is at position `start`; rows begin with `padding_B` padding."""
        padding = () if padding_B is None else (padding_B,)
        x_BTD = self.positions(self.tokens(ids_BT), start, *padding)
        x_BTD = x_BTD if self.mult == 1 else x_BTD * self.mult  # muP
        return self.dropout(self.norm(x_BTD))


class NoPositions(nn.Module):
    """Return the input unchanged."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()

    def forward(self, x: Tensor, start: int = 0, padding_B: Tensor | None = None) -> Tensor:
        return x


def at_positions(table_TD: Tensor, T: int, start: int, padding_B: Tensor | None) -> Tensor:
    """Return the rows of `table_TD` for T positions from `start`: [T, D], or [B, T, D] if rows begin with padding."""
    if padding_B is None:
        return table_TD[start : start + T]
    positions_BT = torch.arange(start, start + T, device=padding_B.device) - padding_B[:, None]
    return table_TD[positions_BT.clamp(min=0)]


class Learned(nn.Module):
    """Adds a trained vector for each position."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        self.table = embedding(model_params.max_seq_len, model_params)

    def forward(self, x_BTD: Tensor, start: int = 0, padding_B: Tensor | None = None) -> Tensor:
        return x_BTD + at_positions(self.table.weight, x_BTD.shape[1], start, padding_B)


class Sinusoidal(nn.Module):
    """Adds fixed waves of wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017, section 3.5)."""

    table_TD: Tensor

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        angles = angles_of(model_params.max_seq_len, model_params.dim, base=10_000.0)
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, : model_params.dim]
        # As large as the initial token embeddings, which the paper achieves by a factor of sqrt(dim) on those.
        waves = waves * math.sqrt(2) * embedding_std(model_params)
        self.register_buffer("table_TD", waves.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x_BTD: Tensor, start: int = 0, padding_B: Tensor | None = None) -> Tensor:
        return x_BTD + at_positions(self.table_TD, x_BTD.shape[1], start, padding_B)


class Rotary(nn.Module):
    """Turns queries and keys by angles that grow with their position (Su et al. 2021), in halves as Llama does."""

    cos_TA: Tensor
    sin_TA: Tensor

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        p, dtype = model_params, torch.get_default_dtype()
        frequencies_A = frequencies_of(p.n_rotated, p.rotary_base)
        frequencies_A, size = scaled_frequencies(frequencies_A, p.rotary_base, p.rotary_scaling)
        angles = torch.arange(p.max_seq_len, dtype=torch.float64)[:, None] * frequencies_A
        self.register_buffer("cos_TA", (angles.cos() * size).to(dtype), persistent=False)
        self.register_buffer("sin_TA", (angles.sin() * size).to(dtype), persistent=False)

    def forward(self, x_BHTK: Tensor, start: int = 0) -> Tensor:
        T, A = x_BHTK.shape[2], self.cos_TA.shape[1]
        cos_TA, sin_TA = self.cos_TA[start : start + T], self.sin_TA[start : start + T]
        a_BHTA, b_BHTA, unturned = x_BHTK.split([A, A, x_BHTK.shape[3] - 2 * A], dim=-1)
        turned = a_BHTA * cos_TA - b_BHTA * sin_TA, b_BHTA * cos_TA + a_BHTA * sin_TA
        return torch.cat([*turned, unturned], dim=-1)


class Alibi(nn.Module):
    """Linear biases: subtract a multiple of the distance from each score (Press et al. 2021).

    Every head has its own slope. Distances count on both sides.
    """

    slopes_H11: Tensor

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        slopes_H = torch.tensor(slopes_of(model_params.n_heads))
        self.register_buffer("slopes_H11", slopes_H[:, None, None], persistent=False)

    def forward(self, scores_BHTS: Tensor) -> Tensor:
        return scores_BHTS - self.slopes_H11 * distances(scores_BHTS)


def slopes_of(n_heads: int) -> list[float]:
    """Return the slope of each head: 2^(-8/H), 2^(-16/H) ... 2^-8 if H is a power of two.

    For other H, take the slopes of the power of two below, then every other slope of the power of two above.
    """
    below = 1 << (n_heads.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    return slopes + [2 ** (-4 * (2 * i + 1) / below) for i in range(n_heads - below)]


class HardAlibi(nn.Module):
    """Head h = 1, 2 ... of the first half sees h positions back, the other half sees all (Jelassi et al. 2024)."""

    limits_H11: Tensor

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        limits_H = torch.full((model_params.n_heads,), math.inf)
        n_limited = model_params.n_heads // 2
        limits_H[:n_limited] = 1 + torch.arange(n_limited)
        self.register_buffer("limits_H11", limits_H[:, None, None], persistent=False)

    def forward(self, scores_BHTS: Tensor) -> Tensor:
        return scores_BHTS.masked_fill(distances(scores_BHTS) > self.limits_H11, -math.inf)


class T5Bias(nn.Module):
    """Adds a trained number to each score, for each head and range of distances, at first 0 (Raffel et al. 2020).

    With causal=False both sides have ranges of their own. Every layer has its own numbers, where T5 has one set.
    """

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        self.causal = model_params.causal
        self.bias_NH = nn.Parameter(torch.zeros(T5_BUCKETS, model_params.n_heads))

    def forward(self, scores_BHTS: Tensor) -> Tensor:
        ranges_TS = t5_ranges(offsets(scores_BHTS), self.causal)
        return scores_BHTS + self.bias_NH[ranges_TS].permute(2, 0, 1)


def t5_ranges(offsets_TS: Tensor, causal: bool) -> Tensor:
    """Return the number of the range of each offset (key less query): short distances alone, longer ones by logarithm."""
    n = T5_BUCKETS if causal else T5_BUCKETS // 2
    distances_TS = (-offsets_TS).clamp(min=0) if causal else offsets_TS.abs()
    n_alone = n // 2
    logs_TS = torch.log(distances_TS.clamp(min=1) / n_alone) / math.log(T5_MAX_DISTANCE / n_alone)
    long_TS = (n_alone + (logs_TS * (n - n_alone)).long()).clamp(max=n - 1)
    ranges_TS = torch.where(distances_TS < n_alone, distances_TS, long_TS)
    return ranges_TS if causal else ranges_TS + n * (offsets_TS > 0)


class Window(nn.Module):
    """Sliding window: mask keys that are `sliding_window` or more positions away."""

    def __init__(self, sliding_window: int) -> None:
        super().__init__()
        self.width = sliding_window

    def forward(self, scores_BHTS: Tensor) -> Tensor:
        return scores_BHTS.masked_fill(distances(scores_BHTS) >= self.width, -math.inf)


def distances(scores_BHTS: Tensor) -> Tensor:
    """Return the distance in positions of each key from each query, [T, S]."""
    return offsets(scores_BHTS).abs()


def offsets(scores_BHTS: Tensor) -> Tensor:
    """Return the position of each key less that of each query, [T, S]. The last query and key share a position."""
    T, S = scores_BHTS.shape[-2:]
    positions_S = torch.arange(S, device=scores_BHTS.device)
    return positions_S - positions_S[S - T :, None]


def angles_of(n_positions: int, dim: int, base: float) -> Tensor:
    """Return position * base^(-2i / dim) in float64, [n_positions, dim / 2 rounded up]."""
    return torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies_of(dim, base)


def frequencies_of(dim: int, base: float) -> Tensor:
    """Return base^(-2i / dim) in float64, dim / 2 numbers rounded up."""
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


class PositionKind(NamedTuple):
    """Modules that implement one kind of positions, each made from the ModelParams."""

    # (x_BTD, start, padding_B) -> x_BTD, once, before the first layer
    on_embeddings: type[nn.Module] = NoPositions
    # (x_BHTK, start) -> x_BHTK, queries and keys of every layer; relative, so padding does not matter
    on_heads: type[nn.Module] = NoPositions
    on_scores: type[nn.Module] | None = None  # scores_BHTS -> scores_BHTS, before the softmax

    @property
    def acts_in_attention(self) -> bool:
        return self.on_heads is not NoPositions or self.on_scores is not None


position_kinds = {
    "none": PositionKind(),
    "learned": PositionKind(on_embeddings=Learned),
    "sin": PositionKind(on_embeddings=Sinusoidal),
    "rotary": PositionKind(on_heads=Rotary),
    "alibi": PositionKind(on_scores=Alibi),
    "hard-alibi": PositionKind(on_scores=HardAlibi),
    "t5": PositionKind(on_scores=T5Bias),
}


def acts_in_attention(positions: str) -> bool:
    """Return True for a kind of positions that changes queries and keys, or attention scores."""
    return position_kinds[positions].acts_in_attention


def on_scores(model_params: ModelParams) -> nn.Sequential:
    """Return the steps that a cap, positions and the sliding window apply to attention scores; often none."""
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    if model_params.attn_softcap is not None:
        steps["softcap"] = Softcap(model_params.attn_softcap)
    if (positions := position_kinds[model_params.positions].on_scores) is not None:
        steps["positions"] = positions(model_params)
    if model_params.sliding_window is not None:
        steps["window"] = Window(model_params.sliding_window)
    return nn.Sequential(steps)
