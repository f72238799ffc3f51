"""muP for any nn.Module: find the role of every parameter from shapes alone, and scale init and optimizer by it.

    base = make_base_shapes(Net(width=64), Net(width=128))
    model = Net(width=1024)
    make_readouts(model, base)
    init_(model, roles(model, base), drawn="fan_in")
    optimizer = torch.optim.AdamW(param_groups(model, roles(model, base), lr=1e-2))

Roles are recomputed whenever they are needed and stored nowhere, so copying, saving and compiling cannot lose them.
Source: Tensor Programs V (arXiv:2203.03466), table 8. This whole file serves muP.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from model.mup.base_shapes import Shapes
from model.mup.scores import keep_factors, scale_scores  # noqa: F401 -- part of the recipe
from model.transformer.lora import LoRALinear
from model.transformer.scaling import Readout

ParameterKind = Literal["embedding", "hidden", "readout", "vector"]
UpdateRule = Literal["adam", "sgd", "original", "match_rms_adamw"]  # the last two: of torch.optim.Muon
DecayScaling = Literal["mup", "sqrt", "none"]
Drawn = Literal["constant", "fan_in", "fan_out", "xavier"]
INITIALIZED = "mup_initialized"  # marks modules whose weights init_ has scaled


class Role(NamedTuple):
    """The kind of a parameter in a model that grows with width, and its growth over the base.

    - embedding: a matrix from a fixed size to a width, such as a first layer.
    - hidden: a matrix from a width to a width.
    - readout: a matrix from a width to a fixed size.
    - vector: everything else, such as biases and gains.
    """

    kind: ParameterKind
    m_in: float = 1.0  # fan-in divided by the base's fan-in; 1 if it does not grow
    m_out: float = 1.0  # the same for the fan-out
    depth: float = 1.0  # of CompleteP: number of layers divided by that of the base

    @property
    def gradient_mult(self) -> float:
        """Factor by which the gradients are smaller than in the base."""
        return (self.m_in if self.kind == "readout" else self.m_out) * self.depth


class ParameterUse(NamedTuple):
    """The module that uses a parameter, and the parameter's name there."""

    name: str  # of the parameter in the model
    module: nn.Module


def roles(model: nn.Module, base: Shapes, check: bool = True) -> dict[str, Role]:
    """Return the role of each parameter, by the names of `model.named_parameters()`.

    Raise ValueError for a parameter without a known role. With `check`, also for an nn.Linear from a width to a fixed
    size that is not a Readout. Without `check` such a map counts as hidden.
    """
    places = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            places[parameter].append(ParameterUse(name, module))
    if check:
        for parameter, users in places.items():
            for place in users:
                check_readout(place, parameter, base_shape_of(parameter, users, base))
    return {name: role_of(parameter, places[parameter], base) for name, parameter in model.named_parameters()}


def base_shape_of(parameter: Tensor, places: list[ParameterUse], base: Shapes) -> tuple[int | None, ...]:
    name = next((place.name for place in places if place.name in base), places[0].name)
    shape = base.get(name)
    if shape is None or len(shape) != parameter.ndim:
        raise ValueError(
            f"{name} of shape {tuple(parameter.shape)} has the base shape {shape}: make base shapes of the same architecture"
        )
    return shape


def growing_dimensions(shape: tuple[int | None, ...]) -> list[int]:
    """Return the dimensions that grow with width."""
    return [i for i, n in enumerate(shape) if n is not None]


def role_of(parameter: Tensor, places: list[ParameterUse], base: Shapes) -> Role:
    """Return the role of a parameter that is used at `places`. A matrix shared with an embedding is an embedding."""
    base_shape, module = base_shape_of(parameter, places, base), places[0].module
    ratios = [1.0 if n0 is None else n / n0 for n, n0 in zip(parameter.shape, base_shape, strict=True)]
    grown = growing_dimensions(base_shape)
    if len(grown) > 2:
        raise ValueError(
            f"{places[0].name} of shape {tuple(parameter.shape)} grows in {len(grown)} dimensions, but muP has rules for up to 2"
        )
    if any(isinstance(place.module, nn.Embedding) for place in places):
        return Role("embedding", m_out=math.prod(ratios))
    if parameter.ndim < 2 or not grown:
        return Role("vector", m_out=math.prod(ratios))
    i_in, i_out = fan_dimensions(module, grown)
    if isinstance(module, Readout):
        return Role("readout", m_in=ratios[i_in])
    if i_in in grown or isinstance(module, LoRALinear):
        return Role("hidden", ratios[i_in], ratios[i_out])
    return Role("embedding" if is_map(module) else "vector", m_out=ratios[i_out])


