"""Measure the time of a grid of 16 tiny runs: ours one after another, ours with --jobs=2, and separate scripts.

    python -m benchmarks.grid [--rounds 3] [--attention explicit]

The script is bare PyTorch with the same model and is started anew for every run, as people sweep with nanoGPT. It
reads the same tokenized rows. A run has 2 layers of width 64 and 300 steps. The script uses torch's fused attention.
Ours is explicit by default, as a user gets it; `--attention fused` gives ours the kernel of the script.
Targets: --jobs=2 is at least 3 times as fast as the scripts, and 1.5 times as fast as ours one after another.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from common.repository import REPOSITORY
from data.data_params import DataParams
from model.model_params import ModelParams
from train.data import make_data

STEPS, BATCH_SIZE, N_LAYERS, DIM, N_HEADS, MAX_SEQ_LEN = 300, 16, 2, 64, 4, 32
TEXT = {"dataset_name": "sotu", "val_pct": 0.5, "test_pct": 0.5}
RATES, SEEDS = (3e-4, 1e-3, 3e-3, 1e-2), (1, 2, 3, 4)
CONFIG = f"""
DataParams
{chr(10).join(f"{name} = {value!r}" for name, value in TEXT.items())}
TrainParams
lr = {list(RATES)}
random_seed = {list(SEEDS)}
batch_size = {BATCH_SIZE}
early_stop_nsamples = {STEPS * BATCH_SIZE}
ModelParams
n_layers = {N_LAYERS}
dim = {DIM}
n_heads = {N_HEADS}
max_seq_len = {MAX_SEQ_LEN}
activation = "gelu"
"""
SCRIPT = """
import sys
import torch
from torch import nn
from torch.nn import functional as F

path, lr, seed, n_layers, dim, n_heads, length, batch_size = sys.argv[1], *map(float, sys.argv[2:])
n_layers, dim, n_heads, length, batch_size = map(int, (n_layers, dim, n_heads, length, batch_size))
torch.manual_seed(int(seed))
saved = torch.load(path, weights_only=True)
rows, held_out, n_tokens = saved["train"], saved["val"], saved["n_tokens"]

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(n_tokens, dim), nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(dim, n_heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, n_layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.readout = nn.Linear(dim, n_tokens, bias=False)

    def forward(self, x):
        T = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        return self.readout(self.layers(self.tokens(x) + self.positions.weight[:T], mask, is_causal=True))

def loss_of(model, batch):
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr)
for step in range(len(rows) // batch_size):
    optimizer.zero_grad()
    loss_of(model, rows[step * batch_size : (step + 1) * batch_size]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
model.eval()
with torch.no_grad():
    losses = [loss_of(model, batch) for batch in held_out.split(batch_size)]
print(torch.stack(losses).mean().item())
"""


def rows_for_script(root: Path) -> Path:
    """Save the rows that our runs train and validate on, for the script, and return the file. Short rows are left out."""
    params = ModelParams(n_layers=N_LAYERS, dim=DIM, n_heads=N_HEADS, max_seq_len=MAX_SEQ_LEN)
    data = make_data(DataParams(**TEXT), params, root / "cache")
    loaders = {"train": data.train_dataloader(BATCH_SIZE), "val": data.val_dataloader(BATCH_SIZE)}
    saved = {"n_tokens": data.tokenizer.n_tokens}
    for split, loader in loaders.items():
        batches = [batch["x_indices"] for batch in itertools.islice(loader, STEPS)]
        saved[split] = torch.cat([rows for rows in batches if rows.shape[1] == MAX_SEQ_LEN + 1])
    torch.save(saved, root / "rows.pt")
    return root / "rows.pt"


def seconds(*commands: list[str]) -> float:
    start = time.perf_counter()
    for command in commands:
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=REPOSITORY)
    return time.perf_counter() - start


def measure(root: Path, rounds: int, attention: str) -> None:
    config, script = REPOSITORY / "configs" / "benchmark-grid.txt", root / "script.py"
    script.write_text(SCRIPT)
    rows = rows_for_script(root)
    sizes = map(str, (N_LAYERS, DIM, N_HEADS, MAX_SEQ_LEN, BATCH_SIZE))
    scripts = [[str(script), str(rows), str(lr), str(seed)] for lr in RATES for seed in SEEDS]
    scripts = [[*command, *own] for command, own in zip(scripts, itertools.repeat([*sizes]), strict=False)]
    ours = ["main.py", "--config=benchmark-grid", "--no-wandb", "--out", str(root)]
    times = []
    try:
        config.write_text(f"{CONFIG}attention = {attention!r}\n")
        for _ in range(rounds):
            times.append((seconds(ours), seconds([*ours, "--jobs=2"]), seconds(*scripts)))
            print(
                "one after another {:.1f} s, --jobs=2 {:.1f} s, scripts {:.1f} s".format(*times[-1]),
                flush=True,
            )
    finally:
        config.unlink(missing_ok=True)
    against_scripts = statistics.median(bare / two for _, two, bare in times)
    against_serial = statistics.median(one / two for one, two, _ in times)
    print(f"--jobs=2 is {against_scripts:.2f} times as fast as separate scripts (at least 3), ", end="")
    print(f"{against_serial:.2f} times as fast as one after another (at least 1.5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attention", choices=("explicit", "fused"), default="explicit")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.rounds, arguments.attention)
