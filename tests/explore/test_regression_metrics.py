"""Metrics of in-context regression: predictors against least squares and against the maps that drew the samples."""

import math
import random

import numpy as np
import pytest
import torch

from data import in_context
from data.in_context import bin_values, known_map, linear_regression
from explore.regression_metrics import RegressionPoints
from tests.explore.test_claim_metrics import TASKS, made, value

ARGUMENTS = {"dims": 3, "n_points": 6, "n_bins": 16, "n_tasks": 0}


def points_with(n=40, **changes):
    arguments = ARGUMENTS | changes
    dice = random.Random(1)
    return RegressionPoints([linear_regression(dice, **arguments) for _ in range(n)], arguments)


def test_the_numbers_are_those_that_the_task_has_binned():
    points = points_with(n_bins=512, n_tasks=2)
    maps = np.array([known_map(0, 3), known_map(1, 3)])
    errors = [((points.x_RPD @ w - points.y_RP) ** 2).mean(axis=1) for w in maps]
    assert np.minimum(*errors).max() < 0.05, "one of the known maps has drawn each sample"
    assert min(errors[0].max(), errors[1].max()) > 1
    assert points.x_RPD.shape == (40, 6, 3)


def test_ridge_is_least_squares_with_further_points_for_the_prior():
    points = points_with()
    predicted_RP = points.of_ridge()
    for x_PD, y_P, row_P in zip(points.x_RPD, points.y_RP, predicted_RP, strict=True):
        for i in range(len(y_P)):
            rows = np.vstack([x_PD[:i], math.sqrt(points.noise) * np.eye(3)])
            w_D = np.linalg.lstsq(rows, np.concatenate([y_P[:i], np.zeros(3)]), rcond=None)[0]
            assert row_P[i] == pytest.approx(x_PD[i] @ w_D, abs=1e-9)


def test_known_maps_are_weighted_by_the_probability_of_the_points_before():
    points = points_with(n_tasks=5)
    predicted_RP = points.of_known_maps()
    for x_PD, y_P, row_P in zip(points.x_RPD, points.y_RP, predicted_RP, strict=True):
        belief = np.ones(5) / 5
        for x_D, y, predicted in zip(x_PD, y_P, row_P, strict=True):
            values = np.array([x_D @ known_map(number, 3) for number in range(5)])
            assert predicted == pytest.approx(belief @ values, abs=1e-9)
            belief = belief * np.exp(-((y - values) ** 2) / (2 * points.noise))
            belief /= belief.sum()
    assert points.error(predicted_RP) < points.error(points.of_ridge())


def test_without_known_maps_there_is_no_such_predictor():
    with pytest.raises(ValueError, match="n_tasks=0"):
        points_with().of_known_maps()


def test_errors_of_a_prediction_of_zero_are_the_variance_of_the_binned_values():
    points = points_with(n=2000)
    assert points.error(np.zeros_like(points.y_RP)) == pytest.approx(0.8, abs=0.05)
    last = np.zeros_like(points.y_RP)
    last[:, :-1] = 100
    assert points.error(last, last=True) == pytest.approx(0.8, abs=0.1)
    assert points.error(points.y_RP + 3) == pytest.approx(9 / 3)


def test_the_models_prediction_is_the_mean_under_its_bins_one_value_at_a_time(tmp_path):
    lm, data = made(tmp_path, "linear_regression", n_samples=400)
    values = bin_values(8, math.sqrt(2))
    bins = data.tokenizer.ids_of([f"y{i}" for i in range(8)])
    squares, last = [], []
    with torch.no_grad():
        for row in (data.rows("val")[i] for i in range(len(data.rows("val")))):
            scored = [i for i, is_scored in enumerate(row.scored) if is_scored]
            for i in scored:
                p = lm(row.ids[:i])[0, -1, bins].softmax(dim=-1).numpy()
                squares.append((p @ values - values[bins.index(row.ids[i])]) ** 2 / 2)
            last.append(squares[-1])
        assert value("regression_error", lm, data) == pytest.approx(np.mean(squares), rel=1e-4)
        assert value("last_regression_error", lm, data) == pytest.approx(np.mean(last), rel=1e-4)


def test_on_new_maps_only_ridge_knows_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "linear_regression", {"dims": 2, "n_points": 8, "n_bins": 32, "n_tasks": 2})
    lm, data = made(tmp_path, "linear_regression", n_samples=800)
    with torch.no_grad():
        assert value("dmmse_error", lm, data) < 0.5 * value("ridge_error", lm, data)
        assert value("ridge_error_on_new_maps", lm, data) == pytest.approx(
            value("ridge_error", lm, data), rel=0.5
        )
        assert value("last_ridge_error", lm, data) < value("ridge_error", lm, data)
        seen = value("regression_error", lm, data)
        assert value("regression_error_on_new_maps", lm, data) != pytest.approx(seen, rel=1e-6)


def test_ridge_agrees_with_the_reference_of_the_task():
    """Its mean is that of the normal distribution in the reference: the likeliest bin lies there."""
    points = points_with(n=10)
    sample_tokens = points.tokens[0]
    losses = []
    for i in range(16):
        marked = [token if token[0] == "x" else f"«{token}»" for token in sample_tokens]
        changed = [*marked[:-2], f"«y{i}»", "."]
        flat = [
            part for token in changed for part in (["«", token[1:-1], "»"] if token[0] == "«" else [token])
        ]
        losses.append(in_context.regression_losses(flat, dims=3, n_bins=16)[-1])
    likely = bin_values(16, math.sqrt(3))[int(np.argmin(losses))]
    assert abs(likely - points.of_ridge()[0, -1]) < 0.6
