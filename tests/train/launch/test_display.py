"""The display of a grid: what a terminal shows, the line a minute elsewhere, the line that a run leaves."""

import io
import re

import pytest
import rich
from rich.console import Console

from train.launch import display as module
from train.launch.display import Active, GridDisplay, Shown
from train.logs import DETAIL, console_state, log, log_to_console, say_at_once
from train.progress import Progress
from train.saving.outcome import Ending, Outcome

GRID = {1: Shown("dim 16", 100, 1.0), 2: Shown("dim 32", 100, 4.0), 3: Shown("dim 64", 100, 16.0)}


def finished(loss: float, steps: int = 100) -> Outcome:
    return Outcome(
        Ending.FINISHED, values={"val_loss": loss, "val_accuracy": 0.5, "steps": steps, "wall_seconds": 7.0}
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns, with the text that was written to it."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=80, color_system=None, legacy_windows=False
    )
    monkeypatch.setattr(rich, "get_console", lambda: console)
    level, handlers = log.level, log.handlers
    log_to_console()
    yield console
    log.setLevel(level)
    log.handlers = handlers


def drawn(display: GridDisplay, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(display)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_it_counts_runs_and_names_the_best(clock):
    display = GridDisplay(GRID)
    for number, outcome in ((1, finished(3.25)), (2, Outcome(Ending.FAILED, "OSError: no"))):
        display.begins(number)
        display.ends(number, outcome)
    display.begins(3)
    display.goes_on(3, Progress(50, 3.4, 17_964.2))
    first, best, row = drawn(display, 100)
    assert first.startswith("1 of 3 done, 1 failed, 1 running")
    assert best == "best so far: run 1 (dim 16), loss 3.2500"
    assert re.fullmatch(r"run 3  dim 64  ━+ +step 50 of 100  loss 3\.400  17,964 tokens/s", row)


def test_a_run_whose_length_is_a_time_has_no_total(clock):
    display = GridDisplay({1: Shown("dim 16", None, seconds=40.0)})
    display.begins(1)
    display.goes_on(1, Progress(50, None))
    clock.now += 10.0
    assert "step 50" in display.line
    assert "of" not in display.line.partition("run 1")[2]
    assert display.seconds_left == pytest.approx(30.0)


def test_no_run_is_the_best_where_data_differ(clock):
    display = GridDisplay({1: Shown("copy", 10, data="copy"), 2: Shown("sort", 10, data="sort")})
    display.ends(1, finished(1.0))
    assert display.best is None


@pytest.mark.parametrize("jobs", [1, 2])
def test_time_left_follows_the_work_of_each_run(clock, jobs):
    """Run 1 took 8 s for its unit of work, and half of run 2 took 16 s for its two: 8 s for a unit."""
    display = GridDisplay(GRID, jobs)
    assert display.seconds_left is None
    display.begins(1)
    clock.now += 8
    display.ends(1, finished(3.0))
    assert display.seconds_left == pytest.approx(8 * max(20 / jobs, 16))
    display.begins(2)
    clock.now += 16
    display.goes_on(2, Progress(50))
    assert display.seconds_left == pytest.approx(8 * max(18 / jobs, 16))


def test_an_early_end_counts_for_the_steps_that_were_made(clock):
    display = GridDisplay(GRID)
    display.begins(2)
    clock.now += 8
    display.ends(2, finished(3.0, steps=50))
    assert display.seconds_left == pytest.approx(8 / 2 * 17)


def test_a_run_leaves_a_line(notes):
    display = GridDisplay(GRID)
    for number, outcome in ((1, finished(3.25)), (2, Outcome(Ending.FAILED, "OSError: no"))):
        display.begins(number)
        display.ends(number, outcome)
    display.ends(3, finished(1.0))  # by an earlier call: it was not active
    assert notes == [
        "run 1 (dim 16): loss 3.2500, accuracy 50.0%, 7.0 s",
        "run 2 (dim 32): failed: OSError: no",
    ]


def test_without_a_terminal_there_is_a_line_a_minute(notes, monkeypatch):
    monkeypatch.setattr(module, "MINUTE", 0.01)
    with GridDisplay(GRID) as display:
        display.begins(2)
        display.goes_on(2, Progress(50, 3.4, 17_964.2))
        while not any("step" in line for line in notes):
            pass
    line = next(line for line in notes if "step" in line)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d 0 of 3 done, 1 running, about \S+ \w+ left; run 2: step 50 of 100, loss 3\.400, 17,964 tokens/s",
        line,
    )


def test_on_a_terminal_details_and_notices_belong_to_the_display(terminal):
    with GridDisplay(GRID) as display:
        display.begins(1)
        log.info("a detail", extra=DETAIL)
        log.info("[b]a note[/b]")
        say_at_once("stopping")
        display.live.refresh()
    assert console_state.notify is None
    log.info("the end", extra=DETAIL)
    shown = terminal.file.getvalue()
    assert "a detail" not in shown
    assert "[b]a note[/b]" in shown
    assert "run 1  dim 16" in shown
    assert "stopping" in shown
    assert shown.endswith("the end\n")


def test_details_of_a_single_run_are_shown(terminal):
    with GridDisplay({1: GRID[1]}):
        log.info("a detail", extra=DETAIL)
    assert "a detail" in terminal.file.getvalue()


def test_names_are_never_cut(clock):
    name = "layer_architecture " + "x" * 90
    display = GridDisplay({1: Shown(name, 10)})
    display.active[1] = Active(progress=Progress(5, 1.0, 100.0))
    text = "".join(re.findall(r"x+", "\n".join(drawn(display, 80))))
    assert text == "x" * 90
