"""Models as inputs of the generation checks: the solution's GPT-2, small, and a model with known probabilities."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.course import Wrong, load_module
from learn.checking.samples import floats
from learn.outline import Outline

V, T, D, H, LAYERS = 13, 24, 12, 3, 2  # tokens, positions, width, heads


@lru_cache
def solution(course: str) -> Any:
    return load_module(Outline(course).solution)


def small_gpt2(spread: float = 0.4, seed: int = 250) -> Any:
    """Return a GPT-2 in float64. Its weights are so large that its predictions depend on all its input."""
    return moved(solution("gpt2").GPT2(V, T, D, LAYERS, H), spread, seed)


def small_attention() -> Any:
    return moved(solution("gpt2").CausalAttention(D, H), 0.5)


def moved(module: nn.Module, spread: float, seed: int = 0) -> nn.Module:
    """Set fixed weights of which none is 0 or 1, independent of the random state, and cast to float64."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(module.named_parameters()):
            scale = parameter.dim() == 1 and name.endswith("weight")  # of a norm
            size = spread if parameter.dim() == 2 else 0.1
            parameter.copy_(float(scale) + floats(*parameter.shape, spread=size, seed=seed + i))
    return module.double().requires_grad_(False)


def as_function(gpt2: nn.Module) -> Any:
    """Return the solution's cached GPT-2 as a function of new ids and a cache."""

    def model(ids: Tensor, cache: Any = None) -> Any:
        n = ids.shape[1] + (cache[0][0].shape[2] if cache else 0)
        if n > T:
            raise Wrong(
                f"the model was given {n} tokens, and has {T} positions: does your loop not end at n_new?"
            )
        return solution("generation").cached_gpt2(gpt2, ids, cache)

    return model


class KnownModel:
    """Model whose logits depend on the last two tokens alone, so that every probability can be computed exactly.

    It has a cache of one layer, as GPT-2 has, and raises Wrong for a cache that does not fit the ids.
    """

    def __init__(self, n_tokens: int = 5, spread: float = 1.5, seed: int = 0) -> None:
        self.logits = floats(n_tokens, n_tokens, n_tokens, spread=spread, seed=seed)
        self.given = list[int]()  # how many positions at each call
        self.without_cache = 0  # calls
        self.with_gradients = False

    def __call__(
        self, ids: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
            what = f"a tensor {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise Wrong(f"the model was given {what}; it takes ids, a tensor [batch, new positions].")
        old = ids[:, :0] if cache is None else cache[0][0][:, 0, :, 0]
        if len(old) != len(ids):
            raise Wrong(f"the model was given ids of {len(ids)} rows and a cache of {len(old)}.")
        self.given.append(ids.shape[1])
        self.without_cache += cache is None
        self.with_gradients |= torch.is_grad_enabled()
        seen = torch.cat([old, ids], dim=1)
        before = torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], dim=1)  # as if a 0 came first
        kept = seen[:, None, :, None]
        return self.logits[before, seen][:, old.shape[1] :], [(kept, kept)]
