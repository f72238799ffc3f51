"""The sections of a report as HTML. All text from a run, a config or a model is escaped."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from explore.compare.axes import axis_figures
from explore.compare.claims import ClaimVerdict, claim_cells
from explore.compare.code import CodeOfRun, diff_between
from explore.compare.curves import MIN_BAND_SEEDS, TRAINING, VALIDATION
from explore.compare.metrics import X_AXES, RunRow, is_number, measured, number_text
from explore.compare.parts import COLORS, GROUPS, X_TITLE, Figures, ReportPart, table_data, widened
from explore.compare.samples import TaskExample, samples_section
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
MAX_ORIGINS = 20  # commits, versions or commands
MAX_DIFFERENCES = 40  # variants in the chart of differences
# Columns of the cost table by title: measured value and format.
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
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
    rows: Sequence[RunRow],
    notes: Sequence[str],
    left_out: Sequence[str],
    *,
    examples: Sequence[TaskExample | None],
    figures: Figures,
) -> dict[str, str]:
    """Return the HTML for each placeholder of page/report.html. `values` are texts for further placeholders."""
    done = [row for row in rows if has_ended(row)]
    varied = varied_fields(done)
    return {name: escape(value) for name, value in values.items()} | {
        "summary": summary_section(done, rows),
        "notes": "".join(f"<p><b>{escape(note)}</b></p>" for note in notes),
        "answer": "".join(with_title(part, parts, answer_of(part, figures)) for part in parts)
        or "<p>No run has ended yet.</p>",
        "curves": "".join(
            with_title(part, parts, curve_figure(part, i, figures)) for i, part in enumerate(parts)
        )
        or live_figure(figures),
        "axes": "".join(
            f"<option value={name}>{escape(title)}" for name, title in X_AXES.items() if name != "samples"
        ),
        "varied": varied_list(done, varied),
        "parts": "".join(
            with_title(part, parts, further_figures(part, example, figures))
            for part, example in zip(parts, examples, strict=True)
        ),
        "problems": problem_lists(done, varied, [v for part in parts for v in part.variants], left_out),
        "hidden": hidden_note(len(rows) - MAX_PAGE_ROWS, "runs"),
    }


def is_running(row: RunRow) -> bool:
    return measured(row, "status") == "training"


def ranked_rows(rows: Sequence[RunRow]) -> list[RunRow]:
    """Return the runs that the page lists: those that train first, then by loss. Runs without a loss are the last."""

    def key(row: RunRow) -> tuple[bool, float]:
        loss = measured(row, "val_loss")
        return not is_running(row), loss if is_number(loss) else math.inf

    return sorted(rows, key=key)[:MAX_PAGE_ROWS]


def diffs_section(versions: Mapping[str, CodeOfRun]) -> str:
    """Return what changed from the first version of the code to each other one, as foldable diffs, if its text was kept."""
    first = next(iter(versions.values()), CodeOfRun())
    diffs = {label: diff for label, code in versions.items() if (diff := diff_between(first, code))}
    return "".join(
        f"<details><summary>{escape(label)}</summary><pre>{escape(diff)}</pre></details>"
        for label, diff in diffs.items()
    )


def origin_section(runs: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> str:
    """Return the commits, versions and commands of `runs`, the entries of the page's data, as indices of `texts`."""
    items: list[str] = []
    for name in ("commit", "versions", "command"):
        counts = Counter(run[name] for run in runs if name in run)
        items += [
            f"<dt>{name} ({with_plural(n, 'run')})</dt><dd>{escape(texts[place])}</dd>"
            for place, n in list(counts.items())[:MAX_ORIGINS]
        ]
    return f"<dl>{''.join(items)}</dl>" if items else "<p>Not recorded.</p>"


def summary_section(done: Sequence[RunRow], rows: Sequence[RunRow]) -> str:
    seconds, flops = (numbers_of(done, name) for name in ("wall_seconds", "flops"))
    facts = [with_plural(len(done), "run")]
    n_running = sum(map(is_running, rows))
    if n_running:
        facts.append(f"{n_running} training")
    if len(rows) > len(done) + n_running:
        facts.append(f"{len(rows) - len(done) - n_running} incomplete")
    facts.append(f"{duration_as_text(sum(seconds))} of training")
    if flops:
        facts.append(f"{quantity(sum(flops))} FLOPs")
    bad = sum(ended_badly(row) for row in done)
    if bad:
        facts.append(f"{bad} failed or diverged")
    return escape(" · ".join(facts))


