"""Figures of metrics and attention patterns. No other file imports matplotlib.

Shape suffixes:  L layer  H head  T position  S position attended to
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from torch import Tensor

from common.text import did_you_mean
from explore.compare.variants import CODE, fields_as_label, varied_fields
from explore.inspection.patterns import Patterns, attention_patterns, film_of
from explore.load import find_run, row_of_folder
from explore.scaling.report import Line, Panel
from model.generation.sampling import eval_mode
from model.inputs import Input
from model.lm import LM
from train.saving.run_folder import output_root
from train.stats import Stat, Stats

FONT = 7.5  # size in points of all text beside attention patterns
TOKEN_INCHES = 0.13  # height of a line of that text
MAX_TOKEN_CHARS = 13  # longer tokens are cut
MAX_GRID_INCHES = 13.0  # maximum width of a row of patterns
FILM_COLUMNS = 6  # panels in a row of a film
VECTOR = (".pdf", ".svg")  # endings of files of figures for a paper
COLUMN_INCHES = 3.35  # width of a column of a paper of two columns
PAPER_FONT_SIZE = 7.5  # points
EXPERT_LOAD = "stat/expert_load:layers."  # beginning of the names of statistics
MAX_LEGEND_EXPERTS = 8  # a legend of more would hide the lines
# As in page/weights.js, the shade depends on the square root of a weight. Negative weights are amber. Later positions
# are blank, or red if they have weight.
SCALE = PowerNorm(0.5, 0, 1)
BLUES = ["#e9eef6", "#b9d3eb", "#6fafd8", "#2877b6", "#08306b"]
HEAT = LinearSegmentedColormap.from_list("heat", BLUES).with_extremes(under="#dd8a1e")
LEAK = LinearSegmentedColormap.from_list("leak", ["#ff9c8f", "#e4483f", "#c01820", "#9d0b14", "#67000d"])


def plot_metrics(
    timestamps: str | Sequence[str],
    metrics: str | Sequence[str] = "stat/val_loss:main",
    filename: str | None = None,
    out: str | None = None,
) -> Figure:
    """Plot metrics over the number of trained samples: a panel for each metric, a line for each run.

    `timestamps` may be "latest". `metrics` are names in a run's `train_stats`, in full or as people type them:
    "val_loss", "train_loss", "accuracy". Lines are labelled by the fields in which the runs differ. With `filename`,
    save the figure as metrics/{filename}.png under the output root (`out`). A name that ends in .pdf or .svg gives such
    a file, as wide as a column of a paper. A notebook shows the figure as a cell's value. Raise ValueError for an unknown run or metric.
    """
    timestamps = [timestamps] if isinstance(timestamps, str) else list(timestamps)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    folders = [find_run(timestamp, out) for timestamp in timestamps]
    runs = [read_metrics(folder, metrics) for folder in folders]
    labels = labels_of(folders)
    figure, axes = plt.subplots(
        len(metrics),
        figsize=(7, 1 + 2.6 * len(metrics)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for i, (ax, metric) in enumerate(zip(axes[:, 0], metrics, strict=True)):
        for label, lines in zip(labels, runs, strict=True):
            draw_metric(ax, lines[i], label=label)
        ax.set_ylabel(metric.removeprefix("stat/"))
    axes[-1, 0].set_xlabel("trained samples")
    if len(labels) == 1:
        axes[0, 0].set_title(labels[0], fontsize="medium")
    else:
        axes[0, 0].legend(fontsize="small", frameon=False)
    if filename is not None:
        path = figure_path(output_root(out) / "metrics", filename)
        if path.suffix in VECTOR:
            fit_column(figure)
        save_figure(figure, path)
    show(figure, is_result=True)
    return figure


plot_metric = plot_metrics


def plot_expert_load(timestamp: str, filename: str | None = None, out: str | None = None) -> Figure:
    """Plot the load of each expert over the number of trained samples: a panel for each layer, a line for each expert.

    The load is the share of tokens that an expert gets over the mean share: all lines are at 1 in a balanced layer.
    Arguments are those of `plot_metrics`. Raise ValueError for an unknown run, or one without experts.
    """
    folder = find_run(timestamp, out)
    by_layer = loads_by_layer(Stats.load(folder / "stats.json").train_stats)
    if not by_layer:
        raise ValueError(f"{folder.name} has no expert_load: none of its layers has n_experts above 0")
    size = (7, 0.6 + 2.2 * len(by_layer))
    figure, axes = plt.subplots(len(by_layer), figsize=size, squeeze=False, sharex=True, layout="constrained")
    for ax, (layer, loads) in zip(axes[:, 0], by_layer.items(), strict=True):
        for expert, values in loads.items():
            draw_metric(ax, values, label=expert)
        ax.set_ylabel(f"load in layer {layer}")
        ax.set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("trained samples")
    n_experts = max(map(len, by_layer.values()))
    if n_experts <= MAX_LEGEND_EXPERTS:
        axes[0, 0].legend(title="expert", fontsize="x-small", ncols=n_experts, frameon=False)
    if filename is not None:
        path = figure_path(output_root(out) / "metrics", filename)
        if path.suffix in VECTOR:
            fit_column(figure)
        save_figure(figure, path)
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


def read_metrics(folder: Path, metrics: Sequence[str]) -> list[list[Stat]]:
    """Return the values of each of `metrics` in a run. Raise ValueError if it lacks one of them."""
    stats = Stats.load(folder / "stats.json").train_stats
    found = [metric_named(metric, stats) for metric in metrics]
    for metric, name in zip(metrics, found, strict=True):
        if name is None:
            short = {name: name.removeprefix("stat/").removesuffix(":main") for name in stats}
            known = stats if metric.startswith("stat/") else [*short.values()]
            raise ValueError(f"{folder.name} has no metric {metric!r}; {did_you_mean(metric, known)}")
    return [stats[name] for name in found if name is not None]


def metric_named(typed: str, stats: Collection[str]) -> str | None:
    """Return the full name of a metric: "val_loss" is "stat/val_loss:main", "accuracy" is "stat/val_accuracy"."""
    names = (f"{start}{typed}{end}" for start in ("", "stat/", "stat/val_") for end in ("", ":main"))
    return next((name for name in names if name in stats), None)


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Return a label for each run: the fields in which the runs differ, with the timestamp where these are equal."""
    rows = [row_of_folder(folder) for folder in folders]
    varied = varied_fields(rows) if len(rows) > 1 else []
    labels = [fields_as_label(row, [name for name in varied if name != CODE]) for row in rows]
    return [
        label if label and labels.count(label) == 1 else f"{label} {folder.name}".strip()
        for label, folder in zip(labels, folders, strict=True)
    ]


