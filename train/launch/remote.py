"""Runs in jobs of a cluster: what they share, how they begin on a node, and how the first process follows them."""

import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from data import corpora
from data.syntheticdata import tasks
from train.grid.run import Call, Run
from train.launch.workers import Message, Sender, SideBySide, Train, WorkerLog, set_up_worker
from train.logs import DETAIL, log
from train.own_parts import register_all
from train.saving.provenance import Version, code_of_this_process

SLURM = "--slurm="  # begins `call.cluster` where Slurm schedules the runs; options of sbatch follow


def scheduler_option(call: Call) -> str | None:
    """Return the option that gives the runs of a call to a cluster: "--ray" or "--slurm". None: they train here."""
    if call.cluster is None:
        return None
    return "--slurm" if call.cluster.startswith(SLURM) else "--ray"


class SharedByRuns(NamedTuple):
    """The part of a grid that all its runs on a cluster share."""

    train: Train
    call: Call
    here: Path  # a folder that only nodes with the same disk see
    code: Version | None  # the code that the runs train with
    texts: dict[str, str]  # fingerprints of texts by name
    environment: dict[str, str]


def shared_by(runs: Iterable[Run], train: Train, call: Call, here: Path) -> SharedByRuns:
    """Return what runs on a cluster share. Their environment has the variables for wandb."""
    data = [run.params.data for run in runs]
    names = {name for one in data for name in one.shares or [one.label]} - tasks.keys()
    texts = {name: corpora.corpus_fingerprint(name) for name in names}
    wandb = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    code = code_of_this_process() if call.save else None
    return SharedByRuns(train, call, here, code, texts, wandb)


def begin_on_node(run: Run, shared: SharedByRuns, sender: Sender, cpus: int) -> WorkerLog:
    """Set up the process of a node that trains a run, and send that the run has begun. Return its handler of messages."""
    os.environ.update(shared.environment)
    worker_log = set_up_worker(sender, run.params.train.threads or cpus, shared.code)
    corpora.fingerprints.set(shared.texts)
    register_all(shared.call.parts)
    worker_log.send(Message())
    return worker_log


class RemoteRun(SimpleNamespace):
    """A run that has been handed to a cluster, in the place of a `Worker`. The cluster watches memory."""

    number: Any  # None once the run has ended
    settled: bool
    began: bool

    def settle(self, free: int) -> None: ...

    def end(self) -> None: ...


class OnNodes(SideBySide):
    """Trains runs by number on the nodes of a cluster."""

    to_stop = False
    again = "was lost with its process or node, and trains again"  # said of a run that begins once more

    def stop(self) -> None:
        # Clients of a cluster must not be called while a signal interrupts them, so `listen` does the rest.
        self.is_stopped = self.to_stop = True

    def read(self, worker: RemoteRun, message: Message) -> None:
        """Handle a message of a run. The first one of each attempt is empty."""
        number = worker.number
        begins = message == Message()
        if begins and worker.began:
            log.warning(f"run {number} {self.again}")
            self.display.ends(number)
        if begins:
            log.info(self.announced[number], extra=DETAIL)
        if begins or not worker.began:
            self.display.begins(number)
            worker.began = True
        self.handle(worker, message)
