"""Saved runs: finding, listing and opening them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from data.dataloader import LMDataModule
from model.lm import LM
from train.build import make_data
from train.params import SECTION_OF, did_you_mean
from train.saver import (
    PARTIAL,
    find_run,
    is_training,
    load,
    load_checkpoints,
    output_root,
    read_about,
    read_json,
    read_params,
    run_folders,
)
from train.settings import VARIANT
from train.stats import Stat
from train.weights import checkpoint_files


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
    for timestamp, folder in table[table.status == "complete"].folder.items():
        try:
            opened[str(timestamp)] = open_run(Path(folder), root)
        except ValueError as error:
            print(f"{timestamp} is left out: {error}")
    return opened


def runs(out: str | None = None, **filters: Any) -> pd.DataFrame:
    """A table of all saved runs: a row each, by timestamp, with its final numbers and all its params.

    Filters are values of params, a list for any of several: runs(dim=128, dataset_name=["copy", "sort"]), or the names of
    variants: runs(variant="gru"). `status` is "complete", "training", or says that the run was killed, why it failed, or
    why it cannot be read.
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
    columns = dict.fromkeys(["timestamp", "status", *numbers, *SECTION_OF, "folder"])
    return pd.DataFrame(rows, columns=list(columns)).set_index("timestamp")


def fits(row: dict[str, Any], filters: dict[str, Any]) -> bool:
    for name, wanted in filters.items():
        if name not in row or row[name] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def describe(folder: Path) -> dict[str, Any]:
    """A run's row, from its JSON files alone."""
    row = {"timestamp": folder.name.removesuffix(PARTIAL), "folder": str(folder)}
    complete = not folder.name.endswith(PARTIAL)
    try:
        about = read_about(folder) if complete else read_json(folder / "about.json")
        params = read_params(folder, about)
    except ValueError as error:
        return row | {"status": f"unreadable: {error}" if complete else "incomplete"}
    if complete:
        return {**about["summary"], **params.flat(), **row, "status": "complete"}
    if is_training(folder):  # it may go on after a failure
        status = "training"
    else:
        status = f"failed: {about['failed']}" if "failed" in about else "incomplete: killed"
    return params.flat() | row | {"status": status}


def open_run(folder: Path, root: Path, step: int | None = None) -> Results:
    lm, tokenizer, params, train_stats, _ = load(folder, step)
    dataset = make_data(params.data, params.model, root / "cache", tokenizer=tokenizer)
    return Results(lm, dataset, train_stats, params._asdict())
