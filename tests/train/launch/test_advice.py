"""What --dry-run says would be faster: only gains beyond noise, measured; and what it did not measure."""

import multiprocessing
import signal
import time
from itertools import cycle

import pytest
import torch

import main
from train.launch import advice, sweep
from train.launch.advice import keep_gain, shares_of


def timer(*seconds: float):
    taken = cycle(seconds)
    return lambda: next(taken)


@pytest.mark.parametrize(
    ("base", "other", "gain"),
    [
        (timer(1.0), timer(0.6), 0.6),
        (timer(1.0), timer(0.98), None),  # too small
        (timer(1.0), timer(0.5, 1.4, 0.5), None),  # not in every turn
        (timer(1.0), timer(1.3), None),
        # A machine that gets slower and slower, for both alike.
        (timer(1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2), timer(1.1, 1.3, 1.5, 1.7, 1.9, 2.1), None),
    ],
)
def test_a_gain_counts_if_it_is_there_in_every_turn(base, other, gain):
    found = []
    keep_gain(found, "x", shares_of(base, other))
    assert [one.share for one in found] == ([] if gain is None else [pytest.approx(gain)])


def clean_up_at_the_end(connection):
    advice.exit_when_terminated()
    try:
        connection.send("started")
        time.sleep(60)
    finally:
        connection.send("cleaned up")


def hang(connection):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.send("started")
    time.sleep(60)


def test_a_terminated_process_cleans_up_and_one_that_hangs_is_killed(monkeypatch):
    """A compiling process that died of SIGTERM left its compiler running and a semaphore behind."""
    monkeypatch.setattr(advice, "MAX_END_SECONDS", 0.5)
    context = multiprocessing.get_context("fork")
    for target, last, exit_code in ((clean_up_at_the_end, "cleaned up", 0), (hang, None, -signal.SIGKILL)):
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs,))
        process.start()
        assert ours.recv() == "started"
        advice.end_process(process)
        assert process.exitcode == exit_code
        assert (ours.recv() if ours.poll() else None) == last


def dry_run(tmp_path, capsys) -> str:
    words = ["--config=test-synth", "--set=n_samples=400", "--set=dim=[16,32]", "--set=n_layers=1"]
    assert main.main([*words, "--no-wandb", "--dry-run", "--out", str(tmp_path)]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_measures_what_is_faster(tmp_path, capsys, monkeypatch):
    """Which of them is faster depends on the machine: here all count as faster, so that all are seen."""
    monkeypatch.setattr(advice, "MIN_GRID_SECONDS", 0)
    monkeypatch.setattr(advice, "MAX_START_SECONDS", 300.0)
    monkeypatch.setattr(
        advice, "keep_gain", lambda found, name, shares: found.append(advice.Faster(name, 0.5, *shares[:2]))
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    shown = dry_run(tmp_path, capsys)
    [line] = [line for line in shown.splitlines() if line.startswith("faster here")]
    assert 'measured on run 2: precision="bf16-mixed" takes 0.50 times the time' in line
    assert "threads=1 takes" in line
    assert "--jobs=2 takes" in line
    assert "not measured: compile=True (the grid is too short to repay compiling)" in shown


def test_a_long_grid_points_to_the_dry_run(monkeypatch):
    from tests.train.launch.test_estimate import plan
    from tests.train.little_run import CALL
    from train.saving.outcome import Ending, Outcome

    runs = [plan(), plan()]
    for seconds, said in ((1.0, 0), (600.0, 1)):
        outcomes = [Outcome(Ending.FINISHED, values={"wall_seconds": seconds})] * 2
        lines = sweep.last_lines(runs, outcomes, CALL)
        assert sum("--dry-run measures whether" in line for line in lines) == said
