"""CSV files that are safe to open in a spreadsheet: no text is run as a formula."""

from pathlib import Path

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\n")  # a cell that begins so may be run as a formula


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write `table` to `path` without its index. Put an apostrophe before texts that look like formulas."""
    safe = table.map(escape_formula).rename(columns=escape_formula)
    safe.to_csv(path, index=False, encoding="utf-8", errors="backslashreplace")


def escape_formula(cell: object) -> object:
    """Put an apostrophe before a text that begins like a formula. Return any other cell unchanged.

    Replace carriage returns by newlines. The csv module does not quote them, and readers would begin a new row.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(FORMULA) else text
