"""Mistaken variants of a solution: a list of edits read from text, and what a student made rebuilt by each of them."""

import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from learn.checking.course import Case, Mistake, load

PATIENCE = 5.0  # seconds to try two mistakes at once: there may be hundreds of pairs, and a part has its time
ENTRY = re.compile(r"^# (\w+): (.+)\n((?:-.*\n)+)((?:\+.*\n)+)", re.MULTILINE)


def read_mistakes(path: Path) -> tuple[Mistake, ...]:
    """Entries `# part: what it looks like`, then lines of the solution after `- `, then the mistaken ones after `+ `."""
    found = ENTRY.findall(path.read_text(encoding="utf-8"))
    return tuple(
        Mistake(part, says, after_sign(right), after_sign(mistaken)) for part, says, right, mistaken in found
    )


def after_sign(lines: str) -> str:
    return "\n".join(line[2:] for line in lines.splitlines())


def known(case: Case, alike: Callable[[ModuleType], bool], pairs: bool) -> str | None:
    """The mistake whose solution is alike to the student's; with `pairs` also the two that are, made both at once."""
    for mistake, module in variants(case):
        if alike(module):
            return mistake.says
    end = time.monotonic() + PATIENCE
    for (one, other), module in takewhile(
        lambda _: time.monotonic() < end, pairs_of_variants(case) if pairs else ()
    ):
        if alike(module):
            return f"two mistakes: {one.says}; and {other.says}"
    return None


def variants(case: Case) -> Iterator[tuple[Mistake, ModuleType]]:
    """Every known mistake of this part, with the solution that makes it."""
    for mistake in case.mistakes:
        module = variant_of(Path(str(case.solution.__file__)), (mistake,))
        assert module is not None, f"not once in the solution: {mistake.right}"
        yield mistake, module


def pairs_of_variants(case: Case) -> Iterator[tuple[tuple[Mistake, Mistake], ModuleType]]:
    """Every two of them that can be made at once."""
    for pair in combinations(case.mistakes, 2):
        module = variant_of(Path(str(case.solution.__file__)), pair)
        if module is not None:
            yield pair, module


@cache
def variant_of(solution: Path, mistakes: tuple[Mistake, ...]) -> ModuleType | None:
    """The solution with these mistakes; None where one takes away the place of another."""
    text = solution.read_text(encoding="utf-8")
    for mistake in mistakes:
        if text.count(mistake.right) != 1:
            return None
        text = text.replace(mistake.right, mistake.mistaken)
    try:
        return load(solution, text)
    except SyntaxError:  # two edits of one line
        return None


def made_by_variant(case: Case, module: ModuleType, made: Any) -> Any:
    """The variant's module with the weights of what the student made, or its function; None if they do not fit."""
    variant = case.part.make(module)
    if not isinstance(variant, nn.Module):
        return variant
    own, given = variant.state_dict(), made.state_dict()
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in given.items()}:
        return None
    variant.load_state_dict(given)
    return variant.to(next(iter(given.values())).dtype)
