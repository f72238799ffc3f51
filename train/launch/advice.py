"""Measure what would train a grid faster on this machine: precision, threads, --jobs and compile. For --dry-run.

Two ways to train take turns, so that other programs slow down both. A gain counts if it is there in every turn.
"""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from statistics import median
from typing import NamedTuple

import torch

from data.batch import Batch
from model.lm import LM
from train.compiled import compile_forward
from train.data import make_data
from train.flops import DTYPES, wait_for
from train.grid.run import Call, Run
from train.launch.estimate import step_params
from train.launch.memory import USABLE, Memory, free_memory
from train.launch.problems import train_problems
from train.optimizers import make_optimizer, set_up_training
from train.pretrained import saved_tokenizer
from train.probe import own_randomness
from train.processes import start_server_of_workers
from train.run import cpu_threads
from train.train_params import TrainParams

MIN_GRID_SECONDS = 120  # a shorter grid does not repay measuring
MIN_SECONDS_TO_COMPILE = 3600  # of a grid that repays compiling for the sake of measuring
MAX_COMPILE_SECONDS = 90.0  # for compiling, before it is given up
MIN_TURNS, MAX_TURNS = 3, 6  # of each of two ways to train
TURNS_SECONDS = 1.5  # after which there are no more turns than MIN_TURNS
TURN_SECONDS = 0.12
MAX_SHARE = 0.95  # of the time: smaller gains are not mentioned
MAX_START_SECONDS = 60.0  # for processes to start, and for each of their answers
MAX_END_SECONDS = 10.0  # for a process to end by itself


class Faster(NamedTuple):
    """A setting with which this machine trains faster."""

    setting: str  # what to write into the config, or the option
    share: float  # of the time that the grid takes now
    share_low: float  # the smallest and the largest share in the turns that were measured
    share_high: float


class Advice(NamedTuple):
    """Settings that train a grid faster, and settings that were not measured, each with the reason."""

    run: int  # number of the run that was measured
    faster: list[Faster]
    not_measured: list[str]

    def entries(self) -> list[dict[str, object]]:
        """Return the settings for the document."""
        return [{"run": self.run, **one._asdict()} for one in self.faster]

    def lines(self) -> list[str]:
        """Return the advice as log lines."""
        found = [f"{one.setting} takes {one.share:.2f} times the time" for one in self.faster]
        lines = [f"faster here, measured on run {self.run}: {'; '.join(found)}"] if found else []
        return lines + [f"not measured: {what}" for what in self.not_measured]


class StepTimer:
    """Training steps of one run on one batch, to be timed."""

    def __init__(self, run: Run, call: Call) -> None:
        data_params, train, model = run.params
        self.train = step_params(train)
        data = make_data(data_params, model, call.cache, tokenizer=saved_tokenizer(model, call.out))
        self.device = (
            torch.device("cuda", call.gpu_id or 0) if torch.cuda.is_available() else torch.device("cpu")
        )
        self.batch: Batch = next(iter(data.train_dataloader(train.batch_size)))
        self.lm = LM(model, tokenizer=data.tokenizer, dropout=train.dropout).to(self.device).train()
        if train.precision == "64-true":
            self.lm.double()
        set_up_training(self.lm, self.train)
        self.optimizer = make_optimizer(self.lm, self.train)
        self.known: set[tuple[str, int]] = set()  # precision and threads of steps so far

    def autocast(self, precision: str) -> torch.autocast:
        """Return the context in which a run with this precision computes its losses."""
        mixed = precision.endswith("mixed")
        return torch.autocast(self.device.type, DTYPES.get(precision, torch.float32), enabled=mixed)

    def step(self, precision: str) -> None:
        """Take an optimizer step, as a run with this precision does."""
        with self.autocast(precision):
            losses, _ = self.lm.get_losses(self.batch, self.train)
            loss = torch.as_tensor(sum(losses.values()))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.lm.parameters(), 1.0)
        self.optimizer.step()

    def seconds(self, precision: str | None = None, threads: int | None = None) -> float:
        """Return the seconds of a step, the mean over a turn. By default precision and threads are those of the run."""
        precision = precision or self.train.precision
        with cpu_threads(threads or self.train.threads):
            if (precision, torch.get_num_threads()) not in self.known:
                self.known.add((precision, torch.get_num_threads()))
                self.step(precision)  # it sets things up
            wait_for(self.device)
            started, n_steps = time.perf_counter(), 0
            while not n_steps or time.perf_counter() - started < TURN_SECONDS:
                self.step(precision)
                wait_for(self.device)
                n_steps += 1
            return (time.perf_counter() - started) / n_steps


