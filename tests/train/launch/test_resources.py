"""Disks that are full and memory that runs out: training goes on where it can, and --resume goes on where it cannot."""

import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
import torch

import main
import train.saving.record
from explore.load import runs
from tests.train.killed import die, forked
from tests.train.test_checkpoint import CONFIG, assert_same, outcome
from train.checkpoint import ResumePoint
from train.saving import durable
from train.saving import run_folder as saver
from train.saving import weights as weights_module
from train.saving.outcome import is_out_of_resources
from train.saving.run_folder import RESUME_FILE, read_json, write_json
from train.saving.timestamps import run_folders
from train.trainer import LMTrainer


@pytest.fixture
def call(tmp_path, monkeypatch):
    """main.py with the config of the resume tests, in this process, a checkpoint at every other step."""
    (tmp_path / "trial.txt").write_text(CONFIG)
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    steps = count()
    monkeypatch.setattr(ResumePoint, "is_due", lambda *_: next(steps) % 2 == 1)

    def call(*fields, out="out", options=("--resume",)):
        words = ["--config=trial", "--no-wandb", "--out", str(tmp_path / out), *options]
        return main.main(words + [f"--set={field}" for field in fields])

    call.root = tmp_path
    return call


def raised_at(step: int, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    """Let the training step of a batch fail."""
    training_step, calls = LMTrainer.training_step, count(1)

    def fails(self, *args):
        if next(calls) == step:
            raise error
        return training_step(self, *args)

    patch.setattr(LMTrainer, "training_step", fails)


OUT_OF_RESOURCES = {
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "memory": MemoryError(),
    "GPU memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CPU memory": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
    ),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "a data worker": RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
}


@pytest.mark.parametrize("error", OUT_OF_RESOURCES.values(), ids=OUT_OF_RESOURCES)
def test_out_of_resources_errors_are_recognized(error):
    assert is_out_of_resources(error)
    wrapped = ValueError("batch 3 failed")
    wrapped.__cause__ = error
    assert is_out_of_resources(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory of names"),
        KeyError("x"),
    ],
)
def test_other_errors_are_not_out_of_resources(error):
    assert not is_out_of_resources(error)


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_that_ran_out_of_memory_goes_on_from_its_checkpoint(call, monkeypatch, capsys):
    assert call(out="whole", options=["--save"]) == 0
    with monkeypatch.context() as patch:
        raised_at(30, OUT_OF_RESOURCES["CPU memory"], patch)
        assert call() == 1
    [folder] = (call.root / "out/saved-models").rglob("*.partial")
    assert (folder / RESUME_FILE).exists()
    assert call(options=["--resume", "--dry-run"]) == 0
    assert "run 1: goes on: " in capsys.readouterr().out
    trained, training_step = [], LMTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(LMTrainer, "training_step", lambda *a: (trained.append(1), training_step(*a))[1])
        assert call() == 0
    assert 0 < len(trained) <= 3 * 17 - 25, "it does not begin anew"
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))
    [saved] = (call.root / "out/saved-models").rglob("about.json")
    assert not {"failed", "resumable"} & json.loads(saved.read_text()).keys()


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_that_failed_by_itself_begins_anew(call, monkeypatch):
    assert call(out="whole", options=["--save"]) == 0
    with monkeypatch.context() as patch:
        raised_at(30, RuntimeError("shapes cannot be multiplied"), patch)
        assert call() == 1
    trained, training_step = [], LMTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(LMTrainer, "training_step", lambda *a: (trained.append(1), training_step(*a))[1])
        assert call() == 0
    assert len(trained) == 3 * 17
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))


