"""--resume and earlier runs: they are recognized by content, and reused only if the code is the same."""

import os
import shutil

import pytest
from filelock import FileLock

import main
import train.run
from data.data_params import DataParams
from explore.load import runs
from model.model_params import ModelParams
from tests.train import little_run
from tests.train.little_run import version_with_edits
from train.grid.params import Params
from train.grid.run import Step
from train.run import train_run
from train.saving import earlier_runs as history
from train.saving import run_folder
from train.saving.earlier_runs import earlier_outcome, run_identity
from train.saving.timestamps import run_folders
from train.train_params import TrainParams

CONFIG = """
DataParams
dataset_name = "copy"
n_samples = 60
task_args = {"max_length": 5}
TrainParams
batch_size = 16
threads = 1
ModelParams
dim = [8, 16]
n_layers = 1
n_heads = 2
max_seq_len = 16
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """main.py with the config above, which may be changed; gives the exit code. `trained` are the runs it trained."""
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    (tmp_path / "trial.txt").write_text(CONFIG)
    trained, broken = [], set()

    def train_noted(run, *args, **options):
        trained.append((run.params.model.dim, run.params.train.lr))
        if run.params.model.dim in broken:
            raise RuntimeError("out of luck")
        return train_run(run, *args, **options)

    monkeypatch.setattr("train.run.train_run", train_noted)

    def call(*options):
        del trained[:]
        return main.main(["--config=trial", "--no-wandb", "--out", str(tmp_path / "out"), *options])

    call.trained, call.broken, call.root = trained, broken, tmp_path
    return call


def params_of(**fields) -> Params:
    return Params(DataParams(dataset_name="copy"), TrainParams(), ModelParams()).changed(**fields)


def test_a_field_that_a_new_version_adds_changes_no_identity():
    """The hash is that of a run saved before there were evaluation sets."""
    assert run_identity(params_of(lr=0.5, dim=16), "x") == "b3cba79988bce8e95f42"
    assert run_identity(params_of(eval_sets={"x": {}}), "") != run_identity(params_of(), "")


def test_the_identity_of_a_run_depends_on_every_field_and_the_text():
    plain = run_identity(params_of(), "")
    assert run_identity(params_of(dim=ModelParams.dim, lr=TrainParams.lr), "") == plain, (
        "a default is no part of it"
    )
    others = [{"dim": 64}, {"lr": 1e-4}, {"random_seed": 1}, {"task_args": {"max_length": 3}}, {"threads": 1}]
    others += [{"dataset_name": "sort"}, {"betas": (0.9, 0.98)}, {"layer_architecture": ("torch-gru",)}]
    known = {plain, run_identity(params_of(), "another text")} | {
        run_identity(params_of(**fields), "") for fields in others
    }
    assert len(known) == len(others) + 2
    assert run_identity(params_of(dim=64, lr=1e-4), "") == run_identity(
        params_of(lr=1e-4).changed(dim=64), ""
    )


def test_a_field_that_is_added_invalidates_nothing(monkeypatch):
    before = run_identity(params_of(dim=64), "")
    flat = Params.flat
    monkeypatch.setattr(Params, "flat", lambda self: flat(self) | {"new_knob": 3})
    monkeypatch.setitem(history.DEFAULTS, "new_knob", 3)
    assert run_identity(params_of(dim=64), "") == before
    monkeypatch.setitem(history.DEFAULTS, "new_knob", 4)
    assert run_identity(params_of(dim=64), "") != before


@pytest.mark.slow
@pytest.mark.ci
def test_the_same_command_trains_only_what_is_new(call, capsys):
    assert call("--resume") == 0
    assert len(call.trained) == 2
    assert call("--resume") == 0
    assert call.trained == []
    assert "--resume: 2 finished" in capsys.readouterr().out
    (call.root / "trial.txt").write_text(
        CONFIG.replace("[8, 16]", "[16, 24, 8]").replace("batch_size", "lr = [1e-3, 1e-2]\nbatch_size")
    )
    assert call("--resume") == 0
    assert call.trained == [(24, 1e-3), (16, 1e-2), (24, 1e-2), (8, 1e-2)]
    shown = capsys.readouterr().out
    assert "--resume: 2 finished, 4 new" in shown
    assert shown.count("finished earlier") == 2
    assert list(runs(str(call.root / "out"), all=True).status) == ["complete"] * 6
    assert call("--save") == 0, "without --resume all is trained anew"
    assert len(call.trained) == 6


def test_another_config_with_the_same_run_finds_it(call):
    assert call("--resume") == 0
    (call.root / "other.txt").write_text(CONFIG.replace("[8, 16]", "8"))
    assert main.main(["--config=other", "--no-wandb", "--resume", "--out", str(call.root / "out")]) == 0
    assert len(call.trained) == 2


def test_a_failed_run_is_trained_again_and_its_old_folder_is_removed(call, capsys):
    call.broken.add(8)
    assert call("--resume") == 1
    assert call.trained == [(8, 1e-3), (16, 1e-3)], "the rest goes on"
    call.broken.clear()
    assert call("--resume") == 0
    assert call.trained == [(8, 1e-3)]
    assert list(runs(str(call.root / "out"), all=True).status) == ["complete"] * 2


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_that_fails_says_so_in_its_folder(call, capsys, monkeypatch):
    def fit(*args, **options):
        raise MemoryError("no room for\nall of this")

    with monkeypatch.context() as patch:
        patch.setattr("train.run.fit", fit)
        assert call("--resume", "--set", "dim=8") == 1
    [(status, dim)] = runs(str(call.root / "out"), all=True)[["status", "dim"]].to_numpy()
    assert (status, dim) == ("failed: MemoryError: no room for", 8)
    assert call("--resume", "--dry-run") == 0
    assert "failed, MemoryError: no room for" in capsys.readouterr().out
    assert call("--resume") == 0
    assert list(runs(str(call.root / "out"), all=True).status) == ["complete"] * 2


def folders_in(root) -> list:
    return list(run_folders(root / "out"))


def test_a_failed_folder_goes_when_its_replacement_is_there(call, monkeypatch):
    """It does not go when the run begins anew: after a kill, one of both folders must exist."""

    def fails(*args, **options):
        raise ValueError("by itself")

    def looks_and_ends(*args, **options):
        assert len(folders_in(call.root)) == 2, "the old one is there while the new one trains"
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("train.run.fit", fails)
        assert call("--resume", "--set", "dim=8") == 1
        [first] = folders_in(call.root)
        patch.setattr("train.run.fit", looks_and_ends)
        error = KeyboardInterrupt()
        assert call("--resume", "--set", "dim=8") == 130
        assert folders_in(call.root) == [first], "an interrupted run without a checkpoint leaves nothing"
        error = ValueError("again")
        assert call("--resume", "--set", "dim=8") == 1
        [second] = folders_in(call.root)
        assert second != first, "of two failures the latest is kept"
        patch.setattr("train.saving.record.create_run_files", fails)
        assert call("--resume", "--set", "dim=8") == 1
        assert folders_in(call.root) == [second], (
            "a run that cannot begin replaces nothing and leaves nothing"
        )
    assert call("--resume", "--set", "dim=8") == 0
    assert list(runs(str(call.root / "out"), all=True).status) == ["complete"]


def test_all_leftovers_of_a_run_go_when_it_is_complete(call, monkeypatch):
    """This includes folders that another call did not know of, and those that a kill at the end left."""
    with monkeypatch.context() as patch:
        patch.setattr("train.run.fit", lambda *args, **options: (_ for _ in ()).throw(ValueError))
        assert call("--resume", "--set", "dim=8") == 1
    [first] = folders_in(call.root)
    for second in ("01", "02"):
        shutil.copytree(first, first.with_name(f"2020-01-01--00-00-{second}.partial"))
    assert call("--resume", "--set", "dim=8") == 0
    [complete] = folders_in(call.root)
    shutil.copytree(complete, stray := complete.with_name("2020-01-01--00-00-03.partial"))
    (stray / "about.json").write_text((stray / "about.json").read_text().replace('"summary"', '"other"'))
    assert call("--resume", "--set", "dim=8") == 0
    assert folders_in(call.root) == [complete]


def kills_as_a_run_begins(root):
    """Folders of runs that were killed as they began, and those that look like it but may be somebody's."""
    place = root / "out" / "saved-models" / "trial" / "copy"
    for second, (name, files) in enumerate(
        {
            "empty": [],
            "locked": ["lock"],
            "begun": ["lock", "params.json", "diff.patch", "about.json.partial"],
            "known": ["lock", "about.json"],
            "not ours": ["notes.txt"],
            "young": ["lock"],
        }.items()
    ):
        folder = place / f"2020-01-01--00-00-0{second}.partial"
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text("{}")
        if name != "young":
            os.utime(folder, (0, 0))
    return sorted(place.iterdir())


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("option", ["--save", "--resume"])
def test_folders_of_runs_killed_as_they_began_go(option, call):
    empty, locked, begun, known, not_ours, young = kills_as_a_run_begins(call.root)
    complete = empty.with_name("2020-01-01--00-00-09")
    complete.mkdir()
    os.utime(complete, (0, 0))
    assert call("--resume", "--dry-run") == 0
    assert begun.exists(), "what trains nothing removes nothing"
    with FileLock(locked / "lock"):
        assert call(option, "--set", "dim=8") == 0
        assert [folder.exists() for folder in (empty, locked, begun)] == [False, True, False]
    assert all(folder.exists() for folder in (known, not_ours, young, complete))


