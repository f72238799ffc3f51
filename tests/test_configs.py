"""Every config that is shipped: it expands, and each of its runs trains a few steps."""

import pytest

import main

CONFIGS = sorted(path.stem for path in main.CONFIGS.glob("*.txt"))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_shipped_config_trains_a_few_steps(config, tmp_path):
    few = ["early_stop_nsamples=32", "batch_size=8", "val_every=None", "threads=1"]
    text = main.CONFIGS.joinpath(f"{config}.txt").read_text(encoding="utf-8")
    few += (
        ["debug_crop=30", "val_pct=10.0", "test_pct=10.0"]
        if '"sotu"' in text
        else ["n_samples=500", "val_pct=4.0"]
    )
    options = [part for option in few for part in ("--set", option)]
    assert main.main([f"--config={config}", "--no-wandb", "--out", str(tmp_path), *options]) == 0
