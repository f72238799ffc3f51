"""The HTML page of a report: one file that needs no network, with charts, all runs and their origin."""

from collections.abc import Sequence
from datetime import datetime
from html import escape

import pandas as pd

from explore.compare.charts import vega_script
from explore.compare.claims import ClaimVerdict
from explore.compare.curves import read_curves
from explore.compare.page_data import page_document
from explore.compare.pairs import code_changes
from explore.compare.parts import Figures, ReportPart
from explore.compare.samples import example_of
from explore.compare.sections import (
    claims_section,
    diffs_section,
    is_running,
    origin_section,
    ranked_rows,
    sections,
    table_of_texts,
)
from explore.compare.variants import Variant, has_ended, measured, records, varied_fields
from explore.compare.verdict_text import comparison_cells, sentences
from explore.compare.verdicts import comparison_rows
from explore.html import Page, as_json, fill_template


class ReportPage(Page):
    """The page of a report, with the parts and the charts that it was made from."""

    def __init__(self, html: str, title: str, parts: Sequence[ReportPart], figures: Figures) -> None:
        super().__init__(html, title)
        self.parts = parts
        self.figures = figures


def report_page(
    name: str,
    table: pd.DataFrame,
    variants: Sequence[Variant],
    comparison: pd.DataFrame,
    effect: pd.DataFrame | None = None,
    claims: Sequence[ClaimVerdict] = (),
    *,
    refresh: float | None = None,
) -> ReportPage:
    """Return the page of the report. `effect` is a comparison by one field, over all others.

    With `refresh`, the page reloads itself after that many seconds.
    """
    all_rows = records(table)
    listed = ranked_rows(all_rows)
    folders = {str(measured(row, "folder")) for row in listed}
    rows, parts, run_curves = comparison_rows(comparison), [], {}
    for data in dict.fromkeys(variant.data for variant in variants):
        chosen = [i for i, variant in enumerate(variants) if variant.data == data]
        own = [variants[i] for i in chosen]
        curves = read_curves(own, folders)
        run_curves.update(curves.runs)
        metric = comparison.attrs["metric"]
        parts.append(ReportPart(data, own, [rows[i] for i in chosen], curves.averages, metric))
    values = {"title": f"Report: {name}", "name": name, "when": f"{datetime.now():%Y-%m-%d %H:%M}"}
    values["condition"] = comparison.attrs["at"]
    figures, examples = Figures(), [example_of(part) for part in parts]
    notes, left_out = comparison.attrs["notes"], comparison.attrs["left_out"]
    bodies = sections(values, parts, all_rows, notes, left_out, examples=examples, figures=figures)
    versions = table.attrs["code_versions"]
    bodies["notes"] += diffs_section(versions)
    if effect is not None:
        bodies["answer"] = main_effect(effect) + bodies["answer"]
    bodies["answer"] += claims_section(claims)
    varied = varied_fields([row for row in listed if has_ended(row) or is_running(row)])
    document = page_document(listed, varied, parts, run_curves, examples, figures.entries)
    bodies["origin"] = origin_section(document["runs"], document["texts"])
    bodies["data"] = as_json(document | {"changes": code_changes(versions), "refresh": refresh})
    page = fill_template("report.html", ["charts.js", "report.js"], bodies, library=vega_script())
    return ReportPage(page, f"Report: {name}", parts, figures)


def main_effect(effect: pd.DataFrame) -> str:
    """Return the part of the answer about the main effect of one field."""
    words = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(effect))
    title = escape(f"Main effect of {effect.attrs['by']}, over all other fields and seeds")
    return f"<h3>{title}</h3>{table_of_texts(comparison_cells(effect))}<ul>{words}</ul>"
