"""Weights kept along the way: which steps, at no cost to training, opened one at a time and with suspicion."""

import os
import pickle
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import main
import model_explorer
from explore.load import checkpoints, find_run, runs
from tests.train.little_run import make_lm, save_run
from train.saving import weights as weights_module
from train.saving.run_folder import load_run
from train.saving.weights import Checkpoints, checkpoint_files, write_weights

CONFIG = """
DataParams
dataset_name = "maskedcopy"
task_args = {"max_length": 8}
n_samples = 150
TrainParams
lr = 1e-2
lr_schedule = "constant"
batch_size = 8
accumulate_grad_batches = 2
dropout = 0.1
threads = 1
ModelParams
dim = 16
n_layers = 1
n_heads = 2
max_seq_len = 24
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """main.py with the config above; gives the exit code."""
    (tmp_path / "trial.txt").write_text(CONFIG)
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    words = ["--config=trial", "--no-wandb", "--out", str(tmp_path)]
    return lambda *options: main.main(
        words + [word if word == "--save" else f"--set={word}" for word in options]
    )


@pytest.mark.slow
@pytest.mark.ci
def test_the_weights_of_the_first_step_every_so_many_and_the_last_are_kept(call, tmp_path):
    assert call("--save", "checkpoint_every=4") == 0
    assert call("--save", "early_stop_nsamples=64") == 0  # 4 steps
    assert call("--save") == 0
    kept, short, plain = runs(str(tmp_path), all=True).index
    seen = dict(checkpoints(kept, str(tmp_path)))
    assert list(seen) == [0, 4, 8, 9]
    torch.manual_seed(0)
    final = {timestamp: load_run(find_run(timestamp, str(tmp_path))).lm for timestamp in (kept, short, plain)}
    assert equal(seen[9], final[kept])
    assert equal(seen[9], final[plain]), "training does not notice"
    assert equal(seen[4], final[short]), "in the middle they are what that many steps make"
    assert not equal(seen[8], seen[9])
    assert not seen[0].training
    assert len({id(lm) for lm in seen.values()}) == 4
    files = sorted(path.name for path in (find_run(kept, str(tmp_path)) / "checkpoints").iterdir())
    assert files == [f"step-000000{step}.safetensors" for step in (0, 4, 8, 9)]


def equal(a, b) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(w, theirs[name]) for name, w in ours.items())


@pytest.mark.slow
@pytest.mark.ci
def test_without_save_nothing_is_kept_and_without_the_field_neither(call, tmp_path):
    assert call("checkpoint_every=4") == 0
    assert not (tmp_path / "saved-models").exists()
    assert call("--save") == 0
    [timestamp] = runs(str(tmp_path), all=True).index
    assert not (find_run(timestamp, str(tmp_path)) / "checkpoints").exists()
    with pytest.raises(
        ValueError, match=f"the run {timestamp} kept no checkpoints: train with checkpoint_every and --save"
    ):
        checkpoints(timestamp, str(tmp_path))
    with pytest.raises(ValueError, match="no run '2024"):
        checkpoints("2024-01-01--00-00-00", str(tmp_path))


@pytest.mark.slow
@pytest.mark.ci
def test_the_best_weights_end_a_run_but_its_first_and_last_ones_are_kept(call, tmp_path):
    until_worse = "patience=1", "epochs=9", "lr=0.3", "gradient_clip_val=None", "accumulate_grad_batches=1"
    assert call("--save", "checkpoint_every=500", *until_worse) == 0
    [timestamp] = runs(str(tmp_path), all=True).index
    (first, _), (last, lm) = checkpoints(timestamp, str(tmp_path))
    ended = load_run(find_run(timestamp, str(tmp_path)))
    assert ended.about["summary"]["weights"] == "best"
    assert (first, last) == (0, ended.about["summary"]["steps"])
    assert not equal(lm, ended.lm)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved run with three checkpoints."""
    lm = make_lm()
    folder = save_run(tmp_path, lm)
    with Checkpoints(folder / "checkpoints", every=5) as keeper:
        for step in (0, 5, 10):
            keeper.keep(lm, step)
            with torch.no_grad():
                lm.unembed.weight += 1
    return folder


