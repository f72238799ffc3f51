"""Runs that are killed and go on: bit by bit what they would have been. Each kill is a real one, of a forked process."""

import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main
from explore.load import runs
from tests.train.killed import KILLS, forked, killed_at
from train.saver import RESUME_FILE, find_run
from train.stats import Stats

CONFIG = """
DataParams
dataset_name = "maskedcopy"
task_args = {"max_length": 8}
n_samples = 150
TrainParams
lr = 1e-2
batch_size = 8
accumulate_grad_batches = 2
epochs = 3
val_every = 7
dropout = 0.1
threads = 1
hyperparams_log_freq = 1
ModelParams
dim = 16
n_layers = 1
n_heads = 2
max_seq_len = 24
"""
KINDS = {
    "plain": [],
    "plateau and patience": [
        "lr_schedule='plateau'",
        "lr_plateau_patience=1",
        "patience=2",
        "lr=0.1",
        "epochs=6",
    ],
    "validation after every epoch": ["val_every=None", "accumulate_grad_batches=1", "optimizer='sgd'"],
    "recurrent, in bf16, with weights kept": [
        "layer_architecture='torch-gru'",
        "precision='bf16-mixed'",
        "checkpoint_every=5",
    ],
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """main.py with the config above, in this process; gives the exit code."""
    (tmp_path / "trial.txt").write_text(CONFIG)
    monkeypatch.setattr(main, "CONFIGS", tmp_path)

    def call(*fields, out="out", options=("--resume",)):
        words = ["--config=trial", "--no-wandb", "--out", str(tmp_path / out), *options]
        return main.main(words + [f"--set={field}" for field in fields])

    call.root = tmp_path
    return call


def outcome(root: Path) -> dict:
    """All that a finished run leaves, but for times."""
    table = runs(str(root))
    assert list(table.status) == ["complete"]
    folder = find_run(table.index[0], str(root))
    assert not (folder / RESUME_FILE).exists()
    assert not list(folder.glob("*.partial"))
    stats = Stats.load(folder / "stats.json").train_stats
    del stats["stat/train_seconds"]
    files = [folder / "model.safetensors", *sorted(folder.glob("checkpoints/*"))]
    weights = {f"{file.name}/{name}": w for file in files for name, w in load_file(file).items()}
    summary = {key: table[key].iloc[0] for key in ("val_loss", "steps", "trained_samples", "stopped", "weights")}
    return {"weights": weights, "stats": stats, "summary": summary}


def assert_same(a: dict, b: dict) -> None:
    assert a["summary"] == b["summary"]
    assert a["stats"] == b["stats"]
    assert a["weights"].keys() == b["weights"].keys()
    for name, w in a["weights"].items():
        assert torch.equal(w, b["weights"][name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_whenever_it_is_killed_the_end_is_the_same(kind, call):
    fields, dice = KINDS[kind], random.Random(kind)
    assert forked(lambda: call(*fields, out="whole", options=["--save"])) == 0
    whole = outcome(call.root / "whole")
    for kill in KILLS:
        for n in (1, dice.randint(2, 12)):
            out = f"{kill}-{n}"
            died = forked(lambda kill=kill, n=n, out=out: killed_at(kill, n, lambda: call(*fields, out=out)))
            assert died == -signal.SIGKILL or n > 1, "the first of everything comes"
            assert forked(lambda out=out: call(*fields, out=out)) == 0
            assert_same(outcome(call.root / out), whole)


def test_killed_again_and_again(call):
    assert forked(lambda: call(out="whole", options=["--save"])) == 0
    dice, deaths = random.Random(0), 0
    while (died := forked(lambda: killed_at("batch", dice.randint(3, 9), call))) != 0:
        assert died == -signal.SIGKILL
        deaths += 1
    assert deaths > 3
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))
