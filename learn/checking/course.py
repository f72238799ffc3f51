"""A course: the parts of a student's file, and a verdict on each of them."""

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
    """Message of a failed check to the student, in one or two sentences."""


class NotTried(Exception):
    """Reason why a check cannot run here. The part counts as right without it."""


class TooLong(BaseException):
    """Signal that a part used up its time. Not an Exception, so that no student's `except Exception` catches it."""


def no_reference(*_: Any) -> Any:
    raise TypeError("this part has checks of its own only")


def all_of_it(out: Any, *_: Any) -> Any:
    return out


@dataclass(frozen=True)
class Part:
    """Checks of one class or function of the student's file, and the inputs for them."""

    make: Callable[[Any], Any]  # from a file to a small module, or to the function itself
    inputs: Callable[[], list[tuple]] = list  # arguments of a few calls
    # Return the right result for (what was made, *arguments), computed by other people's code.
    reference: Callable[..., Any] = no_reference
    axes: tuple[str, ...] = ()  # names of the output's dimensions
    checks: tuple["Check", ...] = ()
    seconds: float = 30.0  # a part that takes longer is taken for an endless loop
    counts: Callable[..., Any] = all_of_it  # of (an output, *arguments): what of it has to be right


Check = Callable[["Case"], None]


@dataclass(frozen=True)
class Mistake:
    """Known mistake: a variant of the solution that differs from it by one edit."""

    part: str
    says: str  # completes "it looks like ..."
    right: str  # text that occurs once in the solution
    mistaken: str  # text in its place


@dataclass(frozen=True)
class Case:
    """Input of a check: a part, the student's file, the solution and the known mistakes."""

    name: str
    part: Part
    mine: ModuleType
    solution: ModuleType
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Course:
    """Student's file with the checks of its parts."""

    outline: Outline
    parts: dict[str, Part]
    mistakes: tuple[Mistake, ...]
    uses: tuple[tuple[str, str], ...] = ()  # (course, part) that the student's file imports from another one

    def case(self, name: str, mine: ModuleType, solution: ModuleType) -> Case:
        mistakes = tuple(mistake for mistake in self.mistakes if mistake.part == name)
        return Case(name, self.parts[name], mine, solution, mistakes)


@dataclass(frozen=True)
class Verdict:
    """State of a part after its checks, and the message about it."""

    part: str
    state: str  # DONE, WRONG or NOT_BUILT
    says: str = ""
    borrowed: tuple[str, ...] = ()  # other parts that were taken from the solution
    n_checks: int = 0


def get_course(name: str) -> Course:
    """Return the course of this name. Imports torch and the packages of the references."""
    course = importlib.import_module(f"learn.courses.{name}.course").COURSE
    assert isinstance(course, Course)
    return course


def load_module(path: Path, text: str | None = None) -> ModuleType:
    """Run a file as a new module, and return it. `text`, if given, replaces the file's own text."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    text = path.read_text(encoding="utf-8") if text is None else text
    exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102  the student's own file, or an edited solution
    return module


def judge_course(course: Course, student: Path | None = None, wanted: str | None = None) -> Iterator[Verdict]:
    """Yield a verdict on every part, or on the wanted one.

    A part that is not right is replaced by the solution's while the others are checked.
    """
    path = student or course.outline.student
    try:
        mine = load_module(path)
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
    """Do as `judge_course` for a loaded module. Parts that are not right are replaced by the solution's in it."""
    solution = load_module(course.outline.solution)
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
    """Return the wanted part and those it uses, in the student's file or in the solution. None wants all parts."""
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
    """Return all names that occur in these definitions, and in private helpers that they call."""
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
    """Check a part that the file imports from another course. Return True if it is not right.

    It is then replaced by the solution's in `mine`.
    """
    course = get_course(other)
    [verdict] = judge_course(course, wanted=part)
    if verdict.state != DONE:
        solution = importlib.import_module(f"learn.solution.{other}")
        setattr(mine, part, getattr(solution, part))
    return verdict.state != DONE


def judge(case: Case, path: Path) -> tuple[str, str]:
    """Return the state of a part and a message: of the first failed check, or of the checks that could not run."""
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
    """Say which function of a part is not built yet, and where it is."""
    frames = frames_in(error, path)
    function = frames[-1].name if frames else name
    left = "" if function in (name, "__init__") else f": `{function}` is left"
    where = f": {path.name}, line {frames[-1].lineno}" if frames and path != NOTEBOOK else ""
    return f"{name} is not built yet{left}. Its docstring says what to do{where}."


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in the `with` block when the time is over. Without effect on Windows, which has no alarms."""
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
    """Stop a part's clock in the `with` block: for downloads, and for models whose size the student did not choose."""
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
        other = error.filename and Path(error.filename).name != path.name  # a file that it imports
        return f"{error.msg} ({Path(str(error.filename)).name + ', ' if other else ''}line {error.lineno})"
    name, line = place_in_file(error, path)
    # A console may refuse text that is not valid UTF-8.
    lines = str(error).encode(errors="backslashreplace").decode().strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    said = " ".join([said, *getattr(error, "__notes__", [])])  # what it came up on, where a check knows
    return f"{said} ({name}, line {line})" if line else said


def place_in_file(error: BaseException, path: Path) -> tuple[str, int | None]:
    """Return (file name, line) of the innermost frame in the student's file, or in another course's that it imports."""
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
    """Return the innermost line of the file in the exception's traceback."""
    frames = frames_in(error, path)
    return frames[-1].lineno if frames else None


def frames_in(error: BaseException, path: Path) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if is_of(path, frame.filename)]


def is_of(path: Path, filename: str) -> bool:
    """Return True if code of this file name is the student's. Jupyter and IPython name a file for each cell."""
    return filename == str(path) or (
        path == NOTEBOOK and any(name in filename for name in ("ipykernel", "<ipython-input"))
    )
