"""Find, list and open saved runs."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, TypedDict

import pandas as pd

from data.data_params import DataParams, dataset_label
from data.dataloader import LMDataModule
from explore.compare.code import CodeOfRun, with_code_labels
from explore.compare.variants import (
    CODE,
    DATA,
    RunRow,
    ended_badly,
    has_ended,
    measured,
    row_of,
    varied_fields,
)
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

DATASET = fields(DataParams)[0].name  # the column of the task or text
NUMBERS = ("val_loss", "val_accuracy", "n_params", "n_active_params")  # that a table of runs shows


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

    `timestamp` names the run, such as "2024-04-22--16-17-00"; "latest" is the last one. `out` is the output root it was saved under (`--out`);
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
    root, table, opened = output_root(out), runs(out, all=True, **filters), {}
    folders = table[measured_column("folder")]
    for timestamp, folder in folders[table[measured_column("status")] == "complete"].items():
        try:
            opened[str(timestamp)] = open_run(Path(folder), root)
        except ValueError as error:
            print(printable(f"{timestamp} is left out: {error}"))
    return opened


class RunsTable(pd.DataFrame):
    """A table of runs that shows only the columns in `attrs["shown"]`. All others are there, to be used by name.

    Tables made from it are plain ones, and show all of their columns.
    """

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    @property
    def shown(self) -> pd.DataFrame:
        return pd.DataFrame(self)[self.attrs["shown"]]

    @property
    def hidden(self) -> str:
        n_hidden = len(self.columns) - len(self.attrs["shown"])
        return f"{n_hidden} more columns; runs(all=True) shows all"

    def __repr__(self) -> str:
        # Columns that do not fit stand below the others.
        width = shutil.get_terminal_size().columns
        with pd.option_context("display.max_columns", None, "display.width", width):
            return f"{self.shown!r}\n{self.hidden}"

    def _repr_html_(self) -> str:
        html = self.shown._repr_html_()  # type: ignore[operator]
        return f"{html}<p>{self.hidden}</p>"


def runs(out: str | None = None, *, all: bool = False, **filters: object) -> pd.DataFrame:
    """Return a table of all saved runs, a row for each timestamp, the lowest loss first.

    The table shows config, task or text, the fields that vary, code, final numbers, and how each run ended. Further
    columns, with all params, can be used by name. `all=True` shows them, too, with the rows in order of time. Runs on
    different data stand one below the other, those of the last run first.

    A filter gives a field one value, or a list of alternatives: runs(dim=128, dataset_name=["copy", "sort"]). The
    filter `variant` selects runs by the name of their variant: runs(variant="gru"). `out` is the output root (`--out`).

    The column `status` is "complete", "training", or the reason why a run ended early or is unreadable; `ended` says
    in addition how a complete one ended. `code` says what code trained the run: the subject of its commit, or what
    had changed since the first run in the table. A measured value whose name is also a field has the prefix
    `measured_`, such as the CPU threads of a run. Raise ValueError for a filter that is no field.
    """
    for name in filters.keys() - SECTION_OF.keys() - {VARIANT}:
        raise ValueError(
            f"runs() has no filter {name!r}: filters are fields of the params; {field_hint(name, SECTION_OF)}"
        )
    root = output_root(out)
    rows = [row_of_folder(folder) for folder in sorted(run_folders(root), key=lambda folder: folder.name)]
    rows = with_code_labels([row for row in rows if matches_filters(row, filters)])
    numbers = [name for row in rows for name in row if name not in SECTION_OF]
    timestamp, status, folder = map(measured_column, ("timestamp", "status", "folder"))
    columns = dict.fromkeys(
        [timestamp, status, *(name for name in numbers if name != folder), *SECTION_OF, folder]
    )
    if all:
        return pd.DataFrame(rows, columns=list(columns)).set_index(timestamp)
    shown = shown_columns(rows)
    for row in rows:
        row |= {measured_column("config"): config_of(row, root), measured_column("ended"): ending_of_row(row)}
    columns = dict.fromkeys([timestamp, *shown, *columns])
    table = RunsTable(best_first(rows), columns=list(columns)).set_index(timestamp)
    table = RunsTable(table)
    table.attrs["shown"] = shown
    return table


def shown_columns(rows: Sequence[RunRow]) -> list[str]:
    """Return the columns that a table of runs shows."""
    varied = [name for name in varied_fields([row for row in rows if has_ended(row)]) if name != DATASET]
    numbers = [name for name in NUMBERS if any_of(rows, name)]
    if all(measured(row, "n_active_params") in (None, measured(row, "n_params")) for row in rows):
        numbers = [name for name in numbers if name != "n_active_params"]
    return [
        *dict.fromkeys(
            [measured_column("config"), DATASET, *varied, CODE, *numbers, measured_column("ended")]
        )
    ]


def any_of(rows: Sequence[RunRow], name: str) -> bool:
    """Return True if a run has the measured value `name`."""
    return any(measured(row, name) is not None for row in rows)


def config_of(row: RunRow, root: Path) -> str:
    """Return the config of a run: the part of its folder's path before the name of its task."""
    folder = Path(str(measured(row, "folder")))
    parts = folder.relative_to(root / "saved-models").parts[:-1]
    task = dataset_label(row.get(DATASET)).replace("/", "--")
    return "/".join(parts[: parts.index(task)] if task in parts else parts[:1])


def ending_of_row(row: RunRow) -> str:
    """Return how a run ended, or the status of a run that is not complete."""
    status = str(measured(row, "status"))
    return str(measured(row, "stopped", "finished")) if status == "complete" else status


def best_first(rows: Sequence[RunRow]) -> list[RunRow]:
    """Return the rows with the lowest loss first, those on the data of the last run before others.

    Runs without a loss, or that diverged, come last.
    """
    of_data = {name: i for i, name in enumerate(map(data_of_row, rows))}

    def key(row: RunRow) -> tuple[int, bool, float]:
        loss = measured(row, "val_loss")
        if not isinstance(loss, int | float) or math.isnan(loss) or ended_badly(row):
            return -of_data[data_of_row(row)], True, 0.0
        return -of_data[data_of_row(row)], False, loss

    return sorted(rows, key=key)


def data_of_row(row: RunRow) -> str:
    """Return a text that is equal for runs on the same data."""
    return repr([row.get(name) for name, section in SECTION_OF.items() if section == DATA])


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
