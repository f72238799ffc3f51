"""Reproductions: the runs by which the claims of a shipped config were judged, kept in reproductions/NAME.json without weights.

The files are part of the repository, so a fresh clone shows every claim with what was seen. Each run has its fields, its
final numbers, the times that claims ask for, a short curve, and a hash of the code that trained it.
"""

import json
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from explore.compare.against import Decision
from explore.compare.claims import ClaimVerdict, fitted_claims, judge_all, style_of_claim
from explore.compare.metrics import (
    RunRow,
    Time,
    all_stats,
    is_number,
    measured,
    read_metric,
    statistic_names,
    time_to,
)
from explore.compare.variants import CODE, with_plural
from train.fitted_table import FittedTable
from train.grid.claims import TIME_TO, Claim, Expectations
from train.grid.expand import WIDTHS, GridError, comment_at_top, config_files, expand_grid
from train.grid.params import SECTION_OF
from train.grid.run import Run
from train.saving.code import hash_of_text
from train.saving.durable import replacing
from train.saving.provenance import code_of_this_process
from train.saving.run_folder import as_tuples

REPRODUCE = "reproduce"  # of the configs
RECORD_FORMAT = 1  # of the files
NO_DATE = "never"  # in the column of dates
NOT_RUN = "not run yet"  # in the column of verdicts
CURVE_POINTS = 40  # of a run's validations that are kept
LEFT_OUT = ("sample", "folder", "timestamp", CODE)  # measured values that say nothing about a claim
CURVES = "curves"  # of a run, in its row: (step, value) by the name of the statistic
OUTDATED = "*"  # after the name of a config whose runs would not be the same today


class Reproduction(NamedTuple):
    """A shipped config with claims, and the runs that are kept of it."""

    name: str
    header: str  # the comment at the top of the config
    expectations: Expectations
    rows: list[RunRow] = []
    date: str = ""  # of the latest run; "" if none is kept
    machine: str = ""
    has_todays_code: bool = False
    has_todays_runs: bool = False  # the runs of the config as it stands, and no others

    @property
    def verdicts(self) -> list[ClaimVerdict]:
        return judge_all(self.expectations.claims, self.rows)

    @property
    def is_outdated(self) -> bool:
        """Return True if the kept runs would be trained anew today."""
        return bool(self.date) and not (self.has_todays_code and self.has_todays_runs)

    def entries(self) -> list[dict[str, object]]:
        """Return its claims as entries of the JSON document."""
        common = {
            "config": self.name,
            "topic": self.expectations.topic,
            "source": self.expectations.source,
            "minutes": self.expectations.minutes,
            "date": self.date or None,
            "has_todays_code": self.has_todays_code,
            "has_todays_runs": self.has_todays_runs,
        }
        return [common | verdict.entry() for verdict in self.verdicts]


def keep(file: Path, claims: Sequence[Claim], rows: Sequence[RunRow]) -> None:
    """Write the runs of a config to `file`."""
    fields = [{name: row[name] for name in SECTION_OF if name in row} for row in rows]
    common = {name: value for name, value in fields[0].items() if all(one[name] == value for one in fields)}
    columns = [column for claim in claims for pick in claim.picks.values() for column in pick.columns]
    times = [column for column in dict.fromkeys(columns) if TIME_TO.fullmatch(column)]
    statistics = dict.fromkeys(["val_loss", *(read_metric(column).name for column in times)])
    kept = [
        {
            "fields": {name: value for name, value in own.items() if name not in common},
            "metrics": {name: short(value) for name, value in row.items() if is_kept(name, value)},
            "times": {column: time_to(row, read_metric(column)) for column in times},
            "curves": {name: curve for name in statistics if (curve := curve_of(row, name))},
            "code": code_hash(own),
            "date": str(measured(row, "timestamp"))[:10],
        }
        for own, row in zip(fields, rows, strict=True)
    ]
    machine = f"{platform.processor() or platform.machine()}, {psutil.cpu_count(logical=False) or 1} cores"
    head = json.dumps({"format": RECORD_FORMAT, "machine": machine, "common": common})
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as partial:
        partial.write_text(f'{head[:-1]}, "runs": [\n{lines_of_runs(kept)}\n]}}\n', encoding="utf-8")


def lines_of_runs(kept: Sequence[Mapping[str, object]]) -> str:
    """Return JSON with a line for each run, so that a diff shows the runs that have changed."""
    return ",\n".join(json.dumps(one, separators=(",", ":")) for one in kept)


def is_kept(name: str, value: object) -> bool:
    return name not in SECTION_OF and name not in LEFT_OUT and (is_number(value) or isinstance(value, str))


