"""Kinds of norms, and their places in a block of a layer."""

from collections.abc import Callable

import torch
from torch import nn

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


class Norms(nn.Module):
    """The norms of one block f of a layer: x -> after(x + inside(f(before(x)))), most of them the identity."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()

        def norm_at(*positions: str) -> nn.Module:
            return make_norm(model_params) if model_params.norm_position in positions else nn.Identity()

        self.before = norm_at("pre", "sandwich")
        self.inside = norm_at("sandwich")
        self.after = norm_at("post")
        with torch.no_grad():
            # With a scale of 1 the block outputs would outweigh the token embeddings, which slows learning (measured).
            for parameter in self.inside.parameters():
                parameter.mul_(readout_std(model_params))


def final_norm(model_params: ModelParams) -> nn.Module:
    """Return the norm after the last layer, or Identity if layers leave the stream normalized."""
    return make_norm(model_params) if model_params.norm_position in ("pre", "sandwich") else nn.Identity()
