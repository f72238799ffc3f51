"""Run folders: written so that a kill never leaves half a run, and read as data, never as code."""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from pydantic import ValidationError

from common.repository import REPOSITORY
from common.text import nearest
from data.data_params import DataParams
from data.tokenizer import Tokenizer
from model.lm import LM
from model.model_params import ModelParams
from train.grid.params import Params, Section
from train.grid.run import DataFacts
from train.logs import printable
from train.saving.about import MAX_NUMBER, about_problem
from train.saving.code import INSTALLED, OWN, Code, changed_files, own_files
from train.saving.durable import make_folder, rename, replacing, sync_tree
from train.saving.outcome import Value
from train.saving.provenance import code_of_this_process, versions
from train.saving.timestamps import PARTIAL, run_folders, timestamps_in, walk
from train.saving.weights import (
    checkpoint_files,
    load_lm,
    one_line,
    regular_file,
    unshared_state,
    weights_file,
    write_weights,
)
from train.stats import Stat, Stats
from train.train_params import TrainParams

COMMIT = re.compile(r"[0-9a-f]{40,64}")
UNKNOWN = DataFacts()
PARTS = "parts"  # folder of copies of the user's own files
RESUME_FILE = "resume.ckpt"
LATEST = "latest"  # in place of a timestamp: the last complete run
LOCK_FILE = "lock"
MAX_LOOK = 1.0  # seconds for which is_training may hold a lock
MIN_AGE = 60.0  # seconds until a folder without content counts as abandoned
MAX_JSON = 20_000_000  # bytes of a params.json or about.json that are read


class Loaded(NamedTuple):
    """A saved run: its model in eval mode on the CPU, its statistics by name, and about.json."""

    lm: LM
    tokenizer: Tokenizer
    params: Params
    train_stats: dict[str, list[Stat]]
    about: dict[str, Any]


def output_root(out: str | None = None) -> Path:
    """Return the folder of all outputs: `out`, else WHATIF_OUT, else the parent folder of the repository.

    A whatif that is installed from its wheel has no repository: its outputs go to ~/whatif.
    """
    default = "~/whatif" if INSTALLED else REPOSITORY.parent
    return Path(out or os.environ.get("WHATIF_OUT") or default).expanduser().resolve()


def find_run(timestamp: str, out: str | None = None) -> Path:
    """Return the folder of a complete run; the timestamp "latest" stands for that of the last one.

    Raise ValueError with the nearest timestamps if there is none.
    """
    root = output_root(out)
    folders = list(run_folders(root))
    if timestamp == LATEST:
        complete = [folder.name for folder in folders if not folder.name.endswith(PARTIAL)]
        timestamp = max(complete, default=LATEST)
    found = [folder for folder in folders if folder.name == timestamp]
    if len(found) > 1:
        raise ValueError(f"there are {len(found)} runs {timestamp}: {', '.join(map(str, found))}")
    if found:
        return found[0]
    if partial := [folder for folder in folders if folder.name == f"{timestamp}{PARTIAL}"]:
        raise ValueError(f"the run {timestamp} is incomplete, killed or still training: {partial[0]}")
    complete = [folder.name for folder in folders if not folder.name.endswith(PARTIAL)]
    close = ", ".join(nearest(str(timestamp), complete, n=3, cutoff=0)) or "none at all"
    raise ValueError(f"no run {timestamp!r:.60} in {root / 'saved-models'}; nearest: {close}")


def run_and_step(name: str) -> tuple[str, int | None]:
    """Return the timestamp and the step of a value of `from_saved`: "2024-04-22--16-17-00@800", or without a step."""
    timestamp, at, step = name.partition("@")
    if at and not (step.isascii() and step.isdigit()):
        raise ValueError(f"{step!r} is no step of a kept checkpoint; write it as in '{timestamp}@800'")
    return timestamp, int(step) if at else None


