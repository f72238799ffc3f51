"""Figures: the metrics of runs, and attention patterns. The only file that knows matplotlib.

Shape suffixes:  L layer  H head  T position  S position attended to
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from explore.load import find_run
from model.inputs import Input, ids_of
from model.lm import LM
from train.params import did_you_mean
from train.saver import output_root
from train.stats import Stat, Stats

FONT = 7.5  # points, of all text beside attention patterns
TOKEN = 0.13  # inches that a token of that size takes, across
LETTER = 0.066  # inches that a letter takes, along
LONGEST = 13  # letters shown of a token
GRID = 13.0  # inches that all patterns of a row share when their tokens are to be named
LARGEST = 4.0  # inches of a pattern without names
GAP = 0.08  # inches between patterns
HEAT = plt.colormaps["Blues"].with_extremes(bad="#ececec")  # bad: the future


def plot_metrics(
    timestamps: str | Sequence[str],
    metrics: str | Sequence[str] = "stat/val_loss:main",
    filename: str | None = None,
    out: str | None = None,
) -> Figure:
    """Metrics over the number of trained samples: a panel for each metric, a line in it for each run.

    With `filename` it is saved as metrics/{filename}.png under the output root. In a notebook it shows as a cell's value.
    """
    timestamps = [timestamps] if isinstance(timestamps, str) else list(timestamps)
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    runs = {timestamp: read_stats(timestamp, metrics, out) for timestamp in timestamps}
    figure, axes = plt.subplots(
        len(metrics),
        figsize=(7, 1 + 2.6 * len(metrics)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for ax, metric in zip(axes[:, 0], metrics, strict=True):
        for timestamp, stats in runs.items():
            draw_metric(ax, stats[metric], label=timestamp)
        ax.set_ylabel(metric.removeprefix("stat/"))
    axes[-1, 0].set_xlabel("trained samples")
    if len(timestamps) == 1:
        axes[0, 0].set_title(timestamps[0], fontsize="medium")
    else:
        axes[0, 0].legend(fontsize="small", frameon=False)
    if filename is not None:
        save_figure(figure, output_root(out) / "metrics" / f"{filename}.png")
    show(figure, is_result=True)
    return figure


plot_metric = plot_metrics


def read_stats(timestamp: str, metrics: Sequence[str], out: str | None) -> dict[str, list[Stat]]:
    """All statistics of a run; ValueError if it lacks one of `metrics`."""
    stats = Stats.load(find_run(timestamp, out) / "stats.json").train_stats
    for metric in metrics:
        if metric not in stats:
            raise ValueError(f"{timestamp} has no metric {metric!r}; {did_you_mean(metric, stats)}")
    return stats


def draw_metric(ax: Axes, values: list[Stat], label: str) -> None:
    """A thin line for many values, with dots while they can be told apart."""
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
    """Shows the attention patterns of one sequence, a row of heads for each layer, and returns (out_embeds, attns).

    `layers` and `heads` choose what is shown. With `folder_name` the figure is saved in attentions/{folder_name}/ under
    the output root. out_embeds [1, T, V] are the logits; attns [1, n_layers, n_heads, T, S] are all patterns, a row for
    each query T over the keys S it attends to.
    """
    ids = ids_of(sample, lm.tokenizer, lm.device)
    if len(ids) != 1:
        raise ValueError(f"show_lm_attns takes one sequence, not a batch of {len(ids)}")
    result = lm(ids, get_attns=True)
    attns_LHTS = result["attns"][0].float().cpu().numpy()
    layers = chosen("layers", layers, attns_LHTS.shape[0])
    heads = chosen("heads", heads, attns_LHTS.shape[1])
    figure = draw_attentions(attns_LHTS, lm.tokenizer.tokens(ids[0].tolist()), layers, heads)
    if folder_name is not None:
        name = f"layers-{'-'.join(map(str, layers))}--heads-{'-'.join(map(str, heads))}.png"
        save_figure(figure, output_root(out) / "attentions" / folder_name / name)
    show(figure, is_result=False)
    return result["logits"], result["attns"]


def chosen(name: str, wanted: Sequence[int] | None, n: int) -> list[int]:
    """`wanted`, or all of `n`; ValueError if it is no part of them."""
    numbers = range(n) if wanted is None else wanted
    if not numbers or any(number not in range(n) for number in numbers):
        raise ValueError(f"{name}={wanted!r}: there are 0 to {n - 1}")
    return list(numbers)


def draw_attentions(
    attns_LHTS: np.ndarray, tokens: Sequence[str], layers: Sequence[int], heads: Sequence[int]
) -> Figure:
    """A grid of patterns on one scale; tokens at its left (queries) and bottom (keys) where there is room for them."""
    labels = [shortened(token.replace(" ", "·")) for token in tokens]
    named = len(labels) * TOKEN <= GRID / len(heads)
    smallest = float(np.clip(6 / len(heads), 1.0, 2.4))
    size = max(len(labels) * TOKEN if named else min(GRID / len(heads), LARGEST), smallest)
    margin = 0.28 + (LETTER * max(map(len, labels)) if named else 0.2)
    figure, axes = grid_of_squares(len(layers), len(heads), size, margin)
    for row, layer in zip(axes, layers, strict=True):
        for ax, head in zip(row, heads, strict=True):
            image = draw_pattern(ax, attns_LHTS[layer, head])
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(f"head {head}", fontsize=FONT, pad=4)
    for ax, layer in zip(axes[:, -1], layers, strict=True):
        place = {"transform": ax.transAxes, "rotation": -90, "va": "center"}
        ax.text(1 + GAP / size, 0.5, f"layer {layer}", fontsize=FONT, **place)
    for ax in axes[:, 0]:
        name_positions(ax.yaxis, labels if named else None)
    for ax in axes[-1]:
        name_positions(ax.xaxis, labels if named else None, rotation=90)
    figure.supylabel("query", fontsize=FONT, x=0.05 / figure.get_figwidth(), ha="left")
    figure.supxlabel("key", fontsize=FONT, y=0.05 / figure.get_figheight(), va="bottom")
    add_scale(figure, image)
    return figure


def shortened(token: str) -> str:
    return token if len(token) <= LONGEST else token[: LONGEST - 1] + "…"


def grid_of_squares(n_rows: int, n_columns: int, size: float, margin: float) -> tuple[Figure, np.ndarray]:
    """A figure of so many axes of `size` inches, with `margin` inches at the left and the bottom."""
    right, top = 0.95, 0.3  # inches for the names of layers and the scale, and of heads
    width = margin + n_columns * (size + GAP) + right
    height = margin + n_rows * (size + GAP) + top
    edges = {
        "left": margin / width,
        "right": 1 - right / width,
        "bottom": margin / height,
        "top": 1 - top / height,
    }
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(width, height),
        squeeze=False,
        gridspec_kw=edges | {"wspace": GAP / size, "hspace": GAP / size},
    )
    return figure, axes


def draw_pattern(ax: Axes, pattern_TS: np.ndarray) -> AxesImage:
    """One head. The future is blank, unless something is there that should not be."""
    future_TS = np.triu(np.ones_like(pattern_TS, dtype=bool), 1)
    shown_TS = np.ma.masked_where(future_TS & (pattern_TS == 0), pattern_TS)
    image = ax.imshow(shown_TS, cmap=HEAT, norm=PowerNorm(0.5, 0, 1))
    ax.spines[:].set_visible(False)
    ax.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    return image


def name_positions(axis: Axis, labels: Sequence[str] | None, rotation: int = 0) -> None:
    """Tokens along an axis, or numbers of positions where they do not fit."""
    axis.set_tick_params(
        left=True, bottom=True, labelleft=True, labelbottom=True, length=2, pad=2, labelsize=FONT
    )
    if labels is None:
        axis.set_major_locator(MaxNLocator(4, integer=True))
    else:
        axis.set_ticks(range(len(labels)), labels, rotation=rotation, parse_math=False)


def add_scale(figure: Figure, image: AxesImage) -> None:
    """What the colours mean, at the right."""
    width, height = figure.get_size_inches()
    length = min(2.0, height - 0.8)
    box = figure.add_axes((1 - 0.55 / width, 1 - (0.3 + length) / height, 0.1 / width, length / height))
    scale = figure.colorbar(image, cax=box, ticks=[0, 0.1, 0.25, 0.5, 1])
    scale.ax.tick_params(labelsize=FONT, length=2, pad=2)
    scale.outline.set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"saved {path}")


def show(figure: Figure, *, is_result: bool) -> None:
    """Put a figure on the screen where there is one. A notebook shows by itself what is a cell's result."""
    backend = plt.get_backend().lower()
    headless = backend in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    if headless or (is_result and backend.endswith("inline")):
        plt.close(figure)
    else:
        plt.show()