def draw_panels(rows: Sequence[Sequence[Panel]], labels: tuple[str, str], log_y: bool = True) -> Figure:
    """Draw panels of lines over an x axis in powers of two, for a paper.

    The panels of a row share their y axis, and all panels share one legend. `labels` name the x and the y axis.
    """
    n_rows, n_columns = len(rows), max(map(len, rows))
    size = (1.6 + 2.9 * n_columns, 0.5 + 2.5 * n_rows)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    names = list(dict.fromkeys(line.name for row in rows for panel in row for line in panel.lines))
    colors = dict(zip(names, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names))), strict=True))
    for row, panels in zip(axes, rows, strict=True):
        for ax, panel in zip(row, panels, strict=False):
            ax.set_title(panel.title, fontsize="small")
            for line in panel.lines:
                draw_line(ax, line, colors[line.name])
            ax.set_xscale("log", base=2)
            sizes = sorted({x for line in panel.lines for x in line.x})
            if all(float(x).is_integer() for x in sizes):
                ax.set_xticks(sizes, [f"{x:g}" for x in sizes])
            if log_y:
                ax.set_yscale("log", base=2)
            ax.grid(color="#e4e4e8", lw=0.7)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_xlabel(labels[0])
        row[0].set_ylabel(labels[1])
    handles = [Line2D([], [], color=colors[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside right upper", fontsize="x-small", frameon=False)
    plt.close(figure)  # so that a notebook shows it only as a cell's value
    return figure


def draw_line(ax: Axes, line: Line, color: np.ndarray) -> None:
    ax.plot(line.x, line.y, "o-", ms=3, lw=1.3, color=color)
    if line.low:
        ax.fill_between(line.x, line.low, line.high, color=color, alpha=0.18, lw=0)
    if line.best is not None:
        ax.plot(line.x[line.best], line.y[line.best], "*", ms=11, color=color)
    ax.plot([line.x[i] for i in line.clipped], [line.y[i] for i in line.clipped], "^", ms=7, color=color)


def draw_metric(ax: Axes, values: list[Stat], label: str) -> None:
    """Draw a line, with dots unless it has over 60 values."""
    few = len(values) <= 60
    ax.plot(
        [stat.n for stat in values],
        [stat.v for stat in values],
        "o-" if few else "-",
        ms=3,
        lw=1.3,
        label=label,
    )
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
) -> tuple[Tensor, Tensor]:
    """Show the attention patterns of one sequence, a row of heads for each layer, and return (out_embeds, attns).

    `layers` and `heads` are the numbers to show; the default is all that have patterns. With `folder_name`, save the
    figure in attentions/{folder_name}/ under the output root (`out`).

    out_embeds [1, T, V] are the logits. attns [1, n_layers, n_heads, T, S] are all patterns, with a row for each query
    T over its keys S. Raise ValueError for a batch, and for layers or heads without patterns.
    """
    patterns = attention_patterns(lm, sample)
    layers = select_numbers("layers", layers, patterns.heads)
    heads = select_numbers("heads", heads, range(max(patterns.heads.values())))
    figure = draw_attentions(patterns, layers, heads)
    if folder_name is not None:
        name = f"layers-{'-'.join(map(str, layers))}--heads-{'-'.join(map(str, heads))}.png"
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
) -> Figure:
    """Draw how the attention pattern of one head on one sequence changes over training.

    There is a panel for each (step, lm) of `checkpoints`.

    With `filename`, save the figure as attentions/{filename}.png under the output root (`out`). Raise ValueError if
    `sample` is a batch, if there are no checkpoints or they do not match, or if that head has no pattern.
    """
    panels = {}
    for step, patterns in film_of(checkpoints, sample):
        select_numbers("layer", [layer], patterns.heads)
        select_numbers("head", [head], range(patterns.heads[layer]))
        panels[step] = patterns.of_layer[layer][head]
    figure = draw_film(panels, patterns, f"layer {layer}, head {head}")
    if filename is not None:
        save_figure(figure, figure_path(output_root(out) / "attentions", filename))
    show(figure, is_result=True)
    return figure


def select_numbers(name: str, selected: Sequence[int] | None, existing: Iterable[int]) -> list[int]:
    """Return `selected`, or all existing numbers if it is None. Raise ValueError for numbers that do not exist."""
    known = list(existing)
    numbers = known if selected is None else list(selected)
    if not numbers or not set(numbers) <= set(known):
        raise ValueError(f"{name}={selected!r}: there are patterns of {', '.join(map(str, known))}")
    return numbers


def draw_attentions(patterns: Patterns, layers: Sequence[int], heads: Sequence[int]) -> Figure:
    """Draw a row of panels for each layer, with a column for each head."""
    rows = [
        [patterns.of_layer[layer][head] if head < patterns.heads[layer] else None for head in heads]
        for layer in layers
    ]
    figure, axes = draw_grid(rows, patterns.tokens, patterns.causal)
    for ax, layer in zip(axes[:, 0], layers, strict=True):
        ax.set_ylabel(f"layer {layer}: query", fontsize=FONT)
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(f"head {head}", fontsize=FONT)
    return figure


def draw_film(panels: dict[int, np.ndarray], patterns: Patterns, name: str) -> Figure:
    """Draw a panel for each step, FILM_COLUMNS in a row. `patterns` gives the tokens."""
    shown: list[np.ndarray | None] = [*panels.values()]
    n = min(FILM_COLUMNS, len(panels))
    shown += [None] * (-len(panels) % n)
    rows = [shown[i : i + n] for i in range(0, len(shown), n)]
    figure, axes = draw_grid(rows, patterns.tokens, patterns.causal, between=0.3)
    for ax, step in zip(axes.flat, panels, strict=False):
        ax.set_title(f"step {step:,}", fontsize=FONT)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{name}: query", fontsize=FONT)
    return figure


def draw_grid(
    rows: Sequence[Sequence[np.ndarray | None]], tokens: Sequence[str], causal: bool, between: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Draw panels on one color scale; return figure and axes.

    Tokens label the left (queries) and the bottom (keys) if there is room. `between` is the space between rows in
    inches.
    """
    labels, n_rows, n_columns = [short_token(token) for token in tokens], len(rows), len(rows[0])
    room = MAX_GRID_INCHES / n_columns  # inches for a pattern
    has_labels = len(labels) * TOKEN_INCHES <= room
    size = max(len(labels) * TOKEN_INCHES, min(room, 2.0)) if has_labels else min(room, 4.0)
    width = 1.05 * size * n_columns + 2.4
    height = 1.05 * size * n_rows + between * (n_rows - 1) + 1.7
    # Explicit margins, since layout="constrained" takes 20 seconds for the 144 heads of GPT-2.
    edges = {"left": 1.5 / width, "right": 1 - 0.9 / width, "bottom": 1.3 / height, "top": 1 - 0.4 / height}
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
        if has_labels:
            ax.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
    for ax in axes[:, 0]:
        if has_labels:
            ax.set_yticks(range(len(labels)), labels, parse_math=False)
    beside = axes[0, -1].inset_axes((1 + 0.1 / size, 0, 0.1 / size, 1))
    scale = figure.colorbar(ScalarMappable(SCALE, HEAT), cax=beside, ticks=[0, 0.1, 0.25, 0.5, 1])
    scale.ax.tick_params(labelsize=FONT)
    return figure, axes


def short_token(token: str) -> str:
    return token if len(token) <= MAX_TOKEN_CHARS else token[: MAX_TOKEN_CHARS - 1] + "…"


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


def figure_path(folder: Path, filename: str) -> Path:
    """Return the file of a figure: PDF or SVG if its name ends so, else PNG."""
    return folder / (filename if filename.endswith(VECTOR) else f"{filename}.png")


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"saved {path}")


def fit_column(figure: Figure) -> None:
    """Make a figure as wide as a column of a paper, with the text of one."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(COLUMN_INCHES, height * max(0.6, COLUMN_INCHES / width))
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_fontsize(min(text.get_fontsize(), PAPER_FONT_SIZE))


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
