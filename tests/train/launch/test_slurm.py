"""A grid as jobs of Slurm: the results of a serial one, whatever ends the jobs. By a real Slurm, and by submitit's processes here."""

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import main
from explore.load import runs
from tests.train.launch.little_slurm import needs_slurm, needs_submitit, slurm_in
from tests.train.launch.test_cluster import (
    LONG,
    SHORT,
    WHOLE,
    act,
    assert_equal_runs,
    heard,  # noqa: F401 -- a fixture
    interrupt,
    options_of_own_things,
    run_named,
    stop_when,
    train,
    whole,  # noqa: F401 -- a fixture
)
from tests.train.little_run import CALL
from tests.train.test_own_parts import file  # noqa: F401 -- a fixture
from train.launch import sweep
from train.launch.display import GridDisplay, Shown
from train.launch.plan import device_problems
from train.launch.remote import SLURM
from train.launch.workers import Message
from train.progress import Progress
from train.train_params import TrainParams

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_in(tmp_path_factory.mktemp("slurm"), (16817, 16818)):
        yield


@pytest.fixture
def here(monkeypatch):
    """Jobs are processes of this machine that submitit starts, each at once, in place of Slurm's."""
    import submitit

    from train.launch import slurm

    def executor(grid, options):
        local = submitit.LocalExecutor(grid.folder)
        local.update_parameters(
            setup=[f"cd {grid.folder / slurm.CODE}"], timeout_min=10, stderr_to_stdout=True
        )
        return local

    def states(jobs):
        return {job.job_id: ("COMPLETED" if job.done() else "RUNNING", "None") for job in jobs}

    monkeypatch.setattr(slurm.OnSlurm, "executor", executor)
    monkeypatch.setattr(slurm, "job_states", states)
    monkeypatch.setattr(slurm, "refuse_by_sbatch", lambda options: None)
    monkeypatch.setattr(slurm, "STATE_SECONDS", 0.5)
    monkeypatch.setattr(sweep, "which", lambda name: name)


