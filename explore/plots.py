"""Figures of metrics and attention patterns. No other file imports matplotlib.

Shape suffixes:  L layer  H head  T position  S position attended to
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from torch import Tensor

from common.text import did_you_mean
from explore.compare.curves import average_curves, averaged
from explore.compare.metrics import X_AXES, RunRow, places_of
from explore.compare.parts import COLUMN_INCHES
from explore.compare.variants import CODE, SEED, fields_as_label, varied_fields
from explore.html import short_label
from explore.inspection.patterns import Patterns, attention_patterns, film_of
from explore.inspection.tables import HeatPanel, is_one_sided
from explore.load import find_run, row_of_folder
from model.generation.sampling import eval_mode
from model.inputs import Input
from model.lm import LM
from train.saving.run_folder import output_root
from train.stats import Stat, Stats

FONT = 7.5  # size in points of text in figures that fit a column of a paper, and beside attention patterns
TOKEN_INCHES = 0.13  # height of a line of that text
MAX_TOKEN_CHARS = 13  # longer tokens are cut
MAX_GRID_INCHES = 13.0  # maximum width of a row of patterns
FILM_COLUMNS = 6  # panels in a row of a film
EXPERT_LOAD = "stat/expert_load:layers."  # beginning of the names of statistics
MAX_LEGEND_EXPERTS = 8  # a legend of more would hide the lines
# As in page/weights.js, the shade depends on the square root of a weight. Negative weights are amber. Later positions
# are blank, or red if they have weight.
SCALE = PowerNorm(0.5, 0, 1)
BLUES = ["#e9eef6", "#b9d3eb", "#6fafd8", "#2877b6", "#08306b"]
HEAT = LinearSegmentedColormap.from_list("heat", BLUES).with_extremes(under="#dd8a1e")
BOTH_COLUMNS = 6.75  # inches
MAX_IN_COLUMN = 7.5  # inches of a figure that still fits a column
DIVERGING = LinearSegmentedColormap.from_list("diverging", ["#1f5fa8", "#ffffff", "#b34a00"])
MAX_LARGE_PANELS = 4  # in a row; more are drawn smaller
RED = "#c01820"
DARK_SHARE = 0.85  # of the largest distance from the center: from here on, texts on the color are white
LEAK = LinearSegmentedColormap.from_list("leak", ["#ff9c8f", "#e4483f", "#c01820", "#9d0b14", "#67000d"])


class Line(NamedTuple):
    """A line of a panel. With several seeds, `low` and `high` are the bounds of a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    best: int | None = None  # index of a point to mark
    clipped: Sequence[int] = ()  # indices of points above the range of the panel, drawn at its upper edge
    is_bad: bool = False  # drawn in red


class Panel(NamedTuple):
    title: str
    lines: list[Line]
    bands: Sequence[Line] = ()  # gray: where lines are allowed, between `low` and `high`