def advice(
    runs: Sequence[Run], seconds: Sequence[float | None], memory: Sequence[Memory | None], call: Call
) -> Advice | None:
    """Measure what would be faster on the run that takes longest. Return None for a grid that is too short for it.

    `seconds` and `memory` are estimates for `runs`.
    """
    known = [(one, i) for i, one in enumerate(seconds) if one is not None]
    total = sum(one for one, _ in known)
    if total < MIN_GRID_SECONDS or call.cluster is not None:
        return None
    longest = max(known)[1]
    run, needed = runs[longest], memory[longest]
    if run.params.train.devices > 1:
        return Advice(run.number, [], ["runs with several devices"])
    found = Advice(run.number, [], [])
    with own_randomness():
        timer = StepTimer(run, call)
        base = timer.seconds
        for setting, other in settings_to_try(timer):
            keep_gain(found.faster, setting, shares_of(base, other))
        try_jobs(found, runs, run, needed, base, call)
        try_compile(found, run, total, call)
    return found._replace(faster=sorted(found.faster, key=lambda one: one.share))


def keep_gain(found: list[Faster], setting: str, shares: list[float]) -> None:
    """Add a setting that needs less time in every turn, and clearly less in half of them."""
    if median(shares) <= MAX_SHARE and max(shares) < 1:
        found.append(Faster(setting, median(shares), min(shares), max(shares)))


def shares_of(base: Callable[[], float], other: Callable[[], float]) -> list[float]:
    """Return the time of `other` over that of `base` just before and after it, in turns."""
    started, before, shares = time.perf_counter(), base(), list[float]()
    while len(shares) < MIN_TURNS or (
        len(shares) < MAX_TURNS and time.perf_counter() - started < TURNS_SECONDS
    ):
        changed, after = other(), base()
        shares.append(2 * changed / (before + after))
        before = after
    return shares


