"""Measure the overhead of the harness: LMTrainer against a bare PyTorch loop, our model against HuggingFace's GPT-2.

    python -m benchmarks.overhead [--rounds 7]

All three take turns within one process, over the same batches. Each ratio is a median over rounds of the ratio of two
consecutive turns. Targets: harness / bare at most 1.05 (4 layers of 128) and 1.02 (6 layers of 384), ours / HF at most 1.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from data.data_params import DataParams
from data.dataloader import LMDataModule
from model.lm import LM
from model.model_params import ModelParams
from train.data import make_data
from train.optimizers import make_optimizer
from train.run import lightning_trainer
from train.stats import Stats
from train.train_params import TrainParams
from train.trainer import LMTrainer


class Size(NamedTuple):
    n_layers: int
    dim: int
    n_heads: int
    max_seq_len: int
    batch_size: int
    steps: int  # timed in a round
    target: float


SIZES = [Size(4, 128, 4, 64, 12, 40, 1.05), Size(6, 384, 6, 256, 8, 5, 1.02)]
WARM_UP = 3  # steps before the clock starts


class Clock(L.Callback):
    """Timer of the steps of a fit, without the first `WARM_UP`."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == WARM_UP:
            self.start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start


def time_harness(lm: LM, data: LMDataModule, train: TrainParams, size: Size) -> float:
    """Return the seconds per step under Lightning with a user's default settings, but without validation."""
    n_steps = WARM_UP + size.steps
    trainer = lightning_trainer(train, n_steps, gpu_id=None)
    clock = Clock()
    trainer.callbacks.append(clock)
    trainer.limit_val_batches = 0
    trainer.fit(LMTrainer(lm, data, train, Stats(), n_steps), data.train_dataloader(size.batch_size))
    return clock.seconds / size.steps


def time_bare(model: nn.Module, batches: list[torch.Tensor], train: TrainParams, size: Size) -> float:
    """Return the seconds per step of a loop written by hand."""
    model.train()
    optimizer = make_optimizer(model, train)
    for step, rows in enumerate(batches):
        if step == WARM_UP:
            start = time.perf_counter()
        out = model(rows[:, :-1])
        logits = out if isinstance(out, torch.Tensor) else out.logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), train.gradient_clip_val)
        optimizer.step()
    return (time.perf_counter() - start) / size.steps


def gpt2_like(size: Size, n_tokens: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=n_tokens,
            n_positions=size.max_seq_len,
            n_embd=size.dim,
            n_layer=size.n_layers,
            n_head=size.n_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    )


def measure(size: Size, rounds: int, cache: Path) -> None:
    params = ModelParams(
        dim=size.dim,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        max_seq_len=size.max_seq_len,
        activation="gelu_tanh",
    )
    train = TrainParams(batch_size=size.batch_size)
    data = make_data(DataParams(dataset_name="pydoc"), params, cache)
    lm, hf = LM(params, tokenizer=data.tokenizer), gpt2_like(size, data.tokenizer.n_tokens)
    loader = iter(data.train_dataloader(size.batch_size))
    batches = [next(loader)["x_indices"] for _ in range(WARM_UP + size.steps)]
    harness, bare, huggingface = [], [], []
    for _ in range(rounds):
        harness.append(time_harness(lm, data, train, size))
        bare.append(time_bare(lm, batches, train, size))
        huggingface.append(time_bare(hf, batches, train, size))
    overhead = statistics.median(h / b for h, b in zip(harness, bare, strict=True))
    against_hf = statistics.median(b / f for b, f in zip(bare, huggingface, strict=True))
    print(
        f"{size.n_layers} layers of {size.dim}, T {size.max_seq_len}, B {size.batch_size}, {torch.get_num_threads()} threads: "
        f"harness {1e3 * statistics.median(harness):.1f} ms, bare loop {1e3 * statistics.median(bare):.1f} ms, "
        f"GPT2LMHeadModel {1e3 * statistics.median(huggingface):.1f} ms a step\n"
        f"  harness / bare {overhead:.3f} (at most {size.target}), ours / HuggingFace {against_hf:.3f} (at most 1)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            measure(size, arguments.rounds, Path(folder))