def varied_list(done: Sequence[RunRow], varied: Sequence[str]) -> str:
    """Return lists of the varied fields with their values, and of the fields that all runs share."""
    if not done:
        return "<p>No run has ended yet.</p>"
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


def with_title(part: ReportPart, parts: Sequence[ReportPart], body: str) -> str:
    """Return the body below the name of the part's data, if there are several parts."""
    return (f"<h3 class=data>{escape(part.data)}</h3>" if len(parts) > 1 else "") + body


def further_figures(part: ReportPart, example: TaskExample | None, figures: Figures) -> str:
    """Return the sections about the fields, slices, costs and samples of a part."""
    costs = cost_table(part) + cost_figures(part, figures)
    return (
        section("Effect of each field", axis_figures(part, figures))
        + section("Accuracy by slice", slice_figures(part, figures))
        + section("Cost", costs)
        + section("Samples", samples_section(part, example))
    )


def answer_of(part: ReportPart, figures: Figures) -> str:
    """Return the winner, by how much and how sure that is, and the table of the variants."""
    if len(part.rows) == 1:
        return winner(part)
    return f"{winner(part)}{verdicts(part)}{best_table(part)}{difference_figure(part, figures)}"


def winner(part: ReportPart) -> str:
    """Return in a sentence which variant is best, by how much, and how sure that is. Of one variant, add what to try next."""
    row = part.rows[part.order[0]]
    metric = part.label
    mean = f"{number_text(row['mean'])}" + (
        f" (95 % interval {number_text(row['low'])} to {number_text(row['high'])})"
        if math.isfinite(row["low"])
        else ""
    )
    if not math.isfinite(row["mean"]):
        return "<p class=answer>No setting of any variant finished all of its runs.</p>"
    if len(part.rows) == 1:
        n = len(part.variants[0].runs)
        return (
            f"<p class=answer>{with_plural(n, 'run')}: {escape(metric)} <b>{mean}</b>.</p>{next_steps(part)}"
        )
    name, best = f"<b>{escape(row['variant'])}</b>", f" at {escape(row['best'])}" if row["best"] else ""
    lead = f"{name}{best} has the best {escape(metric)}: {mean}"
    if row["verdict"] == "baseline":
        return f"<p class=answer>{lead}. It is the baseline: no variant has a better mean.</p>"
    by = "" if math.isnan(row["difference"]) else f", {number_text(row['difference'], '+')} from the baseline"
    if math.isfinite(row["difference_low"]):
        low, high = (number_text(row["difference_low"], "+"), number_text(row["difference_high"], "+"))
        p = "" if math.isnan(row["p"]) else f", p {p_as_text(row['p'])}"
        by += f" (95 % interval {low} to {high}{p})"
    return f"<p class=answer>{lead}{by}. Verdict: <b class={kind_of(row['verdict'])}>{escape(row['verdict'])}</b>.</p>"


def next_steps(part: ReportPart) -> str:
    """Return what to try after runs of one variant: seeds, neighboring learning rates, something to compare with."""
    variant = part.variants[0]
    run = next(iter(variant.runs.values()))
    steps = []
    if len(variant.seeds) < MIN_BAND_SEEDS:
        steps.append(("How far do seeds alone move this number?", "--seed=[1,2,3] --noise"))
    if part.tuned == ["lr"] and len(variant.settings) == 1 and is_number(lr := run.get("lr")):
        tried = ",".join(f"{lr * factor:.3g}" for factor in (1 / 3, 1, 3))
        steps.append(("Is the learning rate right?", f"--set lr=[{tried}]"))
    if "positions" not in part.varied:
        steps.append(("Does a change help?", '--set \'positions=["none","rotary"]\' --seed=[1,2,3]'))
    if not steps:
        return ""
    items = "".join(f"<li>{escape(why)} <code>{escape(command)}</code></li>" for why, command in steps)
    return f"<p>To try next, with the same command:</p><ul>{items}</ul>"


