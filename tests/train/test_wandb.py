"""train/stats.py and the real wandb, offline or with a stand-in for its server: nothing lost, asked, leaked or awaited."""

import json
import math
import os
import pty
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import torch

from train import stats as stats_module
from train.logs import log_to_console
from train.stats import Stats, start_wandb

REPO = Path(__file__).parents[2]


def fill(tracker):
    """Log a little to the tracker, and give what wandb should hold then: (step, n_samples, value) of each metric."""
    stats = Stats(tracker)
    for step in range(1, 4):
        for part in (1, 2):  # two micro-batches to a step
            stats.log("train_loss", torch.tensor(1 / (step + part)), step=step, n_samples=8 * step + 4 * part)
        stats.log("lr", 1e-3 / 3**step, step=step, n_samples=8 * step + 8)
    for value in (math.nan, math.inf, -math.inf):
        stats.log("norm", value, step=3, n_samples=32)
    stats.show_text("val_sample", "a sample", step=3, n_samples=32)
    logged = stats.train_stats.items()
    return {SECTION[name]: [(s, n, repr(v)) for s, n, _, v in values] for name, values in logged}


SECTION = {"stat/train_loss": "train/train_loss", "stat/lr": "optim/lr", "stat/norm": "norms/norm"}


def columns(rows):
    """The same of wandb's rows; as text NaN equals NaN."""
    found = defaultdict(list)
    for row in rows:
        for name in row:
            if "/" in name and name != "val/val_sample":
                found[name].append((row["step"], row["n_samples"], repr(float(row[name]))))
    return dict(found)


@pytest.fixture
def no_wandb_account(monkeypatch, tmp_path):
    """A home without a key, an address where nobody answers, and a working directory that is a changed git repository."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")  # restored after the test, which changes it
    repo = tmp_path / "repo"
    (repo / "secret_code.py").parent.mkdir()
    (repo / "secret_code.py").write_text("secret = 1\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (
        ["init", "-q"],
        ["remote", "add", "origin", "https://x/y.git"],
        ["add", "."],
        ["commit", "-qmx"],
    ):
        subprocess.run([*git, *command], cwd=repo, check=True)
    (repo / "secret_code.py").write_text("secret = 2\n")
    monkeypatch.chdir(repo)
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    monkeypatch.setenv("WANDB_CODE_DIR", ".")
    return tmp_path / "cache"


def track(folder, **names):
    """Log a run to wandb, and give what was logged."""
    tracker = start_wandb(project="p", group="g", config={"train": {"lr": 0.1}}, folder=folder, **names)
    expected = fill(tracker)
    tracker.finish(summary={"val_loss": 1.5, "stopped": "finished"})
    return expected


def records(file):
    """The protobuf records of a .wandb file, which frames them as LevelDB does its log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind:
            record += data[position + 7 : position + 7 + length]
            position += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield Record.FromString(record)
            record = b""
        if kind == 0 or position % 32768 > 32768 - 7:  # the rest of the block is padding
            position += -position % 32768


def history(file):
    found = [record.history.item for record in records(file) if record.WhichOneof("record_type") == "history"]
    return [{item.nested_key[0]: json.loads(item.value_json) for item in items} for items in found]


def assert_private(run_folder):
    """Assert that wandb gets only params and statistics: no code, diff, git, requirements, machine or paths."""
    (file,) = run_folder.glob("*.wandb")
    names = {path.name for path in run_folder.rglob("*") if path.is_file()}
    assert names - {file.name, f"{file.name}.syncstate"} <= {
        *("debug.log", "debug-internal.log", "debug-core.log"),
        *("config.yaml", "wandb-summary.json"),  # written of online runs
    }
    kinds = {record.WhichOneof("record_type") for record in records(file)}
    assert kinds <= {"header", "run", "config", "telemetry", "metric", "summary", "history", "exit"}
    assert not [record.run.host for record in records(file) if record.run.host]
    assert not leaks(file.read_bytes().decode(errors="replace"))


def leaks(text):
    """Code, git, command and place, all of which wandb notes by default."""
    secrets = ["secret", "x/y.git", '"host":"', '"program":"', sys.executable, sys.argv[0], str(Path.cwd())]
    return [secret for secret in secrets if secret in text]


@pytest.fixture(autouse=True)
def on_console():
    log_to_console()


