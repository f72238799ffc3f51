"""Stopwatch: seconds that a part of a run takes, without pauses and without the time between a kill and its resume."""

import time


class Stopwatch:
    """A stopwatch that starts at once. Its state is the seconds so far, from which a resumed run continues."""

    def __init__(self) -> None:
        self.earlier = 0.0  # seconds until the latest start
        self.began: float | None = time.perf_counter()  # None while paused

    @property
    def seconds(self) -> float:
        return self.earlier + (0.0 if self.began is None else time.perf_counter() - self.began)

    def pause(self) -> None:
        self.earlier, self.began = self.seconds, None

    def start(self, seconds: float | None = None) -> None:
        """Continue, from `seconds` if given."""
        self.earlier, self.began = self.seconds if seconds is None else seconds, time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.earlier = state["seconds"]
        if self.began is not None:
            self.began = time.perf_counter()
