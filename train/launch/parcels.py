"""Runs on other machines: pack the folders they need as bytes, and put the folders they produce in place here."""

import io
import logging
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path

from train.grid.run import NEW, Call, Run
from train.logs import log
from train.saving.claims import note_folder
from train.saving.earlier_runs import claim_of, clear_away, earlier_runs, step_after
from train.saving.outcome import Outcome
from train.saving.run_folder import (
    PARTIAL,
    RunFolder,
    find_run,
    is_training,
    partial_name,
    read_json,
    run_and_step,
    run_folders,
    write_json,
)
from train.saving.timestamps import FORMAT

DYING_SECONDS = 15.0  # in which a process ends after its node has died


def pack_folders(root: Path, folders: Iterable[Path]) -> bytes:
    """Return folders below `root` with their files as tar bytes.

    Locks are left out, and so are links: wandb creates some to its own logs elsewhere.
    """

    def travels(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return member if member.isdir() or (member.isreg() and not member.name.endswith("/lock")) else None

    parcel = io.BytesIO()
    with tarfile.open(fileobj=parcel, mode="w") as contents:
        for folder in folders:
            contents.add(folder, folder.relative_to(root), filter=travels)
    return parcel.getvalue()


def unpack_folders(parcel: bytes, root: Path) -> None:
    """Unpack a parcel below `root`, and nowhere else. Raise ValueError if it is not a tar archive."""
    try:
        with tarfile.open(fileobj=io.BytesIO(parcel)) as contents:
            contents.extractall(root, filter="data")
    except tarfile.TarError as error:
        raise ValueError(f"the files from another machine cannot be unpacked: {error}") from error


class Upload:
    """Uploads the folders that runs need, each only once. `put` stores bytes and returns a reference to them."""

    def __init__(self, out: Path, put: Callable[[bytes], object]) -> None:
        self.out = out
        self.packed = cache(lambda folder: put(pack_folders(out, [folder])))

    def __call__(self, run: Run) -> list[object]:
        """Return references to a run's data, to the run it starts from, and to its own earlier folder."""
        folders = [*run.data.folders]
        if (name := run.params.model.from_saved) is not None:
            folders.append(find_run(run_and_step(name)[0], str(self.out)))
        if run.first_step.resumes_in is not None:
            folders.append(run.first_step.resumes_in)
        return [self.packed(folder) for folder in folders]


@contextmanager
def in_a_folder(run: Run, call: Call, parcels: Iterable[bytes]) -> Iterator[tuple[Run, Call]]:
    """Unpack a run's folders and yield the run and its call with a temporary folder of this machine as output root."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder).resolve()
        for parcel in parcels:
            unpack_folders(parcel, out)
        step = NEW  # folders that the run replaces are on the first machine
        if (resumes_in := run.first_step.resumes_in) is not None:
            step = replace(run.first_step, folder=out / resumes_in.relative_to(call.out), replaced=())
        with_paths_of_home = partial(rewrite_paths, str(out), str(call.out))
        log.addFilter(with_paths_of_home)
        try:
            yield replace(run, first_step=step), call._replace(out=out)
        finally:
            log.removeFilter(with_paths_of_home)


def rewrite_paths(out: str, home: str, record: logging.LogRecord) -> bool:
    """Rewrite the paths in a log record to those at home. Drop "saved as ", which is logged after the download."""
    record.msg, record.args = record.getMessage().replace(out, home), None
    return not record.msg.startswith("saved as ")


def outputs(out: Path, identity: str) -> list[Path]:
    """Return the folders that a run has left below `out`: its run folder, if there is one, and wandb's."""
    own = [run for run in run_folders(out) if read_json(run / "about.json").get("identity") == identity]
    return [*own, *(folder for folder in [out / "logs"] if folder.exists())]


def download_results(parcel: bytes, run: Run, outcome: Outcome, out: Path) -> Outcome:
    """Put the `outputs` of a run in place under a timestamp that is free here. Return its outcome with their path."""
    with tempfile.TemporaryDirectory(dir=out, prefix="arriving-") as folder:
        arrived = Path(folder)
        unpack_folders(parcel, arrived)
        if (arrived / "logs").exists():
            shutil.copytree(arrived / "logs", out / "logs", dirs_exist_ok=True)
        for folder_there in list(run_folders(arrived)):  # one at most
            home = claim(folder_there, arrived, out)
            note_folder(out, claim_of(run), home)
            if outcome.folder is not None:
                outcome = replace(outcome, folder=home)
                log.info(f"run {run.number}: saved as {home.name} in {home.parent}")
            step = run.first_step
            if step.folder is not None and step.folder.exists() and not is_training(step.folder):
                shutil.rmtree(step.folder) if step.resumes_in else clear_away([step.folder])
    return outcome


def claim(run: Path, arrived: Path, out: Path) -> Path:
    """Move a run folder from below `arrived` to below `out`. Return its new path.

    about.json is moved last: without it a folder does not count as a run.
    """
    when = datetime.strptime(run.name.removesuffix(PARTIAL), FORMAT)
    place = run.parent.relative_to(arrived / "saved-models")
    home = RunFolder.claim(out, lambda timestamp: str(place / timestamp), when)
    about = read_json(run / "about.json") | {"timestamp": home.timestamp}
    write_json(run / "about.json", about)
    for path in sorted(run.iterdir(), key=lambda path: path.name == "about.json"):
        path.rename(home.path / path.name)
    # Only an interrupted run comes with a resume checkpoint under its final name.
    home.give_up(None) if run.name.endswith(PARTIAL) else home.finish(resumable=True)
    return home.path


def resume_dead_attempt(run: Run, call: Call, marks: Path) -> Run:
    """Resume in the folder left by an earlier attempt that died, or that its cluster interrupted.

    On the first attempt, return the run unchanged and leave a marker file.
    """
    mark = marks / str(run.number)
    if not mark.exists():
        mark.write_text(f"{datetime.now():{FORMAT}}")
        return run
    own = run.first_step.folder and partial_name(run.first_step.folder)
    deadline = time.monotonic() + DYING_SECONDS
    while call.save and time.monotonic() < deadline:
        found = earlier_runs(call.out, {run.identity})
        left = [one for one in found if one.is_partial or (one.outcome and one.outcome.interrupted)]
        left = [one for one in left if one.folder == own or one.folder.name >= mark.read_text()]
        step = step_after(run, left, any_code=True)
        if step.what != "elsewhere":
            return replace(run, first_step=step) if left else run
        time.sleep(0.2)
    return run
