"""Metrics, main effects and baselines of compare(): against scipy, and from statistics of fake runs."""

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from explore.compare.metrics import Metric, all_stats, read_metric, time_to
from explore.compare.report import check_options, report
from explore.compare.verdicts import compare
from explore.load import runs
from tests.explore.compare.fake_runs import DEFAULT, fake_grid
from tests.explore.compare.test_report import document_of
from tests.explore.compare.test_verdicts import BETTER, noisy
from tests.explore.compare.test_verdicts import runs as table_of
from train.grid.run import Run


def test_a_higher_accuracy_is_better_and_a_lower_loss_on_an_evaluation_set():
    table = table_of(BETTER)
    table["val_accuracy"] = 1 - table.val_loss / 10
    table["val_loss[long]"] = 2 * table.val_loss
    by_loss, by_accuracy, long = (
        compare(table, metric=metric) for metric in ("val_loss", "val_accuracy", "val_loss[long]")
    )
    assert list(by_accuracy.verdict) == list(long.verdict) == list(by_loss.verdict) == ["baseline", "better"]
    assert list(by_accuracy.best) == list(by_loss.best)
    assert list(by_accuracy["mean"]) == pytest.approx([1 - loss / 10 for loss in by_loss["mean"]])
    assert by_accuracy.difference[1] == pytest.approx(-by_loss.difference[1] / 10)
    assert by_accuracy.difference_low[1] == pytest.approx(-by_loss.difference_high[1] / 10)
    assert by_accuracy.low[1] == pytest.approx(1 - by_loss.high[1] / 10)
    assert list(by_accuracy.p[1:]) == pytest.approx(list(by_loss.p[1:]))
    assert list(long["mean"]) == pytest.approx([2 * loss for loss in by_loss["mean"]])


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("val_loss[lnog]", r"is not a final number of runs; did you mean 'val_loss\[long\]'"),
        ("lr", "is not a final number"),
        ("steps_to: val_loss = 3", "is not of the form 'steps_to: val_loss < 3.3'"),
        ("hours_to: val_loss < 3", "costs: steps, flops, seconds"),
        ("steps_to: val_loss < three", "'three' is no number"),
    ],
)
def test_unknown_metrics_are_refused(metric, why):
    with pytest.raises(ValueError, match=why):
        compare(table_of(BETTER).assign(**{"val_loss[long]": 1.0}), metric=metric)


def run_with(tmp_path, number, values, **row):
    """The row of a run of 100 steps with a validation every 10, and these losses."""
    folder = tmp_path / str(number)
    folder.mkdir()
    losses = [(10 * i, 320 * i, i, value) for i, value in enumerate(values, 1)]
    seconds = [(0, 0, 0, 0.0), (50, 1600, 0, 20.0)]
    (folder / "stats.json").write_text(
        json.dumps({"stat/val_loss:main": losses, "stat/train_seconds": seconds})
    )
    ended = {"status": "complete", "stopped": "finished", "leak": None, "steps": 100, "lr": 0.1}
    costs = {"flops": 1e9, "trained_samples": 3200, "trained_tokens": 5000, "tokens_per_second": 100.0}
    return ended | costs | {"folder": str(folder), "val_loss": values[-1], "random_seed": number} | row


def falling(reached, n=10):
    """Losses of ten validations, below 3 from number `reached` on; from a later one on, they rise again."""
    return [5.0] * (reached - 1) + [2.9] * (1 if reached <= n else 0) + [4.0] * max(0, n - reached)


def test_times_are_those_of_the_first_validation_that_gets_there(tmp_path):
    row = run_with(tmp_path, 0, falling(7))
    assert time_to(row, read_metric("steps_to: val_loss < 3.3")) == (70, True)
    assert time_to(row, read_metric("flops_to:val_loss<=2.9")) == (pytest.approx(0.7e9), True)
    # 20 s at step 50, and 50 s at step 100: 32 s at step 70.
    assert time_to(row, read_metric("seconds_to: val_loss < 3")) == (pytest.approx(32.0), True)
    assert time_to(row, read_metric("steps_to: val_loss < 2")) == (100, False)
    assert time_to(row, read_metric("seconds_to: val_loss < 2")) == (pytest.approx(50.0), False)
    assert time_to(row, read_metric("steps_to: val_accuracy > 0.5")) is None
    assert read_metric("steps_to: val_loss < 3e0") == Metric(
        "steps_to: val_loss < 3e0", "val_loss", "steps", "<", 3.0
    )


def table_with_times(tmp_path, **times):
    """Runs of each kind that get there at these validations; 11 is never."""
    all_stats.cache_clear()
    numbered = [(kind, seed, time) for kind, of_kind in times.items() for seed, time in enumerate(of_kind)]
    return pd.DataFrame(
        [
            run_with(tmp_path, number, falling(time), positions=kind, random_seed=seed)
            for number, (kind, seed, time) in enumerate(numbered)
        ]
    )


