"""Find, list and open saved runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

import pandas as pd

from data.data_params import DataParams
from data.dataloader import LMDataModule
from explore.compare.code import CodeOfRun, with_code_labels
from explore.compare.variants import CODE, RunRow, row_of
from model.lm import LM
from model.model_params import ModelParams
from train.data import make_data
from train.grid.config_text import VARIANT
from train.grid.params import SECTION_OF, field_hint, measured_column
from train.logs import printable
from train.saving.run_folder import (
    PARTIAL,
    find_run,
    is_training,
    load_checkpoints,
    load_run,
    output_root,
    read_about,
    read_params,
    run_folders,
)
from train.saving.weights import checkpoint_files, one_line
from train.stats import Stat
from train.train_params import TrainParams


class RunParams(TypedDict):
    """The params of a run."""

    data: DataParams
    train: TrainParams
    model: ModelParams


class Results(NamedTuple):
    """An opened run.

    `dataset` loads its data on first use. It raises ValueError if the run's text or task no longer exists.
    """

    lm: LM
    dataset: LMDataModule
    train_stats: dict[str, list[Stat]]
    params: RunParams


def get_model_by_timestamp(timestamp: str, out: str | None = None, step: int | None = None) -> Results:
    """Load a saved run: its model in evaluation mode, its data, its statistics and its params.

    `timestamp` names the run, such as "2024-04-22--16-17-00". `out` is the output root it was saved under (`--out`);
    None is the default one. `step` loads the weights after that step in place of the final ones, if the run kept them
    (`checkpoint_every`). Raise ValueError if there is no such run or checkpoint.
    """
    return open_run(find_run(timestamp, out), output_root(out), step)


def checkpoints(timestamp: str, out: str | None = None) -> Iterator[tuple[int, LM]]:
    """Yield (step, lm) for each checkpoint of a saved run, in order of steps.

    `timestamp` and `out` are those of get_model_by_timestamp(). Raise ValueError if there is no such run, or if it kept
    no checkpoints (`checkpoint_every`).
    """
    folder = find_run(timestamp, out)
    if not checkpoint_files(folder):
        raise ValueError(
            f"the run {timestamp} kept no checkpoints: train with checkpoint_every and --save to keep them"
        )
    return load_checkpoints(folder)


def load_all(out: str | None = None, **filters: object) -> dict[str, Results]:
    """Open all complete runs that match `filters`, and return them by timestamp. See `runs` for the filters.

    A run that cannot be opened is skipped, and the reason is printed.
    """
    root, table, opened = output_root(out), runs(out, **filters), {}
    folders = table[measured_column("folder")]
    for timestamp, folder in folders[table[measured_column("status")] == "complete"].items():
        try:
            opened[str(timestamp)] = open_run(Path(folder), root)
        except ValueError as error:
            print(printable(f"{timestamp} is left out: {error}"))
    return opened


def runs(out: str | None = None, **filters: object) -> pd.DataFrame:
    """Return a table of all saved runs: a row for each timestamp, with final numbers and all params.

    A filter gives a field one value, or a list of alternatives: runs(dim=128, dataset_name=["copy", "sort"]). The
    filter `variant` selects runs by the name of their variant: runs(variant="gru"). `out` is the output root (`--out`).

    The column `status` is "complete", "training", or the reason why a run ended early or is unreadable. `code` says
    what code trained the run: the subject of its commit, or what had changed since the first run in the table. A
    measured value whose name is also a field has the prefix `measured_`, such as the CPU threads of a run. Raise
    ValueError for a filter that is no field.
    """
    for name in filters.keys() - SECTION_OF.keys() - {VARIANT}:
        raise ValueError(
            f"runs() has no filter {name!r}: filters are fields of the params; {field_hint(name, SECTION_OF)}"
        )
    rows = [
        row_of_folder(folder)
        for folder in sorted(run_folders(output_root(out)), key=lambda folder: folder.name)
    ]
    rows = with_code_labels([row for row in rows if matches_filters(row, filters)])
    numbers = [name for row in rows for name in row if name not in SECTION_OF]
    timestamp, status, folder = map(measured_column, ("timestamp", "status", "folder"))
    columns = dict.fromkeys(
        [timestamp, status, *(name for name in numbers if name != folder), *SECTION_OF, folder]
    )
    return pd.DataFrame(rows, columns=list(columns)).set_index(timestamp)


def matches_filters(row: RunRow, filters: Mapping[str, object]) -> bool:
    """Return True if a run matches all filters."""
    for name, allowed in filters.items():
        if name not in row or row[name] not in (allowed if isinstance(allowed, list) else [allowed]):
            return False
    return True


def row_of_folder(folder: Path) -> RunRow:
    """Return the row of the run in `folder`. Read only its JSON files, not its weights."""
    known: dict[str, object] = {"timestamp": folder.name.removesuffix(PARTIAL), "folder": utf8(folder)}
    complete = not folder.name.endswith(PARTIAL)
    try:
        about = read_about(folder, complete)
        params = read_params(folder, about)
    except ValueError as error:
        return row_of(known | {"status": f"unreadable: {error}" if complete else "incomplete"})
    known[CODE] = CodeOfRun.of(about, folder)
    if complete:
        summary = about["summary"]
        if "stopped" in summary:
            summary["stopped"] = one_line(summary["stopped"])
        return row_of(summary | known | {"status": "complete"}, params)
    return row_of(known | {"status": status_of_partial(folder, about)}, params)


def utf8(path: Path) -> str:
    """Return `path` as text, with escapes for bytes that are not UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def status_of_partial(folder: Path, about: Mapping[str, object]) -> str:
    """Return the status of a run without results: "training", "failed: ..." or "incomplete: ..."."""
    failed = f"failed: {one_line(str(about['failed']))}" if "failed" in about else ""
    try:
        return "training" if is_training(folder) else failed or "incomplete: killed"
    except OSError as error:  # such as a folder of another user, without permission to write
        return failed or f"incomplete: {one_line(error)}"


def open_run(folder: Path, root: Path, step: int | None = None) -> Results:
    lm, tokenizer, params, train_stats, _ = load_run(folder, step)
    dataset = make_data(params.data, params.model, root / "cache", tokenizer=tokenizer)
    return Results(
        lm, dataset, train_stats, {"data": params.data, "train": params.train, "model": params.model}
    )
