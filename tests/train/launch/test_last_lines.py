"""The end of a grid: the table of results, the best run, and after Ctrl-C the command that goes on."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.little_run import CALL
from train.grid.expand import read_grid
from train.grid.run import RunSize
from train.launch.plan import names_of
from train.launch.sweep import last_lines
from train.launch.tables import best_runs, result_table
from train.saving.outcome import Ending, Outcome


def grid(tmp_path, fields: str) -> list:
    path = tmp_path / "trial.txt"
    path.write_text(fields)
    runs = [replace(run, number=i, size=RunSize(10, 100, 1000)) for i, run in enumerate(read_grid([path]), 1)]
    return [replace(run, name=name) for run, name in zip(runs, names_of(runs), strict=True)]


def finished(loss: float, name: str | None = None, **values: object) -> Outcome:
    folder = None if name is None else Path("saved-models", name)
    return Outcome(Ending.FINISHED, values={"val_loss": loss, **values}, folder=folder)


LRS = "TrainParams\nlr = [1e-3, 2e-3, 3e-3]\n"


def test_the_best_run_is_marked_and_named(tmp_path):
    runs = grid(tmp_path, LRS)
    outcomes = [finished(3.0), finished(2.0, "2024-04-22--16-17-00"), Outcome(Ending.FAILED, "OSError: no")]
    table = result_table(runs, outcomes)
    [loss] = [column for column in table.columns if column.title == "val\nloss"]
    assert loss.cells == ["3.0000", "* 2.0000", "-"]
    assert loss.styles == ["", "bold green", "red"]
    assert last_lines(runs, outcomes, CALL) == [
        "best: run 2 (lr 0.002), loss 2.0000",
        'open it: model_explorer.get_model_by_timestamp("2024-04-22--16-17-00")',
    ]


def test_a_run_that_leaks_or_diverged_is_not_the_best(tmp_path):
    runs = grid(tmp_path, LRS)
    outcomes = [
        finished(1.0, leak="3 sees 7"),
        Outcome(Ending.DIVERGED, "88", {"val_loss": 0.5}),
        finished(2.0),
    ]
    assert best_runs(runs, outcomes) == [2]
    assert result_table(runs, outcomes).columns[0].styles == ["yellow", "red", "bold green"]


def test_each_data_has_a_best_run(tmp_path):
    runs = grid(tmp_path, f"DataParams\ndataset_name = ['copy', 'sort']\n{LRS}")
    outcomes = [finished(loss) for loss in (3.0, 2.0, 4.0, 0.3, 0.2, 0.1)]
    assert last_lines(runs, outcomes, CALL) == [
        "best on copy: run 2 (dataset_name copy, lr 0.002), loss 2.0000",
        "best on sort: run 6 (dataset_name sort, lr 0.003), loss 0.1000",
    ]
    assert "* lowest loss on its data" in result_table(runs, outcomes).notes


def test_a_single_run_is_neither_marked_nor_the_best(tmp_path):
    runs = grid(tmp_path, "TrainParams\nlr = 1e-3\n")
    assert last_lines(runs, [finished(3.0)], CALL) == []
    assert not result_table(runs, [finished(3.0)]).notes


@pytest.mark.parametrize(
    ("options", "saves", "begins", "ends"),
    [
        (["--save"], True, "go on: ", " --save '--seed=[1,2]' --resume"),
        (["--resume"], True, "go on: ", " --resume '--seed=[1,2]'"),
        ([], False, "nothing was saved; ", " '--seed=[1,2]' --resume"),
    ],
)
def test_after_ctrl_c_the_command_that_goes_on_is_given(tmp_path, monkeypatch, options, saves, begins, ends):
    command = ["python3", "main.py", "--config=trial", *options, "--seed=[1,2]"]
    monkeypatch.setattr(sys, "orig_argv", command)
    runs = grid(tmp_path, LRS)
    outcomes = [finished(3.0), Outcome(Ending.INTERRUPTED, values={"steps": 40})]
    call = CALL._replace(save=saves, resume="same" if "--resume" in options else None)
    said, command = last_lines(runs, outcomes, call)
    assert said == "interrupted: 1 of 3 done, run 2 stopped after 40 of 100 steps, 1 not trained"
    assert command.startswith(begins)
    assert command.endswith(f"python3 main.py --config=trial{ends}")
