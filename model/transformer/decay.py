"""Mixers whose state decays: gated linear attention (GLA), RetNet as its case with fixed decays, and Mamba-2.

    S_t = decay_t S_(t-1) + k_t v_t'
    y_t = q_t S_t

Shape suffixes:  B batch  T position  D model dim  H head  K dim of a head's queries and keys  M of its values
                 G K, or 1 for all channels at once
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.context import Context, layer_kind
from model.model_params import ModelParams
from model.transformer.convolution import CausalConv
from model.transformer.linear import NarrowMap, linear
from model.transformer.linear_attention import MIN_LOG_DECAY, mix
from model.transformer.mixers import CausalLayer, split_heads
from model.transformer.norms import make_norm
from model.transformer.scaling import head_mult  # muP

GLA_RANK = 16  # of the map from the stream to the decays of GLA
GLA_SLOWNESS = 16.0  # by which the logarithm of GLA's decays is divided


def key_width(model_params: ModelParams) -> int:
    """Return the width of a head's queries and keys, which is the number of rows of its state."""
    return model_params.state_dim or model_params.dim // model_params.n_heads


class StateMixer(nn.Module):
    """Base class of mixers with a state whose queries, keys and values come from one linear map."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        p, self.n_heads = model_params, model_params.n_heads
        self.sizes = [self.n_heads * key_width(p), self.n_heads * key_width(p), p.dim]
        self.qkv = linear(p.dim, self.sizes, p, p.bias_qkv)

    def query_key_value(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        q_weight, k_weight, v_weight = self.qkv.weight.split(self.sizes)
        return [q_weight], [k_weight], [v_weight]


class SelectiveDecay(nn.Module):
    """Steps dt > 0 and log decays -a dt, one to a head, that depend on the input (Mamba-2, arXiv:2405.21060)."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        H = model_params.n_heads
        self.dt = NarrowMap(H, model_params)
        # Steps from 0.001 to 0.1 and decays from 1 to 16, as in Mamba-2: heads forget at different rates.
        steps_H = torch.logspace(-3, -1, H)
        bias_H = steps_H + torch.log(-torch.expm1(-steps_H))  # the inverse of softplus
        self.dt.map.bias.data.copy_(bias_H)
        # Not torch.linspace: after transformers has loaded a model, linspace may ignore torch.device("meta").
        self.log_a_H = nn.Parameter((1 + 15 * torch.arange(H) / max(H - 1, 1)).log())

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return dt and the log decays, both [B, H, T]."""
        dt_BHT = F.softplus(self.dt(x_BTD)).mT
        return dt_BHT, -self.log_a_H.exp()[:, None] * dt_BHT


class ChannelDecays(nn.Module):
    """Log decays of GLA, one to a channel of the keys, by a map of rank 16."""

    def __init__(self, n_channels: int, model_params: ModelParams) -> None:
        super().__init__()
        self.narrow = NarrowMap(GLA_RANK, model_params)
        self.out = linear(GLA_RANK, n_channels, model_params, bias=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return (F.logsigmoid(self.out(self.narrow(x_BTD))) / GLA_SLOWNESS).clamp_min(MIN_LOG_DECAY)


class GatedLinearAttention(StateMixer):
    """Gated linear attention: every channel of the keys has a decay that depends on the input.

        decay = sigmoid(W2 W1 x)^(1/16), but at least e^-5

    With `fixed_decay`, head h = 0, 1, ... has the decay 1 - 2^(-5-h) of RetNet, without RetNet's rotations.
    Sources: Yang et al. 2023, arXiv:2312.06635; Sun et al. 2023, arXiv:2307.08621.
    """

    fixed_H: Tensor

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__(model_params)
        p, D = model_params, model_params.dim
        self.fixed = p.fixed_decay
        if self.fixed:
            fixed_H = torch.log1p(-(2.0 ** (-5 - torch.arange(self.n_heads))))
            self.register_buffer("fixed_H", fixed_H, persistent=False)
        else:
            self.decay = ChannelDecays(self.sizes[0], p)
        self.norm = make_norm(p, D // self.n_heads)
        self.gate = linear(D, D, p, p.bias_qkv)
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        qkv = self.qkv(x_BTD).split(self.sizes, dim=-1)
        q_BHTK, k_BHTK, v_BHTM, gate_BHTM = (split_heads(x, self.n_heads) for x in (*qkv, self.gate(x_BTD)))
        q_BHTK = ctx.tap("q", q_BHTK / math.sqrt(q_BHTK.shape[-1]))
        k_BHTK, v_BHTM = ctx.tap("k", k_BHTK), ctx.tap("v", v_BHTM)
        y_BHTM = mix(q_BHTK, k_BHTK, v_BHTM, ctx.tap("log_decay", self.log_decay(x_BTD)), ctx)
        z_BHTM = ctx.tap("z", self.norm(y_BHTM) * F.silu(gate_BHTM))
        return self.out(z_BHTM.transpose(1, 2).flatten(2))

    def log_decay(self, x_BTD: Tensor) -> Tensor:
        """Return log decays, [B, H, T, K] or, if they are fixed, [1, H, T]."""
        if self.fixed:
            return self.fixed_H[None, :, None].expand(1, -1, x_BTD.shape[1])
        return split_heads(self.decay(x_BTD), self.n_heads)

    def state_size(self, T: int) -> int:
        keys, _, D = self.sizes
        return keys * D // self.n_heads


class Mamba2(nn.Module):
    """Mamba-2, a selective state-space model with one decay to a head (Dao and Gu 2024, arXiv:2405.21060).

        h_t = exp(-dt_t a) h_(t-1) + dt_t b_t x_t'
        y_t = c_t h_t + d x_t

    c, b and x are what queries, keys and values are elsewhere. As in the paper, all heads share c and b.
    """

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        p, D, self.n_heads = model_params, model_params.dim, model_params.n_heads
        self.sizes = [key_width(p), key_width(p), D]
        self.cbx = linear(D, self.sizes, p, p.bias_qkv)
        self.conv = CausalConv(p, sum(self.sizes))
        self.decay = SelectiveDecay(p)
        self.d_H = nn.Parameter(torch.ones(self.n_heads))
        self.head_mult = head_mult(p)  # muP
        self.gate = linear(D, D, p, p.bias_qkv)
        self.norm = make_norm(p)
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        c_BTK, b_BTK, v_BTD = F.silu(self.conv(self.cbx(x_BTD), ctx)).split(self.sizes, dim=-1)
        c_BTK = ctx.tap("q", c_BTK if self.head_mult == 1 else c_BTK / self.head_mult)  # muP
        b_BTK, v_BTD = ctx.tap("k", b_BTK), ctx.tap("v", v_BTD)
        v_BHTM = split_heads(v_BTD, self.n_heads)
        dt_BHT, log_decay_BHT = self.decay(x_BTD)
        log_decay_BHT = ctx.tap("log_decay", log_decay_BHT)
        y_BHTM = mix(c_BTK[:, None], b_BTK[:, None], v_BHTM * dt_BHT[..., None], log_decay_BHT, ctx)
        y_BHTM = y_BHTM + self.d_H[:, None, None] * v_BHTM
        y_BTD = y_BHTM.transpose(1, 2).flatten(2)
        return self.out(ctx.tap("z", self.norm(y_BTD * F.silu(self.gate(x_BTD)))))

    def state_size(self, T: int) -> int:
        return self.sizes[0] * self.sizes[2] + self.conv.state_size(T)

    def query_key_value(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the weights of c, b and x, which take the place of queries, keys and values."""
        c_weight, b_weight, x_weight = self.cbx.weight.split(self.sizes)
        return [c_weight], [b_weight], [x_weight]


class StateLayer(CausalLayer):
    """Base class of layers whose mixer keeps a matrix for each head."""

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        if model_params.state_dim is not None and model_params.parametrization != "standard":  # muP
            raise ValueError(
                f"state_dim={model_params.state_dim} does not grow with the width, for which "
                f"parametrization={model_params.parametrization!r} has no rule; use state_dim=None"
            )
        super().__init__(model_params, dropout)


@layer_kind("gla")
class GatedLinearAttentionLayer(StateLayer):
    """Our layer with gated linear attention (arXiv:2312.06635); with `fixed_decay`, RetNet's decays."""

    make_mixer = GatedLinearAttention


@layer_kind("mamba2")
class Mamba2Layer(StateLayer):
    """Our layer with a selective state-space model in place of attention (Mamba-2, arXiv:2405.21060)."""

    make_mixer = Mamba2
