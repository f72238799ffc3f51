"""Kinds of norms, and their places in a block of a layer.

Shape suffixes:  B batch  T position  H head  K dim of a head  N all heads: H * K
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.registry import Registry
from model.model_params import ModelParams
from model.transformer.linear import readout_std

# Functions of (width, model_params). The name of a function is a value of `norm`.
norms: Registry[Callable[[int, ModelParams], nn.Module]] = Registry("norm")


@norms.register
def layernorm(width: int, model_params: ModelParams) -> nn.Module:
    """Normalize to mean 0 and variance 1 (Ba et al. 2016)."""
    p = model_params
    has_bias = p.norm_gain and p.has_bias(p.bias_norm)
    return nn.LayerNorm(width, p.norm_eps, elementwise_affine=p.norm_gain, bias=has_bias)


@norms.register
def rmsnorm(width: int, model_params: ModelParams) -> nn.Module:
    """Normalize to mean square 1 (Zhang and Sennrich 2019)."""
    return nn.RMSNorm(width, model_params.norm_eps, elementwise_affine=model_params.norm_gain)


def make_norm(model_params: ModelParams, width: int | None = None) -> nn.Module:
    return norms[model_params.norm](width or model_params.dim, model_params)


class NormOfAllHeads(nn.Module):
    """Normalize the queries or the keys of all heads of a token together, as OLMo 2 does (arXiv:2501.00656)."""

    def __init__(self, model_params: ModelParams, n_heads: int) -> None:
        super().__init__()
        self.norm = make_norm(model_params, n_heads * model_params.head_width)

    def forward(self, x_BHTK: Tensor) -> Tensor:
        x_BTN = self.norm(x_BHTK.transpose(1, 2).flatten(2))
        return x_BTN.unflatten(2, (x_BHTK.shape[1], -1)).transpose(1, 2)


def head_norm(model_params: ModelParams, n_heads: int) -> nn.Module:
    """Return the norm of queries or keys [B, H, T, K]."""
    p = model_params
    if p.qk_norm == "all-heads":
        return NormOfAllHeads(p, n_heads)
    return make_norm(p, p.head_width) if p.qk_norm else nn.Identity()


class Norms(nn.Module):
    """The norms of one block f of a layer: x -> after(x + inside(f(before(x)))), most of them the identity."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()

        def norm_at(*positions: str) -> nn.Module:
            return make_norm(model_params) if model_params.norm_position in positions else nn.Identity()

        self.before = norm_at("pre", "sandwich")
        self.inside = norm_at("sandwich", "inside")
        self.after = norm_at("post")
        with torch.no_grad():
            # With a scale of 1 the block outputs would outweigh the token embeddings, which slows learning (measured).
            for parameter in self.inside.parameters():
                parameter.mul_(readout_std(model_params))


def final_norm(model_params: ModelParams) -> nn.Module:
    """Return the norm after the last layer, or Identity if layers leave the stream normalized."""
    leaves_normalized = model_params.norm_position in ("post", "none")
    return nn.Identity() if leaves_normalized else make_norm(model_params)
