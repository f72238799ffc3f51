"""Train a grid's runs, one after another or side by side. A failing run does not stop the others."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from train.grid.expand import GridError
from train.grid.params import Params
from train.launch.plan import Plan
from train.launch.tables import settings_of
from train.launch.workers import Board, SideBySide, n_jobs, say_threads
from train.logs import log, shortened
from train.processes import give_way, rank
from train.run import LATE, Call, of_variant, train_run
from train.saving.earlier_runs import ELSEWHERE, Step, claimed, clear_stillborn, earlier_summary
from train.saving.outcome import INTERRUPTED
from train.saving.run_folder import output_root
from train.saving.weights import one_line


def make_call(args: argparse.Namespace, wandb_entity: str | None) -> Call:
    """Return the options of the command line that hold for all runs. Raise GridError for invalid ones."""
    save = args.save or args.resume is not None
    if args.ray is not None and find_spec("ray") is None:
        raise GridError(["--ray needs Ray: pip install -r requirements-ray.txt"])
    return Call(
        out=output_root(args.out),
        save=save,
        resume=args.resume,
        fail_fast=args.fail_fast,
        jobs=n_jobs(args.jobs),
        wandb=not args.no_wandb and rank() == 0,
        wandb_entity=wandb_entity,
        wandb_group=f"{args.config}--{datetime.now():%Y-%m-%d--%H-%M-%S}",
        gpu_id=args.gpu_id,
        command=sys.argv,
        ray=args.ray,
    )


def run_plans(plans: list[Plan], make_namer: Callable[..., Any], call: Call) -> list[dict[str, Any]]:
    """Train every run and return the summaries.

    A failure is logged at once. The other runs continue, unless runs have several processes or --fail-fast is set.
    """
    names = [", ".join(f"{key} {value}" for key, value in own.items()) for own in settings_of(plans)]
    jobs = [
        Job(
            number,
            name,
            plan.params,
            plan.variant,
            plan.identity,
            plan.step,
            make_namer,
            plan.measured.folders,
        )
        for number, (name, plan) in enumerate(zip(names, plans, strict=True), 1)
    ]
    said = {
        job.number: f"run {job.number} of {len(jobs)}: {job.name}, {plan.n_params:,} parameters, {plan.n_steps} steps"
        for job, plan in zip(jobs, plans, strict=True)
    }
    if call.save and rank() == 0:
        clear_stillborn(call.out)
    if call.jobs > 1 or call.ray is not None:
        return run_side_by_side(jobs, said, Board([plan.n_steps for plan in plans]), call)
    return run_in_turn(jobs, said, call)


class Job(NamedTuple):
    """A run to be trained."""

    number: int  # from 1
    name: str  # what tells it apart
    params: Params
    variant: str | None
    identity: str
    step: Step
    make_namer: Callable[..., Any]
    data_folders: tuple[Path, ...] = ()  # of the cache


def run_in_turn(jobs: list[Job], said: dict[int, str], call: Call) -> list[dict[str, Any]]:
    """Train runs one after another and return their summaries. Runs claimed by other calls are tried again last."""
    summaries: dict[int, dict[str, Any]] = {}

    def in_turn() -> Iterator[Job]:
        yield from jobs
        for job in jobs:
            if summaries[job.number]["stopped"] == ELSEWHERE:
                yield job._replace(step=job.step._replace(what="elsewhere"))

    for job in in_turn():
        summaries[job.number] = summary = train_claimed(job, call, said[job.number])
        failed = summary["stopped"].startswith("failed")
        if is_interrupted(summary) or (failed and (call.fail_fast or job.params.train.devices > 1)):
            break  # after a failure several processes may stand at different points
    return [*summaries.values()]


def train_claimed(job: Job, call: Call, said: str | None = None) -> dict[str, Any]:
    """Train a run unless another call does, and return its summary. `said` is logged before training."""
    try:
        with claimed(job, call) as job_now:
            if said is not None and job_now.step.trains:
                log.info(said)
            return train_job(job_now, call)
    except (GridError, OSError) as error:  # other code has trained it, or no claim can be laid to it
        log.error(f"run {job.number} failed with {job.name}:\n{error}")
        return {"stopped": f"failed: {type(error).__name__}: {one_line(error)}"}


def train_job(job: Job, call: Call) -> dict[str, Any]:
    """Train a run and return its summary, however it ends."""
    started, one = time.perf_counter(), call._replace(variant=job.variant)
    if not job.step.trains:
        return earlier_summary(job.step)
    try:
        namer = job.make_namer(job.params, variant=job.variant)
        return train_run(
            job.params, namer, one, job.identity, go_on=taken_up(job.step), replaces=job.step.replaced
        )
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        give_way()
        log.error(f"run {job.number} failed with {job.name}:\n{shortened(traceback.format_exc())}")
        stopped = f"failed: {type(error).__name__}: {one_line(error)}"
    return of_variant(one) | {"stopped": stopped, "wall_seconds": time.perf_counter() - started}


def run_side_by_side(jobs: list[Job], said: dict[int, str], board: Board, call: Call) -> list[dict[str, Any]]:
    """Train several runs at a time and return the summaries of all."""
    summaries = {job.number: earlier_summary(job.step) for job in jobs if job.step.what == "finished"}
    to_train = {job.number: job for job in jobs if job.number not in summaries}
    if call.ray is None:
        say_threads({job.params.train.threads for job in jobs}, call.jobs)
        summaries |= SideBySide(train_claimed, to_train, said, board, call).run()
    elif to_train:
        from train.launch.cluster import OnCluster

        summaries |= OnCluster(train_job, to_train, said, board, call).run()
    return [summaries.get(job.number, {"stopped": "not run"}) for job in jobs]


def taken_up(step: Step) -> Path | None:
    """Return the folder in which a run continues, or None if it begins."""
    return step.earlier.folder if step.earlier and step.what == "continued" else None


def exit_code(summaries: list[dict[str, Any]]) -> int:
    """Return 130 after Ctrl-C, 1 if a run failed or diverged, else 0."""
    if rank() and torch.distributed.is_initialized():
        return 0  # the first process will notice and report; Lightning kills it when another one ends with an error
    if any(map(is_interrupted, summaries)):
        return 130
    return int(any(summary["stopped"].startswith(("failed", "diverged")) for summary in summaries))


def is_interrupted(summary: dict[str, Any]) -> bool:
    """Return whether Ctrl-C came while the run trained or when it had just ended."""
    return summary["stopped"] == INTERRUPTED or summary["stopped"].endswith(LATE)
