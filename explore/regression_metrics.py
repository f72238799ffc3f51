"""Final metrics for claims about in-context linear regression: errors of a model, of ridge regression and of known maps.

Errors are mean squared errors of predicted values, divided by the number of dimensions. A prediction of 0 has an error of
about 0.8, not 1: values are rounded to the median of their bin, and the outermost bins cut off large ones. Each metric
raises ValueError for a task other than `linear_regression`.

Shape suffixes:  B batch  T position  D input dimension  V vocabulary  R sample  P point  M map  N bin of a value
"""

import math
import random
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from data.dataloader import LMDataModule, batched
from data.in_context import bin_values, known_map, linear_regression, rounding_variance
from data.syntheticdata import Sample, read_marks
from data.task_rows import TaskData
from data.tokenizer import Tokenizer
from explore.claim_metrics import BATCH_ROWS, MAX_VAL_ROWS, arguments_of
from model.lm import LM
from train.final_metrics import metric


@metric
def regression_error(lm: LM, data: LMDataModule) -> float:
    """Mean squared error of the model on `linear_regression`, divided by the number of dimensions. Its prediction is the
    mean value under its probabilities of the bins (Raventós et al. 2023, arXiv:2306.15063).
    """
    points = validation_points(data)
    return points.error(points.of_model(lm, data.tokenizer))


@metric
def ridge_error(lm: LM, data: LMDataModule) -> float:
    """The `regression_error` of ridge regression instead of the model. It is the best predictor if every sample has a new map
    (Raventós et al. 2023).
    """
    points = validation_points(data)
    return points.error(points.of_ridge())


@metric
def dmmse_error(lm: LM, data: LMDataModule) -> float:
    """The `regression_error` of dMMSE instead of the model. It is the best predictor that knows the `n_tasks` maps: the mean
    of their values, weighted by likelihood (Raventós et al. 2023).
    """
    points = validation_points(data)
    return points.error(points.of_known_maps())


@metric
def regression_error_on_new_maps(lm: LM, data: LMDataModule) -> float:
    """The `regression_error` on 256 samples with new maps, whatever `n_tasks` is (Raventós et al. 2023)."""
    points = points_of_new_maps(data)
    return points.error(points.of_model(lm, data.tokenizer))


@metric
def ridge_error_on_new_maps(lm: LM, data: LMDataModule) -> float:
    """The `ridge_error` on the samples of `regression_error_on_new_maps` (Raventós et al. 2023)."""
    points = points_of_new_maps(data)
    return points.error(points.of_ridge())


@metric
def last_regression_error(lm: LM, data: LMDataModule) -> float:
    """The `regression_error` of the last points of samples only (Garg et al. 2022, arXiv:2208.01066)."""
    points = validation_points(data)
    return points.error(points.of_model(lm, data.tokenizer), last=True)


@metric
def last_ridge_error(lm: LM, data: LMDataModule) -> float:
    """The `ridge_error` of the last points of samples only (Garg et al. 2022)."""
    points = validation_points(data)
    return points.error(points.of_ridge(), last=True)


