"""Causal mixers in place of attention: a gated convolution, linear attention and a state-space model, in plain PyTorch.

Each is a value of `layer_architecture`; only the mixer of our layer changes. A forward pass computes all positions
at once. With a cache it carries a state, so every generated token costs the same.

Shape suffixes:  B batch  T position  S position seen  D model dim  H head  K dim of a head  L one more than K
                 C channel  W width of a convolution  P one less than W
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.context import Context, all_except, layer_kind
from model.model_params import ModelParams
from model.transformer.attention import future
from model.transformer.linear import head_readout, linear
from model.transformer.scaling import head_mult, width_mult  # muP
from model.transformer.transformerencoderlayer import TransformerEncoderLayer


class CausalConv(nn.Module):
    """Depthwise causal convolution: in each channel a weighted sum of the last `conv_width` positions."""

    def __init__(self, model_params: ModelParams, n_channels: int) -> None:
        super().__init__()
        width = model_params.conv_width
        self.weight_WC = nn.Parameter(torch.randn(width, n_channels) / math.sqrt(width))

    def forward(self, x_BTC: Tensor, ctx: Context) -> Tensor:
        B, T, C = x_BTC.shape
        past_BPC = ctx.recall("conv")
        if past_BPC is None:
            past_BPC = x_BTC.new_zeros(B, len(self.weight_WC) - 1, C)
        x_BSC = torch.cat([past_BPC, x_BTC], dim=1)
        ctx.keep("conv", x_BSC[:, T:])
        out_BTC = torch.zeros_like(x_BTC)
        # On a CPU this is faster than nn.Conv1d with a group for each channel.
        for i, w_C in enumerate(self.weight_WC):
            out_BTC = out_BTC + w_C * x_BSC[:, i : i + T]
        return out_BTC


class GatedConv(nn.Module):
    """A short convolution between two gates (as in H3, Fu et al. 2023, and LFM2): c * conv(b * x)."""

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        p, D = model_params, model_params.dim
        self.bcx = linear(D, 3 * D, p, p.bias_qkv)
        self.conv = CausalConv(p, D)
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        b_BTD, c_BTD, x_BTD = self.bcx(x_BTD).chunk(3, dim=-1)
        return self.out(ctx.tap("z", c_BTD * self.conv(b_BTD * x_BTD, ctx)))


class LinearAttention(nn.Module):
    """Linear attention: scores are products of positive features, so that sums represent the past.

    Source: Katharopoulos et al. 2020.
    """

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.n_heads = model_params.n_heads
        p, D = model_params, model_params.dim
        self.qkv = linear(D, 3 * D, p, p.bias_qkv)
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        q_BHTK, k_BHSK, v_BHSK = heads(self.qkv(x_BTD), 3, self.n_heads)
        q_BHTK = ctx.tap("q", F.elu(q_BHTK) + 1)
        k_BHSK = ctx.tap("k", F.elu(k_BHSK) + 1)
        v_BHSK = ctx.tap("v", v_BHSK)
        # A column of ones beside the values adds up the weights themselves.
        v1_BHSL = torch.cat([v_BHSK, torch.ones_like(v_BHSK[..., :1])], dim=-1)
        z1_BHTL = (q_BHTK @ k_BHSK.mT).tril() @ v1_BHSL
        past_BHKL = ctx.recall("sum")
        if past_BHKL is not None:
            z1_BHTL = z1_BHTL + q_BHTK @ past_BHKL
        if ctx.cache is not None:
            new_BHKL = k_BHSK.mT @ v1_BHSL
            ctx.keep("sum", new_BHKL if past_BHKL is None else past_BHKL + new_BHKL)
        z_BHTK = z1_BHTL[..., :-1] / z1_BHTL[..., -1:].clamp_min(1e-6)
        return self.out(ctx.tap("z", z_BHTK).transpose(1, 2).flatten(2))

    def query_key_value(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        q_weight, k_weight, v_weight = self.qkv.weight.chunk(3)
        return [q_weight], [k_weight], [v_weight]


class StateSpace(nn.Module):
    """A selective state-space model, one decay to a head (Mamba-2: Dao and Gu 2024, arXiv:2405.21060).

        h_t = exp(-dt_t a) h_(t-1) + dt_t b_t x_t
        y_t = c_t h_t + d x_t

    All t are computed at once. Position s adds to y_t:

        dt_s (c_t b_s) exp(-a (dt_(s+1) + ... + dt_t)) x_s
    """

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.n_heads = model_params.n_heads
        p, D, H = model_params, model_params.dim, model_params.n_heads
        self.cbx = linear(D, 3 * D, p, p.bias_qkv)
        self.conv = CausalConv(p, 3 * D)
        self.gate = linear(D, D, p, p.bias_qkv)
        self.dt = head_readout(p)  # muP
        # Steps from 0.001 to 0.1 and decays from 1 to 16, as in Mamba-2: heads forget at different rates.
        steps_H = torch.logspace(-3, -1, H)
        self.dt.bias.data.copy_(steps_H + torch.log(-torch.expm1(-steps_H)))  # the inverse of softplus
        # Not torch.linspace: after transformers has loaded a model, linspace may ignore torch.device("meta").
        self.log_a_H = nn.Parameter((1 + 15 * torch.arange(H) / max(H - 1, 1)).log())
        self.d_H = nn.Parameter(torch.ones(H))
        self.width_mult, self.head_mult = width_mult(p), head_mult(p)  # muP
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        T = x_BTD.shape[1]
        c_BHTK, b_BHSK, x_BHSK = heads(F.silu(self.conv(self.cbx(x_BTD), ctx)), 3, self.n_heads)
        c_BHTK = c_BHTK if self.head_mult == 1 else c_BHTK / self.head_mult  # muP
        [gate_BHTK] = heads(F.silu(self.gate(x_BTD)), 1, self.n_heads)
        dt_BHS = F.softplus(self.dt(x_BTD if self.width_mult == 1 else x_BTD / self.width_mult)).mT  # muP
        decay_BHT = -self.log_a_H.exp()[:, None] * dt_BHS
        # Summed again from each s: a difference of sums from the start would lose small terms after large ones.
        between_BHTS = decay_BHT[..., None].expand(-1, -1, -1, T).tril(-1).cumsum(dim=-2)
        left_BHTS = (between_BHTS + future(between_BHTS)).exp()
        scores_BHTS = ctx.tap("scores", (c_BHTK @ b_BHSK.mT) * left_BHTS)
        added_BHSK = x_BHSK * dt_BHS[..., None]
        z_BHTK = scores_BHTS @ added_BHSK + self.d_H[:, None, None] * x_BHSK
        past_BHKK = ctx.recall("state")
        if past_BHKK is not None:
            z_BHTK = z_BHTK + decay_BHT.cumsum(dim=-1).exp()[..., None] * (c_BHTK @ past_BHKK)
        if ctx.cache is not None:
            new_BHKK = (b_BHSK * left_BHTS[..., -1, :, None]).mT @ added_BHSK
            left_BH11 = decay_BHT.sum(dim=-1)[..., None, None].exp()
            ctx.keep("state", new_BHKK if past_BHKK is None else new_BHKK + left_BH11 * past_BHKK)
        z_BHTK = ctx.tap("z", z_BHTK * gate_BHTK)
        return self.out(z_BHTK.transpose(1, 2).flatten(2))

    def query_key_value(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the weights of c, b and x, which take the place of queries, keys and values."""
        c_weight, b_weight, x_weight = self.cbx.weight.chunk(3)
        return [c_weight], [b_weight], [x_weight]


def heads(x_BTC: Tensor, n: int, n_heads: int) -> tuple[Tensor, ...]:
    """Split the concatenated outputs of `n` maps by map and head, each [B, H, T, K]."""
    return x_BTC.unflatten(-1, (n, n_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


class CausalLayer(TransformerEncoderLayer):
    """Base class of layers whose mixer is always causal."""

    has_attention = False
    refuses = {"causal": {False}, "head_dim": all_except(None)}


@layer_kind("gated-conv")
class GatedConvLayer(CausalLayer):
    """Our layer with a short convolution between two gates in place of attention (as in H3 and LFM2)."""

    make_mixer = GatedConv


@layer_kind("linear-attention")
class LinearAttentionLayer(CausalLayer):
    """Our layer with linear attention: products of positive features in place of the softmax."""

    make_mixer = LinearAttention


@layer_kind("state-space")
class StateSpaceLayer(CausalLayer):
    """Our layer with a selective state-space model in place of attention (Mamba-2, arXiv:2405.21060)."""

    make_mixer = StateSpace
