"""A comparison in words: its verdicts as sentences, and its table for a terminal, for Markdown and for a page."""

import math

import pandas as pd

from explore.compare.metrics import number_text, sign_of
from explore.compare.variants import with_plural
from explore.compare.verdicts import ComparisonRow, comparison_rows, p_as_text, style_of_verdict
from train.fitted_table import FittedTable, TableColumn

MAX_TERMINAL_ROWS = 40  # rows of a table on the terminal
# Columns of the comparison that a narrow terminal may leave out, the highest first.
RANKS = {"best": 1, "seeds": 2, "pairs": 2, "95 % interval": 3}


def variants_table(comparison: pd.DataFrame) -> FittedTable:
    """Return the table of the comparison for a terminal, the lowest loss first."""
    header, *rows = comparison_cells(comparison)
    styles = [style_of_verdict(row[-1]) for row in rows]
    columns = [
        TableColumn(
            title,
            [row[i] for row in rows],
            rank=RANKS.get(title, 0),
            wraps=i == len(header) - 1,
            is_left=title in ("data", "variant"),
            styles=styles,
        )
        for i, title in enumerate(header)
    ]
    return FittedTable(columns)


def sentences(comparison: pd.DataFrame) -> list[str]:
    """Return the verdicts, one line each. Notes on best settings at an edge and on runs left out follow."""
    lines, rows, metric = [], comparison_rows(comparison), comparison.attrs["metric"]
    for row in rows:
        if row["verdict"] != "baseline":
            where = f" ({row['data']})" if row["data"] else ""
            lines.append(f"{row['variant']}{where}: {row['verdict']}{difference_as_text(row, metric)}")
    hidden = len(lines) - MAX_TERMINAL_ROWS
    if hidden > 0:
        lines = [*lines[:MAX_TERMINAL_ROWS], f"... and {hidden} more"]
    if not lines and len(comparison):
        lines.append("nothing to compare: the runs differ only in seeds and tuned fields")
    at_edge = [row for row in rows if row["edge"]]
    if at_edge:
        first = f"{at_edge[0]['best']} is the {at_edge[0]['edge']} tried with {at_edge[0]['variant']}"
        n_more = len(at_edge) - 1
        more = f"; also at an edge: {with_plural(n_more, 'more variant')}" if n_more else ""
        lines.append(f"the best may lie beyond the values tried: {first}{more}")
    return lines + comparison.attrs["left_out"]


def name_of_metric(metric: str) -> str:
    return "loss" if metric == "val_loss" else metric


def difference_as_text(row: ComparisonRow, metric: str = "val_loss") -> str:
    """Return the difference with its interval and p-value as text, or "" if it is unknown."""
    if math.isnan(row["difference_low"]):
        return ""
    p = "" if math.isnan(row["p"]) else f", p {p_as_text(row['p'])}"
    difference, low, high = (
        number_text(row[name], "+") for name in ("difference", "difference_low", "difference_high")
    )
    return f"; {name_of_metric(metric)} {difference} (95 % interval {low} to {high}{p})"


def censored_note(row: ComparisonRow) -> str:
    """Return how many runs never got to the limit of a metric such as "steps_to: val_loss < 3", or ""."""
    return f" ({with_plural(row['n_censored'], 'run')} never)" if row["n_censored"] else ""


def markdown_table(comparison: pd.DataFrame) -> list[str]:
    """Return the lines of a markdown table of the comparison, the best variant first."""
    header, *rows = comparison_cells(comparison)
    lines = [header, ["---"] * len(header), *rows]
    text = [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    ]
    hidden = len(comparison) - MAX_TERMINAL_ROWS
    return text + [f"... and {hidden} more"] * (hidden > 0)


def comparison_cells(comparison: pd.DataFrame) -> list[list[str]]:
    """Return the header of the table of the comparison, and its rows, the best variant first."""
    metric, by = comparison.attrs["metric"], comparison.attrs["by"]
    header = [
        "variant",
        "best",
        "seeds" if by is None else "pairs",
        name_of_metric(metric),
        "95 % interval",
        "against the baseline",
    ]
    if (comparison["data"] != "").any():
        header.insert(0, "data")
    rows = []
    rising = sign_of(metric) > 0
    ranked = comparison.sort_values(["data", "mean"], ascending=[True, rising], kind="stable")
    ranked = ranked.head(MAX_TERMINAL_ROWS)
    for row in comparison_rows(ranked):
        inside = "-" if math.isnan(row["low"]) else f"{number_text(row['low'])} to {number_text(row['high'])}"
        cells = [
            row["variant"],
            row["best"] or "-",
            str(row["n_seeds"]),
            number_text(row["mean"]) + censored_note(row),
            inside,
            row["verdict"],
        ]
        rows.append([row["data"], *cells] if len(header) > len(cells) else cells)
    return [header, *rows]
