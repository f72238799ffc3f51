"""Folders that anybody may have left under a shared root: an odd one is named, and the runs of all others are shown."""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import model_explorer
from explore.compare.csv_files import write_csv
from explore.load import runs
from tests.explore.compare.fake_runs import DEFAULT, fake_run
from train.grid.run import Run, Step
from train.launch.sweep import earlier_outcome
from train.launch.tables import result_table
from train.logs import log
from train.saving.earlier_runs import earlier_runs
from train.saving.run_folder import read_about

IDENTITY = "0123456789"
N_RUNS = 15
NUMBERS = ("val_loss", "final_loss", "n_params", "steps", "flops", "wall_seconds", "tokens_per_second")
TEXTS = ("stopped", "leak", "sample", "weights", "variant")
ODD: dict[str, Any] = {
    "huge": 10**400,
    "minus huge": -(10**400),
    "large": 1e101,
    "list": [1, 2],
    "dict": {"a": {"b": 1}},
    "deep": json.loads("[" * 300 + "]" * 300),
}
WRONG = {"text": "0.5", "bool": True}


def edit(folder: Path, **values: object) -> None:
    about = json.loads((folder / "about.json").read_text()) | values
    (folder / "about.json").write_text(json.dumps(about))


def edit_summary(folder: Path, **values: object) -> None:
    edit(folder, summary=json.loads((folder / "about.json").read_text())["summary"] | values)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """N_RUNS runs, whose identity --resume knows."""
    monkeypatch.setattr(log, "propagate", True)  # for caplog
    made = [
        fake_run(tmp_path, "demo", seed, DEFAULT.changed(random_seed=seed), n_points=3)
        for seed in range(N_RUNS)
    ]
    for folder in made:
        edit(folder, identity=IDENTITY)
    return made


def shown(root: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Read all runs in every way there is; return the names of those that all ways show."""
    table = runs(str(root), all=True)
    names = list(table.index[table.status == "complete"])
    page = model_explorer.report("demo", out=str(root))
    assert all(name in page.html for name in names)
    earlier = [*earlier_runs(root, {IDENTITY})]
    assert sorted(one.folder.name for one in earlier) == names
    grid = [Run(DEFAULT, {}, "demo", number=i, identity=IDENTITY) for i, _ in enumerate(earlier, 1)]
    result_table(grid, [earlier_outcome(Step("finished", one.folder)) for one in earlier])
    said = [record.getMessage() for record in caplog.records if "about.json" in record.getMessage()]
    unreadable = [status for status in table.status if status != "complete"]
    assert len(said) == len(unreadable), "each odd folder is named once"
    assert all("about.json" in line and "\n" not in line and len(line) < 700 for line in said + unreadable)
    return names


@pytest.mark.parametrize("value", [*ODD, *WRONG])
def test_odd_values_of_some_runs_hide_no_other(tmp_path, folders, value, caplog):
    names = [*NUMBERS, *TEXTS, "a_users_own"]
    for folder, name in zip(folders, names, strict=False):
        edit_summary(folder, **{name: (ODD | WRONG)[value]})
    right = {"text": [*TEXTS, "a_users_own"], "bool": ["a_users_own"]}.get(value, [])
    expected = [f.name for i, f in enumerate(folders) if i >= len(names) or names[i] in right]
    assert shown(tmp_path, caplog) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, 0, -1, 1e100, -1e100, 2**70])
def test_a_run_with_any_valid_measured_value_stays_in_all_tables(tmp_path, folders, value, caplog):
    for folder, name in zip(folders, [*NUMBERS, "a_users_own"], strict=False):
        edit_summary(folder, **{name: value})
    assert shown(tmp_path, caplog) == [folder.name for folder in folders]


def test_values_may_be_missing(tmp_path, folders, caplog):
    for folder, name in zip(folders, [*NUMBERS, *TEXTS], strict=False):
        summary = json.loads((folder / "about.json").read_text())["summary"]
        summary.pop(name, None)
        edit(folder, summary=summary)
    edit(folders[-1], summary={})
    assert shown(tmp_path, caplog) == [folder.name for folder in folders]


@pytest.mark.parametrize("value", [3, ["a"], {"a": ["b"]}, True])
def test_other_parts_of_about_json_are_checked_too(tmp_path, folders, value, caplog):
    names = ["identity", "code", "summary", "wandb", "failed"]
    for folder, name in zip(folders, names, strict=False):
        edit(folder, **{name: value})
    assert shown(tmp_path, caplog) == [f.name for i, f in enumerate(folders) if i >= len(names)]


def test_a_users_own_values_are_kept(folders):
    edit_summary(folders[1], kind="mine", works=True, size=2.5, nothing=None)
    summary = read_about(folders[1])["summary"]
    assert [summary[name] for name in ("kind", "works", "size", "nothing")] == ["mine", True, 2.5, None]


def test_long_and_hostile_texts_are_harmless_on_a_terminal(tmp_path, folders, capsys):
    edit_summary(folders[0], stopped="failed: \x1b]0;owned\x07\x1b[2J\u202e" + "x" * 300_000)
    edit_summary(folders[2], variant="\x1b[31mred\x07")
    folders[1].rename(partial := folders[1].with_name(folders[1].name + ".partial"))
    edit(partial, failed="OSError: \x1b[31m" + "y" * 300_000 + "\nsecond line", identity=IDENTITY)
    html = model_explorer.report("demo", out=str(tmp_path)).html
    out = capsys.readouterr().out
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    assert "\\x1b[31mred\\x07" in out
    assert len(out) < 5_000
    assert "x" * 301 not in html
    assert "y" * 301 not in html
    assert "second line" not in html


def test_half_characters_in_texts_and_names_hide_no_other_run(tmp_path, folders, caplog):
    edit_summary(folders[0], sample="\ud800")
    odd = tmp_path / "saved-models" / "demo" / os.fsdecode(b"\xff")
    odd.mkdir()
    folders[1].rename(odd / folders[1].name)
    assert shown(tmp_path, caplog) == [folder.name for folder in folders[1:]]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_in_a_csv_file_is_a_formula(tmp_path, folders, start):
    text = f"{start}cmd|' /C calc'!A0"
    edit_summary(folders[0], sample=text, **{f"{start}column": -1.5})
    model_explorer.report("demo", out=str(tmp_path))
    with (tmp_path / "reports" / "demo" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = text.replace("\r", "\n")
    assert len(rows) == N_RUNS
    assert rows[0]["sample"] == f"'{shown}"
    assert rows[0][f"'{shown[0]}column"] == "-1.5", "a number stays one"


def test_csv_files_keep_all_other_values(tmp_path):
    table = pd.DataFrame({"a": [-1, 2], "b": ["-x", "y"], "c": [("=", 1), None]}, index=[5, 6])
    write_csv(table, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines() == ["a,b,c", "-1,'-x,\"('=', 1)\"", "2,y,"]


def test_very_deep_folders_are_skipped(tmp_path, folders, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path / "saved-models")
    for _ in range(1500):  # deeper than Python recurses, longer than a path may be
        Path("abc").mkdir()
        os.chdir("abc")
    try:
        assert shown(tmp_path, caplog) == [folder.name for folder in folders]
    finally:
        for _ in range(1500):  # pytest would fail to
            os.chdir("..")
            Path("abc").rmdir()
