"""Train a grid's runs, one after another or side by side. A failing run does not stop the others."""

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from shutil import which

import torch

from common.repository import REPOSITORY
from train.flops import row_flops
from train.grid.expand import GridError
from train.grid.run import Call, Run
from train.launch.display import GridDisplay, Shown
from train.launch.remote import SLURM, scheduler_option
from train.launch.tables import closing_lines
from train.launch.workers import SideBySide, n_jobs, say_threads
from train.length import rows_per_step
from train.logs import DETAIL, log, shorten_traceback, status
from train.processes import import_all, let_rank0_report, rank
from train.progress import Report
from train.saving.code import Code, own_files
from train.saving.earlier_runs import claimed, clear_stillborn, earlier_outcome
from train.saving.outcome import Ending, Outcome, failure
from train.saving.provenance import code_of_this_process
from train.saving.record import Namer, measured_variant, record_of
from train.saving.run_folder import output_root

MIN_SECONDS_FOR_SPEED = 600  # of a grid after which a line about its speed is worth reading
MAX_STOPPED = 4  # runs of which a call says at which step Ctrl-C stopped them


def make_call(args: argparse.Namespace, wandb_entity: str | None) -> Call:
    """Return the options of the command line that hold for all runs. Raise GridError for invalid ones."""
    resume = args.resume or ("same" if args.against is not None else None)
    save = args.save or resume is not None
    return Call(
        out=output_root(args.out),
        save=save,
        resume=resume,
        fail_fast=args.fail_fast,
        jobs=n_jobs(args.jobs),
        wandb=not args.no_wandb and rank() == 0,
        wandb_entity=wandb_entity,
        wandb_group=f"{args.config}--{datetime.now():%Y-%m-%d--%H-%M-%S}",
        gpu_id=args.gpu_id,
        command=sys.argv,
        cluster=scheduler_of(args),
        parts=tuple(own_files.values()),
    )


def scheduler_of(args: argparse.Namespace) -> str | None:
    """Return `Call.cluster`: what schedules the runs, if not this machine. Raise GridError if it cannot be used."""
    if args.ray is not None and find_spec("ray") is None:
        raise GridError(["--ray needs Ray: pip install -r requirements-ray.txt"])
    if args.slurm is None:
        return args.ray
    if find_spec("submitit") is None:
        raise GridError(["--slurm needs submitit: pip install -r requirements-slurm.txt"])
    if which("sbatch") is None:
        raise GridError(["--slurm needs Slurm's command sbatch: call main.py on a login node of the cluster"])
    from train.launch.slurm import read_slurm_options

    read_slurm_options(args.slurm)
    return f"{SLURM}{args.slurm}"


MakeNamer = Callable[..., Namer]  # called with the params of a run and variant=


def train_runs(runs: Sequence[Run], make_namer: MakeNamer, call: Call) -> list[Outcome]:
    """Train every run and return their outcomes.

    A failure is logged at once. The other runs continue, unless runs have several processes or --fail-fast is set.
    """
    if call.save and rank() == 0:
        clear_stillborn(call.out)
        code_of_this_process().code.keep(call.out)
    if call.jobs > 1 or call.cluster is not None:
        return train_side_by_side(runs, make_namer, call)
    load_code_that_trains(call)
    outcomes: dict[int, Outcome] = {}
    with display_of(runs, call) as display:
        for run in each_then_claimed(runs, outcomes):
            if run.first_step.trains:
                display.begins(run.number)
            report = None if rank() else partial(display.goes_on, run.number)
            outcome = train_claimed(run, call, make_namer, report, announce=announcement(run, len(runs)))
            display.ends(run.number, outcome)
            outcomes[run.number] = outcome
            if outcome.interrupted or (outcome.failed and (call.fail_fast or run.params.train.devices > 1)):
                break  # after a failure several processes may stand at different points
    return [*outcomes.values()]


def display_of(runs: Sequence[Run], call: Call) -> GridDisplay:
    jobs = call.jobs if call.cluster is None else len(runs)
    return GridDisplay({run.number: Shown.of(run) for run in runs}, jobs)


