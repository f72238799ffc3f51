"""Saved runs: finding, listing and opening them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from data.dataloader import LMDataModule
from explore.variants import CODE, Row, row_of
from model.lm import LM
from train.build import make_data
from train.logs import printable
from train.params import SECTION_OF, column, did_you_mean
from train.provenance import code_id
from train.saver import (
    PARTIAL,
    find_run,
    is_training,
    load,
    load_checkpoints,
    output_root,
    read_about,
    read_params,
    run_folders,
)
from train.settings import VARIANT
from train.stats import Stat
from train.weights import checkpoint_files, one_line


class Results(NamedTuple):
    """An opened run. The dataset is made on first use, a ValueError where its text or its task cannot be had any more."""

    lm: LM
    dataset: LMDataModule
    train_stats: dict[str, list[Stat]]
    params: dict[str, Any]  # "data", "train" and "model"


def get_model_by_timestamp(timestamp: str, out: str | None = None, step: int | None = None) -> Results:
    """The saved run `timestamp`: lm, dataset, train_stats, params. `out` is the --out that it was saved with.

    With `step` the model is as it was then, if the run kept its weights (`checkpoint_every`).
    """
    return open_run(find_run(timestamp, out), output_root(out), step)


def checkpoints(timestamp: str, out: str | None = None) -> Iterator[tuple[int, LM]]:
    """(step, lm) for all weights that a saved run kept along the way (`checkpoint_every`), opened one at a time."""
    folder = find_run(timestamp, out)
    if not checkpoint_files(folder):
        raise ValueError(f"the run {timestamp} kept no checkpoints: checkpoint_every and --save make them")
    return load_checkpoints(folder)


def load_all(out: str | None = None, **filters: Any) -> dict[str, Results]:
    """Every complete run that fits `filters` (see `runs`), opened, by timestamp; what cannot be opened is named and left out."""
    root, table, opened = output_root(out), runs(out, **filters), {}
    folders = table[column("folder")]
    for timestamp, folder in folders[table[column("status")] == "complete"].items():
        try:
            opened[str(timestamp)] = open_run(Path(folder), root)
        except ValueError as error:
            print(printable(f"{timestamp} is left out: {error}"))
    return opened


def runs(out: str | None = None, **filters: Any) -> pd.DataFrame:
    """A table of all saved runs: a row each, by timestamp, with its final numbers and all its params.

    Filters are values of params, a list for any of several: runs(dim=128, dataset_name=["copy", "sort"]), or the names of
    variants: runs(variant="gru"). `status` is "complete", "training", or says that the run was killed, why it failed, or
    why it cannot be read. `code` names the code that trained it. A measured value named like a field of params, such as
    the CPU threads a run had, has the prefix `measured_`.
    """
    for name in filters.keys() - SECTION_OF.keys() - {VARIANT}:
        raise ValueError(
            f"runs are filtered by params, and there is no {name!r}; {did_you_mean(name, SECTION_OF)}"
        )
    rows = [
        describe(folder) for folder in sorted(run_folders(output_root(out)), key=lambda folder: folder.name)
    ]
    rows = [row for row in rows if fits(row, filters)]
    numbers = [name for row in rows for name in row if name not in SECTION_OF]
    timestamp, status, folder = map(column, ("timestamp", "status", "folder"))
    columns = dict.fromkeys(
        [timestamp, status, *(name for name in numbers if name != folder), *SECTION_OF, folder]
    )
    return pd.DataFrame(rows, columns=list(columns)).set_index(timestamp)


def fits(row: dict[str, Any], filters: dict[str, Any]) -> bool:
    for name, wanted in filters.items():
        if name not in row or row[name] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def describe(folder: Path) -> Row:
    """Return the row of the run in `folder`, from its JSON files alone."""
    known = {"timestamp": folder.name.removesuffix(PARTIAL), "folder": utf8(folder)}
    complete = not folder.name.endswith(PARTIAL)
    try:
        about = read_about(folder, complete)
        params = read_params(folder, about)
    except ValueError as error:
        return row_of(known | {"status": f"unreadable: {error}" if complete else "incomplete"})
    known[CODE] = code_id(about.get("code") or {})
    if complete:
        summary = about["summary"]
        if "stopped" in summary:
            summary["stopped"] = one_line(summary["stopped"])
        return row_of(summary | known | {"status": "complete"}, params)
    return row_of(known | {"status": status_of_partial(folder, about)}, params)


def utf8(path: Path) -> str:
    """Return `path` as text; bytes that are no UTF-8 as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def status_of_partial(folder: Path, about: dict[str, Any]) -> str:
    """Return how a run without results stands: it may be training again after a failure."""
    failed = f"failed: {one_line(about['failed'])}" if "failed" in about else ""
    try:
        return "training" if is_training(folder) else failed or "incomplete: killed"
    except OSError as error:  # a folder of somebody else's, in which we may not write
        return failed or f"incomplete: {one_line(error)}"


def open_run(folder: Path, root: Path, step: int | None = None) -> Results:
    lm, tokenizer, params, train_stats, _ = load(folder, step)
    dataset = make_data(params.data, params.model, root / "cache", tokenizer=tokenizer)
    return Results(lm, dataset, train_stats, params._asdict())
