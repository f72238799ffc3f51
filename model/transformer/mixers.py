"""Causal mixers in place of attention: a gated convolution and linear attention, in plain PyTorch.

Each is a value of `layer_architecture`; only the mixer of our layer changes. A forward pass computes all positions
at once. With a cache it carries a state, so every generated token costs the same. Mixers whose state forgets are in
`delta.py` and `decay.py`.

Shape suffixes:  B batch  T position  S position seen  D model dim  H head  K dim of a head  L one more than K
                 C channel
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.context import Context, all_except, layer_kind
from model.model_params import ModelParams
from model.transformer.convolution import CausalConv
from model.transformer.linear import linear
from model.transformer.linear_attention import mix
from model.transformer.share import sharing_of
from model.transformer.transformerencoderlayer import TransformerEncoderLayer


class GatedConv(nn.Module):
    """A short convolution between two gates (as in H3, Fu et al. 2023, and LFM2): c * conv(b * x)."""

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        p, D = model_params, model_params.dim
        self.bcx = linear(D, [D, D, D], p, p.bias_qkv)
        self.conv = CausalConv(p, D)
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        b_BTD, c_BTD, x_BTD = self.bcx(x_BTD).chunk(3, dim=-1)
        return self.out(ctx.tap("z", c_BTD * self.conv(b_BTD * x_BTD, ctx)))

    def state_size(self, T: int) -> int:
        return self.conv.state_size(T)


class LinearAttention(nn.Module):
    """Linear attention: scores are products of positive features, so that sums represent the past.

    Source: Katharopoulos et al. 2020.
    """

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.n_heads = model_params.n_heads
        p, D = model_params, model_params.dim
        self.qkv = linear(D, [D, D, D], p, p.bias_qkv)
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = heads(self.qkv(x_BTD), 3, self.n_heads)
        q_BHTK = ctx.tap("q", F.elu(q_BHTK) + 1)
        k_BHTK = ctx.tap("k", F.elu(k_BHTK) + 1)
        v_BHTK = ctx.tap("v", v_BHTK)
        # A column of ones beside the values adds up the weights themselves.
        v1_BHTL = torch.cat([v_BHTK, torch.ones_like(v_BHTK[..., :1])], dim=-1)
        no_decay = x_BTD.new_zeros(1, 1, x_BTD.shape[1])
        z1_BHTL = mix(q_BHTK, k_BHTK, v1_BHTL, no_decay, ctx)
        z_BHTK = z1_BHTL[..., :-1] / z1_BHTL[..., -1:].clamp_min(1e-6)
        return self.out(ctx.tap("z", z_BHTK).transpose(1, 2).flatten(2))

    def state_size(self, T: int) -> int:
        D = self.out.in_features
        return D * (D // self.n_heads + 1)

    def query_key_value(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        q_weight, k_weight, v_weight = self.qkv.weight.chunk(3)
        return [q_weight], [k_weight], [v_weight]


def split_heads(x_BTC: Tensor, n_heads: int) -> Tensor:
    """Split the last dimension by head, [B, H, T, K]."""
    return x_BTC.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def heads(x_BTC: Tensor, n: int, n_heads: int) -> tuple[Tensor, ...]:
    """Split the concatenated outputs of `n` maps by map and head, each [B, H, T, K]."""
    return x_BTC.unflatten(-1, (n, n_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def has_place_in_attention(letters: str | None) -> bool:
    """Return True for a value of `canon` with a place on queries, keys and values, which mixers do not have."""
    return "b" in (letters or "")


def shares_heads(share: str | None) -> bool:
    """Return True for a value of `share` that names maps of attention."""
    return sharing_of(share).of_heads


class CausalLayer(TransformerEncoderLayer):
    """Base class of layers whose mixer is always causal."""

    has_attention = False
    refuses = {
        "causal": {False},
        "head_dim": all_except(None),
        "canon": has_place_in_attention,
        "share": shares_heads,
    }


@layer_kind("gated-conv")
class GatedConvLayer(CausalLayer):
    """Our layer with a short convolution between two gates in place of attention (as in H3 and LFM2)."""

    make_mixer = GatedConv


@layer_kind("linear-attention")
class LinearAttentionLayer(CausalLayer):
    """Our layer with linear attention: products of positive features in place of the softmax."""

    make_mixer = LinearAttention
