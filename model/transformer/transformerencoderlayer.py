"""Transformer layer: attention, then a feed-forward block, each added to the residual stream.

Shape suffixes:  B batch  T position  D model dim  F feed-forward width
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.registry import Registry
from model.context import Context, Layer, layer_kind
from model.model_params import ModelParams
from model.transformer.attention import Attention
from model.transformer.convolution import canon, sizes_of_canons
from model.transformer.experts import Experts
from model.transformer.gated import Activation, factor_of_gate, limited
from model.transformer.gelu import gelu_tanh
from model.transformer.linear import linear
from model.transformer.norms import Norms
from model.transformer.residual import make_residual
from model.transformer.share import down_map


def relu_squared(x: Tensor) -> Tensor:
    """Return relu(x) squared (So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), an approximation of gelu (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return x * torch.sigmoid(1.702 * x)


activations: Registry[Activation] = Registry("activation")
activations.update(
    {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": gelu_tanh,  # GPT-2's
        "silu": F.silu,
        "relu2": relu_squared,
        "quick_gelu": quick_gelu,
    }
)


@layer_kind("custom-transformer")
class TransformerEncoderLayer(Layer):
    """Editable transformer layer, equal to torch.nn.TransformerEncoderLayer under a causal mask."""

    make_mixer: Callable[[ModelParams, float], nn.Module] = Attention  # the part that mixes positions

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.model_params = p = model_params
        self.norm1 = Norms(p)
        self.canon_a = canon("a", p, p.dim)
        self.mixer = self.make_mixer(p, dropout)
        self.dropout_sa = nn.Dropout(dropout)
        self.residual_sa = make_residual(p)
        if p.ff_width:
            self.norm2 = self.norm1 if p.parallel_blocks == "one-norm" else Norms(p)
            self.canon_c = canon("c", p, p.dim)
            if p.n_experts:
                self.experts = Experts(p, limited(activations[p.activation], p))
            else:
                self.linear1 = linear(p.dim, p.ff_width, p, p.bias_ff)
                self.linear_up = linear(p.dim, p.ff_width, p, p.bias_ff) if p.gated else None
                self.canon_d = canon("d", p, p.ff_width)
                self.canon_d2 = canon("d2", p, p.ff_width) if p.gated else nn.Identity()
                self.activation = limited(activations[p.activation], p)
                self.factor = factor_of_gate(p)
                self.linear2 = down_map(p, self.linear1)
            self.dropout_ff = nn.Dropout(dropout)
            self.residual_ff = make_residual(p)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        sa_BTD = self.norm1.inside(self._sa_block(self.norm1.before(x_BTD), ctx))
        sa_BTD = ctx.tap("attn_out", self.residual_sa.branch(sa_BTD))  # muP
        mid_BTD = self.norm1.after(self.residual_sa(x_BTD, sa_BTD))
        if not self.model_params.ff_width:
            return mid_BTD
        if self.model_params.parallel_blocks:
            ff_in_BTD = x_BTD
        else:
            ff_in_BTD = mid_BTD = ctx.tap("resid_mid", mid_BTD)
        ff_BTD = self.norm2.inside(self._ff_block(self.norm2.before(ff_in_BTD), ctx))
        ff_BTD = ctx.tap("mlp_out", self.residual_ff.branch(ff_BTD))  # muP
        return self.norm2.after(self.residual_ff(mid_BTD, ff_BTD))

    def _sa_block(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        x = self.mixer(self.canon_a(x_BTD, ctx), ctx)
        return self.dropout_sa(x)

    def _ff_block(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        x_BTD = self.canon_c(x_BTD, ctx)
        if self.model_params.n_experts:
            return self.dropout_ff(self.experts(x_BTD, ctx))
        x_BTF = self.activation(ctx.tap("mlp_pre", self.canon_d(self.linear1(x_BTD), ctx)))
        if self.linear_up is not None:
            x_BTF = x_BTF * self.factor(self.canon_d2(self.linear_up(x_BTD), ctx))
        x_BTF = ctx.tap("mlp_post", x_BTF)
        x = self.linear2(x_BTF)
        return self.dropout_ff(x)

    def state_size(self, T: int) -> int | None:
        own_size = getattr(self.mixer, "state_size", None)
        return None if own_size is None else own_size(T) + sizes_of_canons(self, T)
