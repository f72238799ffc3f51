"""--watch: the page of a report while runs train, and the statistics that a run leaves meanwhile."""

import json
import re
import threading
import time
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import main
from data.data_params import DataParams
from explore.compare import report as report_module
from explore.compare.report import NoRuns, watch_report
from tests.explore.compare.fake_runs import DEFAULT, fake_grid, fake_run
from tests.explore.compare.test_report import document_of
from tests.train.little_run import CALL, TINY, make_lm
from train.grid.params import Params
from train.grid.run import Run
from train.launch.options import parse_arguments, refuse_options
from train.launch.plan import prepare
from train.launch.sweep import train_or_fail
from train.saving.live import MAX_LIVE_POINTS, LiveStats, live_stats, write_live_stats
from train.saving.outcome import Ending, Outcome
from train.saving.record import saved_record
from train.saving.run_folder import RunFolder, create_run_files
from train.stats import Stats
from train.train_params import TrainParams


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
    watching = threading.Thread(target=watch_report, args=("demo", str(tmp_path)), daemon=True)
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


def test_live_statistics_of_a_folder_that_is_gone_are_no_error(tmp_path):
    with live_stats(LiveStats(), tmp_path / "gone", seconds=0.01):
        time.sleep(0.1)


def test_live_statistics_do_not_replace_those_of_the_result(tmp_path, monkeypatch):
    """Syncing a folder to the disk can take seconds, between the last statistics and the end of the run."""
    folder = RunFolder.claim(tmp_path, lambda timestamp: f"demo/{timestamp}")
    create_run_files(folder.path, DEFAULT, ["main.py"])
    monkeypatch.setattr("train.saving.record.run_folder", lambda *_: folder)
    monkeypatch.setattr("train.saving.record.live_stats", partial(live_stats, seconds=0.001))
    monkeypatch.setattr("train.saving.run_folder.sync_tree", lambda _: time.sleep(0.2))
    with saved_record(Run(DEFAULT, {}, "demo"), None, CALL, None) as record:
        record.stats.log("grad_norm:x", 1.0, step=1, n_samples=8)
        outcome = record.save(make_lm(), Outcome(Ending.FINISHED))
    assert list(Stats.load(outcome.folder / "stats.json").train_stats) == ["stat/grad_norm:x"]


def answer_of(page: str) -> str:
    answer = re.search("<h2>Answer</h2>.*?</section>", page, re.DOTALL)[0]
    return answer.replace("<li>1 run left out: training</li>", "")


@pytest.fixture
def pages_while_a_run_trains(tmp_path, monkeypatch):
    """Function that watches with options of compare() until a run ends without a result, and returns the pages until then."""
    monkeypatch.setattr("os.nice", lambda _: 0)

    def watch(**options: str) -> list[str]:
        folder = RunFolder.claim(tmp_path, lambda timestamp: f"demo/{timestamp}")
        create_run_files(folder.path, DEFAULT, ["main.py"])
        page, pages = tmp_path / "reports" / "demo" / "report.html", []

        def sleep(_: float) -> None:
            pages.append(page.read_text())
            folder.discard()

        monkeypatch.setattr(report_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        watch_report("demo", str(tmp_path), **options)
        return [*pages, page.read_text()]

    return watch


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"baseline": "positions=none"}, "Against the baseline <q>positions=none</q>"),
        ({"by": "positions", "baseline": "positions=none"}, "positions=rotary: better"),
    ],
)
def test_the_answer_is_that_of_the_report_with_the_same_options(
    tmp_path, pages_while_a_run_trains, options, answer
):
    axes = {"dim": [64, 128]} if "by" in options else {}
    fake_grid(tmp_path, positions=["learned", "rotary", "none"], random_seed=[0, 1, 2, 3], **axes)
    before, after = map(answer_of, pages_while_a_run_trains(**options))
    assert before == after
    assert answer in after


def test_the_baseline_is_that_of_the_report(tmp_path, pages_while_a_run_trains, monkeypatch):
    monkeypatch.setattr(report_module, "CONFIGS", tmp_path)
    (tmp_path / "demo.txt").write_text('ModelParams\npositions = ["none", "learned", "rotary"]\n')
    fake_grid(tmp_path, positions=["learned", "rotary", "none"])
    before, after = map(answer_of, pages_while_a_run_trains())
    assert before == after
    assert "Against the baseline <q>positions=none</q>" in after


def test_options_that_do_not_fit_yet_are_named_on_the_page(tmp_path, pages_while_a_run_trains, capsys):
    fake_grid(tmp_path, positions=["learned", "rotary"], random_seed=[0, 1])
    with pytest.raises(ValueError, match="there is no variant 'positions=none'"):
        pages_while_a_run_trains(baseline="positions=none")
    page = (tmp_path / "reports" / "demo" / "report.html").read_text()
    assert "compared without the options so far: there is no variant &#x27;positions=none&#x27;" in page
    assert "has the best final loss" in answer_of(page)


def test_the_process_that_watches_a_grid_has_its_options(tmp_path, monkeypatch):
    commands: list[list[str]] = []
    monkeypatch.setattr("train.launch.watch.subprocess.Popen", lambda command, **_: commands.append(command))
    options = ["--baseline=positions=none", "--compare=positions", "--with=parts.py"]
    args = parse_arguments(["--config=test", "--save", "--watch", *options])
    with suppress(AttributeError), main.watch_of(args, CALL._replace(out=tmp_path)):  # there is no process
        pass
    _, _, *started = commands[0]
    watching = parse_arguments(started)
    refuse_options(watching)
    assert (watching.report, watching.watch, watching.out) == ("test", True, str(tmp_path))
    assert (watching.baseline, watching.compare) == (args.baseline, args.compare)
    assert watching.own_parts == [str(Path("parts.py").resolve())]


@pytest.mark.parametrize("fields", [{"epochs": 2}, {"max_steps": 7, "accumulate_grad_batches": 2}])
def test_the_costs_of_a_step_are_known_before_the_training(tmp_path, fields):
    data = DataParams(
        dataset_name="copy", task_args={"min_length": 3, "max_length": 3}, n_samples=100, val_pct=10
    )
    params = Params(data, TrainParams(batch_size=8, threads=1, **fields), TINY)
    call = CALL._replace(out=tmp_path, save=True)
    [run] = prepare([Run(params, {}, "demo")], call)
    namer = partial(main.Namer, args=SimpleNamespace(config="demo", wandb_proj_name=None))
    about = json.loads((train_or_fail(run, call, namer).folder / "about.json").read_text())
    known, values = about["costs_of_step"], about["summary"]
    assert known["tokens"] * values["steps"] == pytest.approx(values["trained_tokens"], rel=1e-6)
    assert known["flops"] * values["steps"] == pytest.approx(values["flops"], rel=1e-6)


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
