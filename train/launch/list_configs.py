"""The list of configs, for --configs. It imports no torch."""

import re
from pathlib import Path

from train.fitted_table import FittedTable, TableColumn
from train.grid.expand import GridError, comment_at_top, expand_grid
from train.logs import log


def show_configs(folder: Path) -> int:
    """Log the configs of a folder: the number of runs of each file, and its first sentence. Return the exit code."""
    files = sorted(folder.glob("*.txt"))
    columns = [
        TableColumn("config", [file.stem for file in files], is_left=True),
        TableColumn("runs", [number_of_runs(file) for file in files]),
        TableColumn("meaning", [first_comment(file) for file in files], wraps=True),
    ]
    log.info(FittedTable(columns))
    return 0


def number_of_runs(file: Path) -> str:
    """Return the number of runs of a config, or "errors" if it cannot be read."""
    try:
        read = expand_grid([file])
    except GridError:
        return "errors"
    return (
        "errors" if any(part.errors.lines for part in read) else f"{sum(len(part.runs) for part in read):,}"
    )


def first_comment(file: Path) -> str:
    """Return the first sentence of the comment at the top of a config."""
    return re.split(r"(?<=[.?!]) ", comment_at_top(file), maxsplit=1)[0]
