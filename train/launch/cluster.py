"""Train a grid on a Ray cluster, which schedules runs and repeats them if a node dies. Only this file imports ray."""

import os
import socket
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "(?s).*")  # outcomes are logged here, in a line each
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # each takes 40 s if another service answers

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

from common.repository import REPOSITORY
from train.grid.expand import GridError
from train.grid.run import Run
from train.launch.parcels import (
    Upload,
    download_results,
    in_a_folder,
    outputs,
    pack_folders,
    resume_dead_attempt,
)
from train.launch.remote import OnNodes, RemoteRun, SharedByRuns, begin_on_node, shared_by
from train.launch.workers import Message
from train.logs import log
from train.saving.earlier_runs import claimed, earlier_outcome
from train.saving.outcome import Ending, Outcome, failure
from train.saving.weights import one_line
from train.train_params import TrainParams

LOCAL = "local"  # in place of an address: start a cluster on this machine
ATTEMPTS = 3  # to train a run whose node or process dies
PAUSE = 0.2  # seconds between reads of the mailbox
REACH_SECONDS = 10.0


def connect(address: str) -> None:
    """Connect to the cluster at an address. Raise GridError if there is none."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    options["runtime_env"] = {"working_dir": str(REPOSITORY)}
    if address == LOCAL:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": 10**8}
    try:
        if address not in (LOCAL, "auto"):
            host, _, port = address.rpartition(":")
            # Ray itself would wait much longer.
            socket.create_connection((host, int(port)), REACH_SECONDS).close()
        ray.init(address, **options)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        advice = "it must be host:port of a cluster's head, as in --ray=10.0.0.1:6379, or auto"
        raise GridError([f"--ray={address} cannot be used ({one_line(error)}); {advice}"]) from error


def cpus_and_gpus(train: TrainParams, has_gpus: bool) -> tuple[float, float]:
    """Return the numbers of CPUs and GPUs that a run needs."""
    return train.cpus, float(has_gpus) if train.gpus is None else train.gpus


def refuse_too_large(runs: Iterable[Run], nodes: list[dict[str, float]], has_gpus: bool) -> None:
    """Raise GridError for a run that would wait for ever because no node has the CPUs and GPUs it needs."""
    for run in runs:
        cpus, gpus = cpus_and_gpus(run.params.train, has_gpus)
        if not any(cpus <= node.get("CPU", 0) and gpus <= node.get("GPU", 0) for node in nodes):
            asks = f"run {run.number} ({run.name}) asks for cpus={cpus:g} with gpus={gpus:g}"
            raise GridError([f"{asks}, which no node of the cluster has"])


def beacon(out: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder in `out`. Nodes that see it share the disk with the first process."""
    return tempfile.TemporaryDirectory(dir=out, prefix=".here-")


def on_worker(
    run: Run, parcels: list[object], shared: SharedByRuns, mailbox: Any
) -> tuple[Outcome, bytes | None]:
    """Train a run on a node. Return its outcome and, where the first process has another disk, its files as bytes."""
    train, call, here = shared.train, shared.call, shared.here
    send = mailbox.put.remote  # without a wait for the reply
    mail: Any = SimpleNamespace(send=lambda message: send(run.number, tuple(message)))
    worker_log = begin_on_node(run, shared, mail, max(1, int(run.params.train.cpus)))
    try:
        if here.exists():
            return train(resume_dead_attempt(run, call, here), call, report=worker_log.report), None
        with in_a_folder(run, call, (ray.get(parcel) for parcel in parcels)) as (moved, elsewhere):
            outcome = train(moved, elsewhere, report=worker_log.report)
            return outcome, pack_folders(elsewhere.out, outputs(elsewhere.out, run.identity))
    finally:
        ray.get(mailbox.is_empty.remote())  # returns when all messages have arrived


def new_mailbox() -> Any:
    """Return an actor on the node of this process, to which runs send their messages."""

    class Mailbox:  # defined here, so that its process need not import this module
        def __init__(self) -> None:
            self.messages: list[object] = []

        def put(self, *message: object) -> None:
            self.messages.append(message)

        def take(self) -> list[object]:
            taken, self.messages = self.messages, []
            return taken

        def is_empty(self) -> bool:
            return not self.messages

    here = OnNode(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()


class OnCluster(OnNodes):
    """Trains runs by number on the cluster at `call.cluster`."""

    def run(self) -> dict[int, Outcome]:
        self.claims: dict[int, ExitStack] = {}
        assert self.call.cluster is not None
        connect(self.call.cluster)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.has_gpus = any("GPU" in node for node in nodes)
            refuse_too_large(self.runs.values(), nodes, self.has_gpus)
            self.call.out.mkdir(parents=True, exist_ok=True)
            with beacon(self.call.out) as here:
                self.mailbox = new_mailbox()
                self.shared = ray.put(shared_by(self.runs.values(), self.train, self.call, Path(here)))
                return super().run()
        finally:
            ray.shutdown()

    def start_runs(self) -> None:
        """Hand all runs to Ray, which finds a node for each."""
        upload = Upload(self.call.out, ray.put)
        for number in self.waiting:
            # Held until its result is here, as any machine may train it for this call.
            self.claims[number] = ExitStack()
            claim = claimed(self.runs[number], self.call.out, self.call.resume)
            run = self.claims[number].enter_context(claim)
            if not run.first_step.trains:
                self.end(number, earlier_outcome(run.first_step))
                continue
            self.runs[number] = run
            cpus, gpus = cpus_and_gpus(run.params.train, self.has_gpus)
            task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=ATTEMPTS - 1)(on_worker)
            parcels = [] if self.call.cluster == LOCAL else upload(run)
            output = task.remote(run, parcels, self.shared, self.mailbox)
            self.workers.append(RemoteRun(number=number, output=output, began=False))
        self.waiting.clear()

    def end(self, number: int, outcome: Outcome) -> None:
        super().end(number, outcome)
        self.claims.pop(number).close()

    def listen(self) -> None:
        if self.to_stop:
            self.to_stop = False
            for worker in self.busy:
                ray.cancel(worker.output)  # interrupts it, as Ctrl-C does
        by_output = {worker.output: worker for worker in self.busy}
        ended, _ = ray.wait(list(by_output), timeout=PAUSE)
        by_number = {worker.number: worker for worker in self.busy}
        for number, message in ray.get(self.mailbox.take.remote()):
            if number in by_number:  # otherwise it comes from an attempt that was lost
                self.read(by_number[number], Message(*message))
        for output in ended:
            self.read(by_output[output], Message(outcome=self.result(by_output[output])))

    def result(self, worker: RemoteRun) -> Outcome:
        """Copy the folder of a run here, and return the outcome of the run."""
        run = self.runs[worker.number]
        try:
            outcome, parcel = ray.get(worker.output)
            return outcome if parcel is None else download_results(parcel, run, outcome, self.call.out)
        except TaskCancelledError:
            return Outcome(Ending.INTERRUPTED)
        except (RayError, OSError, ValueError) as error:
            log.error(f"run {worker.number} failed with {run.name}:\n{error}")
            return failure(error.cause if isinstance(error, RayTaskError) else error)
