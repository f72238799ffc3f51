"""Print verdicts on the console or in a notebook."""

from typing import TYPE_CHECKING

import rich
from rich.markup import escape

from learn.outline import DONE, NOT_BUILT, NOT_CHECKED, WRONG

if TYPE_CHECKING:
    from learn.checking.course import Verdict

VERDICT_COLORS = {DONE: "green", WRONG: "red", NOT_BUILT: "dim", NOT_CHECKED: "yellow"}


def print_verdict(course: str, verdict: "Verdict") -> None:
    """Print the verdict on one part."""
    text = f"[{VERDICT_COLORS[verdict.state]}]{course}.{verdict.part}: {verdict.state}[/]"
    if verdict.state == DONE:
        text += f" ({verdict.n_checks} checks)"
    if verdict.says:
        text += f"\n  {escape(verdict.says)}"
    if verdict.state != NOT_BUILT and verdict.borrowed:
        text += f"\n  (checked with the solution's {', '.join(verdict.borrowed)}, as yours is not right yet)"
    rich.get_console().print(text, soft_wrap=True, highlight=False)
