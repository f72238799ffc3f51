"""The data of a report's page as one JSON document: its charts, its runs with their curves, and where each run came from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.data_params import DataParams
from explore.compare.charts import chart_specs
from explore.compare.curves import (
    MIN_BAND_SEEDS,
    TRAIN_SECONDS,
    TRAINING,
    VALIDATION,
    RunCurves,
    RunStats,
    curves_of_stats,
    read_stats,
)
from explore.compare.metrics import X_AXES
from explore.compare.pairs import partings
from explore.compare.parts import OTHERS, ReportPart, finite_or_none
from explore.compare.samples import TaskExample, sample_of
from explore.compare.sections import describe_ending, is_running
from explore.compare.variants import CODE, RunRow, is_number, measured, value_as_label
from model.model_params import ModelParams
from train.grid.params import SECTION_OF, Params, measured_column
from train.saving.run_folder import PARTIAL, read_about
from train.saving.weights import regular_file
from train.stats import Stat
from train.train_params import TrainParams

MAX_TEXT = 2_000  # characters of a text of a run
MAX_DIFF = 20_000  # characters of the diff of a run
MAX_DIFFS = 400_000  # characters of all diffs together
MIN_CURVE = 3  # validations of a run; with fewer in all runs, the page first shows the training loss
MAX_CLOCK_POINTS = 20  # points of the curve from steps to seconds
SHORT = {VALIDATION: "val", TRAINING: "train"}
# Measured values that a run's details show in another form, or not at all.
HIDDEN = ("folder", "sample", "status", "stopped", "weights")
TITLES = {"val_loss": "loss", "val_accuracy": "accuracy", "n_params": "parameters", "wall_seconds": "seconds"}
# Columns that are shown until the reader chooses.
SHOWN = ("val_loss", "val_accuracy", "n_params", "steps", "wall_seconds")


def page_document(
    rows: Sequence[RunRow],
    varied: Sequence[str],
    parts: Sequence[ReportPart],
    run_curves: Mapping[str, RunCurves],
    examples: Sequence[TaskExample | None],
    figures: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the data for the script of the page. `rows` are the runs that the page lists, in order."""
    texts = TextTable()
    specs = chart_specs()
    used = {entry["chart"] for entry in figures} | {name for name in specs if name.startswith("curves")}
    curves = [
        run_curves.get(str(measured(row, "folder"))) or curves_of_stats(read_stats(row)) for row in rows
    ]
    stats, abouts = [found.stats for found in curves], [read_origin(row) for row in rows]
    return {
        "axes": X_AXES,
        "charts": {name: spec for name, spec in specs.items() if name in used},
        "figures": list(figures),
        "columns": table_columns(rows, varied),
        "runs": [
            about_run(row, about, texts, examples) | progress_of_run(row, found) | {"id": run_id(row, i)}
            for i, (row, about, found) in enumerate(zip(rows, abouts, stats, strict=True))
        ],
        "curves": [
            points_of_run(found) | axis_factors(row, about)
            for row, about, found in zip(rows, abouts, stats, strict=True)
        ],
        "partings": partings([found.batches for found in curves]),
        "parts": [part_entry(part, rows) for part in parts] or [{"groups": {}, "means": []}],
        "texts": texts.texts,
        "firstLoss": "val"
        if any(len(found.get(VALIDATION, [])) >= MIN_CURVE for found in stats)
        else "train",
    }