def curve_figure(part: ReportPart, number: int, figures: Figures) -> str:
    """Return the chart of the loss curves of a part."""
    if not any(part.curves.values()):
        return "<p>The statistics of these runs are missing or unreadable.</p>"
    best = (
        f" at its best {escape(part.variants[0].tuned)}"
        if any(len(v.settings) > 1 for v in part.variants)
        else ""
    )
    caption = f"Each variant{best}: mean over seeds and, from {MIN_BAND_SEEDS} seeds on, its 95 % interval. "
    caption += "The steep beginning lies above the chart. "
    if number == 0:
        caption += (
            "Click a legend entry to hide it, a line to see its run. Drag to move, Ctrl and the wheel to zoom, double "
            "click to reset. Filters of the table hold here, too."
        )
    ranges = {"val": loss_range(part, VALIDATION), "train": loss_range(part, TRAINING)}
    return figures.add("curves", {}, part.tokens("", ""), caption, part=number, ranges=ranges)


def live_figure(figures: Figures) -> str:
    """Return the chart of the loss curves of runs of which none has ended."""
    return figures.add("curves", {}, {GROUPS: [], COLORS: []}, "Runs that train.", part=0)


def loss_range(part: ReportPart, loss: str) -> tuple[float, float]:
    """Return the y range, from the lowest loss to the median loss after a tenth of the training.

    Cut off the steep beginning, so that the final losses are distinguishable.
    """
    ends = {key: curve.mean[np.isfinite(curve.mean)] for key, curve in part.curves[loss].items()}
    means = [mean for mean in ends.values() if mean.size]
    if not means:
        return 0.0, 1.0
    early = float(np.median([mean[min(len(mean) - 1, math.ceil(len(mean) / 10))] for mean in means]))
    lasts = [float(mean[-1]) for (i, j), mean in ends.items() if mean.size and part.variants[i].best == j]
    return widened([min(float(mean.min()) for mean in means), early, *lasts], 0.06)


def difference_figure(part: ReportPart, figures: Figures) -> str:
    """Return a chart of each variant's difference from the baseline with its interval, or "" if none is known."""
    tested = [part.rows[i] for i in part.order if math.isfinite(part.rows[i]["difference_low"])][
        :MAX_DIFFERENCES
    ]
    if not tested:
        return ""
    largest = 2.5 * max(abs(row["difference"]) for row in tested)
    rows = []
    for row in tested:
        low, high = row["difference_low"], row["difference_high"]
        ends = (
            {"low": max(-largest, low), "high": min(largest, high)} if largest else {"low": low, "high": high}
        )
        interval = f"{number_text(low, '+')} to {number_text(high, '+')}"
        known = {"name": row["variant"], "difference": row["difference"], "interval": interval}
        rows.append(known | ends | {"kind": kind_of(row["verdict"]), "verdict": row["verdict"]})
    better = "lower" if part.sign > 0 else "higher"
    title = f"difference in {part.label} from the baseline ({better} is better)"
    caption = (
        f"Difference of the mean {escape(part.label)} over the seeds of both, and its 95 % interval. Intervals and "
        "verdicts are corrected for the number of comparisons."
    )
    data = {"differences": table_data(rows), "zero": table_data([{"x": 0}])}
    return figures.add("differences", data, {X_TITLE: title}, caption)


def cost_figures(part: ReportPart, figures: Figures) -> str:
    """Return charts of loss against FLOPs, or parameters if the FLOPs are nearly equal, and against the state size."""
    costs = (("flops", "training FLOPs"), ("n_params", "parameters"))
    first = next(filter(None, (cost_figure(part, *cost, figures) for cost in costs)), "")
    return first + cost_figure(part, "state_size", "state size in generation", figures)