STEPS = "steps_to: val_loss < 3.3"


def test_a_run_that_never_gets_there_counts_with_its_length(tmp_path):
    table = table_with_times(tmp_path, a=[5, 6, 5, 7], b=[9, 11, 9, 11])
    result = compare(table, metric=STEPS)
    expected = stats.ttest_rel([90, 100, 90, 100], [50, 60, 50, 70])
    assert list(result["mean"]) == [57.5, 95.0]
    assert result.p[1] == pytest.approx(expected.pvalue)
    assert list(result.n_censored) == [0, 2]
    assert result.verdict[1] == "worse"
    assert "2 of 8 runs did not get there" in result.attrs["notes"][0]
    table.loc[(table.positions == "b") & (table.random_seed == 1), "steps"] = 80
    shorter = compare(table, metric=STEPS)
    assert shorter["mean"][1] == 80, "all times are cut at the length of the shortest that never gets there"
    assert shorter.n_censored[1] == 4


def test_times_that_are_the_same_at_every_seed_get_a_sign_test(tmp_path):
    for n in (5, 6):
        (tmp_path / str(n)).mkdir()
        result = compare(table_with_times(tmp_path / str(n), a=[5] * n, b=[11] * n), metric=STEPS)
        assert result.p[1] == pytest.approx(2 / 2**n)
        assert result.verdict[1] == ("worse" if n == 6 else "cannot tell; about 1 more seed would")


def test_runs_without_the_metric_are_left_out(tmp_path):
    table = table_with_times(tmp_path, a=[5, 6, 5, 7], b=[9, 11, 9, 11], c=[1, 1])
    table.loc[table.positions == "c", "folder"] = str(tmp_path / "gone")
    with pytest.raises(ValueError, match="no run has logged 'val_los'; did you mean 'val_loss'"):
        compare(table, metric="steps_to: val_los < 3")
    result = compare(table, metric=STEPS)
    assert list(result.variant) == ["positions=a", "positions=b"]
    assert result.attrs["left_out"] == [f"2 runs left out: nothing measured for {STEPS}"]
    table["val_loss[x]"] = [1.0, 2.0, 3.0, 4.0, *noisy(9, 4), math.nan, math.nan]
    long = compare(table, metric="val_loss[x]")
    assert (list(long.variant), list(long.n_bad)) == (["positions=a", "positions=b"], [0, 0])


def test_no_run_gets_there(tmp_path):
    result = compare(table_with_times(tmp_path, a=[11, 11], b=[11, 11]), metric=STEPS)
    assert result.verdict[1] == "cannot tell: no run of either gets to val_loss < 3.3"


def test_a_run_that_diverged_never_counts_as_fast(tmp_path):
    table = table_with_times(tmp_path, a=[5, 6, 5], b=[2, 2, 1])
    table.loc[5, "stopped"] = "diverged: training loss 80"
    assert "its runs failed or diverged" in compare(table, metric=STEPS).verdict[1]


def block_table(n_seeds=3, rates=(0.1,), effect=0.2):
    rng = np.random.default_rng(0)
    rows = [
        {"positions": kind, "dim": dim, "lr": rate, "random_seed": seed}
        | {"val_loss": 100 / dim + (kind == "b") * effect + abs(dim / 320 - rate) + 0.1 * rng.normal()}
        for kind in "ab"
        for dim in (32, 64, 128)
        for rate in rates
        for seed in range(n_seeds)
    ]
    ended = {"status": "complete", "stopped": "finished", "leak": None, "steps": 10}
    return pd.DataFrame(rows).assign(**ended)


def test_a_main_effect_is_a_paired_test_over_blocks_and_seeds():
    table = block_table()
    result = compare(table, by="positions")
    a, b = (table[table.positions == kind].sort_values(["dim", "random_seed"]).val_loss for kind in "ab")
    expected = stats.ttest_rel(b, a.to_numpy())
    assert list(result.variant) == ["positions=a", "positions=b"]
    assert list(result.n_seeds) == [9, 9]
    assert result[["low", "high"]].isna().all(axis=None), (
        "the means of blocks vary for other reasons than noise"
    )
    assert result.p[1] == pytest.approx(expected.pvalue)
    assert result.difference[1] == pytest.approx(b.mean() - a.mean())
    assert result.verdict[1] == "worse"
    assert compare(table, by="positions", baseline="positions=b").verdict[0] == "better"
    # The other question: over all positions, and with dims of very different losses.
    assert list(compare(table, by="dim").n_seeds) == [6, 6, 6]
    one = compare(block_table(n_seeds=1, effect=1.0), by="positions")
    assert (list(one.n_seeds), one.verdict[1]) == ([3, 3], "worse"), "blocks alone show the noise"


