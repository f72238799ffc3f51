"""Recomputation of activations: store only the input of each layer, and compute the layer again in the backward pass.

This is activation checkpointing (Chen et al. 2016, arXiv:1604.06174). Gradients stay the same to the last bit.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.context import Context, Layer


def call_layer(layer: nn.Module, x_BTD: Tensor, ctx: Context) -> Tensor:
    """Return the output of a layer. A module that is no Layer does not take the context."""
    return layer(x_BTD, ctx) if isinstance(layer, Layer) else layer(x_BTD)


def recompute_layer(layer: nn.Module, x_BTD: Tensor, ctx: Context) -> Tensor:
    """Return the output of a layer whose activations are not stored but computed again in the backward pass.

    The second computation draws the same random numbers, and gets the context as it was before the first.
    Raise ValueError in the backward pass if a tensor that the layer was given was changed in place meanwhile.
    """
    before, first = snapshot(ctx), [ctx]  # a list, to forget the context after the first computation
    given = [x_BTD, *tensors_in(vars(before))]
    versions = [x._version for x in given]

    def run(x_BTD: Tensor) -> Tensor:
        if first:
            return call_layer(layer, x_BTD, first.pop())
        if versions != [x._version for x in given]:
            raise ValueError(
                f"recompute='layer': an input of layer {before.layer} was changed in place, so the layer cannot be computed "
                "again; make a new tensor, or use recompute='none'"
            )
        return call_layer(layer, x_BTD, snapshot(before))

    return checkpoint(run, x_BTD, use_reentrant=False)


def caller_of_layers(recompute: bool, ctx: Context) -> Callable[[nn.Module, Tensor, Context], Tensor]:
    """Return the function that runs the layers of a forward pass.

    Without gradients, with a cache, or if activations are recorded or patched, nothing is recomputed.
    """
    stores = not torch.is_grad_enabled() or ctx.cache is not None or bool(ctx.taps)
    return recompute_layer if recompute and not stores else call_layer


def snapshot(ctx: Context) -> Context:
    """Return a copy of the context with copies of its containers. Tensors and all other objects are shared."""
    twin = copy.copy(ctx)
    vars(twin).update({name: copy_of_containers(value) for name, value in vars(ctx).items()})
    return twin


def copy_of_containers(value: Any) -> Any:
    """Return a copy of plain dicts, lists, tuples and sets in any depth, and any other object itself."""
    if type(value) is dict:
        return {key: copy_of_containers(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_of_containers(part) for part in value)
    return set(value) if type(value) is set else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in dicts, lists, tuples and sets in any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from tensors_in(part)
