"""Optimizers: the registry of update rules, and the settings of each parameter."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.registry import Registry
from common.text import did_you_mean, nearest
from model.lm import LM
from model.model_params import ModelParams
from model.mup.parametrization import ParameterKind, UpdateRule, param_groups  # muP
from model.shapes import roles_of
from model.transformer.lora import is_lora
from train.averages import averages_weights
from train.cautious import decay_cautiously
from train.library import by_name, library_names, trial_fault
from train.lion import Lion
from train.muon import MuonWithAdamW
from train.sharding import FSDP
from train.train_params import TrainParams

MakeOptimizer = Callable[[list[dict], TrainParams], Optimizer]
# The function is given parameter groups and the params. Its name is a value of `optimizer`.
optimizers: Registry[MakeOptimizer] = Registry("optimizer")


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


@optimizers.register
def lion(groups: list[dict], params: TrainParams) -> Optimizer:
    """Lion, the sign of an interpolated momentum; `lr` is 3 to 10 times lower than of adamw (arXiv:2302.06675)."""
    return Lion(groups, lr=params.lr, betas=params.betas)


# Optimizers of the package pytorch_optimizer. Its others are found by the names of their classes.
LIBRARY = "pytorch_optimizer"
INSTALL = "pip install -r requirements-optimizers.txt"
optimizers.add_lazy("soap", "train.library_optimizers")
optimizers.add_lazy("schedule-free", "train.library_optimizers")
optimizers.add_lazy("adopt", "train.library_optimizers")
optimizers.add_lazy("laprop", "train.library_optimizers")
optimizers.add_lazy("lamb", "train.library_optimizers")
OF_LIBRARY = frozenset(optimizers) - frozenset(optimizers.loaded())
# Their updates have the size of Adam's at every width, so that muP scales their learning rates alike.
SCALED_AS_ADAM = {"schedule-free", "adopt", "laprop"}


def is_of_library(name: str) -> bool:
    """Return True for an optimizer of pytorch_optimizer, and for a name that is not registered."""
    return name in OF_LIBRARY or name not in optimizers


def find_optimizer(name: str) -> MakeOptimizer:
    """Return the registered optimizer, or else that of pytorch_optimizer. Raise UnknownName if there is none."""
    if name not in optimizers and find_spec(LIBRARY) is not None and (make := by_name(name)) is not None:
        return make
    return optimizers[name]


def missing_optimizer(params: TrainParams) -> str | None:
    """Return an error message for an optimizer that does not exist, is not installed or cannot be used, or None."""
    name = params.optimizer
    if not is_of_library(name):
        return None
    if find_spec(LIBRARY) is None:
        if name in OF_LIBRARY:
            return f"optimizer={name!r} needs the package pytorch-optimizer: {INSTALL}"
        hint = did_you_mean(name, optimizers, list_all=True)
        return (
            f"optimizer={name!r} is not registered; {hint}; the package pytorch-optimizer has more: {INSTALL}"
        )
    if name in OF_LIBRARY:
        return None
    if name not in library_names():
        near = nearest(name, [*optimizers, *library_names()])
        hint = "".join(f"did you mean {one!r}? " for one in near) + f"there are: {', '.join(optimizers)}"
        return f"optimizer={name!r} is not registered; {hint}, and those of pytorch-optimizer"
    if fault := trial_fault(replace(params, random_seed=0)):
        return f"optimizer={name!r} of pytorch-optimizer does not work here: {fault}; use another one"
    return None


def optimizer_problems(params: TrainParams) -> Iterator[str]:
    """Yield an error message for an optimizer that cannot be used, and for settings that it does not support."""
    name = params.optimizer
    if problem := missing_optimizer(params):
        yield problem
        return
    is_schedule_free = name.replace("-", "").startswith("schedulefree")
    if is_of_library(name) and params.strategy == FSDP:
        yield f"optimizer={name!r} is not tested with strategy='fsdp'; use strategy='ddp'"
    if is_schedule_free and params.lr_schedule != "constant":
        yield (
            f"optimizer={name!r} averages weights in place of a schedule, but lr_schedule={params.lr_schedule!r}; set "
            "lr_schedule='constant', with a warm-up if you like"
        )
    if name == "schedule-free" and not params.betas[0]:
        yield f"optimizer={name!r} needs betas[0] above 0, not betas={params.betas}"
        return
    if params.ema_decay is not None and averages_weights(first_group(params)):
        yield f"optimizer={name!r} averages weights itself, so that ema_decay={params.ema_decay} has no place"
    if params.cautious_decay and (name == "sgd" or is_schedule_free):
        yield f"cautious_decay=True needs decoupled weight decay, but that of optimizer={name!r} is part of the gradient"
    if params.beta2_half_life is not None and not takes_betas(params):
        yield f"beta2_half_life={params.beta2_half_life} sets the second of betas, but optimizer={name!r} has none"


def takes_betas(params: TrainParams) -> bool:
    """Return True if the optimizer has our pair of betas for parameters outside the matrices of Muon."""
    return first_group(params).get("betas") == params.betas


def first_group(params: TrainParams) -> dict[str, Any]:
    """Return the parameter group that the optimizer makes of a single vector, with all its settings."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.0}]
    return find_optimizer(params.optimizer)(groups, params).param_groups[0]


