"""Marks of tests that take long. By default they do not run; `.ci/run` runs those that are marked `ci`, too."""

from collections.abc import Iterable
from typing import Any

import pytest

SLOW = [pytest.mark.slow, pytest.mark.ci]


def all_slow_but(fast: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Return `values` for pytest.mark.parametrize, with those outside `fast` marked as slow."""
    fast = list(fast)
    return [value if value in fast else pytest.param(value, marks=SLOW) for value in values]