def shell(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def on_slurm(out, *names, **options):
    """Give runs to Slurm that do what their names say."""
    import cloudpickle

    from tests.train.launch import test_cluster
    from train.launch.slurm import OnSlurm

    cloudpickle.register_pickle_by_value(test_cluster)
    grid = {number: run_named(number, name) for number, name in enumerate(names, 1)}
    announced = {number: f"run {number}: {name}" for number, name in enumerate(names, 1)}
    display = GridDisplay({number: Shown(str(number), 1) for number in grid})
    call = CALL._replace(out=out, cluster=SLURM, save=True, **options)
    return OnSlurm(act, grid, announced, display, call).run()


# ---- without Slurm


@needs_submitit
@pytest.mark.slow
def test_a_run_in_a_process_of_submitit_equals_one_here(here, tmp_path, notes):
    """Everything but Slurm itself takes part: pickles, messages, results, the copy of the code."""
    options = [*SHORT[:-1], "--no-wandb"]
    assert train(tmp_path / "serial", *options) == 0
    assert train(tmp_path / "slurm", *options, "--slurm=jobs=2") == 0
    assert_equal_runs(tmp_path / "serial", tmp_path / "slurm")
    assert any(note.startswith("run 1: step 10: validation") for note in notes)
    assert not list((tmp_path / "slurm" / "logs" / "slurm").iterdir())


@pytest.mark.slow
@needs_submitit
def test_a_job_at_its_time_limit_starts_again_and_goes_on(here, whole, tmp_path, notes):  # noqa: F811
    def is_limit():
        [job] = tmp_path.rglob("*_0_log.out")
        controller = job.name.split("_")[0]
        tasks = shell("pgrep", "-f", "submitit.core._submit").split()
        parents = {task: shell("ps", "-o", "ppid=", "-p", task).strip() for task in tasks}
        [task] = [t for t, p in parents.items() if shell("ps", "-o", "ppid=", "-p", p).strip() == controller]
        shell("kill", "-USR2", task)

    stop_when("run 1: step 60", notes, is_limit)
    assert train(tmp_path, *WHOLE[:-1], "--seed=1", "--slurm") == 0
    assert any("at the time limit of its job, which is queued again" in note for note in notes)
    assert "run 1 was stopped by Slurm, and goes on in a new start of its job" in notes
    assert not list(tmp_path.rglob("*.partial"))
    [folder] = runs(str(tmp_path), all=True).folder
    [other] = [
        path for path, seed in runs(str(whole), all=True)[["folder", "random_seed"]].values if seed == 1
    ]
    weights = [Path(path, "model.safetensors").read_bytes() for path in (folder, other)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@needs_submitit
def test_a_run_that_fails_or_dies_does_so_alone(here, tmp_path, notes):
    outcomes = on_slurm(tmp_path, "say=hello", "fail", "raise", "die")
    assert {number: str(outcome) for number, outcome in outcomes.items()} == {
        1: "finished",
        2: "failed: it had to",
        3: "failed: its job failed; the log has the traceback",
        4: "failed: its job ended (COMPLETED)",
    }
    assert "run 1: hello" in notes
    assert any("ZeroDivisionError: division by zero" in note for note in notes)
    assert any(note.startswith("run 4 failed: its job ") and "; see /" in note for note in notes)


@pytest.mark.slow
@needs_submitit
def test_fail_fast_ends_all(here, tmp_path):
    begun = tmp_path / "begun"
    outcomes = on_slurm(tmp_path, f"wait={begun}", f"fail={begun}", fail_fast=True)
    assert str(outcomes[2]) == "failed: it had to"
    assert str(outcomes[1]) == "cancelled: another run failed"


@needs_submitit
def test_messages_arrive_once_and_whole(tmp_path):
    from train.launch.slurm import FileOfMessages

    mail = FileOfMessages(tmp_path / "1")
    assert mail.read(0) == ([], 0)
    mail.send(Message())
    first, place = mail.read(0)
    assert first == [Message()]
    mail.send(Message(Progress(3, 1.5)))
    complete = mail.path.read_bytes()
    mail.path.write_bytes(complete[:-5])
    assert mail.read(place) == ([], place)
    mail.path.write_bytes(complete)
    assert mail.read(place) == ([Message(Progress(3, 1.5))], len(complete))


@needs_submitit
def test_a_run_that_does_not_advance_within_its_limit_is_not_queued_again(tmp_path, monkeypatch):
    from train.launch import slurm

    queued = []
    monkeypatch.setattr(slurm, "requeue_job", lambda: queued.append(1))
    monkeypatch.setattr(slurm.signal, "signal", lambda number, handler: None)
    run, mark = run_named(1, "a"), tmp_path / "1.steps"
    slurm.queue_again(run, 5, mark)
    slurm.queue_again(run, 9, mark)
    with pytest.raises(RuntimeError, match="it leaves no time to train; give more by time= in --slurm"):
        slurm.queue_again(run, 9, mark)
    assert len(queued) == 2


@needs_submitit
def test_a_job_has_ended_when_slurm_has_said_so_twice(tmp_path, notes, monkeypatch):
    """A result may arrive after the end of its job, and Slurm forgets jobs, or does not answer."""
    from train.launch import slurm

    told = [
        None,
        *[{"7_0": ("PENDING", "Priority"), "7_1": ("RUNNING", "None"), "7_2": ("RUNNING", "None")}] * 2,
    ]
    told += [{"7_1": ("OUT_OF_MEMORY", "None"), "7_2": ("COMPLETED", "None")}]
    told += [{"7_2": ("RUNNING", "None")}, None, {"7_2": ("RUNNING", "None")}]
    answers = iter(told)
    monkeypatch.setattr(slurm, "job_states", lambda jobs: next(answers))
    grid = {number: run_named(number, "a") for number in (1, 2, 3)}
    display = GridDisplay({number: Shown(str(number), 1) for number in grid})
    ours = slurm.OnSlurm(act, grid, dict.fromkeys(grid, ""), display, CALL._replace(out=tmp_path))
    ours.waits_for = set()
    for number in grid:
        job = SimpleNamespace(job_id=f"7_{number - 1}", paths=SimpleNamespace(stdout=tmp_path / "log"))
        ours.workers.append(slurm.JobOfRun(number=number, job=job, began=True, has_ended=False))
    busy = []
    for _ in told:
        ours.ask_slurm()
        busy.append([worker.number for worker in ours.busy])
    assert busy == [[1, 2, 3]] * 4 + [[3]] * 3
    assert str(ours.outcomes[1]) == str(ours.outcomes[2]) == "failed: its job ended (unknown to Slurm)"
    assert [note for note in notes if "queue" in note] == ["jobs wait in the queue: Priority"]
    assert any("do the nodes see" in note for note in notes)


@needs_submitit
@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("partition=gpu,time=2:00:00,gpus=1", {"partition": "gpu", "time": "2:00:00", "gpus": "1"}),
        ("exclude=node1,node2,mem_per_cpu=2G", {"exclude": "node1,node2", "mem-per-cpu": "2G"}),
        ("gres=gpu:a100:1,jobs=4", {"gres": "gpu:a100:1", "jobs": "4"}),
    ],
)
def test_options_of_sbatch_are_read(text, options):
    from train.launch.slurm import read_slurm_options

    assert read_slurm_options(text) == options


