"""The sections of a report as HTML. All text from a run, a config or a model is escaped."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd

from explore.compare.axes import axis_figures
from explore.compare.figures import ReportPart, cost_figure, curve_figures, difference_figure, state_figure
from explore.compare.metrics import RunRow, is_number, measured, number_text
from explore.compare.slices import slice_figures
from explore.compare.variants import (
    Variant,
    differing_fields,
    ended_badly,
    fields_as_label,
    has_ended,
    value_as_label,
    varied_fields,
    with_plural,
)
from explore.compare.verdicts import p_as_text
from train.grid.params import SECTION_OF

MAX_PAGE_ROWS = 500  # rows of the table of all runs
MAX_VARIANTS = 200  # rows of the tables of variants
MAX_SAMPLES = 12  # samples shown without a click
COSTS: dict[
    str, tuple[str, Callable[[float], str]]
] = {  # columns of the cost table by title: measured value and format
    "parameters": ("n_params", lambda value: f"{value:,.0f}"),
    "active parameters": ("n_active_params", lambda value: f"{value:,.0f}"),
    "state size": ("state_size", lambda value: f"{value:,.0f}"),
    "training FLOPs": ("flops", lambda value: quantity(value)),
    "tokens": ("trained_tokens", lambda value: quantity(value)),
    "steps": ("steps", lambda value: f"{value:,.0f}"),
    "wall time": ("wall_seconds", lambda value: duration_as_text(value)),
    "tokens/s": ("tokens_per_second", lambda value: quantity(value)),
    "FLOP/s": ("achieved_flops", lambda value: quantity(value)),
}


def sections(
    values: dict[str, str],
    parts: Sequence[ReportPart],
    table: pd.DataFrame,
    notes: Sequence[str],
    left_out: Sequence[str],
) -> dict[str, str]:
    """Return the HTML for each placeholder of page/report.html. `values` are texts for further placeholders."""
    rows: list[RunRow] = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    done = [row for row in rows if has_ended(row)]
    varied = varied_fields(done)
    bodies = "".join(part_of(part) for part in parts)
    return {name: escape(value) for name, value in values.items()} | {
        "summary": summary_section(done, rows),
        "notes": "".join(f"<p><b>{escape(note)}</b></p>" for note in notes) + diffs_section(table),
        "varied": varied_list(done, varied),
        "parts": bodies,
        "problems": problem_lists(done, varied, [v for part in parts for v in part.variants], left_out),
        "runs": runs_table(done, varied),
    }


def diffs_section(table: pd.DataFrame) -> str:
    """Return what changed from the first code to each other one, as foldable diffs."""
    diffs: dict[str, str] = table.attrs.get("code_diffs", {})
    return "".join(
        f"<details><summary>{escape(label)}</summary><pre>{escape(diff)}</pre></details>"
        for label, diff in diffs.items()
    )


def summary_section(done: Sequence[RunRow], rows: Sequence[RunRow]) -> str:
    seconds, flops = (numbers_of(done, name) for name in ("wall_seconds", "flops"))
    facts = [with_plural(len(done), "run")]
    if len(rows) > len(done):
        facts.append(f"{len(rows) - len(done)} incomplete")
    facts.append(f"{duration_as_text(sum(seconds))} of training")
    if flops:
        facts.append(f"{quantity(sum(flops))} FLOPs")
    bad = sum(ended_badly(row) for row in done)
    if bad:
        facts.append(f"{bad} failed or diverged")
    return escape(" · ".join(facts))


def varied_list(done: Sequence[RunRow], varied: Sequence[str]) -> str:
    """Return lists of the varied fields with their values, and of the fields that all runs share."""
    items = []
    for name in varied:
        values = Counter(value_as_label(row.get(name)) for row in done)
        labels = [
            value if len(set(values.values())) == 1 else f"{value} ({n})" for value, n in values.items()
        ]
        hidden = len(labels) - 30
        text = ", ".join(labels[:30]) + (f" and {hidden} more" if hidden > 0 else "")
        items.append(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>")
    varying = f"<dl>{''.join(items)}</dl>" if items else "<p>Nothing: all runs have the same params.</p>"
    differing = differing_fields(done)
    shared = [name for name in SECTION_OF if name not in differing and name in done[0]]
    fixed = "".join(f"<dt>{name}</dt><dd>{escape(value_as_label(done[0][name]))}</dd>" for name in shared)
    return f"{varying}<details><summary>What all runs share</summary><dl>{fixed}</dl></details>"


def part_of(part: ReportPart) -> str:
    title = f"<h2 class=data>{escape(part.data)}</h2>" if part.data else ""
    return (
        title
        + f"<section><h2>Comparison</h2>{verdicts(part)}{differences_of(part)}{best_table(part)}</section>"
        + f"<section><h2>Loss curves</h2>{curve_figures(part)}</section>"
        + section("Effect of each axis", axis_figures(part))
        + section("Accuracy by slice", slice_figures(part))
        + f"<section><h2>Cost</h2>{cost_table(part)}{cost_figure(part)}{state_figure(part)}</section>"
        + section("Samples", samples(part))
    )


def differences_of(part: ReportPart) -> str:
    return difference_figure(part.rows, part.order, part.label, part.variants[0].sign)


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def verdicts(part: ReportPart) -> str:
    """Return a sentence that counts the better, worse and indistinguishable variants."""
    counts = Counter(kind_of(row["verdict"]) for row in part.rows)
    phrases = [f"<b class={kind}>{counts[kind]} {kind}</b>" for kind in ("better", "worse") if counts[kind]]
    if counts["unclear"]:
        phrases.append(f"<b class=unclear>{counts['unclear']} indistinguishable</b>")
    baseline = next((row["variant"] for row in part.rows if row["verdict"] == "baseline"), None)
    if not phrases or baseline is None:
        return "<p>There is nothing to compare.</p>"
    return f"<p>Against the baseline <q>{escape(baseline)}</q>: {', '.join(phrases)}.</p>"


def kind_of(verdict: str) -> str:
    return verdict if verdict in ("better", "worse", "baseline") else "unclear"


def best_table(part: ReportPart) -> str:
    """Return a table of the variants, each at its best setting."""
    header = [
        *(part.fields or ["variant"]),
        "best",
        *map(Right, ("tried", "seeds", part.label.removeprefix("final "), "")),
    ]
    compared = len(part.rows) > 1
    if compared:
        header += [Right("difference"), Right("p"), "verdict"]
    lines = []
    for i in part.order[:MAX_VARIANTS]:
        row, variant = part.rows[i], part.variants[i]
        run = next(iter(variant.runs.values()))
        names = [value_as_label(run.get(name)) for name in part.fields] or [variant.name]
        half = (row["high"] - row["low"]) / 2
        cells = [
            *map(text_cell, names),
            text_cell((row["best"] or "none") + (f" ({row['edge']})" if row["edge"] else "")),
            number_cell(row["n_settings"], "{:d}".format),
            number_cell(row["n_seeds"], "{:d}".format),
            number_cell(row["mean"], number_text),
            number_cell(half, lambda value: f"± {number_text(value)}"),
        ]
        if compared:
            cells += [
                number_cell(row["difference"], lambda value: number_text(value, "+")),
                number_cell(row["p"], p_as_text),
            ]
            cells.append(f"<td class={kind_of(row['verdict'])}>{escape(row['verdict'])}</td>")
        lines.append("".join(cells))
    return html_table(header, lines) + hidden_note(len(part.rows) - MAX_VARIANTS, "variants")


def cost_table(part: ReportPart) -> str:
    """Return a table of each variant's costs at its best setting: means over seeds."""
    header = [
        *(part.fields or ["variant"]),
        *map(Right, (*COSTS, "of peak", part.label.removeprefix("final "))),
    ]
    lines = []
    for i in part.order[:MAX_VARIANTS]:
        variant = part.variants[i]
        run = next(iter(variant.runs.values()))
        names = [value_as_label(run.get(name)) for name in part.fields] or [variant.name]
        runs = variant.runs_of(variant.best) if variant.best is not None else []
        means = {title: mean_over_runs(runs, name) for title, (name, _) in COSTS.items()}
        share = means["FLOP/s"] / mean_over_runs(runs, "peak_flops")
        cells = [*map(text_cell, names)]
        cells += [number_cell(means[title], form) for title, (_, form) in COSTS.items()]
        cells += [number_cell(share, "{:.0%}".format), number_cell(part.rows[i]["mean"], number_text)]
        lines.append("".join(cells))
    return html_table(header, lines) + hidden_note(len(part.rows) - MAX_VARIANTS, "variants")


