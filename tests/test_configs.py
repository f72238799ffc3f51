"""Every config that is shipped: it expands, and each kind of its runs trains a few steps."""

import sys

import pytest

import main
from learn.checking.course import load_module
from learn.outline import Outline
from tests.marks import all_slow_but

CONFIGS = sorted(path.stem for path in main.CONFIGS.glob("*.txt"))
FAST = ["test-synth", "test-nlp", "copy", "induction", "bert"]
FEW = {"early_stop_nsamples": "32", "batch_size": "8", "val_every": "None", "threads": "1"}
FEWER = {  # of large grids one learning rate and seed, and no model that takes long
    "admin-deep": {"n_layers": "2"},
    "mup-width": {"lr": "0.01", "dim": "[64,128]"},
    "mup-muon": {"lr": "0.01", "dim": "[64,128]"},
    "mup-flax-ptb": {"lr": "0.01", "dim": "[80,192]"},
    "completep-depth": {"lr": "0.01", "n_layers": "[2,4]"},
    "output-change": {"random_seed": "0", "n_layers": "3"},
    "recall": {"random_seed": "1", "dim": "16"},
    "ahead": {"random_seed": "1"},
    **{name: {"random_seed": "1"} for name in CONFIGS if name.startswith("study-")},
}


@pytest.mark.parametrize("config", all_slow_but(FAST, CONFIGS, skipped=FEWER))
def test_a_shipped_config_trains_a_few_steps(config, tmp_path, monkeypatch):
    # What is shipped of the student's file is stubs: somebody has built it.
    monkeypatch.setitem(sys.modules, "learn.gpt2_student", load_module(Outline("gpt2").solution))
    text = main.CONFIGS.joinpath(f"{config}.txt").read_text(encoding="utf-8")
    crop = {"debug_crop": "30", "val_pct": "4.0", "test_pct": "4.0"}
    settings = FEW | (crop if '"sotu"' in text else {"n_samples": "500", "val_pct": "4.0"})
    settings |= FEWER.get(config, {})
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert main.main([f"--config={config}", "--no-wandb", "--out", str(tmp_path), *options]) == 0
