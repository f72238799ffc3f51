"""Tables that fit any terminal: numbers are never cut, unimportant columns go first, long texts stand below."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from train.logs import printable

MIN_TEXT = 24  # columns of a terminal that a wrapped text has at least


@dataclass(frozen=True)
class TableColumn:
    """A column of a FittedTable. `rank` is 0 if it may never be left out; of the others, the highest goes first."""

    title: str
    cells: Sequence[str]
    rank: int = 0
    wraps: bool = False  # a text that may be broken between words
    goes_below: bool = False  # where there is no room, the part after the first colon stands below the table
    is_left: bool = False  # flush left
    styles: Sequence[str] = ()  # of the cells, such as "red"
    beside: str = ""  # title of another column; `without_repeats` leaves out one with the same cells

    @property
    def width(self) -> int:
        lines = [line for text in (self.title, *self.cells) for line in text.split("\n")]
        return max(map(cell_len, lines), default=0)

    @property
    def values(self) -> set[str]:
        """The different values; a dash stands for none."""
        return set(self.cells) - {"-"}

    @property
    def is_constant(self) -> bool:
        return len(self.cells) > 1 and len(self.values) == 1


def without_repeats(columns: Sequence[TableColumn]) -> list[TableColumn]:
    """Leave out the columns whose cells are all those of the column that they stand beside."""
    cells = {column.title: [*column.cells] for column in columns}
    return [column for column in columns if [*column.cells] != cells.get(column.beside)]


@dataclass(frozen=True)
class FittedTable:
    """A table that rich prints in the width there is. Its first column names the rows.

    Where the columns do not fit, constant ones go first, then those of the highest rank; a line below says which. If
    those that must stay need more room than there is, they stand in several tables, one below the other.
    """

    columns: Sequence[TableColumn]
    notes: Sequence[str] = ()  # lines below the table
    key: str = ""  # what the first column counts: "run"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        columns, below = self.with_texts_below(width)
        columns, constant, hidden = left_out(columns, width)
        blocks = split_columns(columns, width)
        for block in blocks:
            yield table_of_columns(block, width)
        for text in (*below, *sentences_about(constant, hidden), *self.notes):
            yield Text(printable(text))

    def with_texts_below(self, width: int) -> tuple[list[TableColumn], list[str]]:
        """Return the columns, and the texts that stand below because there is no room for them."""
        columns, below = [*self.columns], list[str]()
        for i, column in enumerate(self.columns):
            if column.goes_below and not fits(columns, width):
                short = [cell.partition(":")[0] for cell in column.cells]
                names = [f"{self.key} {cell}".strip(" *") for cell in self.columns[0].cells]
                below += [
                    f"{name}: {cell}"
                    for name, cell, start in zip(names, column.cells, short, strict=True)
                    if cell != start
                ]
                columns[i] = replace(column, cells=short)
        return columns, below


def fits(columns: Sequence[TableColumn], width: int) -> bool:
    return width_of(columns) <= width


def width_of(columns: Sequence[TableColumn]) -> int:
    """Return the width of a table of these columns, in which texts are as narrow as possible."""
    return sum(least_width(column) for column in columns) + 3 * (len(columns) - 1) + 2


def least_width(column: TableColumn) -> int:
    return min(column.width, MIN_TEXT) if column.wraps else column.width


def left_out(
    columns: list[TableColumn], width: int
) -> tuple[list[TableColumn], list[TableColumn], list[TableColumn]]:
    """Return the columns to show, and those left out for lack of room: constant ones, and others."""
    constant, hidden = list[TableColumn](), list[TableColumn]()
    order = sorted((c for c in columns if c.rank), key=lambda c: (not c.is_constant, -c.rank))
    for column in order:
        if fits(columns, width):
            break
        columns = [one for one in columns if one is not column]
        (constant if column.is_constant else hidden).append(column)
    return columns, constant, hidden


def split_columns(columns: Sequence[TableColumn], width: int) -> list[list[TableColumn]]:
    """Return the columns of each of the tables that stand one below the other. All begin with the first column."""
    first, *others = columns
    blocks = [[first]]
    for column in others:
        if len(blocks[-1]) > 1 and not fits([*blocks[-1], column], width):
            blocks.append([first])
        blocks[-1].append(column)
    return blocks


def table_of_columns(columns: Sequence[TableColumn], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in columns:
        justify = "left" if column.wraps or column.is_left else "right"
        is_too_wide = least_width(column) > width - 2
        wraps = column.wraps or is_too_wide
        table.add_column(
            Text(printable(column.title)),
            justify=justify,  # type: ignore[arg-type]
            no_wrap=not wraps,
            overflow="fold",
            min_width=None if is_too_wide else least_width(column),
        )
    for i in range(len(columns[0].cells)):
        cells = [Text(printable(c.cells[i]), style=c.styles[i] if c.styles else "") for c in columns]
        table.add_row(*cells)
    return table


def sentences_about(constant: Sequence[TableColumn], hidden: Sequence[TableColumn]) -> Iterator[str]:
    """Yield what the columns that are left out have in common, and their names."""
    if constant:
        same = ", ".join(
            f"{one_line_title(column)} {next(iter(column.values))}" for column in reversed(constant)
        )
        yield f"the same in all rows: {same}"
    if hidden:
        yield f"left out for lack of room: {', '.join(map(one_line_title, reversed(hidden)))}"


def one_line_title(column: TableColumn) -> str:
    """Return a title on one line: "accu-" above "racy" is "accuracy"."""
    return column.title.replace("-\n", "").replace("/\n", "/").replace("\n/", "/").replace("\n", " ")
