"""Checks of attention and GPT-2 with a cache: a sequence is given in pieces, and every step is compared."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.course import Wrong
from learn.checking.explain import difference
from learn.checking.samples import floats, integers
from learn.courses.generation import references
from learn.courses.generation.models import D, V, small_attention, small_gpt2, solution
from learn.courses.gpt2 import references as gpt2_references

STREAM, SCORES = ("sample", "position", "feature"), ("sample", "position", "token")
KEPT = ("sample", "head", "position", "feature")
DETACHED = "something was detached: .detach(), .data, torch.tensor(...) or torch.no_grad()?"
TOGETHER = 5  # positions of the sequence, cut into pieces in every way
Cuts = tuple[tuple[int, ...], ...]  # sizes of the pieces
Steps = dict[str, tuple[Tensor, tuple[str, ...]]]  # from a description to the value and its dimensions' names


def all_cuts(n: int) -> Cuts:
    """Return every way of cutting n positions into pieces."""
    return ((n,), *((first, *rest) for first in range(1, n) for rest in all_cuts(n - first)))


CUTS = all_cuts(TOGETHER)


def steps_differ(mine: Steps, right: Steps) -> str | None:
    """Describe the first step that differs, or return None."""
    for name, (value, axes) in right.items():
        if says := difference(mine[name][0], value, axes):
            return f"{name}: {says}"
    return None


def attention_steps(my: Any, cuts: Cuts = CUTS, dtype: torch.dtype = torch.float64) -> Steps:
    made, x = attention_sample(dtype, False)
    return collected(my.cached_attention, made, x, cuts, lambda cache: [cache], STREAM)


def attention_sample(dtype: torch.dtype, grad: bool) -> tuple[Any, Tensor]:
    return small_attention().to(dtype), floats(2, TOGETHER, D).to(dtype).requires_grad_(grad)


def gpt2_steps(my: Any, cuts: Cuts = CUTS, dtype: torch.dtype = torch.float64) -> Steps:
    made, ids = small_gpt2().to(dtype), integers(V, 2, TOGETHER)
    return collected(my.cached_gpt2, made, ids, cuts, lambda cache: cache, SCORES)


def collected(
    function: Any, made: nn.Module, x: Tensor, cuts: Cuts, layers: Callable, axes: tuple[str, ...]
) -> Steps:
    """Call the student's function on x in pieces. Return its outputs and caches after every piece, for all cuts."""
    steps: Steps = {}
    for sizes in cuts:
        cache: Any = None
        start = 0
        for piece in x.split(list(sizes), dim=1):
            before = [] if cache is None else [tuple(y.clone() for y in pair) for pair in layers(cache)]
            with computed_once(made, piece):
                out, new = two(function(made, piece.clone(), cache))
            if cache is not None:
                unchanged(before, layers(cache))
            cache, name = new, called(start, piece.shape[1], sizes)
            steps[name] = (out, axes)
            for layer, (keys, values) in enumerate(checked(layers(cache), made)):
                steps[f"{name}, keys kept in layer {layer}"] = (keys, KEPT)
                steps[f"{name}, values kept in layer {layer}"] = (values, KEPT)
            start += piece.shape[1]
    return steps


def right_steps(
    whole: Tensor, pieces: dict[tuple[int, ...], references.Pieces], axes: tuple[str, ...], kept: bool
) -> Steps:
    """Return the reference's steps: `whole` cut into pieces, and with `kept` the caches after each piece."""
    steps: Steps = {}
    for sizes, found in pieces.items():
        start = 0
        for size, (out, layers) in zip(sizes, found, strict=True):
            name = called(start, size, sizes)
            steps[name] = (whole[:, start : start + size], axes)
            assert difference(out, steps[name][0], axes) is None, "the references agree"
            for layer, (keys, values) in enumerate(layers if kept else []):
                steps[f"{name}, keys kept in layer {layer}"] = (keys, KEPT)
                steps[f"{name}, values kept in layer {layer}"] = (values, KEPT)
            start += size
    return steps


def called(start: int, n: int, sizes: Sequence[int]) -> str:
    new = f"{n} new position{'s' * (n > 1)}"
    if not start:
        return f"{new} and no cache (cut {' + '.join(map(str, sizes))})"
    return f"{new} and a cache of {start} (cut {' + '.join(map(str, sizes))})"


