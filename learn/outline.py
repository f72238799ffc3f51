"""Parts of the courses and their states. They are read from the text of the files, so the map need not import torch."""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.text import nearest

HERE = Path(__file__).parent
PROGRESS = HERE / "progress.json"  # results of the last checks, with a hash of the checked code
COURSES = ("tokenizers", "gpt2", "generation", "bert", "training", "further")  # in the order to build them
# A row in the readme of a course: parts, what to read before, minutes of reading, minutes of building.
ROW = re.compile(r"^\| (`.+?`) \| *(.*?) *\| *(?:(\d+) min)? *\| *(\d+) min *\|$", re.MULTILINE)
DONE, WRONG, NOT_BUILT, NOT_CHECKED = "right", "wrong", "not built", "not checked"


class Effort(NamedTuple):
    """Reading for a part, and minutes of reading and of building it. Parts in one row of the readme share them."""

    read: str
    reading: int
    building: int
    parts: tuple[str, ...]

    @property
    def minutes(self) -> float:
        """The minutes of one part."""
        return (self.reading + self.building) / len(self.parts)


@dataclass(frozen=True)
class Outline:
    """Files of a course. Its parts are the public classes and functions of the solution, in their order there."""

    course: str

    @property
    def student(self) -> Path:
        return HERE / f"{self.course}_student.py"

    @property
    def solution(self) -> Path:
        return HERE / "solution" / f"{self.course}.py"

    @property
    def readme(self) -> Path:
        return HERE / f"{self.course}.md"

    @property
    def mistakes(self) -> Path:
        return HERE / "courses" / self.course / "mistakes.txt"

    def parts(self) -> dict[str, str]:
        """Return the names of the parts, each with the first line of its docstring."""
        found = definitions(self.solution)
        return {name: (ast.get_docstring(node) or "").split("\n")[0] for name, node in found.items()}

    def efforts(self) -> dict[str, Effort]:
        """Return what each part takes, from the table in the course's readme. Some courses have none."""
        found: dict[str, Effort] = {}
        for names, read, reading, building in ROW.findall(self.readme.read_text(encoding="utf-8")):
            parts = tuple(re.findall(r"`(\w+)`", names))
            effort = Effort(read.replace("*", ""), int(reading or 0), int(building), parts)
            found |= dict.fromkeys(parts, effort)
        return found


def choose(what: str | None) -> list[tuple[Outline, str | None]]:
    """Return (course, part) for "gpt2", "gpt2.Block" or "Block". The part is None for a whole course.

    Return all courses if `what` is None. Raise ValueError for an unknown or ambiguous name, with similar names.
    """
    outlines = [Outline(name) for name in COURSES]
    if what is None:
        return [(outline, None) for outline in outlines]
    course, _, word = what.strip().lower().rpartition(".")
    if not course and word in COURSES:
        return [(Outline(word), None)]
    parts = {f"{outline.course}.{name}": (outline, name) for outline in outlines for name in outline.parts()}
    of_course = {key: part for key, part in parts.items() if course in ("", part[0].course)}
    full = [part for part in of_course.values() if part[1].lower() == word]
    if len(full) == 1:
        return [*full]
    if full:
        raise ValueError(
            f"{what!r} is ambiguous; use one of: {', '.join(f'{o.course}.{name}' for o, name in full)}"
        )
    words = {key: name.lower() for key, (_, name) in (of_course or parts).items()}
    alike = nearest(word, set(words.values()), n=6)
    near = [key for key, name in words.items() if word and (word in name or name in alike)]
    hint = f"; did you mean {', '.join(near)}?" if near else "."
    raise ValueError(
        f"there is no part {what!r}{hint} The courses are {', '.join(COURSES)}; `python3 -m learn` lists their parts"
    )


Definition = ast.ClassDef | ast.FunctionDef


def definitions(file: Path) -> dict[str, Definition]:
    """Return the public classes and functions at the top level. Raise SyntaxError if the file is not valid Python."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, Definition) and not node.name.startswith("_")
    }


def states(outline: Outline, file: Path) -> dict[str, str]:
    """Return the state of every part in a student's file. A part that changed since its last check is "not checked"."""
    known = read_progress().get(str(file.resolve()), {})
    try:
        written = definitions(file)
    # While the file cannot be read, show the last known states.
    except (OSError, SyntaxError, ValueError):
        return {name: known.get(name, {}).get("state", NOT_CHECKED) for name in outline.parts()}
    return {name: state(written.get(name), known.get(name, {})) for name in outline.parts()}


def next_part(known: Mapping[str, Mapping[str, str]]) -> tuple[Outline, str] | None:
    """Return the first part that is not right, of a course that has been begun if there is one. None: all are right.

    `known` has the states of parts, by course.
    """
    left = [
        (set(parts.values()) <= {NOT_BUILT}, Outline(course), name)
        for course, parts in known.items()
        for name, state in parts.items()
        if state != DONE
    ]
    _, outline, name = min(left, key=lambda one: one[0], default=(None, None, None))
    return None if outline is None or name is None else (outline, name)


def unreadable(file: Path) -> str | None:
    """Return the reason why a file cannot be read as Python, or None."""
    try:
        definitions(file)
    except SyntaxError as error:
        return f"{file.name} cannot be read: {error.msg} (line {error.lineno})"
    except (OSError, ValueError) as error:
        return f"{file.name} cannot be read: {error}"
    return None


def state(node: Definition | None, known: dict[str, str]) -> str:
    if node is None or stub_line(node) is not None:
        return NOT_BUILT
    return known["state"] if known.get("text") == definition_digest(node) else NOT_CHECKED


def stub_line(node: Definition) -> int | None:
    """Return the line of the first bare `raise NotImplementedError`, or None."""
    left = [
        inner.lineno
        for inner in ast.walk(node)
        if isinstance(inner, ast.Raise)
        and isinstance(inner.exc, ast.Name)
        and inner.exc.id == NotImplementedError.__name__
    ]
    return min(left, default=None)


def definition_digest(node: Definition) -> str:
    """Return a hash of the syntax tree. Comments and line breaks do not count."""
    return hashlib.sha256(ast.dump(node).encode()).hexdigest()


def read_progress() -> dict[str, dict[str, dict[str, str]]]:
    try:
        return json.loads(PROGRESS.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: the next check writes it anew
        return {}


def keep_progress(file: Path, checked: Iterable[tuple[str, str]]) -> None:
    """Save (part, state) pairs of a file for the map, if the folder is writable."""
    try:
        written = definitions(file)
    except (OSError, SyntaxError, ValueError):
        return
    progress = read_progress()
    known = progress.setdefault(str(file.resolve()), {})
    known |= {
        name: {"state": s, "text": definition_digest(written[name])} for name, s in checked if name in written
    }
    temporary = PROGRESS.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        temporary.write_text(json.dumps(progress, indent=1), encoding="utf-8")
        temporary.replace(PROGRESS)
