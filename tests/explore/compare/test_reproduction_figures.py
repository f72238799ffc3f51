"""Figures of published results: their form follows from the claim and the grid, and their text is the same in each call."""

import math
import re
from xml.etree import ElementTree

import pytest

from explore.compare.charts import panels_as_svg
from explore.compare.metrics import Time
from explore.compare.reproduction_figures import figure_of, panels_of
from train.grid.claims import read_claim
from train.grid.config_text import Place

STEPS_TO = "steps_to: val_loss < 3"


def runs(axis: str, values, **others) -> list[dict[str, object]]:
    """Return rows of runs with two seeds for each value of a field."""
    return [
        {
            axis: value,
            "random_seed": seed,
            "dataset_name": "copy",
            "val_loss": 3 - 0.1 * i - 0.01 * seed,
            "val_accuracy": 0.1 * i,
            "val_accuracy[long]": 0.05 * i,
            "steps": 20,
            STEPS_TO: Time(10.0 + i, True),
            "stopped": "finished",
            "status": "complete",
            "curves": {"val_loss": [[10, 3.0 + seed / 10], [20, 2.5]]},
            **others,
        }
        for i, value in enumerate(values)
        for seed in (1, 2)
    ]


def claims(*texts: str):
    return [read_claim(text, text, Place("a.txt", 1)) for text in texts]


def texts_in(svg: str) -> list[str]:
    return [node.text for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]


def bands_of(panel) -> dict[object, tuple[float, float]]:
    return {band["at"]: (band["low"], band["high"]) for band in panel.bands}


def means_of(panel) -> dict[tuple[object, object], float]:
    return {(one["series"], one["at"]): one["value"] for one in panel.points if one.get("mean")}


def test_a_row_for_each_variant_and_a_color_for_each_column():
    [panel] = panels_of(
        claims("val_accuracy(positions='none') >= 0.25", "val_accuracy('long', positions='sin') < 1"),
        runs("positions", ["none", "sin"]),
    )
    assert panel.kind == "dots"
    assert panel.names == ["positions=none", "positions=sin"]
    assert panel.series == ["val_accuracy", "val_accuracy[long]"]
    assert panel.value_title == "validation accuracy"
    assert means_of(panel)["val_accuracy[long]", "positions=sin"] == pytest.approx(0.05)
    assert len(panel.points) == 2 * 2 * (2 + 1), "two seeds and a mean each"


def test_columns_of_other_units_have_panels_of_their_own():
    rows = [row | {"sink_share": 0.1 * i} for i, row in enumerate(runs("positions", ["none", "sin"]))]
    found = panels_of(claims("val_accuracy(positions='none') < 1", "sink_share(positions='sin') > 0.1"), rows)
    assert [panel.value_title for panel in found] == ["validation accuracy", "sink_share"]
    [panel] = panels_of(claims("val_accuracy(positions='none') < sink_share(positions='sin')"), rows)
    assert panel.series == ["val_accuracy", "sink_share"], "a claim compares them"


def test_a_band_is_where_all_claims_about_a_point_hold():
    rows = runs("positions", ["none", "sin", "rotary"])  # losses of 2.985, 2.885 and 2.785
    [panel] = panels_of(
        claims(
            "2.5 < val_loss(positions='none') <= 3",
            "val_loss(positions='none') - val_loss(positions='sin') <= 0.05",
            "val_loss(positions='sin') > val_loss(positions='rotary')",
            "1 / val_loss(positions='rotary') < 1",
        ),
        rows,
    )
    bands = bands_of(panel)
    assert bands["positions=none"] == pytest.approx((2.5, 2.935))
    assert bands["positions=sin"] == pytest.approx((2.785, panel.domain[1])), "up to the end of the axis"
    assert "positions=rotary" not in bands, "the claim is not linear in the value"


