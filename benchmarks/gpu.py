"""Measure on a GPU, in one call: tests of devices, training, memory, runs side by side, and generation.

    python -m benchmarks.gpu [--device cuda] [--size gpt2] [--rounds 3] [--only training generation]

- tests: `tests/test_devices.py` on this device: training, compiled and bf16, bitwise resume, generation, masks.
- training: a step in bf16 of our model (explicit, fused and compiled attention), of a plain GPT and of HuggingFace's
  GPT-2, each in its modes. Goals: our fastest mode is not slower than the fastest peer and reaches 45 % of the peak of
  bf16 matrix products; with explicit attention, which edits change, compiling is faster than not.
- memory: the peak of each mode, in the same lines.
- jobs: four small runs one after another, and with --jobs=2 and --jobs=4 on the same GPU.
- generation: tokens a second against HuggingFace's `generate` with the same weights.

A part that fails is reported, and the others run. `--device=cpu --size=tiny` tries the script without a GPU.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gpt2
from common.repository import REPOSITORY
from data.batch import mycollate
from train.compiled import compile_forward
from train.flops import flops_per_row, peak_flops, wait_for
from train.logs import log_to_console
from train.optimizers import make_optimizer
from train.train_params import TrainParams

# isort: split
from benchmarks.train import PlainGPT, Size, gpt2_like, our_model

GOAL_SHARE, GOAL_RATIO = 0.45, 1.0
GPU_WARM_UP = 5  # steps before the clock starts
GPU_SIZES = {
    "gpt2": Size(12, 768, 12, 1024, 16, 50_257, 20, GOAL_RATIO),
    "tiny": Size(2, 32, 2, 16, 4, 65, 2, GOAL_RATIO),
}
TRAIN = TrainParams(precision="bf16-mixed")


class Setting(NamedTuple):
    """Settings of a benchmark: the device, the size of the models, the rounds, and a folder for what runs write."""

    device: torch.device
    size: Size
    rounds: int
    root: Path


class Measured(NamedTuple):
    """One mode of a model."""

    name: str
    seconds: float  # of a step, the median
    memory: float  # GB at the peak; 0 on the CPU


Loss = Callable[[], Tensor]


def our_loss(setting: Setting, attention: str, compiled: bool, rows_BT: Tensor) -> tuple[nn.Module, Loss]:
    """Return our model, and a function that computes its loss as a training step does."""
    lm = our_model(setting.size, attention).to(setting.device).train()
    batch = mycollate(rows_BT.tolist())
    batch = type(batch)({name: tensor.to(setting.device) for name, tensor in batch.items()})
    if compiled:
        with torch.autocast(setting.device.type, torch.bfloat16):
            lm._compiled_call_impl = compile_forward(lm, batch, TRAIN, setting.root)
    return lm, lambda: torch.as_tensor(sum(lm.get_losses(batch, TRAIN)[0].values()))


def peer_loss(
    setting: Setting, name: str, attention: str, compiled: bool, rows_BT: Tensor
) -> tuple[nn.Module, Loss]:
    make = PlainGPT if name == "plain GPT" else gpt2_like
    model: Any = make(setting.size, attention).to(setting.device).train()
    if compiled:
        model.compile()
    ids_BT, targets_BT = rows_BT[:, :-1].to(setting.device), rows_BT[:, 1:].to(setting.device)

    def loss() -> Tensor:
        out = model(ids_BT)
        logits = out if isinstance(out, Tensor) else out.logits
        return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten())

    return model, loss


def time_training(name: str, model: nn.Module, loss_of: Loss, setting: Setting) -> Measured:
    """Measure a step: forward, backward, clipping and optimizer."""
    device, size, times = setting.device, setting.size, []
    optimizer = make_optimizer(model, TRAIN)
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    for turn in range(setting.rounds + 1):
        wait_for(device)
        start, n = time.perf_counter(), size.n_steps if turn else GPU_WARM_UP
        for _ in range(n):
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        wait_for(device)
        times.append((time.perf_counter() - start) / n)
    assert loss.isfinite(), name
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if is_gpu else 0.0
    return Measured(name, statistics.median(times[1:]), memory)


def measured_modes(setting: Setting, rows_BT: Tensor) -> Iterator[Measured]:
    """Measure every model in every mode, one after another. A mode that fails is reported and left out."""
    names, attentions = ("ours", "plain GPT", "HuggingFace"), ("explicit", "fused")
    for name, attention, compiled in product(names, attentions, (False, True)):
        label = f"{name}, {attention}, {'compiled' if compiled else 'eager'}"
        torch.manual_seed(0)
        try:
            if name == "ours":
                model, loss_of = our_loss(setting, attention, compiled, rows_BT)
            else:
                model, loss_of = peer_loss(setting, name, attention, compiled, rows_BT)
            yield time_training(label, model, loss_of, setting)
        except Exception:
            traceback.print_exc()
        model = loss_of = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()


def training(setting: Setting) -> None:
    """Print the time, share of the peak and memory of each mode, and judge the goals."""
    size, device = setting.size, setting.device
    rows_BT = torch.randint(size.n_tokens, (size.batch_size, size.max_seq_len + 1))
    peak = peak_flops(device, TRAIN.precision)
    flops = (flops_per_row(our_model(size, "explicit"), size.max_seq_len) or 0) * size.batch_size
    print(f"matrix products in bf16: {peak / 1e12:.2f} TFLOP/s")
    found = {}
    for one in measured_modes(setting, rows_BT):
        found[one.name] = one
        share = flops / one.seconds / peak
        print(
            f"  {one.name}: {1e3 * one.seconds:.1f} ms a step, {share:.0%} of the peak, {one.memory:.1f} GB",
            flush=True,
        )
    ours = [one.seconds for name, one in found.items() if name.startswith("ours")]
    peers = [one.seconds for name, one in found.items() if not name.startswith("ours")]
    judge_gpu("fastest peer / fastest of ours", min(peers) / min(ours), GOAL_RATIO)
    judge_gpu("share of the peak", flops / min(ours) / peak, GOAL_SHARE)
    explicit = [found[f"ours, explicit, {way}"].seconds for way in ("eager", "compiled")]
    judge_gpu("explicit attention: eager / compiled", explicit[0] / explicit[1], 1.0)


def judge_gpu(what: str, value: float, goal: float) -> None:
    print(f"  {what}: {value:.2f}, goal {goal:.2f}: {'met' if value >= goal else 'not met'}", flush=True)


def tests(setting: Setting) -> None:
    """Run the tests of devices."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_devices.py", "-m", "slow or not slow"]
    subprocess.run(command, cwd=REPOSITORY, env=environment(setting), check=True)