class RunFolder:
    """The folder of a run, locked while it trains. `finish` renames it from `{timestamp}.partial` to `{timestamp}`."""

    def __init__(self, path: Path, is_new: bool = True) -> None:
        self.path = path
        self.is_new = is_new  # False: an earlier call has begun the run
        self.timestamp = path.name.removesuffix(PARTIAL)
        self.lock = lock_of(path)
        self.lock.acquire(timeout=MAX_LOOK)  # another process may be testing it

    @classmethod
    def claim(
        cls, root: Path, subfolder_of: Callable[[str], str], when: datetime | None = None
    ) -> "RunFolder":
        """Create a folder under the next timestamp that is free below `root`.

        `subfolder_of` returns its path for a timestamp.
        """
        base = (root / "saved-models").resolve()
        base.mkdir(parents=True, exist_ok=True)

        def folder_of(timestamp: str) -> Path:
            return partial_folder(base, subfolder_of(timestamp), timestamp)

        folder = timestamps_in(base).give(when or datetime.now(), folder_of)
        make_folder(folder)
        try:
            return cls(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @classmethod
    def take_up(cls, path: Path) -> "RunFolder":
        """Return the folder of an earlier run, to continue it."""
        # If the folder is partial already, this renames it onto itself, which does nothing.
        return cls(rename(path, partial_name(path)), is_new=False)

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    def give_up(self, failed: str | None, resumable: bool = True) -> None:
        """Leave the folder to a later call.

        `failed` is the reason why the run failed; None means that it was interrupted. With `resumable`,
        --resume continues from its resume checkpoint if there is one.
        """
        about = self.path / "about.json"
        with contextlib.suppress(OSError, ValueError):  # most likely the disk is full, as the reason says
            if failed is not None:
                write_json(about, read_json(about) | {"failed": failed, "resumable": resumable})
        self.lock.release()

    @property
    def has_checkpoint(self) -> bool:
        """True if the folder holds a resume checkpoint, or weights kept during training."""
        return (self.path / RESUME_FILE).exists() or bool(checkpoint_files(self.path))

    def discard(self) -> None:
        """Remove a folder that holds nothing of use."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.release()

    def finish(self, resumable: bool = False) -> None:
        """Mark the folder as complete. `resumable` keeps the resume checkpoint of a run that is to be continued."""
        self.path = complete(self.path, resumable)
        self.lock.release()


def partial_name(folder: Path) -> Path:
    """Return the path of a run's folder while it trains."""
    return folder.with_name(folder.name.removesuffix(PARTIAL) + PARTIAL)


def final_name(folder: Path) -> Path:
    """Return the path of a run's folder once the run is complete."""
    return folder.with_name(folder.name.removesuffix(PARTIAL))


def complete(folder: Path, resumable: bool = False) -> Path:
    """Rename the folder of a saved run to its final name, then remove what only training needs. Return its path.

    A kill at any moment leaves a run that is complete, or that the next call completes.
    """
    if folder.name.endswith(PARTIAL):
        folder = rename(folder, final_name(folder))
    for name in [LOCK_FILE] if resumable else [RESUME_FILE, LOCK_FILE]:
        (folder / name).unlink(missing_ok=True)
    return folder


def lock_of(folder: Path) -> FileLock:
    """Return the lock that the process training the run holds. The system releases it when the process dies."""
    return FileLock(folder / LOCK_FILE, timeout=0)


def is_training(folder: Path) -> bool:
    """Return True if another process is training the run in `folder`."""
    try:
        with lock_of(folder):
            return False
    except Timeout:
        return True
    except OSError:  # another user's folder, in which we may not write
        return is_locked(folder / LOCK_FILE)


def is_locked(path: Path) -> bool:
    """Return True if another process holds the lock on a file that may be read-only. Return False if unknown."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_ours(folder: Path) -> bool:
    """Return True if this process may write to the folder of a run and rename it."""
    return os.access(folder, os.W_OK) and os.access(folder.parent, os.W_OK)


def is_stillborn(folder: Path) -> bool:
    """Return True if a run was killed before `create_run_files` wrote its about.json to `folder`.

    Such a folder is empty or contains our lock, and has not changed for MIN_AGE seconds.
    """
    try:
        names = {path.name for path in folder.iterdir()}
        age = time.time() - folder.stat().st_mtime
    except OSError:
        return False
    return "about.json" not in names and (not names or LOCK_FILE in names) and age > MIN_AGE


def partial_folder(base: Path, subfolder: str, timestamp: str) -> Path:
    """Return `base`/`subfolder` with .partial at its end.

    Raise ValueError if a run saved there could not be found by its timestamp.
    """
    path = Path(os.path.normpath(base / subfolder))
    if path.name != timestamp or base not in path.parents:
        raise ValueError(
            f"save_folder_name gives {subfolder!r}: it must be a path inside saved-models that ends in /{timestamp}"
        )
    return path.with_name(timestamp + PARTIAL)


def create_run_files(
    folder: Path,
    params: Params,
    command: list[str],
    identity: str = "",
    wandb: str | None = None,
    data: DataFacts = UNKNOWN,
) -> None:
    """Write the params and the origin of a run before it trains, so that it can be identified however it ends."""
    version = code_of_this_process()
    write_json(folder / "params.json", params.by_part())
    (folder / "diff.patch").write_bytes(version.diff)
    for own in own_files.values():
        (folder / PARTS).mkdir(exist_ok=True)
        (folder / PARTS / own.name).write_bytes(own.source)
    about = {
        "timestamp": folder.name.removesuffix(PARTIAL),
        "command": command,
        "versions": versions(),
        "commit": version.commit,
        "subject": version.subject,
        "edited": bool(version.diff),
        "code_text": version.code.text_id,
        "code": version.hashes(params),
        "identity": identity,
        "content": data.content,  # hash of the text; empty for tasks
        "held_out": data.held_out._asdict(),  # what the validation loss is measured on
        "wandb": wandb,  # the id under which a resumed run continues in wandb
    }
    write_json(folder / "about.json", about)


def save(folder: Path, *, lm: LM, stats: Stats, summary: Mapping[str, Value]) -> None:
    """Save the results of a run in its folder, which is still partial. `summary` holds its final numbers."""
    assert isinstance(lm.tokenizer, Tokenizer), "what is trained here has a tokenizer of ours"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in unshared_state(lm).items()}
    write_weights(folder / "model.safetensors", tensors)
    (folder / "tokenizer").mkdir(exist_ok=True)
    lm.tokenizer.save(folder / "tokenizer")
    stats.save(folder / "stats.json")
    sync_tree(folder)
    about = read_json(folder / "about.json")
    for of_earlier_attempt in ("failed", "resumable"):
        about.pop(of_earlier_attempt, None)
    # Written last: a summary marks the run as saved.
    write_json(folder / "about.json", about | {"summary": summary})


def add_to_summary(folder: Path, values: Mapping[str, float]) -> None:
    """Add final numbers to a run that is saved. Numbers beyond MAX_NUMBER, which about.json may not hold, become infinite."""
    about = read_about(folder)
    within = {
        name: value if abs(value) <= MAX_NUMBER else math.copysign(math.inf, value)
        for name, value in values.items()
    }
    write_json(folder / "about.json", about | {"summary": about["summary"] | within})


def load_run(folder: Path, step: int | None = None) -> Loaded:
    """Load the run in `folder`, with the weights kept at `step`, or with its final ones by default.

    Raise ValueError if the folder is damaged, not ours, or older than the code can read.
    """
    params, tokenizer, about = read_run(folder)
    lm = load_lm(weights_file(folder, step), params.model, tokenizer)
    lm.name = folder.name if step is None else f"{folder.name}, step {step:,}"
    return Loaded(lm, tokenizer, params, Stats.load(regular_file(folder / "stats.json")).train_stats, about)


def load_checkpoints(folder: Path) -> Iterator[tuple[int, LM]]:
    """Yield (step, model) for all kept weights, loaded one at a time. Raise ValueError as `load_run` does."""
    params, tokenizer, _ = read_run(folder)
    for step, path in checkpoint_files(folder).items():
        lm = load_lm(path, params.model, tokenizer)
        lm.name = folder.name
        yield step, lm


def read_run(folder: Path) -> tuple[Params, Tokenizer, dict[str, Any]]:
    """Return the params, the tokenizer and about.json of a run, without weights and statistics."""
    for parent, _, names in walk(folder):
        for name in names:
            regular_file(Path(parent, name))
    about = read_about(folder)
    refuse_missing_parts(folder, about)
    params = read_params(folder, about)
    now = Code.read(REPOSITORY).hashes(params.flat())
    changed = [name for name in changed_files(about["code"], now) if name.startswith("model/")]
    if changed:
        listed = printable(", ".join(changed))
        print(f"{folder.name}: {listed} changed since this run was saved (at {saved_at(about)})")
    return params, Tokenizer.load(folder / "tokenizer"), about


def refuse_missing_parts(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError if a run uses parts of a user's own file that is not loaded: its copy is never run unasked."""
    for part in about["code"]:
        name, _, entry = part.removeprefix(OWN).partition(":")
        if part.startswith(OWN) and entry and name not in own_files:
            raise ValueError(
                f"{folder.name} uses {printable(entry)} of {printable(name)}, a file given by --with: call "
                f"load_parts({str(folder / PARTS / name)!r}) to run the copy in its folder, or load your own"
            )


def read_about(folder: Path, complete: bool = True) -> dict[str, Any]:
    """Return about.json: timestamp, command, versions, commit, code hashes, identity and final numbers of a run.

    With `complete`, a missing summary or code hash is an error. Raise ValueError for invalid content.
    """
    path = folder / "about.json"
    about = read_json(path)
    if complete and not about.keys() >= {"summary", "code"}:
        raise ValueError(f"{path} was not written by this program: it has no summary or no code hashes")
    if problem := about_problem(about):
        raise ValueError(f"{path} was not written by this program: {problem}")
    return about


def read_params(folder: Path, about: Mapping[str, object]) -> Params:
    """Return the params of the run in `folder`. Fields missing there get their defaults.

    Raise ValueError for unknown fields and invalid values.
    """
    sections = read_json(folder / "params.json")
    try:
        return Params(
            read_section(DataParams, sections.get("data"), about),
            read_section(TrainParams, with_one_length(sections.get("train")), about),
            read_section(ModelParams, sections.get("model"), about),
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / 'params.json'}: {one_line(error)}") from error


def with_one_length(section: object) -> object:
    """Return the section of TrainParams of a run that was saved when a run could have two lengths, with one of them."""
    if (
        isinstance(section, dict)
        and section.get("early_stop_nsamples") is not None
        and "max_steps" not in section
    ):
        return section | {"epochs": None}
    return section


def read_section(params_class: type[Section], section: object, about: Mapping[str, object]) -> Section:
    """Return `params_class` with the values of a section of params.json."""
    if not isinstance(section, dict):
        raise ValueError(f"there is no section for {params_class.__name__}")
    unknown = sorted(section.keys() - {field.name for field in fields(params_class)})
    if unknown:
        raise ValueError(
            f"{params_class.__name__} has no field {unknown[0]!r:.80}; the run was saved at {saved_at(about)}"
        )
    try:
        return params_class(**as_tuples(section))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in (params_class.__name__, *first["loc"]))
        raise ValueError(f"{field}: {first['msg']}, not {first['input']!r:.80}") from error


def as_tuples(value: object) -> Any:
    """Convert lists to tuples: JSON has no tuples, and params have no lists."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON, one line per key. A kill or a full disk leaves either the new file or the old one."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    with replacing(path) as partial:
        partial.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raise ValueError for anything else."""
    regular_file(path)
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it has over {MAX_JSON:,} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        # Refuse lone surrogates, which cannot be written as UTF-8.
        json.dumps(content, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
    return content


def saved_at(about: Mapping[str, object]) -> str:
    """Return the commit of the code that a run was saved with, for an error."""
    commit = str(about.get("commit"))
    return f"commit {commit}" if COMMIT.fullmatch(commit) else "an unknown commit"
