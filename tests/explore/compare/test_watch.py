"""--watch: the page of a report while runs train, and the statistics that a run leaves meanwhile."""

import json
import threading
import time
from datetime import datetime

import pytest

import main
from explore.compare import report as report_module
from explore.compare.report import NoRuns, watch_report
from tests.explore.compare.fake_runs import DEFAULT, fake_run
from tests.explore.compare.test_report import document_of
from train.saving.live import MAX_LIVE_POINTS, LiveStats, live_stats, write_live_stats
from train.saving.run_folder import RunFolder, create_run_files
from train.stats import Stats


def wait_for(condition, seconds: float = 60.0):
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return found


@pytest.fixture
def hurried(monkeypatch):
    """Watching without pauses, and without a lower priority for the process of the tests."""
    monkeypatch.setattr(report_module, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(report_module, "MAX_WAIT_SECONDS", 0.2)
    monkeypatch.setattr("os.nice", lambda _: 0)


def test_the_page_follows_a_run_until_it_ends(tmp_path, hurried):
    folder = RunFolder.claim(
        tmp_path, lambda timestamp: f"demo/{timestamp}", when=datetime(2024, 4, 22, 16, 17)
    )
    create_run_files(folder.path, DEFAULT, ["main.py"])
    stats = LiveStats()
    for step in range(1, 51):
        stats.log("train_loss:main", 4.0 - step / 50, step=step, n_samples=8 * step)
    stats.drain()
    write_live_stats(stats, folder.path)
    page = tmp_path / "reports" / "demo" / "report.html"
    watching = threading.Thread(target=watch_report, args=("demo", str(tmp_path)))
    watching.start()
    document = wait_for(lambda: page.exists() and document_of(page.read_text()))
    [run] = document["runs"]
    assert document["refresh"] == 0.05
    assert run["running"]
    assert run["ended"] == "training, step 50"
    assert len(document["curves"][0]["train"]["v"]) == 50
    fake_run(tmp_path, "demo", 99, DEFAULT)
    wait_for(lambda: len(document_of(page.read_text())["runs"]) == 2)
    folder.discard()
    watching.join(60)
    assert not watching.is_alive()
    document = document_of(page.read_text())
    assert document["refresh"] is None
    assert [run["ended"] for run in document["runs"]] == ["finished"]


def test_nothing_to_watch_is_one_sentence(tmp_path, hurried):
    with pytest.raises(NoRuns, match="no saved runs"):
        watch_report("demo", str(tmp_path))


def test_watch_needs_saved_runs(capsys):
    assert main.main(["--config=test", "--no-wandb", "--watch"]) == 2
    assert "--watch shows the report of saved runs: add --save" in capsys.readouterr().err


def test_live_statistics_are_losses_that_a_report_reads(tmp_path):
    stats = LiveStats()
    with live_stats(stats, tmp_path, seconds=0.01):
        for step in range(3 * MAX_LIVE_POINTS):
            stats.log("train_loss:main", 1.0, step=step, n_samples=step)
            stats.log("grad_norm:x", 1.0, step=step, n_samples=step)
        stats.drain()
        saved = tmp_path / "stats.json"
        wait_for(
            lambda: (
                saved.exists() and len(json.loads(saved.read_text()).get("stat/train_loss:main", [])) > 1000
            )
        )
        found = Stats.load(saved).train_stats
    assert list(found) == ["stat/train_loss:main"]
    assert MAX_LIVE_POINTS / 2 <= len(found["stat/train_loss:main"]) <= MAX_LIVE_POINTS
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]


def test_live_statistics_do_not_replace_those_that_the_run_has_saved(tmp_path):
    stats = LiveStats()
    with live_stats(stats, tmp_path, seconds=0.01):
        for name in ("train_loss:main", "grad_norm:x"):
            stats.log(name, 1.0, step=1, n_samples=1)
        stats.save(tmp_path / "stats.json")
        time.sleep(0.2)
        assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]
    found = Stats.load(tmp_path / "stats.json").train_stats
    assert list(found) == ["stat/train_loss:main", "stat/grad_norm:x"]


def test_live_statistics_of_a_folder_that_is_gone_are_no_error(tmp_path):
    with live_stats(LiveStats(), tmp_path / "gone", seconds=0.01):
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.ci
def test_a_grid_that_is_watched_ends_with_its_report(tmp_path, capsys):
    options = [
        "--no-wandb",
        "--save",
        "--watch",
        "--out",
        str(tmp_path),
        "--set",
        "threads=1",
        "--set",
        "n_samples=300",
    ]
    assert main.main(["--config=test-synth", *options, "--seed=[1,2]"]) == 0
    page = tmp_path / "reports" / "test-synth" / "report.html"
    out = capsys.readouterr().out
    assert f"watch: {page}" in out
    document = document_of(page.read_text())
    assert document["refresh"] is None
    assert [run["ended"] for run in document["runs"]] == ["finished", "finished"]