@contextmanager
def files_of_at_most(n_bytes: int):
    """Let larger files fail as on a full disk, for all that this process writes. (Python ignores the signal.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.ci
def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_the_last_one_stays(call, monkeypatch, capsys):
    """The operating system refuses all but small files after some steps, until the run has trained."""
    assert call(out="whole", options=["--save"]) == 0
    [whole] = (call.root / "whole/saved-models").rglob("model.safetensors")
    write, n, found = ResumePoint.write, count(1), []

    def refused_after_the_third(self, trainer):
        if next(n) <= 3:
            write(self, trainer)
            found.append(self.path.read_bytes())
            return
        with files_of_at_most(2_000):
            write(self, trainer)
        assert self.path.read_bytes() == found[-1]
        assert not list(self.path.parent.glob("*.partial"))

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(ResumePoint, "write", refused_after_the_third)
        assert call() == 0
    shown = capsys.readouterr().out
    assert shown.count("resume.ckpt cannot be written: ") == 1, "once, however often it fails"
    assert "File too large" in shown
    assert "--resume continues from the last one that was written" in shown
    assert whole.stat().st_size > 2_000
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))


@pytest.mark.slow
@pytest.mark.ci
def test_weights_that_cannot_be_kept_are_a_warning(call, monkeypatch, capsys):
    assert call("checkpoint_every=5", out="whole", options=["--save"]) == 0
    write, n = weights_module.write_weights, count(1)

    def refused(path, tensors):
        if path.name.startswith("step-") and next(n) in (2, 3):
            with files_of_at_most(2_000):
                write(path, tensors)
        write(path, tensors)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(weights_module, "write_weights", refused)
        assert call("checkpoint_every=5") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("cannot be written: ") == 1
    assert "step-0000005.safetensors cannot be written: " in shown
    a, b = outcome(call.root / "out"), outcome(call.root / "whole")
    lost = ("step-0000005", "step-0000010")
    assert not any(name.startswith(lost) for name in a["weights"])
    b["weights"] = {name: w for name, w in b["weights"].items() if not name.startswith(lost)}
    assert_same(a, b)


@pytest.mark.slow
@pytest.mark.ci
def test_a_full_disk_at_the_end_loses_nothing(call, monkeypatch, capsys):
    """Weights, statistics and JSON need room that is not there; the checkpoint of the end was written before."""
    assert call(out="whole", options=["--save"]) == 0
    save = train.saving.record.save

    def on_a_full_disk(*args, **options):
        with files_of_at_most(1_000):
            save(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train.saving.record, "save", on_a_full_disk)
        assert call() == 1
    [status] = runs(str(call.root / "out"), all=True).status
    assert status.startswith("failed: OSError: ")
    raised_at(1, AssertionError("nothing is left to train"), monkeypatch)
    assert call() == 0
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 kB, where the system lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=512k tmpfs {folder} 2>/dev/null") != 0:
        pytest.skip("mounting a file system takes root")
    yield folder
    os.system(f"umount -l {folder}")


@pytest.mark.slow
@pytest.mark.ci
def test_a_disk_that_is_really_full(call, small_disk, monkeypatch, capsys):
    assert call(out="whole", options=["--save"]) == 0
    ballast, training_step, n = small_disk / "ballast", LMTrainer.training_step, count(1)

    def fills(self, *args):
        if next(n) == 20:
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(b"x" * 4096) == 4096:
                    pass
            assert shutil.disk_usage(small_disk).free == 0
        return training_step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LMTrainer, "training_step", fills)
        assert call(out=str(small_disk)) == 1
    shown = capsys.readouterr().out
    assert shown.count("resume.ckpt cannot be written: ") == 1
    [checkpoint] = small_disk.rglob(RESUME_FILE)
    assert call(out=str(small_disk), options=["--resume"]) == 1, "it is still full"
    assert checkpoint.exists()
    ballast.unlink()
    assert call(out=str(small_disk)) == 0
    assert_same(outcome(small_disk), outcome(call.root / "whole"))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", ["rename", "unlink"])
def test_a_run_that_is_killed_when_all_is_saved_is_not_trained_again(name, call, monkeypatch):
    """Before its last name, and before its resume checkpoint and lock are removed."""
    assert call(out="whole", options=["--save"]) == 0
    complete = saver.complete

    def dies(folder, resumable=False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                *{
                    "rename": (saver, "rename", die),
                    "unlink": (Path, "unlink", lambda *args, **options: die()),
                }[name]
            )
            return complete(folder, resumable)

    def killed():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saver, "complete", dies)
            return call()

    assert forked(killed) == -9
    [folder] = run_folders(call.root / "out")
    assert folder.name.endswith(".partial") == (name == "rename")
    assert (folder / RESUME_FILE).exists(), "it goes last"
    assert "summary" in read_json(folder / "about.json")
    monkeypatch.setattr("train.run.train_run", None)
    assert call() == 0
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))
    [folder] = run_folders(call.root / "out")
    assert not (folder / "lock").exists()


def test_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd))
    )
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append(f"-> {to.name}"), rename(path, to))[1])
    write_json(tmp_path / "about.json", {"a": 1})
    assert done == ["about.json.partial", "-> about.json", tmp_path.name]
    with pytest.raises(TypeError):
        write_json(tmp_path / "about.json", {"a": object()})
    with suppress(KeyboardInterrupt), durable.replacing(tmp_path / "about.json") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["about.json"]
    assert read_json(tmp_path / "about.json") == {"a": 1}
