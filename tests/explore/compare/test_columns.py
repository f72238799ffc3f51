"""Tables of runs: params and measured values never overwrite each other, code tells runs apart, failed runs are no crash."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest

import model_explorer
from explore.compare.report import report_grid, rows_of_grid, tidy
from explore.compare.variants import row_of
from explore.compare.verdicts import compare
from explore.load import runs
from explore.scaling.transfer import transfer_report
from tests.explore.compare.fake_runs import DEFAULT, fake_grid, fake_run
from tests.explore.compare.test_report import rows_of
from train.grid.params import SECTION_OF, measured_column
from train.grid.run import Run
from train.launch.tables import settings_of
from train.saving.outcome import Ending, Outcome
from train.saving.provenance import code_id, code_of_this_process

SMALL = {"positions": ["learned", "rotary"], "lr": [1e-3], "random_seed": [0, 1, 2, 3]}


def change(folder: Path, **about: object) -> None:
    """Changes about.json, and its summary where that is given."""
    known = json.loads((folder / "about.json").read_text())
    summary = known["summary"] | about.pop("summary", {})
    (folder / "about.json").write_text(json.dumps(known | about | {"summary": summary}))


def fail(folder: Path, why: str | None = "RuntimeError: no memory") -> None:
    """Makes a run folder that of a run which failed, or was killed."""
    about = json.loads((folder / "about.json").read_text())
    del about["summary"]
    (folder / "about.json").write_text(json.dumps(about | ({} if why is None else {"failed": why})))
    (folder / "stats.json").unlink()
    folder.rename(folder.with_name(f"{folder.name}.partial"))


# Params and measured values


def test_a_failed_seed_stays_in_its_variant_with_infinite_loss(tmp_path):
    folders = fake_grid(tmp_path, **SMALL)
    for folder in folders:
        change(folder, summary={"threads": 2})
    fail(folders[4])
    table = model_explorer.results("demo", out=str(tmp_path))
    assert table.threads.isna().all(), "the field, which no run sets"
    assert sorted(table.measured_threads.dropna().unique()) == [2]
    found = compare(table).set_index("variant")
    assert list(found.index) == ["positions=learned", "positions=rotary"]
    assert found.n_bad["positions=rotary"] == 1
    assert found.verdict["positions=rotary"] == (
        "cannot tell: its runs failed or diverged, with every lr at some seed"
    )


def test_measured_threads_do_not_split_variants(tmp_path):
    folders = fake_grid(tmp_path, **SMALL)
    for i, folder in enumerate(folders):
        change(folder, summary={"threads": 2 if i % 4 < 2 else 1})  # the rest came by --resume --jobs=2
    found = compare(runs(str(tmp_path), all=True))
    assert found.n_seeds.to_list() == [4, 4]


def test_the_report_of_a_grid_equals_that_of_its_folders(tmp_path, capsys):
    folders = fake_grid(tmp_path, **SMALL)
    outcomes = [
        Outcome.from_row(json.loads((folder / "about.json").read_text())["summary"] | {"threads": 2}, folder)
        for folder in folders
    ]
    outcomes[5] = Outcome(Ending.FAILED, "RuntimeError: no memory", {"wall_seconds": 1.5})
    params = [
        DEFAULT.changed(positions=kind, lr=1e-3, random_seed=seed)
        for kind, seed in itertools.product(SMALL["positions"], range(4))
    ]
    for folder in folders:
        change(folder, summary={"threads": 2}, code=code_of_this_process().hashes(params[0]))
    fail(folders[5], None)  # its folder stayed incomplete: a killed process cannot write why
    report_grid("demo", [Run(one, {}, "demo") for one in params], outcomes, tmp_path)
    of_grid = rows_of(tmp_path / "reports" / "demo" / "results.csv")
    partial = folders[5].with_name(f"{folders[5].name}.partial")
    about = json.loads((partial / "about.json").read_text()) | {"failed": "RuntimeError: no memory"}
    (partial / "about.json").write_text(json.dumps(about))
    model_explorer.report("demo", out=str(tmp_path))
    of_folders = rows_of(tmp_path / "reports" / "demo" / "results.csv")
    ours = {"timestamp", "folder", "wall_seconds", "stopped"}  # of a failed run, not known afterwards
    of_folders.append(of_folders.pop(5))  # what left no folder stands at the end
    for one, other in zip(of_grid, of_folders, strict=True):
        assert {k: v for k, v in one.items() if k not in ours} == {
            k: v for k, v in other.items() if k not in ours
        }
    assert of_grid[0]["threads"] == ""
    assert of_grid[0]["measured_threads"].startswith("2")
    assert "its runs failed or diverged" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", ["steps", "flops", "stopped", "val_loss", "status", "code", "variant"])
def test_a_users_field_may_be_named_like_any_measured_value(name, tmp_path, monkeypatch):
    """A field that says `failed` or NaN about no run's end must not be taken for how the run ended."""
    monkeypatch.setitem(SECTION_OF, name, "TrainParams")
    rows = []
    for value, seed in itertools.product(("failed", "nan"), range(3)):
        params = DEFAULT.changed(random_seed=seed)
        object.__setattr__(params.train, name, value)  # as a field of the class would be
        known = {"status": "complete", "stopped": "finished", "val_loss": 2.0 + 0.01 * seed * len(value)}
        known |= {"steps": 100, "n_params": 10, "flops": 1e9, "code": "abc", "folder": str(tmp_path)}
        rows.append(row_of(known, params))
    table = tidy(rows)
    assert table[name].to_list() == ["failed"] * 3 + ["nan"] * 3
    assert name == "variant" or f"measured_{name}" in table
    found = compare(table)
    assert found.variant.to_list() == [f"{name}=failed", f"{name}=nan"]
    assert found["mean"].to_list() == pytest.approx([2.06, 2.03])
    assert found.n_bad.to_list() == [0, 0]


