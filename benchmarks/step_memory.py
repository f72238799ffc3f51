"""Compare the memory that --dry-run estimates with the memory that runs then take.

    python -m benchmarks.step_memory [name ...]

Each run trains in a process of its own. Its memory is the peak of its resident set, less what the process has before
the model is built, when a tiny run has loaded all libraries. Each run trains twice: once with a C library that gives
back all memory at once ("tensors"), and once with its default settings, where it keeps some ("process").
Target: the estimate is within 15 % of the tensors. That of the process was 1.4 to 2 times the estimate.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from data.data_params import DataParams
from model.model_params import ModelParams
from train.grid.params import Params
from train.launch.memory import MMAP_THRESHOLD
from train.train_params import TrainParams

N_STEPS = 3
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


def resident(field: str) -> int:
    """Return the bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def train(name: str, root: Path) -> None:
    """Train a run, and print its estimated memory and the one seen."""
    from train.data import make_data
    from train.launch.memory import memory_of_step
    from train.run import lightning_trainer, make_lm
    from train.stats import Stats
    from train.trainer import LMTrainer

    def fit(params: Params) -> None:
        data = make_data(params.data, params.model, root)
        lm = make_lm(params, data.tokenizer, root)
        trainer = lightning_trainer(params.train, N_STEPS, None)
        batches = data.train_dataloader(params.train.batch_size)
        trainer.fit(LMTrainer(lm, data, params.train, Stats(), N_STEPS), batches)

    params = params_of(name)
    fit(
        params.changed(dim=32, n_layers=2, n_heads=2, batch_size=1)
    )  # libraries are loaded and set themselves up
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    fit(params)
    seen = resident("VmHWM") - before
    n_tokens = make_data(params.data, params.model, root).tokenizer.n_tokens
    found = memory_of_step(params.model, params.train, n_tokens)
    assert found is not None
    print(found.total, seen, *found)


def seen(name: str, folder: str, threshold: dict[str, str]) -> list[float]:
    """Return the estimate, what is seen, and the parts of the estimate, in MB."""
    command = [sys.executable, "-m", "benchmarks.step_memory", "--train", name, folder]
    environment = os.environ | threshold
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [float(word) / 1e6 for word in done.stdout.split()]


def main() -> None:
    print(f"{'run':24}{'estimate':>12}{'tensors':>12}{'ratio':>8}{'process':>12}   parts of the estimate")
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or CASES:
            total, tensors, *parts = seen(name, folder, {MMAP_THRESHOLD: "100000"})
            process = seen(name, folder, {})[1]
            shown = " ".join(f"{part:,.0f}" for part in parts)
            print(
                f"{name:24}{total:9,.0f} MB{tensors:9,.0f} MB{total / tensors:8.2f}{process:9,.0f} MB   {shown}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