class RegressionPoints:
    """Samples of `linear_regression` as numbers. Predictions of their values are arrays [R, P]."""

    def __init__(self, samples: Sequence[Sample], arguments: Mapping[str, Any]) -> None:
        self.dims, self.n_bins, self.n_tasks = (arguments[name] for name in ("dims", "n_bins", "n_tasks"))
        self.tokens = [read_marks(sample).tokens for sample in samples]
        bins = np.array([[int(token[1:]) for token in tokens[:-1]] for tokens in self.tokens])
        bins_RPD = bins.reshape(len(samples), -1, self.dims + 1)
        self.x_RPD = bin_values(self.n_bins, 1.0)[bins_RPD[..., : self.dims]]
        self.values_N = bin_values(self.n_bins, math.sqrt(self.dims))
        self.y_RP = self.values_N[bins_RPD[..., self.dims]]
        self.noise = rounding_variance(self.dims, self.n_bins)

    def error(self, predicted_RP: np.ndarray, last: bool = False) -> float:
        """Return the mean squared error of all points, or of the last ones, divided by the number of dimensions."""
        squares_RP = (predicted_RP - self.y_RP) ** 2 / self.dims
        return float(squares_RP[:, -1].mean() if last else squares_RP.mean())

    def of_model(self, lm: LM, tokenizer: Tokenizer) -> np.ndarray:
        """Return the mean values under the model's probabilities of the bins.

        Raise ValueError for a model that predicts no next tokens, or does not know all bins.
        """
        if lm.model_params.hides_tokens:
            raise ValueError(
                f"objective={lm.model_params.objective!r} predicts no next tokens, as values are"
            )
        start, bins = tokenizer.begin, tokenizer.ids_of([f"y{i}" for i in range(self.n_bins)])
        if tokenizer.unk in bins:
            raise ValueError(f"the vocabulary lacks some of {self.n_bins} bins: train on more samples")
        predicted = []
        for rows in batched(range(len(self.tokens)), BATCH_ROWS):
            ids = [[*start, *tokenizer.ids_of(self.tokens[row][:-1])] for row in rows]
            # Each value is predicted at the last coordinate of its point.
            z_BPV = lm(torch.tensor(ids, device=lm.device))[:, len(start) + self.dims - 1 :: self.dims + 1]
            predicted.append(z_BPV[..., bins].double().softmax(dim=-1).cpu().numpy() @ self.values_N)
        return np.concatenate(predicted)

    def of_ridge(self) -> np.ndarray:
        """Return the predictions of ridge regression on the earlier points of each sample.

        Weights have a standard normal prior. What the bins round off counts as noise of the values.
        """
        products_RPDD = sum_of_earlier(self.x_RPD[..., :, None] * self.x_RPD[..., None, :])
        targets_RPD = sum_of_earlier(self.x_RPD * self.y_RP[..., None])
        precision_RPDD = np.eye(self.dims) + products_RPDD / self.noise
        w_RPD = np.linalg.solve(precision_RPDD, targets_RPD[..., None] / self.noise)[..., 0]
        return (self.x_RPD * w_RPD).sum(axis=-1)

    def of_known_maps(self) -> np.ndarray:
        """Return the mean values of the maps of training, weighted by their likelihood on the earlier points."""
        if not self.n_tasks:
            raise ValueError("n_tasks=0 draws a new map for each sample: no maps are known; set n_tasks")
        maps_MD = np.array([known_map(number, self.dims) for number in range(self.n_tasks)])
        predicted = []
        for x_PD, y_P in zip(self.x_RPD, self.y_RP, strict=True):
            values_PM = x_PD @ maps_MD.T
            nats_PM = ((values_PM - y_P[:, None]) ** 2) / (2 * self.noise)
            earlier_PM = sum_of_earlier(nats_PM[None])[0]
            weights_PM = np.exp(earlier_PM.min(axis=1, keepdims=True) - earlier_PM)
            predicted.append((weights_PM * values_PM).sum(axis=1) / weights_PM.sum(axis=1))
        return np.stack(predicted)


def sum_of_earlier(terms_RP: np.ndarray) -> np.ndarray:
    """Return for each point the sum of the terms of the earlier points of its sample, along axis 1."""
    return np.cumsum(terms_RP, axis=1) - terms_RP


def validation_points(data: LMDataModule) -> RegressionPoints:
    """Return up to MAX_VAL_ROWS validation samples. Raise ValueError for another task."""
    arguments = arguments_of(data, "linear_regression")
    assert isinstance(data.data, TaskData)
    return RegressionPoints([*islice(data.data.split("val"), MAX_VAL_ROWS)], arguments)


def points_of_new_maps(data: LMDataModule) -> RegressionPoints:
    """Return MAX_VAL_ROWS samples with a new map each. Raise ValueError for another task."""
    arguments = arguments_of(data, "linear_regression")
    dice = random.Random("new maps")
    samples = [linear_regression(dice, **arguments | {"n_tasks": 0}) for _ in range(MAX_VAL_ROWS)]
    return RegressionPoints(samples, arguments)
