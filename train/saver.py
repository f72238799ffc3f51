"""What a run folder holds: written so that a kill never leaves half a run, read as data and never as code."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from data.data_params import DataParams
from data.tokenizer import Tokenizer
from model.lm import LM
from model.model_params import ModelParams
from train.params import Params
from train.provenance import REPOSITORY, code_of_this_process, hash_of_model, versions
from train.stats import Stat, Stats
from train.train_params import TrainParams
from train.weights import (
    checkpoint_files,
    load_lm,
    one_line,
    regular_file,
    weights,
    weights_file,
    write_weights,
)

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d--\d\d-\d\d-\d\d")
COMMIT = re.compile(r"[0-9a-f]{40,64}")
PARTIAL = ".partial"  # ends the name of a run's folder until everything is in it
LARGEST_JSON = 20_000_000  # bytes of a params.json or about.json we are ready to read


class Loaded(NamedTuple):
    """A run as it was saved: the model in eval mode on the CPU, its statistics by name, and about.json."""

    lm: LM
    tokenizer: Tokenizer
    params: Params
    train_stats: dict[str, list[Stat]]
    about: dict[str, Any]


def output_root(out: str | None = None) -> Path:
    """The folder of all outputs: `out`, else WHATIF_OUT, else the folder above the repository."""
    return Path(out or os.environ.get("WHATIF_OUT") or REPOSITORY.parent).expanduser().resolve()


def run_folders(root: Path) -> Iterator[Path]:
    """The folder of every run saved under `root`, complete or not; symbolic links are not followed."""
    for folder, subfolders, _ in os.walk(root / "saved-models"):
        runs = sorted(name for name in subfolders if TIMESTAMP.fullmatch(name.removesuffix(PARTIAL)))
        subfolders[:] = sorted(set(subfolders) - set(runs))
        yield from (Path(folder, name) for name in runs)


def find_run(timestamp: str, out: str | None = None) -> Path:
    """The folder of a complete run; ValueError with the nearest timestamps if there is none."""
    root = output_root(out)
    folders = list(run_folders(root))
    found = [folder for folder in folders if folder.name == timestamp]
    if len(found) > 1:
        raise ValueError(f"there are {len(found)} runs {timestamp}: {', '.join(map(str, found))}")
    if found:
        return found[0]
    if partial := [folder for folder in folders if folder.name == f"{timestamp}{PARTIAL}"]:
        raise ValueError(f"the run {timestamp} is incomplete, killed or still training: {partial[0]}")
    complete = [folder.name for folder in folders if not folder.name.endswith(PARTIAL)]
    nearest = ", ".join(get_close_matches(str(timestamp), complete, n=3, cutoff=0)) or "none at all"
    raise ValueError(f"no run {timestamp!r:.60} in {root / 'saved-models'}; nearest: {nearest}")


class RunFolder:
    """The folder of one run, `{timestamp}.partial` until `finish` renames it to `{timestamp}`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.timestamp = path.name.removesuffix(PARTIAL)

    @classmethod
    def claim(
        cls, root: Path, subfolder_of: Callable[[str], str], when: datetime | None = None
    ) -> "RunFolder":
        """A new folder under the next timestamp that no run below `root` has; `subfolder_of` says where, given it."""
        code_of_this_process()  # now, since the files may be edited while the run trains
        base = (root / "saved-models").resolve()
        base.mkdir(parents=True, exist_ok=True)
        when = when or datetime.now()
        while True:
            timestamp = f"{when:%Y-%m-%d--%H-%M-%S}"
            when += timedelta(seconds=1)
            token = base / f".{timestamp}"  # whoever makes it decides alone about this second
            try:
                token.mkdir()
            except FileExistsError:
                continue
            try:
                if all(folder.name.removesuffix(PARTIAL) != timestamp for folder in run_folders(root)):
                    folder = partial_folder(base, subfolder_of(timestamp), timestamp)
                    folder.mkdir(parents=True)
                    return cls(folder)
            finally:
                token.rmdir()

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    def finish(self) -> None:
        """Declare the folder complete."""
        self.path = self.path.rename(self.path.with_name(self.timestamp))


