"""Rotary scalings: other frequencies of rotary positions, for inputs longer than those of an earlier training.

Each is a function of the frequencies, and its settings are arguments: `rotary_scaling = "yarn, factor=4, original=4096"`.

Shape suffixes:  A angle: half the rotated numbers of a head
"""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from common.registry import Registry
from common.text import did_you_mean


class Frequencies(NamedTuple):
    """The frequencies of rotary positions, and a factor of their sines and cosines."""

    of_A: Tensor
    size: float = 1.0


# Functions of (frequencies_A, base, settings). The name of a function begins a value of `rotary_scaling`.
rotary_scalings: Registry[Callable[..., Frequencies]] = Registry("rotary scaling")


@rotary_scalings.register
def linear(frequencies_A: Tensor, base: float, *, factor: float) -> Frequencies:
    """Divide all frequencies: positions are interpolated (Chen et al. 2023, arXiv:2306.15595)."""
    return Frequencies(frequencies_A / factor)


@rotary_scalings.register
def ntk(frequencies_A: Tensor, base: float, *, factor: float) -> Frequencies:
    """Raise the base, so that the highest frequency stays and the lowest is divided by `factor` ("NTK-aware")."""
    n = max(len(frequencies_A) - 1, 1)
    return Frequencies(frequencies_A * factor ** (-indices_of(frequencies_A) / n))


@rotary_scalings.register
def llama3(
    frequencies_A: Tensor, base: float, *, factor: float, original: float, low: float = 1.0, high: float = 4.0
) -> Frequencies:
    """Divide frequencies with under `low` turns in `original` positions, keep those with over `high` (Llama 3.1)."""
    if high <= low:
        raise ValueError(f"high={high:g} must be greater than low={low:g}")
    turns_A = original * frequencies_A / (2 * math.pi)
    kept_A = ((turns_A - low) / (high - low)).clamp(0, 1)
    return Frequencies(frequencies_A * (kept_A + (1 - kept_A) / factor))


@rotary_scalings.register
def yarn(
    frequencies_A: Tensor,
    base: float,
    *,
    factor: float,
    original: float,
    slow: float = 1.0,
    fast: float = 32.0,
) -> Frequencies:
    """Divide frequencies with few turns in `original` positions, keep those with many (Peng et al. 2023, arXiv:2309.00071)."""
    first, last = partly_divided(frequencies_A, base, original, slow, fast)
    return divided_between(frequencies_A, factor, math.floor(first), math.ceil(last))


@rotary_scalings.register
def yarn_unrounded(
    frequencies_A: Tensor,
    base: float,
    *,
    factor: float,
    original: float,
    slow: float = 1.0,
    fast: float = 32.0,
) -> Frequencies:
    """As `yarn`, but without rounding the indices between which frequencies are divided in part (gpt-oss)."""
    return divided_between(frequencies_A, factor, *partly_divided(frequencies_A, base, original, slow, fast))


def partly_divided(
    frequencies_A: Tensor, base: float, original: float, slow: float, fast: float
) -> tuple[float, float]:
    """Return the indices of the frequencies that turn `fast` times and `slow` times in `original` positions."""
    if fast <= slow:
        raise ValueError(f"fast={fast:g} must be greater than slow={slow:g}")

    def index_of(turns: float) -> float:
        return len(frequencies_A) * math.log(original / (2 * math.pi * turns)) / math.log(base)

    return index_of(fast), index_of(slow)


def divided_between(frequencies_A: Tensor, factor: float, first: float, last: float) -> Frequencies:
    """Keep the frequencies up to index `first`, divide those from index `last` on, and those between in part."""
    first, last = max(first, 0), min(last, 2 * len(frequencies_A) - 1)
    divided_A = ((indices_of(frequencies_A) - first) / (last - first or 1e-3)).clamp(0, 1)
    size = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return Frequencies(frequencies_A * (1 - divided_A + divided_A / factor), size)


def indices_of(frequencies_A: Tensor) -> Tensor:
    """Return 0, 1, 2 ... on the device of the frequencies, which may differ from the default device."""
    return torch.arange(len(frequencies_A), dtype=torch.float64, device=frequencies_A.device)


def scaled_frequencies(frequencies_A: Tensor, base: float, scaling: str | None) -> Frequencies:
    """Return the frequencies of `rotary_scaling`. Raise ValueError for an unknown name or setting."""
    if scaling is None:
        return Frequencies(frequencies_A)
    name, settings = parsed(scaling)
    return rotary_scalings[name](frequencies_A, base, **settings)


def parsed(scaling: str) -> tuple[str, dict[str, float]]:
    """Return name and settings of "yarn, factor=4, original=4096". Raise ValueError if it is not understood."""
    name, *pairs = (part.strip() for part in scaling.split(","))
    where = f"rotary_scaling={scaling!r}"
    if name not in rotary_scalings:
        raise ValueError(
            f"{where}: {name!r} does not exist; {did_you_mean(name, rotary_scalings, list_all=True)}"
        )
    known = {
        key: argument.default is inspect.Parameter.empty
        for key, argument in inspect.signature(rotary_scalings[name]).parameters.items()
        if argument.kind is inspect.Parameter.KEYWORD_ONLY
    }
    settings = {}
    for pair in pairs:
        key, _, number = (part.strip() for part in pair.partition("="))
        if key not in known:
            raise ValueError(f"{where}: {name} has no {key!r}; it has {', '.join(known)}")
        try:
            settings[key] = float(number)
        except ValueError:
            raise ValueError(f"{where}: {key} must be a number, not {number!r}") from None
        if not 0 < settings[key] < math.inf:
            raise ValueError(f"{where}: {key} must be greater than 0")
    if missing := [key for key, is_needed in known.items() if is_needed and key not in settings]:
        raise ValueError(f"{where}: {name} needs {', '.join(missing)}, as in '{name}, {missing[0]}=4'")
    return name, settings


def full_text(scaling: str) -> str:
    """Return the value of `rotary_scaling` with all settings, in their order. Raise ValueError if it is not understood."""
    name, settings = parsed(scaling)
    arguments = inspect.signature(rotary_scalings[name]).parameters.values()
    named = [argument for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY]
    values = (repr(settings.get(one.name, one.default)).removesuffix(".0") for one in named)
    return ", ".join([name, *(f"{one.name}={value}" for one, value in zip(named, values, strict=True))])


def scaling_problem(scaling: str | None, base: float) -> str | None:
    """Return why a value of `rotary_scaling` cannot be used, or None."""
    if scaling is None:
        return None
    try:
        scaled_frequencies(torch.ones(2, dtype=torch.float64, device="cpu"), base, scaling)
    except ValueError as error:
        message = str(error)
        return message if message.startswith("rotary_scaling=") else f"rotary_scaling={scaling!r}: {message}"
    return None