def load_code_that_trains(call: Call) -> None:
    """Import Lightning and the code that uses it, which takes seconds. Make sure that it is the code to be recorded."""
    with status("loading Lightning"):
        import_all("train.run")
    if call.save and rank() == 0:
        refuse_edited_code()


def refuse_edited_code() -> None:
    """Raise GridError if a file that counts was edited after its hash was taken, while texts were read."""
    before, now = (
        {name: file._replace(text="") for name, file in code.files.items()}
        for code in (code_of_this_process().code, Code.read(REPOSITORY))
    )
    if changed := sorted(name for name, file in now.items() if file != before.get(name)):
        raise GridError([f"{', '.join(changed)}: edited while the grid was checked; repeat the call"])


def each_then_claimed(runs: Sequence[Run], outcomes: dict[int, Outcome]) -> Iterator[Run]:
    """Yield all runs, then once more those that another call was training."""
    yield from runs
    for run in runs:
        if outcomes[run.number].ending is Ending.ELSEWHERE:
            yield replace(run, first_step=replace(run.first_step, what="elsewhere"))


def announcement(run: Run, n_runs: int) -> str:
    """Return the log line at the start of a run."""
    size = f"{run.size.n_params:,} parameters, {run.length}"
    return f"run {run.number} of {n_runs}: {run.name}, {size}"


def train_claimed(
    run: Run, call: Call, make_namer: MakeNamer, report: Report | None = None, announce: str | None = None
) -> Outcome:
    """Train a run unless another call does, and return its outcome. `announce` is logged before training."""
    try:
        with claimed(run, call.out, call.resume) as run_now:
            if announce is not None and run_now.first_step.trains:
                log.info(announce, extra=DETAIL)
            return train_or_fail(run_now, call, make_namer, report)
    except (GridError, OSError) as error:  # other code has trained it, or it cannot be claimed
        log.error(f"run {run.number} failed with {run.name}:\n{error}")
        return failure(error)


def train_or_fail(run: Run, call: Call, make_namer: MakeNamer, report: Report | None = None) -> Outcome:
    """Train a run and return its outcome, however it ends."""
    started = time.perf_counter()
    if not run.first_step.trains:
        return earlier_outcome(run.first_step)
    try:
        from train.run import train_run  # here, as it imports Lightning

        with record_of(run, make_namer(run.params, variant=run.variant), call) as record:
            if record.folder is not None:
                record.note(costs_of_step=planned_costs(run))
            return train_run(run, record, call, report)
    except KeyboardInterrupt:
        outcome = Outcome(Ending.INTERRUPTED)
    except SystemExit:
        raise
    except BaseException as error:  # a panic in a Rust library is not an Exception
        let_rank0_report()
        log.error(f"run {run.number} failed with {run.name}:\n{shorten_traceback(traceback.format_exc())}")
        outcome = failure(error)
    return replace(outcome, values=measured_variant(run) | {"wall_seconds": time.perf_counter() - started})


def planned_costs(run: Run) -> dict[str, float]:
    """Return the "tokens" and "flops" of an optimizer step in the mean, as far as they are known before training.

    A page about runs that train has its axes of tokens and FLOPs from them.
    """
    size, data, train = run.size, run.data, run.params.train
    if not data.row_length:
        return {}
    tokens = rows_per_step(train) * data.row_length
    if size.n_tokens and size.n_steps:  # the last step of an epoch may have fewer rows
        tokens = size.n_tokens / size.n_steps
    flops = row_flops(run.params.model, data.n_tokens, max(1, round(data.row_length)), train)
    return {"tokens": tokens} | ({} if flops is None else {"flops": flops * tokens / data.row_length})


def train_side_by_side(runs: Sequence[Run], make_namer: MakeNamer, call: Call) -> list[Outcome]:
    """Train several runs at a time and return the outcomes of all."""
    finished = [run for run in runs if run.first_step.what == "finished"]
    outcomes = {run.number: earlier_outcome(run.first_step) for run in finished}
    to_train = {run.number: run for run in runs if run.number not in outcomes}
    announced = {run.number: announcement(run, len(runs)) for run in runs}
    display = display_of(runs, call)
    for number, outcome in outcomes.items():
        display.ends(number, outcome)
    scheduler = scheduler_option(call)
    if scheduler is None:
        say_threads({run.params.train.threads for run in to_train.values()}, call.jobs)
    if to_train or scheduler is None:
        # Ray's runs are claimed by this process: any machine may train them.
        train = partial(train_or_fail if scheduler == "--ray" else train_claimed, make_namer=make_namer)
        outcomes |= class_that_trains(scheduler)(train, to_train, announced, display, call).run()
    return [outcomes.get(run.number, Outcome(Ending.NOT_RUN)) for run in runs]


