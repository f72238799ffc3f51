"""Timestamps: each is given to one run below a root, however many processes ask at once, and without a walk for each."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

FORMAT = "%Y-%m-%d--%H-%M-%S"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d--\d\d-\d\d-\d\d")
PARTIAL = ".partial"  # ends the name of a run's folder until everything is in it
SECOND = timedelta(seconds=1)


def run_folders(root: Path) -> Iterator[Path]:
    """The folder of every run saved under `root`, complete or not; symbolic links are not followed."""
    for folder, subfolders, _ in os.walk(root / "saved-models"):
        runs = sorted(name for name in subfolders if TIMESTAMP.fullmatch(name.removesuffix(PARTIAL)))
        subfolders[:] = sorted(set(subfolders) - set(runs))
        yield from (Path(folder, name) for name in runs)


class Timestamps:
    """The timestamps that are taken in `base`, a folder saved-models: those of the runs that this process found there when
    it first asked, and from then on the lines of a file there, to which every process adds what it takes.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.file = base / "timestamps.txt"
        self.taken: set[str] = set()
        self.n_read: int | None = None  # bytes of the file; None: the folder is to be looked through, too
        self.full = datetime.max, datetime.min  # from the one to the other no second is free

    def give(self, when: datetime, folder_of: Callable[[str], Path]) -> Path:
        """`folder_of` the next timestamp from `when` on that no run has; if it raises an error, nothing is taken."""
        first, last = self.full
        when = when.replace(microsecond=0)
        first, when = (first, last + SECOND) if first <= when <= last else (when, when)
        while True:
            timestamp = f"{when:{FORMAT}}"
            if timestamp not in self.taken:
                with token(self.base / f".{timestamp}") as is_ours:
                    if is_ours and not self.is_taken(timestamp):
                        folder = folder_of(timestamp)
                        self.add(timestamp)
                        self.full = first, when
                        return folder
            when += SECOND

    def is_taken(self, timestamp: str) -> bool:
        """Whether a run has it, by all that was taken up to now."""
        size = self.file.stat().st_size if self.file.exists() else 0
        if self.n_read is None or size < self.n_read:  # also if somebody has cleared the folder out
            self.taken = {folder.name.removesuffix(PARTIAL) for folder in run_folders(self.base.parent)}
            self.n_read = 0
        if self.file.exists():
            with self.file.open("rb") as file:
                file.seek(self.n_read)
                lines = file.read()
            self.taken.update(lines.decode(errors="replace").split())
            self.n_read += len(lines)
        return timestamp in self.taken

    def add(self, timestamp: str) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{timestamp}\n")


@cache
def timestamps_in(base: Path) -> Timestamps:
    """What this process knows of `base`."""
    return Timestamps(base)


@contextmanager
def token(path: Path) -> Iterator[bool]:
    """Whether the file could be made: whoever makes it decides alone, inside, about what it stands for."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink()
