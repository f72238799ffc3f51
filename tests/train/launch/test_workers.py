"""Runs side by side: the same results as one after another, and what becomes of the rest when one dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

import main
from explore.load import runs
from tests.train import little_run
from train.grid.expand import GridError
from train.launch import workers as jobs
from train.launch.display import GridDisplay, Shown
from train.launch.sweep import exit_code, make_call
from train.launch.workers import SideBySide, n_jobs, say_threads
from train.logs import log
from train.processes import start_server_of_workers
from train.progress import Progress
from train.saving.outcome import Ending, Outcome

ROOT = Path(__file__).resolve().parents[3]
CALL = little_run.CALL._replace(jobs=2)
TIMES = {"wall_seconds", "tokens_per_second", "achieved_flops", "peak_flops"}
GRID = [
    "--config=test-synth",
    "--no-wandb",
    "--save",
    "--set=lr=[1e-3,3e-3]",
    "--seed=[1,2]",
    "--set=threads=1",
    "--set=n_samples=2000",
    "--set=early_stop_nsamples=640",
    "--set=dropout=0.1",
]


@pytest.fixture(scope="module", autouse=True)
def server_of_workers():
    """Start the server of workers, as main.py does with --jobs. Otherwise every worker would import torch itself."""
    start_server_of_workers()


def act(run, call, report):
    """Stands for training; what it does is in its name."""
    try:
        for part in run.split():
            do(*part.split("="), report=report)
    except KeyboardInterrupt:
        return Outcome(Ending.INTERRUPTED)
    except ValueError as error:
        return Outcome(Ending.FAILED, str(error))
    except RuntimeError as error:
        return Outcome.of(error, {})
    found = {"pid": os.getpid(), "time": time.monotonic(), "threads": torch.get_num_threads()}
    return Outcome(Ending.FINISHED, values=found)


def do(what, value="", *, report):
    match what:
        case "say":
            log.info(value)
        case "step":
            report(Progress(int(value), 1.5))
        case "free":
            jobs.psutil.virtual_memory = lambda: SimpleNamespace(available=int(value))
        case "die":
            os.kill(os.getpid(), int(value))
        case "exit":
            os._exit(int(value))
        case "wait":
            time.sleep(float(value))
        case "fail":
            raise ValueError("it had to")
        case "elsewhere" if not Path(value).exists():
            Path(value).touch()
            raise RuntimeError(Ending.ELSEWHERE)


def side_by_side(*names, call=CALL):
    runs = dict(enumerate(names, 1))
    said = {number: f"run {number} of {len(runs)}: {name}" for number, name in runs.items()}
    return SideBySide(
        act, runs, said, GridDisplay({number: Shown(name, 10) for number, name in runs.items()}, 2), call
    )


@pytest.mark.slow
@pytest.mark.ci
def test_parallel_runs_equal_serial_runs(tmp_path):
    for name, extra in (("one", []), ("two", ["--jobs=2"])):
        assert main.main([*GRID, *extra, "--out", str(tmp_path / name)]) == 0
    one, two = (
        runs(str(tmp_path / name), all=True).sort_values(["lr", "random_seed"]) for name in ("one", "two")
    )
    assert len(one) == len(two) == 4
    for here, there in zip(one.folder, two.folder, strict=True):
        model, other = (load_file(Path(folder) / "model.safetensors") for folder in (here, there))
        assert model.keys() == other.keys()
        assert all(torch.equal(model[name], other[name]) for name in model)
        summary, other = (json.loads((Path(f) / "about.json").read_text())["summary"] for f in (here, there))
        assert {k: v for k, v in summary.items() if k not in TIMES} == {
            k: v for k, v in other.items() if k not in TIMES
        }
        assert summary["threads"] == 1


def test_workers_live_on_from_run_to_run_and_are_no_more_than_asked_for():
    outcomes = side_by_side(*["step=1 wait=0.05"] * 6).run()
    assert sorted(outcomes) == [1, 2, 3, 4, 5, 6]
    assert len({outcome.values["pid"] for outcome in outcomes.values()}) == 2


def test_a_run_that_dies_fails_and_the_other_runs_go_on(notes):
    outcomes = side_by_side("step=1 die=9", "step=1", "exit=3", "fail", "step=1").run()
    assert str(outcomes[1]) == "failed: its process ended (SIGKILL)"
    assert str(outcomes[3]) == "failed: its process ended (exit code 3)"
    assert str(outcomes[4]) == "failed: it had to"
    assert outcomes[2].ending is outcomes[5].ending is Ending.FINISHED
    assert "run 1 failed: its process ended (SIGKILL)" in notes


def test_log_lines_name_their_run(notes):
    side_by_side("say=hello step=1", "step=1 say=bye").run()
    assert {"run 1: hello", "run 2: bye"} <= set(notes)
    assert notes[0] == "run 1 of 2: say=hello step=1"


def test_the_next_run_starts_when_the_last_has_made_its_first_step():
    grid, starts = side_by_side("wait=0.4 step=1 wait=0.5", "step=1"), {}
    begins = grid.display.begins
    grid.display.begins = lambda number: (starts.update({number: time.monotonic()}), begins(number))
    outcomes = grid.run()
    assert starts[2] - starts[1] > 0.4
    assert starts[2] < outcomes[1].values["time"], "it does not wait for the end"


def test_runs_wait_while_memory_is_short(notes):
    grid, together = side_by_side(*["free=1000 step=1 wait=0.2"] * 3), []
    begins = grid.display.begins
    grid.display.begins = lambda number: (begins(number), together.append(len(grid.display.active)))
    grid.run()
    assert together == [1, 1, 1]
    assert sum("memory is short" in line for line in notes) == 1
    assert grid.largest > 1_000_000, "what the runs took"


def test_a_run_that_trains_elsewhere_is_tried_again_at_the_end(tmp_path):
    grid = side_by_side(f"elsewhere={tmp_path / 'a'}", "step=1 wait=0.5", "step=1")
    outcomes = grid.run()
    assert {str(outcome) for outcome in outcomes.values()} == {"finished"}
    assert outcomes[1].values["time"] > max(outcomes[2].values["time"], outcomes[3].values["time"])


def test_after_ctrl_c_no_run_is_tried_again(tmp_path):
    grid = side_by_side(f"elsewhere={tmp_path / 'a'}", "step=1 wait=60", "step=1")
    end = grid.end
    grid.end = lambda number, outcome: (end(number, outcome), threading.Timer(0.5, grid.stop).start())
    outcomes = grid.run()
    assert outcomes[1].ending is Ending.ELSEWHERE


def test_fail_fast_ends_all(notes):
    outcomes = side_by_side(
        "step=1 wait=60", "step=1 fail", "step=1", call=CALL._replace(fail_fast=True)
    ).run()
    assert str(outcomes[1]) == "cancelled: another run failed"
    assert 3 not in outcomes


def test_a_run_ended_by_fail_fast_is_not_reported_as_interrupted_by_the_user():
    grid = side_by_side("step=1")
    grid.failed_fast = True
    for outcome, expected in (
        (Outcome(Ending.FINISHED, is_last=True), "finished"),
        (Outcome(Ending.INTERRUPTED), "cancelled: another run failed"),
    ):
        grid.end(1, outcome)
        assert str(grid.outcomes[1]) == expected
        assert exit_code([outcome]) == 130
        assert exit_code([grid.outcomes[1], Outcome(Ending.FAILED)]) == 1


def test_a_run_that_is_stopped_before_it_trains_ends_after_its_first_step():
    grid = side_by_side("wait=1 step=1 wait=60", "step=1")
    begins = grid.display.begins
    grid.display.begins = lambda number: (begins(number), threading.Timer(0.2, grid.stop).start())
    outcomes = grid.run()
    assert outcomes.keys() == {1}
    assert str(outcomes[1]) == "interrupted"


def test_a_worker_takes_its_share_of_threads(monkeypatch):
    monkeypatch.setattr(jobs, "share_of_threads", lambda n: n + 1)
    assert side_by_side("step=1").run()[1].values["threads"] == 3


def test_threads_are_shared_among_runs_with_a_note(notes, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert jobs.share_of_threads(3) == 2
    say_threads({None}, 3)
    say_threads({2}, 4)
    say_threads({4}, 3)
    assert len(notes) == 2
    assert "a run has 2 of 8 CPU threads" in notes[0]
    assert "threads=2 makes them equal" in notes[0]
    assert "needs 12 of 8" in notes[1]
    assert n_jobs("auto") == 8


@pytest.mark.parametrize(
    ("n_gpus", "asked", "gpus"),
    [(0, None, [None] * 3), (1, None, [None] * 3), (2, None, [0, 1, 0]), (2, 1, [1] * 3)],
)
def test_workers_take_turns_at_gpus(n_gpus, asked, gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert [jobs.gpu_for(n, asked) for n in range(3)] == gpus


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5", "", "²"])
def test_invalid_numbers_of_jobs_are_refused(jobs):
    with pytest.raises(GridError, match="above 0, or auto"):
        make_call(main.parse_arguments(["--config=test", f"--jobs={jobs}"]), None)


def test_several_devices_are_not_for_jobs(tmp_path, capsys):
    options = ["--config=test-synth", "--no-wandb", "--set=devices=2", "--jobs=2", "--out", str(tmp_path)]
    assert main.main(options) == 2
    assert "side by side have one device each" in capsys.readouterr().err


@pytest.fixture
def going(tmp_path):
    """`main.py --jobs=2` in a process of its own, when both runs have validated once."""
    command = [sys.executable, str(ROOT / "main.py"), *GRID[:-3], "--set=epochs=1000", "--set=val_every=10"]
    command += ["--set=n_samples=2000", "--jobs=2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    seen, deadline = set(), time.time() + 120
    for line in process.stdout:
        seen.update(part for part in ("run 1: step", "run 2: step") if line.startswith(part))
        if len(seen) == 2:
            break
        assert time.time() < deadline
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.slow
def test_ctrl_c_ends_all_runs_and_keeps_them(going, tmp_path):
    os.killpg(going.pid, signal.SIGINT)  # as a terminal does
    output = going.communicate(timeout=60)[0]
    assert going.returncode == 130, output
    assert "Traceback" not in output, output
    table = runs(str(tmp_path), all=True)
    assert list(table.stopped) == ["interrupted"] * 2


@pytest.mark.slow
def test_no_worker_outlives_the_main_process():
    """This holds even for a worker that logs nothing for long."""
    code = "from tests.train.launch.test_workers import *; from train.logs import *; log_to_console(); "
    code += "side_by_side('say=hello step=1 wait=60', 'say=hello step=1 wait=60').run()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("run 2: hello"):
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 3  # the server that forks workers, too
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
