"""Command line of the courses.

`python3 -m learn` shows the map, `python3 -m learn check [what]` checks and explains,
`python3 -m learn notebook [course]` writes a course as a notebook.
"""

import argparse
import signal
import sys
from pathlib import Path

import rich
from rich.markup import escape
from rich.table import Table

from learn.notebook import write_notebook
from learn.outline import COURSES, DONE, Outline, choose, keep_progress, states, unreadable
from learn.say import VERDICT_COLORS, print_verdict


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
    args = parser.parse_intermixed_args(arguments)
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
        print("learn/README.md says where to begin. To check what you built: python3 -m learn check [part]")
        return 0
    return check_parts(chosen, args.file)


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
    return int(not all_right)


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
    known = {outline.course: states(outline, file or outline.student) for outline, _ in chosen}
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
