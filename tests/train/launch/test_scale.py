"""Large grids: what is done for each run does not grow with the number of runs, and timestamps stay unique."""

import os
from datetime import timedelta

import pytest

import main
from benchmarks.scale import STEP, phases, without_training
from tests.train.little_run import WHEN
from train.launch import tables
from train.saving import provenance, timestamps
from train.saving.outcome import Ending, Outcome
from train.saving.timestamps import FORMAT, Timestamps, run_folders


def walks_and_lookups(root, n_runs, monkeypatch) -> list[tuple[int, int]]:
    """For each phase of the benchmark how often folders were walked through, and versions looked up."""
    root.mkdir()
    counts = {"walks": 0, "lookups": 0}

    def counted(name, function):
        def call(*args, **options):
            counts[name] += 1
            return function(*args, **options)

        return call

    found = []
    provenance.versions.cache_clear()
    with monkeypatch.context() as patch, without_training(root, n_runs) as options:
        patch.setattr(timestamps.os, "walk", counted("walks", os.walk))
        patch.setattr(provenance, "version", counted("lookups", provenance.version))
        for command in phases().values():
            assert main.main([*command, *options]) == 0
            found.append((counts["walks"], counts["lookups"]))
    assert len(list(run_folders(root / "out"))) == n_runs
    return found


@pytest.mark.slow
def test_folders_are_not_walked_through_for_each_run(tmp_path, monkeypatch, capsys):
    few = walks_and_lookups(tmp_path / "few", STEP, monkeypatch)
    many = walks_and_lookups(tmp_path / "many", 2 * STEP, monkeypatch)
    assert few == many
    assert many[-1][0] < 10
    shown = capsys.readouterr().out
    assert f"... and {2 * STEP - tables.MAX_RESULTS} more; shown are failed runs" in shown


def test_two_processes_that_take_turns_share_no_timestamp(tmp_path):
    base = tmp_path / "saved-models"
    (base / "old" / f"{WHEN + timedelta(seconds=2):{FORMAT}}.partial").mkdir(parents=True)
    one, other = Timestamps(base), Timestamps(base)

    def give(to, when=WHEN):
        return to.give(when, lambda timestamp: base / timestamp).name

    given = [give(to) for to in (one, other, other, one, other, one)]
    assert given == [f"{WHEN + timedelta(seconds=i):{FORMAT}}" for i in (0, 1, 3, 4, 5, 6)]
    assert give(Timestamps(base)) == f"{WHEN + timedelta(seconds=7):{FORMAT}}", (
        "also where no folder was made"
    )
    earlier = WHEN - timedelta(seconds=1)
    assert give(Timestamps(base), earlier) == f"{earlier:{FORMAT}}"
    assert give(one, earlier) == f"{WHEN + timedelta(seconds=8):{FORMAT}}", "a process goes on from its last"


def test_a_name_that_is_refused_takes_no_timestamp(tmp_path):
    def refuse(timestamp):
        raise ValueError(timestamp)

    timestamps = Timestamps(tmp_path)
    with pytest.raises(ValueError, match=f"{WHEN:{FORMAT}}"):
        timestamps.give(WHEN, refuse)
    assert timestamps.give(WHEN, lambda timestamp: tmp_path / timestamp).name == f"{WHEN:{FORMAT}}"


def test_the_table_of_a_large_grid_shows_failures_and_the_lowest_losses():
    n, most = 1000, tables.MAX_RESULTS
    outcomes = [Outcome(Ending.FINISHED, values={"val_loss": float(n - i)}) for i in range(n)]
    outcomes[3] = Outcome(Ending.FAILED, "ValueError")
    outcomes[4] = Outcome(Ending.FINISHED, values={"val_loss": float("nan")})
    assert tables.most_telling(outcomes) == [3, *range(n - most + 1, n)]
    assert tables.most_telling(outcomes[:most]) == list(range(most))
    failed = [Outcome(Ending.FAILED, "MemoryError")] * n
    assert tables.most_telling(failed + outcomes) == [*range(most // 2), *range(2 * n - most // 2, 2 * n)]
