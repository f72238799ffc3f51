"""The course on the command line: `python3 -m learn` is the map, `python3 -m learn check [part]` checks and explains."""

import argparse
import sys
from pathlib import Path

import rich
from rich.markup import escape
from rich.table import Table

from learn.course import Course, Verdict, judge_course
from learn.gpt2_course import GPT2

COLOURS = {"right": "green", "wrong": "red", "not built": "dim"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 if all that was checked is right, else 1."""
    parser = argparse.ArgumentParser(
        "python3 -m learn", description="Build GPT-2 from scratch and be checked."
    )
    parser.add_argument("action", nargs="?", choices=["map", "check"], default="map")
    parser.add_argument("part", nargs="?", choices=[part.name for part in GPT2.parts])
    parser.add_argument("--file", type=Path, help="check this file in place of learn/gpt2_student.py")
    args = parser.parse_args(arguments)
    verdicts = judge_course(GPT2, args.file, args.part)
    if args.action == "map":
        rich.print(progress(GPT2, verdicts))
        print("What to read and where to begin: learn/gpt2.md. To be checked: python3 -m learn check [part]")
        return 0
    shown = [verdict for verdict in verdicts if args.part in (None, verdict.part.name)]
    for verdict in shown:
        rich.get_console().print(in_words(verdict), soft_wrap=True)
    return int(any(verdict.state != "right" for verdict in shown))


def progress(course: Course, verdicts: list[Verdict]) -> Table:
    """The map: every part with its state."""
    done = sum(verdict.state == "right" for verdict in verdicts)
    table = Table(
        title=f"{course.name}: {done} of {len(course.parts)} parts are right ({course.student.name})"
    )
    for column in ("part", "you write", "what it is", "state"):
        table.add_column(column)
    for verdict in verdicts:
        part, colour = verdict.part, COLOURS[verdict.state]
        table.add_row(part.name, part.defines, part.task, f"[{colour}]{verdict.state}[/]")
    return table


def in_words(verdict: Verdict) -> str:
    """One part's result, for the console."""
    colour = COLOURS[verdict.state]
    head = f"[{colour}]{verdict.part.name}: {verdict.state}[/]"
    if verdict.state == "right":
        n = len(verdict.part.checks)
        return f"{head} ({n} checks)"
    borrowed = f"\n  (checked with the solution's {', '.join(verdict.borrowed)})" if verdict.borrowed else ""
    return f"{head}\n  {escape(verdict.says)}{borrowed if verdict.state == 'wrong' else ''}"


if __name__ == "__main__":
    sys.exit(main())
