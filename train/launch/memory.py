"""Estimate the memory of a run: count the bytes that are alive during a training step on tensors without numbers."""

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.inputs import stand_in_tokenizer
from model.lm import LM
from model.model_params import ModelParams
from train.flops import DTYPES, SHORT_ROWS
from train.grid.run import Call, Run
from train.launch.estimate import step_params
from train.launch.problems import memory_of_machine
from train.optimizers import make_optimizer, set_up_training
from train.sharding import FSDP
from train.train_params import TrainParams

USABLE = 0.85  # of the free memory: estimates are that accurate
T = TypeVar("T")
# On a CPU the C library keeps memory that a step gives back, in pieces that later tensors do not fit into. Where no step
# was measured, a process takes so much more, as a share of its activations: 0.6 to 1.0 in benchmarks/step_memory.py.
KEPT_SHARE = 0.8
MIN_MEASURED = 1e8  # bytes of a run: the growth of a smaller one is mostly that of libraries
MAX_MEMORY_SECONDS = 5.0  # for the estimates of all runs
CGROUP = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes of a run at the moment at which it needs most: of one GPU, or of all its processes on a CPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float  # and all else that a step makes
    kept: float = 0.0  # that the C library keeps of earlier tensors, on a CPU

    @property
    def total(self) -> float:
        return sum(self)


class StepMemory(NamedTuple):
    """Bytes of parts of a training step, each linear in the number of layers."""

    weights: float
    trained: float  # of the weights: those with a gradient
    optimizer: float
    forward: float  # the most in the forward pass, with weights, gradients and optimizer
    backward: float  # the most in the backward pass
    update: float  # the most while gradients are clipped and the optimizer steps


