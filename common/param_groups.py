"""Check of `param_groups`: settings of an optimizer for parameters, by patterns of their names."""

import math
from typing import Any, TypeGuard


class HashableDict(dict):
    """A dict for a field of params, which are frozen and can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(self))


def check_param_groups(groups: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return `groups` with every pair of betas as a tuple. Raise ValueError for an unknown setting or a bad value."""
    checked = HashableDict()
    for pattern, settings in groups.items():
        if unknown := sorted(settings.keys() - {"lr", "weight_decay", "betas"}):
            raise ValueError(
                f"{pattern!r} has {unknown[0]!r}; allowed: 'lr' and 'weight_decay', which are factors of those of the "
                "run, and 'betas', a pair in place of that of the run"
            )
        if not settings:
            raise ValueError(f"{pattern!r} changes nothing; give it 'lr', 'weight_decay' or 'betas'")
        checked[pattern] = {key: group_setting(pattern, key, value) for key, value in settings.items()}
    return checked


def group_setting(pattern: str, key: str, value: object) -> float | tuple[float, ...]:
    """Return a setting of `param_groups`. Raise ValueError if it has the wrong type or is out of bounds."""
    if key == "betas":
        if (
            isinstance(value, tuple | list)
            and len(value) == 2
            and all(is_finite_number(one) and 0 <= one < 1 for one in value)
        ):
            return tuple(value)
        raise ValueError(f"{pattern!r} has betas={value!r}; it should be a pair of numbers from 0 to below 1")
    if is_finite_number(value) and (value > 0 or (value == 0 and key == "weight_decay")):
        return value
    needed = "a number above 0; parameters in freeze do not train" if key == "lr" else "a number, 0 or above"
    raise ValueError(f"{pattern!r} has {key}={value!r}; it should be {needed}")


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return True for an int or a float that is neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
