"""Gated feed-forward blocks: the activation of one map of the input times a second map of it (Shazeer 2020, GLU).

With gated="clamped" the block is that of gpt-oss (OpenAI 2025): activation(min(a, 7)) * (1 + clamp(b, -7, 7)).
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from model.model_params import ModelParams

GATE_LIMIT = 7.0
Activation = Callable[[Tensor], Tensor]


def limited(activation: Activation, model_params: ModelParams) -> Activation:
    """Return the activation of a block, with a limit of its input if gated="clamped"."""
    if model_params.gated != "clamped":
        return activation
    return partial(activation_below_limit, activation)


def activation_below_limit(activation: Activation, x: Tensor) -> Tensor:
    return activation(x.clamp(max=GATE_LIMIT))


class ClampedFactor(nn.Module):
    """Limit numbers on both sides and add 1, so that a block without its second map is not gated."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 + x.clamp(-GATE_LIMIT, GATE_LIMIT)


def factor_of_gate(model_params: ModelParams) -> nn.Module:
    """Return what makes a factor of the activation from the second map."""
    return ClampedFactor() if model_params.gated == "clamped" else nn.Identity()
