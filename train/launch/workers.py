"""Train several runs side by side: worker processes that live as long as the grid and share threads and memory."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, NamedTuple, Protocol

import psutil
import torch

from train.grid.expand import GridError
from train.grid.run import Call, Run
from train.launch.display import GridDisplay
from train.logs import DETAIL, log, say_at_once
from train.own_parts import register_all
from train.progress import Progress
from train.saving.outcome import Ending, Outcome
from train.saving.provenance import Version, code_of_this_process, take_code_of

SPARE = 1.2  # a run starts if this multiple of the largest memory use so far is free
Train = Callable[..., Outcome]  # called with a run, the options of the call, and report=


class Message(NamedTuple):
    """A worker's message about its run: progress, a log record, or the outcome, which ends the run."""

    progress: Progress | None = None
    memory: int = 0  # bytes that the run takes of the memory that runs share
    free: int = 0  # bytes of that memory that are free
    record: logging.LogRecord | None = None
    outcome: Outcome | None = None


class Sender(Protocol):
    """The end of a connection by which a worker sends messages."""

    def send(self, message: Message, /) -> object: ...


def n_jobs(jobs: str) -> int:
    """Return the number of runs to train side by side; "auto" is one per core. Raise GridError if it is not above 0."""
    if jobs == "auto":
        return torch.get_num_threads()
    if not (jobs.isascii() and jobs.isdigit() and int(jobs) > 0):
        raise GridError([f"--jobs={jobs} must be a number above 0, or auto"])
    return int(jobs)


# ---- in the process of a worker


