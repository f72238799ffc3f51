"""Compare the memory that --dry-run estimates with the memory that runs then take.

    python -m benchmarks.step_memory [name ...]

Each run trains in a process of its own. Its memory is the peak of its resident set, less what the process has before
the model is built, when a tiny run has loaded all libraries. "estimate" is that of --dry-run: the bytes of all tensors,
and what the C library keeps, which --dry-run measures in a few steps of its own. "tensors" is what a process takes
whose C library gives back all memory at once.
Target: the estimate is within 15 % of the process.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from data.data_params import DataParams
from model.model_params import ModelParams
from train.grid.params import Params
from train.launch.growth import growth
from train.train_params import TrainParams

N_STEPS = 12
MMAP_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"  # bytes; larger tensors are given back when they are freed
SIZE = {"dim": 384, "n_layers": 4, "n_heads": 6, "max_seq_len": 256, "batch_size": 8}
CASES = {
    "float32": {},
    "bf16": {"precision": "bf16-mixed"},
    "fused": {"attention": "fused"},
    "recompute": {"recompute": "layer"},
    "recompute, bf16": {"recompute": "layer", "precision": "bf16-mixed"},
    "accumulate": {"accumulate_grad_batches": 2},
    "sgd": {"optimizer": "sgd"},
    "muon": {"optimizer": "muon"},
    "frozen": {"freeze": ("decoder.layers.[0-3].*",)},
    "wide": {"dim": 1024, "n_layers": 4, "n_heads": 8, "batch_size": 1, "max_seq_len": 64},
    "deep, mamba2": {"layer_architecture": "mamba2", "n_layers": 6, "dim": 256, "n_heads": 4},
    "gru": {"layer_architecture": "torch-gru"},
    "torch": {"layer_architecture": "torch-transformer"},
    "experts of two kinds": {"layer_architecture": ("custom-transformer", "linear-attention")},
    "float64": {"precision": "64-true", "dim": 256, "n_heads": 4},
    "large vocabulary": {"tokenizer_source_name": "custom", "tokenizer_vocab_size": 8000, "n_layers": 2},
}


def params_of(name: str) -> Params:
    text = DataParams(dataset_name="sotu")
    length = TrainParams(max_steps=N_STEPS)
    return Params(text, length, ModelParams()).changed(**SIZE | CASES[name])


def train(params: Params, root: Path) -> list[float]:
    """Train a run, and return the bytes by which this process grows."""
    from train.data import make_data
    from train.run import lightning_trainer, make_lm
    from train.stats import Stats
    from train.trainer import LMTrainer

    def fit(params: Params) -> None:
        data = make_data(params.data, params.model, root)
        lm = make_lm(params, data.tokenizer, root)
        trainer = lightning_trainer(params.train, N_STEPS, None)
        batches = data.train_dataloader(params.train.batch_size)
        trainer.fit(LMTrainer(lm, data, params.train, Stats(), N_STEPS), batches)

    # The libraries are loaded and set themselves up.
    fit(params.changed(dim=32, n_layers=2, n_heads=2, batch_size=1))
    with growth() as measured:
        fit(params)
    assert measured.n_bytes is not None, "this system does not tell the memory of a process"
    return [measured.n_bytes]


def estimate(params: Params, root: Path) -> list[float]:
    """Return the estimate of --dry-run and its parts."""
    from tests.train.little_run import CALL
    from train.grid.run import Run
    from train.launch.estimate import estimate
    from train.launch.memory import memory_of_runs, with_kept
    from train.launch.plan import measure_data

    facts = measure_data(params.data, params.model, root, None)[1]
    run = Run(params, {}, "benchmark", data=facts)
    memories = memory_of_runs([run])
    found = with_kept([run], memories, estimate([run], CALL._replace(out=root), None).grown)[0]
    assert found is not None, "the memory is unknown"
    return [found.total, *found]


def megabytes(what: str, name: str, folder: str, **variables: str) -> list[float]:
    """Run `train` or `estimate` in a process of its own. Return its result in MB."""
    command = [sys.executable, "-m", "benchmarks.step_memory", what, name, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables)
    return [float(word) / 1e6 for word in done.stdout.split()]


def main() -> None:
    print(f"{'run':24}{'estimate':>12}{'process':>12}{'ratio':>8}{'tensors':>12}   parts of the estimate")
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or CASES:
            total, *parts = megabytes("--estimate", name, folder)
            [process] = megabytes("--train", name, folder)
            [tensors] = megabytes("--train", name, folder, **{MMAP_THRESHOLD: "100000"})
            shown = " ".join(f"{part:,.0f}" for part in parts)
            print(
                f"{name:24}{total:9,.0f} MB{process:9,.0f} MB{total / process:8.2f}{tensors:9,.0f} MB   {shown}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] in (["--train"], ["--estimate"]):
        work = train if sys.argv[1] == "--train" else estimate
        print(*work(params_of(sys.argv[2]), Path(sys.argv[3])))
    else:
        main()
