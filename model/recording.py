"""Record or replace activations by name while a model runs.

Names are those of Context.tap: "embed", "layers.3.resid_pre", "layers.3.pattern" ... "final_norm", "logits".
A pattern is such a name, with * for anything. A pattern without a dot matches in every layer.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from common.text import nearest
from model.context import Tap

Edit = Callable[[Tensor], Tensor | float] | Tensor | float | Literal["mean"]
Where = int | Sequence[int] | slice | None  # indices of heads or positions; None: all


def matches_pattern(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)


class PatternTap:
    """Base class of taps that act on the activations whose names match one of `patterns`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = list(patterns)
        self.names: dict[str, None] = {}  # of all activations so far

    def wants(self, name: str) -> bool:
        self.names[name] = None
        return any(matches_pattern(name, pattern) for pattern in self.patterns)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError for a pattern that matched no activation."""
        if self.patterns and not self.names:
            raise ValueError("nothing was recorded or patched: the model did not run inside the with-block")
        for pattern in self.patterns:
            if not any(matches_pattern(name, pattern) for name in self.names):
                raise ValueError(f"no activation is named {pattern!r}; {name_hint(pattern, self.names)}")


class Recording(PatternTap, Mapping[str, Tensor]):
    """Activations of the last forward pass, by name. Gradients flow through them if gradients are enabled."""

    def __init__(self, patterns: Iterable[str]) -> None:
        super().__init__(patterns)
        self.recorded: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if self.wants(name):
            self.recorded[name], self.versions[name] = x, version(x)
        return x

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.recorded:
            raise KeyError(f"{name!r} was not recorded; {name_hint(name, self.recorded)}")
        if version(self.recorded[name]) != self.versions[name]:
            raise ValueError(
                f"{name} was changed in place after it was recorded, as nn.ReLU(inplace=True) would do"
            )
        return self.recorded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.recorded)

    def __len__(self) -> int:
        return len(self.recorded)

    def of_all_layers(self, name: str) -> list[Tensor]:
        """Return the activations recorded under `name`, in the order of the layers that have it."""
        return [self[key] for key in self if key.startswith("layers.") and key.endswith(f".{name}")]


class Patch(PatternTap):
    """Replaces activations by the results of edits."""

    def __init__(self, edits: Mapping[str, Edit]) -> None:
        super().__init__(edits)
        self.edits = dict(edits)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if self.wants(name):
            for pattern, edit in self.edits.items():
                if matches_pattern(name, pattern):
                    x = apply_edit(x, edit, name)
        return x


class Reached(Exception):
    """Raised to end a forward pass at the activation of StopAt."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class StopAt(PatternTap):
    """Ends the forward pass at an activation."""

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if self.wants(name):
            raise Reached(x)
        return x


class Nonfinite(PatternTap):
    """Notes the name of the first activation with a NaN or an infinity. In scores -inf is the mask and is allowed."""

    def __init__(self) -> None:
        super().__init__(["*"])
        self.first: str | None = None

    def __call__(self, name: str, x: Tensor) -> Tensor:
        self.names[name] = None
        if self.first is None:
            is_masked = name.rpartition(".")[2] == "scores"
            flawed = x.isnan() | (x == math.inf) if is_masked else ~x.isfinite()
            self.first = name if flawed.any() else None
        return x