def short(value: object) -> object:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def curve_of(row: RunRow, statistic: str) -> list[tuple[int, float]]:
    """Return (step, value) of a statistic of a run, at most CURVE_POINTS of them, with the last one."""
    logged = all_stats(str(measured(row, "folder")))
    found = next((logged[name] for name in statistic_names(statistic) if name in logged), [])
    every = -(-len(found) // CURVE_POINTS) or 1
    return [(stat.s, float(f"{stat.v:.4g}")) for stat in found[::-every][::-1]]


def code_hash(values: Mapping[str, object]) -> str:
    """Return a hash of the code that would train a run with these values of fields today."""
    return hash_of_text(json.dumps(sorted(code_of_this_process().code.hashes(values).items())))


def read_reproduction(name: str, configs: Path, records: Path) -> Reproduction:
    """Return a config of the folder reproduce with its kept runs.

    Raise GridError if the config has errors, or if the file of its runs has another format.
    """
    [config_file] = config_files(f"{REPRODUCE}/{name}", configs)
    parts = expand_grid([config_file])
    if errors := [line for part in parts for line in part.errors.lines]:
        raise GridError(errors)
    read = parts[-1]
    header = comment_at_top(config_file)
    file = records / f"{name}.json"
    if not file.is_file():
        return Reproduction(name, header, read.expectations)
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["format"] != RECORD_FORMAT:
        raise GridError(
            [f"{file} has format {record['format']}, not {RECORD_FORMAT}; --reproduce={name} replaces it"]
        )
    fields = [fields_of(one, record["common"]) for one in record["runs"]]
    rows = [row_of_record(one, own) for one, own in zip(record["runs"], fields, strict=True)]
    return Reproduction(
        name,
        header,
        read.expectations,
        rows,
        date=max((one["date"] for one in record["runs"]), default=""),
        machine=record["machine"],
        has_todays_code=all(
            one["code"] == code_hash(own) for one, own in zip(record["runs"], fields, strict=True)
        ),
        has_todays_runs=are_same(read.runs, fields),
    )


def fields_of(one: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, object]:
    return {name: as_tuples(value) for name, value in {**common, **one["fields"]}.items()}


def row_of_record(one: Mapping[str, Any], fields: Mapping[str, object]) -> RunRow:
    times = {column: None if time is None else Time(*time) for column, time in one["times"].items()}
    return {**one["metrics"], **times, **fields, CURVES: one.get("curves", {})}


def are_same(runs: Sequence[Run], kept: Sequence[Mapping[str, object]]) -> bool:
    """Return True if the kept fields are those of the runs of a grid, in any order.

    Widths that `match` chooses do not count, nor do fields that are newer or older than the record.
    """
    chosen = WIDTHS if any(run.match for run in runs) else set[str]()
    names = sorted(set.intersection(*map(set, kept), SECTION_OF.keys()) - chosen) if kept else []
    today = [run.params.flat() for run in runs]
    return Counter(text_of_fields(one, names) for one in today) == Counter(
        text_of_fields(one, names) for one in kept
    )


def text_of_fields(values: Mapping[str, object], names: Sequence[str]) -> str:
    """Return a text that is the same for equal values, whether a JSON file kept them or not."""
    return json.dumps([values[name] for name in names], sort_keys=True, default=dict)


def all_reproductions(configs: Path, records: Path) -> list[Reproduction]:
    """Return the configs of the folder reproduce by topic and name."""
    names = sorted(path.stem for path in (configs / REPRODUCE).glob("*.txt"))
    found = [read_reproduction(name, configs, records) for name in names]
    return sorted(found, key=lambda one: one.expectations.topic)


def counts_of(found: Sequence[Reproduction]) -> str:
    """Return how many claims hold, fail, and cannot be told: "12 claims of 6 configs: 10 hold, 1 fails, 1 cannot be told"."""
    decisions = [verdict.decision for one in found if one.date for verdict in one.verdicts]
    n_open = sum(len(one.expectations.claims) for one in found if not one.date)
    n_holds, n_fails, n_unclear = (
        decisions.count(kind) for kind in (Decision.NO_WORSE, Decision.WORSE, Decision.CANNOT_TELL)
    )
    parts = [
        f"{n_holds} {'holds' if n_holds == 1 else 'hold'}",
        f"{n_fails} {'fails' if n_fails == 1 else 'fail'}",
        f"{n_unclear} cannot be told",
    ]
    if n_open:
        parts.append(f"{n_open} {'has' if n_open == 1 else 'have'} no runs yet")
    n_claims, n_configs = with_plural(len(decisions) + n_open, "claim"), with_plural(len(found), "config")
    return f"{n_claims} of {n_configs}: {', '.join(parts)}"


def table_of_reproductions(found: Sequence[Reproduction]) -> FittedTable:
    """Return the table of all claims of the shipped configs, by topic and config, with what was seen."""
    cells = [["claim", "expected", "seen", "verdict", "run on"]]
    styles = []
    for topic, group in groupby(found, lambda one: one.expectations.topic):
        cells.append([topic or "no topic", "", "", "", ""])
        styles.append("bold")
        for one in group:
            cells.append([f"  {one.name}{OUTDATED * one.is_outdated}", "", "", "", one.date or NO_DATE])
            styles.append("")
            for verdict in one.verdicts:
                verdict_text = verdict.verdict.partition(";")[0].partition(":")[0] if one.date else NOT_RUN
                cells.append([f"    {verdict.name}", verdict.expected, verdict.seen, verdict_text, ""])
                styles.append(style_of_claim(verdict_text) if one.date else "")
    return fitted_claims(cells, styles, notes_on(found))


def notes_on(found: Sequence[Reproduction]) -> list[str]:
    """Return the lines below the table: what its marks mean, the numbers of verdicts, and how to run a config."""
    notes = list[str]()
    if any(one.is_outdated for one in found):
        notes.append(
            f"{OUTDATED} other code or another config than today's; --reproduce=NAME trains it again"
        )
    minutes = sum(one.expectations.minutes or 0 for one in found)
    notes.append(counts_of(found))
    if found:
        quickest = min(found, key=lambda one: one.expectations.minutes or math.inf)
        notes.append(
            f"--reproduce=NAME trains one config and judges its claims: --reproduce={quickest.name} takes "
            f"{quickest.expectations.minutes or 0:g} min, all take {minutes / 60:.1f} h on two cores"
        )
    return notes
