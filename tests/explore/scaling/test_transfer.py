"""Transfer of the learning rate: verdicts on tables whose optima are known."""

import math

import matplotlib as mpl
import pandas as pd
import pytest

from explore.scaling.transfer import curve, panel, transfer_report

mpl.use("Agg")
LRS = [2.0**-k for k in range(10, 3, -1)]


def runs(
    moves: float, scale: str = "dim", sizes=(64, 128, 256), lrs=LRS, seeds=(0,), noise=0.0, **fields
) -> pd.DataFrame:
    """Losses that rise with the squared distance from an optimum, which `moves` so many octaves with each size."""
    rows = []
    for i, size in enumerate(sizes):
        for lr in lrs:
            for seed in seeds:
                off = math.log2(lr) + 7 - moves * i
                jitter = noise * math.sin(100 * seed + 10 * i + math.log2(lr) * (1 + seed))
                loss = 2.5 - 0.02 * i + 0.02 * off**2 + jitter
                rows.append({scale: size, "lr": lr, "random_seed": seed, "val_loss": loss, **fields})
    return pd.DataFrame(rows)


def test_an_optimum_that_stays_transfers():
    found = transfer_report(runs(moves=0))
    assert found.verdict == "pass"
    assert found.table["best"].to_list() == [2**-7] * 3
    assert found.table["regret"].to_list() == [0, 0, 0]
    assert found.sentences[0].startswith("transfers over dim")
    assert "the loss falls with every size" in found.sentences[0]


def test_an_optimum_that_moves_shifts():
    found = transfer_report(runs(moves=-1))
    assert found.verdict == (
        "fail: shifts over dim, the best lr of 64, 0.007812, costs 0.0800 nats at 256, whose best is 0.001953"
    )
    assert found.table["shift"].to_list() == [0, -1, -2]
    assert found.table["regret"].to_list() == pytest.approx([0, 0.02, 0.08])
    assert found.table["at base"].to_list() == pytest.approx([2.5, 2.5, 2.54])


def test_an_optimum_that_moves_without_cost_transfers():
    table = runs(moves=0)
    table.loc[(table["dim"] == 256) & (table["lr"] == 2**-6), "val_loss"] = 2.459
    found = transfer_report(table)
    assert found.passed
    assert found.table["shift"].to_list() == [0, 0, 1]
    assert found.table["regret"].to_list()[2] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (runs(moves=0, lrs=LRS[:4]), "0.007812 is at the edge of the learning rates tried with 64"),
        (
            runs(moves=0, lrs=[2**-8, 2**-7, 2**-6])[lambda t: (t["dim"] == 64) | (t["lr"] != 2**-7)],
            "did not run with 128",
        ),
        (runs(moves=-0.75, sizes=(64, 256, 1024)), "between 0.02 and 0.05, or seeds differ too much"),
        (runs(moves=0).assign(val_loss=math.nan), "all runs of 64 failed or diverged"),
    ],
    ids=["base at the edge", "not run", "between", "diverged"],
)
def test_transfer_that_cannot_be_judged_gives_a_reason(table, reason):
    verdict = transfer_report(table).verdict
    assert verdict.startswith("cannot tell")
    assert reason in verdict


def test_a_larger_models_optimum_at_the_edge_gives_no_verdict():
    table = runs(moves=0, lrs=[2**-8, 2**-7, 2**-6], sizes=(64, 128))
    table.loc[(table["dim"] == 128) & (table["lr"] == 2**-6), "val_loss"] = 2.479
    assert (
        "the best of 128, 0.01562, is at the edge of the learning rates tried"
        in transfer_report(table).verdict
    )


def test_noise_over_seeds_prevents_a_verdict():
    steady = transfer_report(runs(moves=0, seeds=(0, 1, 2), noise=1e-4))
    assert steady.passed
    assert steady.table["seeds"].to_list() == [3, 3, 3]
    shifted = transfer_report(runs(moves=-1, seeds=(0, 1, 2), noise=1e-4)).table.iloc[-1]
    assert shifted["low"] < 0.08 < shifted["high"]
    assert shifted["high"] - shifted["low"] < 0.002
    noisy = transfer_report(runs(moves=-1, seeds=(0, 1), noise=0.2))
    assert "cannot tell" in noisy.verdict


