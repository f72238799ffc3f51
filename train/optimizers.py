"""Optimizers: the registry of update rules, and the choice of parameters that decay."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from common.registry import Registry
from common.text import nearest
from model.lm import LM
from model.model_params import ModelParams
from model.mup.parametrization import ParameterKind, UpdateRule, param_groups  # muP
from model.shapes import roles_of
from model.transformer.lora import is_lora
from train.muon import MuonWithAdamW
from train.train_params import TrainParams

# The function is given parameter groups and the params. Its name is a value of `optimizer`.
optimizers: Registry[Callable[[list[dict], TrainParams], Optimizer]] = Registry("optimizer")


@optimizers.register
def adamw(groups: list[dict], params: TrainParams) -> Optimizer:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""
    # Lightning cannot clip gradients under a loss scaler when the optimizer unscales them itself, as a fused one does.
    fused = params.precision != "16-mixed"
    return torch.optim.AdamW(groups, lr=params.lr, betas=params.betas, eps=params.adam_eps, fused=fused)


@optimizers.register
def sgd(groups: list[dict], params: TrainParams) -> Optimizer:
    """Stochastic gradient descent with `momentum`."""
    return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum)


@optimizers.register
def muon(groups: list[dict], params: TrainParams) -> Optimizer:
    """Muon, orthogonalized momentum for the matrices inside layers; AdamW for all other parameters."""
    of_adamw = {"betas": params.betas, "eps": params.adam_eps, "fused": params.precision != "16-mixed"}
    of_muon = {"momentum": params.momentum, "adjust_lr_fn": params.muon_lr}
    return MuonWithAdamW(groups, muon={"lr": params.lr} | of_muon, adamw={"lr": params.lr} | of_adamw)


def make_optimizer(model: nn.Module, params: TrainParams) -> Optimizer:
    """Return the optimizer of `params` over all trainable parameters of `model`. Only matrices decay."""
    if isinstance(model, LM) and by_role(model.model_params, params):  # muP
        return optimizers[params.optimizer](groups_by_role(model, params), params)  # muP
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay, "name": "matrices"},
        {"params": others, "weight_decay": 0.0, "name": "others"},
    ]
    return optimizers[params.optimizer]([group for group in groups if group["params"]], params)


def lr_mults(params: TrainParams) -> dict[ParameterKind, float]:
    return {
        "embedding": params.lr_embedding_mult,
        "hidden": params.lr_hidden_mult,
        "readout": params.lr_readout_mult,
        "vector": params.lr_vector_mult,
    }


def by_role(model: ModelParams, params: TrainParams) -> bool:
    """Return True if the optimizer treats parameters by their muP role."""
    return (
        model.parametrization != "standard"  # muP
        or params.optimizer == "muon"
        or any(mult != 1 for mult in lr_mults(params).values())
    )


def groups_by_role(model: LM, params: TrainParams) -> list[dict]:
    rule: UpdateRule = "sgd" if params.optimizer == "sgd" else "adam"
    groups = param_groups(
        model,
        roles_of(model),
        params.lr,
        rule=params.muon_lr if params.optimizer == "muon" else rule,
        weight_decay=params.weight_decay,
        eps=params.adam_eps,
        weight_decay_scaling=params.weight_decay_scaling,
        scale_eps=params.scale_adam_eps,
        lr_mults=lr_mults(params),
    )
    # The statistic "lr" is the one of the first group.
    return sorted(groups, key=lambda group: group["lr_scale"] != 1)


class GroupSettings(NamedTuple):
    """Settings of a parameter group at this step."""

    name: str
    lr: float
    weight_decay: float
    eps: float | None


def group_settings(optimizer: Optimizer) -> list[GroupSettings]:
    groups = enumerate(optimizer.param_groups)
    return [
        GroupSettings(
            group.get("name", str(i)), group.get("lr", 0.0), group.get("weight_decay", 0.0), group.get("eps")
        )
        for i, group in groups
    ]


def freeze(model: LM, params: TrainParams) -> None:
    """Exclude from training the parameters that `freeze` names and, with LoRA, all but LoRA's own."""
    frozen = frozen_names(
        [name for name, _ in model.named_parameters()], params.freeze, model.model_params.lora_rank
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def frozen_names(names: Iterable[str], patterns: tuple[str, ...], lora_rank: int = 0) -> set[str]:
    """Return the parameter names that `freeze` and LoRA exclude from training.

    Raise ValueError for a pattern that matches nothing, or if nothing is left to train.
    """
    names = list(names)
    frozen = {name for name in names if lora_rank and not is_lora(name)}
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            near = nearest(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"freeze={patterns!r}: none of {len(names)} parameters matches {pattern!r}; there are {', '.join(near)} ..."
            )
        frozen |= fitting
    if len(frozen) == len(names):
        because = (
            f"freeze={patterns!r}" if patterns else f"lora_rank={lora_rank} without a linear map of ours"
        )
        raise ValueError(f"{because} leaves nothing to train")
    return frozen
