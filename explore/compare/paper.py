"""Figures of a report for a paper: its charts as PDF and SVG, as wide as a column of text, on white."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from explore.compare.charts import PAGE_FONT, Spec, as_pdf, as_svg, chart_specs
from explore.compare.curves import TRAINING, VALIDATION
from explore.compare.parts import COLORS, COLUMN_INCHES, GROUPS, OTHERS, X_TITLE, ReportPart, table_data
from explore.html import PAGE

COLUMN_WIDTH = round(72 * COLUMN_INCHES)  # in points, the unit of a chart
HEIGHT_SHARE = 0.66  # of the width
MAX_SHORT_LABEL = 13  # characters of the longest label in a legend of two columns
COLOR = re.compile(r"--([\w-]+): light-dark\((#\w+),")
PAPER_FONT = "Helvetica, Arial, sans-serif"
LOSS_LABELS = {VALIDATION: "validation loss", TRAINING: "training loss"}


def write_figures(
    folder: Path, parts: Sequence[ReportPart], figures: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write the charts of a page to `folder` as PDF and SVG, and return the paths.

    Lines are labelled by what varied. Charts whose fields the reader of the page chooses are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, entry in named_figures(parts, figures).items():
        spec = filled_spec(entry)
        for ending, content in ((".pdf", as_pdf(spec)), (".svg", as_svg(spec).encode())):
            path = folder / f"{name}{ending}"
            path.write_bytes(content)
            paths.append(path)
    return paths


def named_figures(
    parts: Sequence[ReportPart], figures: Sequence[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Return the charts by the name of their file: kind of the chart, field, and a number if the name is taken."""
    found: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        for loss, label in LOSS_LABELS.items():
            if part.curves[loss]:
                add_named(found, label, curve_entry(part, loss, label))
    for entry in figures:
        if entry["chart"] not in ("curves", "heat"):
            kind = entry["chart"].removesuffix("-many")
            field = entry["tokens"].get(X_TITLE, "") if kind in ("tuned", "effect", "cost", "slices") else ""
            add_named(found, f"{kind} {field}", entry)
    return found


def add_named(found: dict[str, Mapping[str, Any]], name: str, entry: Mapping[str, Any]) -> None:
    name = re.sub(r"\W+", "-", name).strip("-")
    number = sum(other == name or other.startswith(f"{name}--") for other in found)
    found[f"{name}--{number + 1}" if number else name] = entry


def curve_entry(part: ReportPart, loss: str, label: str) -> dict[str, Any]:
    """Return the chart of the mean curves of a part, each variant at its best setting."""
    rows: list[dict[str, Any]] = []
    for (i, j), curve in part.curves[loss].items():
        group = part.group(i, j)
        if group == OTHERS:
            continue
        known = {"key": len(rows), "group": group, "width": 1.5}
        for step, y, low, high in zip(curve.steps, curve.mean, curve.low, curve.high, strict=True):
            rows.append(known | {"x": int(step), "y": y, "low": low, "high": high})
    values = sorted(float(row["y"]) for row in rows if math.isfinite(row["y"]))
    data = {"curves": table_data(rows), "hover": table_data([])}
    # The highest tenth is the steep beginning.
    y_range = [values[0], values[int(0.9 * (len(values) - 1))]] if values else [0.0, 1.0]
    colors = part.tokens("steps", label)
    colors[GROUPS] = [group for group in part.groups if group != OTHERS]
    return {"chart": "curves", "data": data, "tokens": colors, "signals": {"yrange": y_range}}


def filled_spec(entry: Mapping[str, Any]) -> Spec:
    """Return the specification of a chart with its data, light colors and the width of a column."""
    light = dict(COLOR.findall((PAGE / "report.html").read_text() + (PAGE / "head.html").read_text()))
    tokens = {f"@{name}": color for name, color in light.items()} | entry["tokens"]
    tokens[COLORS] = [light[color[1:]] for color in tokens.get(COLORS, [])]
    if entry["chart"] == "differences":
        tokens[X_TITLE] = tokens[X_TITLE].partition(" from the baseline")[0]
    spec = with_tokens(
        json.loads(json.dumps(chart_specs()[entry["chart"]]).replace(PAGE_FONT, PAPER_FONT)), tokens
    )
    for data in spec["data"]:
        if data["name"] in entry["data"]:
            data["values"] = rows_of_table(entry["data"][data["name"]])
    fix_signals(spec, {"width": COLUMN_WIDTH, **entry.get("signals", {})})
    if isinstance(spec.get("height"), int):
        spec["height"] = round(HEIGHT_SHARE * COLUMN_WIDTH)
    longest = max(map(len, tokens.get(GROUPS, [])), default=0)
    for legend in spec.get("legends", []):
        legend.update({"columns": 1 if longest > MAX_SHORT_LABEL else 2, "labelLimit": COLUMN_WIDTH})
    return spec


def with_tokens(value: Any, tokens: Mapping[str, Any]) -> Any:
    """Return a part of a specification with the values of its placeholders."""
    if isinstance(value, dict):
        return {name: with_tokens(one, tokens) for name, one in value.items()}
    if isinstance(value, list):
        if len(value) == 1 and value[0] in (GROUPS, COLORS):
            return tokens[value[0]]
        return [with_tokens(one, tokens) for one in value]
    return tokens[value] if isinstance(value, str) and value.startswith("@") else value


def fix_signals(spec: Spec, values: Mapping[str, Any]) -> None:
    """Set signals to constants, such as the width, which follows the window on a page."""
    for signal in spec["signals"]:
        if signal["name"] in values:
            signal.pop("init", None)
            signal.pop("on", None)
            signal["value"] = values[signal["name"]]


def rows_of_table(table: Mapping[str, list]) -> list[dict[str, object]]:
    """Return the rows from which table_data() made a table."""
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
