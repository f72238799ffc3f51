"""Describe in words how a tensor differs from the right one."""

import math

import torch
from torch import Tensor

RTOL, ATOL = 1e-6, 1e-8  # for float64: a thousand times the rounding, but less than the effect of a wrong eps
FACTORS = {
    math.sqrt(2): "sqrt(2)",
    math.sqrt(3): "sqrt(3)",
    2.0: "2",
    0.5: "1/2",
    math.log(2): "log(2)",
    1 / math.log(2): "1/log(2)",
}


def equal(a: Tensor, b: Tensor) -> bool:
    """Return True if the shapes are equal, and all numbers up to rounding."""
    rtol, atol = (RTOL, ATOL) if a.dtype == torch.float64 else (1e-4, 1e-5)
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol, atol, equal_nan=True)


def difference(mine: object, right: Tensor, axes: tuple[str, ...]) -> str | None:
    """Describe how `mine` differs from `right`, or return None if they are equal. `axes` names the dimensions."""
    if not isinstance(mine, Tensor):
        forgotten = " (is a `return` missing?)" if mine is None else ""
        return f"the result is {type(mine).__name__}, not a tensor{forgotten}"
    if mine.shape != right.shape:
        return different_shape(mine, right, axes)
    if mine.dtype != right.dtype:
        return f"the result is {dtype_name(mine.dtype)}, expected {dtype_name(right.dtype)} as the input"
    if equal(mine, right):
        return None
    finite = torch.isfinite(mine) | ~torch.isfinite(right)
    if not finite.all():
        nan = " (0 * inf and inf - inf are NaN)" if mine.isnan().any() else ""
        return f"{(~finite).sum()} of {mine.numel()} numbers are not finite{nan}, first at {first(~finite, axes)}"
    return regularity(mine, right) or places(mine, right, axes)


def different_shape(mine: Tensor, right: Tensor, axes: tuple[str, ...]) -> str:
    named = ", ".join(axes)
    says = f"the shape is {list(mine.shape)}, expected {list(right.shape)} ({named})"
    if sorted(mine.shape) == sorted(right.shape):
        says += ": the same sizes in another order, so look at your transposes"
    return says


def regularity(mine: Tensor, right: Tensor) -> str | None:
    """Describe a factor or an offset common to all numbers, or return None."""
    factor = float((mine * right).sum() / (right * right).sum())
    if factor and equal(mine, factor * right):
        known = [name for value, name in FACTORS.items() if math.isclose(value, factor, rel_tol=1e-5)]
        return f"every number is {factor:.4g} times what it should be" + "".join(
            f" ({name})" for name in known
        )
    offset = float((mine - right).mean())
    if equal(mine, right + offset):
        return f"every number is off by the same {offset:.4g}"
    return None


def places(mine: Tensor, right: Tensor, axes: tuple[str, ...]) -> str:
    """Describe where numbers differ, and the largest difference."""
    wrong = ~torch.isclose(mine, right, RTOL if mine.dtype == torch.float64 else 1e-4, ATOL)
    off = torch.where(mine == right, 0.0, (mine - right).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    wrong = wrong if wrong.any() else off == off.max()
    where = []
    for dim, axis in enumerate(axes):
        others = [d for d in range(wrong.dim()) if d != dim]
        along = wrong.any(dim=others) if others else wrong
        if not along.all():
            indices = along.nonzero().flatten().tolist()
            where.append(f"{axis} {', '.join(map(str, indices[:6]))}{' ...' if len(indices) > 6 else ''}")
    worst = off.max() == off
    a, b = float(mine[worst][0]), float(right[worst][0])
    only = f"only {' and '.join(where)} differ; " if where else "numbers differ everywhere; "
    digits = 5 if f"{a:.5g}" != f"{b:.5g}" else 12
    return f"{only}the largest difference is at {first(worst, axes)}: {a:.{digits}g}, expected {b:.{digits}g}"


def first(mask: Tensor, axes: tuple[str, ...]) -> str:
    index = mask.nonzero()[0].tolist()
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=False)) or "the one number"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