@pytest.mark.slow
@pytest.mark.ci
def test_without_a_key_runs_are_kept_offline_for_wandb_sync(no_wandb_account, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")  # to be put back afterwards
    first = track(no_wandb_account)
    second = track(
        Path("../cache"), run_name="mine", label="dim 64, lr 0.001"
    )  # in the same process, as in a grid
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wandb: offline, No API key configured.")
    assert lines[1].startswith("wandb: offline, as WANDB_MODE says."), "the second run does not try again"
    for line, expected, name in zip(lines, (first, second), ("", "mine"), strict=True):
        run_folder = Path(shlex.split(line)[-1])
        assert run_folder.is_absolute()
        (file,) = run_folder.glob("*.wandb")
        assert columns(history(file)) == expected
        (run,) = [record.run for record in records(file) if record.WhichOneof("record_type") == "run"]
        assert (run.project, run.run_group, run.display_name) == ("p", "g", name)
        assert ("train", '{"lr":0.1}') in [(item.key, item.value_json) for item in run.config.update]
        assert_private(run_folder)
        tags, notes = (["dim 64", "lr 0.001"], "dim 64, lr 0.001") if name else ([], "")
        assert (list(run.tags), run.notes) == (tags, notes)
        assert {"val/val_sample": "a sample"}.items() <= merged(history(file)).items()
        assert {"final/val_loss": "1.5", "final/stopped": '"finished"'}.items() <= summary(file).items()
        [loss] = [metric for metric in metrics(file) if metric.name == "train/train_loss"]
        assert (loss.summary.min, loss.summary.last, loss.step_metric) == (True, True, "n_samples")


def merged(rows):
    return {name: value for row in rows for name, value in row.items()}


def summary(file):
    """The values of wandb's table of runs, as JSON."""
    updates = [
        record.summary.update for record in records(file) if record.WhichOneof("record_type") == "summary"
    ]
    return {item.key or item.nested_key[0]: item.value_json for update in updates for item in update}


def metrics(file):
    return [record.metric for record in records(file) if record.WhichOneof("record_type") == "metric"]


def program(folder):
    """A program that tracks a run, with its output and input at a terminal of its own: seconds it took, its output."""
    code = "import pathlib, sys; from train.logs import log_to_console; from train.stats import start_wandb\n"
    code += "log_to_console()\n"
    code += "start_wandb(project='p', config={}, folder=pathlib.Path(sys.argv[1])).finish()"
    terminal, end = pty.openpty()
    start = time.monotonic()
    command, env = [sys.executable, "-c", code, str(folder)], {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, env=env, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    return time.monotonic() - start, os.read(terminal, 10**4).decode()


@pytest.mark.slow
def test_without_a_key_nothing_is_asked_at_a_terminal(no_wandb_account):
    _, output = program(no_wandb_account)
    assert output.count("\n") == 1


@pytest.mark.slow
def test_a_server_out_of_reach_delays_the_start_by_less_than_15_s(no_wandb_account, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    start = time.monotonic()
    tracker = start_wandb(project="p", config={}, folder=no_wandb_account)
    assert time.monotonic() - start < 15
    tracker.finish()
    assert tracker.name is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("wandb: offline, Timed out")
    assert Path(shlex.split(line)[-1]).is_dir()


@pytest.mark.slow
def test_a_server_that_never_answers_delays_the_whole_program_by_little_more(no_wandb_account, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, says nothing
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        seconds, output = program(no_wandb_account)
    assert seconds < 25
    assert output.startswith("wandb: offline, Timed out")


def test_a_run_that_goes_on_does_so_under_its_id(no_wandb_account):
    ids = set()
    for run_id in (None, "abc12345", "abc12345"):
        tracker = start_wandb(project="p", config={}, folder=no_wandb_account, run_id=run_id)
        tracker.log({"stat/x": 1.0})
        tracker.finish()
        ids.add(tracker.id)
    assert len(ids) == 2
    # Both have the same name if they began within one second.
    assert list((no_wandb_account / "wandb").glob("offline-run-*-abc12345"))


class FakeServer(BaseHTTPRequestHandler):
    """As much of wandb's server as a run needs."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.received.append((self.path, body))
        answer = {"data": {}}
        if self.path == "/graphql":
            request = json.loads(body)
            if request["operationName"] == "UpsertBucket":
                project = {"id": "1", "name": "p", "entity": {"id": "2", "name": "me"}}
                bucket = {
                    "id": "3",
                    "name": request["variables"]["name"],
                    "displayName": "fair-river-1",
                    "config": "{}",
                }
                answer = {
                    "data": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
                }
            if request["operationName"] == "CreateRunFiles":
                names = request["variables"]["files"]
                files = [
                    {"name": name, "uploadUrl": f"http://{self.headers['Host']}/{name}"} for name in names
                ]
                answer = {"data": {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *args):
        pass


@pytest.fixture
def server(no_wandb_account, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeServer) as server:
        server.received, server.daemon_threads, server.handle_error = [], True, lambda *args: None
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


def test_an_online_run_has_wandbs_name_and_sends_nothing_but_params_and_statistics(
    server, no_wandb_account, capsys
):
    tracker = start_wandb(project="p", config={"train": {"lr": 0.1}}, folder=no_wandb_account)
    expected = fill(tracker)
    tracker.finish()
    assert tracker.name == "fair-river-1"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("wandb: http://127.0.0.1")
    streams = [
        json.loads(body).get("files", {}) for path, body in server.received if path.endswith("file_stream")
    ]
    sent = [
        json.loads(row)
        for files in streams
        for row in files.get("wandb-history.jsonl", {}).get("content", [])
    ]
    assert columns(sent) == expected
    assert not leaks("".join(path + body for path, body in server.received))
    (run_folder,) = (no_wandb_account / "wandb").glob("run-*")
    assert_private(run_folder)


@pytest.mark.slow
@pytest.mark.ci
def test_a_connection_lost_in_mid_run_loses_nothing_and_ends_in_bounded_time(
    server, no_wandb_account, capsys, monkeypatch
):
    monkeypatch.setattr(stats_module, "FINISH_SECONDS", 2)
    tracker = start_wandb(project="p", config={}, folder=no_wandb_account)
    server.shutdown()
    server.server_close()
    expected = fill(tracker)
    start = time.monotonic()
    tracker.finish()
    assert time.monotonic() - start < 6
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("wandb: upload incomplete")
    (file,) = Path(shlex.split(line)[-1]).glob("*.wandb")
    assert columns(history(file)) == expected


def process_of_wandb():
    """The process that wandb has started for this one."""
    processes = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
    [process] = [process for process in processes if process.status() != psutil.STATUS_ZOMBIE]
    return process


def test_training_survives_the_death_of_wandbs_process(no_wandb_account, capsys):
    tracker = start_wandb(project="p", config={}, folder=no_wandb_account)
    process_of_wandb().kill()
    fill(tracker)
    start = time.monotonic()
    tracker.finish()
    assert time.monotonic() - start < 10
    [_, line] = capsys.readouterr().out.splitlines()
    assert line.startswith("wandb: upload incomplete, ")
    assert "Complete it by: wandb sync" in line


@pytest.fixture
def stopped_process(no_wandb_account, monkeypatch):
    """A tracker whose real wandb process has been stopped, and that process."""
    monkeypatch.setattr(stats_module, "FINISH_SECONDS", 1)
    monkeypatch.setattr(stats_module, "MAX_FINISH_SECONDS", 3)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = start_wandb(project="p", config={}, folder=no_wandb_account)
    process = process_of_wandb()
    process.suspend()
    yield tracker, process
    with suppress(psutil.NoSuchProcess):
        process.kill()


@pytest.mark.slow
@pytest.mark.ci
def test_a_process_of_wandb_that_hangs_delays_the_end_by_bounded_time(
    stopped_process, no_wandb_account, capsys
):
    """Training does not wait for it either, however much there is to send. The next run has a new process."""
    tracker, process = stopped_process
    start = time.monotonic()
    for step in range(20_000):  # more than the connection takes
        tracker.log({"stat/x": 1.0, "step": step})
    assert time.monotonic() - start < 2
    start = time.monotonic()
    tracker.finish()
    assert time.monotonic() - start < 8
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        "wandb: upload incomplete, its process does not answer. Complete it by: wandb sync"
    )
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert tracker._ended.is_set()
    expected = track(no_wandb_account)
    (run_folder,) = set((no_wandb_account / "wandb").glob("offline-run-*")) - {Path(shlex.split(line)[-1])}
    (file,) = run_folder.glob("*.wandb")
    assert columns(history(file)) == expected


def test_ctrl_c_while_wandb_hangs_leaves_at_once(stopped_process, monkeypatch):
    tracker, process = stopped_process
    monkeypatch.setattr(stats_module, "MAX_FINISH_SECONDS", 60)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tracker.finish()
    assert time.monotonic() - start < 8
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.ci
def test_python_ends_in_bounded_time_when_wandb_hangs(no_wandb_account, monkeypatch):
    """At its end wandb waits for its process, too."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    code = "import pathlib, psutil, sys; from train import stats\n"
    code += "stats.MAX_FINISH_SECONDS = 2\n"
    code += "tracker = stats.start_wandb(project='p', config={}, folder=pathlib.Path(sys.argv[1]))\n"
    code += "[child.suspend() for child in psutil.Process().children()]\n"
    code += "tracker.finish()"
    command, env = (
        [sys.executable, "-c", code, str(no_wandb_account)],
        {**os.environ, "PYTHONPATH": str(REPO)},
    )
    process = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()


def test_without_wandb_there_is_one_line_and_no_tracking(no_wandb_account, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert start_wandb(project="p", config={}, folder=no_wandb_account) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("wandb: no tracking, ")


def test_wandb_switched_off_by_its_user_stays_off(no_wandb_account, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start_wandb(project="p", config={}, folder=no_wandb_account) is None
    assert capsys.readouterr().out == ""
