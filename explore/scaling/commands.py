"""Scaling checks over the axes of a config: --coord-check, --stability and --transfer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from data.dataloader import LMDataModule
from explore.compare.report import results, rows_of_grid, tidy
from explore.compare.variants import RunRow
from explore.scaling import coordinates, stability
from explore.scaling.report import ScalingReport, sizes_of, variants_over, varies
from explore.scaling.transfer import LR, SCALES, transfer_report
from model.lm import LM
from train.data import make_data
from train.grid.config_text import VARIANT
from train.grid.expand import GridError
from train.grid.params import Params, measured_column
from train.grid.run import Run
from train.length import with_beta2
from train.logs import log
from train.optimizers import make_optimizer
from train.saving.outcome import Outcome

WIDTH, DEPTH, KIND = "dim", "n_layers", "parametrization"


def check_coordinates(runs: Sequence[Run], cache: Path) -> ScalingReport:
    """Run the coordinate check over the `dim` of a grid, at the middle one of its learning rates.

    `cache` is the folder of cached data. Runs with parametrization="standard" are controls if the grid has other
    parametrizations. A config with one seed gets additional seeds, since the interval of a slope needs replicates.
    Raise GridError if `dim` has only one value.
    """
    frames, probes, kinds = [], [], {}
    for name, rows, params in groups(runs, WIDTH, ignored=(LR,)):
        lrs = sorted({one.train.lr for one in params})
        lr = lrs[(len(lrs) - 1) // 2]
        if len(lrs) > 1:
            log.info(
                f"{name or 'all runs'}: checked at lr={lr:.4g}, the middle one of {len(lrs)} learning rates"
            )
        of_width = {one.model.dim: one for one in params}
        train = next(one.train for one in params if one.train.lr == lr)
        data = data_of(params[0], cache)
        models = {width: partial(build, of_width[width], data) for width in sorted(of_width)}
        batch = next(iter(data.train_dataloader(params[0].train.batch_size)))
        seeds = seeds_of(params)
        optimizer = partial(make_optimizer, params=with_beta2(train, data))
        max_seeds = len(seeds) if len(seeds) > 1 else coordinates.MAX_SEEDS
        if len(seeds) == 1:
            seeds = [*range(seeds[0], seeds[0] + coordinates.MIN_SEEDS)]
        own, probe = coordinates.measure_kind(
            name, models, batch, optimizer, seeds=seeds, max_seeds=max_seeds
        )
        frames.append(own)
        probes.append(probe)
        kinds[name] = {row[KIND] for row in rows}
    controls = [name for name, own in kinds.items() if "standard" in own]
    controls = [] if len(controls) == len(kinds) else controls
    return coordinates.coordinate_report(pd.concat(frames), pd.concat(probes), controls)


def check_stability(runs: Sequence[Run], cache: Path) -> ScalingReport:
    """Run the stability check over the `n_layers` of a grid. `cache` is the folder of cached data.

    Raise GridError if `n_layers` has only one value.
    """
    frames, expected, n_residuals = [], {}, 2
    for name, _, params in groups(runs, DEPTH, ignored=(LR,)):
        of_depth = {one.model.n_layers: one for one in params}
        data = data_of(params[0], cache)
        batch = next(iter(data.train_dataloader(params[0].train.batch_size)))
        make = partial(build_at, of_depth, data)
        x_BT = batch["x_indices"][:, :-1]
        frames.append(stability.changes(name, make, x_BT, sorted(of_depth), seeds_of(params)))
        expected[name] = stability.expected_growth(params[0].model)
        n_residuals = 2 if params[0].model.at(0).ff_width else 1
    return stability.stability_report(pd.concat(frames), expected, n_residuals)


def refuse_transfer(runs: Sequence[Run]) -> None:
    """Raise GridError unless the grid varies the learning rate and a scale, as --transfer needs."""
    rows = [run.params.flat() for run in runs]
    if not any(varies(rows, scale) for scale in SCALES) or not varies(rows, LR):
        raise GridError([f"--transfer needs several values of {LR}, and of one of {', '.join(SCALES)}"])


def check_transfer(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> ScalingReport:
    """Judge the transfer of the learning rate in a grid that has just run."""
    return transfer_report(tidy(rows_of_grid(runs, outcomes)))


def transfer_of_saved(name: str, out: str | None) -> ScalingReport:
    """Judge the transfer of the learning rate in the saved runs of config `name`. Raise GridError if it is impossible.

    `out` is the output root (`--out`).
    """
    try:
        return transfer_report(results(name, out))
    except ValueError as error:
        raise GridError([f"--transfer: {error}"]) from error


def groups(
    runs: Sequence[Run], scale: str, ignored: Sequence[str]
) -> list[tuple[str, list[RunRow], list[Params]]]:
    """Group runs that differ only in `scale`, seeds and `ignored` fields.

    Return the name, rows and params of each group. Raise GridError if `scale` has only one value.
    """
    rows = [
        run.params.flat() | ({} if run.variant is None else {measured_column(VARIANT): run.variant})
        for run in runs
    ]
    if len(sizes_of(rows, scale)) < 2:
        raise GridError(
            [f"{scale} has only one value, {rows[0][scale]}: list several, such as --set {scale}=[2,4,8]"]
        )
    members = variants_over(rows, scale, ignored)
    return [(name, [rows[i] for i in own], [runs[i].params for i in own]) for name, own in members.items()]


def seeds_of(params: Sequence[Params]) -> list[int]:
    return sorted({one.train.random_seed for one in params})


def data_of(params: Params, cache: Path) -> LMDataModule:
    return make_data(params.data, params.model, cache)


def build(params: Params, data: LMDataModule) -> nn.Module:
    return LM(params.model, tokenizer=data.tokenizer)


def build_at(of_depth: dict[int, Params], data: LMDataModule, depth: int, seed: int) -> nn.Module:
    return build(of_depth[depth], data)
