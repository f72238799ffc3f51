"""Products of rows with the matrix of their group, for experts: the rows of a group lie together.

These are two operators of torch, so that FLOPs are counted for the rows that exist, and torch.compile makes one graph
for groups of any size. `ends_E` should lie on the CPU, also for products on a GPU: each product reads it.

Shape suffixes:  M row  E group  I input width  O output width
"""

from typing import Any

import torch
from torch import Tensor


def grouped_linear(x_MI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Return x @ weight[e].T for the rows of each group e, which end before row `ends_E[e]`: [M, O]."""
    kind = x_MI.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        x_MI, weight_EOI = (x.to(torch.get_autocast_dtype(kind)) for x in (x_MI, weight_EOI))
    return grouped_product(x_MI, weight_EOI, ends_E)


@torch.library.custom_op("whatif::grouped_product", mutates_args=())
def grouped_product(x_MI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Compute `grouped_linear` for operands of one dtype."""
    y_MO = x_MI.new_empty(len(x_MI), weight_EOI.shape[1])
    for weight_OI, begin, end in zip(weight_EOI, *group_bounds(ends_E), strict=True):
        torch.mm(x_MI[begin:end], weight_OI.T, out=y_MO[begin:end])
    return y_MO


@torch.library.custom_op("whatif::grouped_outer", mutates_args=())
def grouped_outer(y_MO: Tensor, x_MI: Tensor, ends_E: Tensor) -> Tensor:
    """Return y.T @ x over the rows of each group, [E, O, I]: the gradient of the weights."""
    weight_EOI = x_MI.new_empty(len(ends_E), y_MO.shape[1], x_MI.shape[1])
    for weight_OI, begin, end in zip(weight_EOI, *group_bounds(ends_E), strict=True):
        torch.mm(y_MO[begin:end].T, x_MI[begin:end], out=weight_OI)
    return weight_EOI


def group_bounds(ends_E: Tensor) -> tuple[list[int], list[int]]:
    """Return the first row of each group, and the row after its last one."""
    ends = ends_E.tolist()
    return [0, *ends[:-1]], ends


@grouped_product.register_fake
def shape_of_product(x_MI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    return x_MI.new_empty(x_MI.shape[0], weight_EOI.shape[1])


@grouped_outer.register_fake
def shape_of_outer(y_MO: Tensor, x_MI: Tensor, ends_E: Tensor) -> Tensor:
    return x_MI.new_empty(ends_E.shape[0], y_MO.shape[1], x_MI.shape[1])


def keep_operands(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def gradients(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, ...]:
    x_MI, weight_EOI, ends_E = ctx.saved_tensors
    of_x, of_weight, _ = ctx.needs_input_grad
    grad_MO = grad_MO.contiguous()
    return (
        grouped_product(grad_MO, weight_EOI.mT, ends_E) if of_x else None,
        grouped_outer(grad_MO, x_MI, ends_E) if of_weight else None,
        None,
    )


grouped_product.register_autograd(gradients, setup_context=keep_operands)


def flops_of_product(x_shape: torch.Size, weight_shape: torch.Size, *others: object, **kwargs: object) -> int:
    """Return the operations of `grouped_product`, and of `grouped_outer` by the shapes of its operands."""
    return 2 * x_shape[0] * x_shape[1] * weight_shape[1]
