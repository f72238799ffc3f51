"""Check that layer kinds support the fields of an architecture, before anything is built."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from types import NoneType
from typing import Literal, get_args, get_origin

from common.text import OWN_NAME, did_you_mean
from model.context import Refused, layer_kinds
from model.model_params import ModelParams
from model.transformer.embeddings import NoPositions, acts_in_attention, position_kinds
from model.transformer.linear import initial_weights
from model.transformer.norms import norms
from model.transformer.rotary_scaling import scaling_problem
from model.transformer.scaling import base_dim  # muP
from model.transformer.share import share_problems
from model.transformer.transformerencoderlayer import activations

MODEL_REGISTRIES: dict[str, Mapping[str, object]] = {
    "layer_architecture": layer_kinds,
    "positions": position_kinds,
    "norm": norms,
    "activation": activations,
    "init": initial_weights,
}
FIELDS = {field.name: field for field in fields(ModelParams)}


def model_problems(model_params: ModelParams) -> Iterator[str]:
    """Yield an error message for each name that is not registered, or else for each value that a layer kind refuses.

    A model without problems may still be refused by the `__init__` of a layer, with a ValueError.
    """
    names = [*unknown_names(model_params), *share_problems(model_params)]
    yield from names or refused_values(model_params)


def unknown_names(p: ModelParams) -> Iterator[str]:
    for field, registry in MODEL_REGISTRIES.items():
        for name in dict.fromkeys(p.values_of(field)):
            yield from unknown_name(name, registry, f"{field}={getattr(p, field)!r}")


def unknown_name(name: str, existing: Collection[str], setting: str) -> Iterator[str]:
    if name not in existing:
        what = setting if setting.endswith(f"={name!r}") else f"{setting}: {name!r}"
        own = OWN_NAME if existing is layer_kinds or existing is norms else ""
        yield f"{what} does not exist; {did_you_mean(name, existing, list_all=True)}{own}"


def refused_values(p: ModelParams) -> Iterator[str]:
    """Yield an error message for each field whose value does not work in the model, or in one of its layers."""
    yield from dict.fromkeys(problem for own in p.each_layer() for problem in problems_of_layer(own, p.turns))
    yield from position_problems(p)
    shapes = {
        (own.kv_heads, own.head_width) for own in p.each_layer() if has_attention(own.layer_architecture)
    }
    if p.value_residual and len(shapes) > 1:
        yield (
            "value_residual=True mixes values of all layers, which needs the same n_kv_heads and head_dim in each"
        )
    if p.readout_transform and "activation" in p.turns:
        yield (
            f"readout_transform=True has one activation, but activation={p.activation!r} differs by layer; "
            "use one value"
        )


def problems_of_layer(p: ModelParams, turns: Collection[str]) -> Iterator[str]:
    """Yield an error message for each value that layer `p.layer_index` refuses. `turns` are fields that differ by layer."""
    kind = p.layer_architecture
    # A kind that is a function, or a class without `refuses`, refuses nothing.
    for name, refused in getattr(layer_kinds[kind], "refuses", {}).items():
        if name not in FIELDS:
            yield f"layer kind {kind!r} refuses values of {name!r}, which is not a field of ModelParams"
        elif is_refused(value := getattr(p, name), refused):
            where = f"layer {p.layer_index}: " if name in turns else ""
            yield (
                f"{where}{name}={value!r} does not work with layer_architecture={kind!r}; "
                f"use {allowed_values(name, refused)}"
            )
    if problem := scaling_problem(p.rotary_scaling, p.rotary_base):
        yield f"layer {p.layer_index}: {problem}" if "rotary_scaling" in turns else problem
    if p.parametrization == "standard":
        return
    n_base_heads = p.mup_base_heads or p.n_heads  # muP
    if p.head_dim is None and base_dim(p) % n_base_heads:  # muP
        yield (
            f"mup_base_dim={base_dim(p)} must be a multiple of the number of heads in the base, which is {n_base_heads}; "
            "set mup_base_heads"
        )
    if p.head_dim is not None and p.n_heads * base_dim(p) != n_base_heads * p.dim:  # muP
        yield (
            f"head_dim={p.head_dim} with parametrization={p.parametrization!r} needs n_heads={p.n_heads} to grow with "
            f"dim={p.dim} from mup_base_heads={n_base_heads} at mup_base_dim={base_dim(p)}"
        )


def position_problems(p: ModelParams) -> Iterator[str]:
    """Yield an error message for positions that no layer can apply, or that cannot take turns."""
    in_attention = [name for name in p.values_of("positions") if acts_in_attention(name)]
    for name in dict.fromkeys(in_attention):
        kinds = tuple(
            dict.fromkeys(own.layer_architecture for own in p.each_layer() if own.positions == name)
        )
        if not any(map(has_attention, kinds)):
            kind = p.layer_architecture if len(kinds) > 1 else kinds[0]
            first = next(own.layer_index for own in p.each_layer() if own.positions == name)
            where = f"layer {first}: " if "positions" in p.turns else ""
            yield (
                f"{where}positions={name!r} needs attention, but layer_architecture={kind!r} has none; "
                f"use {allowed_values('positions', acts_in_attention)}"
            )
    if "positions" in p.turns:
        for name in p.positions:
            if position_kinds[name].on_embeddings is not NoPositions:
                yield (
                    f"positions={p.positions!r}: {name!r} is added to the embeddings, before all layers, so it cannot "
                    "take turns"
                )


def has_attention(kind: str) -> bool:
    """Return False if a layer kind declares that it has no attention. Kinds that are functions count as having it."""
    return getattr(layer_kinds[kind], "has_attention", True)


def is_refused(value: object, refused: Refused) -> bool:
    return refused(value) if callable(refused) else value in refused


def allowed_values(name: str, refused: Refused) -> str:
    """Return the values of a field that are not refused, such as "norm='layernorm'" or "one of: pre, post"."""
    values = (
        list(MODEL_REGISTRIES.get(name, ())) or literal_values(FIELDS[name].type) or [FIELDS[name].default]
    )
    if not callable(refused) and not set(refused) <= set(values):
        return f"another value than {', '.join(map(repr, refused))}"
    allowed = [value for value in values if not is_refused(value, refused)]
    if not allowed:
        return "another layer kind"
    return f"{name}={allowed[0]!r}" if len(allowed) == 1 else f"one of: {', '.join(map(str, allowed))}"


def literal_values(annotation: object) -> list[object]:
    """Return the literals, booleans and None that an annotation names; [] for a number or a string."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if annotation in (bool, NoneType):
        return [False, True] if annotation is bool else [None]
    return [value for part in get_args(annotation) for value in literal_values(part)]
