"""Activation of GPT-2: gelu in its tanh form, by a formula that is faster in compiled code.

x (1 + tanh(u)) / 2 = x sigmoid(2 u),    u = sqrt(2 / pi) (x + 0.044715 x^3)
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LINEAR, CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715  # the coefficients of 2 u


def gelu_tanh(x: Tensor) -> Tensor:
    """Return gelu in its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    # On a CPU torch compiles tanh to a slow function. As in torch's own kernel, nothing is rounded before the result.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.sigmoid(wide * (LINEAR + CUBIC * wide.square()))).to(x.dtype)