def test_each_block_has_its_own_best_learning_rate():
    table = block_table(rates=(0.1, 0.2, 0.4))
    result = compare(table, by="positions")
    best = table.loc[table.lr == table.dim / 320]
    means = best.groupby("positions").val_loss.mean()
    assert list(result["mean"]) == pytest.approx(list(means), abs=0.05)
    only = table[~((table.dim == 64) & (table.lr == 0.4) & (table.positions == "b"))]
    assert compare(only, by="positions").verdict[1] == (
        "cannot tell: 2 values of lr tried, 3 of the baseline (in 1 of 3 blocks)"
    )


def test_the_choice_of_settings_is_corrected_in_every_block():
    table = block_table(rates=(0.1, 0.11))
    table.loc[(table.positions == "a") & (table.lr == 0.11), "val_loss"] += 5
    table.loc[table.positions == "b", "val_loss"] -= 0.4
    blocked = compare(table, by="positions")
    best = table.loc[
        table.groupby(["positions", "dim", "lr"])
        .val_loss.transform("mean")
        .groupby([table.positions, table.dim])
        .transform("min")
        == table.groupby(["positions", "dim", "lr"]).val_loss.transform("mean")
    ]
    a, b = (best[best.positions == kind].sort_values(["dim", "random_seed"]).val_loss for kind in "ab")
    factor = 1.0
    for dim, own in table.groupby("dim"):
        alone = compare(own, baseline="positions=a")
        one, other = (side[best.loc[side.index].dim == dim] for side in (b, a))
        factor *= alone.p[1] / stats.ttest_rel(one, other.to_numpy()).pvalue
    assert factor > 1.5
    assert blocked.p[1] == pytest.approx(stats.ttest_rel(b, a.to_numpy()).pvalue * factor)


@pytest.mark.slow
def test_the_options_of_a_report_are_checked_before_a_grid_runs(tmp_path):
    runs_of = [Run(DEFAULT.changed(positions=kind), {}, "demo") for kind in ("none", "rotary")]
    check_options("demo", runs_of, tmp_path, {"baseline": "positions=rotary"})
    check_options("demo", runs_of, tmp_path, {"by": "positions"})
    for options in ({"baseline": "positions=sin"}, {"by": "dim"}):
        with pytest.raises(ValueError, match="positions"):
            check_options("demo", runs_of, tmp_path, options)


def test_fields_without_a_main_effect_are_refused():
    with pytest.raises(ValueError, match="by='lr' is no field whose values can be compared"):
        compare(block_table(), by="lr")
    with pytest.raises(ValueError, match="did you mean 'positions'"):
        compare(block_table(), by="position")


def test_a_baseline_is_named_by_values_of_its_fields():
    table = block_table()
    for text in ("positions=b, dim=64", "dim=64,positions='b'", "positions=b,dim=64"):
        result = compare(table, baseline=text)
        assert list(result.variant[result.verdict == "baseline"]) == ["dim=64, positions=b"]
    with pytest.raises(ValueError, match="baseline='positions=b' fits 3 variants"):
        compare(table, baseline="positions=b")
    with pytest.raises(ValueError, match="there is no variant 'positions=c'"):
        compare(table, baseline="positions=c")


def test_a_report_with_slices_and_a_main_effect(tmp_path, capsys):
    folders = fake_grid(tmp_path, positions=["none", "rotary"], dim=[32, 64], random_seed=[1, 2])
    for i, folder in enumerate(folders):
        with (folder / "slices.csv").open("w", newline="") as file:
            rows = [["", "length", n, 10, 0.9, 0.5] for n in range(5, 9)]
            rows += [["long", "length", n, 10, 0.5 + i / 100, 0.0] for n in (20, 30)]
            csv.writer(file).writerows(
                [["eval_set", "slice", "value", "samples", "accuracy", "all_right"], *rows]
            )
    page = report("demo", str(tmp_path), by="positions", baseline="positions=rotary")
    said = capsys.readouterr().out
    assert "main effect of positions, over all other fields and seeds" in said
    assert "positions=none: worse; loss" in said
    assert "Main effect of positions" in page.html
    [slices] = [one for one in document_of(page.html)["figures"] if one["chart"] == "slices"]
    assert (slices["tokens"]["@x"], slices["tokens"]["@y"]) == ("length", "accuracy")
    assert slices["data"]["trained"] == {"columns": ["low", "high"], "rows": [[5, 8]]}
    assert {row[0] for row in slices["data"]["slices"]["rows"]} == {5, 6, 7, 8, 20, 30}
    (folders[0] / "slices.csv").write_text("length\nmany\n")
    page = report("demo", str(tmp_path), metric="steps_to: val_loss < 2.5")
    assert "slices" in {one["chart"] for one in document_of(page.html)["figures"]}
    assert math.isfinite(compare(runs(str(tmp_path)), metric="seconds_to: val_loss < 2.8")["mean"][0])