def first_nonfinite(lm: Any, batch: Mapping[str, Tensor] | Tensor) -> str | None:
    """Return the name of the first activation that is not finite in a forward pass of an LM, or None.

    `batch` is a batch of data/dataloader.py, or ids [B, T]. The model keeps its mode, and the random state is restored.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]), tapping(lm, lm.taps, Nonfinite()) as tap:
        if isinstance(batch, Mapping):
            lm.get_batch_xyz(batch)
        else:
            lm(batch)
    return tap.first


def apply_edit(x: Tensor, edit: Edit, name: str = "an activation") -> Tensor:
    """Return the result of `edit` on `x`, in the shape, dtype and device of `x`.

    A function gets a copy, which it may change in place. Raise ValueError for a result of another shape.
    """
    if isinstance(edit, str) and edit == "mean":
        if len(x) == 1:
            raise ValueError(f"'mean' averages over the batch, but {name} has a batch of one")
        return x.mean(dim=0, keepdim=True).expand_as(x)
    new = edit(x.clone()) if callable(edit) else edit
    if not isinstance(new, Tensor | int | float):
        raise ValueError(
            f"an edit of {name} must be a tensor, a number, 'mean' or a function that returns a tensor or a number, "
            f"not {new!r:.40}"
        )
    new = new.to(x) if isinstance(new, Tensor) else torch.full_like(x, new)
    try:
        return new.expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"{name} has the shape {tuple(x.shape)}, but the edit returns {tuple(new.shape)}"
        ) from None


def at(edit: Edit, *, heads: Where = None, positions: Where = None) -> Callable[[Tensor], Tensor]:
    """Restrict `edit` to these heads and positions: `lm.patch({"layers.1.z": at(0, heads=3)})`."""

    def edited_there(x: Tensor) -> Tensor:
        there = where_mask("positions", positions, x.shape[-2])[:, None]
        if x.dim() == 4:  # [batch, head, position, any]; without heads [batch, position, any]
            there = there & where_mask("heads", heads, x.shape[1])[:, None, None]
        elif heads is not None:
            raise ValueError(
                f"heads={heads!r} needs an activation with heads, not one of shape {tuple(x.shape)}"
            )
        return torch.where(there.to(x.device), apply_edit(x, edit), x)

    return edited_there


def where_mask(what: str, where: Where, n: int) -> Tensor:
    """Return a bool tensor [n] that is True at `where`. Raise ValueError for an index out of range."""
    there = torch.zeros(n, dtype=torch.bool)
    try:
        there[slice(None) if where is None else where] = True
    except IndexError:
        raise ValueError(f"{what}={where!r}; allowed: 0 to {n - 1}") from None
    return there


def version(x: Tensor) -> int:
    """Return how often `x` was changed in place; torch does not count this in inference mode."""
    return 0 if x.is_inference() else x._version


def name_hint(pattern: str, names: Iterable[str]) -> str:
    """Return a hint for an error: the most similar names, or else all names, without the numbers of layers."""
    names = list(names)
    where, dot, last = pattern.rpartition(".")
    lasts = dict.fromkeys(name.rpartition(".")[2] for name in names)
    if last in lasts:
        near = nearest(pattern, names, n=3)
    else:
        near = [f"{where}{dot}{name}" for name in nearest(last, lasts, n=3)]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    kinds = dict.fromkeys(re.sub(r"^layers\.\d+", "layers.*", name) for name in names)
    return f"there are: {', '.join(kinds) or 'none'}"


class Taps(list[Tap]):
    """Active observers of one model's activations. A copy of the model starts without any."""

    def __reduce__(self) -> tuple:
        return Taps, ()


@contextmanager
def without_recordings(taps: Taps) -> Iterator[bool]:
    """Suspend recordings inside the block; patches stay. The value is True if there are recordings."""
    before = list(taps)
    taps[:] = [tap for tap in before if not isinstance(tap, Recording)]
    try:
        yield len(taps) < len(before)
    finally:
        taps[:] = before


T = TypeVar("T", bound=PatternTap)


@contextmanager
def tapping(model: nn.Module, taps: Taps, tap: T) -> Iterator[T]:
    """Add `tap` to the model's taps inside the block. Raise ValueError at the end for a pattern that matched nothing.

    A compiled model runs uncompiled meanwhile: compiling a second version with taps would take long.
    """
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    taps.append(tap)
    try:
        yield tap
    finally:
        taps[:] = [other for other in taps if other is not tap]
        model._compiled_call_impl = compiled
    tap.check()
