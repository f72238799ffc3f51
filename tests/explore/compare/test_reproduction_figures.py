"""Figures of published results: their form follows from the claim and the grid, and their text is the same in each call."""

import re
from xml.etree import ElementTree

import pytest

from explore.compare.metrics import Time
from explore.compare.reproduction_figures import figure_of
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


def test_a_row_for_each_variant_and_a_color_for_each_column():
    svg = figure_of(
        claims("val_accuracy(positions='none') >= 0.25", "val_accuracy('long', positions='sin') < 1"),
        runs("positions", ["none", "sin"]),
    )
    shown = texts_in(svg)
    assert {"positions=none", "positions=sin", "val_accuracy", "val_accuracy[long]"} <= {*shown}
    assert {"validation accuracy", "limits in claims"} <= {*shown}
    assert svg.count('class="rule"') == 3, "the limits 0.25 and 1, and the legend"
    assert len(re.findall(r"<circle", svg)) == 2 * 2 * 3 + 2, "two seeds and a mean each, and the legend"


def test_lines_over_a_field_with_three_numbers():
    svg = figure_of(claims("val_loss(dim=8) > val_loss(dim=32)"), runs("dim", [8, 16, 32]))
    assert {"dim", "8", "16", "32", "validation loss, nats a token"} <= {*texts_in(svg)}
    assert svg.count("<polyline") == 1


def test_a_trend_over_a_measured_number_has_it_as_its_axis():
    rows = [row | {"state_size": 100 * row["dim"]} for row in runs("dim", [8, 16])]
    svg = figure_of(claims("spearman('state_size', 'val_loss') < 0"), rows)
    assert {"state_size", "dim=8", "dim=16"} <= {*texts_in(svg)}
    assert "<polyline" not in svg


def test_curves_where_a_claim_is_about_a_time():
    svg = figure_of(
        claims("steps_to('val_loss < 3', positions='none') <= steps_to('val_loss < 3', positions='sin')"),
        runs("positions", ["none", "sin"]),
    )
    assert {"optimizer steps", "positions=none", "positions=sin"} <= {*texts_in(svg)}
    assert svg.count("<polyline") == 2 * (2 + 1), "two runs and their mean for each variant"


@pytest.mark.parametrize("rows", [[], runs("positions", ["none", "sin"], curves={})])
def test_without_data_there_is_no_figure(rows):
    assert figure_of(claims("steps_to('val_loss < 3', positions='none') < 5"), rows) == ""


def test_diverged_runs_are_counted():
    rows = runs("positions", ["none", "sin"])
    rows[0] |= {"stopped": "diverged: the loss is nan"}
    svg = figure_of(claims("val_accuracy(positions='none') >= 0.25"), rows)
    assert "positions=none (1 diverged)" in texts_in(svg)
    assert "nan" not in svg
    assert "inf" not in svg


def test_the_figure_is_the_same_in_each_call():
    made = {figure_of(claims("val_loss(dim=8) < 9"), runs("dim", [8, 16, 32])) for _ in range(2)}
    assert len(made) == 1
