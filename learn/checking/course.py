"""Courses: the parts of a student's file, and a verdict on each of them."""

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

NOTEBOOK = Path("your cells")  # stands for the student's file in a notebook


class Wrong(Exception):
    """A failed check. The message tells the student what is wrong, in one or two sentences."""


class NotTried(Exception):
    """A check that cannot run here. The message gives the reason. The part can be right without it."""


class TooLong(BaseException):
    """Signal that a part has used up its time. Not an Exception, so a student's `except Exception` cannot catch it."""


def no_reference(*_: Any) -> Any:
    raise TypeError("this part has checks of its own only")


def all_of_it(out: Any, *_: Any) -> Any:
    return out


@dataclass(frozen=True)
class Part:
    """Checks of one class or function of the student's file, and the inputs for them."""

    make: Callable[[Any], Any]  # returns a small module made from a file's class, or the file's function
    inputs: Callable[[], list[tuple]] = list  # arguments of a few calls
    # Computes the right result for (result of `make`, *arguments) with other people's code.
    reference: Callable[..., Any] = no_reference
    axes: tuple[str, ...] = ()  # names of the output's dimensions
    checks: tuple["Check", ...] = ()
    seconds: float = 30.0  # time limit, against endless loops
    # Selects the values that have to be right from (output, *arguments).
    counts: Callable[..., Any] = all_of_it


Check = Callable[["Case"], None]


@dataclass(frozen=True)
class Mistake:
    """A known mistake: one edit of the solution."""

    part: str
    says: str  # completes "it looks like ..."
    right: str  # text that occurs once in the solution
    mistaken: str  # its replacement


@dataclass(frozen=True)
class Case:
    """The input of a check: a part, the student's file, the solution and the known mistakes."""

    name: str
    part: Part
    mine: ModuleType
    solution: ModuleType
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Course:
    """All that is needed to check one student's file: its outline, the checks of each class or function, known mistakes."""

    outline: Outline
    parts: dict[str, Part]
    mistakes: tuple[Mistake, ...]
    uses: tuple[tuple[str, str], ...] = ()  # (course, part) that the student's file imports from another one

    def case(self, name: str, mine: ModuleType, solution: ModuleType) -> Case:
        mistakes = tuple(mistake for mistake in self.mistakes if mistake.part == name)
        return Case(name, self.parts[name], mine, solution, mistakes)


@dataclass(frozen=True)
class Verdict:
    """The state of a part after its checks, and a message about it."""

    part: str
    state: str  # DONE, WRONG or NOT_BUILT
    says: str = ""
    borrowed: tuple[str, ...] = ()  # other parts that it uses, taken from the solution
    n_checks: int = 0


def get_course(name: str) -> Course:
    """Return the course of this name. This imports torch and the packages of the references."""
    course = importlib.import_module(f"learn.courses.{name}.course").COURSE
    assert isinstance(course, Course)
    return course