def test_a_diverged_run_has_infinite_regret():
    table = runs(moves=0).assign(stopped="ended")
    table.loc[(table["dim"] == 256) & (table["lr"] == 2**-7), ["val_loss", "stopped"]] = (
        math.nan,
        "diverged at step 5",
    )
    found = transfer_report(table)
    assert found.verdict.startswith("fail: shifts over dim")
    assert found.table["regret"].iloc[-1] == math.inf


def both(moves_of_mup: float, moves_of_standard: float, **options) -> pd.DataFrame:
    return pd.concat(
        [
            runs(moves_of_standard, parametrization="standard", **options),
            runs(moves_of_mup, parametrization="mup", **options),
        ]
    )


def test_standard_beside_mup_is_a_control():
    found = transfer_report(both(0, -1))
    assert found.verdict == "pass"
    assert found.sentences[0].startswith("parametrization=standard: shifts over dim")
    assert not transfer_report(both(-1, 0)).passed
    assert not transfer_report(both(0, -1), controls=[]).passed


def test_mup_is_a_control_for_transfer_over_depth():
    table = pd.concat(
        [both(-1, -1, scale="n_layers"), runs(0, scale="n_layers", parametrization="completep")]
    )
    assert transfer_report(table).passed
    assert not transfer_report(both(-1, 0, scale="n_layers")).passed


def test_fields_determined_by_the_scale_make_no_variants():
    table = runs(moves=0).assign(n_heads=lambda t: t["dim"] // 16, dataset_name="sotu")
    found = transfer_report(table)
    assert found.table["variant"].unique().tolist() == ["all runs"] or found.table[
        "variant"
    ].unique().tolist() == [""]
    assert len(found.table) == 3


def test_every_scale_that_varies_is_judged():
    two = pd.concat([runs(0, sizes=(64, 128)).assign(batch_size=n) for n in (8, 16)])
    found = transfer_report(two)
    assert found.table["over"].value_counts().to_dict() == {"dim": 4, "batch_size": 4}
    assert set(transfer_report(two, over="dim").table["over"]) == {"dim"}


def test_transfer_without_two_sizes_is_refused():
    with pytest.raises(ValueError, match="no two values of dim, n_layers, batch_size among 7 runs"):
        transfer_report(runs(0, sizes=(64,)))
    with pytest.raises(ValueError, match="among 0 runs"):
        transfer_report(pd.DataFrame())
    with pytest.raises(ValueError, match="metric='val_los'"):
        transfer_report(runs(0), metric="val_los")


def test_a_point_beyond_the_range_of_the_figure_is_clipped_with_a_mark():
    lrs = sorted(LRS)[1:-1]
    table = runs(moves=0, lrs=lrs)
    far, lost = (
        (table["dim"] == 256) & (table["lr"] == lrs[0]),
        (table["dim"] == 128) & (table["lr"] == lrs[1]),
    )
    table.loc[far, "val_loss"], table.loc[lost, "val_loss"] = 9.0, math.nan
    drawn = panel(
        "", "dim", {size: curve(table.to_dict("records"), "dim", size, "val_loss") for size in (64, 128, 256)}
    )
    assert [list(line.x) for line in drawn.lines] == [lrs] * 3, "no point is dropped"
    assert [list(line.clipped) for line in drawn.lines] == [[], [1], [0]]
    top = max(max(line.y) for line in drawn.lines)
    assert drawn.lines[2].y[0] == top < 3
    [axes] = transfer_report(table).figure.axes
    marked = [mark for mark in axes.lines if mark.get_marker() == "^" and len(mark.get_xdata())]
    assert [list(mark.get_xdata()) for mark in marked] == [[lrs[1]], [lrs[0]]]
