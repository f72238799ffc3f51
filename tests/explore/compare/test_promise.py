"""Error rates and power that compare() promises, by simulation: how often it is wrong about equals, how often right about others."""

import numpy as np
import pandas as pd
import pytest

from explore.compare.verdicts import compare

CLEAR = (
    5.0,
    0.0,
    5.0,
)  # mean losses at three learning rates, in standard deviations of a run: one is clearly the best
EQUAL = (0.0, 0.0, 0.0)
NEAR = (0.5, 0.0, 0.3)
VALLEY = (4.0, 1.0, 0.0, 1.0, 4.0)
# Kinds of grids without a difference: the profile of the baseline, those of the variants, the number of seeds, what
# seeds have in common, by how much noise grows from one learning rate to the next, and what share of runs diverges.
NULL: dict[str, tuple] = {
    "symmetric": (VALLEY, [VALLEY], 5, 1.0, 1.0),
    "symmetric, ties": (EQUAL, [EQUAL], 10, 0.0, 1.0),
    "clear against ties, 3 seeds": (CLEAR, [EQUAL], 3, 0.0, 1.0),
    "clear against ties, 5 seeds": (CLEAR, [EQUAL], 5, 1.0, 1.0),
    "clear against ties, 10 seeds": (CLEAR, [EQUAL], 10, 3.0, 1.0),
    "ties against clear": (EQUAL, [CLEAR], 10, 1.0, 1.0),
    "clear against near": (CLEAR, [NEAR], 10, 1.0, 1.0),
    "nearly tied against ties": ((1.0, 0.0, 1.0), [EQUAL], 10, 0.0, 1.0),
    "noisy rates": (CLEAR, [EQUAL], 5, 1.0, 2.0),
    "some diverge": (EQUAL, [EQUAL], 5, 1.0, 1.0, 0.1),
    "some diverge, against near": ((5.0, 0.0, 1.0), [(0.0, 0.0, 0.5)], 10, 1.0, 1.0, 0.05),
    "five, clear against ties": (CLEAR, [EQUAL] * 4, 5, 1.0, 1.0),
    "five, mixed": (VALLEY, [VALLEY, (0.0,) * 5, VALLEY, (0.5, 0.0, 0.5, 1, 1)], 10, 1.0, 1.0),
    "seven rates": ((2.0,) * 6 + (0.0,), [(0.0,) * 7], 5, 1.0, 1.0),
    "five, 3 seeds": (NEAR, [EQUAL, CLEAR, NEAR, EQUAL], 3, 2.0, 1.0),
}
EFFECT = {
    "one rate": ((0.0,), (0.0,)),
    "clear": (CLEAR, CLEAR),
    "ties": (EQUAL, EQUAL),
    "near": (NEAR, NEAR),
    "valley": (VALLEY, VALLEY),
    "clear against ties": (CLEAR, EQUAL),
}


def grid(rng, profiles, n_seeds, common=1.0, growth=1.0, diverging=0.0) -> pd.DataFrame:
    """The table of a grid: a run's loss is its mean, what its seed has in common with others, and its own noise.

    With the highest learning rate a share of the runs diverges.
    """
    shared_S = common * rng.normal(size=n_seeds)
    columns: dict[str, list] = {"positions": [], "lr": [], "random_seed": [], "val_loss": []}
    for number, profile in enumerate(profiles):
        noise_LS = rng.normal(size=(len(profile), n_seeds)) * growth ** np.arange(len(profile))[:, None]
        losses_LS = np.array(profile)[:, None] + shared_S + noise_LS
        columns["positions"] += [f"kind{number}"] * losses_LS.size
        columns["lr"] += [10.0**-i for i in range(len(profile)) for _ in range(n_seeds)]
        columns["random_seed"] += list(range(n_seeds)) * len(profile)
        columns["val_loss"] += losses_LS.ravel().tolist()
    table = pd.DataFrame(columns | {"steps": 100, "stopped": "finished", "leak": None, "status": "complete"})
    table.loc[(table.lr == 1) & (rng.random(len(table)) < diverging), "stopped"] = "diverged"
    return table


def wrong_about_equals(rng, kind: str) -> bool:
    baseline, variants, *more = NULL[kind]
    result = compare(grid(rng, [baseline, *variants], *more))
    return bool(result.verdict.isin(["better", "worse"]).any())


def right_about_difference(rng, kind: str) -> bool:
    baseline, variant = EFFECT[kind]
    result = compare(grid(rng, [baseline, [mean - 1.5 for mean in variant]], 10))
    return result.verdict[1] == "better"


@pytest.mark.slow
def test_few_of_a_thousand_grids_without_a_difference_get_a_verdict():
    rng = np.random.default_rng(0)
    kinds = list(NULL)
    wrong = [wrong_about_equals(rng, kinds[i % len(kinds)]) for i in range(1000)]
    assert np.mean(wrong) <= 0.065


@pytest.mark.slow
@pytest.mark.ci
def test_a_difference_of_one_and_a_half_deviations_is_found():
    rng = np.random.default_rng(1)
    kinds = list(EFFECT)
    right = [right_about_difference(rng, kinds[i % len(kinds)]) for i in range(300)]
    assert np.mean(right) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("kind", NULL)
def test_the_error_rate_holds_for_every_kind_of_grid(kind):
    rng = np.random.default_rng(sum(map(ord, kind)))
    assert np.mean([wrong_about_equals(rng, kind) for _ in range(1000)]) <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize("kind", EFFECT)
def test_a_difference_is_found_in_every_kind_of_grid(kind):
    rng = np.random.default_rng(sum(map(ord, kind)))
    assert np.mean([right_about_difference(rng, kind) for _ in range(1000)]) >= 0.8
