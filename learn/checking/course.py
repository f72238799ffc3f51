"""A course: the parts of a student's file, and the judging of them one after another."""

import ast
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

from learn.outline import COURSES, DONE, NOT_BUILT, WRONG, Definition, Outline

NOTEBOOK = Path("your cells")  # stands for the student's file where there is none


class Wrong(Exception):
    """What a check says to the student, in one or two sentences."""


class NotTried(Exception):
    """A check that cannot be made here, and why; the part is right without it."""


class TooLong(BaseException):
    """A part had more than its time. Not an Exception, so that no student's `except Exception` swallows it."""


def no_reference(*_: Any) -> Any:
    raise TypeError("this part has checks of its own only")


def all_of_it(out: Any, *_: Any) -> Any:
    return out


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
    counts: Callable[..., Any] = all_of_it  # of (an output, *arguments): what of it has to be right


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
    course = importlib.import_module(f"learn.courses.{name}.course").COURSE
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
    try:
        mine = load(path)
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever is wrong with it must end neither in a traceback nor silently
        says = f"{path.name} cannot be read: {describe(error, path)}"
        yield from (Verdict(name, WRONG, says) for name in course.parts if wanted in (None, name))
        return
    yield from judge_module(course, mine, path, wanted)


def judge_module(
    course: Course, mine: ModuleType, path: Path, wanted: str | None = None
) -> Iterator[Verdict]:
    """The same of a module that is there. Afterwards it has the solution's parts where its own are not right."""
    solution = load(course.outline.solution)
    needed = needs(course, path, wanted)
    borrowed = [part for other, part in course.uses if part in needed and borrow(part, other, mine)]
    for name in course.parts:
        if name not in needed:
            continue
        verdict = judge(course.case(name, mine, solution), path)
        if wanted in (None, name):
            parts = needs(course, path, name)
            inside = tuple(part for part in borrowed if part in parts)
            yield Verdict(name, *verdict, inside, len(course.parts[name].checks))
        if verdict[0] != DONE:
            setattr(mine, name, getattr(solution, name))
            borrowed.append(name)


def needs(course: Course, path: Path, wanted: str | None) -> set[str]:
    """The wanted part, and those that it is made of in the student's file or in the solution; without one, all."""
    if wanted is None:
        return {*course.parts, *(part for _, part in course.uses)}
    files = [course.outline.solution, *([path] if path.is_file() else [])]
    found, new = set[str](), {wanted}
    while new:
        found |= new
        mentioned = {name for file in files for name in mentions(file, new)}
        new = (mentioned & {*course.parts, *(part for _, part in course.uses)}) - found
    return found


def mentions(file: Path, names: set[str]) -> set[str]:
    """All names that occur in these definitions, also through the file's private helpers."""
    text = file.read_text(encoding="utf-8")
    nodes = {node.name: node for node in ast.parse(text).body if isinstance(node, Definition)}
    found, new = set[str](), {*names}
    while new:
        inside = [inner for name in new if name in nodes for inner in ast.walk(nodes[name])]
        occurring = {inner.id for inner in inside if isinstance(inner, ast.Name)}
        found |= occurring
        new = {name for name in occurring if name.startswith("_")} - new
    return found


def borrow(part: str, other: str, mine: ModuleType) -> bool:
    """Whether a part that the file imports from another course's is not right; the solution's is then put in."""
    course = get_course(other)
    [verdict] = judge_course(course, wanted=part)
    if verdict.state != DONE:
        solution = importlib.import_module(f"learn.solution.{other}")
        setattr(mine, part, getattr(solution, part))
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
    except (Exception, SystemExit) as error:
        if type(error) is NotImplementedError and not error.args:
            return NOT_BUILT, unbuilt(case.name, path, error)
        return WRONG, f"{case.name} stops with {describe(error, path)}"
    return DONE, "; ".join(dict.fromkeys(not_tried))


def unbuilt(name: str, path: Path, error: BaseException) -> str:
    """That a part is not built, or which function of it, and where."""
    frames = frames_in(error, path)
    function = frames[-1].name if frames else name
    left = "" if function in (name, "__init__") else f": `{function}` is left"
    where = f": {path.name}, line {frames[-1].lineno}" if frames and path != NOTEBOOK else ""
    return f"{name} is not built yet{left}. Its docstring says what to do{where}."


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


@contextmanager
def clock_stopped() -> Iterator[None]:
    """Inside, a part's time does not run: for a download, and models of a size that no student chose."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


def describe(error: BaseException, path: Path) -> str:
    """An exception in a line: what it is, and where in the student's file it came up."""
    if isinstance(error, SyntaxError):
        other = error.filename and Path(error.filename).name != path.name  # a file that it imports
        return f"{error.msg} ({Path(str(error.filename)).name + ', ' if other else ''}line {error.lineno})"
    name, line = place_of(error, path)
    lines = (
        str(error).encode(errors="backslashreplace").decode().strip().splitlines()
    )  # a console wants UTF-8
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    said = " ".join([said, *getattr(error, "__notes__", [])])  # what it came up on, where a check knows
    return f"{said} ({name}, line {line})" if line else said


def place_of(error: BaseException, path: Path) -> tuple[str, int | None]:
    """The innermost line that the exception passed through of the student's: in this file, or in one that it imports."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if is_of(path, frame.filename) or frame.filename in {str(Outline(name).student) for name in COURSES}
    ]
    if not frames:
        return path.name, None
    own = is_of(path, frames[-1].filename)
    return path.name if own else Path(frames[-1].filename).name, frames[-1].lineno


def line_in(error: BaseException, path: Path) -> int | None:
    """The innermost line of the file that the exception passed through."""
    frames = frames_in(error, path)
    return frames[-1].lineno if frames else None


def frames_in(error: BaseException, path: Path) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if is_of(path, frame.filename)]


def is_of(path: Path, filename: str) -> bool:
    """Whether code of this file name is the student's; Jupyter and IPython give each cell a file name of its own."""
    return filename == str(path) or (
        path == NOTEBOOK and any(name in filename for name in ("ipykernel", "<ipython-input"))
    )
