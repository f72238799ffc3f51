"""Command line of the courses.

`python3 -m learn` shows the map, `python3 -m learn check [what]` checks and explains,
`python3 -m learn notebook [course]` writes a course as a notebook.
"""

import argparse
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import rich
from rich.markup import escape
from rich.table import Table

from learn.notebook import write_notebook
from learn.outline import (
    COURSES,
    DONE,
    Outline,
    choose,
    definitions,
    keep_progress,
    next_part,
    states,
    stub_line,
    unreadable,
)
from learn.say import VERDICT_COLORS, print_verdict

PROGRESS_WIDTH = 40
WATCH_SECONDS = 0.5  # between looks at the files


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return exit code 0 if everything checked is right, else 1."""
    parser = argparse.ArgumentParser(
        "python3 -m learn",
        description="Build transformers and be checked.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=["map", "check", "notebook"],
        default="map",
        help="map: show which parts are right so far (the default)\n"
        "check: check parts and explain what is wrong: check gpt2.Block\n"
        "notebook: write a course as a notebook into the working directory: notebook gpt2",
    )
    parser.add_argument("what", nargs="?", help="a course, a part, or course.part: gpt2, Block, gpt2.Block")
    parser.add_argument(
        "--file", type=Path, help="check this file instead of the course's: check gpt2 --file mine.py"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="check again whenever a file is saved, until Ctrl-C: check gpt2 --watch",
    )
    args = parser.parse_intermixed_args(arguments)
    if args.watch and args.action != "check":
        parser.error("--watch goes with check: check gpt2 --watch")
    try:
        chosen = choose(args.what)
    except ValueError as error:
        parser.error(str(error))
    if args.file and len(chosen) > 1:
        parser.error("--file is the file of one course: say which course, as in `check gpt2 --file mine.py`")
    if args.file and (problem := why_not_a_course(args.file, chosen[0][0])):
        parser.error(f"--file={args.file}: {problem}")
    if args.action == "notebook":
        return write(chosen)
    if args.action == "map":
        rich.print(progress(chosen, args.file))
        for outline, _ in chosen:
            if problem := unreadable(args.file or outline.student):
                print(problem)
        print_next_step(chosen, args.file)
        print("learn/README.md says where to begin. To check what you built: python3 -m learn check [part]")
        return 0
    return watch_parts(chosen, args.file) if args.watch else check_parts(chosen, args.file)


def why_not_a_course(file: Path, outline: Outline) -> str | None:
    """Return the reason why a file cannot be checked as the file of a course, or None."""
    if not file.is_file():
        return "there is no such file"
    if file.suffix != ".py":
        return "it must be a Python file, *.py; in a notebook, run its `check(...)` cells instead"
    for name in COURSES:
        if name != outline.course and file.resolve() == Outline(name).student:
            return f"that is the file of {name}, not of {outline.course}"
    return None


def check_parts(chosen: list[tuple[Outline, str | None]], file: Path | None) -> int:
    """Print a verdict on every part as soon as it is known. Return the exit code."""
    from learn.checking.course import (  # takes seconds to import; the map needs neither
        get_course,
        judge_course,
    )

    all_right = True
    for outline, part in chosen:
        checked = list[tuple[str, str]]()
        for verdict in judge_course(get_course(outline.course), file, part):
            print_verdict(outline.course, verdict)
            checked.append((verdict.part, verdict.state))
        keep_progress(file or outline.student, checked)
        all_right &= all(state == DONE for _, state in checked)
    print_next_step(chosen, file)
    return int(not all_right)


def watch_parts(chosen: list[tuple[Outline, str | None]], file: Path | None) -> int:
    """Check parts now and whenever a student's file is saved, until Ctrl-C. Return the exit code of the last check."""
    files = [Outline(name).student for name in COURSES] + ([] if file is None else [file])
    code, seen = 1, None
    try:
        while True:
            if (saved := [path.stat().st_mtime_ns if path.exists() else None for path in files]) != seen:
                seen = saved
                for name in COURSES:  # one course's file may import from another's
                    sys.modules.pop(f"learn.{name}_student", None)
                code = check_parts(chosen, file)
                print(f"{time.strftime('%H:%M:%S')} waiting for a file to be saved; Ctrl-C ends", flush=True)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return code