@needs_submitit
@pytest.mark.parametrize(
    ("fields", "options", "asked"),
    [
        ({}, {}, {"cpus-per-task": "1"}),
        ({"cpus": 1.5}, {"time": "5"}, {"cpus-per-task": "2", "time": "5"}),
        ({"threads": 4}, {"jobs": "3"}, {"cpus-per-task": "4"}),
        ({"threads": 4}, {"cpus-per-task": "8"}, {"cpus-per-task": "8"}),
        ({"threads": 4, "gpus": 1.0}, {"cpus-per-gpu": "8"}, {"cpus-per-gpu": "8", "gpus": "1"}),
        ({"gpus": 0.0}, {}, {"cpus-per-task": "1"}),
    ],
)
def test_a_job_asks_for_what_its_run_needs(fields, options, asked):
    from train.launch.slurm import job_options

    assert job_options(TrainParams(**fields), options) == asked


@needs_submitit
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--slurm=gpu", "--slurm=gpu: 'gpu' is no option and its value; it takes long options of sbatch"),
        ("--slurm=partition=", "'partition=' is no option and its value"),
        ("--slurm=--time=5", "'--time=5' is no option and its value"),
        ("--slurm=time=5,array=0-3", "--slurm=time=5,array=0-3: whatif sets array itself"),
        ("--slurm=wait=yes", "whatif sets wait itself"),
        ("--slurm=jobs=none", "jobs is the number of jobs at a time, and must be above 0"),
        ("--set=devices=2", "--slurm gives a run one device, but devices=2"),
        ("--set=max_seconds=5.0", "so it does not go with --slurm"),
        ("--set=gpus=0.5", "run 1: gpus=0.5 is a share of a GPU, but Slurm gives a job whole ones; use 1.0"),
        ("--jobs=2", "not allowed with argument"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_submitted(option, reason, here, tmp_path, capsys):
    options = [*LONG, *([] if option.startswith("--slurm") else ["--slurm"]), option]
    assert train(tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert not list(tmp_path.rglob("logs/slurm"))


@pytest.mark.parametrize(
    ("monkey", "sentence"),
    [
        ("find_spec", "--slurm needs submitit: pip install -r requirements-slurm.txt\n"),
        ("which", "--slurm needs Slurm's command sbatch: call main.py on a login node of the cluster\n"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(monkey, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "find_spec", lambda name: name)
    monkeypatch.setattr(sweep, monkey, lambda name: None)
    assert train(tmp_path, *SHORT, "--no-wandb", "--slurm") == 2
    assert capsys.readouterr().err == sentence
    assert not list(tmp_path.iterdir())


def test_a_gpu_of_this_machine_is_not_for_jobs():
    [problem] = device_problems({1}, CALL._replace(cluster=SLURM, gpu_id=0))
    assert problem == "--gpu-id=0 is a GPU of this machine; with --slurm set gpus in TrainParams"


def test_jobs_are_saved():
    assert main.parse_arguments(["--config=test", "--slurm"]).save
    assert not main.parse_arguments(["--config=test"]).save


# ---- with Slurm


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_jobs_of_slurm_equal_a_serial_grid(cluster, file, tmp_path, monkeypatch, notes):  # noqa: F811
    """Text and parts that only the first process knows reach the jobs, and what wandb keeps is there, too."""
    options = options_of_own_things(tmp_path, monkeypatch, file)
    assert train(tmp_path / "serial", *options, "--no-wandb") == 0
    assert train(tmp_path / "slurm", *options, "--slurm=time=20,jobs=2") == 0
    assert_equal_runs(tmp_path / "serial", tmp_path / "slurm")
    assert runs(str(tmp_path / "slurm"), all=True)["val_loss[pydoc]"].notna().all()
    assert len(list((tmp_path / "slurm" / "logs" / "wandb").glob("offline-run-*"))) == 2
    assert any(note.startswith("--slurm: submitted job ") and note.endswith(", 2 runs") for note in notes)


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_preempted_and_timed_out_jobs_go_on(cluster, whole, tmp_path, notes):  # noqa: F811
    """An urgent job takes the whole node, and Slurm queues ours again. One has had its notice of the time limit before."""

    def give_notice():
        job = next(
            line for line in shell("squeue", "--noheader", "--array", "--format=%i").split() if "_0" in line
        )
        shell("scancel", "--signal=USR2", job)

    def preempt():
        time.sleep(1)
        script = "--wrap=sleep 5"
        shell("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", script)

    stop_when("run 1: step 60", notes, give_notice)
    stop_when("run 2: step 90", notes, preempt)
    assert train(tmp_path, *WHOLE, "--slurm=time=20") == 0
    assert any("at the time limit of its job, which is queued again" in note for note in notes)
    assert "run 2 was stopped by Slurm, and goes on in a new start of its job" in notes
    assert list(runs(str(tmp_path), all=True).stopped) == ["finished"] * 3
    assert not list(tmp_path.rglob("*.partial"))
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_ctrl_c_ends_jobs_and_the_rest_resumes_without_slurm(cluster, whole, tmp_path, notes):  # noqa: F811
    stop_when("run 1: step 60", notes, interrupt)
    assert train(tmp_path, *WHOLE, "--slurm=jobs=1") == 130
    assert list(runs(str(tmp_path), all=True).stopped) == ["interrupted"]
    assert any(note.startswith("interrupted: 0 of 3 done, run 1 stopped after") for note in notes)
    deadline = time.monotonic() + 60  # a process needs a moment to end
    while left := shell("squeue", "--noheader"):
        assert time.monotonic() < deadline, left
        time.sleep(1)
    assert train(tmp_path, *WHOLE, "--resume") == 0
    assert_equal_runs(tmp_path, whole)


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_a_job_that_dies_or_is_cancelled_fails_alone(cluster, tmp_path, notes, monkeypatch):
    from train.launch import slurm

    def cancel():
        [job] = [
            line for line in shell("squeue", "--noheader", "--array", "--format=%i").split() if "_1" in line
        ]
        shell("scancel", job)

    monkeypatch.setattr(slurm, "STATE_SECONDS", 1.0)
    stop_when("run 2: wait", notes, cancel)
    outcomes = on_slurm(tmp_path, "die", f"wait={tmp_path / 'begun'}", "say=hello")
    assert {number: str(outcome) for number, outcome in outcomes.items()} == {
        1: "failed: its job ended (FAILED)",
        2: "failed: its job ended (CANCELLED)",
        3: "finished",
    }
    assert any(note.startswith("the logs of the jobs are in ") for note in notes)


@needs_submitit
@needs_slurm
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (
            "--slurm=partition=gpu",
            "sbatch --cpus-per-task=1 --partition=gpu is refused: invalid partition specified: gpu",
        ),
        ("--slurm=tiem=5", "sbatch --cpus-per-task=1 --tiem=5 is refused: unrecognized option '--tiem=5'"),
        ("--slurm=time=soon", "is refused: Invalid --time specification"),
        ("--slurm=gpus=1", "is refused: Invalid generic resource (gres) specification"),
        (
            "--slurm=cpus-per-task=64",
            "is refused: allocation failure: Requested node configuration is not available",
        ),
    ],
)
def test_options_that_sbatch_refuses_are_one_sentence(cluster, option, reason, tmp_path, capsys):
    assert train(tmp_path, *SHORT, "--no-wandb", option) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith("--slurm: sbatch --")
    assert reason in sentence
    assert not list(tmp_path.rglob("logs/slurm"))
