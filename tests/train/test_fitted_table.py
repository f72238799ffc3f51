"""Tables in any width: what must stay stays whole, in which order the others go, what stands below."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from train.fitted_table import FittedTable, TableColumn

RUNS = TableColumn("run", ["1", "2"])
AXES = [
    TableColumn("layer_architecture", ["custom-transformer", "torch-gru"]),
    TableColumn("lr", ["0.001", "0.003"]),
]
LOSS = TableColumn("val\nloss", ["3.2512", "* 3.1"])
CHANCE = TableColumn("chance", ["13.1%", "13.1%"], rank=9)
SECONDS = TableColumn("seconds", ["7.0", "12.4"], rank=7)
SPEED = TableColumn("tokens\n/s", ["10,000", "12,000"], rank=8)
PARAMETERS = TableColumn("para-\nmeters", ["1,000", "1,000"], rank=5)
ENDED = TableColumn(
    "ended", ["finished", "failed: RuntimeError: out of memory"], goes_below=True, styles=["", "red"]
)
ALL = [RUNS, *AXES, LOSS, PARAMETERS, CHANCE, SPEED, SECONDS, ENDED]


def drawn(table: FittedTable, width: int, **options: object) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(table)
    return console.file.getvalue()


def test_everything_is_shown_where_there_is_room():
    shown = drawn(FittedTable(ALL, key="run"), 200)
    assert "left out" not in shown
    assert re.search(
        r"^ +2 +torch-gru +0.003 +\* 3.1 +1,000 +13.1% +12,000 +12.4 +failed: RuntimeError: out of memory",
        shown,
        re.MULTILINE,
    )


def test_texts_then_constants_then_the_least_important_make_room():
    shown = drawn(FittedTable(ALL, key="run"), 105)
    assert "run 2: failed: RuntimeError: out of memory" in shown
    assert "the same" not in shown
    shown = drawn(FittedTable(ALL, key="run"), 80)
    assert "the same in all rows: parameters 1,000, chance 13.1%" in shown
    assert "lack of room" not in shown
    shown = drawn(FittedTable(ALL, key="run"), 70)
    assert "left out for lack of room: tokens/s" in shown
    assert "12.4" in shown


@given(
    st.integers(30, 200),
    # 22 is the widest cell for which there is room beside the number of the run.
    st.lists(st.tuples(st.integers(1, 22), st.integers(0, 3)), min_size=1, max_size=12),
)
def test_numbers_that_must_stay_are_whole_at_any_width(width, sizes):
    columns = [
        TableColumn(f"t{i}", [f"{i:x}" * size, f"{15 - i:x}" * size], rank)
        for i, (size, rank) in enumerate(sizes)
    ]
    shown = drawn(FittedTable([RUNS, *columns]), width)
    assert max(map(len, shown.splitlines())) <= width
    for column in columns:
        if column.rank == 0:
            for cell in column.cells:
                assert re.search(rf"(?<!\w){cell}(?!\w)", shown), (cell, shown)
    for line in shown.splitlines():
        assert "…" not in line


def test_a_cell_wider_than_the_terminal_is_folded():
    shown = drawn(FittedTable([RUNS, TableColumn("freeze", ["x" * 100, "y"])]), 40)
    assert shown.count("x") == 100


@pytest.mark.parametrize(
    ("options", "coloured"),
    [({"force_terminal": True}, True), ({"force_terminal": True, "no_color": True}, False), ({}, False)],
)
def test_colours_are_for_terminals_that_want_them(options, coloured):
    shown = drawn(FittedTable(ALL, key="run"), 200, color_system="standard" if options else None, **options)
    assert ("\x1b[31m" in shown) == coloured
