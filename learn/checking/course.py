"""A course: the parts of a student's file, and the judging of them one after another."""

import importlib
import importlib.util
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from learn.outline import DONE, NOT_BUILT, WRONG, Outline


class Wrong(Exception):
    """What a check says to the student, in one or two sentences."""


class NotTried(Exception):
    """A check that cannot be made here, and why; the part is right without it."""


class TooLong(BaseException):
    """A part had more than its time. Not an Exception, so that no student's `except Exception` swallows it."""


def no_reference(*_: Any) -> Any:
    raise TypeError("this part has checks of its own only")


@dataclass(frozen=True)
class Part:
    """How one class or function of the student's file is checked."""

    make: Callable[[Any], Any]  # from a file: a small module, or the function itself
    inputs: Callable[[], list[tuple]] = list  # arguments of a few calls
    reference: Callable[..., Any] = (
        no_reference  # of (what was made, *arguments): what is right, by others' code
    )
    axes: tuple[str, ...] = ()  # what the dimensions of the output are
    checks: tuple["Check", ...] = ()
    seconds: float = 30.0  # longer is an endless loop


Check = Callable[["Case"], None]


@dataclass(frozen=True)
class Mistake:
    """A mistaken variant of the solution: the same text but for one edit."""

    part: str
    says: str  # completes "it looks like ..."
    right: str  # occurs once in the solution
    mistaken: str


@dataclass(frozen=True)
class Case:
    """What a check looks at: a part as it is in the student's file, beside the solution and its mistaken variants."""

    name: str
    part: Part
    mine: ModuleType
    solution: ModuleType
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Course:
    """A student's file, and how its parts are checked."""

    outline: Outline
    parts: dict[str, Part]
    mistakes: tuple[Mistake, ...]
    uses: tuple[tuple[str, str], ...] = ()  # (course, part) that the student's file imports from another one

    def case(self, name: str, mine: ModuleType, solution: ModuleType) -> Case:
        mistakes = tuple(mistake for mistake in self.mistakes if mistake.part == name)
        return Case(name, self.parts[name], mine, solution, mistakes)


@dataclass(frozen=True)
class Verdict:
    """How a part was found, and what there is to say."""

    part: str
    state: str  # DONE, WRONG or NOT_BUILT
    says: str = ""
    borrowed: tuple[str, ...] = ()  # other parts that stood in from the solution
    n_checks: int = 0


def get_course(name: str) -> Course:
    """The course of this name. Imports torch, and what the references are made of."""
    course = importlib.import_module(f"learn.courses.{name}").COURSE
    assert isinstance(course, Course)
    return course


def load(path: Path, text: str | None = None) -> ModuleType:
    """A file as a module of its own, afresh at every call; `text` stands in for what the file says."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    text = path.read_text(encoding="utf-8") if text is None else text
    exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102  the student's own file, or an edited solution
    return module


def judge_course(course: Course, student: Path | None = None, wanted: str | None = None) -> Iterator[Verdict]:
    """A verdict on every part, or on the wanted one. A part that is not right is borrowed for all others."""
    path = student or course.outline.student
    names = [name for name in course.parts if wanted in (None, name)]
    try:
        mine = load(path)
    except Exception as error:  # whatever is wrong with a student's file must not end in a traceback
        says = f"{path.name} cannot be read: {describe(error, path)}"
        yield from (Verdict(name, WRONG, says) for name in names)
        return
    solution = load(course.outline.solution)
    borrowed = [part for other, part in course.uses if borrow(part, other, mine)]
    for name in course.parts:
        verdict = judge(course.case(name, mine, solution), path)
        if name in names:
            yield Verdict(name, *verdict, tuple(borrowed), len(course.parts[name].checks))
        if name == wanted:
            return
        if verdict[0] != DONE:
            setattr(mine, name, getattr(solution, name))
            borrowed.append(name)


def borrow(part: str, other: str, mine: ModuleType) -> bool:
    """Whether a part that the file imports from another course's is not right; the solution's is then put in."""
    course = get_course(other)
    [verdict] = judge_course(course, wanted=part)
    if verdict.state != DONE:
        setattr(mine, part, getattr(load(course.outline.solution), part))
    return verdict.state != DONE


def judge(case: Case, path: Path) -> tuple[str, str]:
    """The state of a part, and the sentence of the first check that it does not pass, or what could not be tried."""
    not_tried = list[str]()
    try:
        with time_limit(case.part.seconds):
            for check in case.part.checks:
                try:
                    check(case)
                except NotTried as why:
                    not_tried.append(f"not tried: {why}")
    except Wrong as wrong:
        return WRONG, str(wrong)
    except TooLong as error:
        where = f" It was at line {line} of {path.name}." if (line := line_in(error, path)) else ""
        return WRONG, f"{case.name} had not ended after {case.part.seconds:.0f} s: an endless loop?{where}"
    except Exception as error:
        if type(error) is NotImplementedError and not error.args:
            what = f"{path.name}, line {line_in(error, path)}"
            return NOT_BUILT, f"{case.name} is not built yet. Its docstring says what to do: {what}."
        return WRONG, f"{case.name} stops with {describe(error, path)}"
    return DONE, "; ".join(not_tried)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooLong inside when the time is over, where the system has alarms (Windows has none)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def describe(error: Exception, path: Path) -> str:
    """An exception in a line: what it is, and where in the student's file it came up."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    line = line_in(error, path)
    lines = (
        str(error).encode(errors="backslashreplace").decode().strip().splitlines()
    )  # a console wants UTF-8
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    said = " ".join([said, *getattr(error, "__notes__", [])])  # what it came up on, where a check knows
    return f"{said} ({path.name}, line {line})" if line else said


def line_in(error: BaseException, path: Path) -> int | None:
    """The innermost line of the file that the exception passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return frames[-1].lineno if frames else None
