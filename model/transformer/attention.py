"""Causal self-attention, written as in the paper (Vaswani et al. 2017, section 3.2).

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head  K dim of a head
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.context import Context
from model.embeddings import position_kinds
from model.init import linear
from model.model_params import ModelParams


class Attention(nn.Module):
    """Each position mixes the values of itself and its past."""

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.model_params = model_params
        D = model_params.dim
        self.qkv = (
            SeparateHeads(model_params) if model_params.separate_heads else linear(D, 3 * D, model_params)
        )
        self.positions = position_kinds[model_params.positions].on_heads(model_params)
        self.dropout = nn.Dropout(dropout)
        self.out = linear(D, D, model_params, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        B, T, D = x_BTD.shape
        H = self.model_params.n_heads
        q_BHTK, k_BHSK, v_BHSK = self.qkv(x_BTD).view(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4).unbind()
        q_BHTK = self.positions(ctx.tap("q", q_BHTK))
        k_BHSK = self.positions(ctx.tap("k", k_BHSK))
        v_BHSK = ctx.tap("v", v_BHSK)
        attend = self.attend_fused if self.may_fuse(ctx) else self.attend
        z_BHTK = ctx.tap("z", attend(q_BHTK, k_BHSK, v_BHSK, ctx))
        z_BTD = z_BHTK.transpose(1, 2).flatten(2)
        return self.out(z_BTD)

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        """softmax(q k / sqrt(K)) v over the past. This is what runs unless a fused kernel is asked for."""
        T, K = q_BHTK.shape[-2:]
        scores_BHTS = (q_BHTK / math.sqrt(K)) @ k_BHSK.mT
        # The place to edit scores_BHTS, with self.model_params and ctx.attn_requests at hand.
        future_TS = scores_BHTS.new_full((T, T), -math.inf).triu(1)
        scores_BHTS = ctx.tap("scores", scores_BHTS + future_TS)
        pattern_BHTS = ctx.tap("pattern", scores_BHTS.softmax(dim=-1))
        return self.dropout(pattern_BHTS) @ v_BHSK

    def attend_fused(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        """The same by torch's kernel, which never holds scores or pattern."""
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, dropout_p=dropout, is_causal=True)

    def may_fuse(self, ctx: Context) -> bool:
        """The kernel steps aside for whoever wants to see or to direct what it hides."""
        looks_inside = ctx.wants("scores") or ctx.wants("pattern") or ctx.attn_requests is not None
        return self.model_params.attention == "fused" and not looks_inside


class SeparateHeads(nn.Module):
    """The map D -> 3 * D of queries, keys and values with a matrix of its own for each of them in each head."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        D, H = model_params.dim, model_params.n_heads
        self.q = nn.ModuleList([linear(D, D // H, model_params) for _ in range(H)])
        self.k = nn.ModuleList([linear(D, D // H, model_params) for _ in range(H)])
        self.v = nn.ModuleList([linear(D, D // H, model_params) for _ in range(H)])

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.cat([head(x_BTD) for head in (*self.q, *self.k, *self.v)], dim=-1)
