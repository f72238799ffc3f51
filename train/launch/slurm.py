"""Train a grid on a Slurm cluster, as an array of jobs that continue after a time limit. Only this file imports submitit."""

import math
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, cloudpickle_dump, pickle_load

from common.repository import REPOSITORY
from data.corpora import data_folder
from train.grid.expand import GridError
from train.grid.run import Run
from train.launch.parcels import resume_dead_attempt
from train.launch.remote import SLURM, OnNodes, RemoteRun, SharedByRuns, begin_on_node, shared_by
from train.launch.workers import Message
from train.logs import log
from train.progress import Progress
from train.saving.outcome import Ending, Outcome
from train.saving.timestamps import FORMAT
from train.saving.weights import one_line
from train.train_params import TrainParams

NOTICE_SECONDS = 90  # before its time limit, Slurm tells a job to stop
GRACE_SECONDS = 60.0  # of these, to end the step and to save; then the job is queued again in any case
PAUSE_SECONDS = 0.5  # seconds between reads of the messages of runs
STATE_SECONDS = 10.0  # between questions to Slurm about the states of jobs
MAX_ARRAY = 1000  # jobs of an array; Slurm's own default limit
AT_ONCE = "jobs"  # the one option in --slurm that is not one of sbatch
STOP, SHARED, CODE, MESSAGES, ATTEMPTS = "stop", "shared.pkl", "code", "messages", "attempts"
# Options of sbatch that whatif and submitit set themselves, or that change what sbatch does.
OURS = {"array", "chdir", "error", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue"}
OURS |= {"parsable", "signal", "test-only", "wait", "wrap"}
GONE = "unknown to Slurm"
ENDED = {
    GONE,
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}

# ---- options


def read_slurm_options(text: str) -> dict[str, str]:
    """Return the options of sbatch in a text such as "partition=gpu,time=60": {"partition": "gpu", "time": "60"}.

    A value may contain commas, as in "exclude=node1,node2". Raise GridError for what is no option, or is not the user's.
    """
    options: dict[str, str] = {}
    for piece in text.split(",") if text else []:
        name, is_option, value = piece.partition("=")
        name = name.strip().replace("_", "-")
        if is_option and re.fullmatch("[a-z][a-z0-9-]+", name) and value:
            options[name] = value.strip()
        elif not is_option and options:
            last = list(options)[-1]
            options[last] = f"{options[last]},{piece}"
        else:
            example = (
                "long options of sbatch with commas between them, as in --slurm=partition=gpu,time=60,gpus=1"
            )
            raise GridError([f"--slurm={text}: {piece!r} is no option and its value; it takes {example}"])
    if taken := sorted(OURS & options.keys()):
        raise GridError([f"--slurm={text}: whatif sets {taken[0]} itself: each run is a job of one process"])
    if AT_ONCE in options and not re.fullmatch("[1-9][0-9]*", options[AT_ONCE]):
        raise GridError([f"--slurm={text}: {AT_ONCE} is the number of jobs at a time, and must be above 0"])
    return options


def job_options(train: TrainParams, options: dict[str, str]) -> dict[str, str]:
    """Return the options of sbatch for the job of a run. Raise ValueError if it asks for a part of a GPU.

    `cpus`, `threads` and `gpus` of the run hold where `options` do not say otherwise.
    """
    if train.gpus and train.gpus < 1:
        raise ValueError(
            f"gpus={train.gpus:g} is a share of a GPU, but Slurm gives a job whole ones; use 1.0"
        )
    has_cpus = any(name.startswith("cpus-per-") for name in options)
    own = {
        **({} if has_cpus else {"cpus-per-task": str(max(math.ceil(train.cpus), train.threads or 1))}),
        **({"gpus": "1"} if train.gpus else {}),
    }
    return own | {name: value for name, value in options.items() if name != AT_ONCE}


def refuse_by_sbatch(options: dict[str, str]) -> None:
    """Raise GridError if sbatch would not accept a job with these options. Nothing is submitted."""
    flags = [f"--{name}" if value == "yes" else f"--{name}={value}" for name, value in options.items()]
    command = ["sbatch", "--test-only", *flags, "--wrap=true"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GridError([f"--slurm cannot be used: {one_line(error)}"]) from error
    if tried.returncode:
        reason = re.sub(r"^(sbatch: )?(error: )?", "", tried.stderr.strip().partition("\n")[0])
        raise GridError([f"--slurm: sbatch {' '.join(flags)} is refused: {reason}"])


# ---- in the process of a job


class FileOfMessages(NamedTuple):
    """A file on a shared disk to which the job of a run appends messages, and from which the first process reads them."""

    path: Path

    def send(self, message: Message) -> None:
        with suppress(OSError), self.path.open("ab") as file:  # a full disk must not end the run
            file.write(pickle.dumps(message))

    def read(self, place: int) -> tuple[list[Message], int]:
        """Return the messages after byte `place`, and the byte at which they end. An incomplete one is left for later."""
        messages: list[Message] = []
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(place)
            with suppress(EOFError, pickle.UnpicklingError):
                while True:
                    messages.append(pickle.load(file))  # noqa: S301 -- our own job has written it, as only we may
                    place = file.tell()
        return messages, place


class JobSignals:
    """Ends the run of this process after its current step when Slurm is about to end its job, or when the call stops.

    `cause` is the signal that Slurm has sent: SIGUSR2 before the time limit, SIGTERM before it preempts or cancels the job.
    """

    def __init__(self, stop: Path) -> None:
        self.cause: int | None = None
        self.steps = 0  # that the run has reported
        self.stop = stop

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Handle signals inside the block. If the run takes longer to stop than Slurm waits, the job is queued again at once."""
        # Lightning would end a run with an error at SIGTERM, and queue the job again by its own checkpoint.
        lightning = "lightning.pytorch.trainer.connectors.signal_connector._SignalConnector"
        os.environ.pop("SLURM_NTASKS", None)
        hurry = threading.Timer(GRACE_SECONDS, requeue_job)

        def heed(number: int, frame: object) -> None:
            if number == signal.SIGUSR2 and self.cause != number:
                hurry.start()
            self.cause = number
            signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, heed)
        threading.Thread(target=self.wait_for_call, daemon=True).start()
        with patch(f"{lightning}.register_signal_handlers", lambda self: None):
            try:
                yield
            finally:
                hurry.cancel()
                for number in (signal.SIGINT, signal.SIGUSR2):  # what has ended is not to be interrupted
                    signal.signal(number, signal.SIG_IGN)

    def wait_for_call(self) -> None:
        while not self.stop.exists():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)


def train_in_job(folder: Path, run: Run) -> Outcome:
    """Train a run in the job of this process, and return its outcome.

    If Slurm ends the job before the run has ended, nothing is returned: the next start of the job continues the run.
    """
    shared: SharedByRuns = pickle_load(folder / SHARED)
    signals = JobSignals(folder / STOP)
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", max(1, int(run.params.train.cpus))))
    try:
        with signals.heeded():
            worker_log = begin_on_node(run, shared, FileOfMessages(folder / MESSAGES / str(run.number)), cpus)

            def report(progress: Progress) -> None:
                signals.steps = progress.step
                worker_log.report(progress)

            attempt = resume_dead_attempt(run, shared.call, folder / ATTEMPTS)
            outcome = shared.train(attempt, shared.call, report=report)
    except KeyboardInterrupt:
        outcome = Outcome(Ending.INTERRUPTED)
    if signals.cause is None or signals.stop.exists():
        return outcome
    if outcome.ending is not Ending.INTERRUPTED:
        return replace(outcome, is_last=False)  # Slurm has interrupted it, not Ctrl-C
    if signals.cause == signal.SIGUSR2:
        try:
            queue_again(run, signals.steps, folder / ATTEMPTS / f"{run.number}.steps")
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            return Outcome(
                Ending.FAILED, f"its job has reached the time limit: {one_line(error)}", outcome.values
            )
    while True:  # until Slurm ends this process
        signal.pause()


def queue_again(run: Run, steps: int, mark: Path) -> None:
    """Queue the job of a run again at its time limit. Raise RuntimeError if the run has not advanced since the last time."""
    if steps <= (int(mark.read_text()) if mark.exists() else 0):
        raise RuntimeError("it leaves no time to train; give more by time= in --slurm")
    mark.write_text(str(steps))
    log.info(f"run {run.number}: step {steps:,} at the time limit of its job, which is queued again")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which Slurm now ends this process
    requeue_job()


def requeue_job() -> None:
    """Queue the job of this process again."""
    submitit.JobEnvironment()._requeue(0)


# ---- in the first process


def copy_code(folder: Path) -> None:
    """Copy the code of this project, so that an edit does not change runs that still wait for their nodes."""
    folder.mkdir()
    for path in REPOSITORY.iterdir():
        if path.suffix == ".py":
            shutil.copy(path, folder)
        elif any(path.glob("*.py")):
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))


def job_states(jobs: list[Any]) -> dict[str, tuple[str, str]] | None:
    """Return {job id: (state, reason to wait)} of the jobs that Slurm still knows. None: it does not answer."""
    ids = ",".join(sorted({job.job_id.partition("_")[0] for job in jobs}))
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={ids}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if told.returncode and "Invalid job id" not in told.stderr:
        return None
    fields = [line.split("|", 2) for line in told.stdout.splitlines()]
    return {job: (state, reason) for job, state, reason in fields}


class OnSlurm(OnNodes):
    """Trains runs by number as jobs of Slurm, with the options of sbatch in `call.cluster`."""

    again = "was stopped by Slurm, and goes on in a new start of its job"

    def run(self) -> dict[int, Outcome]:
        assert self.call.cluster is not None
        self.options = read_slurm_options(self.call.cluster.removeprefix(SLURM))
        groups = self.groups()
        for options in groups:
            refuse_by_sbatch(dict(options))
        self.asked_at, self.waits_for = time.monotonic(), set[str]()
        self.folder = self.new_folder()
        shared = shared_by(self.runs.values(), self.train, self.call, self.folder)
        folder = data_folder()  # it may be relative to this process's working directory
        shared.environment["WHATIF_DATA"] = "" if folder is None else str(folder.resolve())
        cloudpickle_dump(shared, self.folder / SHARED)
        outcomes = super().run()
        if self.busy or any(outcome.failed for outcome in outcomes.values()):
            log.info(f"the logs of the jobs are in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        return outcomes

    def new_folder(self) -> Path:
        """Return a new folder for what this call and its jobs exchange, with a copy of the code."""
        base = self.call.out / "logs" / "slurm"
        base.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=base, prefix=f"{datetime.now():{FORMAT}}-"))
        for name in (MESSAGES, ATTEMPTS):
            (folder / name).mkdir()
        copy_code(folder / CODE)
        return folder

    def groups(self) -> dict[tuple[tuple[str, str], ...], list[int]]:
        """Return the numbers of waiting runs by the options of their jobs. Raise GridError for a run with invalid ones."""
        found: dict[tuple[tuple[str, str], ...], list[int]] = {}
        for number in self.waiting:
            try:
                options = job_options(self.runs[number].params.train, self.options)
            except ValueError as error:
                raise GridError([f"run {number}: {error}"]) from error
            found.setdefault(tuple(options.items()), []).append(number)
        return found

    def start_runs(self) -> None:
        """Submit all waiting runs, those with the same options as one array."""
        for options, numbers in self.groups().items():
            for first in range(0, len(numbers), MAX_ARRAY):
                self.submit(dict(options), numbers[first : first + MAX_ARRAY])
        self.waiting.clear()

    def submit(self, options: dict[str, str], numbers: list[int]) -> None:
        executor = self.executor(options)
        try:
            runs = [self.runs[number] for number in numbers]
            jobs = executor.map_array(partial(train_in_job, self.folder), runs)
        except (FailedJobError, FailedSubmissionError) as error:
            raise GridError([f"--slurm: the jobs cannot be submitted: {one_line(error)}"]) from error
        log.info(f"--slurm: submitted job {jobs[0].job_id.partition('_')[0]}, {len(jobs)} runs")
        for number, job in zip(numbers, jobs, strict=True):
            mail = FileOfMessages(self.folder / MESSAGES / str(number))
            seen = mail.path.stat().st_size if mail.path.exists() else 0  # by an earlier job of the same run
            worker = JobOfRun(number=number, job=job, mail=mail, seen=seen, began=False, has_ended=False)
            self.workers.append(worker)

    def executor(self, options: dict[str, str]) -> Any:
        """Return the executor of submitit that submits jobs with these options of sbatch."""
        executor = submitit.SlurmExecutor(self.folder)
        given = {name: value == "yes" or value for name, value in options.items()}
        executor.update_parameters(
            job_name=f"whatif-{next(iter(self.runs.values())).config}",
            time=None,  # submitit's own would be five minutes
            wckey=None,
            array_parallelism=int(self.options.get(AT_ONCE, MAX_ARRAY)),
            signal_delay_s=NOTICE_SECONDS,
            stderr_to_stdout=True,
            # Python looks for modules in the working directory. srun does not take over cpus-per-task by itself.
            setup=[
                f"cd {shlex.quote(str(self.folder / CODE))}",
                'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
            ],
            additional_parameters={"ntasks": 1, "requeue": True, **given},
        )
        return executor

    def listen(self) -> None:
        if self.to_stop:
            self.to_stop = False
            self.stop_jobs()
        time.sleep(PAUSE_SECONDS)
        names = {entry.name for entry in os.scandir(self.folder)}
        for worker in self.busy:
            messages, worker.seen = worker.mail.read(worker.seen)
            for message in messages:
                self.read(worker, message)
            if worker.job.paths.result_pickle.name in names:
                self.read(worker, Message(outcome=self.result(worker)))
        if self.busy and time.monotonic() > self.asked_at + STATE_SECONDS:
            self.asked_at = time.monotonic()
            self.ask_slurm()

    def stop_jobs(self) -> None:
        """Tell runs that train to end after their step, and cancel those that wait for a node."""
        (self.folder / STOP).touch()
        for worker in self.busy:
            if not worker.began:
                worker.end()
                worker.number = None

    def result(self, worker: RemoteRun) -> Outcome:
        """Return the outcome that the job of a run has left."""
        error = worker.job.exception()
        if error is None:
            return worker.job.result()
        log.error(f"run {worker.number} failed with {self.runs[worker.number].name}:\n{error}")
        return Outcome(Ending.FAILED, "its job failed; the log has the traceback")

    def ask_slurm(self) -> None:
        """End runs whose jobs have ended without a result, and say what the others wait for."""
        states = job_states([worker.job for worker in self.busy])
        if states is None:
            return
        waits_for = set[str]()
        for worker in self.busy:
            state, reason = states.get(worker.job.job_id, (GONE, ""))
            if state == "PENDING" and reason != "None":
                waits_for.add(reason)
            has_ended = state in ENDED
            if has_ended and worker.has_ended:  # said twice: a result may arrive after the end of its job
                self.read(worker, Message(outcome=self.death(worker, state)))
            worker.has_ended = has_ended
        if new := sorted(waits_for - self.waits_for):
            log.info(f"jobs wait in the queue: {', '.join(new)}")
        self.waits_for |= waits_for

    def death(self, worker: RemoteRun, state: str) -> Outcome:
        """Return the outcome of a run whose job has ended without a result."""
        where = worker.job.paths.stdout
        hint = (
            f"see {where}"
            if where.exists()
            else f"do the nodes see {self.call.out}? It must be on a shared disk"
        )
        log.error(f"run {worker.number} failed: its job {worker.job.job_id} ended ({state}); {hint}")
        return Outcome(Ending.FAILED, f"its job ended ({state})")


class JobOfRun(RemoteRun):
    """A run that has been submitted as a job."""

    def end(self) -> None:
        """Cancel the job if it has not ended."""
        if self.number is not None:
            self.job.cancel(check=False)