def test_a_panic_of_a_library_ends_its_run_alone(call, monkeypatch):
    """A Rust panic in Python is a BaseException, as Ctrl-C is."""

    class Panic(BaseException):
        """Stands for pyo3_runtime.PanicException, which no code can import."""

    def fit(trainer, lm_trainer, *args):
        if lm_trainer.model.model_params.dim == 8:
            raise Panic("index out of bounds")
        return fits(trainer, lm_trainer, *args)

    fits = train.run.fit
    with monkeypatch.context() as patch:
        patch.setattr("train.run.fit", fit)
        assert call("--resume") == 1
    table = runs(str(call.root / "out"), all=True)
    assert dict(zip(table.dim, table.status, strict=True)) == {
        8: "failed: Panic: index out of bounds",
        16: "complete",
    }


def test_fail_fast_stops_at_the_first(call):
    call.broken.add(8)
    assert call("--fail-fast") == 1
    assert call.trained == [(8, 1e-3)]


def test_a_run_of_other_code_is_another_run(call, capsys, monkeypatch):
    assert call("--resume", "--set", "dim=8") == 0
    [timestamp] = runs(str(call.root / "out"), all=True).index
    other = version_with_edits("data/hub.py", "model/lm.py")
    for module in (history, run_folder):
        monkeypatch.setattr(module, "code_of_this_process", lambda: other)
    assert call("--resume=anyway", "--dry-run") == 0
    assert f"run 1: finished: {timestamp}" in capsys.readouterr().out
    assert call("--resume") == 0
    assert call.trained == [(8, 1e-3), (16, 1e-3)]
    assert f"run 1: new: data/hub.py, model/lm.py changed since {timestamp}" in capsys.readouterr().out
    table = runs(str(call.root / "out"), all=True)
    assert (table[table.dim == 8].code.nunique(), len(table)) == (2, 3)
    assert call("--resume") == 0
    assert call.trained == []