def plot_metrics(
    timestamps: str | Sequence[str],
    metrics: str | Sequence[str] = "stat/val_loss:main",
    filename: str | None = None,
    out: str | None = None,
    *,
    x: str = "samples",
    log: Literal["", "x", "y", "xy"] = "",
    smooth: int = 1,
    width: float | None = None,
) -> Figure:
    """Plot metrics during training: a panel for each metric, a line for each run.

    `timestamps` may be "latest". `metrics` are names in a run's `train_stats`, in full or as people type them:
    "val_loss", "train_loss", "accuracy". Lines are labelled by the fields in which the runs differ. Runs that differ only
    in the seed are one line, their mean, with a band: its 95 % interval.

    - x: "samples", "steps", "tokens", "flops", or "seconds" of training. The last three need a run that has ended.
    - log: the axes with a logarithmic scale.
    - smooth: length of the moving average: each point is the mean of its value and of the `smooth` - 1 before it.
    - width: of the figure in inches; by default 7, and the column of a paper for .pdf and .svg.

    With `filename`, save the figure in metrics/ under the output root (`out`), as .png unless the name ends in .svg or
    .pdf. A notebook shows the figure as a cell's value. Raise ValueError for an unknown run, metric or setting.
    """
    if x not in X_AXES or log not in ("", "x", "y", "xy") or smooth < 1:
        raise ValueError(
            f"x={x!r}, log={log!r}, smooth={smooth!r}: x must be one of {', '.join(X_AXES)}, log one of "
            "'', 'x', 'y', 'xy', and smooth at least 1"
        )
    timestamps = [timestamps] if isinstance(timestamps, str) else list(timestamps)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    rows = {
        folder: row_of_folder(folder) for folder in (find_run(timestamp, out) for timestamp in timestamps)
    }
    lines = {
        label: [read_metrics(folder, rows[folder], metrics, x) for folder in members]
        for label, members in groups_of(rows).items()
    }
    width = width or column_width(filename) or 7.0
    figure, axes = plt.subplots(
        len(metrics),
        figsize=(width, 0.6 + width * 0.4 * len(metrics)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for color, (label, runs) in enumerate(lines.items()):
        for i, ax in enumerate(axes[:, 0]):
            draw_metric(
                ax,
                [run[i]._replace(stats=smoothed(run[i].stats, smooth)) for run in runs],
                label,
                f"C{color}",
            )
    for ax, metric in zip(axes[:, 0], metrics, strict=True):
        ax.set_ylabel(metric.removeprefix("stat/"))
        for axis in log:
            (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    axes[-1, 0].set_xlabel(X_AXES[x])
    name_lines(figure, axes[0, 0])
    if filename is not None:
        save_figure(figure, figure_path(out, "metrics", filename))
    show(figure, is_result=True)
    return figure


plot_metric = plot_metrics


def plot_expert_load(timestamp: str, filename: str | None = None, out: str | None = None) -> Figure:
    """Plot the load of each expert over the number of trained samples: a panel for each layer, a line for each expert.

    The load is the share of tokens that an expert gets over the mean share: all lines are at 1 in a balanced layer.
    `timestamp` may be "latest". With `filename`, save the figure as `plot_metrics` does. Raise ValueError for an unknown
    run, or one without experts.
    """
    folder = find_run(timestamp, out)
    by_layer = loads_by_layer(Stats.load(folder / "stats.json").train_stats)
    if not by_layer:
        raise ValueError(f"{folder.name} has no expert_load: none of its layers has n_experts above 0")
    size = (7, 0.6 + 2.2 * len(by_layer))
    figure, axes = plt.subplots(len(by_layer), figsize=size, squeeze=False, sharex=True, layout="constrained")
    for ax, (layer, loads) in zip(axes[:, 0], by_layer.items(), strict=True):
        for expert, values in loads.items():
            draw_metric(ax, [MetricValues(values, [float(stat.n) for stat in values])], label=expert)
        ax.set_ylabel(f"load in layer {layer}")
        ax.set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("trained samples")
    if max(map(len, by_layer.values())) <= MAX_LEGEND_EXPERTS:
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, names, title="expert", loc="outside right upper", fontsize="x-small", frameon=False
        )
    if filename is not None:
        if is_vector(filename):
            fit_column(figure)
        save_figure(figure, figure_path(out, "metrics", filename))
    show(figure, is_result=True)
    return figure


def loads_by_layer(stats: Mapping[str, list[Stat]]) -> dict[str, dict[str, list[Stat]]]:
    """Return the statistics `expert_load:layers.LAYER.EXPERT`, by layer and expert."""
    found: dict[str, dict[str, list[Stat]]] = {}
    for name, values in stats.items():
        if name.startswith(EXPERT_LOAD):
            layer, expert = name.removeprefix(EXPERT_LOAD).split(".")
            found.setdefault(layer, {})[expert] = values
    return found


class MetricValues(NamedTuple):
    """The values of a metric of one run, and where they lie on the x axis."""

    stats: list[Stat]
    places: list[float]


def read_metrics(folder: Path, row: RunRow, metrics: Sequence[str], x: str) -> list[MetricValues]:
    """Return the values of each of `metrics` in a run over `x`. Raise ValueError if it lacks one of them, or `x`."""
    stats = Stats.load(folder / "stats.json").train_stats
    found = [metric_named(metric, stats) for metric in metrics]
    for metric, name in zip(metrics, found, strict=True):
        if name is None:
            short = {name: name.removeprefix("stat/").removesuffix(":main") for name in stats}
            known = stats if metric.startswith("stat/") else [*short.values()]
            raise ValueError(f"{folder.name} has no metric {metric!r}; {did_you_mean(metric, known)}")
    values = [stats[name] for name in found if name is not None]
    read = [MetricValues(of_metric, places_of(of_metric, x, row, stats)) for of_metric in values]
    if any(math.isnan(place) for one in read for place in one.places):
        raise ValueError(f"{folder.name} has no record of its {x} at all values; use x='steps'")
    return read


def smoothed(values: list[Stat], n: int) -> list[Stat]:
    """Return the moving average of the values: each is the mean of itself and of the `n` - 1 before it."""
    means = pd.Series([stat.v for stat in values]).rolling(n, min_periods=1).mean()
    return [stat._replace(v=mean) for stat, mean in zip(values, means.tolist(), strict=True)]


def metric_named(typed: str, stats: Collection[str]) -> str | None:
    """Return the full name of a metric: "val_loss" is "stat/val_loss:main", "accuracy" is "stat/val_accuracy"."""
    names = (f"{start}{typed}{end}" for start in ("", "stat/", "stat/val_") for end in ("", ":main"))
    return next((name for name in names if name in stats), None)


def groups_of(rows: Mapping[Path, RunRow]) -> dict[str, list[Path]]:
    """Return the folders of each line by its label: the fields in which the runs differ, but for the seed.

    Runs that also have the same seed are lines of their own, with the timestamp in the label.
    """
    all_rows = [*rows.values()]
    varied = [name for name in varied_fields(all_rows) if name not in (CODE, SEED)] if len(rows) > 1 else []
    groups: dict[str, list[Path]] = {}
    for folder, row in rows.items():
        groups.setdefault(fields_as_label(row, varied), []).append(folder)
    named: dict[str, list[Path]] = {}
    for label, members in groups.items():
        n_seeds = len({rows[folder].get(SEED) for folder in members})
        if n_seeds == len(members) and (label or n_seeds > 1):
            seeds = f"{n_seeds} seeds" if n_seeds > 1 else ""
            named[", ".join(filter(None, (label, seeds)))] = members
        else:
            named |= {f"{label} {folder.name}".strip(): [folder] for folder in members}
    return named


def name_lines(figure: Figure, ax: Axes) -> None:
    """Name the lines of `ax`: one as the title, several in a legend outside the panels."""
    handles, names = ax.get_legend_handles_labels()
    if len(names) == 1:
        ax.set_title(names[0], fontsize="medium", parse_math=False)
    else:
        is_wide = figure.get_figwidth() > 5
        figure.legend(
            handles,
            names,
            loc="outside right upper" if is_wide else "outside upper center",
            fontsize="small" if is_wide else "x-small",
            frameon=False,
        )


def draw_panels(rows: Sequence[Sequence[Panel]], labels: tuple[str, str], log_y: bool = True) -> Figure:
    """Draw panels of lines over an x axis in powers of two, for a paper.

    The panels of a row share their y axis, and all panels share one legend. `labels` name the x and the y axis.
    """
    n_rows, n_columns = len(rows), max(map(len, rows))
    is_small = n_columns > MAX_LARGE_PANELS
    size = (1.6 + (1.5 if is_small else 2.9) * n_columns, 0.5 + (1.6 if is_small else 2.5) * n_rows)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    names = list(dict.fromkeys(line.name for row in rows for p in row for line in p.lines if not line.is_bad))
    bands = list(dict.fromkeys(band.name for row in rows for panel in row for band in panel.bands))
    colors = dict(zip(names, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names))), strict=True))
    for row, panels in zip(axes, rows, strict=True):
        for ax, panel in zip(row, panels, strict=False):
            has_bad = any(line.is_bad for line in panel.lines)
            ax.set_title(
                panel.title, fontsize="x-small" if is_small else "small", color=RED if has_bad else "black"
            )
            for band in panel.bands:
                ax.fill_between(band.x, band.low, band.high, color="black", alpha=0.08, lw=0, zorder=0)
            for line in panel.lines:
                draw_line(ax, line, RED if line.is_bad else colors[line.name])
            ax.set_xscale("log", base=2)
            sizes = sorted({x for line in panel.lines for x in line.x})
            if all(float(x).is_integer() for x in sizes):
                ax.set_xticks(sizes, [f"{x:g}" for x in sizes])
            if log_y:
                ax.set_yscale("log", base=2)
            ax.grid(color="#e4e4e8", lw=0.7)
            ax.spines[["top", "right"]].set_visible(False)
            if is_small:
                ax.tick_params(labelsize="x-small")
            ax.set_xlabel(labels[0])
            ax.label_outer()
        for ax in row[len(panels) :]:
            ax.set_axis_off()
        row[0].set_ylabel(labels[1])
    handles = [Line2D([], [], color=colors[name], label=name) for name in names]
    if any(line.is_bad for row in rows for panel in row for line in panel.lines):
        handles.append(Line2D([], [], color=RED, label="not allowed"))
    handles += [
        Line2D([], [], color="black", lw=7, alpha=0.08 * (i + 1), label=name) for i, name in enumerate(bands)
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize="x-small", frameon=False)
    plt.close(figure)  # so that a notebook shows it only as a cell's value
    return figure