def two(returned: Any) -> Any:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise Wrong(f"the result is {type(returned).__name__}; expected two values, `return out, cache`.")
    return returned


def checked(layers: Any, made: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return the cache as a list. Raise Wrong unless it has a pair of tensors for each block."""
    n_layers = len(attentions(made))
    if not isinstance(layers, list | tuple) or len(layers) != n_layers:
        what = f"a list of {len(layers)}" if isinstance(layers, list | tuple) else type(layers).__name__
        raise Wrong(
            f"the returned cache is {what}; expected a list with a pair (keys, values) for each of {n_layers} blocks."
        )
    for pair in layers:
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(isinstance(y, Tensor) for y in pair)
        ):
            raise Wrong(f"the cache holds {type(pair).__name__}; expected a pair of tensors, (keys, values).")
    return list(layers)


def unchanged(before: list, after: list) -> None:
    if len(before) != len(after) or not all(
        torch.equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)
    ):
        raise Wrong(
            "the given cache is changed in place: return a new one (torch.cat, a new list). Several continuations "
            "may start from the old one."
        )


def attentions(made: nn.Module) -> list[Any]:
    return [module for module in made.modules() if isinstance(module, solution("gpt2").CausalAttention)]


@contextmanager
def computed_once(made: nn.Module, piece: Tensor) -> Iterator[None]:
    """Raise Wrong unless every `qkv` sees each new position once, and no old one."""
    n_given = dict.fromkeys(attentions(made), 0)
    hooks = [
        attention.qkv.register_forward_hook(
            lambda _, __, out, attention=attention: n_given.update(
                {attention: n_given[attention] + out[..., 0].numel()}
            )
        )
        for attention in n_given
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    wanted = piece.shape[0] * piece.shape[1]
    for n in n_given.values():
        if n != wanted:
            raise Wrong(
                f"`qkv` ran on {n} positions where {wanted} are new ({piece.shape[0]} samples of {piece.shape[1]}): "
                "compute keys and values of new positions only, those of old ones are in the cache."
            )


def gradients_in_pieces(my: Any) -> Steps:
    """Return gradients of the input and the weights, through the cache."""
    made, x = attention_sample(torch.float64, True)
    made.requires_grad_(True)
    cache, outs = None, []
    for piece in x.split([2, 1, 2], dim=1):
        out, cache = my.cached_attention(made, piece, cache)
        outs.append(out)
    return gradients_of(torch.cat(outs, dim=1), made, x)


def right_gradients() -> Steps:
    made, x = attention_sample(torch.float64, True)
    return gradients_of(gpt2_references.attention(made.requires_grad_(True), x), made, x)


def gradients_of(out: Tensor, made: Any, x: Tensor) -> Steps:
    if not out.requires_grad:
        raise Wrong(f"outputs are right, but no gradient flows back from them: {DETACHED}")
    sources = {"the input": x, "qkv.weight": made.qkv.weight, "out.weight": made.out.weight}
    total = (out * floats(*out.shape, seed=1)).sum()
    found = torch.autograd.grad(total, list(sources.values()), allow_unused=True, materialize_grads=True)
    axes = {2: ("row", "column"), 3: STREAM}
    return {
        f"in pieces, the gradient of {name} ({DETACHED})": (grad, axes[grad.dim()])
        for name, grad in zip(sources, found, strict=True)
    }


def right_attention(cuts: Cuts = CUTS, dtype: torch.dtype = torch.float64, kept: bool = True) -> Steps:
    """Return the outputs of torch's attention without a cache, and the caches of HuggingFace's attention."""
    made, x = attention_sample(dtype, False)
    pieces = {sizes: references.attention_in_pieces(made, x, sizes) for sizes in cuts}
    return right_steps(gpt2_references.attention(made, x), pieces, STREAM, kept)


def right_gpt2(cuts: Cuts = CUTS, dtype: torch.dtype = torch.float64, kept: bool = True) -> Steps:
    """Return the logits of HuggingFace's GPT-2 without a cache, and its caches when it has one."""
    made, ids = small_gpt2().to(dtype), integers(V, 2, TOGETHER)
    with torch.no_grad():
        pieces = {sizes: references.gpt2_in_pieces(made, ids, sizes) for sizes in cuts}
        return right_steps(gpt2_references.gpt2(made, ids), pieces, SCORES, kept)
