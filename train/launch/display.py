"""Display of a grid while it trains: live on a terminal, a line a minute elsewhere."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

import rich
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from train.grid.run import Run
from train.launch.tables import as_time, data_of_run, loss_of
from train.logs import console_state, log, printable
from train.progress import Progress
from train.saving.outcome import Ending, Outcome

MINUTE = 60.0  # seconds between lines where there is no terminal
BAR_WIDTH = 12
# Operations that take as long as what a training step needs besides its operations: Python, small kernels.
OVERHEAD = 2e8


class Shown(NamedTuple):
    """A run as the display shows it."""

    name: str
    n_steps: int | None = None  # None: unknown
    work: float = 1.0  # that the run takes, in any unit
    data: str = ""  # losses of runs with the same data can be compared
    seconds: float | None = None  # that it trains, if that is its length

    @classmethod
    def of(cls, run: Run) -> Self:
        size = run.size
        work = 6.0 * size.n_params * (size.n_tokens or 0) + OVERHEAD * (size.n_steps or 0)
        return cls(run.name, size.n_steps, work or 1.0, data_of_run(run))


@dataclass
class Active:
    """A run that is training."""

    began: float = field(default_factory=lambda: time.monotonic())
    progress: Progress = field(default_factory=lambda: Progress(0))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class GridDisplay:
    """The display of a grid, by the numbers of its runs. Any thread may change it.

    On a terminal it stands at the bottom, and rich draws it four times a second. Elsewhere it logs a line a minute.
    """

    def __init__(self, runs: Mapping[int, Shown], jobs: int = 1) -> None:
        self.runs, self.jobs = runs, jobs
        self.active: dict[int, Active] = {}
        self.ended: dict[int, Outcome] = {}
        self.work_seen = self.seconds_seen = 0.0  # of runs that have ended
        self.notice = ""  # last line, such as what Ctrl-C will do
        self.changing = threading.RLock()
        self.is_over = threading.Event()
        self.live: Live | None = None

    def __enter__(self) -> Self:
        console = rich.get_console()
        if not log.isEnabledFor(logging.INFO):
            return self  # another process of this run reports
        if console.is_terminal:
            self.live = Live(self, console=console, transient=True)
            console_state.hides_details = len(self.runs) > 1
            console_state.notify = self.notify
            self.live.start()
        else:
            threading.Thread(target=self.log_each_minute, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_over.set()
        if self.live is not None:
            self.live.stop()
            console_state.hides_details, console_state.notify = False, None

    def notify(self, text: str) -> None:
        """Show a line below all others. A signal handler may call this."""
        self.notice = text

    def begins(self, number: int) -> None:
        with self.changing:
            self.active[number] = Active()

    def goes_on(self, number: int, progress: Progress) -> None:
        with self.changing:
            if number in self.active:
                self.active[number].progress = progress

    def ends(self, number: int, outcome: Outcome | None = None) -> None:
        """Remove a run, and log its outcome in a line. Without an outcome it will begin anew."""
        with self.changing:
            active = self.active.pop(number, None)
            if outcome is None:
                return
            if outcome.ending is not Ending.ELSEWHERE:
                self.ended[number] = outcome
            if active is not None:
                self.seconds_seen += active.seconds
                share = self.share(number, outcome.values.get("steps"), active.seconds)
                self.work_seen += self.runs[number].work * share
        if active is not None:
            level = logging.WARNING if outcome.diverged or outcome.interrupted else logging.INFO
            log.log(logging.ERROR if outcome.failed else level, self.line_of(number, outcome))

    def line_of(self, number: int, outcome: Outcome) -> str:
        """Return the line that a run leaves."""
        values = outcome.values
        numbers = [
            f"{label} {values[name]:{form}}"
            for name, label, form in SAID
            if isinstance(values.get(name), int | float)
        ]
        seconds = values.get("wall_seconds")
        ended = [str(outcome)] if outcome.ending is not Ending.FINISHED else []
        parts = [*ended, *numbers, *([as_time(seconds)] if isinstance(seconds, float) else [])]
        return f"run {number} ({self.runs[number].name}): {', '.join(parts) or outcome}"

    def share(self, number: int, steps: object, seconds: float) -> float:
        """Return the share of a run that is done after this number of steps and these seconds."""
        run = self.runs[number]
        if run.n_steps and isinstance(steps, int):
            return min(1.0, steps / run.n_steps)
        return min(1.0, seconds / run.seconds) if run.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time that the grid still needs, from the speed seen so far. None: nothing has been seen yet.

        The work of a run is estimated from its parameters, tokens and steps.
        """
        with self.changing:
            done = {n: self.share(n, one.progress.step, one.seconds) for n, one in self.active.items()}
            seen = self.work_seen + sum(self.runs[n].work * share for n, share in done.items())
            seconds = self.seconds_seen + sum(run.seconds for run in self.active.values())
            left = [
                run.work * (1 - done.get(number, 0.0))
                for number, run in self.runs.items()
                if number not in self.ended
            ]
        if not seen or not left:
            return None
        return seconds / seen * max(sum(left) / min(self.jobs, len(left)), max(left))

    @property
    def best(self) -> int | None:
        """The number of the run with the lowest loss so far, if all runs have the same data."""
        finite = {number: loss for number, one in self.ended.items() if (loss := loss_of(one)) < float("inf")}
        if len({run.data for run in self.runs.values()}) > 1 or not finite:
            return None
        return min(finite, key=finite.__getitem__)

    @property
    def summary(self) -> str:
        """The state of the grid in a line."""
        failed = sum(one.failed or one.diverged for one in self.ended.values())
        counts = [f"{len(self.ended) - failed} of {len(self.runs)} done", f"{len(self.active)} running"]
        if failed:
            counts.insert(1, f"{failed} failed")
        if (seconds := self.seconds_left) is not None:
            counts.append(f"about {as_time(seconds)} left")
        return ", ".join(counts)

    @property
    def summary_of_best(self) -> str:
        if (best := self.best) is None:
            return ""
        return f"best so far: run {best} ({self.runs[best].name}), loss {loss_of(self.ended[best]):.4f}"

    def log_each_minute(self) -> None:
        while not self.is_over.wait(MINUTE):
            log.info(self.line)

    @property
    def line(self) -> str:
        """The state of the grid and of its active runs in a line, with the time."""
        with self.changing:
            runs = [
                f"run {number}: {', '.join(filter(None, cells_of(self.runs[number], active)))}"
                for number, active in self.active.items()
            ]
        return "; ".join([f"{time.strftime('%H:%M:%S')} {self.summary}", *runs])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self.changing:
            yield Text(self.summary, style="bold")
            if self.summary_of_best:
                yield Text(printable(self.summary_of_best))
            yield self.table(options.max_width)
            if self.notice:
                yield Text(self.notice, style="yellow")

    def table(self, width: int) -> Table:
        """Return a row for each active run: number, name, bar, step, loss, tokens a second."""
        table = Table.grid(padding=(0, 2, 0, 0))
        for wraps in (False, True, False, False, False, False):
            table.add_column(no_wrap=not wraps, overflow="fold")
        for number, active in self.active.items():
            run = self.runs[number]
            bar = ProgressBar(run.n_steps or 1, active.progress.step if run.n_steps else 0, width=BAR_WIDTH)
            cells = [Text(cell) for cell in cells_of(run, active)]
            table.add_row(Text(f"run {number}"), Text(printable(run.name)), bar, *cells)
        return table


# Numbers of the line that a run leaves: name, label and format.
SAID = (("val_loss", "loss", ".4f"), ("val_accuracy", "accuracy", ".1%"))


def cells_of(run: Shown, active: Active) -> Sequence[str]:
    """Return step, loss and speed of an active run as texts."""
    progress = active.progress
    if not progress.step:
        return "starts", "", ""
    total = "" if run.n_steps is None else f" of {run.n_steps:,}"
    loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
    speed = "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f} tokens/s"
    return f"step {progress.step:,}{total}", loss, "validates" if progress.is_validating else speed