def test_lines_over_a_field_with_three_numbers():
    rows = [row | {"n_heads": row["dim"] // 4} for row in runs("dim", [8, 16, 64])]
    [panel] = panels_of(claims("val_loss(dim=8) > val_loss(dim=64)"), rows)
    assert (panel.kind, panel.title, panel.at_scale) == ("lines", "dim", "log")
    assert panel.value_title == "validation loss, nats a token"
    assert panel.series == [""], "n_heads follows from dim"
    assert panel.ticks == [8, 16, 64]
    assert means_of(panel) == pytest.approx({("", 8): 2.985, ("", 16): 2.885, ("", 64): 2.785})
    assert bands_of(panel) == {8: pytest.approx((2.785, panel.domain[1]))}


def test_a_learning_rate_is_an_axis_only_where_claims_name_it():
    rows = [
        row | {"lr": lr, "val_loss": row["val_loss"] + lr}
        for lr in (0.01, 0.1, 1.0)
        for row in runs("positions", ["none", "sin"])
    ]
    [panel] = panels_of(claims("val_loss(positions='none') < 3"), rows)
    assert panel.kind == "dots"
    assert means_of(panel)["", "positions=none"] == pytest.approx(2.995), "at the best rate"
    for text in (
        "val_loss(positions='none', lr=0.1) < 3",
        "spread('val_loss', positions='none') < spread('val_loss', positions='sin')",
    ):
        [panel] = panels_of(claims(text), rows)
        assert (panel.title, panel.at_scale) == ("lr", "log")
        assert panel.series == ["positions=none", "positions=sin"]
        assert [*bands_of(panel)] == ([0.1] if "lr" in text else [])


def test_a_trend_over_a_measured_number_has_it_as_its_axis():
    rows = [row | {"state_size": 100 * row["dim"]} for row in runs("dim", [8, 16, 32])]
    [panel] = panels_of(claims("spearman('state_size', 'val_loss') < 0"), rows)
    assert (panel.title, panel.series, panel.ticks) == ("state_size", [""], [])
    assert panel.names == [800, 1600, 3200]
    assert not panel.areas


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_a_slope_has_the_area_that_its_line_may_reach(power):
    sizes = [8, 32, 128]
    rows = [row | {"val_loss": row["dim"] ** power} for row in runs("dim", sizes)]
    [panel] = panels_of(claims("0.5 <= slope('dim', 'val_loss', log=True) <= 1"), rows)
    assert panel.value_scale == ("log" if power == 2 else "linear"), "1.2 and 2.4 decades"
    first, last = panel.areas[0], panel.areas[-1]
    assert (first["low"], first["high"]) == pytest.approx((8**power, 8**power))
    assert last["at"] == pytest.approx(128)
    assert last["low"] == pytest.approx(8**power * 4)
    assert last["high"] == pytest.approx(min(8**power * 16, panel.domain[1]))


def test_curves_where_a_claim_is_about_a_time():
    rows = runs("positions", ["none", "sin", "rotary"])
    rows[0]["curves"] = {"val_loss": [[10, 3.1], [20, math.nan]]}  # it diverged
    [panel] = panels_of(
        claims("steps_to('val_loss < 3', positions='none') <= steps_to('val_loss < 3', positions='sin')"),
        rows,
    )
    assert (panel.kind, panel.title, panel.limits) == ("curves", "optimizer steps", [3])
    assert panel.series == ["positions=none", "positions=sin"], "rotary is in no claim"
    assert len([one for one in panel.points if "run" in one]) == 1 + 2 + 2 * 2
    assert means_of(panel) == pytest.approx(
        {("positions=none", 10): 3.15, ("positions=sin", 10): 3.15, ("positions=sin", 20): 2.5}
    )


@pytest.mark.parametrize("rows", [[], runs("positions", ["none", "sin"], curves={})])
def test_without_data_there_is_no_figure(rows):
    assert figure_of(claims("steps_to('val_loss < 3', positions='none') < 5"), rows) == ""


def test_diverged_runs_are_triangles_at_the_end_of_the_axis():
    rows = runs("positions", ["none", "sin"])
    rows[0] |= {"stopped": "diverged: the loss is nan"}
    [panel] = panels_of(claims("val_loss(positions='sin') <= 3"), rows)
    [mark] = [one for one in panel.points if "triangle" in one.get("shape", "")]
    assert mark == {"series": "", "at": "positions=none", "value": panel.domain[1], "shape": "triangle-right"}
    assert means_of(panel) == {("", "positions=none"): None, ("", "positions=sin"): pytest.approx(2.885)}
    svg = panels_as_svg([panel])
    assert "shaded: values that the claims expect; triangles: runs that diverged" in texts_in(svg)
    assert "NaN" not in svg


def test_long_names_are_words_without_their_fields():
    rows = [row | {"dataset_name": name} for name in ("copy", "recall") for row in runs("positions", "ab")]
    kind = ("gated-conv", "custom-transformer")
    rows = [row | {"layer_architecture": kind if row["positions"] == "a" else "torch-gru"} for row in rows]
    [panel] = panels_of(claims("val_loss(layer_architecture='torch-gru', dataset_name='copy') < 3"), rows)
    assert panel.names == [
        f"{task}, {kind}"
        for task in ("copy", "recall")
        for kind in ("gated-conv/custom-transformer", "torch-gru")
    ]


def test_a_file_shows_panels_side_by_side_and_is_the_same_in_each_call():
    rows = runs("weight_decay", [0.0, 0.1, 1.0])
    about = claims(
        "val_accuracy(weight_decay=1.0) >= 0.25",
        "steps_to('val_loss < 3', weight_decay=1.0) <= steps_to('val_loss < 3', weight_decay=0.1)",
    )
    svg = figure_of(about, rows)
    shown = {"weight_decay", "0", "0.1", "1", "validation accuracy", "optimizer steps", "weight_decay=0.1"}
    assert shown <= {*texts_in(svg)}
    assert svg.count("stroke-dasharray") == 1, "the loss that a claim waits for"
    assert "Liberation Sans" in svg, "a font that vl_convert brings along"
    assert not re.search(r"<[^>]*\d\.\d{2,}[^>]*>", re.sub(r'opacity="[^"]*"', "", svg)), "one decimal"
    assert figure_of(about, rows) == svg
