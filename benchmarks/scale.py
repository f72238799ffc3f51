"""Measure the overhead of a very large grid: main.py on 10,000 runs, where only training is replaced.

    python -m benchmarks.scale [--runs 10000]

The first call saves half of the runs. The second resumes the whole grid: it skips that half and runs the other. The third
reports. Every call reads, checks and plans the grid, and reports at its end. A run claims its folder and writes params,
statistics and about.json as usual, but has no model. Target for all three calls together: 60 seconds and 1 GB.
"""

import argparse
import contextlib
import math
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import main
import train.run
import train.saving.record
from train.grid.run import Run
from train.saving.outcome import Ending, Outcome
from train.saving.record import Record
from train.saving.run_folder import read_json, write_json
from train.stats import Stats

SECONDS, MEGABYTES = 60, 1000  # the target
LRS, SEEDS = [3e-4, 1e-3, 3e-3, 1e-2], list(range(10))
POSITIONS = ["learned", "sin", "rotary", "alibi", "none"]
STEP = len(LRS) * len(SEEDS) * len(POSITIONS)  # runs for each value of dim
N_POINTS = 20  # of the loss curve of a run
CONFIG = """
DataParams
dataset_name = "copy"
n_samples = 200
TrainParams
lr = {lrs}
random_seed = {seeds}
ModelParams
dim = {dims}
positions = {positions}
n_layers = 1
n_heads = 1
max_seq_len = 64
"""


def train_nothing(run: Run, record: Record, *_: object) -> Outcome:
    """Record a loss curve and an outcome in place of training."""
    params, stats = run.params, record.stats
    rng = random.Random(repr(params))
    best = 2 - 0.1 * math.log(params.model.dim) + math.log10(params.train.lr / 2e-3) ** 2 + rng.gauss(0, 0.02)
    for step in range(1, N_POINTS + 1):
        loss = best + 2 * math.exp(-step / 4) + rng.gauss(0, 0.05)
        stats.log("train_loss:main", loss, step=step, n_samples=32 * step)
    stats.log("val_loss:main", best, step=N_POINTS, n_samples=32 * N_POINTS)
    values = {"val_loss": best, "final_loss": best, "n_params": 10_000, "steps": N_POINTS, "flops": 10**9}
    values |= {"weights": "last", "leak": None, "sample": "abc :: abc", "wall_seconds": 0.5}
    return record.save(None, Outcome(Ending.FINISHED, values=values))


def save_without_weights(folder: Path, *, lm: None, stats: Stats, summary: dict[str, Any]) -> None:
    stats.save(folder / "stats.json")
    write_json(folder / "about.json", read_json(folder / "about.json") | {"summary": summary})


@contextlib.contextmanager
def without_training(root: Path, n_runs: int) -> Iterator[list[str]]:
    """Make main.main skip training and know a config "scale" of `n_runs`. Yields the options that every call needs."""
    dims = [8 * (i + 1) for i in range(math.ceil(n_runs / STEP))]
    text = CONFIG.format(lrs=LRS, seeds=SEEDS, dims=dims, positions=POSITIONS)
    (root / "scale.txt").write_text(text)
    with (
        mock.patch.object(main, "CONFIGS", root),
        mock.patch.object(train.run, "train_run", train_nothing),
        mock.patch.object(train.saving.record, "save", save_without_weights),
    ):
        yield ["--no-wandb", "--out", str(root / "out")]


def phases() -> dict[str, list[str]]:
    grid = "--config=scale"
    return {
        "save the first half": [grid, "--save", f"--seed={SEEDS[: len(SEEDS) // 2]}"],
        "resume: skip one half, run the other": [grid, "--resume"],
        "report": ["--report=scale"],
    }


def measure(root: Path, n_runs: int) -> bool:
    """Run every phase in this process, and return True if both targets are met. A peak includes all earlier phases."""
    total = 0.0
    with without_training(root, n_runs) as options:
        for name, command in phases().items():
            start = time.perf_counter()
            with (root / "output.txt").open("w") as output, contextlib.redirect_stdout(output):
                code = main.main([*command, *options])
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            total += seconds
            print(f"{name}: exit code {code}, {seconds:.1f} s, peak {peak:.0f} MB", flush=True)
    print(f"total {total:.1f} s (at most {SECONDS}), peak {peak:.0f} MB (at most {MEGABYTES})")
    return total <= SECONDS and peak <= MEGABYTES


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not measure(Path(folder), parser.parse_args().runs))
