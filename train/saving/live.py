"""Statistics of a run that trains: a thread writes its losses to the run folder, where --watch reads them."""

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train.saving.durable import replacing
from train.stats import Stat, Stats

LIVE_STATS = ("stat/train_loss:main", "stat/val_loss:main", "stat/train_seconds")
LIVE_SECONDS = 10.0  # between two writes
MAX_LIVE_POINTS = 2_000  # of each statistic; of more points, only every second or third and so on is written


class LiveStats(Stats):
    """Statistics that another thread may read while the run trains."""

    def drained(self, name: str) -> list[Stat]:
        """Return the values of a metric up to the last drain. Drains nothing."""
        return [*self._drained.get(name, [])]


@contextmanager
def live_stats(stats: LiveStats, folder: Path, seconds: float = LIVE_SECONDS) -> Iterator[None]:
    """Write the losses of a run to `folder`/stats.json every few seconds inside the block."""
    ended = threading.Event()

    def write_until_ended() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(OSError):  # the training itself reports a full disk
                write_live_stats(stats, folder)

    thread = threading.Thread(target=write_until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def write_live_stats(stats: LiveStats, folder: Path) -> None:
    """Write the losses drained so far. Write nothing into a folder that does not exist any more."""
    found = {name: values for name in LIVE_STATS if (values := stats.drained(name))}
    thinned = {name: values[:: 1 + len(values) // MAX_LIVE_POINTS] for name, values in found.items()}
    with replacing(folder / "stats.json") as partial:
        partial.write_text(json.dumps(thinned))
