"""Loss curves of saved runs: mean and confidence interval over the seeds of a variant."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from explore.compare.variants import RunRow, Variant, measured
from explore.compare.verdicts import ALPHA
from train.saving.weights import regular_file
from train.stats import Stat, Stats

VALIDATION, TRAINING = "stat/val_loss:main", "stat/train_loss:main"
MAX_CURVE_POINTS = 60  # of more points, neighbors are averaged


class Curve(NamedTuple):
    """A loss over trained samples, in arrays [N]: mean over seeds and its 95 % interval.

    The interval is NaN at points that only one run reached.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_seeds: int


def read_curves(variants: Sequence[Variant]) -> dict[str, dict[tuple[int, int], Curve]]:
    """Return the validation and the training curves by (index of the variant, index of its setting)."""
    curves: dict[str, dict[tuple[int, int], Curve]] = {VALIDATION: {}, TRAINING: {}}
    for i, variant in enumerate(variants):
        for j in range(len(variant.settings)):
            read = [stats_of(run) for run in variant.runs_of(j)]
            for name, found in curves.items():
                curve = average_curves([run[name] for run in read if run.get(name)])
                if curve is not None:
                    found[i, j] = curve
    return curves


def stats_of(run: RunRow) -> dict[str, list[Stat]]:
    """Return both losses of a run, thinned. Return an empty dict if its statistics are missing or unreadable."""
    folder = measured(run, "folder")
    if not isinstance(folder, str):
        return {}
    try:
        found = Stats.load(regular_file(Path(folder) / "stats.json")).train_stats
    except (OSError, ValueError):
        return {}
    return {name: thin_curve(found[name]) for name in (VALIDATION, TRAINING) if name in found}


def thin_curve(values: list[Stat]) -> list[Stat]:
    """Return at most MAX_CURVE_POINTS values, each the mean of neighboring ones."""
    if len(values) <= MAX_CURVE_POINTS:
        return values
    edges = np.linspace(0, len(values), MAX_CURVE_POINTS + 1).astype(int)
    means = np.add.reduceat([stat.v for stat in values], edges[:-1]) / np.diff(edges)
    return [values[end - 1]._replace(v=float(mean)) for end, mean in zip(edges[1:], means, strict=True)]


def average_curves(runs: Sequence[list[Stat]]) -> Curve | None:
    """Average the curves of several seeds. A run that ended early or became NaN counts up to that point.

    Return None if the curves have no points.
    """
    x = sorted({stat.n for run in runs for stat in run})
    if not x:
        return None
    values = np.full((len(runs), len(x)), np.nan)
    place = {n: i for i, n in enumerate(x)}
    for row, run in zip(values, runs, strict=True):
        for stat in run:
            row[place[stat.n]] = stat.v if np.isfinite(stat.v) else np.nan
    if len(x) > MAX_CURVE_POINTS:  # the seeds were thinned at different points
        keep = np.linspace(0, len(x) - 1, MAX_CURVE_POINTS).astype(int)
        values = np.array([np.interp(x, *known_points(x, row), left=np.nan, right=np.nan) for row in values])[
            :, keep
        ]
        x = [x[i] for i in keep]
    exists = ~np.isnan(values)
    n = exists.sum(axis=0)
    mean = np.where(exists, values, 0).sum(axis=0) / np.where(n, n, np.nan)
    squares = (np.where(exists, values - mean, 0) ** 2).sum(axis=0)
    enough = np.where(n > 1, n, np.nan)
    margin = stats.t.isf(ALPHA / 2, enough - 1) * np.sqrt(squares / (enough - 1) / enough)
    return Curve(np.array(x, dtype=float), mean, mean - margin, mean + margin, len(runs))


def known_points(x: Sequence[float], row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the points that are not NaN. If there are none, return one point, with NaN at 0."""
    exists = ~np.isnan(row)
    return (np.array(x)[exists], row[exists]) if exists.any() else (np.array([0.0]), np.array([np.nan]))