def settings_to_try(timer: StepTimer) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield settings of a run that may be faster, each with a function that returns the seconds of a step."""
    train = timer.train
    if train.precision == "32-true" and not any(train_problems(replace(train, precision="bf16-mixed"))):
        yield 'precision="bf16-mixed"', partial(timer.seconds, precision="bf16-mixed")
    alone = torch.get_num_threads()
    if train.threads is None and timer.device.type == "cpu":
        for n in sorted({1, alone // 2} - {0, alone}):
            yield f"threads={n}", partial(timer.seconds, threads=n)


def try_jobs(
    found: Advice, runs: Sequence[Run], run: Run, memory: Memory | None, base: Callable[[], float], call: Call
) -> None:
    """Measure runs side by side, if they fit into the memory."""
    n = min(torch.get_num_threads(), len(runs))
    if call.jobs > 1 or n < 2 or any(run.params.train.max_seconds for run in runs):
        return
    room = 0 if memory is None else int(USABLE * free_memory() / max(1.0, memory.total))
    n = min(n, room)
    if n < 2:
        found.not_measured.append("--jobs (two such runs may not fit into the memory)")
        return
    threads = run.params.train.threads or max(1, torch.get_num_threads() // n)
    try:
        with side_by_side(n, run, call, threads) as together:
            keep_gain(found.faster, f"--jobs={n}", shares_of(base, together))
    except (EOFError, OSError):
        found.not_measured.append("--jobs (its processes did not start)")


@contextmanager
def side_by_side(n: int, run: Run, call: Call, threads: int) -> Iterator[Callable[[], float]]:
    """Start `n` processes. Yield a function that returns the seconds of a step of one run while all of them train."""
    start_server_of_workers()  # it imports Lightning once for all
    workers = [start_process(time_when_asked, run, call, threads) for _ in range(n)]
    connections = [connection for _, connection in workers]

    def together() -> float:
        for connection in connections:
            connection.send(True)
        return sum(received(connection, MAX_START_SECONDS) for connection in connections) / n**2

    try:
        for connection in connections:
            received(connection, MAX_START_SECONDS)  # it is ready
        yield together
    finally:
        for process, _ in workers:
            end_process(process)


def start_process(target: Callable[..., None], *args: object) -> tuple[BaseProcess, Connection]:
    """Start a process of the server that also forks the workers of --jobs. Return it, and a connection to it."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def end_process(process: BaseProcess) -> None:
    """Terminate a process, and kill it if it does not end soon."""
    process.terminate()
    process.join(MAX_END_SECONDS)
    process.kill()
    process.join()


def exit_when_terminated() -> None:
    """Let this process end in order when it is terminated: it stops its compilers and removes its semaphores."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())


def received(connection: Connection, seconds: float) -> float:
    """Return the number that a process sends. Raise OSError if it does not come in time."""
    if not connection.poll(seconds):
        raise OSError("no answer")
    return connection.recv()


def time_when_asked(connection: Connection, run: Run, call: Call, threads: int) -> None:
    """Send the seconds of a step each time that something is received. Send 0 once at the start."""
    torch.set_num_threads(threads)
    timer = StepTimer(run, call)
    connection.send(0.0)
    with suppress(EOFError):
        while connection.recv():
            connection.send(timer.seconds())


def try_compile(found: Advice, run: Run, total: float, call: Call) -> None:
    """Measure compiled steps in a process of its own, if the grid is long enough to repay that."""
    train = run.params.train
    if train.compile or not compiles(train):
        return
    if total < MIN_SECONDS_TO_COMPILE:
        found.not_measured.append("compile=True (the grid is too short to repay compiling)")
        return
    process, connection = start_process(time_compiled, run, call)
    try:
        compiling = received(connection, MAX_COMPILE_SECONDS)
        shares = [received(connection, MAX_START_SECONDS) for _ in range(MIN_TURNS)]
    except (EOFError, OSError):
        found.not_measured.append(
            f"compile=True (it fails, or compiles for more than {MAX_COMPILE_SECONDS:.0f} s)"
        )
        return
    finally:
        end_process(process)
    keep_gain(found.faster, f"compile=True (after {compiling:.0f} s of compiling)", shares)


def compiles(train: TrainParams) -> bool:
    """Return True if a run with these params may be compiled on this machine."""
    try:
        return not any(train_problems(replace(train, compile=True)))
    except ValueError:
        return False


def time_compiled(connection: Connection, run: Run, call: Call) -> None:
    """Send the seconds of compiling, then the time of compiled steps over that of others, in turns.

    Send nothing if the model does not compile.
    """
    exit_when_terminated()
    eager, compiled = StepTimer(run, call), StepTimer(run, call)
    started = time.perf_counter()
    with compiled.autocast(compiled.train.precision):
        forward = compile_forward(compiled.lm, compiled.batch, compiled.train, call.cache)
    if forward is None:
        return
    compiled.lm._compiled_call_impl = forward
    compiled.step(compiled.train.precision)
    connection.send(time.perf_counter() - started)
    for share in shares_of(eager.seconds, compiled.seconds)[:MIN_TURNS]:
        connection.send(share)
