"""Check that layer kinds support the fields of an architecture, before anything is built."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from types import NoneType
from typing import Literal, get_args, get_origin

from common.text import did_you_mean
from model.context import Refused, layer_kinds
from model.model_params import ModelParams
from model.transformer.embeddings import acts_in_attention, position_kinds
from model.transformer.norms import norms
from model.transformer.scaling import base_dim  # muP
from model.transformer.transformerencoderlayer import activations

MODEL_REGISTRIES: dict[str, Mapping[str, object]] = {
    "layer_architecture": layer_kinds,
    "positions": position_kinds,
    "norm": norms,
    "activation": activations,
}
FIELDS = {field.name: field for field in fields(ModelParams)}


def model_problems(model_params: ModelParams) -> Iterator[str]:
    """Yield an error message for each name that is not registered, or else for each value that a layer kind refuses.

    A model without problems may still be refused by the `__init__` of a layer, with a ValueError.
    """
    names = list(unknown_names(model_params))
    yield from names or refused_values(model_params)


def unknown_names(p: ModelParams) -> Iterator[str]:
    for field, registry in MODEL_REGISTRIES.items():
        value = getattr(p, field)
        for name in dict.fromkeys(p.kinds if field == "layer_architecture" else [value]):
            yield from unknown_name(name, registry, f"{field}={value!r}")


def unknown_name(name: str, existing: Collection[str], setting: str) -> Iterator[str]:
    if name not in existing:
        what = setting if setting.endswith(f"={name!r}") else f"{setting}: {name!r}"
        yield f"{what} does not exist; {did_you_mean(name, existing, list_all=True)}"


def refused_values(p: ModelParams) -> Iterator[str]:
    """Yield an error message for each field whose value does not work with the layer kinds of the model."""
    for kind in dict.fromkeys(p.kinds):
        # A kind that is a function, or a class without `refuses`, refuses nothing.
        for name, refused in getattr(layer_kinds[kind], "refuses", {}).items():
            if name not in FIELDS:
                yield f"layer kind {kind!r} refuses values of {name!r}, which is not a field of ModelParams"
            elif is_refused(value := getattr(p, name), refused):
                yield (
                    f"{name}={value!r} does not work with layer_architecture={kind!r}; "
                    f"use {allowed_values(name, refused)}"
                )
    if acts_in_attention(p.positions) and not any(map(has_attention, p.kinds)):
        yield (
            f"positions={p.positions!r} needs attention, but layer_architecture={p.layer_architecture!r} has none; "
            f"use {allowed_values('positions', acts_in_attention)}"
        )
    n_base_heads = p.mup_base_heads or p.n_heads  # muP
    if p.parametrization != "standard" and base_dim(p) % n_base_heads:  # muP
        yield (
            f"mup_base_dim={base_dim(p)} must be a multiple of the number of heads in the base, which is {n_base_heads}; "
            "set mup_base_heads"
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