def work(connection: Connection, train: Train, call: Call, threads: int, code: Version | None) -> None:
    """Train the runs received from `connection`, until None is received."""
    os.setsid()  # Ctrl-C goes to the first process alone, which passes it on
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_first_process, daemon=True).start()
    worker_log = set_up_worker(connection, threads, code)
    register_all(call.parts)
    for run in iter(connection.recv, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        outcome = train(run, call, report=worker_log.report)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        worker_log.send(Message(outcome=outcome))


def set_up_worker(connection: Sender, threads: int, code: Version | None) -> "WorkerLog":
    """Set up a process that trains for another one. Return the handler that reports by `connection.send`."""
    torch.set_num_threads(threads)
    if code is not None:
        take_code_of(code)
    worker_log = WorkerLog(connection)
    log.setLevel(logging.INFO)
    log.propagate, log.handlers = False, [worker_log]
    return worker_log


def end_with_first_process() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class WorkerLog(logging.Handler):
    """Logging handler that sends a worker's log records and progress to the first process."""

    def __init__(self, connection: Sender) -> None:
        super().__init__()
        self.connection = connection
        self.sending = threading.Lock()

    def send(self, message: Message) -> None:
        with self.sending:
            self.connection.send(message)

    def emit(self, record: logging.LogRecord) -> None:
        plain = copy(record)
        plain.msg, plain.args, plain.exc_info = record.getMessage(), None, None
        self.send(Message(record=plain))

    def report(self, progress: Progress) -> None:
        self.send(Message(progress, *memory_of(progress.device)))


def memory_of(device: torch.device) -> tuple[int, int]:
    """Return the bytes that this process uses, and those that are free."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.mem_get_info(device)[0]
    return psutil.Process().memory_info().rss, psutil.virtual_memory().available


# ---- in the first process


class Worker:
    """A process that trains one run after another."""

    def __init__(self, train: Train, call: Call, threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        code = code_of_this_process() if call.save else None
        self.process = context.Process(target=work, args=(theirs, train, call, threads, code))
        self.process.start()
        theirs.close()
        self.number: int | None = None  # of its run
        self.settled = True  # its run has started training and allocated its memory
        self.free = 0  # bytes of memory that were free at its last report
        self.to_stop = False
        self.began = 0.0

    def start(self, number: int, run: Run) -> None:
        self.number, self.settled, self.began = number, False, time.perf_counter()
        self.connection.send(run)

    def settle(self, free: int) -> None:
        self.settled, self.free = True, free
        if self.to_stop:
            self.stop()

    def stop(self) -> None:
        """End the run after its current step. A run that has not started training ends after its first step."""
        self.to_stop = not self.settled
        if self.settled and self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        """End the process: at once if it is training, else when it reads the message."""
        if self.number is not None:
            self.process.terminate()
        with suppress(OSError):
            self.connection.send(None)


class ActiveRun(Protocol):
    """The process that trains a run, as `SideBySide` sees it: on this machine or in a cluster."""

    number: int | None  # of its run
    settled: bool  # its run has started training and allocated its memory

    def settle(self, free: int) -> None: ...


class SideBySide:
    """Trains runs by number, `call.jobs` at a time. `announced` is the log line at the start of each."""

    def __init__(
        self,
        train: Train,
        runs: dict[int, Run],
        announced: Mapping[int, str],
        display: GridDisplay,
        call: Call,
    ) -> None:
        self.train, self.runs, self.announced, self.display, self.call = train, runs, announced, display, call
        self.waiting = deque(runs)
        self.workers: list[Any] = []  # Worker, or RemoteRun on a cluster
        self.outcomes: dict[int, Outcome] = {}
        self.elsewhere: list[int] = []  # runs that another call trains
        self.largest = 0  # bytes that the largest run took
        self.is_stopped = self.failed_fast = self.said_to_wait = False

    def run(self) -> dict[int, Outcome]:
        """Train all runs and return {number: outcome}. Some are missing after Ctrl-C, or with --fail-fast."""
        before = signal.signal(signal.SIGINT, self.interrupt)
        try:
            with self.display:
                self.run_waiting()
                if not self.is_stopped:
                    # The other calls may have ended by now.
                    self.waiting.extend(self.elsewhere)
                    self.run_waiting()
        except KeyboardInterrupt:  # the second Ctrl-C
            self.outcomes |= {worker.number: Outcome(Ending.INTERRUPTED) for worker in self.busy}
        finally:
            signal.signal(signal.SIGINT, before)
            for worker in self.workers:
                worker.end()
        return self.outcomes

    def run_waiting(self) -> None:
        while self.waiting or self.busy:
            self.start_runs()
            self.listen()

    @property
    def busy(self) -> list[Any]:
        return [worker for worker in self.workers if worker.number is not None]

    def start_runs(self) -> None:
        """Start waiting runs one by one, each when the last one has its memory and there is room for one more."""
        while self.waiting and len(self.busy) < self.call.jobs and self.is_room():
            idle = next((worker for worker in self.workers if worker.number is None), None)
            if idle is None:
                call = self.call._replace(gpu_id=gpu_for(len(self.workers), self.call.gpu_id))
                idle = Worker(self.train, call, share_of_threads(call.jobs))
                self.workers.append(idle)
            number = self.waiting.popleft()
            log.info(self.announced[number], extra=DETAIL)
            self.display.begins(number)
            idle.start(number, self.runs[number])

    def is_room(self) -> bool:
        if not all(worker.settled for worker in self.busy):
            return False
        room = all(worker.free >= SPARE * self.largest for worker in self.busy)
        if not room and not self.said_to_wait:
            log.info(f"memory is short: the next run waits until one of {len(self.busy)} has ended")
            self.said_to_wait = True
        return room

    def listen(self) -> None:
        """Handle messages of workers, waiting for a second at most."""
        by_connection = {worker.connection: worker for worker in self.busy}
        for connection in wait(list(by_connection), timeout=1.0):
            worker = by_connection[connection]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                message = Message(outcome=self.death_of(worker))
            self.handle(worker, message)

    def handle(self, worker: ActiveRun, message: Message) -> None:
        number = worker.number
        assert number is not None
        if message.record is not None:
            if not message.record.msg.startswith((f"run {number} ", f"run {number}: ")):
                message.record.msg = f"run {number}: {message.record.msg}"
            log.handle(message.record)
            return
        if message.outcome is None:
            self.largest = max(self.largest, message.memory)
            if message.progress is not None:
                self.display.goes_on(number, message.progress)
            worker.settle(message.free)
            return
        worker.number, worker.settled = None, True
        self.end(number, message.outcome)

    def end(self, number: int, outcome: Outcome) -> None:
        """Store the outcome of a run. With --fail-fast, the first failure stops all other runs."""
        if self.failed_fast:  # the failure interrupted it, not Ctrl-C
            outcome = replace(outcome, is_last=False)
            if outcome.ending is Ending.INTERRUPTED:
                outcome = replace(outcome, ending=Ending.CANCELLED, why="another run failed")
        self.outcomes[number] = outcome
        self.display.ends(number, outcome)
        if outcome.ending is Ending.ELSEWHERE:
            self.elsewhere.append(number)
        if self.call.fail_fast and outcome.failed:
            self.failed_fast = True
            self.stop()

    def death_of(self, worker: Worker) -> Outcome:
        """Return the outcome of a run whose process died, killed or out of memory."""
        worker.process.join()
        self.workers.remove(worker)
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        log.error(f"run {worker.number} failed: its process ended ({how})")
        seconds = time.perf_counter() - worker.began
        return Outcome(Ending.FAILED, f"its process ended ({how})", {"wall_seconds": seconds})

    def stop(self) -> None:
        """Start no more runs. Active ones end after their current step."""
        self.is_stopped = True
        self.waiting.clear()
        for worker in self.busy:
            worker.stop()

    def interrupt(self, signal_number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say_at_once("interrupted: all runs stop after this step; press Ctrl-C once more to leave at once")
        self.stop()


def gpu_for(n_workers: int, gpu_id: int | None) -> int | None:
    """Return the GPU of the next worker. Workers are spread over several GPUs, unless --gpu-id chooses one."""
    n_gpus = torch.cuda.device_count()
    return n_workers % n_gpus if gpu_id is None and n_gpus > 1 else gpu_id


def share_of_threads(jobs: int) -> int:
    """Return the CPU threads of one of `jobs` runs, if `threads` is not set."""
    return max(1, torch.get_num_threads() // jobs)


def say_threads(threads: set[int | None], jobs: int) -> None:
    """Log how training side by side affects results and speed. `threads` are the values of that field."""
    alone, share = torch.get_num_threads(), share_of_threads(jobs)
    if None in threads and share != alone:
        log.info(
            f"--jobs={jobs}: a run has {share} of {alone} CPU threads. The number of threads changes the last digits "
            f"of its results; threads={share} makes them equal with and without --jobs"
        )
    most = max((n for n in threads if n is not None), default=0)
    if most * jobs > alone:
        log.info(
            f"--jobs={jobs} with threads={most} needs {most * jobs} of {alone} CPU threads: runs will be slow"
        )