def draw_line(ax: Axes, line: Line, color: Any) -> None:
    ax.plot(line.x, line.y, "o-", ms=3, lw=1.3, color=color)
    if line.low:
        ax.fill_between(line.x, line.low, line.high, color=color, alpha=0.18, lw=0)
    if line.best is not None:
        ax.plot(line.x[line.best], line.y[line.best], "*", ms=11, color=color)
    ax.plot([line.x[i] for i in line.clipped], [line.y[i] for i in line.clipped], "^", ms=7, color=color)


def draw_metric(ax: Axes, runs: Sequence[MetricValues], label: str, color: str | None = None) -> None:
    """Draw a line, with dots unless it has over 60 values. Draw several runs as their mean and its 95 % interval.

    The mean is that of values after the same number of samples. It lies at the mean of their places.
    """
    curve = average_curves([averaged(run.stats) for run in runs]) if len(runs) > 1 else None
    if curve is None:
        x, y = runs[0].places, [stat.v for stat in runs[0].stats]
    else:
        at = [
            np.interp(curve.x, [stat.n for stat in run.stats], run.places, left=math.nan, right=math.nan)
            for run in runs
        ]
        x, y = np.nanmean(at, axis=0).tolist(), curve.mean.tolist()
        ax.fill_between(x, curve.low, curve.high, color=color, alpha=0.18, lw=0)
    ax.plot(x, y, "o-" if len(x) <= 60 else "-", ms=3, lw=1.3, label=label, color=color)
    ax.grid(color="#e4e4e8", lw=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.02)


