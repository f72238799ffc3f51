"""Marks of tests that take long. By default they do not run; `.ci/run` runs those that are marked `ci`, too."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

SLOW = [pytest.mark.slow, pytest.mark.ci]


def all_slow_but(fast: Iterable[Any], values: Collection[Any], skipped: Iterable[Any] = ()) -> list[Any]:
    """Return `values` for pytest.mark.parametrize, those outside `fast` marked as slow and, unless `skipped`, as ci."""
    fast, skipped = list(fast), list(skipped)
    marks = [pytest.mark.slow if value in skipped else SLOW for value in values]
    return [
        value if value in fast else pytest.param(value, marks=mark)
        for value, mark in zip(values, marks, strict=True)
    ]
