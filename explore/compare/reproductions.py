"""Reproductions: the runs by which the claims of a shipped config were judged, kept in reproductions/NAME.json without weights.

The files are part of the repository, so a fresh clone shows every claim with what was seen. Each run has its fields, its
final numbers, the times that claims ask for, a short curve, and a hash of the code that trained it.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from explore.compare.claims import ClaimVerdict, fitted_claims, judge_all
from explore.compare.metrics import RunRow, Time, all_stats, is_number, measured, read_metric, time_to
from train.fitted_table import FittedTable
from train.grid.claims import TIME_TO, Claim, Expectations
from train.grid.expand import GridError, config_files, expand_grid
from train.grid.params import SECTION_OF
from train.saving.code import hash_of_text
from train.saving.durable import replacing
from train.saving.provenance import code_of_this_process
from train.saving.run_folder import as_tuples

REPRODUCE = "reproduce"  # of the configs
RECORD_FORMAT = 1  # of the files
NO_DATE = "never"  # in the column of dates
CURVE_POINTS = 40  # of a run's validations that are kept
LEFT_OUT = ("sample", "folder", "timestamp")  # measured values that say nothing about a claim


class Reproduction(NamedTuple):
    """A shipped config with claims, and the runs that are kept of it."""

    name: str
    expectations: Expectations
    rows: list[RunRow]
    date: str  # of the latest run; "" if none is kept
    machine: str
    has_todays_code: bool

    @property
    def verdicts(self) -> list[ClaimVerdict]:
        return judge_all(self.expectations.claims, self.rows)


def keep(file: Path, claims: Sequence[Claim], rows: Sequence[RunRow]) -> None:
    """Write the runs of a config to `file`."""
    fields = [{name: row[name] for name in SECTION_OF if name in row} for row in rows]
    common = {name: value for name, value in fields[0].items() if all(one[name] == value for one in fields)}
    times = [column for claim in claims for pick in claim.picks.values() for column in pick.columns]
    kept = [
        {
            "fields": {name: value for name, value in own.items() if name not in common},
            "metrics": {name: short(value) for name, value in row.items() if is_kept(name, value)},
            "times": {
                column: time_to(row, read_metric(column)) for column in times if TIME_TO.fullmatch(column)
            },
            "curve": curve_of(row),
            "code": code_hash(own),
            "date": str(measured(row, "timestamp"))[:10],
        }
        for own, row in zip(fields, rows, strict=True)
    ]
    machine = f"{platform.processor() or platform.machine()}, {psutil.cpu_count(logical=False) or 1} cores"
    record = {"format": RECORD_FORMAT, "machine": machine, "common": common, "runs": kept}
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def is_kept(name: str, value: object) -> bool:
    return name not in SECTION_OF and name not in LEFT_OUT and (is_number(value) or isinstance(value, str))


def short(value: object) -> object:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def curve_of(row: RunRow) -> list[tuple[int, float]]:
    """Return (step, validation loss) of a run, at most CURVE_POINTS of them."""
    found = all_stats(str(measured(row, "folder"))).get("stat/val_loss:main", [])
    every = -(-len(found) // CURVE_POINTS) or 1
    return [(stat.s, float(f"{stat.v:.5g}")) for stat in found[::every]]


def code_hash(values: Mapping[str, object]) -> str:
    """Return a hash of the code that would train a run with these values of fields today."""
    return hash_of_text(json.dumps(sorted(code_of_this_process().code.hashes(values).items())))


def read_reproduction(name: str, configs: Path, records: Path) -> Reproduction:
    """Return a config of the folder reproduce with its kept runs. Raise GridError if the config has errors."""
    read = expand_grid(config_files(f"{REPRODUCE}/{name}", configs))
    if errors := [line for part in read for line in part.errors.lines]:
        raise GridError(errors)
    expectations = read[-1].expectations
    file = records / f"{name}.json"
    if not file.is_file():
        return Reproduction(name, expectations, [], "", "", False)
    record = json.loads(file.read_text(encoding="utf-8"))
    rows = [row_of_record(one, record["common"]) for one in record["runs"]]
    same = all(one["code"] == code_hash(fields_of(one, record["common"])) for one in record["runs"])
    dates = [one["date"] for one in record["runs"]]
    return Reproduction(name, expectations, rows, max(dates, default=""), record["machine"], same)


def fields_of(one: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, object]:
    return {name: as_tuples(value) for name, value in {**common, **one["fields"]}.items()}


def row_of_record(one: Mapping[str, Any], common: Mapping[str, Any]) -> RunRow:
    times = {column: None if time is None else Time(*time) for column, time in one["times"].items()}
    return {**one["metrics"], **times, **fields_of(one, common)}


def all_reproductions(configs: Path, records: Path) -> list[Reproduction]:
    names = sorted(path.stem for path in (configs / REPRODUCE).glob("*.txt"))
    return [read_reproduction(name, configs, records) for name in names]


def table_of_reproductions(found: Sequence[Reproduction]) -> FittedTable:
    """Return the table of all claims of the shipped configs, with what was seen."""
    cells = [["config", "claim", "expected", "seen", "verdict", "run on"]]
    for one in found:
        when = f"{one.date}{'' if one.has_todays_code else ', other code'}" if one.date else NO_DATE
        for i, verdict in enumerate(one.verdicts):
            text = verdict.verdict if one.date else "not run yet"
            cells.append(["" if i else one.name, verdict.name, verdict.expected, verdict.seen, text, when])
    return fitted_claims(cells)
