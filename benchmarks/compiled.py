"""Measure what compile=True gains: the time of a step against the uncompiled one, and the seconds of compiling.

    python -m benchmarks.compiled [--rounds 5] [--sizes 6x384 4x128 2x64] [--precision 32-true bf16-mixed]

Both take turns within one process, over the same batch, in a bare loop with the optimizer that a run uses. The ratio is a
median over rounds of the ratio of two consecutive turns; the lowest and the highest stand beside it. Compiling is timed
with an empty cache, and again from the cache, as another process would find it. A precision in which this machine
multiplies matrices more slowly than in float32 is left out.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data.batch import Batch, mycollate
from model.inputs import stand_in_tokenizer
from model.lm import LM
from model.model_params import ModelParams
from train.compiled import CompiledForward, compile_forward, forget_graphs
from train.flops import peak_flops
from train.optimizers import make_optimizer
from train.train_params import TrainParams

WARM_UP = 2  # steps before the clock starts
N_TOKENS = 65


class Shape(NamedTuple):
    """A model, its batch, and the steps of a turn."""

    n_layers: int
    dim: int
    n_heads: int
    max_seq_len: int
    batch_size: int
    n_steps: int


SHAPES = {
    "6x384": Shape(6, 384, 6, 256, 8, 3),
    "4x128": Shape(4, 128, 4, 64, 12, 20),
    "2x64": Shape(2, 64, 2, 64, 16, 60),
}


def time_steps_of(lm: LM, forward: CompiledForward | None, batch: Batch, train: TrainParams, n: int) -> float:
    """Return the seconds of a training step, with the compiled forward pass or, for None, uncompiled."""
    optimizer = make_optimizer(lm, train)
    lm._compiled_call_impl = forward
    start = 0.0
    for step in range(WARM_UP + n):
        if step == WARM_UP:
            start = time.perf_counter()
        with precision_of(train):
            losses, _ = lm.get_losses(batch, train)
            loss = torch.as_tensor(sum(losses.values()))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
    return (time.perf_counter() - start) / n


def precision_of(train: TrainParams) -> Any:
    is_mixed = train.precision == "bf16-mixed"
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if is_mixed else nullcontext()


def seconds_to_compile(lm: LM, batch: Batch, train: TrainParams, cache: Path) -> tuple[float, Any]:
    """Return the seconds of compiling in a process that has compiled nothing yet, and the compiled forward pass."""
    forget_graphs()
    start = time.perf_counter()
    with precision_of(train):
        forward = compile_forward(lm, batch, train, cache)
    return time.perf_counter() - start, forward


def measure(name: str, precision: Any, rounds: int, cache: Path) -> None:
    size = SHAPES[name]
    params = ModelParams(
        dim=size.dim, n_layers=size.n_layers, n_heads=size.n_heads, max_seq_len=size.max_seq_len
    )
    lm, train = LM(params, stand_in_tokenizer(N_TOKENS)).train(), TrainParams(precision=precision)
    batch = mycollate(torch.randint(N_TOKENS, (size.batch_size, size.max_seq_len + 1)).tolist())
    cold, _ = seconds_to_compile(lm, batch, train, cache)
    warm, forward = seconds_to_compile(lm, batch, train, cache)
    turns = [
        [time_steps_of(lm, called, batch, train, size.n_steps) for called in (None, forward)]
        for _ in range(rounds)
    ]
    eager, compiled = (1e3 * statistics.median(column) for column in zip(*turns, strict=True))
    ratios = [plain / fast for plain, fast in turns]
    print(
        f"{name} {precision}: uncompiled {eager:.1f} ms a step, compiled {compiled:.1f} ms, "
        f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"compiled in {cold:.1f} s, from the cache in {warm:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"])
    arguments = parser.parse_args()
    peaks = {one: peak_flops(torch.device("cpu"), one) for one in ("32-true", *arguments.precision)}
    print(f"{torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precision:
            for name in arguments.sizes if peaks[precision] >= peaks["32-true"] else ():
                measure(name, precision, arguments.rounds, Path(folder))