def replace_beta2(params: TrainParams, beta2: float) -> TrainParams:
    """Return the params with another second beta."""
    return replace(params, betas=(params.betas[0], beta2))


def make_optimizer(model: nn.Module, params: TrainParams) -> Optimizer:
    """Return the optimizer of `params` over all trainable parameters of `model`. Only matrices decay."""
    optimizer = find_optimizer(params.optimizer)(make_groups(model, params), params)
    if params.cautious_decay:
        decay_cautiously(optimizer)
    return optimizer


def make_groups(model: nn.Module, params: TrainParams) -> list[dict]:
    """Return the parameter groups of the optimizer. Raise ValueError for a pattern of `param_groups` without effect."""
    if isinstance(model, LM) and by_role(model.model_params, params):  # muP
        return split_by_pattern(groups_by_role(model, params), model, params)  # muP
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay, "name": "matrices"},
        {"params": others, "weight_decay": 0.0, "name": "others"},
    ]
    return split_by_pattern([group for group in groups if group["params"]], model, params)


def split_by_pattern(groups: list[dict], model: nn.Module, params: TrainParams) -> list[dict]:
    """Return groups whose parameters match the same patterns of `param_groups`, with the settings of these."""
    if not params.param_groups:
        return groups
    if any("betas" in settings for settings in params.param_groups.values()) and not takes_betas(params):
        raise ValueError(f"param_groups sets betas, but optimizer={params.optimizer!r} has none")
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    patterns_of: defaultdict[str, list[str]] = defaultdict(list)
    for pattern in params.param_groups:
        for name in names_matching(pattern, list(names.values()), f"param_groups={params.param_groups!r}"):
            patterns_of[name].append(pattern)
    found = []
    for group in groups:
        parts: defaultdict[tuple[str, ...], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            parts[tuple(patterns_of[names[parameter]])].append(parameter)
        found += [(part, group_of(part, group, params) | {"params": parts[part]}) for part in parts]
    # The statistic "lr" is the one of the first group.
    return [group for _, group in sorted(found, key=lambda pair: len(pair[0]) > 0)]


def group_of(patterns: tuple[str, ...], group: dict, params: TrainParams) -> dict[str, Any]:
    """Return a group with the settings of all these patterns. Factors are multiplied, and the last `betas` hold."""
    lr, decay = group.get("lr", params.lr), group.get("weight_decay", 0.0)
    betas: dict[str, Any] = {}
    for pattern in patterns:
        settings = params.param_groups[pattern]
        lr *= settings.get("lr", 1.0)
        decay *= settings.get("weight_decay", 1.0)
        betas |= {key: value for key, value in settings.items() if key == "betas"}
        if betas and "muon" in group:
            raise ValueError(
                f"param_groups={params.param_groups!r}: {pattern!r} sets betas of matrices that optimizer='muon' "
                "updates without betas"
            )
    changed = group | {"lr": lr, "weight_decay": decay} | betas
    if patterns:
        changed["name"] = f"{group['name']} of {' and '.join(patterns)}"
    return changed


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
    eps = None if params.optimizer == "lion" else params.adam_eps
    groups = param_groups(
        model,
        roles_of(model),
        params.lr,
        rule=params.muon_lr if params.optimizer == "muon" else rule,
        weight_decay=params.weight_decay,
        eps=eps,
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


def set_up_training(model: LM, params: TrainParams) -> None:
    """Freeze parameters of `model`, and let it recompute activations, as `params` say."""
    freeze(model, params)
    model.decoder.recompute = params.recompute == "layer"


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
        frozen |= names_matching(pattern, names, f"freeze={patterns!r}")
    if len(frozen) == len(names):
        because = (
            f"freeze={patterns!r}" if patterns else f"lora_rank={lora_rank} without a linear map of ours"
        )
        raise ValueError(f"{because} leaves nothing to train")
    return frozen


def names_matching(pattern: str, names: list[str], setting: str) -> set[str]:
    """Return the parameter names that match a pattern of `setting`. Raise ValueError if there are none."""
    matching = {name for name in names if fnmatchcase(name, pattern)}
    if not matching:
        near = nearest(pattern, names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(
            f"{setting}: none of {len(names)} parameters matches {pattern!r}; there are {', '.join(near)} ..."
        )
    return matching
