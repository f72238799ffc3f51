"""Folders between machines: what is packed arrives, nothing else is touched, and a run that comes home is whole or not there."""

import contextlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from data.data_params import DataParams
from model.model_params import ModelParams
from tests.train import little_run
from train.grid.params import Params
from train.grid.run import NEW, DataFacts, Run, Step
from train.launch.parcels import (
    DYING_SECONDS,
    Upload,
    download_results,
    in_a_folder,
    outputs,
    pack_folders,
    resume_dead_attempt,
    unpack_folders,
)
from train.logs import log
from train.saving.outcome import Ending, Outcome
from train.saving.run_folder import RunFolder, create_run_files, is_training
from train.train_params import TrainParams

WAS = "test/copy/2024-04-22--16-17-00"
PARAMS = Params(DataParams(dataset_name="copy"), TrainParams(), ModelParams(max_seq_len=64))
CALL = little_run.CALL._replace(save=True)
SAVED = Outcome(Ending.FINISHED, folder=Path("elsewhere"))
FAILED = Outcome(Ending.FAILED)


def a_run(step=NEW, **fields) -> Run:
    return Run(PARAMS, {}, "test", number=1, identity="abc", first_step=step, **fields)


def earlier(out: Path, name: str = "2024-01-01--00-00-00.partial", what: str = "continued") -> Step:
    """Make the folder of a run that was killed."""
    folder = out / "saved-models" / "test" / "copy" / name
    folder.mkdir(parents=True)
    (folder / "resume.ckpt").write_bytes(b"where it stood")
    return Step(what, folder)


@pytest.fixture
def left(tmp_path):
    """Packed output of a run on another machine, where the run that it started from lies beside it."""
    out = tmp_path / "away"
    other = out / "saved-models" / "test" / "copy" / "2023-01-01--00-00-00"
    for run, identity in ((out / "saved-models" / WAS, "abc"), (other, "other")):
        (run / "tokenizer").mkdir(parents=True)
        about = {"timestamp": run.name, "identity": identity, "summary": {"stopped": "finished"}}
        (run / "about.json").write_text(json.dumps(about))
        (run / "model.safetensors").write_bytes(b"new weights")
        (run / "tokenizer" / "char.json").write_text("{}")
        (run / "lock").touch()
        (run / "elsewhere").symlink_to("/etc/hostname")
    (out / "logs" / "wandb" / "offline-run-1").mkdir(parents=True)
    (out / "logs" / "wandb" / "offline-run-1" / "run.wandb").write_bytes(b"stats")
    return pack_folders(out, outputs(out, "abc"))


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_downloaded_run_is_complete(left, home, notes):
    with tarfile.open(fileobj=io.BytesIO(left)) as parcel:
        assert "lock" not in {Path(name).name for name in parcel.getnames()}
    outcome = download_results(left, a_run(), SAVED, home)
    folder = home / "saved-models" / WAS
    assert outcome == replace(SAVED, folder=folder)
    assert notes == [f"run 1: saved as {folder.name} in {folder.parent}"]
    assert files(folder) == {"about.json", "model.safetensors", "tokenizer/char.json"}
    assert files(home / "logs") == {"wandb/offline-run-1/run.wandb"}
    assert {path.name for path in home.iterdir()} == {"saved-models", "logs"}, "nothing else is left behind"


def test_downloaded_runs_get_distinct_timestamps(left, home):
    folders = [download_results(left, a_run(), SAVED, home).folder for _ in range(2)]
    assert [folder.name for folder in folders] == ["2024-04-22--16-17-00", "2024-04-22--16-17-01"]
    for folder in folders:
        assert json.loads((folder / "about.json").read_text())["timestamp"] == folder.name


def test_a_failed_run_is_downloaded_as_partial_and_unlocked(tmp_path, home):
    run = tmp_path / "away" / "saved-models" / f"{WAS}.partial"
    run.mkdir(parents=True)
    (run / "about.json").write_text(json.dumps({"identity": "abc", "failed": "it had to"}))
    parcel = pack_folders(tmp_path / "away", outputs(tmp_path / "away", "abc"))
    assert download_results(parcel, a_run(), FAILED, home) == FAILED
    folder = home / "saved-models" / f"{WAS}.partial"
    assert json.loads((folder / "about.json").read_text())["failed"] == "it had to"
    assert not is_training(folder)


