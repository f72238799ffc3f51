"""Saved runs: finding, listing and opening them."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from data.dataloader import LMDataModule
from model.lm import LM
from train.build import make_data
from train.params import SECTION_OF, did_you_mean
from train.saver import PARTIAL, load, output_root, read_about, read_params, run_folders
from train.stats import Stat


class Results(NamedTuple):
    """An opened run. The dataset is made on first use, a ValueError where its text or its task cannot be had any more."""

    lm: LM
    dataset: LMDataModule
    train_stats: dict[str, list[Stat]]
    params: dict[str, Any]  # "data", "train" and "model"


def get_model_by_timestamp(timestamp: str, out: str | None = None) -> Results:
    """The saved run `timestamp`: lm, dataset, train_stats, params. `out` is the --out that it was saved with."""
    return open_run(find_run(timestamp, out), output_root(out))


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

    Filters are values of params, a list for any of several: runs(dim=128, dataset_name=["copy", "sort"]). `status` is
    "complete", or says that the run is incomplete or why it cannot be read; such runs have no params to fit a filter.
    """
    for name in filters.keys() - SECTION_OF.keys():
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
    if folder.name.endswith(PARTIAL):
        return row | {"status": "incomplete: killed, or still training"}
    try:
        about = read_about(folder)
        params = read_params(folder, about)
    except ValueError as error:
        return row | {"status": f"unreadable: {error}"}
    return {**about["summary"], **params.flat(), **row, "status": "complete"}


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


def open_run(folder: Path, root: Path) -> Results:
    lm, tokenizer, params, train_stats, _ = load(folder)
    dataset = make_data(params.data, params.model, root / "cache", tokenizer=tokenizer)
    return Results(lm, dataset, train_stats, params._asdict())
