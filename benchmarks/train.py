"""Measure a training step: ours against HuggingFace's GPT-2 and against a plain GPT written here.

    python -m benchmarks.train [--rounds 5] [--sizes 6x384 4x128 2x64 vocabulary] [--eager] [--search] [--profile]

A step is forward, backward, clipping and optimizer, on the same prepared batches of random tokens. Ours is timed as a
user gets it: Lightning's loop around LMTrainer with default params, including its statistics and the schedule, without
loading data and without validation. The peers run in the shortest loop, without any of these; so does our model once
more, to show what they cost.

Each model first runs in all its modes (eager or compiled, float32 or bf16 autocast, for peers also explicit or fused
attention), and the fastest mode takes part. This search compiles for minutes. Its times are kept in the temporary
folder, so that a later call for the same size only measures, in a minute or two; `--search` searches again. The models
then take turns in one process. A ratio compares consecutive turns; the tables show medians over rounds, and the lowest
and the highest. With the large vocabulary every turn is a process of its own, whose peak memory counts from the moment
before it builds the model. If a machine multiplies bf16 matrices more slowly than float32 ones, the modes in bf16 are
left out. With one thread (OMP_NUM_THREADS=1) the clock is the processor time of this process, which other programs
disturb less.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from data.batch import Batch
from model.inputs import stand_in_tokenizer
from model.lm import LM
from model.model_params import ModelParams
from train.compiled import compile_forward, forget_graphs
from train.flops import flops_per_row
from train.optimizers import make_optimizer
from train.run import lightning_trainer
from train.stats import Stats
from train.train_params import TrainParams
from train.trainer import LMTrainer

WARM_UP = 3  # steps before the clock starts
MIN_SHARES = {"plain GPT": 0.60, "HuggingFace": 0.50}  # of the peak, at 6x384: a slower peer would flatter us
BARE = "bare loop"  # our model in the loop of the peers: the difference to ours is Lightning, LMTrainer and our loss
MIN_BARE_RATIO = 0.95
MAX_COMPILE_GAIN = 1.5  # no model here gains more
MIN_OUR_SHARE = 0.82
MAX_MEMORY = 0.5  # of the peer with the least, with the large vocabulary

# Compiled code of ours, and the times that a search found.
COMPILED = Path(tempfile.gettempdir(), "whatif-benchmarks")
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")
MAX_OPERATIONS = 25  # in a profile


class Size(NamedTuple):
    """A model, its batch, the steps timed in a turn, and the lowest ratio to the best peer that is the goal."""

    n_layers: int
    dim: int
    n_heads: int
    max_seq_len: int
    batch_size: int
    n_tokens: int
    n_steps: int
    goal: float


SIZES = {
    "6x384": Size(6, 384, 6, 256, 8, 65, 3, 1.25),
    "4x128": Size(4, 128, 4, 64, 12, 65, 40, 1.5),
    "2x64": Size(2, 64, 2, 64, 16, 65, 100, 1.5),
    "vocabulary": Size(6, 384, 6, 256, 8, 50_257, 2, 1.3),
}


class Mode(NamedTuple):
    """A way to run a model."""

    attention: str  # explicit or fused
    execution: str  # eager or compiled
    precision: str  # a value of TrainParams.precision

    def __str__(self) -> str:
        return f"{self.attention}, {self.execution}, {'float32' if self.precision == '32-true' else 'bf16'}"


class Block(nn.Module):
    """A pre-norm layer of the plain GPT."""

    def __init__(self, size: Size, attention: str) -> None:
        super().__init__()
        D = size.dim
        self.n_heads, self.is_fused = size.n_heads, attention == "fused"
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        future = torch.ones(size.max_seq_len, size.max_seq_len, dtype=torch.bool).triu(1)
        self.register_buffer("future", future)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, 2)
        )
        if self.is_fused:
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            z = scores.masked_fill(self.future, -torch.inf).softmax(-1) @ v
        x = x + self.out(z.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 without anything that a training step does not need. The unembedding is tied."""

    def __init__(self, size: Size, attention: str) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.n_tokens, size.dim)
        self.positions = nn.Parameter(0.02 * torch.randn(size.max_seq_len, size.dim))
        self.blocks = nn.ModuleList([Block(size, attention) for _ in range(size.n_layers)])
        self.norm = nn.LayerNorm(size.dim)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def gpt2_like(size: Size, attention: str) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.n_tokens,
            n_positions=size.max_seq_len,
            n_embd=size.dim,
            n_layer=size.n_layers,
            n_head=size.n_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa" if attention == "fused" else "eager",
        )
    ).train()


