"""Saved runs that nobody trained: the JSON files that a report reads, with losses from a formula and dice."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path

import numpy as np

from data.data_params import DataParams
from model.model_params import ModelParams
from train.grid.params import Params
from train.train_params import TrainParams

N_STEPS = 1000
START = datetime(2024, 4, 22, 16, 17)
DEFAULT = Params(DataParams(), TrainParams(), ModelParams())


def fake_grid(root: Path, name: str = "demo", n_points: int = 120, **axes: list) -> list[Path]:
    """A run for each combination of the values of `axes`, in saved-models/{name}/."""
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [fake_run(root, name, i, DEFAULT.changed(**own), n_points) for i, own in enumerate(combinations)]


def fake_run(
    root: Path, name: str, number: int, params: Params, n_points: int = 120, **summary: object
) -> Path:
    timestamp = f"{START + timedelta(seconds=number):%Y-%m-%d--%H-%M-%S}"
    folder = root / "saved-models" / name / timestamp
    folder.mkdir(parents=True)
    rng = np.random.default_rng([number, params.train.random_seed])
    final = final_loss(params, rng)
    model, flops = params.model, 6 * 12 * params.model.n_layers * params.model.dim**2 * N_STEPS * 32 * 128
    about = {
        "timestamp": timestamp,
        "model_hash": "0" * 64,
        "code": {},
        "summary": {
            "val_loss": final,
            "val_accuracy": math.exp(-final),
            "n_params": 12 * model.n_layers * model.dim**2,
            "tokens_per_second": N_STEPS * 32 * 128 / (flops / 9e10),
            "wall_seconds": flops / 9e10 + 5 + rng.random(),
            "steps": N_STEPS,
            "trained_samples": N_STEPS * 32,
            "trained_tokens": N_STEPS * 32 * 128,
            "flops": flops,
            "achieved_flops": 9e10 * (0.95 + 0.1 * rng.random()),
            "peak_flops": 2e11,
            "stopped": "finished",
            "leak": None,
            "weights": "last",
            "final_loss": final,
            "sample": f"Mr. Speaker, the state of run {number} is strong.",
        }
        | summary,
    }
    sections = {section: asdict(values) for section, values in params._asdict().items()}
    for file, content in (
        ("about", about),
        ("params", sections),
        ("stats", dict(fake_stats(final, n_points, rng))),
    ):
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def final_loss(params: Params, rng: np.random.Generator) -> float:
    """Lower for larger models, lowest at a learning rate that falls with width; a little of it is the seed's own."""
    model, train = params.model, params.train
    best_lr = 3e-3 * (64 / model.dim) ** 0.5
    kinds = {"learned": 0.0, "sin": 0.03, "rotary": -0.05, "alibi": -0.02, "none": 0.12}
    seed = np.random.default_rng(train.random_seed).normal()
    far = math.log10(train.lr / best_lr) ** 2
    size = 1.2 * (model.n_layers * model.dim**2 / 1e4) ** -0.15
    return float(
        1.9 + size + 0.25 * far + kinds.get(model.positions, 0.0) + 0.01 * seed + 0.012 * rng.normal()
    )


def fake_stats(final: float, n_points: int, rng: np.random.Generator) -> Iterator[tuple[str, list]]:
    steps = np.unique(np.linspace(1, N_STEPS, n_points).astype(int))
    course = final + (4.2 - final) * np.exp(-steps / 90) + 0.35 * (1 - steps / N_STEPS)
    noisy = course + 0.06 * rng.normal(size=len(steps))
    yield (
        "stat/train_loss:main",
        [(int(s), int(s) * 32, i, float(v)) for i, (s, v) in enumerate(zip(steps, noisy, strict=True))],
    )
    every = max(1, len(steps) // 10)
    yield (
        "stat/val_loss:main",
        [(int(s), int(s) * 32, i, float(v)) for i, (s, v) in enumerate(zip(steps, course, strict=True))][
            every - 1 :: every
        ],
    )
