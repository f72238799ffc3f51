"""Runs on other machines: pack the folders they need as bytes, and put the folders they produce in place here."""

import io
import logging
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from train.logs import log
from train.run import Call
from train.saving.claims import note_folder
from train.saving.earlier_runs import NEW, clear_away, earlier_runs, step_after
from train.saving.run_folder import (
    PARTIAL,
    RunFolder,
    find_run,
    is_training,
    partial_name,
    read_json,
    run_folders,
    write_json,
)
from train.saving.timestamps import FORMAT

DYING_SECONDS = 15.0  # in which a process ends whose node has died


def pack(root: Path, folders: Iterable[Path]) -> bytes:
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


def unpack(parcel: bytes, root: Path) -> None:
    """Unpack a parcel below `root`, and nowhere else. Raise ValueError if it is not a tar archive."""
    try:
        with tarfile.open(fileobj=io.BytesIO(parcel)) as contents:
            contents.extractall(root, filter="data")
    except tarfile.TarError as error:
        raise ValueError(f"what has come from another machine cannot be unpacked: {error}") from error


class Luggage:
    """Uploads the folders that runs need, each only once. `put` stores bytes and returns a reference to them."""

    def __init__(self, out: Path, put: Callable[[bytes], Any]) -> None:
        self.out = out
        self.packed = cache(lambda folder: put(pack(out, [folder])))

    def __call__(self, job: Any) -> list[Any]:
        """Return references to a job's data, to the run it starts from, and to its own earlier folder."""
        folders = [*job.data_folders]
        if (timestamp := job.params.model.from_saved) is not None:
            folders.append(find_run(timestamp, str(self.out)))
        if job.step.what == "continued":
            folders.append(job.step.earlier.folder)
        return [self.packed(folder) for folder in folders]


@contextmanager
def in_a_folder(job: Any, call: Call, luggage: Iterable[bytes]) -> Iterator[tuple[Any, Call]]:
    """Unpack a job's folders and yield the job and its call with a temporary folder of this machine as output root."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder).resolve()
        for parcel in luggage:
            unpack(parcel, out)
        step = NEW  # what is to be cleared away for it is at home
        if job.step.what == "continued":
            earlier = job.step.earlier
            there = earlier._replace(folder=out / earlier.folder.relative_to(call.out))
            step = job.step._replace(earlier=there)
        by_home = partial(speak_of_home, str(out), str(call.out))
        log.addFilter(by_home)
        try:
            yield job._replace(step=step), call._replace(out=out)
        finally:
            log.removeFilter(by_home)


def speak_of_home(out: str, home: str, record: logging.LogRecord) -> bool:
    """Rewrite the paths in a log record to those at home. Drop "saved as ", which is logged after the download."""
    record.msg, record.args = record.getMessage().replace(out, home), None
    return not record.msg.startswith("saved as ")  # that is said when it is


def outputs(out: Path, identity: str) -> list[Path]:
    """Return the folders that a run has left below `out`: its run folder, if there is one, and wandb's."""
    own = [run for run in run_folders(out) if read_json(run / "about.json").get("identity") == identity]
    return [*own, *(folder for folder in [out / "logs"] if folder.exists())]


def bring_home(parcel: bytes, job: Any, summary: dict[str, Any], out: Path) -> dict[str, Any]:
    """Put the `outputs` of a job in place under a timestamp that is free here. Return its summary with their path."""
    with tempfile.TemporaryDirectory(dir=out, prefix="arriving-") as folder:
        arrived = Path(folder)
        unpack(parcel, arrived)
        if (arrived / "logs").exists():
            shutil.copytree(arrived / "logs", out / "logs", dirs_exist_ok=True)
        for run in list(run_folders(arrived)):  # one at most
            home = claim(run, arrived, out)
            note_folder(out, job.identity, home)
            if "folder" in summary:
                summary = summary | {"folder": str(home)}
                log.info(f"run {job.number}: saved as {home.name} in {home.parent}")
            earlier = job.step.earlier
            if earlier is not None and earlier.folder.exists() and not is_training(earlier.folder):
                shutil.rmtree(earlier.folder) if job.step.what == "continued" else clear_away(
                    [earlier.folder]
                )
    return summary


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
    # Only a run that was interrupted brings a resume checkpoint under its last name.
    home.give_up(None) if run.name.endswith(PARTIAL) else home.finish(resumable=True)
    return home.path


def left_here(job: Any, call: Call, marks: Path) -> Any:
    """Resume in the folder left by an earlier attempt that died.

    On the first attempt, return the job unchanged and leave a marker file.
    """
    mark = marks / str(job.number)
    if not mark.exists():
        mark.write_text(f"{datetime.now():{FORMAT}}")
        return job
    own = job.step.earlier and partial_name(job.step.earlier.folder)
    deadline = time.monotonic() + DYING_SECONDS
    while call.save and time.monotonic() < deadline:
        left = [run for run in earlier_runs(call.out, {job.identity}) if run.is_partial]
        left = [run for run in left if run.folder == own or run.folder.name >= mark.read_text()]
        step = step_after(left)
        if step.what != "elsewhere":
            return job._replace(step=step) if left else job
        time.sleep(0.2)
    return job
