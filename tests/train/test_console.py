"""A console that takes no more text: a closed pipe, a dead terminal, a full disk. It never ends a run."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rich
from rich.console import Console

import main
from explore.load import runs
from train import logs
from train.logs import MAX_TRACEBACK, LossyStream, printable, protect_console, shorten_traceback, status

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--config=test-synth", "--no-wandb", "--save", "--set", "n_samples=300", "--set", "threads=1"]
TINY += ["--set", "early_stop_nsamples=64", "--set", "warmup_steps=1", "--set", "random_seed=[0,1]"]


class Dead(io.StringIO):
    """A stream of which every write and flush fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return True


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_a_stream_that_fails_raises_nothing(error, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Dead(error))
    protect_console()
    print("text", flush=True)
    sys.stderr.writelines(["a", "b"])
    rich.get_console().print("[b]text[/b]")
    logs.log_to_console()
    logs.log.info("text")
    assert sys.stdout.isatty()
    assert isinstance(sys.stdout, LossyStream)
    assert not isinstance(sys.stdout.stream, LossyStream), "wrapped once only"


def test_a_stream_that_works_gets_every_text(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)
    protect_console()
    print("a\u00e9\u2713", flush=True)
    assert stream.buffer.getvalue() == b"a\\xe9\\u2713\n"
    print("nowhere", file=sys.stderr)
    assert not sys.stderr.isatty()


def test_runs_train_and_are_reported_without_a_console(tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Dead(ERRORS[0]))  # a terminal, so with progress bars
    assert main.main([*TINY, "--out", str(tmp_path)]) == 0
    assert list(runs(str(tmp_path), all=True).status) == ["complete"] * 2
    assert (tmp_path / "reports" / "test-synth" / "report.html").is_file()


@pytest.mark.slow
def test_a_full_disk_and_a_closed_pipe_are_no_part_of_the_exit_code(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "main.py", *TINY, "--jobs=2", "--out", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        code = subprocess.run(command, cwd=ROOT, stdout=full, stderr=writing, timeout=300, check=False)
    os.close(writing)
    assert code.returncode == 0
    assert list(runs(str(tmp_path), all=True).status) == ["complete"] * 2


def test_control_characters_are_shown_as_escapes():
    assert printable("a\x1b[2J\rb\x9b\u202e\ud800\tc\nd\u00e9\u2713") == (
        "a\\x1b[2J\\rb\\x9b\\u202e\\ud800\tc\nd\u00e9\u2713"
    )


def test_a_long_traceback_loses_its_middle():
    assert shorten_traceback("short") == "short"
    text = "begin" + "x" * 300_000 + "end"
    short = shorten_traceback(text)
    assert short.startswith("begin")
    assert short.endswith("end")
    assert len(short) < MAX_TRACEBACK + 100
    assert "290,008 characters left out" in short


def test_a_terminal_shows_what_the_program_is_doing(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    logs.log_to_console()
    with status("checking the grid"):
        with status("reading [sotu]"):
            status.spinner._live.refresh()
        assert status.text == "checking the grid"
        status.spinner._live.refresh()
    shown = console.file.getvalue()
    assert shown.index("reading [sotu]") < shown.rindex("checking the grid")
    assert status.spinner is None


def test_a_pipe_gets_no_spinner(capsys):
    logs.log_to_console()
    with status("checking the grid"):
        assert status.spinner is None
    assert capsys.readouterr().out == ""
