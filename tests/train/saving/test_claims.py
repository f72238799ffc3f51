"""Two calls with --resume on one grid at once: each run is trained once, whichever call comes to it and however that ends."""

import json
import os
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import main
from data.data_params import DataParams
from explore.load import runs
from model.model_params import ModelParams
from tests.train.killed import forked, killed_at
from tests.train.little_run import version_with_edits
from tests.train.saving.test_earlier_runs import CONFIG
from train.grid.params import Params
from train.grid.run import Run
from train.run import train_run
from train.saving import earlier_runs as history
from train.saving.claims import Claims, claims_in, note_folder, noted_folder
from train.saving.earlier_runs import run_identity
from train.saving.provenance import code_id, code_of_this_process
from train.saving.run_folder import LOCK_FILE, is_training, lock_of
from train.saving.timestamps import run_folders
from train.train_params import TrainParams

CLAIMED = "left out: another call trains it at the moment"


@pytest.fixture
def call(tmp_path, monkeypatch):
    """main.py on a grid of two runs, dim 8 and 16. `call.trained()` are the dims trained so far, by all processes.

    What is set as `call.meanwhile` is done once, when the first run trains.
    """
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    (tmp_path / "trial.txt").write_text(CONFIG)
    out, note = tmp_path / "out", tmp_path / "trained"
    claims = {}

    def train_noted(run, *args, **options):
        with note.open("a") as file:
            file.write(f"{run.params.model.dim}\n")
        meanwhile, call.meanwhile = call.meanwhile, lambda: None
        meanwhile()
        return train_run(run, *args, **options)

    def identity_noted(params, content):
        identity = run_identity(params, content)
        claims[params.model.dim] = f"{identity}-{code_id(code_of_this_process().hashes(params))}"
        return identity

    monkeypatch.setattr("train.run.train_run", train_noted)
    monkeypatch.setattr("train.launch.plan.run_identity", identity_noted)

    def call(*options):
        return main.main(["--config=trial", "--no-wandb", "--resume", "--out", str(out), *options])

    call.out, call.claims, call.meanwhile = out, claims, lambda: None
    call.trained = lambda: [int(line) for line in note.read_text().split()] if note.exists() else []
    return call


def claim_of_saved(folder: Path) -> str:
    """The claim to a run like the saved one, by the same code."""
    about = json.loads((folder / "about.json").read_text())
    return f"{about['identity']}-{code_id(about['code'])}"


def in_child(function) -> int:
    """Start `function` in a process of its own; return its id."""
    if child := os.fork():
        return child
    try:
        function()
    finally:
        os._exit(0)


@contextmanager
def claimed_elsewhere(root: Path, *identities: str):
    """Inside, another process has claims to runs. Yield a function that kills it."""
    read, write = os.pipe()

    def hold():
        claims = Claims(root)
        assert all(map(claims.take, identities))
        os.write(write, b"!")
        time.sleep(300)

    child = in_child(hold)

    def kill():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    try:
        assert os.read(read, 1) == b"!"
        yield kill
    finally:
        for end in (read, write):
            os.close(end)
        with suppress(ProcessLookupError):  # it is killed already
            kill()


def statuses(call):
    return {row.dim: row.stopped for row in runs(str(call.out), all=True).itertuples()}


def test_a_claim_belongs_to_one_process_until_it_dies(tmp_path):
    claims = claims_in(tmp_path)
    with claimed_elsewhere(tmp_path, "a", "b") as kill:
        assert not claims.take("a")
        assert not claims.take("b")
        assert claims.take("c")
        kill()
        assert claims.take("a")
    assert forked(lambda: Claims(tmp_path).take("a")) == 0
    claims.give_back("a")
    assert forked(lambda: Claims(tmp_path).take("a")) == 1
    assert forked(lambda: Claims(tmp_path).take("c")) == 0


def test_a_note_leads_to_no_folder_outside(tmp_path):
    folder = tmp_path / "saved-models" / "x" / "2024-01-01--00-00-00.partial"
    assert noted_folder(tmp_path, "a") is None
    note_folder(tmp_path, "a", folder)
    assert noted_folder(tmp_path, "a") == folder
    for elsewhere in (b"../x", b"/etc", b"saved-models/../../x", b"", b"\xff"):
        (tmp_path / "saved-models/.claims/a").write_bytes(elsewhere)
        assert noted_folder(tmp_path, "a") is None