def states_of(chosen: list[tuple[Outline, str | None]], file: Path | None) -> dict[str, dict[str, str]]:
    """Return the states of all parts of the chosen courses, by course."""
    return {outline.course: states(outline, file or outline.student) for outline, _ in chosen}


def print_next_step(chosen: list[tuple[Outline, str | None]], file: Path | None) -> None:
    """Print how far the courses are, as a bar, and the next part with the minutes that it takes."""
    known = states_of(chosen, file)
    found = [state for of_course in known.values() for state in of_course.values()]
    n_done = found.count(DONE)
    filled = PROGRESS_WIDTH * n_done // len(found)
    left = f", about {as_hours(minutes_left(known))} left" if n_done < len(found) else ""
    print(f"{'█' * filled}{'░' * (PROGRESS_WIDTH - filled)} {n_done} of {len(found)} parts are right{left}")
    if (step := next_part(known)) is not None:
        print(f"next: {description_of_step(*step, file)}")


def minutes_left(known: Mapping[str, Mapping[str, str]]) -> float:
    """Return the minutes that the parts which are not right take, as far as the readmes say."""
    return sum(
        effort.minutes
        for course, parts in known.items()
        for name, effort in Outline(course).efforts().items()
        if parts.get(name) != DONE
    )


def as_hours(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.0f} h"


def description_of_step(outline: Outline, name: str, file: Path | None) -> str:
    """Return what to do next: the part, what to read before, how long both take, and where it stands in the file."""
    path, line = file or outline.student, None
    if unreadable(path) is None and (node := definitions(path).get(name)) is not None:
        line = stub_line(node) or node.lineno
    where = f"{path.name}, line {line}" if line else path.name
    effort = outline.efforts().get(name)
    if effort is None:
        return f"{outline.course}.{name} ({where}); {outline.readme.name} says what to read before"
    others = [part for part in effort.parts if part != name]
    both = f" for this and {', '.join(others)}" if others else ""
    reading = f"read {effort.read} ({effort.reading} min), then build" if effort.reading else "build"
    return f"{outline.course}.{name} ({where}): {reading} ({effort.building} min{both})"


def write(chosen: list[tuple[Outline, str | None]]) -> int:
    """Write the courses as notebooks into the working directory. Overwrite no file. Return the exit code."""
    failed = 0
    for outline, _ in chosen:
        file = Path(f"learn_{outline.course}.ipynb")
        try:
            write_notebook(outline, file)
        except FileExistsError:
            failed = 1
            print(
                f"{file} exists already and was not changed: rename it to write a new one",
                file=sys.stderr,
            )
        except (OSError, SyntaxError, ValueError) as error:
            failed = 1
            problem = unreadable(outline.student) or error
            print(f"{file} was not written: {problem}", file=sys.stderr)
        else:
            print(f"{file}: open it in Jupyter")
    return failed


def progress(chosen: list[tuple[Outline, str | None]], file: Path | None) -> Table:
    """Return the map: a table of all parts and their states."""
    known = states_of(chosen, file)
    all_states = [state for of_course in known.values() for state in of_course.values()]
    table = Table(title=f"{all_states.count(DONE)} of {len(all_states)} parts are right")
    table.add_column("part", no_wrap=True)
    table.add_column("what it is")
    table.add_column("state", no_wrap=True)
    for outline, _ in chosen:
        table.add_section()
        for name, task in outline.parts().items():
            state = known[outline.course][name]
            table.add_row(f"{outline.course}.{name}", escape(task), f"[{VERDICT_COLORS[state]}]{state}[/]")
    return table


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `python3 -m learn | head`
    sys.exit(main())
