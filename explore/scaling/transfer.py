"""Learning-rate transfer: is the best learning rate of a small model also good for larger ones?

The verdict depends on the loss that keeping this learning rate costs, not on the noisy position of the minimum.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.text import did_you_mean
from explore.compare.metrics import LOSSES, RunRow, float_in
from explore.compare.variants import final_loss, has_ended, records, seed_of, with_plural
from explore.compare.verdicts import interval
from explore.plots import Line, Panel, draw_panels
from explore.scaling.report import ScalingReport, sizes_of, variants_over, varies, with_variant

SCALES = ("dim", "n_layers", "batch_size")
LR, PARAMETRIZATION = "lr", "parametrization"
# Regrets in nats: up to the first, the learning rate transfers; from the second on, it does not.
NEGLIGIBLE, SUBSTANTIAL = 0.02, 0.05
CANNOT_TELL = "cannot tell"
TRANSFERS = "transfers"
TRANSFER_COLUMNS = [
    "variant",
    "over",
    "size",
    "best",
    "loss",
    "at base",
    "regret",
    "low",
    "high",
    "shift",
    "seeds",
    "edge",
]
FOR_DEPTH = "completep"  # the parametrization for transfer over depth; the others are for width


def transfer_report(
    table: pd.DataFrame,
    over: str | None = None,
    *,
    metric: str = "val_loss",
    controls: Sequence[str] | None = None,
) -> ScalingReport:
    """Judge whether the best learning rate transfers over dim, n_layers or batch_size.

    `table` is a table from runs(), or any table with the columns `lr`, `over` and the metric. `over` names the scale; the
    default is every scale that varies. The result has a row for each size: the best learning rate, its loss, and the
    loss at the best learning rate of the smallest size. Their difference is the regret, in nats, with its 95 % interval
    over seeds.

    `controls` are variants that may fail. By default they are the variants whose parametrization is not made for this
    scale, if another variant's is. Raise ValueError if the metric is unknown or if no scale varies.
    """
    rows = [row for row in records(table) if has_ended(row)]
    if metric not in LOSSES and metric not in table:
        raise ValueError(f"metric={metric!r} is not a final loss of runs; {did_you_mean(metric, LOSSES)}")
    scales = [over] if over else [name for name in SCALES if rows and name in rows[0] and varies(rows, name)]
    if not rows or not scales or any(scale not in rows[0] for scale in scales):
        raise ValueError(
            f"no two values of {over or ', '.join(SCALES)} among {with_plural(len(rows), 'run')}: transfer needs two sizes"
        )
    found: list[Transfer] = []
    for scale in scales:
        variants = variants_over(rows, scale, ignored=(LR,))
        excused = controls_among(variants, rows, scale) if controls is None else controls
        for name, places in variants.items():
            own = [rows[place] for place in places]
            found.append(judge_transfer(name, scale, own, metric, is_control=name in excused))
    return ScalingReport(
        "transfer",
        pd.DataFrame([row for one in found for row in one.rows], columns=TRANSFER_COLUMNS),
        [one.sentence for one in found],
        [one.problem for one in found if one.problem],
        draw_panels([[one.panel for one in found]], ("learning rate", metric.replace("_", " ")), log_y=False),
        [one.doubt for one in found if one.doubt],
    )


class TransferRow(NamedTuple):
    """A row of the result table: one variant at one size, in the order of TRANSFER_COLUMNS. Losses are in nats."""

    variant: str
    over: str
    size: float
    best: float  # best learning rate
    loss: float  # at the best learning rate
    at_base: float  # loss at the best learning rate of the smallest size
    regret: float
    low: float  # 95 % interval of the regret over seeds
    high: float
    shift: float  # log2 of the best learning rate over that of the smallest size
    seeds: int
    edge: bool  # True: the best learning rate is the smallest or largest of those tried


class Transfer(NamedTuple):
    """The result for one variant over one scale."""

    rows: list[TransferRow]  # one for each size
    sentence: str
    problem: str  # empty if there is none
    doubt: str  # what cannot be decided; empty if all can
    panel: Panel


def judge_transfer(name: str, scale: str, rows: Sequence[RunRow], metric: str, is_control: bool) -> Transfer:
    """Judge one variant over one scale. A control has no problem, whatever the verdict."""
    curves = {size: curve(rows, scale, size, metric) for size in sizes_of(rows, scale)}
    compared = compared_with_base(name, scale, curves)
    verdict, reason = transfer_verdict(compared)
    fine, is_open = verdict == TRANSFERS or is_control, verdict == CANNOT_TELL
    return Transfer(
        compared,
        with_variant(name, f"{verdict} over {scale}: {reason}"),
        "" if fine or is_open else with_variant(name, f"{verdict} over {scale}, {reason}"),
        with_variant(name, f"{scale}: {reason}") if is_open and not fine else "",
        panel(name, scale, curves),
    )


def controls_among(variants: Mapping[str, list[int]], rows: Sequence[RunRow], scale: str) -> list[str]:
    """Return the variants that may fail: over width "standard", over depth all but "completep".

    Return an empty list for batch_size, and if no variant is made for the scale.
    """
    kinds = {
        name: {rows[place].get(PARAMETRIZATION) for place in places} for name, places in variants.items()
    }

    def made_for_it(kind: set[object]) -> bool:
        return kind == {FOR_DEPTH} if scale == "n_layers" else "standard" not in kind

    if scale == "batch_size" or not any(made_for_it(kind) for kind in kinds.values()):
        return []
    return [name for name, kind in kinds.items() if not made_for_it(kind)]


class LearningRateCurve(dict[float, dict[int, float]]):
    """Final losses by learning rate and seed: {lr: {seed: loss}}."""

    def losses(self, lr: float, seeds: Sequence[int] | None = None) -> np.ndarray:
        return np.array([self[lr][seed] for seed in seeds or self[lr]])

    @property
    def lrs(self) -> list[float]:
        return sorted(self)

    @property
    def means(self) -> list[float]:
        return [float(self.losses(lr).mean()) for lr in self.lrs]

    @property
    def best(self) -> int:
        """Index in `lrs` of the learning rate with the lowest mean loss."""
        return int(np.argmin(self.means))


def curve(rows: Sequence[RunRow], scale: str, size: float, metric: str) -> LearningRateCurve:
    found = LearningRateCurve()
    for row in rows:
        if row[scale] == size:
            loss = final_loss(row, metric) if metric in LOSSES else float_in(row, metric)
            by_seed = found.setdefault(float_in(row, LR), {})
            by_seed[seed_of(row)] = math.inf if math.isnan(loss) else loss
    return found


def compared_with_base(
    variant: str, scale: str, curves: Mapping[float, LearningRateCurve]
) -> list[TransferRow]:
    """Return a row for each size. The first size is the base."""
    base = next(iter(curves.values()))
    at = base.lrs[base.best]
    rows = []
    for size, own in curves.items():
        best = own.lrs[own.best]
        seeds = sorted(set(own.get(at, {})) & set(own[best]))
        with np.errstate(invalid="ignore"):  # infinite losses
            regrets = own.losses(at, seeds) - own.losses(best, seeds) if seeds else np.array([math.nan])
        low, high = interval(regrets) if np.isfinite(regrets).all() else (math.nan, math.nan)
        rows.append(
            TransferRow(
                variant,
                scale,
                size,
                best,
                loss=own.means[own.best],
                at_base=float(own.losses(at).mean()) if at in own else math.nan,
                regret=float(regrets.mean()),
                low=low,
                high=high,
                shift=math.log2(best / at),
                seeds=len(seeds),
                edge=own.best in (0, len(own) - 1),
            )
        )
    return rows


def transfer_verdict(rows: Sequence[TransferRow]) -> tuple[str, str]:
    """Return the verdict ("transfers", "shifts" or "cannot tell") and its reason."""
    base, others = rows[0], rows[1:]
    if not others:
        return CANNOT_TELL, f"only one size ran, {base.size}"
    if not math.isfinite(base.loss):
        return CANNOT_TELL, f"all runs of {base.size} failed or diverged"
    if base.edge:
        return CANNOT_TELL, f"{base.best:.4g} is at the edge of the learning rates tried with {base.size}"
    worst = max(others, key=lambda row: (row.regret, row.size))
    costs = f"the best lr of {base.size}, {base.best:.4g}, costs {described_regret(worst)} at {worst.size}"
    moved = f"{costs}, whose best is {worst.best:.4g}" if worst.shift else costs
    unknown = [row.size for row in others if math.isnan(row.regret)]
    if unknown:
        return (
            CANNOT_TELL,
            f"the best lr of {base.size}, {base.best:.4g}, did not run with {unknown[0]}",
        )
    if worst.regret >= SUBSTANTIAL and not worst.low <= 0:
        return "shifts", moved
    if worst.regret <= NEGLIGIBLE and not worst.high > SUBSTANTIAL:
        at_edge = [row for row in others if row.edge]
        if at_edge:
            return (
                CANNOT_TELL,
                f"the best of {at_edge[0].size}, {at_edge[0].best:.4g}, is at the edge of the learning rates tried",
            )
        return TRANSFERS, f"{costs} or less elsewhere; {wider(rows)}"
    return CANNOT_TELL, f"{moved}: between {NEGLIGIBLE} and {SUBSTANTIAL}, or seeds differ too much"


def described_regret(row: TransferRow) -> str:
    has_interval = row.low < row.high  # False for one seed, or if the base has the same best learning rate
    between = f" (95 % interval {row.low:+.4f} to {row.high:+.4f})" if has_interval else ""
    return f"{row.regret:.4f} nats{between}"


def wider(rows: Sequence[TransferRow]) -> str:
    losses = [row.at_base for row in rows]
    falls = all(later < earlier for earlier, later in pairwise(losses))
    return f"at this lr the loss {'falls' if falls else 'does not fall'} with every size"


def panel(variant: str, scale: str, curves: Mapping[float, LearningRateCurve]) -> Panel:
    """Return a panel of loss over learning rate: a line for each size, a star at the best.

    Triangles at the upper edge mark losses that are much higher or infinite.
    """
    bests = [min(own.means) for own in curves.values() if math.isfinite(min(own.means))]
    if not bests:
        return Panel(variant, [])
    far = min(bests) + 4 * max(0.05, max(bests) - min(bests))
    lines = []
    for size, own in curves.items():
        means = [min(mean, far) for mean in own.means]
        low, high = ([min(float(end(own.losses(lr))), far) for lr in own.lrs] for end in (np.min, np.max))
        clipped = [i for i, mean in enumerate(own.means) if mean > far]
        best = own.best if own.best not in clipped else None
        lines.append(Line(f"{scale} {size}", own.lrs, means, low, high, best, clipped))
    return Panel(variant, lines)