def our_model(size: Size, attention: Any = "explicit") -> LM:
    params = ModelParams(
        dim=size.dim,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        max_seq_len=size.max_seq_len,
        positions="learned",
        activation="gelu_tanh",
        tied_embeddings=True,
        attention=attention,
    )
    return LM(params, stand_in_tokenizer(size.n_tokens))


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


Turn = Callable[[], float]  # runs WARM_UP + n_steps steps, and returns the seconds of one


def loop_model(name: str, size: Size, attention: str) -> nn.Module:
    if name == BARE:
        return our_model(size)
    return PlainGPT(size, attention) if name == "plain GPT" else gpt2_like(size, attention)


def autocast_of(mode: Mode) -> Callable[[], AbstractContextManager[object]]:
    return partial(torch.autocast, "cpu", torch.bfloat16) if mode.precision != "32-true" else nullcontext


def compile_model(model: nn.Module, size: Size, mode: Mode) -> None:
    """Compile a model: ours as a run with `compile=True` does, the others by torch's own method."""
    if isinstance(model, LM):
        train = TrainParams(batch_size=size.batch_size, precision=mode.precision)
        with autocast_of(mode)():
            model._compiled_call_impl = compile_forward(model, batches_of(size)[0], train, COMPILED)
    else:
        model.compile()


def peer_turn(name: str, size: Size, mode: Mode) -> Turn:
    """Return the turn of a peer, or of our model without Lightning: a loop written by hand."""
    train = TrainParams(batch_size=size.batch_size)
    model = loop_model(name, size, mode.attention)
    if mode.execution == "compiled":
        compile_model(model, size, mode)
    optimizer, autocast = make_optimizer(model, train), autocast_of(mode)
    rows = [batch["x_indices"] for batch in batches_of(size)]

    def turn() -> float:
        start = 0.0
        for step, ids in enumerate(rows):
            if step == WARM_UP:
                start = clock()
            with autocast():
                out = model(ids[:, :-1])
                logits = out if isinstance(out, Tensor) else out.logits
                loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            del out, logits
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return (clock() - start) / size.n_steps

    return turn


class PreparedBatches:
    """A loader of batches that exist already. (Lightning reads a plain list as a list of loaders.)"""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class StepClock(L.Callback):
    """Timer of the steps of a fit, without the first `WARM_UP`."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == WARM_UP:
            self.start = clock()

    def on_train_end(self, trainer: L.Trainer, *_: object) -> None:
        self.seconds = clock() - self.start


def our_turn(size: Size, mode: Mode) -> Turn:
    """Return our turn: a fit by Lightning with a user's default settings, without validation."""
    train = TrainParams(batch_size=size.batch_size, precision=mode.precision)
    lm, batches = our_model(size), PreparedBatches(batches_of(size))
    if mode.execution == "compiled":
        compile_model(lm, size, mode)
    data: Any = SimpleNamespace(max_seq_len=size.max_seq_len, eval_sets={})

    def turn() -> float:
        step_clock = StepClock()
        trainer = lightning_trainer(train, len(batches), gpu_id=None, callbacks=[step_clock])
        trainer.limit_val_batches = 0
        trainer.fit(LMTrainer(lm, data, train, Stats(), len(batches)), batches)
        return step_clock.seconds / size.n_steps

    return turn


def batches_of(size: Size) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    shape = size.batch_size, size.max_seq_len + 1
    real = torch.ones(shape, dtype=torch.bool)
    scored = real.index_fill(1, torch.tensor([0]), False)
    return [
        Batch(
            x_indices=torch.randint(size.n_tokens, shape, generator=generator), mask=real, target_mask=scored
        )
        for _ in range(WARM_UP + size.n_steps)
    ]


def make_turn(name: str, size: Size, mode: Mode) -> Turn:
    torch.manual_seed(0)
    return our_turn(size, mode) if name == "ours" else peer_turn(name, size, mode)