def partial_folder(base: Path, subfolder: str, timestamp: str) -> Path:
    """`base`/`subfolder` with .partial at its end; ValueError if a run saved there would not be found again."""
    path = Path(os.path.normpath(base / subfolder))
    if path.name != timestamp or base not in path.parents:
        raise ValueError(
            f"save_folder_name gives {subfolder!r}: it must be a path inside saved-models that ends in /{timestamp}"
        )
    return path.with_name(timestamp + PARTIAL)


def save(
    folder: Path, *, params: Params, lm: LM, stats: Stats, summary: dict[str, Any], command: list[str]
) -> None:
    """Write everything about a run into its (still partial) folder; `summary` holds its final numbers."""
    assert isinstance(lm.tokenizer, Tokenizer), "what is trained here has a tokenizer of ours"
    code = code_of_this_process()
    write_json(folder / "params.json", {name: asdict(section) for name, section in params._asdict().items()})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights(lm).items()}
    write_weights(folder / "model.safetensors", tensors)
    (folder / "tokenizer").mkdir()
    lm.tokenizer.save(folder / "tokenizer")
    stats.save(folder / "stats.json")
    (folder / "diff.patch").write_bytes(code.diff)
    about = {
        "timestamp": folder.name.removesuffix(PARTIAL),
        "command": command,
        "versions": versions(),
        "commit": code.commit,
        "model_hash": code.model_hash,
        "summary": summary,
    }
    write_json(folder / "about.json", about)


def load(folder: Path, step: int | None = None) -> Loaded:
    """The run saved in `folder`, with the weights kept at `step` or those it ended with.

    ValueError in one sentence if it is damaged, foreign or older than the code can read.
    """
    params, tokenizer, about = read_run(folder)
    lm = load_lm(weights_file(folder, step), params.model, tokenizer)
    return Loaded(lm, tokenizer, params, Stats.load(regular_file(folder / "stats.json")).train_stats, about)


def load_checkpoints(folder: Path) -> Iterator[tuple[int, LM]]:
    """The model at every step whose weights were kept, opened one at a time; ValueError as for `load`."""
    params, tokenizer, _ = read_run(folder)
    for step, path in checkpoint_files(folder).items():
        yield step, load_lm(path, params.model, tokenizer)


def read_run(folder: Path) -> tuple[Params, Tokenizer, dict[str, Any]]:
    """All but weights and statistics: the params, the tokenizer and about.json."""
    for path in folder.rglob("*"):
        if not path.is_dir():
            regular_file(path)
    about = read_about(folder)
    params = read_params(folder, about)
    if about["model_hash"] != hash_of_model():
        print(f"{folder.name}: model/ has changed since this run was saved (at {saved_at(about)})")
    return params, Tokenizer.load(folder / "tokenizer"), about


def read_about(folder: Path) -> dict[str, Any]:
    """about.json: the timestamp, command, versions, commit, hash of model/ and final numbers of a run."""
    about = read_json(folder / "about.json")
    if not isinstance(about.get("summary"), dict) or not isinstance(about.get("model_hash"), str):
        raise ValueError(f"{folder / 'about.json'} is not ours: it lacks a summary or a model_hash")
    return about


def read_params(folder: Path, about: dict[str, Any]) -> Params:
    """The params of the run in `folder`; a field it was saved without has its default, one we lack is refused."""
    sections = read_json(folder / "params.json")
    try:
        return Params(
            read_section(DataParams, sections.get("data"), about),
            read_section(TrainParams, sections.get("train"), about),
            read_section(ModelParams, sections.get("model"), about),
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / 'params.json'}: {one_line(error)}") from error


def read_section(params_class: type, section: object, about: dict[str, Any]) -> Any:
    """`params_class` with the values of a section of params.json."""
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


def as_tuples(value: Any) -> Any:
    """JSON knows no tuples and params have no lists, so what was saved as a list was a tuple."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ValueError for anything else."""
    regular_file(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has over {LARGEST_JSON:,} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
    return content


def saved_at(about: dict[str, Any]) -> str:
    commit = str(about.get("commit"))
    return f"commit {commit}" if COMMIT.fullmatch(commit) else "an unknown commit"
