"""Find what earlier calls did with a grid's runs, for --resume. Runs are identified by content, not by position."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

from train.grid.params import SECTIONS, Params
from train.grid.run import NEW, Run, Step, StepKind
from train.logs import log
from train.processes import rank
from train.saving.claims import claims_in, noted_folder
from train.saving.code import changed_files
from train.saving.outcome import Ending, Outcome, failure
from train.saving.provenance import code_id, code_of_this_process
from train.saving.run_folder import (
    PARTIAL,
    RESUME_FILE,
    complete,
    final_name,
    is_ours,
    is_stillborn,
    is_training,
    partial_name,
    read_about,
    run_folders,
)
from train.train_params import TrainParams

DEFAULTS = {
    field.name: field.default if field.default_factory is MISSING else field.default_factory()
    for cls in SECTIONS.values()
    for field in fields(cls)
}


def run_identity(params: Params, content: str) -> str:
    """Return a hash that is equal for equal runs.

    It covers the fields that are not at their defaults, and the content of the text. `cpus` and `gpus` do not count.
    """
    params = params._replace(train=replace(params.train, cpus=TrainParams.cpus, gpus=TrainParams.gpus))
    chosen = {name: repr(value) for name, value in params.flat().items() if value != DEFAULTS[name]}
    return hashlib.sha256(json.dumps([chosen, content], sort_keys=True).encode()).hexdigest()[:20]


class Earlier(NamedTuple):
    """A run in a run folder, complete or not."""

    folder: Path
    identity: str
    code: dict[str, str]  # hashes by file
    outcome: Outcome | None  # if its results are saved
    failed: str | None  # why it failed, if it did
    resumable: bool = True  # False: it failed for a reason of its own, and would fail again

    @property
    def is_partial(self) -> bool:
        """True until the folder gets its final name."""
        return self.folder.name.endswith(PARTIAL)


def description(step: Step) -> str:
    """Return a step in words, for the log."""
    if step.folder is None:
        new = f"new: {step.why}" if step.why else "new"
        return "left out: another call trains it at the moment" if step.what == "elsewhere" else new
    name = step.folder.name.removesuffix(PARTIAL)
    failed = f"failed, {step.why}" if step.why else ""
    return {
        "new": "new",
        "again": f"trains again: {name} {failed or 'kept no checkpoint'}",
        "finished": f"finished: {name}",
        "continued": f"goes on: {name} {failed}".strip(),
        "elsewhere": f"left out: {name} is training at the moment",
    }[step.what]


DECIDED = "WHATIF_DECIDED"  # environment variable that passes the steps to the other processes of a run


def steps_for(runs: list[Run], root: Path, any_code: bool) -> list[Step]:
    """Return what to do with each run of a grid. `any_code` takes over runs that other code trained, too."""
    known: dict[str, list[Earlier]] = {}
    for earlier in earlier_runs(root, {run.identity for run in runs}):
        known.setdefault(earlier.identity, []).append(earlier)
    return [step_after(run, known.get(run.identity, []), any_code) for run in runs]


def for_all_processes(decide: Callable[[], list[Step]]) -> list[Step]:
    """Return the decision of the first process.

    Other processes start later, when the first run is under way, and inherit it.
    """
    if rank() == 0:
        steps = decide()
        os.environ[DECIDED] = json.dumps([step_as_data(step) for step in steps])
        return steps
    return [step_from_data(*decided) for decided in json.loads(os.environ[DECIDED])]


def step_as_data(step: Step) -> tuple[StepKind, str | None]:
    """Return the part of a step that the other processes of a run need."""
    return step.what, None if step.folder is None else str(step.folder)


def step_from_data(what: StepKind, folder: str | None) -> Step:
    """Return the step that `step_as_data` converted."""
    return Step(what, Path(folder) if folder else None)


def share_step(step: Step, number: int) -> Step:
    """Return the first process's decision about run `number`, in every process of that run.

    Unlike for_all_processes, this is called just before the run trains.
    """
    if torch.distributed.is_initialized():
        shared = [step_as_data(step)]
        torch.distributed.broadcast_object_list(shared, src=0)
        return step_from_data(*shared[0]) if rank() else step
    if rank() == 0:  # the others have not started
        decided = json.loads(os.environ[DECIDED])
        decided[number - 1] = step_as_data(step)
        os.environ[DECIDED] = json.dumps(decided)
    return step


def claim_of(run: Run) -> str:
    """Return what a call claims to train a run: other code makes another run."""
    return f"{run.identity}-{code_id(code_of_this_process().hashes(run.params))}"


@contextmanager
def claimed(run: Run, root: Path, resume: str | None) -> Iterator[Run]:
    """Claim a run for this call, with --resume, and yield it with its first step brought up to date.

    Another call may be training the run, or may have trained it since this call began.
    """
    if resume is None or run.first_step.what == "finished":
        yield run
        return
    step, is_claimed = run.first_step, False
    try:
        if rank() == 0:
            is_claimed = claims_in(root).take(claim_of(run))
            step = step_now(run, root, any_code=resume == "anyway") if is_claimed else Step("elsewhere")
        if run.params.train.devices > 1:
            step = share_step(step, run.number)
        if step.what != run.first_step.what:
            log.info(f"run {run.number}: {description(step)}")
        yield replace(run, first_step=step)
    finally:
        if is_claimed:
            claims_in(root).give_back(claim_of(run))


def step_now(run: Run, root: Path, any_code: bool) -> Step:
    """Decide again what to do with a run once it is claimed: other calls may have changed its folders."""
    known = [run.first_step.folder, noted_folder(root, claim_of(run)), *run.first_step.replaced]
    names = {name for folder in filter(None, known) for name in (partial_name(folder), final_name(folder))}
    found = [*runs_in(sorted(filter(os.path.isdir, names)), {run.identity})]
    return step_after(run, found, any_code)


def earlier_outcome(step: Step) -> Outcome:
    """Return the outcome of a run that is not trained now. Finish what a kill at the very end of the run left undone."""
    if step.what == "elsewhere":
        return Outcome(Ending.ELSEWHERE)
    assert step.folder is not None
    if rank() > 0:  # the first process of the run says more
        return Outcome(Ending.FINISHED, is_earlier=True)
    folder = step.folder
    with suppress(OSError):  # another call does so, or the disk is read-only
        folder = complete(folder)
        clear_away(step.replaced)
    try:
        return Outcome.from_row(read_about(folder)["summary"], folder)
    except ValueError as error:  # damaged since the grid was planned
        log.error(str(error))
        return failure(error)


def earlier_runs(root: Path, identities: set[str]) -> Iterator[Earlier]:
    """Yield the saved runs with one of these identities. Unreadable folders are logged and left out."""
    return runs_in(run_folders(root), identities)


def runs_in(folders: Iterable[Path], identities: set[str]) -> Iterator[Earlier]:
    """Yield the runs in `folders` that have one of these identities."""
    for folder in folders:
        complete = not folder.name.endswith(PARTIAL)
        try:
            about = read_about(folder, complete)
        except ValueError as error:
            if not lacks_about(folder):  # a run killed at its start has none yet
                log.warning(f"--resume leaves out a folder: {error}")
            continue
        if about.get("identity") in identities and "code" in about:
            failed = about.get("failed")
            resumable = failed is None or about.get("resumable") is True
            outcome = Outcome.from_row(about["summary"], folder) if "summary" in about else None
            yield Earlier(folder, about["identity"], about["code"], outcome, failed, resumable)


def lacks_about(folder: Path) -> bool:
    try:
        return not (folder / "about.json").exists()
    except OSError:  # we may not read the folder
        return False


def step_of(earlier: Earlier) -> Step:
    """Return what to do with a run after this attempt at it."""
    if earlier.is_partial and is_training(earlier.folder):
        return Step("elsewhere", earlier.folder)
    # A run with a summary in a partial folder was killed just before the folder got its final name.
    if earlier.outcome is not None and not earlier.outcome.interrupted:
        return Step("finished", earlier.folder)
    if not is_ours(earlier.folder):  # nothing can be trained or cleared away there
        return NEW
    goes_on = earlier.resumable and (earlier.folder / RESUME_FILE).exists()
    return Step("continued" if goes_on else "again", earlier.folder, why=earlier.failed or "")


def step_after(run: Run, attempts: list[Earlier], any_code: bool) -> Step:
    """Return what to do with a run after all earlier attempts at it. Unless `any_code`, those of other code do not count."""
    now = code_of_this_process().hashes(run.params)
    same = [earlier for earlier in attempts if any_code or earlier.code == now]
    steps = [step_of(earlier) for earlier in same]
    step = furthest_step(steps)
    if step is NEW and (others := [earlier for earlier in attempts if earlier not in same]):
        changed = ", ".join(changed_files(others[-1].code, now))
        return Step("new", why=f"{changed} changed since {others[-1].folder.name.removesuffix(PARTIAL)}")
    replaced = [
        earlier.folder
        for earlier, other in zip(same, steps, strict=True)
        if other.folder and earlier.is_partial and (other is not step or other.what == "again")
    ]
    return replace(step, replaced=tuple(replaced))


def furthest_step(steps: Iterable[Step]) -> Step:
    """Return the step of the earlier run that got furthest, the latest one in a tie."""
    order = ["new", "again", "continued", "elsewhere", "finished"]
    return max(
        steps,
        key=lambda step: (order.index(step.what), step.folder.name if step.folder else ""),
        default=NEW,
    )


def clear_away(folders: Iterable[Path]) -> None:
    """Remove folders of attempts that a later one has replaced, unless they are complete or in training."""
    for folder in folders:
        if folder.name.endswith(PARTIAL) and folder.exists() and not is_training(folder):
            shutil.rmtree(folder, ignore_errors=True)


def clear_stillborn(root: Path) -> None:
    """Remove the folders of runs that were killed before they wrote about.json."""
    for folder in run_folders(root):
        if folder.name.endswith(PARTIAL) and is_stillborn(folder) and not is_training(folder):
            shutil.rmtree(folder, ignore_errors=True)