def cost_figure(part: ReportPart, column: str, label: str, figures: Figures) -> str:
    """Return a chart of loss against a measured value, or "" if the variants differ by less than 5 % in it."""
    costs = {i: mean_over_runs(variant.best_runs, column) for i, variant in enumerate(part.variants)}
    costs = {i: cost for i, cost in costs.items() if cost > 0 and math.isfinite(part.rows[i]["mean"])}
    if not costs or max(costs.values()) < 1.05 * min(costs.values()):
        return ""
    rows = []
    for i, cost in sorted(costs.items(), key=lambda item: item[0] in part.colored):
        row = part.rows[i]
        known = {"name": row["variant"], "group": part.group_of[i], "cost": cost, "loss": row["mean"]}
        rows.append(known | {"low": row["low"], "high": row["high"]})
    caption = (
        f"{escape(part.label.capitalize())} against {escape(label)}, at the best setting of each variant."
    )
    return figures.add("cost", {"costs": table_data(rows)}, part.tokens(label), caption)


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def verdicts(part: ReportPart) -> str:
    """Return a sentence that counts the variants that are better, worse, or neither for sure."""
    counts = Counter(kind_of(row["verdict"]) for row in part.rows)
    phrases = [f"<b class={kind}>{counts[kind]} {kind}</b>" for kind in ("better", "worse") if counts[kind]]
    if counts["unclear"]:
        phrases.append(f"<b class=unclear>{counts['unclear']} cannot be told</b>")
    if not phrases or part.baseline is None:
        return "<p>There is nothing to compare.</p>"
    return f"<p>Against the baseline <q>{escape(part.rows[part.baseline]['variant'])}</q>: {', '.join(phrases)}.</p>"


def kind_of(verdict: str) -> str:
    return verdict if verdict in ("better", "worse", "baseline") else "unclear"


def best_table(part: ReportPart) -> str:
    """Return a table of at least two variants, each at its best setting."""
    header = [
        *(part.fields or ["variant"]),
        "best",
        *map(Right, ("tried", "seeds", part.label.removeprefix("final "), "", "difference", "p")),
        "verdict",
    ]
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
            number_cell(row["difference"], lambda value: number_text(value, "+")),
            number_cell(row["p"], p_as_text),
            f"<td class={kind_of(row['verdict'])}>{escape(row['verdict'])}</td>",
        ]
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
        means = {title: mean_over_runs(variant.best_runs, name) for title, (name, _) in COSTS.items()}
        share = means["FLOP/s"] / mean_over_runs(variant.best_runs, "peak_flops")
        cells = [*map(text_cell, names)]
        cells += [number_cell(means[title], form) for title, (_, form) in COSTS.items()]
        cells += [number_cell(share, "{:.0%}".format), number_cell(part.rows[i]["mean"], number_text)]
        lines.append("".join(cells))
    return html_table(header, lines) + hidden_note(len(part.rows) - MAX_VARIANTS, "variants")


def mean_over_runs(runs: Iterable[RunRow], name: str) -> float:
    """Return the mean of the measured values `name`, or NaN if no run has one."""
    values = numbers_of(runs, name)
    return float(np.mean(values)) if values else math.nan


def numbers_of(runs: Iterable[RunRow], name: str) -> list[float]:
    """Return the measured values `name` of all runs that have one. A failed or killed run may lack it."""
    return [float(value) for run in runs if is_number(value := measured(run, name))]


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
    """Return in words how a run ended, or that it is still training."""
    complete = measured(row, "status") == "complete"
    ended = str(measured(row, "stopped") if complete else measured(row, "status"))
    return ended + (", best weights" if measured(row, "weights") == "best" else "")


def describe_run(row: RunRow, varied: Sequence[str]) -> str:
    return fields_as_label(row, varied) or str(measured(row, "timestamp"))


def html_list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:MAX_PAGE_ROWS])
    return (
        f"<h3>{title} ({len(lines)})</h3><ul>{items}</ul>{hidden_note(len(lines) - MAX_PAGE_ROWS, 'lines')}"
    )


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


def claims_section(claims: Sequence[ClaimVerdict]) -> str:
    """Return the claims of the config with their verdicts, or "" if there are none."""
    return f"<h3>Claims</h3>{table_of_texts(claim_cells(claims))}" if claims else ""


def table_of_texts(cells: Sequence[Sequence[str]]) -> str:
    """Return a table of texts as HTML. The first of `cells` are its header."""
    header, *lines = cells
    return html_table(header, ["".join(map(text_cell, line)) for line in lines])
