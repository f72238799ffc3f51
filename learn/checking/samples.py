"""Random tensors as inputs of checks, the same on every machine and at every call."""

import torch
from torch import Tensor


def floats(*shape: int, spread: float = 1.0, seed: int = 0) -> Tensor:
    """Return normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64)


def integers(below: int, *shape: int, seed: int = 0) -> Tensor:
    """Return random integers from 0 to `below` - 1."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