def class_that_trains(scheduler: str | None) -> type[SideBySide]:
    """Return the class that trains runs where the option "--ray" or "--slurm" says, or here without one."""
    if scheduler is None:
        return SideBySide
    if scheduler == "--slurm":
        from train.launch.slurm import OnSlurm

        return OnSlurm
    from train.launch.cluster import OnCluster

    return OnCluster


def last_lines(runs: Sequence[Run], outcomes: Sequence[Outcome], call: Call) -> list[str]:
    """Return what to say at the end of a grid: the best run, or after Ctrl-C what is left to do."""
    interrupted = any(outcome.interrupted for outcome in outcomes)
    if interrupted:
        return where_it_stands(runs, outcomes, call)
    return closing_lines(runs, outcomes) + line_about_speed(runs, outcomes, call)


def line_about_speed(runs: Sequence[Run], outcomes: Sequence[Outcome], call: Call) -> list[str]:
    """Return a line that names --dry-run after a long grid with settings that may be slow here.

    Nothing is measured at the end of a grid: that would take seconds, and the user waits for the prompt.
    """
    seconds = [outcome.values.get("wall_seconds") for outcome in outcomes if not outcome.is_earlier]
    total = sum(one for one in seconds if isinstance(one, float))
    trains = [run.params.train for run in runs]
    slow = {
        'precision="bf16-mixed"': any(train.precision == "32-true" for train in trains),
        "compile": not all(train.compile for train in trains),
        "--jobs": call.jobs == 1 and len(runs) > 1,
        "threads": any(train.threads is None for train in trains),
    }
    open_settings = [setting for setting, is_open in slow.items() if is_open]
    if total < MIN_SECONDS_FOR_SPEED or call.cluster is not None or not open_settings:
        return []
    return [f"--dry-run measures whether {', '.join(open_settings)} would be faster here"]


def where_it_stands(runs: Sequence[Run], outcomes: Sequence[Outcome], call: Call) -> list[str]:
    """Return what to say after Ctrl-C: what is done, what is not, and the command that goes on."""
    trained = [outcome for outcome in outcomes if outcome.ending not in (Ending.NOT_RUN, Ending.ELSEWHERE)]
    stopped = [i for i, outcome in enumerate(outcomes, 1) if outcome.ending is Ending.INTERRUPTED]
    n_done, n_left = len(trained) - len(stopped), len(runs) - len(trained)
    parts = [
        f"{n_done} of {len(runs)} done",
        *(stop_of(runs[i - 1], outcomes[i - 1]) for i in stopped[:MAX_STOPPED]),
    ]
    if len(stopped) > MAX_STOPPED:
        parts.append(f"{len(stopped) - MAX_STOPPED} more stopped")
    if n_left:
        parts.append(f"{n_left} not trained")
    command = [*sys.orig_argv, *([] if call.resume else ["--resume"])]
    how = "go on" if call.save else "nothing was saved; to begin again, and be able to go on from there"
    return [f"interrupted: {', '.join(parts)}", f"{how}: {shlex.join(command)}"]


def stop_of(run: Run, outcome: Outcome) -> str:
    """Return at which step Ctrl-C stopped a run."""
    steps = outcome.values.get("steps")
    total = "" if run.size.n_steps is None else f" of {run.size.n_steps:,}"
    return f"run {run.number} stopped" + ("" if steps is None else f" after {steps:,}{total} steps")


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 130 after Ctrl-C, 1 if a run failed or diverged, else 0."""
    if rank() and torch.distributed.is_initialized():
        return 0  # the first process will notice and report; Lightning kills it when another one ends with an error
    if any(outcome.interrupted for outcome in outcomes):
        return 130
    return int(any(outcome.failed or outcome.diverged for outcome in outcomes))
