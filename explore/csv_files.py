"""Tables as CSV files that a spreadsheet opens without taking a text for a formula."""

from pathlib import Path
from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\n")  # what a cell begins with that spreadsheets compute


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write `table` without its index. Texts that a spreadsheet would compute get an apostrophe in front."""
    safe = table.map(harmless).rename(columns=harmless)
    safe.to_csv(path, index=False, encoding="utf-8", errors="backslashreplace")


def harmless(cell: Any) -> Any:
    """Return a text that begins like a formula with an apostrophe before it, anything else as it is.

    A carriage return becomes a newline: the csv module would not quote it, and readers would begin a row there.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(FORMULA) else text