@torch.no_grad()
def show_lm_attns(
    lm: LM,
    sample: Input,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    folder_name: str | None = None,
    *,
    out: str | None = None,
    file_type: Literal["png", "svg", "pdf"] = "png",
    width: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Show the attention patterns of one sequence, a row of heads for each layer, and return (out_embeds, attns).

    `layers` and `heads` are the numbers to show; the default is all that have patterns. With `folder_name`, save the
    figure in attentions/{folder_name}/ under the output root (`out`), as a file of `file_type`.
    `width` is in inches; by default .svg and .pdf fit a column of a paper.

    out_embeds [1, T, V] are the logits. attns [1, n_layers, n_heads, T, S] are all patterns, with a row for each query
    T over its keys S. Raise ValueError for a batch, and for layers or heads without patterns.
    """
    patterns = attention_patterns(lm, sample)
    layers = select_numbers("layers", layers, patterns.heads)
    heads = select_numbers("heads", heads, range(max(patterns.heads.values())))
    figure = draw_attentions(
        patterns, layers, heads, width or column_width(folder_name and f"{folder_name}.{file_type}")
    )
    if folder_name is not None:
        name = f"layers-{'-'.join(map(str, layers))}--heads-{'-'.join(map(str, heads))}.{file_type}"
        save_figure(figure, output_root(out) / "attentions" / folder_name / name)
    show(figure, is_result=False)
    with eval_mode(lm):
        result = lm(sample, get_attns=True)
    return result["logits"], result["attns"]


def head_film(
    checkpoints: Iterable[tuple[int, LM]],
    sample: Input,
    layer: int,
    head: int,
    filename: str | None = None,
    out: str | None = None,
    *,
    width: float | None = None,
) -> Figure:
    """Draw how the attention pattern of one head on one sequence changes over training.

    There is a panel for each (step, lm) of `checkpoints`. With `filename`, save the figure in attentions/ under the
    output root (`out`), as .png unless the name ends in .svg or .pdf. `width` is in inches; by default .svg and .pdf fit
    a column of a paper. Raise ValueError if `sample` is a batch, if there are no checkpoints or they do not match, or if
    that head has no pattern.
    """
    panels = {}
    for step, patterns in film_of(checkpoints, sample):
        select_numbers("layer", [layer], patterns.heads)
        select_numbers("head", [head], range(patterns.heads[layer]))
        panels[step] = patterns.of_layer[layer][head]
    figure = draw_film(panels, patterns, f"layer {layer}, head {head}", width or column_width(filename))
    if filename is not None:
        save_figure(figure, figure_path(out, "attentions", filename))
    show(figure, is_result=True)
    return figure


def select_numbers(name: str, selected: Sequence[int] | None, existing: Iterable[int]) -> list[int]:
    """Return `selected`, or all existing numbers if it is None. Raise ValueError for numbers that do not exist."""
    known = list(existing)
    numbers = known if selected is None else list(selected)
    if not numbers or not set(numbers) <= set(known):
        raise ValueError(f"{name}={selected!r}: there are patterns of {', '.join(map(str, known))}")
    return numbers


def draw_attentions(
    patterns: Patterns, layers: Sequence[int], heads: Sequence[int], width: float | None = None
) -> Figure:
    """Draw a row of panels for each layer, with a column for each head."""
    rows = [
        [patterns.of_layer[layer][head] if head < patterns.heads[layer] else None for head in heads]
        for layer in layers
    ]
    figure, axes = draw_grid(rows, patterns.tokens, patterns.causal, width=width)
    for ax, layer in zip(axes[:, 0], layers, strict=True):
        ax.set_ylabel(f"layer {layer}: query" if width is None else f"layer {layer}", fontsize=FONT)
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(f"head {head}", fontsize=FONT)
    return figure


def draw_film(
    panels: dict[int, np.ndarray], patterns: Patterns, name: str, width: float | None = None
) -> Figure:
    """Draw a panel for each step, FILM_COLUMNS in a row. `patterns` gives the tokens."""
    shown: list[np.ndarray | None] = [*panels.values()]
    n = min(FILM_COLUMNS if width is None else max(1, int(width)), len(panels))
    shown += [None] * (-len(panels) % n)
    rows = [shown[i : i + n] for i in range(0, len(shown), n)]
    figure, axes = draw_grid(rows, patterns.tokens, patterns.causal, between=0.3, width=width)
    for ax, step in zip(axes.flat, panels, strict=False):
        ax.set_title(f"step {step:,}", fontsize=FONT)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{name}: query" if width is None else "query", fontsize=FONT)
    return figure


def draw_grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    tokens: Sequence[str],
    causal: bool,
    between: float = 0.0,
    width: float | None = None,
) -> tuple[Figure, np.ndarray]:
    """Draw panels on one color scale; return figure and axes.

    Tokens label the left (queries) and the bottom (keys) if there is room. `between` is the space between rows in
    inches, and `width` that of the figure; by default it follows from the number of tokens and columns.
    """
    n_rows, n_columns = len(rows), len(rows[0])
    size, beside, labels = grid_size(
        [short_label(token, MAX_TOKEN_CHARS) for token in tokens], n_columns, width
    )
    below = 1.3 if width is None else beside - 0.9
    width = width or 1.05 * size * n_columns + beside
    height = 1.05 * size * n_rows + between * (n_rows - 1) + below + 0.4
    # Explicit margins, since layout="constrained" takes 20 seconds for the 144 heads of GPT-2.
    edges = {"left": 1 - (0.9 + 1.05 * size * n_columns) / width, "right": 1 - 0.9 / width}
    edges |= {"bottom": below / height, "top": 1 - 0.4 / height}
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(width, height),
        squeeze=False,
        gridspec_kw=edges | {"wspace": 0.05, "hspace": 0.05 + between / size},
    )
    for ax, pattern_TS in zip(axes.flat, [pattern for row in rows for pattern in row], strict=True):
        draw_pattern(ax, pattern_TS, causal)
    for ax in axes[-1]:
        ax.set_xlabel("key", fontsize=FONT)
        if labels:
            ax.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
    for ax in axes[:, 0]:
        if labels:
            ax.set_yticks(range(len(labels)), labels, parse_math=False)
    bar = axes[0, -1].inset_axes((1 + 0.1 / size, 0, 0.1 / size, 1))
    scale = figure.colorbar(ScalarMappable(SCALE, HEAT), cax=bar, ticks=[0, 0.1, 0.25, 0.5, 1])
    scale.ax.tick_params(labelsize=FONT)
    return figure, axes


def grid_size(labels: list[str], n_columns: int, width: float | None) -> tuple[float, float, list[str]]:
    """Return the size of a pattern and the room beside all patterns, in inches, and the labels, or [] if they do not fit."""
    wanted = len(labels) * TOKEN_INCHES
    if width is None:
        room = MAX_GRID_INCHES / n_columns
        return (max(wanted, min(room, 2.0)), 2.4, labels) if wanted <= room else (min(room, 4.0), 2.4, [])
    beside = 1.4 + 0.07 * max(map(len, labels))
    size = (width - beside) / 1.05 / n_columns
    if wanted <= size:
        return size, beside, labels
    return (width - 1.4) / 1.05 / n_columns, 1.4, []


def draw_pattern(ax: Axes, pattern_TS: np.ndarray | None, causal: bool) -> None:
    """Draw the pattern of one head, or nothing if it is None. Keys that come later are blank, or red if they have weight."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=FONT)
    ax.label_outer()
    if pattern_TS is None:
        ax.set_axis_off()
        return
    future_TS = np.triu(np.full_like(pattern_TS, causal, dtype=bool), 1)
    ax.imshow(np.ma.masked_where(future_TS, pattern_TS), cmap=HEAT, norm=SCALE)
    leak_TS = future_TS & (pattern_TS != 0)
    if leak_TS.any():
        ax.imshow(np.ma.masked_where(~leak_TS, pattern_TS), cmap=LEAK, norm=SCALE)


def draw_heatmap(
    panels: Sequence[HeatPanel], center: float, limit: float, title: str = "", width: float | None = None
) -> Figure:
    """Draw panels of numbers as colors that diverge around `center`, up to `limit` away from it.

    All panels share the scale. They stand side by side, or one below the other if `width` (inches) is too narrow.
    """
    cell = 0.55 if any(panel.texts for panel in panels) else 0.2  # inches
    widths = [1.0 + cell * len(panel.columns) for panel in panels]
    stacked = width is not None and width < sum(widths) and len(panels) > 1
    scale = 1.0 if width is None else min(1.0, width / (0.6 + (max(widths) if stacked else sum(widths))))
    heights = [0.8 + 0.2 * max(scale, 0.6) * len(panel.rows) for panel in panels]
    height = sum(heights) if stacked else max(heights)
    figure, axes = plt.subplots(
        *((len(panels), 1) if stacked else (1, len(panels))),
        figsize=(width or 0.6 + sum(widths), height + 0.3 * bool(title)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights} if stacked else {"width_ratios": widths},
        layout="constrained",
    )
    norm = Normalize(center - limit, center + limit)
    for ax, panel in zip(axes.flat, panels, strict=True):
        ax.imshow(np.ma.masked_invalid(panel.values_RC), cmap=DIVERGING, norm=norm, aspect="auto")
        ax.set_title(panel.title, fontsize=FONT, parse_math=False)
        sides = (ax.xaxis, panel.columns, sum(widths) * scale), (ax.yaxis, panel.rows, height)
        for axis, names, inches in sides:
            every = max(1, math.ceil(len(names) * FONT / 60 / inches))
            shown = [short_label(name, 20) for name in names[::every]]
            axis.set_ticks(
                range(0, len(names), every), shown, fontsize=FONT * max(0.7, scale), parse_math=False
            )
        ax.tick_params(axis="x", rotation=90, length=0)
        ax.tick_params(axis="y", length=0)
        ax.spines[:].set_visible(False)
        write_texts(ax, panel, center, limit, FONT * max(0.5, scale))
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), ax=axes, shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=FONT)
    if is_one_sided(panels, center):
        bar.ax.set_ylim(center, center + limit)
    figure.suptitle(title, fontsize=FONT + 1, parse_math=False)
    plt.close(figure)  # so that a notebook shows it only as a cell's value
    return figure