class LiveBytes(TorchDispatchMode):
    """Dispatch mode that counts the bytes of all tensors made inside, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = id(storage), storage.nbytes()
        if key in self.storages:
            return

        def forget(_: object) -> None:
            self.now -= n_bytes
            del self.storages[key]

        self.storages[key] = weakref.ref(storage, forget)
        self.now += n_bytes
        self.peak = max(self.peak, self.now)

    def peak_of(self, work: Callable[[], T]) -> tuple[int, T]:
        """Return the largest number of bytes while `work` runs, and its result."""
        self.peak = self.now
        result = work()
        return self.peak, result


def memory_of_runs(runs: Sequence[Run]) -> list[Memory | None]:
    """Return the estimated memory of each run, the largest models first, until MAX_MEMORY_SECONDS are over; None if unknown."""
    found: dict[str, Memory | None] = {}
    keys = [memory_key(run) for run in runs]
    started = time.perf_counter()
    for i in sorted(range(len(runs)), key=lambda i: -runs[i].size.n_params):
        if keys[i] not in found and time.perf_counter() - started < MAX_MEMORY_SECONDS:
            _, train, model = runs[i].params
            found[keys[i]] = memory_of_step(model, train, runs[i].data.n_tokens, device_type())
    return [found.get(key) for key in keys]


def memory_key(run: Run) -> str:
    """Return a key that is equal for runs that need the same memory."""
    _, train, model = run.params
    of_step = (train.accumulate_grad_batches, train.devices, train.strategy, bool(train.patience))
    return repr((model, step_params(train), of_step, run.data.n_tokens))


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def with_kept(
    runs: Sequence[Run], memories: Sequence[Memory | None], grown: Mapping[int, int]
) -> list[Memory | None]:
    """Return the memory of each run with what the C library keeps, by the growth of this process in measured steps.

    `grown` are bytes by index of the run. Runs that were not measured keep as large a share as the nearest that was.
    """
    shares = {
        memory.activations: max(0.0, grown[i] - memory.total) / memory.activations
        for i, (run, memory) in enumerate(zip(runs, memories, strict=True))
        if i in grown and memory and memory.total >= MIN_MEASURED and run.params.train.devices == 1
    }

    def kept(activations: float) -> float:
        if device_type() != "cpu":
            return 0.0
        nearest = min(shares, key=lambda size: abs(size - activations), default=None)
        return activations * (KEPT_SHARE if nearest is None else shares[nearest])

    return [memory and memory._replace(kept=kept(memory.activations)) for memory in memories]


def too_large(memory: Memory | None) -> bool:
    """Return True if a run needs more memory than this machine has."""
    return memory is not None and memory.total > memory_of_machine()


def lines_about(runs: Sequence[Run], memories: Sequence[Memory | None], call: Call) -> list[str]:
    """Return what to say about the run that takes most memory, and about the batch sizes that fit."""
    known = [(memory.total, i) for i, memory in enumerate(memories) if memory is not None]
    if not known:
        return []
    run, memory = runs[max(known)[1]], memories[max(known)[1]]
    assert memory is not None
    parts = ", ".join(f"{name} {as_bytes(size)}" for name, size in memory._asdict().items())
    lines = [f"run {run.number} takes the most memory, about {as_bytes(memory.total)}: {parts}"]
    free = free_memory() / call.jobs
    where = "of the GPU" if torch.cuda.is_available() else "of this machine"
    fitting = fitting_batches(run, USABLE * free, memory.kept / memory.activations)
    if fitting is None:
        return [
            *lines,
            f"run {run.number}: not even batch_size=1 fits into the {as_bytes(free)} that are free",
        ]
    line = (
        f"the free memory {where}, {as_bytes(free)}{' for each of the jobs' * (call.jobs > 1)}, is enough for "
        f"batch_size={fitting.largest}"
    )
    if fitting.batch_size != run.params.train.batch_size:
        line += (
            f"; a step of {fitting.batch_size * fitting.accumulate_grad_batches} rows fits as "
            f"batch_size={fitting.batch_size}, accumulate_grad_batches={fitting.accumulate_grad_batches}"
        )
    return [*lines, line]


def as_bytes(n: float) -> str:
    if n >= 1e9:
        return f"{n / 1e9:,.1f} GB"
    return f"{n / 1e6:,.0f} MB" if n >= 1e7 else f"{n / 1e6:.1f} MB"


def memory_of_step(
    model: ModelParams, train: TrainParams, n_tokens: int, device: str = "cpu"
) -> Memory | None:
    """Return the memory of a training step on full rows. Layers repeat, so that only some are run."""
    period = model.period
    try:
        if model.n_layers <= 2 * period:
            found = measured_step(model, train, n_tokens, device)
        else:
            few, more = (
                measured_step(replace(model, n_layers=n * period), train, n_tokens, device) for n in (1, 2)
            )
            turns = model.n_layers / period
            found = StepMemory(*(a + (turns - 1) * (b - a) for a, b in zip(few, more, strict=True)))
    except Exception:  # it is the user's own code
        return None
    return spread_over_devices(found, model, train, device)


def measured_step(model: ModelParams, train: TrainParams, n_tokens: int, device: str) -> StepMemory:
    """Return the memory of a step. Recurrent layers take long by token, so they run on short rows."""
    if not any(kind in ("torch-lstm", "torch-gru") for kind in model.kinds):
        return simulated_step(model, train, n_tokens, device, model.max_seq_len)
    found = [simulated_step(model, train, n_tokens, device, n) for n in SHORT_ROWS]
    parabola = np.polyfit(SHORT_ROWS, np.array(found), deg=2)
    return StepMemory(*(float(np.polyval(column, model.max_seq_len)) for column in parabola.T))


def simulated_step(
    model: ModelParams, train: TrainParams, n_tokens: int, device: str, length: int
) -> StepMemory:
    """Run a training step on rows of `length` predicted tokens in the order of Lightning's loop, and count bytes."""
    tokenizer = stand_in_tokenizer(n_tokens)
    n_ids = length + (not model.hides_tokens)
    dtype = DTYPES.get(train.precision, torch.float32)
    is_mixed, live = train.precision.endswith("mixed"), LiveBytes()
    with torch.random.fork_rng(devices=[]), FakeTensorMode(), live, torch.enable_grad():
        with torch.device(device):
            lm = LM(model, tokenizer, dropout=train.dropout).train()
            ids_BT = torch.zeros(train.batch_size, n_ids, dtype=torch.int64)
            real_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        if train.precision == "64-true":
            lm.double()
        set_up_training(lm, train)
        weights = sum({id(t): t.nbytes for t in (*lm.parameters(), *lm.buffers())}.values())
        trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(lm, train)
        give_gradients(trained)  # those of the step before

        def forward() -> Tensor:
            batch = {"x_indices": ids_BT, "mask": real_BT, "target_mask": real_BT}
            with torch.autocast(device, dtype, enabled=is_mixed):
                losses, _ = lm.get_losses(batch, train)
                return torch.as_tensor(sum(losses.values()))

        def backward() -> None:
            if train.accumulate_grad_batches == 1:
                optimizer.zero_grad()
            loss.backward()

        def update() -> None:
            copies = [parameter.detach().clone() for parameter in trained]  # to log the size of updates
            if train.gradient_clip_val:
                nn.utils.clip_grad_norm_(trained, train.gradient_clip_val)
            optimizer.step()
            del copies

        most_in_forward, loss = live.peak_of(forward)
        most_in_backward, _ = live.peak_of(backward)
        most_in_update, _ = live.peak_of(update)
        n_state = sum(t.nbytes for t in tree_leaves([*optimizer.state.values()]) if isinstance(t, Tensor))
        return StepMemory(
            weights,
            sum(parameter.nbytes for parameter in trained),
            n_state,
            most_in_forward + n_state,
            most_in_backward + n_state,
            most_in_update,
        )