def test_a_run_that_another_call_trains_is_left_out(call, capsys):
    assert call("--dry-run") == 0
    with claimed_elsewhere(call.out, call.claims[8]):
        assert call() == 0
    assert call.trained() == [16]
    shown = capsys.readouterr().out
    assert shown.count(f"run 1: {CLAIMED}") == 1
    assert "training elsewhere" in " ".join(shown.split())
    assert call() == 0
    assert call.trained() == [16, 8]


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_of_another_call_that_died_is_trained_at_the_end(call):
    assert call("--dry-run") == 0
    with claimed_elsewhere(call.out, call.claims[8]) as kill:
        call.meanwhile = kill
        assert call() == 0
    assert call.trained() == [16, 8]
    assert statuses(call) == {8: "finished", 16: "finished"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_that_another_call_finished_meanwhile_is_not_trained_again(call, capsys):
    """This holds even if the run was to resume from a checkpoint or to train again."""
    call.meanwhile = lambda: forked(lambda: call("--set", "dim=16"))
    assert call() == 0
    assert call.trained() == [8, 16]
    shown = capsys.readouterr().out
    [timestamp] = runs(str(call.out), dim=16, all=True).index
    assert f"run 2: finished: {timestamp}" in shown
    assert "finished earlier" in " ".join(shown.split())
    assert statuses(call) == {8: "finished", 16: "finished"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_that_another_call_began_meanwhile_is_resumed(call, capsys):
    """It was killed; its checkpoint is that of the second step."""
    call.meanwhile = lambda: forked(lambda: killed_at("batch", 3, lambda: call("--set", "dim=16")))
    assert call() == 0
    assert call.trained() == [8, 16, 16]
    assert "run 2: goes on: " in capsys.readouterr().out
    assert len(list(run_folders(call.out))) == 2
    assert statuses(call) == {8: "finished", 16: "finished"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_to_resume_that_another_call_finished_is_left_alone(call):
    died = forked(lambda: killed_at("batch", 3, lambda: call("--set", "dim=16")))
    assert died == -signal.SIGKILL
    call.meanwhile = lambda: forked(lambda: call("--set", "dim=16"))
    assert call() == 0
    assert call.trained() == [16, 8, 16]
    assert len(list(run_folders(call.out))) == 2


@pytest.mark.slow
@pytest.mark.ci
def test_runs_that_other_code_trained_meanwhile_are_not_taken_over(call, monkeypatch):
    other = version_with_edits("model/lm.py")

    def meanwhile():
        assert forked(lambda: call("--set", "dim=16")) == 0
        monkeypatch.setattr(history, "code_of_this_process", lambda: other)

    call.meanwhile = meanwhile
    assert call() == 0
    assert call.trained() == [8, 16, 16]


@pytest.mark.slow
@pytest.mark.ci
def test_two_calls_at_once_share_a_grid(call, tmp_path):
    """Together, both calls train each of the four runs once, whichever call is first."""
    (tmp_path / "trial.txt").write_text(CONFIG.replace("[8, 16]", "[8, 16, 24, 32]"))
    children = [in_child(call) for _ in range(2)]
    for child in children:
        os.waitpid(child, 0)
    assert sorted(call.trained()) == [8, 16, 24, 32]
    assert statuses(call) == dict.fromkeys([8, 16, 24, 32], "finished")


@pytest.mark.slow
def test_side_by_side_runs_of_another_call_are_left_out_too(call, capsys):
    """Workers claim the runs that they train."""
    assert call("--dry-run") == 0
    with claimed_elsewhere(call.out, call.claims[8]):
        assert call("--jobs=2") == 0
    assert f"run 1: {CLAIMED}" in capsys.readouterr().out
    assert statuses(call) == {16: "finished"}
    [noted] = [noted_folder(call.out, identity) for identity in call.claims.values()][1:]
    assert noted.name == f"{runs(str(call.out), all=True).index[0]}.partial", "the name it had when it began"


@pytest.mark.slow
@pytest.mark.ci
def test_without_resume_a_call_trains_its_own_runs(call):
    assert call("--dry-run") == 0
    with claimed_elsewhere(call.out, *call.claims.values()):
        assert main.main(["--config=trial", "--no-wandb", "--save", "--out", str(call.out)]) == 0
    assert call.trained() == [8, 16]


@pytest.fixture
def closed_folder(tmp_path):
    """A run folder of somebody else's: to be read, not written, by the process that `as_somebody` starts."""
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else takes root")
    folder = tmp_path / "saved-models" / "x" / "2024-01-01--00-00-00.partial"
    folder.mkdir(parents=True)
    for parent in [folder, *folder.parents]:
        if parent.stat().st_mode & 0o5 != 0o5:
            parent.chmod(0o755)
    return folder


def as_somebody(function) -> int:
    def change_and_call():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        return function()

    return forked(change_and_call)


def test_a_training_run_of_another_user_is_recognized(closed_folder):
    assert as_somebody(lambda: 7 + is_training(closed_folder)) == 7, "without a lock"
    lock = lock_of(closed_folder)
    with lock:
        (closed_folder / LOCK_FILE).chmod(0o644)
        assert as_somebody(lambda: 7 + is_training(closed_folder)) == 8
    assert as_somebody(lambda: 7 + is_training(closed_folder)) == 7


ABOUT = '{"timestamp": "", "identity": "abc", "code": {}, "failed": "why", "resumable": true}'


@pytest.mark.parametrize("readable", [True, False])
def test_a_killed_run_of_another_user_is_trained_as_a_new_run(readable, closed_folder):
    """Its folder can be neither resumed nor removed. A run that still trains is left out."""
    root = closed_folder.parents[2]
    (closed_folder / "about.json").write_text(ABOUT)
    (closed_folder / "resume.ckpt").touch()
    if not readable:
        closed_folder.chmod(0o700)

    def step():
        run = Run(Params(DataParams(), TrainParams(), ModelParams()), {}, "trial", identity="abc")
        return history.steps_for([run], root, any_code=True)[0]

    def code_of_step():
        history.clear_away([closed_folder])
        return ["new", "finished", "continued", "again", "elsewhere"].index(step().what)

    assert step().what == "continued"
    assert as_somebody(code_of_step) == 0
    with lock_of(closed_folder):
        (closed_folder / LOCK_FILE).chmod(0o644)
        assert as_somebody(code_of_step) == (4 if readable else 0)
    assert closed_folder.exists()
