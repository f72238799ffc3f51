"""Known mistakes: edits of a solution, read from a text file, and modules with these edits."""

import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from learn.checking.course import Case, Mistake, load_module

PATIENCE = 5.0  # seconds for trying pairs of mistakes: there may be hundreds, and a part's time is limited
ENTRY = re.compile(r"^# (\w+): (.+)\n((?:-.*\n)+)((?:\+.*\n)+)", re.MULTILINE)


def read_mistakes(path: Path) -> tuple[Mistake, ...]:
    """Read known mistakes from a file.

    An entry is a line `# part: message`, lines of the solution after `- `, and their replacement after `+ `.
    """
    found = ENTRY.findall(path.read_text(encoding="utf-8"))
    return tuple(
        Mistake(part, says, after_sign(right), after_sign(mistaken)) for part, says, right, mistaken in found
    )


def after_sign(lines: str) -> str:
    return "\n".join(line[2:] for line in lines.splitlines())


def known_mistake(case: Case, alike: Callable[[ModuleType], bool], pairs: bool) -> str | None:
    """Return the message of the mistake for whose variant of the solution `alike` returns True, or None.

    With `pairs`, try two mistakes at once as well.
    """
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
    """Yield every known mistake of this part, with the variant of the solution that makes it."""
    for mistake in case.mistakes:
        module = solution_with(Path(str(case.solution.__file__)), (mistake,))
        assert module is not None, f"not once in the solution: {mistake.right}"
        yield mistake, module


def pairs_of_variants(case: Case) -> Iterator[tuple[tuple[Mistake, Mistake], ModuleType]]:
    """Yield every pair of mistakes whose edits fit together, with the variant that makes both."""
    for pair in combinations(case.mistakes, 2):
        module = solution_with(Path(str(case.solution.__file__)), pair)
        if module is not None:
            yield pair, module


@cache
def solution_with(solution: Path, mistakes: tuple[Mistake, ...]) -> ModuleType | None:
    """Return the solution with these mistakes. Return None if one mistake removes the text that another edits."""
    text = solution.read_text(encoding="utf-8")
    for mistake in mistakes:
        if text.count(mistake.right) != 1:
            return None
        text = text.replace(mistake.right, mistake.mistaken)
    try:
        return load_module(solution, text)
    except SyntaxError:  # two edits of one line
        return None


def made_by_variant(case: Case, module: ModuleType, made: Any) -> Any:
    """Return the variant's function, or its module with the student's weights. Return None if the weights do not fit."""
    variant = case.part.make(module)
    if not isinstance(variant, nn.Module):
        return variant
    own, given = variant.state_dict(), made.state_dict()
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in given.items()}:
        return None
    variant.load_state_dict(given)
    return variant.to(next(iter(given.values())).dtype)
