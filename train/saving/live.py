"""Statistics of a run that trains: a thread writes its losses to the run folder, where --watch reads them."""

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train.stats import Stat, Stats, WandbTracker

LIVE_STATS = ("stat/train_loss:main", "stat/val_loss:main", "stat/train_seconds")
LIVE_SECONDS = 10.0  # between two writes
MAX_LIVE_POINTS = 2_000  # of each statistic: of more points, only every second, third ... is written


class LiveStats(Stats):
    """Statistics that another thread may read and write to a file, until the run saves all of them."""

    def __init__(self, tracker: WandbTracker | None = None) -> None:
        super().__init__(tracker)
        self.lock = threading.Lock()  # of the file, which both threads write
        self.is_saved = False

    def drained(self, name: str) -> list[Stat]:
        """Return the values of a metric up to the last drain. Drains nothing."""
        return [*self._drained.get(name, [])]

    def save(self, path: Path) -> None:
        """Write all statistics as `Stats` does. No live statistics replace them afterwards."""
        with self.lock:
            self.is_saved = True
            super().save(path)


@contextmanager
def live_stats(stats: LiveStats, folder: Path, seconds: float = LIVE_SECONDS) -> Iterator[None]:
    """Write the losses of a run to `folder`/stats.json every few seconds inside the block, until `stats` are saved."""
    ended = threading.Event()

    def write_until_ended() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(OSError):  # a full disk is the training's own error
                write_live_stats(stats, folder)

    thread = threading.Thread(target=write_until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def write_live_stats(stats: LiveStats, folder: Path) -> None:
    """Write the losses drained so far. Write nothing once all statistics are saved, or if the folder is gone."""
    found = {name: values for name in LIVE_STATS if (values := stats.drained(name))}
    thinned = {name: values[:: 1 + len(values) // MAX_LIVE_POINTS] for name, values in found.items()}
    partial = folder / "stats.json.partial"
    with stats.lock:
        if not stats.is_saved:
            partial.write_text(json.dumps(thinned))
            partial.replace(folder / "stats.json")
