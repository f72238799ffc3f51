"""The commands that judge how models scale: verdicts on the last line, exit codes, what they leave behind."""

import pandas as pd
import pytest

import main

TINY = ["debug_crop=3", "val_pct=30.0", "test_pct=30.0"]
WIDTH = ["dim=[64,128,256]", "lr=[0.001,0.0078125,0.0625]", "batch_size=4"]
TRAINED = [
    "early_stop_nsamples=32",
    "dim=[16,32]",
    "lr=[0.001,0.01,0.1]",
    "mup_base_dim=16",
    "mup_base_heads=1",
]


def call(tmp_path, capsys, *options: str, **settings) -> tuple[int, list[str], str]:
    """The exit code, the lines that are shown, and what is said of errors."""
    chosen = [part for setting in (*TINY, *settings.get("to", ())) for part in ("--set", setting)]
    code = main.main([*options, "--no-wandb", "--out", str(tmp_path), *chosen])
    shown = capsys.readouterr()
    return code, shown.out.rstrip().splitlines(), shown.err


def saved(tmp_path, config: str) -> set[str]:
    return {path.name for path in (tmp_path / "reports" / config).iterdir()}


@pytest.mark.slow
@pytest.mark.ci
def test_the_coordinate_check_of_a_config(tmp_path, capsys):
    code, lines, _ = call(tmp_path, capsys, "--config=mup-width", "--coord-check", to=WIDTH)
    assert (code, lines[-1]) == (0, "pass")
    assert any("checked at lr=0.007812, the middle one of 3 learning rates" in line for line in lines)
    assert any(line.startswith("parametrization=standard: fails, as expected: ") for line in lines)
    assert {"coord-check.csv", "coord-check.png", "coord-check.svg"} <= saved(tmp_path, "mup-width")
    table = pd.read_csv(tmp_path / "reports" / "mup-width" / "coord-check.csv")
    assert set(table["variant"]) == {"parametrization=standard", "parametrization=mup"}
    assert not (tmp_path / "logs").exists(), "nothing is trained"


@pytest.mark.slow
def test_standard_without_mup_fails_the_coordinate_check(tmp_path, capsys):
    alone = [*WIDTH, "parametrization=standard"]
    code, lines, _ = call(tmp_path, capsys, "--config=mup-width", "--coord-check", to=alone)
    assert code == 1
    assert lines[-1].startswith("fail: ")
    assert "grows as width^" in lines[-1]


@pytest.mark.slow
def test_a_dry_run_of_a_check_neither_judges_nor_measures_training(tmp_path, capsys):
    code, lines, _ = call(tmp_path, capsys, "--config=mup-width", "--coord-check", "--dry-run", to=WIDTH)
    assert code == 0
    assert "parameters" in " ".join(lines)
    assert not any("one after another on this machine" in line or line == "pass" for line in lines)
    assert not (tmp_path / "reports").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_the_stability_of_a_config(tmp_path, capsys):
    few = ["n_layers=[3,6]", "random_seed=0"]
    code, lines, _ = call(tmp_path, capsys, "--config=output-change", "--stability", to=few)
    assert code == (lines[-1] != "pass")
    assert lines[-1] == "pass" or lines[-1].startswith("fail: ")
    assert any(line.startswith("plain: output change grows") for line in lines)
    assert {"stability.csv", "stability.png", "stability.svg"} <= saved(tmp_path, "output-change")


@pytest.mark.slow
def test_transfer_judges_a_trained_grid_and_saved_runs_alike(tmp_path, capsys):
    code, lines, _ = call(tmp_path, capsys, "--config=mup-width", "--transfer", "--save", to=TRAINED)
    assert code == (lines[-1] != "pass")
    # What it says after so few steps is open.
    verdicts = ("pass", "fail: parametrization=mup: ", "cannot tell: parametrization=mup: ")
    assert lines[-1].startswith(verdicts)
    assert {"transfer.csv", "transfer.png", "transfer.svg", "report.html"} <= saved(tmp_path, "mup-width")
    table = pd.read_csv(tmp_path / "reports" / "mup-width" / "transfer.csv")
    assert table["size"].to_list() == [16, 32] * 2
    standard, mup = table.iloc[0], table.iloc[2]
    assert (standard["loss"], standard["best"]) == (mup["loss"], mup["best"]), (
        "at the base they are one model"
    )
    again = main.main(["--report=mup-width", "--transfer", "--out", str(tmp_path)])
    assert again == code
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == lines[-1]


@pytest.mark.parametrize(
    ("options", "settings", "reason"),
    [
        (["--config=mup-width", "--coord-check"], ["dim=64"], "dim has only one value, 64"),
        (["--config=output-change", "--stability"], ["n_layers=2"], "n_layers has only one value, 2"),
        (["--config=mup-width", "--transfer"], ["lr=0.01"], "--transfer needs several values of lr"),
        (["--report=mup-width", "--stability"], [], "not saved runs"),
    ],
)
def test_checks_without_a_scale_are_refused_before_training(tmp_path, capsys, options, settings, reason):
    code, _, errors = call(tmp_path, capsys, *options, to=settings)
    assert code == 2
    assert reason in errors
    assert not (tmp_path / "reports").exists()
    assert not (tmp_path / "logs").exists()
