"""DeltaNet and Gated DeltaNet: a state that replaces what it holds for a key, where attention would append.

    S_t = decay_t (1 - beta_t k_t k_t') S_(t-1) + beta_t k_t v_t'
    y_t = q_t S_t

Shape suffixes:  B batch  T position  D model dim  H head  K dim of a head's queries and keys  M of its values
"""

from torch import Tensor
from torch.nn import functional as F

from model.context import Context, layer_kind
from model.model_params import ModelParams
from model.transformer.convolution import CausalConv
from model.transformer.decay import SelectiveDecay, StateLayer, StateMixer
from model.transformer.linear import NarrowMap, linear
from model.transformer.linear_attention import mix
from model.transformer.mixers import split_heads
from model.transformer.norms import make_norm

EPS = 1e-6  # added to the square of a length, by which a vector is divided


class DeltaNet(StateMixer):
    """Queries and keys of length 1 after a short convolution; a step beta from 0 to 1, or to 2; no decay.

    The step multiplies the state by a matrix whose eigenvalues are 1 and 1 - beta, which lies in (0, 1) or, with
    `negative_eigenvalues`, in (-1, 1).
    Sources: Yang et al. 2024, arXiv:2406.06484; Grazzi et al. 2024, arXiv:2411.12537.
    """

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__(model_params)
        p, D = model_params, model_params.dim
        self.conv = CausalConv(p, sum(self.sizes))
        self.beta = NarrowMap(self.n_heads, p)
        self.max_beta = 2.0 if p.negative_eigenvalues else 1.0
        self.norm = make_norm(p, D // self.n_heads)
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        qkv = F.silu(self.conv(self.qkv(x_BTD), ctx)).split(self.sizes, dim=-1)
        q_BHTK, k_BHTK, v_BHTM = (split_heads(x, self.n_heads) for x in qkv)
        q_BHTK, k_BHTK = ctx.tap("q", of_length_1(q_BHTK)), ctx.tap("k", of_length_1(k_BHTK))
        v_BHTM = ctx.tap("v", v_BHTM)
        beta_BHT = ctx.tap("beta", self.max_beta * self.beta(x_BTD).sigmoid().mT)
        y_BHTM = mix(q_BHTK, k_BHTK, v_BHTM, self.log_decay(x_BTD, ctx), ctx, beta_BHT)
        z_BHTM = ctx.tap("z", self.gated(self.norm(y_BHTM), x_BTD))
        return self.out(z_BHTM.transpose(1, 2).flatten(2))

    def log_decay(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD.new_zeros(1, 1, x_BTD.shape[1])

    def gated(self, y_BHTM: Tensor, x_BTD: Tensor) -> Tensor:
        return y_BHTM

    def state_size(self, T: int) -> int:
        keys, _, D = self.sizes
        return keys * D // self.n_heads + self.conv.state_size(T)


class GatedDeltaNet(DeltaNet):
    """DeltaNet with a decay for each head that depends on the input, as in Mamba-2, and a gate of the output.

    Source: Yang et al. 2024, arXiv:2412.06464.
    """

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__(model_params, dropout)
        p, D = model_params, model_params.dim
        self.decay = SelectiveDecay(p)
        self.gate = linear(D, D, p, p.bias_qkv)

    def log_decay(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return ctx.tap("log_decay", self.decay(x_BTD)[1])

    def gated(self, y_BHTM: Tensor, x_BTD: Tensor) -> Tensor:
        return y_BHTM * F.silu(split_heads(self.gate(x_BTD), self.n_heads))


def of_length_1(x_BHTK: Tensor) -> Tensor:
    return x_BHTK * (x_BHTK.square().sum(dim=-1, keepdim=True) + EPS).rsqrt()


@layer_kind("deltanet")
class DeltaNetLayer(StateLayer):
    """Our layer with DeltaNet in place of attention: each step erases what the state holds for its key."""

    make_mixer = DeltaNet


@layer_kind("gated-delta")
class GatedDeltaLayer(StateLayer):
    """Our layer with Gated DeltaNet in place of attention: the delta rule, a decay and a gate (arXiv:2412.06464)."""

    make_mixer = GatedDeltaNet