def modes_of(name: str, executions: Iterable[str], precisions: Iterable[str]) -> list[Mode]:
    # Ours runs with the attention that a user can edit.
    attentions = ["explicit"] if name in ("ours", BARE) else ["explicit", "fused"]
    return [Mode(*mode) for mode in product(attentions, executions, precisions)]


def matrix_peak(dtype: torch.dtype) -> float:
    """Return the best rate of matrix products in operations a second, over squares and the shapes of a layer."""
    torch.ones(256, 256, dtype=dtype) @ torch.ones(256, 256, dtype=dtype)  # set-up is not timed
    best = 0.0
    for n, k, m in (
        (256, 256, 256),
        (1024, 1024, 1024),
        (2048, 384, 1536),
        (2048, 2048, 2048),
        (4096, 4096, 4096),
    ):
        a, b = torch.randn(n, k).to(dtype), torch.randn(k, m).to(dtype)
        seconds = []
        while sum(seconds) < 1 and len(seconds) < 20:
            start = clock()
            a @ b
            seconds.append(clock() - start)
        best = max(best, 2 * n * k * m / min(seconds))
        if best < 5e9:  # larger products would take minutes
            break
    return best


def turn_in_process(name: str, size: str, mode: Mode) -> tuple[float, float]:
    """Return the seconds of a step, and the peak memory in MB, of a turn in a new process."""
    command = [sys.executable, "-m", "benchmarks.train", "--alone", json.dumps([name, size, *mode])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def run_alone(name: str, size: str, *mode: str) -> None:
    """Run a turn in this process. Print its seconds a step, and its peak memory above that of the imports."""
    before = psutil.Process().memory_info().rss
    seconds = make_turn(name, SIZES[size], Mode(*mode))()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, (peak - before) / 1e6]))


class Tried(NamedTuple):
    """A first turn of a model in one of its modes."""

    mode: Mode
    seconds: float  # of a step
    memory: float  # MB; 0 where memory is not measured


MeasuredTurn = Callable[[], tuple[float, float]]  # seconds and MB, as in Tried


def measured_turn(name: str, size: str, mode: Mode) -> MeasuredTurn:
    """Return the turn of a model in a mode."""
    if size == "vocabulary":
        return partial(turn_in_process, name, size, mode)
    return partial(without_memory, make_turn(name, SIZES[size], mode))


def without_memory(turn: Turn) -> tuple[float, float]:
    return turn(), 0.0


def try_modes(name: str, size: str, modes: Iterable[Mode], is_new: bool) -> list[Tried]:
    """Return a first turn in each mode, the uncompiled ones first: of an earlier call, unless `is_new`, or else run now.

    Compiling is left out where it would have to gain more than MAX_COMPILE_GAIN.
    """
    file = COMPILED / f"{name} {size}, {torch.get_num_threads()} threads.json"
    known = {} if is_new or not file.exists() else json.loads(file.read_text())
    found: list[Tried] = []
    for mode in sorted(modes, key=lambda mode: mode.execution == "compiled"):
        eager = [one.seconds for one in found if one.mode == mode._replace(execution="eager")]
        if eager and eager[0] > MAX_COMPILE_GAIN * min(one.seconds for one in found):
            continue
        if str(mode) not in known:
            known[str(mode)] = measured_turn(name, size, mode)()
            COMPILED.mkdir(exist_ok=True)
            file.write_text(json.dumps(known))
        seconds, memory = known[str(mode)]
        print(
            f"  {name} ({mode}): {1e3 * seconds:.1f} ms{f', {memory:,.0f} MB' if memory else ''}", flush=True
        )
        found.append(Tried(mode, seconds, memory))
    return found