def test_a_run_ended_by_ctrl_c_is_downloaded_with_its_resume_checkpoint(left, tmp_path, home):
    away = tmp_path / "away" / "saved-models" / WAS
    (away / "resume.ckpt").write_bytes(b"where it stood")
    parcel = pack_folders(tmp_path / "away", outputs(tmp_path / "away", "abc"))
    interrupted = replace(SAVED, ending=Ending.INTERRUPTED)
    folder = download_results(parcel, a_run(), interrupted, home).folder
    assert (folder / "resume.ckpt").read_bytes() == b"where it stood"
    assert not (folder / "lock").exists()


@pytest.mark.parametrize(
    ("name", "what", "stays"),
    [
        ("2024-01-01--00-00-00.partial", "continued", False),
        ("2024-01-01--00-00-00", "continued", False),
        ("2024-01-01--00-00-00.partial", "again", False),
    ],
)
def test_a_downloaded_run_replaces_its_earlier_attempt(name, what, stays, left, home):
    step = earlier(home, name, what)
    folder = download_results(left, a_run(step), SAVED, home).folder
    assert step.folder.exists() == stays
    assert (folder / "model.safetensors").read_bytes() == b"new weights"
    assert "resume.ckpt" not in files(folder)


def test_an_earlier_attempt_stays_if_no_results_arrive(home):
    step = earlier(home)
    download_results(pack_folders(home, []), a_run(step), FAILED, home)
    assert files(step.folder) == {"resume.ckpt"}


def test_a_run_that_another_call_has_resumed_is_not_replaced(left, home):
    step = earlier(home)
    taken = RunFolder.take_up(step.folder)
    download_results(left, a_run(step), SAVED, home)
    assert files(taken.path) == {"lock", "resume.ckpt"}


def test_an_incomplete_download_leaves_no_run(left, home):
    """An earlier folder of the run stays as well."""
    step = earlier(home)
    for parcel in (left[:3000], b"no tar file" * 100):
        with pytest.raises(ValueError, match="cannot be unpacked"):
            download_results(parcel, a_run(step), SAVED, home)
    assert files(home) == {"saved-models/test/copy/2024-01-01--00-00-00.partial/resume.ckpt"}


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside"])
def test_unpacking_writes_nothing_outside_its_folder(name, tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as hostile:
        hostile.addfile(tarfile.TarInfo(name), io.BytesIO())
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    with contextlib.suppress(ValueError):  # which refuses it; or it is put inside
        unpack_folders(file.getvalue(), target)
    assert files(tmp_path) <= {"a/b/tmp/outside"}


def test_files_that_a_run_needs_are_uploaded_once_to_the_same_places(home, notes):
    tokens = home / "cache" / "tokens-1"
    tokens.mkdir(parents=True)
    (tokens / "train.bin").write_bytes(b"tokens")
    step, packed = earlier(home), []
    upload = Upload(home, lambda parcel: packed.append(parcel) or len(packed) - 1)
    for _ in range(2):
        assert upload(a_run(step, data=DataFacts(folders=(tokens,)))) == [0, 1]
    with in_a_folder(a_run(step), CALL._replace(out=home), packed) as (moved, call):
        assert files(call.out) == files(home)
        log.info(f"in {call.out}/logs")
        assert moved.first_step.folder == call.out / step.folder.relative_to(home)
    assert not call.out.exists()
    assert notes == [f"in {home}/logs"]
    log.info(f"in {call.out}/logs")
    assert notes[1] == f"in {call.out}/logs", "and no longer than that"
    with in_a_folder(a_run(earlier(home, "2025-01-01--00-00-00.partial", "again")), call, []) as (moved, _):
        assert moved.first_step.what == "new", "what there is of it is at home"


def test_a_second_attempt_goes_on_where_the_first_has_died(tmp_path, home, monkeypatch):
    call, marks = CALL._replace(out=home), tmp_path
    begun = a_run()
    assert resume_dead_attempt(begun, call, marks) is begun, "the first one"
    assert resume_dead_attempt(begun, call, marks) is begun, "which has left nothing"
    old = RunFolder.claim(home, lambda timestamp: timestamp, when=None)
    create_run_files(old.path, PARAMS, [], "abc")
    (old.path / "resume.ckpt").touch()
    monkeypatch.setattr("train.launch.parcels.DYING_SECONDS", 0.3)
    assert DYING_SECONDS > 1
    assert resume_dead_attempt(begun, call, marks) is begun, "it is not dead"
    old.give_up(None)
    step = resume_dead_attempt(begun, call, marks).first_step
    assert (step.what, step.folder) == ("continued", old.path)
    assert resume_dead_attempt(replace(begun, number=2), call, marks).first_step.what == "new", (
        "another run's first attempt"
    )
    (marks / "1").write_text("9999")
    assert resume_dead_attempt(begun, call, marks) is begun, "of an earlier call"
