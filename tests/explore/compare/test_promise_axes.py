"""Error rates and power of compare() with code axes, lengths, evaluation sets, censored times and blocks, by simulation."""

import numpy as np
import pandas as pd
import pytest

from explore.compare.metrics import Time
from explore.compare.verdicts import compare

pytestmark = pytest.mark.usefixtures("times_in_the_table")

LENGTH = 1000.0  # steps of a run
ONE_BLOCK: tuple[dict, ...] = ({},)
CLEAR, EQUAL, NEAR = (5.0, 0.0, 5.0), (0.0, 0.0, 0.0), (0.5, 0.0, 0.3)


@pytest.fixture
def times_in_the_table(monkeypatch):
    """The time of a run is a number in its row; it is reached if it is at most LENGTH."""

    def time_to(row, metric):
        return Time(min(row["time"], LENGTH), row["time"] <= LENGTH)

    monkeypatch.setattr("explore.compare.variants.time_to", time_to)


def rows(
    rng, variants, n_seeds, *, blocks=ONE_BLOCK, common=1.0, growth=1.0, shift=0.0, spread=0.0
) -> list[dict]:
    """A run for each variant, block, learning rate and seed.

    `variants` are pairs: values of fields, and mean losses at the learning rates in standard deviations. A loss is the sum
    of its mean, what its seed has in common with others, what its block has (`spread`: a difference of its own between
    variants), and noise, which grows from block to block. All variants but the first are better by `shift`.
    """
    shared_S, found = common * rng.normal(size=n_seeds), []
    for i, block in enumerate(blocks):
        for number, (fields, profile) in enumerate(variants):
            own = 10.0 * i + spread * (-1) ** i * (number > 0) - shift * (number > 0)
            noise_LS = growth**i * rng.normal(size=(len(profile), n_seeds))
            losses_LS = np.array(profile)[:, None] + own + shared_S + noise_LS
            found += [
                fields | block | {"lr": 10.0**-rate, "random_seed": seed, "val_loss": losses_LS[rate, seed]}
                for rate in range(len(profile))
                for seed in range(n_seeds)
            ]
    return found


def table_of(found: list[dict]) -> pd.DataFrame:
    ended = {"steps": 100, "stopped": "finished", "leak": None, "status": "complete"}
    return pd.DataFrame([ended | row for row in found])


KINDS = [{"positions": name} for name in ("none", "rotary", "alibi")]
CODES = [{"code": name} for name in ("first", "attention.py +1 -1", "norms.py +2 -0")]
LENGTHS = [{"early_stop_nsamples": 1000 * n, "steps": 100 * n} for n in (1, 2, 4)]
DIMS = [{"dim": 32 * 2**i} for i in range(4)]


def code_axis(rng, shift=0.0, n_seeds=5):
    return compare(table_of(rows(rng, [(code, NEAR) for code in CODES], n_seeds, shift=shift)))


def lengths(rng, shift=0.0, n_seeds=5):
    """Runs of three lengths: only those of the same length may get a verdict, so each pair of variants has two."""
    variants = [(kind | LENGTHS[i], EQUAL) for kind in KINDS[:2] for i in (0, 2)]
    return compare(table_of(rows(rng, variants, n_seeds, shift=shift)))


def evaluation_set(rng, shift=0.0, n_seeds=5):
    """Accuracy on an evaluation set, of which only 50 samples were drawn, so that equal values are common."""
    found = rows(rng, [(kind, (0.0,)) for kind in KINDS], n_seeds, shift=shift)
    for row in found:
        row["val_accuracy[long]"] = np.round(50 / (1 + np.exp(0.3 * row["val_loss"]))) / 50
    return compare(table_of(found), metric="val_accuracy[long]")


