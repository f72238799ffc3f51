"""Measure training steps of every mixer, each against attention, and the growth of its time with the length of rows.

    python -m benchmarks.mixers [--rounds 5] [--kinds gla mamba2] [--length 512]

One layer of each kind, without a feed-forward block, of width 128 with 4 heads, batches of 8 rows. A kind and attention
take turns within one process. Each figure is a median over rounds; a ratio compares two consecutive turns.
Target: a step over 512 tokens takes at most 3 times as long as with attention.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from model.context import Context
from model.model_params import ModelParams
from model.transformer.transformer import Transformer

DIM, N_HEADS, BATCH_SIZE, LENGTH = 128, 4, 8, 512
TARGET = 3.0
BASELINE = "custom-transformer"
MIXERS = {
    "gated-conv": {"layer_architecture": "gated-conv"},
    "linear-attention": {"layer_architecture": "linear-attention"},
    "deltanet": {"layer_architecture": "deltanet"},
    "gated-delta": {"layer_architecture": "gated-delta"},
    "gla": {"layer_architecture": "gla"},
    "retnet": {"layer_architecture": "gla", "fixed_decay": True},
    "mamba2": {"layer_architecture": "mamba2"},
    "mlstm": {"layer_architecture": "mlstm"},
    "based": {"layer_architecture": "based", "state_dim": 16},
}


class Stack(nn.Module):
    """One layer of a kind and its optimizer."""

    def __init__(self, length: int, **fields: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"dim": DIM, "n_heads": N_HEADS, "n_layers": 1, "dim_ff": 0, "max_seq_len": length}
        self.stack = Transformer(ModelParams(**sizes, positions="none", **fields))  # type: ignore[arg-type]
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4)

    def seconds_of_step(self, x_BTD: Tensor) -> float:
        start = time.perf_counter()
        ids_BT = torch.zeros(x_BTD.shape[:2], dtype=torch.long)
        self.stack(x_BTD, Context(ids_BT)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def measure(name: str, length: int, rounds: int) -> None:
    x_BTD, double_BTD = (torch.randn(BATCH_SIZE, n, DIM) for n in (length, 2 * length))
    ours, attention = Stack(2 * length, **MIXERS[name]), Stack(length, layer_architecture=BASELINE)
    for stack in (ours, attention):
        stack.seconds_of_step(x_BTD)
    times = [
        [s.seconds_of_step(x) for s, x in ((ours, x_BTD), (attention, x_BTD), (ours, double_BTD))]
        for _ in range(rounds)
    ]
    milliseconds, theirs, _ = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b, _ in times)
    growth = statistics.median(c / a for a, _, c in times)
    print(
        f"{name:18} {milliseconds:6.1f} ms, attention {theirs:6.1f} ms, ratio {ratio:4.2f} (at most {TARGET:g}); "
        f"twice the length takes {growth:.2f} times as long",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=list(MIXERS), choices=list(MIXERS))
    parser.add_argument("--length", type=int, default=LENGTH)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {BATCH_SIZE} rows of {arguments.length} tokens")
    for kind in arguments.kinds:
        measure(kind, arguments.length, arguments.rounds)
