"""Record: the results that a run leaves in its run folder and in wandb."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from model.lm import LM
from train.grid.config_text import VARIANT
from train.grid.params import measured_column
from train.grid.run import Call, Run
from train.logs import DETAIL, log, log_to_file
from train.processes import rank
from train.saving.claims import note_folder
from train.saving.earlier_runs import claim_of, clear_away
from train.saving.live import LiveStats, live_stats
from train.saving.outcome import Ending, Outcome, is_out_of_resources
from train.saving.run_folder import (
    RESUME_FILE,
    RunFolder,
    create_run_files,
    partial_name,
    read_json,
    save,
    write_json,
)
from train.saving.weights import Checkpoints, one_line
from train.stats import Stats, WandbTracker, start_wandb


class Namer(Protocol):
    """The names of a run, as main.py gives them."""

    def wandb_proj_name(self) -> str: ...
    def run_name(self) -> str | None: ...
    def save_folder_name(self, timestamp: str, wandb_name: str | None = None) -> str: ...


class Record:
    """The statistics of a run and, with --save, its folder. A run that is not saved has only statistics."""

    def __init__(
        self,
        stats: Stats,
        folder: RunFolder | None = None,
        resume_file: Path | None = None,
        checkpoints: Checkpoints | None = None,
        end_live_stats: Callable[[], object] = lambda: None,
    ) -> None:
        self.stats = stats
        self.folder = folder
        self.resume_file = resume_file  # checkpoint to resume from, if it exists; written only in a folder
        self.checkpoints = checkpoints  # for weights kept during training
        self.end_live_stats = end_live_stats  # called before the results are saved
        self.outcome: Outcome | None = None  # once the run has ended

    def note(self, **facts: object) -> None:
        """Add facts about a run that begins to the about.json of its folder."""
        assert self.folder is not None
        path = self.folder.path / "about.json"
        write_json(path, read_json(path) | facts)

    def save(self, lm: LM, outcome: Outcome) -> Outcome:
        """Save the results of a run that has ended. Return the outcome, with the folder if there is one."""
        if self.folder is not None:
            if self.checkpoints is not None:
                self.checkpoints.wait()
            # Otherwise the thread could replace the final stats.json, or rename a file while the folder is synced.
            self.end_live_stats()
            save(self.folder.path, lm=lm, stats=self.stats, summary=outcome.as_row())
            self.folder.finish(resumable=outcome.ending is Ending.INTERRUPTED)
            log.info(f"saved as {self.folder.timestamp} in {self.folder.path.parent}", extra=DETAIL)
            outcome = replace(outcome, folder=self.folder.path)
        self.outcome = outcome
        return outcome


@contextmanager
def record_of(run: Run, namer: Namer, call: Call) -> Iterator[Record]:
    """Open the record of a run for the time of its training. The folder records for later calls how that ended."""
    tracker = start_tracker(run, namer, call)
    record = Record(Stats(tracker))
    try:
        if call.save and rank() == 0:
            with saved_record(run, namer, call, tracker) as record:
                yield record
        else:
            if call.save:  # the first process saves for all; the others take part in its resume checkpoints
                resumes_in = run.first_step.resumes_in
                record.resume_file = Path(RESUME_FILE)
                if resumes_in is not None:
                    record.resume_file = partial_name(resumes_in) / RESUME_FILE
            yield record
    finally:
        if tracker is not None:
            outcome = record.outcome
            summary = {} if outcome is None else outcome.as_row()
            tracker.finish(failed=outcome is None or outcome.diverged, summary=summary)


@contextmanager
def saved_record(run: Run, namer: Namer, call: Call, tracker: WandbTracker | None) -> Iterator[Record]:
    """Open the folder of a run. When the run has ended, remove the folders of attempts that it replaces."""
    folder = run_folder(run, namer, call, tracker)
    try:
        every = run.params.train.checkpoint_every
        keeping = nullcontext() if every is None else Checkpoints(folder.path / "checkpoints", every)
        stats, live = LiveStats(tracker), ExitStack()
        with log_to_file(folder.log_file), live, keeping as checkpoints:
            live.enter_context(live_stats(stats, folder.path))
            yield Record(stats, folder, folder.path / RESUME_FILE, checkpoints, live.close)
    except KeyboardInterrupt:
        folder.give_up(None) if folder.has_checkpoint else folder.discard()
        raise
    except BaseException as error:
        folder.give_up(f"{type(error).__name__}: {one_line(error)}", resumable=is_out_of_resources(error))
        if folder.is_new:  # the folders it replaces have no checkpoint either
            clear_away(run.first_step.replaced)
        raise
    clear_away(run.first_step.replaced)


def run_folder(run: Run, namer: Namer, call: Call, tracker: WandbTracker | None) -> RunFolder:
    """Take up the folder of a run that is resumed, or create a new one.

    The new folder already holds the run's params, code and command, so that a later call can identify the run.
    """
    if run.first_step.resumes_in is not None:
        return RunFolder.take_up(run.first_step.resumes_in)
    wandb_name = None if tracker is None else tracker.name
    folder = RunFolder.claim(call.out, lambda timestamp: namer.save_folder_name(timestamp, wandb_name))
    try:
        wandb_id = None if tracker is None else tracker.id
        create_run_files(folder.path, run.params, call.command, run.identity, wandb_id, run.data)
        if call.resume is not None:
            note_folder(call.out, claim_of(run), folder.path)
    except BaseException:
        folder.discard()
        raise
    return folder


def start_tracker(run: Run, namer: Namer, call: Call) -> WandbTracker | None:
    """Start to track a run with wandb, or return None without wandb. A run that resumes continues under its id."""
    if not call.wandb:
        return None
    resumes_in = run.first_step.resumes_in
    wandb_id = None if resumes_in is None else read_json(resumes_in / "about.json").get("wandb")
    variant = {measured_column(name): value for name, value in measured_variant(run).items()}
    return start_wandb(
        project=namer.wandb_proj_name(),
        entity=call.wandb_entity,
        group=call.wandb_group,
        run_name=namer.run_name(),
        run_id=wandb_id,
        config={**variant, **run.params.by_part()},
        label=run.name,
        folder=call.out / "logs",
    )


def measured_variant(run: Run) -> dict[str, str]:
    """Return the measured value by which a run's variant is found later. Empty if the grid has no variants."""
    return {} if run.variant is None else {VARIANT: run.variant}
