"""Who did the work: the student, or code and operators that the spy knows."""

from collections.abc import Callable, Collection
from typing import Any

from learn.checking.course import Case, Check, Wrong
from learn.checking.spy import Spy


def by_hand_in(
    run: Callable[[Any], object], places: Collection[str] | None = None, allowed: Collection[str] = ()
) -> Check:
    """The student did whatever `run` does with the file; with `places`, only these may not have done it.

    `allowed` are parts of the names of operators that may take part.
    """

    def check(case: Case) -> None:
        with Spy() as spy:
            run(case.mine)
        honest(case, spy, places, allowed)

    return check


def honest(
    case: Case, spy: Spy, places: Collection[str] | None = None, allowed: Collection[str] = ()
) -> None:
    """Wrong where someone else did the work: all that the spy knows, or these places of it, or the solution."""
    for operator, what in spy.cheats().items() if places is None else ():
        if not any(part in operator for part in allowed):
            raise Wrong(
                f"right, but {what} ran (torch's operator `{operator}`): here you write that yourself."
            )
    for place, name in spy.work_of_others():
        if places is None or place in places:
            raise Wrong(f"right, but {name} of {place} did the work: here you write that yourself.")
    if (
        case.solution.__file__ != getattr(case.mine, "__file__", None)
        and (case.solution.__file__, case.name) in spy.code
    ):
        raise Wrong(f"right, but {case.name} of the solution did the work: here you write that yourself.")
