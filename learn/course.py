"""A course: a student's file, its parts, and the judging of them one after another."""

import importlib.util
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

HERE = Path(__file__).parent


class Wrong(Exception):
    """What a check says to the student, in one or two sentences."""


@dataclass(frozen=True)
class Part:
    """One class or function of the student's file, and how it is checked."""

    name: str  # as the command line has it
    defines: str  # the class or function
    task: str  # a phrase for the map
    make: Callable[[Any], Any]  # from a file: a small module, or the function itself
    inputs: Callable[[], list[tuple]]  # arguments of a few calls
    reference: Callable[
        ..., Tensor
    ]  # the right output for (what was made, *arguments), by other people's code
    axes: tuple[str, ...]  # what the dimensions of the output are
    checks: tuple["Check", ...]


Check = Callable[["Case"], None]


@dataclass(frozen=True)
class Case:
    """What a check looks at: a part as it is in the student's file, beside the solution and its mistaken variants."""

    part: Part
    mine: ModuleType
    solution: ModuleType
    mistakes: tuple["Mistake", ...]


@dataclass(frozen=True)
class Mistake:
    """A mistaken variant of the solution: the same text but for one edit."""

    part: str
    says: str  # completes "it looks like ..."
    right: str  # occurs once in the solution
    mistaken: str


@dataclass(frozen=True)
class Course:
    """A student's file, the solution of it, and what is known about its parts."""

    name: str
    student: Path
    solution: Path
    parts: tuple[Part, ...]
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Verdict:
    """How a part was found, and what there is to say."""

    part: Part
    state: str  # "right", "wrong" or "not built"
    says: str = ""
    borrowed: tuple[str, ...] = field(default=())  # earlier parts that stood in from the solution


def load(path: Path, text: str | None = None) -> ModuleType:
    """A file as a module of its own, afresh at every call; `text` stands in for what the file says."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    text = path.read_text(encoding="utf-8") if text is None else text
    exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102  the student's own file, or an edited solution
    return module


def judge_course(course: Course, student: Path | None = None, wanted: str | None = None) -> list[Verdict]:
    """A verdict on every part, up to the wanted one. A part that is not right is borrowed for those that follow."""
    path = student or course.student
    try:
        mine = load(path)
    except Exception as error:  # whatever is wrong with a student's file must not end in a traceback
        says = f"{path.name} cannot be read: {describe(error, path)}"
        return [Verdict(part, "wrong", says) for part in course.parts if wanted in (None, part.name)]
    solution = load(course.solution)
    verdicts, borrowed = [], list[str]()
    for part in course.parts:
        mistakes = tuple(mistake for mistake in course.mistakes if mistake.part == part.name)
        state, says = judge(Case(part, mine, solution, mistakes), path)
        verdicts.append(Verdict(part, state, says, tuple(borrowed)))
        if part.name == wanted:
            break
        if state != "right":
            setattr(mine, part.defines, getattr(solution, part.defines))
            borrowed.append(part.defines)
    return verdicts


def judge(case: Case, path: Path) -> tuple[str, str]:
    """The state of a part, and the sentence of the first check that it does not pass."""
    name = case.part.defines
    try:
        for check in case.part.checks:
            check(case)
    except Wrong as wrong:
        return "wrong", str(wrong)
    except Exception as error:
        if type(error) is NotImplementedError and not error.args:
            what = f"{path.name}, line {line_in(error, path)}"
            return "not built", f"{name} is not built yet. Its docstring says what to do: {what}."
        return "wrong", f"{name} stops with {describe(error, path)}"
    return "right", ""


def describe(error: Exception, path: Path) -> str:
    """An exception in a line: what it is, and where in the student's file it came up."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    line = line_in(error, path)
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{said} ({path.name}, line {line})" if line else said


def line_in(error: Exception, path: Path) -> int | None:
    """The innermost line of the file that the exception passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return frames[-1].lineno if frames else None
