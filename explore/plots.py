"""Figures: the metrics of runs, and attention patterns. The only file that knows matplotlib.

Shape suffixes:  L layer  H head  T position  S position attended to
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from explore.load import find_run
from model.inputs import Input, ids_of
from model.lm import LM
from train.params import did_you_mean
from train.saver import output_root
from train.stats import Stat, Stats

FONT = 7.5  # points, of all text beside attention patterns
TOKEN = 0.13  # inches that a token of that size takes, across
LONGEST = 13  # letters shown of a token
GRID = 13.0  # inches that the patterns of a layer share when their tokens are to be named
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
    room = GRID / len(heads)  # inches for a pattern
    named = len(labels) * TOKEN <= room
    size = max(len(labels) * TOKEN, min(room, 2.0)) if named else min(room, 4.0)
    width, height = 1.05 * size * len(heads) + 2.4, 1.05 * size * len(layers) + 1.7
    # Margins by hand: layout="constrained" takes 20 seconds for the 144 heads of GPT-2.
    edges = {"left": 1.5 / width, "right": 1 - 0.9 / width, "bottom": 1.3 / height, "top": 1 - 0.4 / height}
    figure, axes = plt.subplots(
        len(layers),
        len(heads),
        figsize=(width, height),
        squeeze=False,
        gridspec_kw=edges | {"wspace": 0.05, "hspace": 0.05},
    )
    for row, layer in zip(axes, layers, strict=True):
        for ax, head in zip(row, heads, strict=True):
            image = draw_pattern(ax, attns_LHTS[layer, head])
        row[0].set_ylabel(f"layer {layer}: query", fontsize=FONT)
        if named:
            row[0].set_yticks(range(len(labels)), labels, parse_math=False)
    for top, ax, head in zip(axes[0], axes[-1], heads, strict=True):
        top.set_title(f"head {head}", fontsize=FONT)
        ax.set_xlabel("key", fontsize=FONT)
        if named:
            ax.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
    beside = axes[0, -1].inset_axes((1 + 0.1 / size, 0, 0.1 / size, 1))
    scale = figure.colorbar(image, cax=beside, ticks=[0, 0.1, 0.25, 0.5, 1])
    scale.ax.tick_params(labelsize=FONT)
    return figure


def shortened(token: str) -> str:
    return token if len(token) <= LONGEST else token[: LONGEST - 1] + "…"


def draw_pattern(ax: Axes, pattern_TS: np.ndarray) -> AxesImage:
    """One head. The future is blank, unless something is there that should not be."""
    future_TS = np.triu(np.ones_like(pattern_TS, dtype=bool), 1)
    shown_TS = np.ma.masked_where(future_TS & (pattern_TS == 0), pattern_TS)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=FONT)
    ax.label_outer()
    return ax.imshow(shown_TS, cmap=HEAT, norm=PowerNorm(0.5, 0, 1))


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"saved {path}")


def show(figure: Figure, *, is_result: bool) -> None:
    """Put a figure on the screen where there is one. A notebook shows by itself what is a cell's result."""
    backend = plt.get_backend().lower()
    headless = backend in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    if headless or (is_result and backend.endswith("inline")):
        plt.close(figure)
    else:
        plt.show()
