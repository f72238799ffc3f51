"""Tables as CSV files that are safe to open in a spreadsheet: no text becomes a formula."""

from pathlib import Path

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\n")  # first characters of cells that spreadsheets compute


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write `table` to `path` without its index. Put an apostrophe before texts that a spreadsheet would compute."""
    safe = table.map(harmless).rename(columns=harmless)
    safe.to_csv(path, index=False, encoding="utf-8", errors="backslashreplace")


def harmless(cell: object) -> object:
    """Put an apostrophe before a text that begins like a formula. Return any other cell unchanged.

    Replace carriage returns by newlines: the csv module would not quote them, and readers would begin a new row.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(FORMULA) else text