def give_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def spread_over_devices(step: StepMemory, model: ModelParams, train: TrainParams, device: str) -> Memory:
    """Return the memory of a run, on one GPU or in all processes of a CPU together."""
    n, kept = train.devices, step.weights * bool(train.patience)  # a copy of the best weights
    extra = max(step.forward, step.backward, step.update) - step.weights - step.trained - step.optimizer
    weights, gradients, optimizer = step.weights, step.trained, step.optimizer
    if train.strategy == FSDP:
        # Each process gathers a layer and the next one, and keeps the embeddings gathered.
        gathered = step.weights * min(1.0, 2 / max(1, model.n_layers))
        weights, gradients, optimizer = (part / n for part in (weights, gradients, optimizer))
        extra += gathered
    elif n > 1:
        gradients *= 2  # DDP gathers gradients in buckets
    processes = n if device == "cpu" else 1
    return Memory(*(processes * part for part in (weights + kept, gradients, optimizer, extra)))


def free_memory() -> int:
    """Return the bytes that are free for training: of the GPU, or without one of the CPU, within the container's limit."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # there is no limit
        limit = int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text())
        free = min(free, limit)
    return free


class Fitting(NamedTuple):
    """Sizes of a batch that fit into the memory."""

    largest: int  # batch_size
    batch_size: int  # the largest that divides the rows of an optimizer step
    accumulate_grad_batches: int


def fitting_batches(run: Run, free: float, kept_share: float = 0.0) -> Fitting | None:
    """Return the batch sizes with which a run fits into `free` bytes; None if none does, or nothing is known.

    The C library keeps `kept_share` times the activations.
    """
    _, train, model = run.params

    def needed(batch_size: int) -> float:
        found = memory_of_step(model, replace(train, batch_size=batch_size), run.data.n_tokens, device_type())
        return math.inf if found is None else found.total + kept_share * found.activations

    # Memory grows at most linearly from some size on: two sizes give a first guess, which is then corrected.
    low, at_low, size = 1, needed(1), max(2, train.batch_size)
    if at_low > free:
        return None
    for _ in range(4):
        at_size = needed(size)
        if math.isinf(at_size):
            return None
        slope = max((at_size - at_low) / (size - low), 1.0)
        guess = max(1, int(low + (free - at_low) / slope))
        if abs(guess - size) <= 0.02 * size and at_size <= free:
            break
        size = guess if guess != low else guess + 1
    rows = train.batch_size * train.accumulate_grad_batches
    batch_size = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= max(1, size))
    return Fitting(size, batch_size, rows // batch_size)