@pytest.mark.slow
@pytest.mark.ci
def test_checkpoints_are_opened_one_at_a_time_and_by_step(folder, tmp_path):
    (folder / "checkpoints/step-0000010.safetensors").write_bytes(b"damaged since")
    opened = checkpoints(folder.name, str(tmp_path))
    [(_, first), (_, second)] = next(opened), next(opened)
    torch.testing.assert_close(second.unembed.weight, first.unembed.weight + 1)
    with pytest.raises(ValueError, match=r"step-0000010\.safetensors does not hold a model"):
        next(opened)
    then = model_explorer.get_model_by_timestamp(folder.name, out=str(tmp_path), step=5).lm
    assert equal(then, second)
    with pytest.raises(
        ValueError, match=f"the run {folder.name} kept no weights of step 7; nearest: 5, 10, 0"
    ):
        model_explorer.get_model_by_timestamp(folder.name, out=str(tmp_path), step=7)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.slow
@pytest.mark.ci
def test_strange_files_are_refused_in_one_sentence_and_never_run(folder, tmp_path):
    path = folder / "checkpoints/step-0000005.safetensors"
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not the file itself

    def refusal() -> str:
        signal.alarm(20)
        try:
            with pytest.raises(ValueError, match="step-0000005") as caught:
                list(checkpoints(folder.name, str(tmp_path)))
        finally:
            signal.alarm(0)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refusal()
    assert not (tmp_path / "exploded").exists()
    save_file(good | {"embed.tokens.weight": torch.zeros(2, 8)}, path)
    assert "'embed.tokens.weight' is (2, 8) in the file, but (12, 8) by params.json" in refusal()
    save_file(good | {"more": torch.zeros(1)}, path)
    assert "'more' is (1,) in the file, but absent by params.json" in refusal()
    path.unlink()
    os.mkfifo(path)
    assert "is not a file" in refusal()


def test_files_with_other_names_are_not_checkpoints(folder):
    for name in (
        "step-5.safetensors",
        "step-0000007.safetensors.partial",
        "step-0000007.pt",
        "step-000000x.safetensors",
    ):
        (folder / "checkpoints" / name).write_bytes(b"")
    (folder / "step-0000008.safetensors").write_bytes(b"")
    assert list(checkpoint_files(folder)) == [0, 5, 10]


def test_kept_weights_are_a_copy_and_are_written_in_the_background(tmp_path, monkeypatch):
    lm, may_write = make_lm(), threading.Event()

    def slow_save(*args) -> None:
        assert may_write.wait(20)
        save_file(*args)

    monkeypatch.setattr(weights_module, "save_file", slow_save)
    before = lm.unembed.weight.detach().clone()
    with Checkpoints(tmp_path / "checkpoints", every=1) as keeper:
        keeper.keep(lm, 1)
        with torch.no_grad():
            lm.unembed.weight.zero_()
        assert not checkpoint_files(tmp_path)
        may_write.set()
    assert torch.equal(load_file(checkpoint_files(tmp_path)[1])["embed.tokens.weight"], before)


def test_the_weights_of_a_step_are_kept_once(tmp_path):
    lm = make_lm()
    with Checkpoints(tmp_path / "checkpoints", every=1) as keeper:
        keeper.keep(lm, 1)
        with torch.no_grad():
            lm.unembed.weight.zero_()
        keeper.keep(lm, 1)
    assert load_file(checkpoint_files(tmp_path)[1])["embed.tokens.weight"].any()


def full_after(n: int, *args) -> None:
    """Stand in for save_file on a disk that is full after `n` more files."""
    full_after.written += 1
    if full_after.written > n:
        Path(args[1]).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")
    save_file(*args)


def test_a_failure_to_keep_weights_is_logged_once_and_training_goes_on(tmp_path, monkeypatch, notes):
    full_after.written = 0
    monkeypatch.setattr(weights_module, "save_file", partial(full_after, 1))
    lm = make_lm()
    with Checkpoints(tmp_path / "checkpoints", every=1) as keeper:
        for step in (1, 2, 3):
            keeper.keep(lm, step)
    assert list(checkpoint_files(tmp_path)) == [1], "the one that was whole"
    [note] = [line for line in notes if "cannot be written" in line]
    assert "step-0000002.safetensors cannot be written: [Errno 28] No space left on device. Training" in note
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ZeroDivisionError), keeper:
        raise ZeroDivisionError  # is not hidden by it


def test_a_weights_file_is_complete_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "new" / "step-0000001.safetensors"
    write_weights(path, {"a": torch.ones(3)})
    full_after.written = 0
    monkeypatch.setattr(weights_module, "save_file", partial(full_after, 0))
    with pytest.raises(OSError, match="cannot be written"):
        write_weights(path, {"a": torch.zeros(3)})
    assert load_file(path)["a"].tolist() == [1, 1, 1]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
