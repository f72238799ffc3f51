"""Optimisers: which parameters decay, and the registry of update rules."""

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import Optimizer

from train.train_params import TrainParams

optimizers: dict[str, Callable[[list[dict], TrainParams], Optimizer]] = {}


def registered(
    make: Callable[[list[dict], TrainParams], Optimizer],
) -> Callable[[list[dict], TrainParams], Optimizer]:
    """Makes an optimiser available to `optimizer` under its function's name."""
    optimizers[make.__name__] = make
    return make


@registered
def adamw(groups: list[dict], params: TrainParams) -> Optimizer:
    # Lightning cannot clip gradients under a loss scaler when the optimiser unscales them itself, as a fused one does.
    return torch.optim.AdamW(groups, lr=params.lr, betas=params.betas, fused=params.precision != "16-mixed")


@registered
def sgd(groups: list[dict], params: TrainParams) -> Optimizer:
    return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum)


def make_optimizer(model: nn.Module, params: TrainParams) -> Optimizer:
    """The optimiser of `params` over all of `model`'s parameters that train; only matrices decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return optimizers[params.optimizer]([group for group in groups if group["params"]], params)


def frozen_names(names: Iterable[str], patterns: tuple[str, ...]) -> set[str]:
    """The parameter names that `freeze` keeps from training; ValueError for a pattern that fits none."""
    names, frozen = list(names), set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"freeze={patterns!r}: of {len(names)} parameters none is named {pattern!r}; there are {', '.join(near)} ..."
            )
        frozen |= fitting
    if len(frozen) == len(names):
        raise ValueError(f"freeze={patterns!r} leaves nothing to train")
    return frozen