def mean_over_runs(runs: Iterable[RunRow], name: str) -> float:
    values = numbers_of(runs, name)
    return float(np.mean(values)) if values else math.nan


def numbers_of(runs: Iterable[RunRow], name: str) -> list[float]:
    """Return the measured values `name` of all runs that have one. A failed or killed run may lack it."""
    return [float(value) for run in runs if is_number(value := measured(run, name))]


def samples(part: ReportPart) -> str:
    """Return the text that the best run of each variant generated in its last validation."""
    items = []
    for i in part.order:
        variant = part.variants[i]
        runs = [] if variant.best is None else variant.runs_of(variant.best)
        texts = [text for run in runs if isinstance(text := measured(run, "sample"), str) and text]
        if texts:
            items.append(f"<h3>{escape(variant.name)}</h3><pre>{escape(texts[0])}</pre>")
    if len(items) <= MAX_SAMPLES:
        return "".join(items)
    rest = "".join(items[MAX_SAMPLES:])
    return (
        "".join(items[:MAX_SAMPLES])
        + f"<details><summary>{len(items) - MAX_SAMPLES} more</summary>{rest}</details>"
    )


def problem_lists(
    done: Sequence[RunRow], varied: Sequence[str], variants: Sequence[Variant], left_out: Sequence[str]
) -> str:
    """Return lists of runs that failed or diverged, of models that leak, and of runs left out."""
    lines = [f"{describe_run(row, varied)}: {describe_ending(row)}" for row in done if ended_badly(row)]
    leaks = [
        f"{describe_run(row, varied)}: {measured(row, 'leak')}"
        for row in done
        if isinstance(measured(row, "leak"), str)
    ]
    parts = [
        html_list("Failed or diverged", lines),
        html_list("Leaks: predictions that depend on what they must not see", leaks),
        html_list("Left out", list(left_out)),
    ]
    return "".join(parts) or "<p>None: no run failed, diverged or leaks.</p>"