def check_readout(place: ParameterUse, parameter: Tensor, base_shape: tuple[int | None, ...]) -> None:
    """Raise ValueError for a map from a width to a fixed size that is not a Readout.

    The matrices of LoRA are exempt: they map to a fixed rank.
    """
    if parameter.ndim < 2 or not is_map(place.module) or isinstance(place.module, Readout | LoRALinear):
        return
    grown = growing_dimensions(base_shape)
    i_in, i_out = fan_dimensions(place.module, grown)
    if i_in in grown and i_out not in grown:
        raise ValueError(
            f"{place.name.rpartition('.')[0] or place.name} is a linear map from a width ({parameter.shape[i_in]}) to a "
            f"fixed size ({parameter.shape[i_out]}), but not a readout: make it a model.transformer.scaling.Readout, as "
            "make_readouts does, or let both sizes grow"
        )


def is_map(module: nn.Module) -> bool:
    """Return True for a linear map or convolution, with matrices [out, in], or [in, out] for Conv1D of transformers."""
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def fan_dimensions(module: nn.Module, grown: list[int]) -> tuple[int, int]:
    """Return the input dimension and the output dimension of a matrix."""
    if is_conv1d(module):
        return 0, 1
    if is_map(module):
        return 1, 0
    # The use of the parameter is unknown. As in the package mup, the last of two growing dimensions is the input, and
    # a single one is the output.
    return (grown[-1], grown[0]) if len(grown) == 2 else (-1, grown[0])


def make_readouts(model: nn.Module, base: Shapes, names: Collection[str] | None = None) -> list[str]:
    """Replace each nn.Linear from a width to a fixed size, or those in `names`, by a Readout; return their names.

    Weights stay the same tensors, shared ones included. Call this before you make an optimizer.
    Raise ValueError for a name that is not an nn.Linear whose input is a width.
    """
    made = []
    for name, module in list(model.named_modules()):
        n_out, n_in = base_shape_of_map(model, name, base)
        if type(module) is nn.Linear and n_in and (not n_out if names is None else name in names):
            with torch.device("meta"):
                readout = Readout(module.in_features, module.out_features, module.bias is not None)
            readout.mult = n_in / module.in_features
            if readout.mult != 1:
                keep_factors(model)
            readout.weight, readout.bias = module.weight, module.bias
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, readout)
            made.append(name)
    if missing := sorted(set(names or ()) - set(made)):
        raise ValueError(f"{missing[0]} is not an nn.Linear whose input is a width")
    return made


def base_shape_of_map(model: nn.Module, name: str, base: Shapes) -> tuple[int | None, ...]:
    """Return the base shape of a module's weight, under any of its names; (None, None) if it is not a matrix."""
    every = dict(model.named_parameters(remove_duplicate=False))
    weight = every.get(f"{name}.weight".lstrip("."))
    shapes = [base[other] for other, parameter in every.items() if parameter is weight and other in base]
    return shapes[0] if shapes and len(shapes[0]) == 2 else (None, None)


@torch.no_grad()
def init_(model: nn.Module, roles: Mapping[str, Role], drawn: Drawn = "constant") -> None:
    """Rescale a model's initial weights to those of muP. Raise ValueError if called twice for a model.

    `drawn` says how the deviation of a freshly drawn matrix depends on its size:
    - "constant": it does not, as in transformers.
    - "fan_in", "fan_out", "xavier": it falls as 1 / sqrt(fan-in), 1 / sqrt(fan-out) or 1 / sqrt(their sum).

    In all but the first case nn.Embedding has a constant deviation. Biases are drawn as torch draws them, by fan-in.
    """
    if drawn not in get_args(Drawn):
        raise ValueError(f"drawn={drawn!r}; allowed: {', '.join(get_args(Drawn))}")
    places = {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()}
    if any(vars(module).get(INITIALIZED) for module in places.values()):
        raise ValueError("init_ has already scaled the weights of this model: build the model again")
    for name, parameter in model.named_parameters():
        factor = init_factor(name, parameter, places[name], roles, drawn)
        if factor != 1:
            parameter.mul_(factor)
    for module in places.values():
        setattr(module, INITIALIZED, True)