class TextTable:
    """Texts that several runs share, such as their commands. Each is kept once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.places: dict[str, int] = {}
        self.n_diff = 0

    def add(self, text: str) -> int:
        """Return the index of `text`."""
        if text not in self.places:
            self.places[text] = len(self.texts)
            self.texts.append(text)
        return self.places[text]

    def add_diff(self, text: str) -> int:
        """Return the index of a diff, cut to MAX_DIFF characters. Of a new diff beyond MAX_DIFFS, keep only a note."""
        if len(text) > MAX_DIFF:
            text = text[:MAX_DIFF] + "\n... (all of it: diff.patch in the run's folder)"
        if text not in self.places:
            if self.n_diff > MAX_DIFFS:
                return self.add("The diff lies in diff.patch in the run's folder.")
            self.n_diff += len(text)
        return self.add(text)


def table_columns(rows: Sequence[RunRow], varied: Sequence[str]) -> list[dict[str, Any]]:
    """Return the columns of the table of runs: varied fields, measured values, other fields.

    A column whose values are all equal has one `value` in place of its `values`.
    """
    defaults = Params(DataParams(), TrainParams(), ModelParams()).flat()
    hidden = {measured_column(name) for name in HIDDEN}
    numbers = dict.fromkeys(
        name for row in rows for name in row if name not in SECTION_OF and name not in hidden
    )
    first = [measured_column(name) for name in SHOWN]
    names = dict.fromkeys([*varied, *(name for name in first if name in numbers), *numbers, *SECTION_OF])
    columns = []
    for name in names:
        if name == measured_column("timestamp"):
            continue
        values = [table_cell(row.get(name)) for row in rows]
        shown = name in varied or name in first
        column: dict[str, Any] = {"name": name, "title": TITLES.get(name, name), "shown": shown}
        if name in SECTION_OF:
            column["default"] = table_cell(defaults.get(name))
        if all(value == values[0] for value in values):
            column["value"] = values[0] if values else None
        else:
            column["values"] = values
        columns.append(column)
    return columns


def table_cell(value: object) -> str | int | float | None:
    """Return a value as a cell of the table: a finite number, a text, or None if nothing is known."""
    if value is None or (isinstance(value, float) and not is_number(value)):
        return None
    if is_number(value):
        number = finite_or_none(value)
        return number if isinstance(number, int | float) else None
    return cut_text(value_as_label(value))


def cut_text(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " ..."


def run_id(row: RunRow, i: int) -> str:
    """Return the timestamp of a run, or a number if it failed before it had a folder."""
    return str(measured(row, "timestamp") or f"unsaved run {i + 1}")


def read_origin(row: RunRow) -> dict[str, Any]:
    """Return about.json of a run, or an empty dict if it has none or an unreadable one."""
    folder = measured(row, "folder")
    if not isinstance(folder, str) or not folder:
        return {}
    try:
        return read_about(Path(folder), not folder.endswith(PARTIAL))
    except ValueError:
        return {}


def about_run(
    row: RunRow, about: Mapping[str, Any], texts: TextTable, examples: Sequence[TaskExample | None]
) -> dict[str, Any]:
    """Return the origin of a run, from its about.json, with its diff, its sample and how it ended."""
    folder = measured(row, "folder")
    entry: dict[str, Any] = {"ended": describe_ending(row)}
    if isinstance(measured(row, "leak"), str):
        entry["ended"] += ", leak"
    if sample := sample_of(row, examples):
        entry["sample"] = cut_text(sample)
    if not isinstance(folder, str) or not folder:
        return entry
    entry["folder"] = folder
    if not about:
        return entry
    command, versions = about.get("command"), about.get("versions")
    if isinstance(command, list):
        entry["command"] = texts.add(" ".join(map(str, command)))
    if isinstance(versions, dict):
        entry["versions"] = texts.add(", ".join(f"{name} {version}" for name, version in versions.items()))
    commit = f"{str(about.get('commit') or '')[:12]} {about.get('subject') or ''}".strip()
    if commit:
        entry["commit"] = texts.add(f"{commit}{' (edited)' if about.get('edited') else ''}")
    if about.get("code") and isinstance(code := measured(row, CODE), str):
        entry["code"] = texts.add(code)
    if diff := read_diff(Path(folder)):
        entry["diff"] = texts.add_diff(diff)
    return entry


def progress_of_run(row: RunRow, found: RunStats) -> dict[str, Any]:
    """Return the progress of a run that is still training. Return an empty dict for any other run."""
    if not is_running(row):
        return {}
    step = max((values[-1].s for values in found.values() if values), default=0)
    return {"running": True, "ended": f"training, step {step}"}


def read_diff(folder: Path) -> str:
    """Return the difference of the code from its commit, or "" if there is none."""
    try:
        with regular_file(folder / "diff.patch").open("rb") as file:
            return file.read(MAX_DIFF + 1).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def axis_factors(row: RunRow, about: Mapping[str, Any]) -> dict[str, float]:
    """Return the tokens, FLOPs and seconds of a step: means of a run that has ended, else what was estimated before it began."""
    steps = measured(row, "steps")
    costs = {name: about.get("costs_of_step", {}).get(name) for name in ("tokens", "flops")}
    if is_number(steps) and steps > 0:
        for axis, name in (("tokens", "trained_tokens"), ("flops", "flops"), ("seconds", "wall_seconds")):
            if is_number(total := measured(row, name)):
                costs[axis] = total / steps
    return {axis: float(f"{cost:.6g}") for axis, cost in costs.items() if is_number(cost)}


def points_of_run(found: RunStats) -> dict[str, Any]:
    """Return the losses of a run over its steps, and its seconds at some of them."""
    entry: dict[str, Any] = {SHORT[name]: points(found[name]) for name in SHORT if found.get(name)}
    if timed := found.get(TRAIN_SECONDS):
        entry["clock"] = points(timed[:: max(1, len(timed) // MAX_CLOCK_POINTS)])
    return entry


def points(values: Sequence[Stat]) -> dict[str, list]:
    """Return the steps, each as its difference from the one before, and the values with five digits."""
    steps = [stat.s for stat in values]
    return {
        "s": [step - before for step, before in zip(steps, [0, *steps], strict=False)],
        "v": [float(f"{stat.v:.5g}") for stat in values],
    }


def part_entry(part: ReportPart, rows: Sequence[RunRow]) -> dict[str, Any]:
    """Return the averaged curves of a part, and the group of each of its runs by the run's index on the page."""
    index = {str(timestamp): i for i, row in enumerate(rows) if (timestamp := measured(row, "timestamp"))}
    groups: dict[int, str] = {}
    members: dict[tuple[int, int], list[int]] = {}
    for i, variant in enumerate(part.variants):
        for (setting, _), run in variant.runs.items():
            at = index.get(str(measured(run, "timestamp")))
            if at is not None:
                j = variant.settings.index(setting)
                groups[at] = part.group(i, j)
                members.setdefault((i, j), []).append(at)
    means = []
    for loss, averages in part.curves.items():
        for (i, j), curve in averages.items():
            if (i, j) not in members:
                continue
            variant = part.variants[i]
            entry = {
                "loss": SHORT[loss],
                "name": f"{variant.name}, {variant.settings[j]}",
                "group": part.group(i, j),
                "runs": members[i, j],
            }
            series = {"s": curve.steps, "v": curve.mean}
            if entry["group"] != OTHERS and curve.n_seeds >= MIN_BAND_SEEDS:
                series |= {"low": curve.low, "high": curve.high}
            means.append(
                entry | {name: [finite_or_none(float(f"{x:.5g}")) for x in xs] for name, xs in series.items()}
            )
    return {"groups": {str(at): group for at, group in groups.items()}, "means": means}
