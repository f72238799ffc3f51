"""Accuracy by slice of a task's samples, such as their length: tables of saved runs, and charts of a report."""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from explore.compare.curves import MIN_BAND_SEEDS
from explore.compare.metrics import measured
from explore.compare.parts import Figures, ReportPart, table_data
from explore.compare.verdicts import interval
from train.evaluation import SLICES_FILE
from train.saving.run_folder import find_run
from train.saving.weights import regular_file

MAX_SLICE_BYTES = 20_000_000


class SliceOfRun(NamedTuple):
    """The accuracy of a run on the samples of one slice. Columns of `slices`."""

    eval_set: str  # empty for the validation split
    slice: str  # such as "length"
    value: int
    samples: int
    accuracy: float  # of scored tokens
    all_right: float  # share of samples whose scored tokens are all right, given the true tokens before each


def slices(timestamp: str, out: str | None = None) -> pd.DataFrame:
    """Return the accuracy of a saved run by slice: a row for each value in the validation split and the evaluation sets.

    The columns are the fields of SliceOfRun. The table is empty for text. `out` is the output root (`--out`). Raise
    ValueError if there is no such run.
    """
    return pd.DataFrame(read_slices(find_run(timestamp, out)), columns=list(SliceOfRun._fields))


def read_slices(folder: Path) -> list[SliceOfRun]:
    """Return the rows of a run's slices.csv, or none if it is missing or unreadable."""
    try:
        path = regular_file(folder / SLICES_FILE)
        if path.stat().st_size > MAX_SLICE_BYTES:
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return [slice_of(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError):
        return []


def slice_of(row: Mapping[str, str]) -> SliceOfRun:
    kinds = SliceOfRun.__annotations__.items()
    return SliceOfRun(**{name: kind(row.get(name)) for name, kind in kinds})


def slice_figures(part: ReportPart, figures: Figures) -> str:
    """Return a chart of the accuracy against each slice, with the range of the training samples shaded.

    That range is the one of the validation split, whose samples are drawn like those to train on.
    """
    read = {i: runs_slices(part, i) for i in part.colored}
    rows = [row for runs in read.values() for run in runs for row in run]
    names = [
        name
        for name in dict.fromkeys(row.slice for row in rows)
        if len({row.value for row in rows if row.slice == name}) > 1
    ]
    return "".join(slice_figure(part, read, name, figures) for name in names)


def runs_slices(part: ReportPart, i: int) -> list[list[SliceOfRun]]:
    """Return the slices of the runs of a variant at its best setting."""
    runs = part.variants[i].best_runs
    return [read_slices(Path(str(folder))) for run in runs if (folder := measured(run, "folder"))]


def slice_figure(
    part: ReportPart, read: Mapping[int, list[list[SliceOfRun]]], name: str, figures: Figures
) -> str:
    every = [row for runs in read.values() for run in runs for row in run if row.slice == name]
    trained = [row.value for row in every if not row.eval_set]
    rows = []
    for i in part.colored:
        by_value = defaultdict(list)
        for run in read[i]:
            for value, accuracy in accuracies(run, name).items():
                by_value[value].append(accuracy)
        for value, found in sorted(by_value.items()):
            low, high = interval(np.array(found)) if len(found) >= MIN_BAND_SEEDS else (math.nan, math.nan)
            row = {
                "x": value,
                "accuracy": float(np.mean(found)),
                "low": max(0.0, low),
                "high": min(1.0, high),
            }
            rows.append(row | {"group": part.group_of[i], "name": part.variants[i].name})
    caption = (
        "Accuracy of scored tokens on validation and evaluation samples, each variant at its best setting: mean and, from "
        "three seeds on, 95 % interval. The shaded range is that of the training samples."
    )
    shaded = [{"low": min(trained), "high": max(trained)}] if trained else []
    data = {"slices": table_data(rows), "trained": table_data(shaded)}
    return figures.add("slices", data, part.tokens(name, "accuracy"), caption)


def accuracies(run: Sequence[SliceOfRun], name: str) -> dict[int, float]:
    """Return the accuracy of a run by the value of a slice, over all its sets, weighted by their samples."""
    totals: dict[int, list[float]] = {}
    for row in run:
        if row.slice == name:
            total = totals.setdefault(row.value, [0.0, 0.0])
            total[0] += row.samples * row.accuracy
            total[1] += row.samples
    return {value: right / n for value, (right, n) in totals.items() if n > 0}