def environment(setting: Setting) -> dict[str, str]:
    """Return the environment of a process that sees the GPUs only if they are measured."""
    return os.environ | ({} if setting.device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""})


def jobs(setting: Setting) -> None:
    """Time four small runs, one after another and side by side on one device."""
    n_samples = 20_000 if setting.device.type == "cuda" else 64
    fields = [f"early_stop_nsamples={n_samples}", "random_seed=[1,2,3,4]", "n_samples=1000", "threads=1"]
    times = {}
    for n in (1, 2, 4):
        options = ["--config=test-synth", "--no-wandb", f"--jobs={n}", f"--out={setting.root}"]
        options += [f"--set={field}" for field in fields]
        start = time.perf_counter()
        command = [sys.executable, "main.py", *options]
        subprocess.run(command, cwd=REPOSITORY, env=environment(setting), check=True, capture_output=True)
        times[n] = time.perf_counter() - start
        print(
            f"  --jobs={n}: {times[n]:.1f} s, {times[1] / times[n]:.2f} times as fast as --jobs=1", flush=True
        )


def generation(setting: Setting) -> None:
    """Compare tokens a second with HuggingFace's, which generates from the same weights."""
    size, device = setting.size, setting.device
    hf = gpt2_like(size, "fused").eval()
    hf.generation_config.eos_token_id, hf.generation_config.pad_token_id = None, 0
    lm = gpt2.from_hf(hf).to(device)
    hf = hf.to(device)
    prompt, total = size.max_seq_len // 8, size.max_seq_len // 4
    for batch_size in (1, 16):
        rows = torch.randint(size.n_tokens, (batch_size, prompt)).tolist()
        ids_BT = torch.tensor(rows, device=device)
        mask, new = torch.ones_like(ids_BT), total - prompt
        ours = partial(lm.sample, rows, total, as_str=False, temperature=0)
        generate: Callable[..., Any] = hf.generate
        theirs = partial(generate, ids_BT, attention_mask=mask, max_new_tokens=new, do_sample=False)
        rate, their_rate = (batch_size * new / seconds_of(way, setting) for way in (ours, theirs))
        print(
            f"  batch {batch_size}: {rate:,.0f} tokens a second, {rate / their_rate:.2f} times HuggingFace's",
            flush=True,
        )


def seconds_of(generate: Callable[[], object], setting: Setting) -> float:
    """Return the median time of a call, after one that is not timed."""
    times = []
    for _ in range(setting.rounds + 1):
        start = time.perf_counter()
        generate()
        wait_for(setting.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


PARTS: dict[str, Callable[[Setting], None]] = {
    "tests": tests,
    "training": training,
    "jobs": jobs,
    "generation": generation,
}


def measure_device(arguments: list[str] | None = None) -> int:
    """Run the parts. Return the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=GPU_SIZES, default="gpt2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU; --device=cpu --size=tiny tries the script")
    log_to_console()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, GPU_SIZES[chosen.size], chosen.rounds, Path(folder))
        for name in chosen.only:
            print(name, flush=True)
            try:
                PARTS[name](setting)
            except Exception:
                traceback.print_exc()
                failed += 1
    print(f"{failed} of {len(chosen.only)} parts failed")
    return failed


if __name__ == "__main__":
    sys.exit(measure_device())