def test_conditions_use_measured_values_even_if_a_field_has_the_same_name(monkeypatch):
    monkeypatch.setitem(SECTION_OF, "steps", "TrainParams")
    rows = []
    for kind, seed in itertools.product(("learned", "rotary"), range(3)):
        params = DEFAULT.changed(random_seed=seed, positions=kind)
        object.__setattr__(params.train, "steps", 7)
        known = {"status": "complete", "val_loss": 2 + 0.1 * seed * len(kind)}
        known["steps"] = 100 if kind == "learned" else 200
        rows.append(row_of(known, params))
    assert compare(tidy(rows)).verdict[1] == "cannot tell: 2 times the baseline's steps"


def test_measured_values_get_prefixes_until_no_field_has_their_name(monkeypatch):
    assert measured_column("steps") == "steps"
    assert measured_column("threads") == "measured_threads"
    monkeypatch.setitem(SECTION_OF, "measured_threads", "TrainParams")
    assert measured_column("threads") == "measured_measured_threads"


def test_the_table_of_a_grid_keeps_a_field_named_config_apart(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setitem(SECTION_OF, "config", "TrainParams")
    plans = []
    for name, value in (("a", 1), ("b", 2)):
        params = DEFAULT.changed(random_seed=value)
        object.__setattr__(params.train, "config", value)
        plans.append(SimpleNamespace(config=name, variant="same", params=params))
    shown = settings_of(plans)
    assert [(row["measured_config"]) for row in shown] == ["a", "b"]


# Code

OLD, NEW = {"model/lm.py": "0"}, {"model/lm.py": "1"}


def of_two_codes(tmp_path: Path) -> list[Path]:
    """The runs of one config, half of the seeds trained by other code."""
    folders = fake_grid(tmp_path, **SMALL)
    for i, folder in enumerate(folders):
        change(folder, code=OLD if i % 4 < 2 else NEW)
    return folders


@pytest.mark.slow
@pytest.mark.ci
def test_runs_of_other_code_are_other_variants(tmp_path, capsys):
    of_two_codes(tmp_path)
    table = runs(str(tmp_path), all=True)
    old, new = "first", "lm.py changed"
    assert set(table.code) == {old, new}
    found = compare(table)
    assert found.variant.to_list() == [
        f"positions={kind}, code={code}" for kind in ("learned", "rotary") for code in (old, new)
    ]
    page = model_explorer.report("demo", out=str(tmp_path))
    out = capsys.readouterr().out
    note = f"these runs were trained by 2 versions of the code: {old} (4 runs), {new} (4 runs)"
    assert out.startswith(note)
    assert page.html.index(note) < page.html.index("What varied"), "at the top"
    assert "same_code=True" in out


@pytest.mark.slow
@pytest.mark.ci
def test_same_code_joins_runs_of_different_code_with_a_note(tmp_path, capsys):
    of_two_codes(tmp_path)
    found = compare(runs(str(tmp_path), all=True), same_code=True)
    assert found.variant.to_list() == ["positions=learned", "positions=rotary"]
    assert found.n_seeds.to_list() == [4, 4]
    [note] = found.attrs["notes"]
    assert note.endswith("same_code=True compares them as one")
    model_explorer.report("demo", out=str(tmp_path), same_code=True)
    assert "compares them as one" in capsys.readouterr().out


def test_the_same_run_by_other_code_replaces_no_run(tmp_path):
    for number, code in enumerate((OLD, NEW)):
        change(fake_run(tmp_path, "demo", number, DEFAULT), code=code)
    assert len(compare(runs(str(tmp_path), all=True))) == 2
    merged = compare(runs(str(tmp_path), all=True), same_code=True)
    assert merged.n_seeds.to_list() == [1]
    assert merged.attrs["left_out"] == ["1 run left out: repeated later with the same params and code"]


def test_runs_of_one_code_get_no_note(tmp_path):
    folders = fake_grid(tmp_path, **SMALL)
    for folder in folders:
        change(folder, code=OLD)
    fail(folders[0])
    fail(folders[1], None)
    found = compare(runs(str(tmp_path), all=True))
    assert found.attrs["notes"] == []
    assert found.variant.to_list() == ["positions=rotary", "positions=learned"] or len(found) == 2


def test_transfer_never_joins_sizes_of_different_code(tmp_path):
    rates = [2.0**-k for k in range(10, 4, -1)]
    for i, folder in enumerate(fake_grid(tmp_path, dim=[64, 128], lr=rates)):
        change(folder, code=OLD if i < len(rates) else NEW)
    verdict = transfer_report(runs(str(tmp_path), all=True)).verdict
    assert verdict.startswith("cannot tell: code=first: dim: only one size ran, 64")


def test_code_is_named_by_the_hashes_of_its_files():
    assert code_id({"a": "1", "b": "2"}) == code_id({"b": "2", "a": "1"})
    assert len({code_id(code) for code in ({"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": "1"})}) == 4
    assert code_id({}) == "unknown"


# Failed, killed and interrupted runs


def test_the_report_of_a_config_with_a_failed_run(tmp_path, capsys):
    folders = fake_grid(tmp_path, **SMALL)
    seconds = [json.loads((f / "about.json").read_text())["summary"]["wall_seconds"] for f in folders]
    fail(folders[2])
    html = model_explorer.report("demo", out=str(tmp_path)).html
    total = sum(seconds) - seconds[2]
    assert f"{int(total // 60)} min {round(total) % 60:02} s of training" in html
    assert "1 failed or diverged" in html


ENDS = ("complete", "failed", "killed", "interrupted", "diverged", "empty", "not finite")


def end(folder: Path, how: str) -> None:
    if how in ("failed", "killed"):
        fail(folder, "OSError: disk" if how == "failed" else None)
    elif how == "empty":
        about = json.loads((folder / "about.json").read_text())
        (folder / "about.json").write_text(json.dumps(about | {"summary": {"stopped": "finished"}}))
    elif how == "not finite":
        summary = json.loads((folder / "about.json").read_text())["summary"]
        numbers = [name for name, value in summary.items() if isinstance(value, int | float)]
        change(folder, summary=dict.fromkeys(numbers, math.nan) | {"steps": 0, "flops": math.inf})
    elif how != "complete":
        change(folder, summary={"stopped": f"{how}"} | ({"val_loss": math.nan} if how == "diverged" else {}))


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(ENDS, 2)])
def test_a_report_is_written_however_runs_ended(tmp_path, first, second):
    folders = fake_grid(tmp_path, n_points=12, dim=[64, 128], lr=[1e-3, 2e-3, 4e-3], random_seed=[0, 1])
    for i, folder in enumerate(folders):
        end(folder, first if i % 3 == 0 else second if i % 3 == 1 else "complete" if i > 8 else second)
    html = model_explorer.report("demo", out=str(tmp_path)).html
    body = html.partition("<body>")[2].partition("<script>")[0]
    assert not re.search(r"\bnan\b|\binf\b", body, re.IGNORECASE)
    transfer_report(runs(str(tmp_path), all=True))


def test_transfer_of_a_grid_reads_saved_runs_and_takes_others_as_they_are(tmp_path):
    [folder] = fake_grid(tmp_path)
    change(folder, code=OLD)
    saved = Outcome(Ending.FINISHED, values={"n_params": 1}, folder=folder)
    plain = Outcome(Ending.FINISHED, values={"n_params": 1, "val_loss": 2.0})
    rows = rows_of_grid([Run(DEFAULT, {}, "demo")] * 3, [saved, plain, Outcome(Ending.NOT_RUN)])
    saved_code, own_code = (row["code"] for row in rows)
    assert saved_code == "first" != own_code


def test_a_table_that_holds_its_numbers_as_text_gives_the_same_verdict(tmp_path):
    fake_grid(tmp_path, **SMALL)
    table = runs(out=str(tmp_path), all=True)
    as_text = table.astype({"random_seed": str, "lr": str})
    assert compare(as_text).equals(compare(table).assign(best=compare(as_text)["best"]))
    assert compare(as_text)["n_seeds"].tolist() == [4, 4]
