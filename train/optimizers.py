"""Optimisers: which parameters decay, and the registry of update rules."""

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import Optimizer

from model.lm import LM
from model.lora import is_lora
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


def freeze(model: LM, params: TrainParams) -> None:
    """Keeps parameters from training: those that `freeze` names and, with LoRA, all but its own."""
    frozen = frozen_names(
        [name for name, _ in model.named_parameters()], params.freeze, model.model_params.lora_rank
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def frozen_names(names: Iterable[str], patterns: tuple[str, ...], lora_rank: int = 0) -> set[str]:
    """The parameter names that `freeze` keeps from training, and LoRA; ValueError for a pattern that fits none."""
    names = list(names)
    frozen = {name for name in names if lora_rank and not is_lora(name)}
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"freeze={patterns!r}: of {len(names)} parameters none is named {pattern!r}; there are {', '.join(near)} ..."
            )
        frozen |= fitting
    if len(frozen) == len(names):
        because = (
            f"freeze={patterns!r}" if patterns else f"lora_rank={lora_rank} without a linear map of ours"
        )
        raise ValueError(f"{because} leaves nothing to train")
    return frozen
