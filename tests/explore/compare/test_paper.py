"""Figures for a paper: the charts of a report and the figures of metrics, as PDF and SVG."""

import math
import re
from types import SimpleNamespace

import pytest

import model_explorer
from explore.compare.axes import range_with_intervals
from tests.explore.compare.fake_runs import fake_grid

SMALL = {"positions": ["learned", "rotary"], "lr": [1e-3, 3e-3], "random_seed": [0, 1, 2]}


def edges_of_legends(svg: str) -> float:
    """The rightmost point of the legends of a chart, 0 without any."""
    [plot] = re.findall(r'^<svg[^>]*>.*?<g fill="none"[^>]* transform="translate\(([\d.]+),', svg)
    legend = r'role-legend" aria-hidden="true"><g transform="translate\(([-\d.]+),[^>]*><path[^>]* d="M0,0h([\d.]+)v'
    return max((float(plot) + float(x) + float(width) for x, width in re.findall(legend, svg)), default=0)


def test_a_report_in_the_style_of_a_paper_writes_each_chart_as_pdf_and_svg(tmp_path, capsys):
    fake_grid(tmp_path, **SMALL)
    model_explorer.report("demo", out=str(tmp_path), style="paper")
    folder = tmp_path / "reports" / "demo" / "figures"
    names = {"training-loss", "validation-loss", "differences", "tuned-lr", "effect-positions", "parallel"}
    assert {path.stem for path in folder.iterdir()} == names
    for name in names:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        svg = (folder / f"{name}.svg").read_text()
        width = re.search(r'<svg[^>]* width="([\d.]+)"', svg)
        assert width
        assert float(width[1]) == pytest.approx(3.25 * 72, abs=2), "a column of a paper"
        assert "@" not in re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
        assert edges_of_legends(svg) <= float(width[1])
    assert ">all other runs<" not in (folder / "tuned-lr.svg").read_text(), "every line has a color"
    curves = (folder / "validation-loss.svg").read_text()
    for label in ("positions=learned", "positions=rotary", "steps", "validation loss"):
        assert f">{label}<" in curves
    assert "12 figure files in " in capsys.readouterr().out


def test_without_the_style_there_are_no_figures(tmp_path):
    fake_grid(tmp_path, random_seed=[0, 1])
    model_explorer.report("demo", out=str(tmp_path))
    assert not (tmp_path / "reports" / "demo" / "figures").exists()


@pytest.mark.parametrize(
    ("name", "file"), [("loss", "loss.png"), ("loss.pdf", "loss.pdf"), ("loss.svg", "loss.svg")]
)
def test_figures_of_metrics_are_png_pdf_or_svg_by_their_name(tmp_path, name, file):
    first, second = fake_grid(tmp_path, positions=["learned", "rotary"])
    figure = model_explorer.plot_metrics(
        [first.name, second.name], "val_loss", filename=name, out=str(tmp_path)
    )
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == [file]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["positions=learned", "positions=rotary"]
    assert (figure.get_size_inches()[0] < 4) == (file != "loss.png")


@pytest.mark.parametrize(
    ("interval", "seen"), [((1.7, 2.3), True), ((1.1, 2.9), True), ((-9.0, 13.0), False)], ids=str
)
def test_the_axis_of_a_tuned_field_has_room_for_intervals_but_not_for_huge_ones(interval, seen):
    rows = [
        {"loss": 2.0, "low": interval[0], "high": interval[1]},
        {"loss": 3.0, "low": 2.9, "high": 3.1},
        {"loss": math.inf, "low": math.nan, "high": math.nan},
    ]
    low, high = range_with_intervals(rows, SimpleNamespace(sign=1))
    assert low < 2.0 < 3.0 < high
    assert (low < interval[0]) == seen
    assert high - low < 4