def describe_ending(row: RunRow) -> str:
    """Return in words how a run ended."""
    return str(measured(row, "stopped") if measured(row, "status") == "complete" else measured(row, "status"))


def describe_run(row: RunRow, varied: Sequence[str]) -> str:
    return fields_as_label(row, varied) or str(measured(row, "timestamp"))


def html_list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:MAX_PAGE_ROWS])
    return (
        f"<h3>{title} ({len(lines)})</h3><ul>{items}</ul>{hidden_note(len(lines) - MAX_PAGE_ROWS, 'lines')}"
    )


def runs_table(done: Sequence[RunRow], varied: Sequence[str]) -> str:
    numbers = ("loss", "accuracy", "parameters", "steps", "seconds")
    header = [*varied, *map(Right, numbers), "ended", "run"]
    ranked = sorted(done, key=lambda row: loss if is_number(loss := measured(row, "val_loss")) else math.inf)
    lines = []
    for row in ranked[:MAX_PAGE_ROWS]:
        ended = describe_ending(row) + (", best weights" if measured(row, "weights") == "best" else "")
        cells = [
            *(text_cell(value_as_label(row.get(name))) for name in varied),
            number_cell(measured(row, "val_loss"), "{:.4f}".format),
            number_cell(measured(row, "val_accuracy"), "{:.1%}".format),
            number_cell(measured(row, "n_params"), "{:,.0f}".format),
            number_cell(measured(row, "steps"), "{:,.0f}".format),
            number_cell(measured(row, "wall_seconds"), "{:,.1f}".format),
            text_cell(ended + (", leak" if isinstance(measured(row, "leak"), str) else "")),
            text_cell(str(measured(row, "timestamp"))),
        ]
        lines.append("".join(cells))
    return html_table(header, lines) + hidden_note(len(done) - MAX_PAGE_ROWS, "runs")


class Right(str):
    """The title of a right-aligned column of numbers."""


def html_table(header: Sequence[str], lines: Sequence[str]) -> str:
    names = "".join(
        f"<th scope=col{' class=n' * isinstance(name, Right)}>{escape(name)}</th>" for name in header
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=wide><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"


def text_cell(text: str) -> str:
    """Return a table cell of text. The page sorts numeric texts as numbers."""
    return f"<td>{escape(text)}</td>"


def number_cell(value: object, form: Callable[[float], str]) -> str:
    if not is_number(value):
        return "<td class=n>–</td>"
    return f'<td class=n data-v="{value:.9g}">{escape(form(value))}</td>'


def hidden_note(n: int, what: str) -> str:
    return f"<p class=quiet>… and {n:,} more {what}, in results.csv.</p>" if n > 0 else ""


def quantity(value: float) -> str:
    """Return a number with three digits and a unit prefix: "12.3 G"."""
    for unit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {letter}"
    return f"{value:.3g}"


def duration_as_text(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"