def measure(
    size: str,
    rounds: int,
    executions: Sequence[str],
    precisions: Sequence[str],
    peaks: dict[str, float],
    search: bool,
) -> None:
    """Measure and judge one size."""
    torch._dynamo.reset()  # else torch would take what differs between sizes for variables
    forget_graphs()
    s = SIZES[size]
    print(
        f"{size}: {s.n_layers} layers of {s.dim}, T {s.max_seq_len}, B {s.batch_size}, {s.n_tokens:,} tokens"
    )
    tried = {
        name: try_modes(name, size, modes_of(name, executions, precisions), search)
        for name in ("ours", BARE, *MIN_SHARES)
    }
    chosen = {name: min(found, key=lambda one: one.seconds).mode for name, found in tried.items()}
    takers = {name: measured_turn(name, size, mode) for name, mode in chosen.items()}
    turns = [{name: take() for name, take in takers.items()} for _ in range(rounds)]
    times = {name: [1e3 * turn[name][0] for turn in turns] for name in chosen}
    shares = shares_of_peak(s, times, max(peaks.values()))
    for name, mode in chosen.items():
        print(
            f"  {name:11} ({mode}): {statistics.median(times[name]):.1f} ms a step "
            f"({min(times[name]):.1f} to {max(times[name]):.1f}), {shares[name]:.0%} of the peak"
        )
    judge_speed(s, times)
    if size == "6x384":
        judge("share of the peak", shares["ours"], MIN_OUR_SHARE)
        for name, least in MIN_SHARES.items():
            judge(f"{name} is a fair peer: share of the peak", shares[name], least)
    if size == "vocabulary":
        own = statistics.median(turn["ours"][1] for turn in turns)
        least = min(one.memory for name in MIN_SHARES for one in tried[name])
        more = f"{least:,.0f} / {own:,.0f} MB"
        judge("memory of the most frugal peer / ours", least / own, 1 / MAX_MEMORY, more)


def shares_of_peak(size: Size, times: dict[str, list[float]], peak: float) -> dict[str, float]:
    flops = (flops_per_row(our_model(size), size.max_seq_len) or 0) * size.batch_size
    return {name: flops / (peak * statistics.median(ms) / 1e3) for name, ms in times.items()}


def judge_speed(size: Size, times: dict[str, list[float]]) -> None:
    best = min(MIN_SHARES, key=lambda name: statistics.median(times[name]))
    ratios = [peer / own for peer, own in zip(times[best], times["ours"], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    judge(f"{best} / ours", statistics.median(ratios), size.goal, spread)
    bare = statistics.median(bare / own for bare, own in zip(times[BARE], times["ours"], strict=True))
    judge("our model in a bare loop / ours", bare, MIN_BARE_RATIO)


def profile(size: str, precisions: Iterable[str]) -> None:
    """Print which operations our eager step spends its time on."""
    for precision in precisions:
        turn = make_turn("ours", SIZES[size], Mode("explicit", "eager", precision))
        turn()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            turn()
        times = {event.key: event.self_cpu_time_total / 1e3 for event in seen.key_averages()}
        n_steps = WARM_UP + SIZES[size].n_steps
        total, products = sum(times.values()), sum(times.get(name, 0) for name in PRODUCTS)
        print(f"{size}, {precision}: {total / n_steps:.1f} ms a step, matrix products {products / total:.1%}")
        for name in sorted(times, key=lambda name: -times[name])[:MAX_OPERATIONS]:
            print(f"  {times[name] / n_steps:8.2f} ms {times[name] / total:6.1%}  {name}")


def judge(what: str, value: float, goal: float, more: str = "") -> None:
    verdict = "met" if value >= goal else "not met"
    print(f"  {what}: {value:.2f}{more and f' ({more})'}, goal {goal:.2f}: {verdict}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--eager", action="store_true", help="leave out compiled modes, which take minutes")
    parser.add_argument("--search", action="store_true", help="run all modes again to find the fastest")
    parser.add_argument("--profile", action="store_true", help="show where the time of our eager step goes")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        run_alone(*json.loads(arguments.alone))
    else:
        dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
        peaks = {precision: matrix_peak(dtype) for precision, dtype in dtypes.items()}
        print(f"{torch.get_num_threads()} threads, matrix products at best:")
        for precision, dtype in dtypes.items():
            print(f"  {str(dtype).removeprefix('torch.')} {peaks[precision] / 1e9:.0f} GFLOP/s")
        precisions = [p for p in peaks if peaks[p] >= peaks["32-true"]]
        for size in arguments.sizes:
            if arguments.profile:
                profile(size, precisions)
            else:
                executions = ["eager"] if arguments.eager else ["eager", "compiled"]
                measure(size, arguments.rounds, executions, precisions, peaks, arguments.search)
