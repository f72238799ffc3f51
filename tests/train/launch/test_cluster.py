"""A grid on a Ray cluster of two nodes: the results of a serial one, whatever dies; folders come home without a shared disk."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import main
from data.data_params import DataParams
from explore.load import runs
from model.model_params import ModelParams
from tests.train.little_run import CALL
from tests.train.saving.test_claims import claim_of_saved, claimed_elsewhere
from tests.train.test_own_parts import file  # noqa: F401 -- a fixture
from train.grid.expand import GridError
from train.grid.params import Params
from train.grid.run import Run
from train.launch import sweep
from train.launch.display import GridDisplay, Shown
from train.launch.plan import device_problems
from train.logs import log
from train.progress import Progress
from train.saving import earlier_runs as history
from train.saving.claims import noted_folder
from train.saving.outcome import Ending, Outcome
from train.train_params import TrainParams

ROOT = Path(__file__).resolve().parents[3]
LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for the address of the network card
pytestmark = pytest.mark.extras
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no ray: pip install -r requirements-ray.txt"
)
TIMES = {"wall_seconds", "tokens_per_second", "achieved_flops", "peak_flops"}
GRID = ["--config=test-synth", "--save", "--set=threads=1", "--set=dropout=0.1", "--set=dim=32"]
SHORT = [*GRID, "--set=n_samples=2000", "--set=early_stop_nsamples=640", "--seed=[1,2]"]
LONG = [*GRID, "--no-wandb", "--set=batch_size=16", "--set=n_samples=1000", "--set=val_every=30"]
WHOLE = [*LONG, "--set=epochs=4", "--seed=[1,2,3]"]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, bound to loopback."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {
        "num_cpus": 1,
        "node_ip_address": LOOPBACK,
        "include_dashboard": False,
        "object_store_memory": 80 * 2**20,
    }
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.one_more = lambda: cluster.add_node(**node)
    cluster.one_more()
    yield cluster
    cluster.shutdown()


@pytest.fixture(autouse=True)
def heard(notes, monkeypatch):
    """Keep log messages off the console, so that only `notes` has them."""
    monkeypatch.setattr(main, "log_to_console", lambda: None)


@pytest.fixture
def far(monkeypatch):
    """Hide this disk from the nodes, as if they were other machines."""
    from train.launch import cluster

    monkeypatch.setattr(cluster, "beacon", lambda out: contextlib.nullcontext("/nowhere"))


def train(out, *options):
    return main.main([*options, "--out", str(out)])


def options_of_own_things(folder, monkeypatch, own_parts):
    """Return the options of a grid on a text in a data folder below `folder`, with the parts in the file `own_parts` and an evaluation set."""
    text = folder / "data" / "mine" / "data.txt"
    text.parent.mkdir(parents=True)
    text.write_text("\n".join(f"the number {i} comes before {i + 1}" for i in range(2000)), encoding="utf-8")
    monkeypatch.setenv("WHATIF_DATA", str(folder / "data"))
    other = {"pydoc": {"dataset_name": "pydoc", "debug_crop": 4}}
    return [
        f"--with={own_parts}",
        "--set=optimizer='slow_sgd'",
        "--config=test-nlp",
        "--task=mine",
        f"--set=eval_sets={other}",
        *SHORT[1:],
    ]


def assert_equal_runs(here, there):
    """Weights, statistics and final numbers, run by run; what stopped early and had to begin anew is left out."""
    found = (runs(str(out), all=True).sort_values("random_seed") for out in (here, there))
    one, two = (table[table.stopped == "finished"] for table in found)
    assert len(one) == len(two) > 0
    for ours, theirs in zip(map(Path, one.folder), map(Path, two.folder), strict=True):
        files = [{path.name for path in folder.iterdir()} for folder in (ours, theirs)]
        assert files[0] == files[1]
        model, other = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
        assert model.keys() == other.keys()
        assert all(torch.equal(model[name], other[name]) for name in model)
        stats, other = (json.loads((folder / "stats.json").read_text()) for folder in (ours, theirs))
        assert stats | {"stat/train_seconds": 0} == other | {"stat/train_seconds": 0}
        about, other = (json.loads((folder / "about.json").read_text()) for folder in (ours, theirs))
        for key in ("identity", "code", "commit", "versions"):
            assert about[key] == other[key]
        assert about["timestamp"] == ours.name
        assert {k: v for k, v in about["summary"].items() if k not in TIMES} == {
            k: v for k, v in other["summary"].items() if k not in TIMES
        }


@needs_ray
def test_runs_on_a_cluster_equal_those_of_a_serial_grid(
    cluster,
    far,
    file,  # noqa: F811
    tmp_path,
    monkeypatch,
    notes,
):
    """Text and parts that only this machine has and a run to begin with travel, and what wandb keeps comes home, too.

    So do the results on an evaluation set.
    """
    options = options_of_own_things(tmp_path, monkeypatch, file)
    assert train(tmp_path / "serial", *options, "--no-wandb") == 0
    ours = f"--ray={cluster.address}"
    assert train(tmp_path / "ray", *options, ours) == 0
    assert_equal_runs(tmp_path / "serial", tmp_path / "ray")
    assert runs(str(tmp_path / "ray"), all=True)["val_loss[pydoc]"].notna().all()
    assert len(list((tmp_path / "ray" / "logs" / "wandb").glob("offline-run-*"))) == 2
    uploads = [line for line in notes if "Upload later by" in line]
    assert len(uploads) == 2
    assert all(f"{tmp_path}/ray/logs/wandb" in line for line in uploads)
    log_txt = next((tmp_path / "ray").rglob("log.txt")).read_text(encoding="utf-8")
    assert "validation" in log_txt
    assert "/tmp/tmp" not in log_txt
    first = Path(runs(str(tmp_path / "ray"), all=True).folder.iloc[0]).name
    goes_on = [*options[:-1], f"--set=from_saved={first!r}", "--no-wandb", "--seed=3", ours]
    assert train(tmp_path / "ray", *goes_on) == 0
    assert len(runs(str(tmp_path / "ray"), all=True)) == 3


def stop_when(line, notes, what):
    """Does `what` when a line of the log begins so."""

    def wait():
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if any(note.startswith(line) for note in list(notes)):
                what()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A long run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    assert train(out, *WHOLE) == 0
    return out


@pytest.mark.slow
@needs_ray
def test_a_node_that_dies_takes_no_run_with_it(cluster, whole, tmp_path, notes):
    """With a shared disk its run goes on where it stood, on another node."""
    node = cluster.one_more()
    ours = [*WHOLE, f"--ray={cluster.address}"]
    stop_when("run 3: step 90", notes, lambda: cluster.remove_node(node, allow_graceful=False))
    assert train(tmp_path, *ours) == 0
    assert len([note for note in notes if "was lost" in note]) == 1
    table = runs(str(tmp_path), all=True)
    assert sorted(table.random_seed) == [1, 2, 3]
    assert list(table.stopped) == ["finished"] * 3
    assert not list(tmp_path.rglob("*.partial"))
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
@needs_ray
def test_a_run_stopped_by_ctrl_c_on_a_cluster_resumes_without_one(cluster, far, whole, tmp_path, notes):
    stop_when("run 1: step 60", notes, interrupt)
    assert train(tmp_path, *WHOLE, f"--ray={cluster.address}") == 130
    assert set(runs(str(tmp_path), all=True).stopped) == {"interrupted"}
    assert train(tmp_path, *WHOLE, "--resume") == 0
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
@needs_ray
def test_a_run_stopped_without_a_cluster_resumes_on_one(cluster, far, whole, tmp_path, notes):
    stop_when("step 60", notes, interrupt)
    assert train(tmp_path, *WHOLE) == 130
    assert train(tmp_path, *WHOLE, "--resume", f"--ray={cluster.address}") == 0
    assert "--resume: 1 continued, 2 new" in notes
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
@needs_ray
def test_a_run_that_another_call_trains_is_left_out(cluster, far, whole, tmp_path, notes):
    """This process has the claims of its runs, which workers train."""
    claims = [claim_of_saved(path.parent) for path in sorted(whole.rglob("about.json"))]
    ours = [*WHOLE, "--resume", f"--ray={cluster.address}"]
    with claimed_elsewhere(tmp_path, claims[0]):
        assert train(tmp_path, *ours) == 0
    assert "run 1: left out: another call trains it at the moment" in notes
    assert sorted(runs(str(tmp_path), all=True).random_seed) == [2, 3]
    assert noted_folder(tmp_path, claims[1]).is_dir()
    assert train(tmp_path, *ours) == 0
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
@needs_ray
def test_a_run_that_fails_or_dies_does_so_alone(cluster, tmp_path, notes, monkeypatch):
    """Its own exception is not tried again; a killed process is, but not for ever."""
    from ray import cloudpickle

    monkeypatch.setattr("train.launch.cluster.ATTEMPTS", 2)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    once = tmp_path / "once"
    names = ["say=hello", "fail", "raise", "die", f"once={once}"]
    outcomes = on_cluster(cluster, tmp_path, *names)
    assert {number: str(outcome).partition(": The worker")[0] for number, outcome in outcomes.items()} == {
        1: "finished",
        2: "failed: it had to",
        3: "failed: ZeroDivisionError: division by zero",
        4: "failed: WorkerCrashedError",
        5: "finished",
    }
    lost = [note.split(" was lost")[0] for note in notes if "was lost" in note]
    assert sorted(lost) == ["run 4", "run 5"]
    assert "run 1: hello" in notes
    assert {"run 1: say=hello", "run 2: fail"} <= set(notes)


@needs_ray
@pytest.mark.slow  # --jobs shares the code, and tests it every time
def test_fail_fast_ends_all(cluster, tmp_path):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    begun = tmp_path / "begun"
    names = [f"wait={begun}", f"fail={begun}", f"wait={begun}"]
    outcomes = on_cluster(cluster, tmp_path, *names, fail_fast=True)
    assert str(outcomes[2]) == "failed: it had to"
    assert str(outcomes[1]) == str(outcomes[3]) == "cancelled: another run failed"


def on_cluster(cluster, out, *names, **options):
    from train.launch.cluster import OnCluster

    runs = {number: run_named(number, name) for number, name in enumerate(names, 1)}
    announced = {number: f"run {number}: {name}" for number, name in enumerate(names, 1)}
    call = CALL._replace(out=out, cluster=cluster.address, **options)
    return OnCluster(
        act, runs, announced, GridDisplay({number: Shown(str(number), 1) for number in runs}), call
    ).run()


def run_named(number, name, **train_fields):
    params = Params(DataParams(dataset_name="copy"), TrainParams(**train_fields), ModelParams(max_seq_len=64))
    return Run(params, {}, "test", number=number, name=name)


def act(run, call, report):
    """Stands for training; what it does is in its name."""
    what, _, value = run.name.partition("=")
    outcome = Outcome(Ending.FINISHED)
    if what == "say":
        log.info(value)
    elif what == "fail":
        while value and not Path(value).exists():
            time.sleep(0.05)
        outcome = Outcome(Ending.FAILED, "it had to")
    elif what == "raise":
        raise ZeroDivisionError("division by zero")
    elif what == "die" or (what == "once" and not Path(value).exists()):
        Path(value or os.devnull).touch()
        time.sleep(0.5)  # until it is known that it has begun
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "wait":
        stops: list[int] = []  # as a run does it: an exception could be lost in a destructor of Ray's
        before = signal.signal(signal.SIGINT, lambda number, frame: stops.append(number))
        for step in range(600):
            time.sleep(0.1)
            report(Progress(step, 1.5))
            Path(value).touch()
            if stops:
                break
        signal.signal(signal.SIGINT, before)
        outcome = Outcome(Ending.INTERRUPTED if stops else Ending.FINISHED)
    return outcome


@needs_ray
def test_resources_that_no_node_has_are_refused(cluster, tmp_path, capsys):
    ours = ["--config=test-synth", "--no-wandb", f"--ray={cluster.address}", "--set=cpus=[0.5,4.0]"]
    assert train(tmp_path, *ours) == 2
    error = capsys.readouterr().err
    assert "run 2 (cpus 4) asks for cpus=4 with gpus=0, which no node of the cluster has" in error
    assert "run 1" not in error


@pytest.mark.slow
@needs_ray
def test_ctrl_c_leaves_no_process_behind(tmp_path):
    """Ctrl-C also ends the processes of a Ray cluster that the run started itself."""
    command = [sys.executable, str(ROOT / "main.py"), *LONG, "--set=epochs=1000", "--ray"]
    command += ["--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children = []
    for line in process.stdout:
        if line.startswith("run 1: step 30"):
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            break
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "Traceback" not in output, output
    assert list(runs(str(tmp_path), all=True).stopped) == ["interrupted"]
    assert len(children) > 3
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_missing_ray_is_reported_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    assert train(tmp_path, "--config=test-synth", "--no-wandb", "--ray") == 2
    assert capsys.readouterr().err == "--ray needs Ray: pip install -r requirements-ray.txt\n"
    assert not list(tmp_path.iterdir())


@needs_ray
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--ray=127.0.0.1:1"],
            "--ray=127.0.0.1:1 cannot be used ([Errno 111] Connection refused); it must be",
        ),
        (["--ray=somewhere"], "must be host:port of a cluster's head"),
        (["--ray=ray://127.0.0.1:10001"], "must be host:port of a cluster's head"),
        (["--ray", "--set=devices=2"], "--ray gives a run one device, but devices=2"),
        (["--ray", "--set=gpus=2.0"], "TrainParams cannot have gpus = 2.0"),
        (["--ray", "--set=cpus=0.0"], "TrainParams cannot have cpus = 0.0"),
    ],
)
def test_options_that_ray_does_not_support_are_refused(options, reason, tmp_path, capsys):
    assert train(tmp_path, "--config=test-synth", "--no-wandb", *options) == 2
    assert reason in capsys.readouterr().err


def test_cluster_resources_are_not_part_of_a_runs_identity():
    plain, asking = (run_named(1, "", **fields).params for fields in ({}, {"cpus": 2.0, "gpus": 0.5}))
    assert history.run_identity(plain, "") == history.run_identity(asking, "")


@needs_ray
@pytest.mark.parametrize(
    ("fields", "has_gpus", "wanted"),
    [
        ({}, False, (1.0, 0.0)),
        ({}, True, (1.0, 1.0)),
        ({"gpus": 0.25, "cpus": 0.5}, True, (0.5, 0.25)),
        ({"gpus": 0.0, "cpus": 3.5}, True, (3.5, 0.0)),
    ],
)
def test_cpus_and_gpus_of_a_run_follow_its_params(fields, has_gpus, wanted):
    from train.launch.cluster import cpus_and_gpus

    assert cpus_and_gpus(TrainParams(**fields), has_gpus) == wanted


@needs_ray
def test_a_node_must_have_all_at_once():
    from train.launch.cluster import refuse_too_large

    nodes = [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}]
    refuse_too_large([run_named(1, "", cpus=8.0, gpus=0.0), run_named(2, "", gpus=1.0)], nodes, True)
    with pytest.raises(GridError, match=r"run 3 \(a\) asks for cpus=2 with gpus=0.5"):
        refuse_too_large([run_named(3, "a", cpus=2.0, gpus=0.5)], nodes, True)


@needs_ray
def test_an_address_that_does_not_answer_is_given_up_soon(monkeypatch):
    from train.launch import cluster

    monkeypatch.setattr(cluster, "REACH_SECONDS", 0.2)
    with socket.socket() as full:
        full.bind((LOOPBACK, 0))
        full.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(4):  # nobody accepts, so that the queue is full
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            began = time.monotonic()
            with pytest.raises(GridError, match=r"cannot be used \(timed out"):
                cluster.connect(f"{LOOPBACK}:{full.getsockname()[1]}")
            assert time.monotonic() - began < 5


def test_a_gpu_of_this_machine_is_not_for_a_cluster():
    [problem] = device_problems({1}, CALL._replace(cluster="auto", gpu_id=0))
    assert problem == "--gpu-id=0 is a GPU of this machine; with --ray set gpus in TrainParams"


def test_a_cluster_is_not_for_several_at_once_on_this_machine(tmp_path, capsys):
    assert train(tmp_path, "--config=test-synth", "--no-wandb", "--ray", "--jobs=2") == 2
    assert "not allowed with argument" in capsys.readouterr().err