def test_a_run_that_trains_elsewhere_is_left_alone(call, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("train.run.fit", lambda *args, **options: (_ for _ in ()).throw(MemoryError))
        assert call("--resume", "--set", "dim=8") == 1
    [folder] = (call.root / "out" / "saved-models").rglob("*.partial")
    assert runs(str(call.root / "out"), all=True).status.iloc[0] == "failed: MemoryError: MemoryError"
    with FileLock(folder / "lock"):
        assert runs(str(call.root / "out"), all=True).status.iloc[0] == "training"
        assert call("--resume") == 0
        assert call.trained == [(16, 1e-3)]
        assert "left out" in capsys.readouterr().out
    assert call("--resume") == 0
    assert call.trained == [(8, 1e-3)]
    assert list(runs(str(call.root / "out"), all=True).status) == ["complete"] * 2


def test_folders_that_are_not_runs_are_skipped(call):
    folder = call.root / "out" / "saved-models" / "x" / "2024-01-01--00-00-00.partial"
    folder.mkdir(parents=True)
    (folder / "about.json").write_text('{"identity": 3, "code": []}')
    assert call("--resume") == 0
    assert len(call.trained) == 2


def test_a_finished_run_damaged_after_planning_fails_alone(tmp_path, notes):
    folder = little_run.save_run(tmp_path, stopped="early stop: no better validation in 2", val_loss=0.5)
    outcome = earlier_outcome(Step("finished", folder))
    assert (str(outcome), outcome.values["val_loss"]) == (
        "early stop: no better validation in 2 earlier",
        0.5,
    )
    (folder / "about.json").write_text("[]")
    outcome = earlier_outcome(Step("finished", folder))
    assert outcome.failed
    assert str(folder / "about.json") in outcome.why
    assert len(notes) == 1