def censored(rng, shift=0.0, n_seeds=5, *, level=0.0, every=100, profiles=((0.0,),) * 3):
    """Times in steps of validations; `level` is the share of runs that never get there, as a normal quantile."""
    found = rows(rng, list(zip(KINDS, profiles, strict=True)), n_seeds, shift=shift)
    for row in found:
        row["time"] = every * np.ceil(LENGTH * np.exp(0.3 * (row["val_loss"] + level)) / every)
    return compare(table_of(found), metric="steps_to: val_loss < 3")


def blocks(rng, shift=0.0, n_seeds=3, *, profiles=(EQUAL, EQUAL), **options):
    variants = list(zip(KINDS, profiles, strict=False))
    return compare(
        table_of(rows(rng, variants, n_seeds, blocks=DIMS, shift=shift, **options)), by="positions"
    )


GRIDS = {
    "code": code_axis,
    "code, 3 seeds": lambda rng, **more: code_axis(rng, **{"n_seeds": 3} | more),
    "lengths": lengths,
    "evaluation set": evaluation_set,
    "evaluation set, 3 seeds": lambda rng, **more: evaluation_set(rng, **{"n_seeds": 3} | more),
    "half censored": censored,
    "half censored, 3 seeds": lambda rng, **more: censored(rng, **{"n_seeds": 3} | more),
    "half censored, 10 seeds": lambda rng, **more: censored(rng, **{"n_seeds": 10} | more),
    "mostly censored": lambda rng, **more: censored(rng, level=2.0, **{"n_seeds": 10} | more),
    "hardly censored": lambda rng, **more: censored(rng, level=-2.0, **more),
    "censored, coarse": lambda rng, **more: censored(rng, every=500, **{"n_seeds": 10} | more),
    "censored, rates": lambda rng, **more: censored(rng, profiles=(CLEAR, EQUAL, NEAR), level=-1.0, **more),
    "blocks": blocks,
    "blocks, one rate": lambda rng, **more: blocks(rng, profiles=((0.0,), (0.0,)), **{"n_seeds": 1} | more),
    "blocks, clear against ties": lambda rng, **more: blocks(rng, profiles=(CLEAR, EQUAL), **more),
    "blocks, ties against clear": lambda rng, **more: blocks(rng, profiles=(EQUAL, CLEAR), **more),
    "blocks, near": lambda rng, **more: blocks(rng, profiles=(CLEAR, NEAR), **{"n_seeds": 5} | more),
    "blocks of different noise": lambda rng, **more: blocks(rng, growth=2.0, **more),
    "blocks of different effects": lambda rng, **more: blocks(rng, spread=1.0, **more),
}
# Differences in standard deviations of a run that these grids show in most cases. Of time, only what is not cut is seen.
POWERFUL = {
    "code": 3.0,
    "lengths": 3.0,
    "evaluation set": 3.0,
    "half censored": 3.5,
    "half censored, 10 seeds": 2.0,
    "censored, coarse": 4.0,
    "blocks": 1.5,
    "blocks, one rate": 4.0,
    "blocks of different effects": 3.0,
}


def called(result) -> bool:
    return bool(result.verdict.isin(["better", "worse"]).any())


@pytest.mark.slow
@pytest.mark.ci
def test_few_grids_without_a_difference_get_a_verdict():
    rng = np.random.default_rng(0)
    assert np.mean([called(grid(rng)) for _ in range(20) for grid in GRIDS.values()]) <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRIDS)
def test_the_error_rate_holds_for_every_kind_of_grid(kind):
    rng = np.random.default_rng(sum(map(ord, kind)))
    assert np.mean([called(GRIDS[kind](rng)) for _ in range(1000)]) <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize("kind", POWERFUL)
def test_a_difference_is_found(kind):
    rng = np.random.default_rng(sum(map(ord, kind)))
    results = [GRIDS[kind](rng, shift=POWERFUL[kind]) for _ in range(200)]
    assert np.mean([result.verdict.eq("better").any() for result in results]) >= 0.8
    assert np.mean([result.verdict.eq("worse").any() for result in results]) <= 0.02