def write_texts(ax: Axes, panel: HeatPanel, center: float, limit: float, size: float) -> None:
    for y, row in enumerate(panel.texts or []):
        for x, text in enumerate(row):
            is_dark = abs(panel.values_RC[y, x] - center) > DARK_SHARE * limit
            color = "white" if is_dark else "black"
            ax.text(
                x,
                y,
                short_label(text, MAX_TOKEN_CHARS),
                ha="center",
                va="center",
                fontsize=size,
                color=color,
                parse_math=False,
            )


def column_width(filename: str | None) -> float | None:
    """Return the width of a figure for a paper in inches, or None for a figure that is not saved as .svg or .pdf."""
    return COLUMN_INCHES if is_vector(filename) else None


def is_vector(filename: str | None) -> bool:
    return filename is not None and filename.endswith((".svg", ".pdf"))


def figure_path(out: str | None, folder: str, filename: str) -> Path:
    """Return the path of a figure in a folder of the output root. Its name gets .png, unless it ends in .svg or .pdf."""
    has_suffix = is_vector(filename) or filename.endswith(".png")
    return output_root(out) / folder / (filename if has_suffix else f"{filename}.png")


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"saved {path}")


def fit_column(figure: Figure) -> None:
    """Shrink a figure to the width of a column of a paper, a wide one to that of both columns, and its text to FONT points."""
    width, height = figure.get_size_inches()
    column = COLUMN_INCHES if width <= MAX_IN_COLUMN else BOTH_COLUMNS
    figure.set_size_inches(column, height * max(0.6, column / width))
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_fontsize(min(text.get_fontsize(), FONT))


def save_for_paper(figure: Figure, paths: Iterable[Path]) -> None:
    """Save a copy of a figure that fits a column of a paper. The figure itself stays as it is."""
    narrow = deepcopy(figure)
    fit_column(narrow)
    for path in paths:
        narrow.savefig(path, bbox_inches="tight", pad_inches=0)


def show(figure: Figure, *, is_result: bool) -> None:
    """Show a figure if there is a screen.

    If `is_result`, the caller returns the figure, and a notebook shows it as a cell's value. Then do not show it twice.
    """
    backend = plt.get_backend().lower()
    headless = backend in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    if headless or (is_result and backend.endswith("inline")):
        plt.close(figure)
    else:
        plt.show()
