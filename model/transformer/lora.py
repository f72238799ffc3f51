"""LoRA: linear maps that train by a thin product beside their frozen matrix (Hu et al. 2021, arXiv:2106.09685)."""

import math
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=Any)  # LM, which imports this file


class LoRALinear(nn.Linear):
    """x -> W x + B A x + bias, where A and B have `rank` rows and columns. B starts at 0, and so does the change."""

    def __init__(self, n_in: int, n_out: int, bias: bool, rank: int) -> None:
        super().__init__(n_in, n_out, bias)
        self.lora_a = nn.Parameter(torch.randn(rank, n_in) / math.sqrt(n_in))
        self.lora_b = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.lora_a.T @ self.lora_b.T


class HasWeight(Protocol):
    """A linear map."""

    @property
    def weight(self) -> Tensor: ...


def merged_weight(linear: HasWeight) -> Tensor:
    """Return the matrix that `linear` multiplies its input by. With LoRA it is the sum of weight and product."""
    if isinstance(linear, LoRALinear):
        return linear.weight + linear.lora_b @ linear.lora_a
    return linear.weight


def is_lora(name: str) -> bool:
    """Return True for the name of a parameter that LoRA trains."""
    return name.rpartition(".")[2] in ("lora_a", "lora_b")


@torch.no_grad()
def merge_lora(lm: M) -> M:
    """Return an LM without LoRA and with the logits of `lm`, in eval mode: each product is added to its matrix."""
    merged = type(lm)(replace(lm.model_params, lora_rank=0), lm.tokenizer).to(lm.unembed.weight)
    weights = {name: weight for name, weight in lm.state_dict().items() if not is_lora(name)}
    for name, module in lm.named_modules():
        if isinstance(module, LoRALinear):
            weights[f"{name}.weight"] = merged_weight(module)
    merged.load_state_dict(weights)
    return merged.eval()
