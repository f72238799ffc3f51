"""The published results that are shipped: what their configs must say, their kept runs, and the page made of both."""

import re

import pytest

import main
from docs.generate import DOCS, published_results
from explore.compare.reproductions_page import FIGURES, figures
from train.grid.expand import comment_at_top, expand_grid

CONFIGS = sorted((main.CONFIGS / "reproduce").glob("*.txt"), key=lambda file: file.stem)
MAX_MINUTES = 8 * 60  # of all configs together, on two cores
MAX_BYTES = 2_000_000  # of all kept runs together
MAX_FIGURE_BYTES = 25_000


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_says_what_it_reproduces(file):
    part = expand_grid([file])[-1]
    expected, header = part.expectations, comment_at_top(file)
    assert expected.topic
    assert expected.source
    assert expected.minutes
    assert expected.claims
    assert len({run.params.train.random_seed for run in part.runs}) >= 3
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|github\.com/\w+/\w+", header), "the paper or the project"
    assert re.search(rf"\b{expected.minutes:g} minutes?\b", header), "the minutes, as in the Expect section"


def test_all_results_take_at_most_eight_hours():
    assert sum(one.expectations.minutes for one in published_results()) <= MAX_MINUTES


def test_kept_runs_are_those_of_the_configs():
    stale = [one.name for one in published_results() if one.date and not one.has_todays_runs]
    assert not stale, (
        "`python3 main.py --reproduce=NAME` trains the runs that are missing and keeps no others"
    )
    assert {file.stem for file in main.RECORDS.glob("*.json")} <= {file.stem for file in CONFIGS}


def test_kept_runs_are_small():
    assert sum(file.stat().st_size for file in main.RECORDS.glob("*")) < MAX_BYTES


def test_figures_are_up_to_date():
    made = figures(published_results())
    kept = {file.name: file.read_text(encoding="utf-8") for file in (DOCS / FIGURES).glob("*")}
    assert kept == made, "run `python3 -m docs.generate`"
    assert all(len(text.encode()) < MAX_FIGURE_BYTES for text in made.values())