def init_factor(
    name: str, parameter: Tensor, module: nn.Module, roles: Mapping[str, Role], drawn: Drawn
) -> float:
    """Return the factor of a parameter: its standard deviation in muP divided by the one it was drawn with."""
    role = roles[name]
    target = role.m_in**-0.5 if role.kind == "hidden" else 1.0
    if drawn == "constant" or isinstance(module, nn.Embedding):
        return target
    if role.kind == "vector":  # a bias is drawn like the weight beside it
        path, _, own = name.rpartition(".")
        beside = roles.get(f"{path}.{own.replace('bias', 'weight')}".lstrip("."), role)
        return beside.m_in**0.5
    if drawn == "fan_in":
        return target * role.m_in**0.5
    if drawn == "fan_out":
        return target * role.m_out**0.5
    i_in, i_out = fan_dimensions(module, [0, 1])
    n_in, n_out = parameter.shape[i_in], parameter.shape[i_out]
    return target * ((n_in + n_out) / (n_in / role.m_in + n_out / role.m_out)) ** 0.5


def lr_factor(role: Role, rule: UpdateRule) -> float:
    """Return the learning rate of a parameter divided by its learning rate in the base model."""
    if rule == "sgd":
        return {"hidden": role.m_out / role.m_in, "readout": role.m_in}.get(role.kind, role.m_out)
    if role.kind != "hidden" or rule == "original":
        return 1.0
    return max(role.m_in, role.m_out) ** -0.5 if rule == "match_rms_adamw" else 1 / role.m_in


DECAY_FACTORS: dict[DecayScaling, Callable[[float], float]] = {
    "mup": lambda factor: 1 / factor,  # lr * weight_decay is the same at any width
    "sqrt": lambda factor: factor**-0.5,
    "none": lambda factor: 1.0,
}


def is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2


def param_groups(
    model: nn.Module,
    roles: Mapping[str, Role],
    lr: float,
    *,
    rule: UpdateRule = "adam",
    weight_decay: float = 0.0,
    eps: float | None = 1e-8,
    weight_decay_scaling: DecayScaling = "mup",
    scale_eps: bool = True,
    lr_mults: Mapping[ParameterKind, float] | None = None,
    decays: Callable[[Tensor], bool] = is_matrix,
) -> list[dict[str, Any]]:
    """Return optimizer groups, with names, over all trainable parameters. At the base all have the same settings.

    `rule` says how updates depend on gradients. Muon's rules apply to hidden matrices only; their groups have "muon".
    The other parameters follow "adam". `lr_mults` are factors of lr by kind. "lr_scale" in a group is its lr over `lr`.
    """
    groups: dict[tuple[object, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role = roles[name]
        muon = rule in ("original", "match_rms_adamw") and role.kind == "hidden" and parameter.ndim == 2
        own_rule: UpdateRule = rule if muon or rule == "sgd" else "adam"
        factor = lr_factor(role, own_rule)
        scale = factor * (lr_mults or {}).get(role.kind, 1.0)
        decay = weight_decay * DECAY_FACTORS[weight_decay_scaling](factor) if decays(parameter) else 0.0
        settings: dict[str, Any] = {"lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
        if own_rule == "adam" and eps is not None:
            settings["eps"] = eps / role.gradient_mult if scale_eps else eps
        if muon:
            settings["muon"] = True
        key = (role.kind, decays(parameter), *settings.items())
        groups.setdefault(key, settings | {"name": role.kind, "params": []})["params"].append(parameter)
    name_groups(groups.values())
    return list(groups.values())


def name_groups(groups: Collection[dict[str, Any]]) -> None:
    """Extend the names of the groups by the factor of lr, and by other settings in which they differ: "hidden x0.125"."""
    for group in groups:
        if group["lr_scale"] != 1:
            group["name"] += f" x{group['lr_scale']:g}"
    for setting in ("weight_decay", "eps"):
        values = defaultdict(set)
        for group in groups:
            values[group["name"]].add(group.get(setting))
        for group in groups:
            if len(values[group["name"]]) > 1:
                group["name"] += f" {setting} {group[setting]:g}"
