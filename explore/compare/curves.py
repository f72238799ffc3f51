"""Loss curves of saved runs: those of each run, and mean and confidence interval over the seeds of a variant."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from explore.compare.pairs import sortable_losses
from explore.compare.variants import RunRow, Variant, measured
from explore.compare.verdicts import ALPHA
from train.saving.weights import regular_file
from train.stats import Stat, Stats

VALIDATION, TRAINING = "stat/val_loss:main", "stat/train_loss:main"
TRAIN_SECONDS = "stat/train_seconds"
MAX_MEAN_POINTS = 100  # of a mean over seeds: of more points, neighbors are averaged
MAX_RUN_POINTS = 400  # of the curve of one run: the extremes of neighboring points are kept
MIN_BAND_SEEDS = 3  # an interval of two seeds is too wide to say anything


class Curve(NamedTuple):
    """A loss over trained samples, in arrays [N]: mean over seeds and its 95 % interval.

    The interval is NaN at points that fewer than MIN_BAND_SEEDS runs reached.
    """

    x: np.ndarray
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_seeds: int


RunStats = Mapping[str, list[Stat]]  # statistics of a run by name


class RunCurves(NamedTuple):
    """The curves of one run."""

    stats: RunStats  # at most MAX_RUN_POINTS values of each
    batches: bytes  # all training losses, as `sortable_losses` returns them


class Curves(NamedTuple):
    """Averages by name of the loss, then by index of the variant and of its setting; and curves of single runs by folder."""

    averages: dict[str, dict[tuple[int, int], Curve]]
    runs: dict[str, RunCurves]


def read_curves(variants: Sequence[Variant], folders: Collection[str] = ()) -> Curves:
    """Return the averaged curves of the variants, and the curves of those of their runs that lie in `folders`."""
    averages: dict[str, dict[tuple[int, int], Curve]] = {VALIDATION: {}, TRAINING: {}}
    runs: dict[str, RunCurves] = {}
    for i, variant in enumerate(variants):
        for j in range(len(variant.settings)):
            rows = variant.runs_of(j)
            read = [read_stats(run) for run in rows]
            for row, found in zip(rows, read, strict=True):
                if (folder := str(measured(row, "folder"))) in folders:
                    runs[folder] = curves_of_stats(found)
            for name, of_setting in averages.items():
                curve = average_curves([averaged(run[name]) for run in read if run.get(name)])
                if curve is not None:
                    of_setting[i, j] = curve
    return Curves(averages, runs)


def read_stats(run: RunRow) -> RunStats:
    """Return both losses of a run and its seconds. Return an empty dict if they are missing or unreadable."""
    folder = measured(run, "folder")
    if not isinstance(folder, str):
        return {}
    try:
        found = Stats.load(regular_file(Path(folder) / "stats.json")).train_stats
    except (OSError, ValueError):
        return {}
    return {name: found[name] for name in (VALIDATION, TRAINING, TRAIN_SECONDS) if name in found}


def curves_of_stats(found: RunStats) -> RunCurves:
    """Return the curves of a run from all of its statistics."""
    stats = {name: thinned(values) for name, values in found.items()}
    return RunCurves(stats, sortable_losses(found.get(TRAINING, [])))


def thinned(values: Sequence[Stat], n: int = MAX_RUN_POINTS) -> list[Stat]:
    """Return at most `n` of the finite values: the first, the last, and the lowest and the highest of neighboring ones."""
    finite = [stat for stat in values if np.isfinite(stat.v)]
    if len(finite) <= n:
        return finite
    kept = {0, len(finite) - 1}
    for places in np.array_split(np.arange(len(finite)), n // 2 - 1):
        part = [finite[place].v for place in places]
        kept |= {int(places[np.argmin(part)]), int(places[np.argmax(part)])}
    return [finite[place] for place in sorted(kept)]


def averaged(values: list[Stat]) -> list[Stat]:
    """Return at most MAX_MEAN_POINTS values, each the mean of neighboring ones."""
    if len(values) <= MAX_MEAN_POINTS:
        return values
    edges = np.linspace(0, len(values), MAX_MEAN_POINTS + 1).astype(int)
    means = np.add.reduceat([stat.v for stat in values], edges[:-1]) / np.diff(edges)
    return [values[end - 1]._replace(v=float(mean)) for end, mean in zip(edges[1:], means, strict=True)]


def average_curves(runs: Sequence[list[Stat]]) -> Curve | None:
    """Average the curves of several seeds. A run that ended early or became NaN counts up to that point.

    Return None if the curves have no points.
    """
    steps_of = {stat.n: stat.s for run in runs for stat in run}
    x = sorted(steps_of)
    if not x:
        return None
    values = np.full((len(runs), len(x)), np.nan)
    place = {n: i for i, n in enumerate(x)}
    for row, run in zip(values, runs, strict=True):
        for stat in run:
            row[place[stat.n]] = stat.v if np.isfinite(stat.v) else np.nan
    if len(x) > MAX_MEAN_POINTS:  # the seeds were thinned at different points
        keep = np.linspace(0, len(x) - 1, MAX_MEAN_POINTS).astype(int)
        values = np.array([np.interp(x, *known_points(x, row), left=np.nan, right=np.nan) for row in values])[
            :, keep
        ]
        x = [x[i] for i in keep]
    exists = ~np.isnan(values)
    n = exists.sum(axis=0)
    mean = np.where(exists, values, 0).sum(axis=0) / np.where(n, n, np.nan)
    squares = (np.where(exists, values - mean, 0) ** 2).sum(axis=0)
    enough = np.where(n >= MIN_BAND_SEEDS, n, np.nan)
    margin = stats.t.isf(ALPHA / 2, enough - 1) * np.sqrt(squares / (enough - 1) / enough)
    steps = np.array([steps_of[one] for one in x], dtype=float)
    return Curve(np.array(x, dtype=float), steps, mean, mean - margin, mean + margin, len(runs))


def known_points(x: Sequence[float], row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the points that are not NaN. If there are none, return one point, with NaN at 0."""
    exists = ~np.isnan(row)
    return (np.array(x)[exists], row[exists]) if exists.any() else (np.array([0.0]), np.array([np.nan]))
