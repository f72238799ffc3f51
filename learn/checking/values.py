"""Compare dicts of results, and describe the first difference in words. Each key is a phrase that describes its value."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from learn.checking.explain import difference

AXES = ("row", "column", "plane")


def describe_difference(mine: Mapping[str, Any], right: Mapping[str, Any]) -> str | None:
    """Describe the first value that differs, or return None. Tensors may differ by rounding."""
    for name, value in right.items():
        if name not in mine:
            return f"there is no {name}"
        if found := describe_one_difference(mine[name], value):
            return f"{name}: {found}"
    return None


def describe_one_difference(mine: Any, right: Any) -> str | None:
    if isinstance(right, Tensor):
        mine = mine.detach() if isinstance(mine, Tensor) else mine
        return difference(mine, right.detach(), AXES[: right.dim()])
    if type(mine) is not type(right):
        forgotten = ": is a `return` missing?" if mine is None else ""
        return f"it is {type(mine).__name__}, expected {type(right).__name__}{forgotten}"
    return None if mine == right else f"it is {mine}, expected {right}"
