"""Noise: how much the final loss of a config varies over seeds, and how many seeds show a difference of a given size."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from explore.compare.variants import RunRow, gather
from explore.compare.verdicts import ALPHA, POWER
from train.fitted_table import FittedTable, TableColumn

SHARES = (0.005, 0.01, 0.02)  # differences to be seen, as shares of the loss
SEED_LIMIT = 1000


class Noise(NamedTuple):
    """The final loss of one config over seeds."""

    name: str  # the fields that vary, except the seed
    n_seeds: int
    mean: float
    deviation: float  # standard deviation over seeds
    low: float  # 95 % interval of the deviation
    high: float
    # Seeds of each of two variants that show a difference between them, by its share of the loss.
    seeds_for: dict[float, int | None]


def noise(rows: Sequence[RunRow], metric: str = "val_loss") -> list[Noise]:
    """Return the noise of each config among these runs, one for each combination of fields other than the seed.

    Runs that failed or diverged do not count. With fewer than two seeds the deviation is NaN.
    """
    table = pd.DataFrame(list(rows), dtype=object)
    found = []
    for one in gather(table, (), metric)[0]:
        losses_S = one.losses_LS[0][np.isfinite(one.losses_LS[0])]
        mean = float(losses_S.mean()) if len(losses_S) else math.nan
        deviation = float(losses_S.std(ddof=1)) if len(losses_S) > 1 else math.nan
        name = ", ".join(filter(None, [one.data, one.name]))
        seeds_for = {share: seeds_to_see(share * mean, deviation) for share in SHARES}
        found.append(
            Noise(name, len(losses_S), mean, deviation, *bounds(deviation, len(losses_S)), seeds_for)
        )
    return found


def bounds(deviation: float, n: int) -> tuple[float, float]:
    """Return the interval of a standard deviation at level 1 - ALPHA, if the losses of `n` seeds are normal."""
    if n < 2:
        return math.nan, math.nan
    low, high = (stats.chi2.ppf(level, n - 1) for level in (1 - ALPHA / 2, ALPHA / 2))
    return deviation * math.sqrt((n - 1) / low), deviation * math.sqrt((n - 1) / high)


def seeds_to_see(difference: float, deviation: float) -> int | None:
    """Return how many seeds of each of two variants show a difference of their means with probability POWER.

    The test is a two-sided t test at level ALPHA of unpaired runs. Runs paired by seed can only need fewer. None means
    more than SEED_LIMIT, or unknown.
    """
    if math.isnan(deviation) or deviation == 0:
        return None if math.isnan(deviation) else 2
    n = np.arange(2, SEED_LIMIT + 1)
    degrees, shift = 2 * n - 2, difference / deviation * np.sqrt(n / 2)
    critical = stats.t.isf(ALPHA / 2, degrees)
    power = stats.nct.sf(critical, degrees, shift) + stats.nct.cdf(-critical, degrees, shift)
    enough = power >= POWER
    return int(n[enough.argmax()]) if enough.any() else None


def noise_table(found: Sequence[Noise]) -> FittedTable:
    """Return a table with a row for each config."""
    known = [not math.isnan(one.deviation) for one in found]

    def column(title: str, cell: Callable[[Noise], str], rank: int = 0) -> TableColumn:
        cells = [cell(one) if is_known else "-" for one, is_known in zip(found, known, strict=True)]
        return TableColumn(title, cells, rank)

    def seeds(share: float) -> Callable[[Noise], str]:
        return lambda one: f"over {SEED_LIMIT:,}" if (n := one.seeds_for[share]) is None else f"{n:,}"

    return FittedTable(
        [
            TableColumn("config", [one.name for one in found], wraps=True, is_left=True),
            TableColumn("seeds", [str(one.n_seeds) for one in found], rank=4),
            column("mean loss", lambda one: f"{one.mean:.4f}", rank=1),
            column("deviation", lambda one: f"{one.deviation:.2g}"),
            column("95 % interval", lambda one: f"{one.low:.2g} to {one.high:.2g}", rank=3),
            column("of the mean", lambda one: f"{one.deviation / one.mean:.2%}", rank=2),
            *(column(f"seeds for\n{share:.1%}", seeds(share)) for share in SHARES),
        ]
    )
