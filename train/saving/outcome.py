"""Outcome: how and why a run ended, and its final numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import torch

from train.saving.weights import one_line

OUT_OF_MEMORY = re.compile(  # messages of RuntimeErrors in libraries
    r"out of memory|(can't|cannot|can not|could not|failed to|unable to) allocate|not enough memory|"
    r"STATUS_ALLOC_FAILED|bad_alloc|killed by signal|shared memory|No space left",
    re.IGNORECASE,
)
Value = float | int | str | None


class Ending(StrEnum):
    """The ways in which a run can end. The last three are never saved with a run."""

    FINISHED = "finished"
    EARLY_STOP = "early stop"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    CANCELLED = "cancelled"  # another run failed, with --fail-fast
    ELSEWHERE = "training elsewhere"  # by another call, at the moment
    NOT_RUN = "not run"  # the grid ended before its turn


def ending_of(stopped: object) -> Ending | None:
    """Return how a run ended from its text, such as "diverged: training loss nan at step 3". None if unknown."""
    known = str(stopped).partition(":")[0]
    return Ending(known) if known in set(Ending) else None


@dataclass(frozen=True)
class Outcome:
    """The end of a run: how and why it ended, and its final numbers."""

    ending: Ending
    why: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)  # the run's measured columns in `runs()`
    folder: Path | None = None  # where it is saved
    is_earlier: bool = False  # an earlier call trained it
    is_last: bool = False  # Ctrl-C came when nothing of this run was left to train

    @property
    def failed(self) -> bool:
        return self.ending is Ending.FAILED

    @property
    def diverged(self) -> bool:
        return self.ending is Ending.DIVERGED

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C came while the run trained, or when it had just ended."""
        return self.ending is Ending.INTERRUPTED or self.is_last

    @property
    def stopped(self) -> str:
        """The ending and its reason as they are saved: "finished", "early stop: no better validation in 3"."""
        return f"{self.ending}: {self.why}" if self.why else str(self.ending)

    def __str__(self) -> str:
        return self.stopped + " earlier" * self.is_earlier + ", then Ctrl-C" * self.is_last

    def as_row(self) -> dict[str, Value]:
        """Return the run's measured columns, as they are saved."""
        return {**self.values, "stopped": self.stopped}

    @classmethod
    def of(cls, stopped: object, values: Mapping[str, Value], was_pressed: bool = False) -> "Outcome":
        """Return the outcome of a run that `stopped` in this way, such as "early stop: no better validation in 3".

        A text that names no known ending counts as finished. `was_pressed`
        is True if Ctrl-C was pressed.
        """
        ending = ending_of(stopped) or Ending.FINISHED
        why = str(stopped).partition(": ")[2]
        return cls(ending, why, values, is_last=was_pressed and ending is not Ending.INTERRUPTED)

    @classmethod
    def from_row(cls, row: Mapping[str, Value], folder: Path | None = None) -> "Outcome":
        """Return the outcome of a run that an earlier call trained, from the columns that `as_row` gave."""
        values = {name: value for name, value in row.items() if name != "stopped"}
        return replace(cls.of(row.get("stopped"), values), folder=folder, is_earlier=True)


def failure(error: BaseException, values: Mapping[str, Value] | None = None) -> Outcome:
    """Return the outcome of a run that ended with `error`."""
    return Outcome(Ending.FAILED, f"{type(error).__name__}: {one_line(error)}", values or {})


def is_out_of_resources(error: BaseException | None) -> bool:
    """Return True if a run failed for lack of disk space or memory, so that it may succeed in another attempt."""
    while error is not None:
        if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False
