"""Mistaken variants of a solution: a list of edits read from text, and what a student made rebuilt by each of them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from learn.checking.course import Case, Mistake, load

ENTRY = re.compile(r"^# (\w+): (.+)\n((?:-.*\n)+)((?:\+.*\n)+)", re.MULTILINE)


def read_mistakes(path: Path) -> tuple[Mistake, ...]:
    """Entries `# part: what it looks like`, then lines of the solution after `- `, then the mistaken ones after `+ `."""
    found = ENTRY.findall(path.read_text(encoding="utf-8"))
    return tuple(
        Mistake(part, says, after_sign(right), after_sign(mistaken)) for part, says, right, mistaken in found
    )


def after_sign(lines: str) -> str:
    return "\n".join(line[2:] for line in lines.splitlines())


def variants(case: Case) -> Iterator[tuple[Mistake, ModuleType]]:
    """Every known mistake of this part, with the solution that makes it."""
    for mistake in case.mistakes:
        yield mistake, variant_of(Path(str(case.solution.__file__)), mistake)


@cache
def variant_of(solution: Path, mistake: Mistake) -> ModuleType:
    text = solution.read_text(encoding="utf-8")
    assert text.count(mistake.right) == 1, f"not once in {solution.name}: {mistake.right}"
    return load(solution, text.replace(mistake.right, mistake.mistaken))


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