def load_module(path: Path, text: str | None = None) -> ModuleType:
    """Run a file as a new module, and return the module. `text`, if given, replaces the text of the file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    text = path.read_text(encoding="utf-8") if text is None else text
    exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102  the student's own file, or an edited solution
    return module


def judge_course(course: Course, student: Path | None = None, only: str | None = None) -> Iterator[Verdict]:
    """Yield a verdict on every part, or only on the part `only`.

    A part that is not right is replaced by the solution's while other parts are checked.
    """
    path = student or course.outline.student
    try:
        mine = load_module(path)
    # Whatever is wrong with the file, the student gets a sentence, not a traceback.
    except (Exception, SystemExit) as error:
        says = f"{path.name} cannot be read: {describe(error, path)}"
        yield from (Verdict(name, WRONG, says) for name in course.parts if only in (None, name))
        return
    yield from judge_module(course, mine, path, only)


def judge_module(course: Course, mine: ModuleType, path: Path, only: str | None = None) -> Iterator[Verdict]:
    """Yield the verdicts of `judge_course` on a loaded module.

    In the module, parts that are not right are replaced by the solution's.
    """
    solution = load_module(course.outline.solution)
    needed = needs(course, path, only)
    borrowed = [part for other, part in course.uses if part in needed and borrow(part, other, mine)]
    for name in course.parts:
        if name not in needed:
            continue
        verdict = judge(course.case(name, mine, solution), path)
        if only in (None, name):
            parts = needs(course, path, name)
            inside = tuple(part for part in borrowed if part in parts)
            yield Verdict(name, *verdict, inside, len(course.parts[name].checks))
        if verdict[0] != DONE:
            setattr(mine, name, getattr(solution, name))
            borrowed.append(name)


def needs(course: Course, path: Path, only: str | None) -> set[str]:
    """Return the part `only` and the parts that it uses, in the student's file or in the solution.

    Return all parts if `only` is None.
    """
    if only is None:
        return {*course.parts, *(part for _, part in course.uses)}
    files = [course.outline.solution, *([path] if path.is_file() else [])]
    found, new = set[str](), {only}
    while new:
        found |= new
        mentioned = {name for file in files for name in mentions(file, new)}
        new = (mentioned & {*course.parts, *(part for _, part in course.uses)}) - found
    return found


def mentions(file: Path, names: set[str]) -> set[str]:
    """Return all names that occur in these definitions and in the private helpers that they call."""
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
    """Check a part that the file imports from another course. If it is not right, borrow the solution's.

    Return True if the part was replaced in `mine`.
    """
    course = get_course(other)
    [verdict] = judge_course(course, only=part)
    if verdict.state != DONE:
        solution = importlib.import_module(f"learn.solution.{other}")
        setattr(mine, part, getattr(solution, part))
    return verdict.state != DONE


def judge(case: Case, path: Path) -> tuple[str, str]:
    """Return the state of a part, and the message of the first failed check or of the checks that could not run."""
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
        return (
            WRONG,
            f"{case.name} had not ended after {case.part.seconds:.0f} s: is there an endless loop?{where}",
        )
    except (Exception, SystemExit) as error:
        if type(error) is NotImplementedError and not error.args:
            return NOT_BUILT, unbuilt(case.name, path, error)
        return WRONG, f"{case.name} stops with {describe(error, path)}"
    return DONE, "; ".join(dict.fromkeys(not_tried))


def unbuilt(name: str, path: Path, error: BaseException) -> str:
    """Return a sentence that says which function of a part is not built yet, and where it is."""
    frames = frames_in(error, path)
    function = frames[-1].name if frames else name
    left = "" if function in (name, "__init__") else f": `{function}` is left"
    where = f": {path.name}, line {frames[-1].lineno}" if frames and path != NOTEBOOK else ""
    return f"{name} is not built yet{left}. Its docstring says what to do{where}."


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in the `with` block when the time is over. On Windows, which has no alarms, do nothing."""
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
    """Stop a part's clock in the `with` block. For downloads, and for models whose size the student did not choose."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


def describe(error: BaseException, path: Path) -> str:
    """Describe an exception in one line, with its place in the student's file."""
    if isinstance(error, SyntaxError):
        other = error.filename and Path(error.filename).name != path.name  # the error is in an imported file
        return f"{error.msg} ({Path(str(error.filename)).name + ', ' if other else ''}line {error.lineno})"
    name, line = place_in_file(error, path)
    # A console may reject text that is not valid UTF-8.
    lines = str(error).encode(errors="backslashreplace").decode().strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    said = " ".join([said, *getattr(error, "__notes__", [])])  # checks add the input as a note
    return f"{said} ({name}, line {line})" if line else said


def place_in_file(error: BaseException, path: Path) -> tuple[str, int | None]:
    """Return (file name, line) of the innermost frame in the student's file or in another course's file."""
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
    """Return the innermost line of the file in the traceback, or None."""
    frames = frames_in(error, path)
    return frames[-1].lineno if frames else None


def frames_in(error: BaseException, path: Path) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if is_of(path, frame.filename)]


def is_of(path: Path, filename: str) -> bool:
    """Return True if code with this file name is the student's. Jupyter and IPython name a file for each cell."""
    return filename == str(path) or (
        path == NOTEBOOK and any(name in filename for name in ("ipykernel", "<ipython-input"))
    )
