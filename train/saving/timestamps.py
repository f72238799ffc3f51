"""Timestamps: each belongs to one run below a root, even if many processes ask at once.

A process walks the root only at its first request.
"""

import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

FORMAT = "%Y-%m-%d--%H-%M-%S"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d--\d\d-\d\d-\d\d")
PARTIAL = ".partial"  # ends the name of a run's folder until everything is in it
MAX_DEPTH = 100  # levels of folders that are searched for runs
SECOND = timedelta(seconds=1)


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk like os.walk, but at most MAX_DEPTH levels down. Very deep trees make os.walk raise RecursionError."""
    top = str(folder).count(os.sep)
    for parent, subfolders, files in os.walk(folder):
        if parent.count(os.sep) - top >= MAX_DEPTH:
            subfolders.clear()
        yield parent, subfolders, files


def run_folders(root: Path) -> Iterator[Path]:
    """Yield the folder of every run saved under `root`, complete or not. Symbolic links are not followed."""
    for folder, subfolders, _ in walk(root / "saved-models"):
        runs = sorted(name for name in subfolders if TIMESTAMP.fullmatch(name.removesuffix(PARTIAL)))
        subfolders[:] = sorted(set(subfolders) - set(runs))
        yield from (Path(folder, name) for name in runs)


class Timestamps:
    """Timestamps of the runs in `base`, a folder saved-models. An empty file reserves each one."""

    def __init__(self, base: Path) -> None:
        self.given = base / ".timestamps"
        # Runs that were copied here from elsewhere have no file in `given`.
        self.found = {folder.name.removesuffix(PARTIAL) for folder in run_folders(base.parent)}
        self.next = datetime.min

    def give(self, when: datetime, folder_of: Callable[[str], Path]) -> Path:
        """Reserve the next free timestamp from `when` on, later than the last one given here. Return its `folder_of`."""
        when = max(when.replace(microsecond=0), self.next)
        while True:
            timestamp = f"{when:{FORMAT}}"
            folder = folder_of(timestamp)
            if timestamp not in self.found and self.take(timestamp):
                self.next = when + SECOND
                return folder
            when += SECOND

    def take(self, timestamp: str) -> bool:
        """Reserve a timestamp. Return False if it is reserved already."""
        self.given.mkdir(exist_ok=True)  # again, if somebody has removed it
        try:
            (self.given / timestamp).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@cache
def timestamps_in(base: Path) -> Timestamps:
    """Return the Timestamps of `base`, one object per process."""
    return Timestamps(base)
