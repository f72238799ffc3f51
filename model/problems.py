"""Check that an architecture is possible, before anything is built."""

from collections.abc import Collection, Iterator
from dataclasses import asdict

from common.text import did_you_mean
from model.context import Layer, layer_kinds
from model.model_params import ModelParams
from model.transformer.embeddings import position_kinds
from model.transformer.norms import norms
from model.transformer.scaling import base_dim  # muP
from model.transformer.transformerencoderlayer import activations


def model_problems(model_params: ModelParams) -> Iterator[str]:
    """Yield an error message for each unregistered name, or else for each setting that a layer kind cannot have."""
    names = list(unknown_names(model_params))
    yield from names or unlike_what_is_asked(model_params)


def unknown_names(p: ModelParams) -> Iterator[str]:
    for kind in dict.fromkeys(p.kinds):
        yield from unknown(kind, layer_kinds, f"layer_architecture={p.layer_architecture!r}")
    yield from unknown(p.positions, position_kinds, f"positions={p.positions!r}")
    yield from unknown(p.norm, norms, f"norm={p.norm!r}")
    yield from unknown(p.activation, activations, f"activation={p.activation!r}")


def unknown(name: str, existing: Collection[str], setting: str) -> Iterator[str]:
    if name not in existing:
        what = setting if setting.endswith(f"={name!r}") else f"{setting}: {name!r}"
        yield f"{what} does not exist; {did_you_mean(name, existing, list_all=True)}"


def unlike_what_is_asked(p: ModelParams) -> Iterator[str]:
    for kind in dict.fromkeys(p.kinds):
        if lacking := settings_not_in(layer_class(kind).possible(p), p):
            yield f"{', '.join(lacking)} cannot be had with layer_architecture={kind!r}; custom-transformer takes them"
        yield from layer_class(kind).problems(p)
    n_base_heads = p.mup_base_heads or p.n_heads  # muP
    if p.parametrization != "standard" and base_dim(p) % n_base_heads:  # muP
        yield (
            f"mup_base_dim={base_dim(p)} cannot be divided among {n_base_heads} heads: mup_base_heads is their number in "
            "the base"
        )
    acts_in_attention = position_kinds[p.positions].acts_in_attention
    if acts_in_attention and all(not layer_class(kind).has_attention for kind in p.kinds):
        others = ", ".join(name for name, at in position_kinds.items() if not at.acts_in_attention)
        yield (
            f"positions={p.positions!r} acts inside attention, but layer_architecture={p.layer_architecture!r} has none "
            f"that supports this; use one of: {others}"
        )


def layer_class(kind: str) -> type[Layer]:
    """Return the registered Layer class, or plain `Layer` for kinds registered as functions.

    Nothing is known about the constraints of such a function.
    """
    make = layer_kinds[kind]
    return make if isinstance(make, type) and issubclass(make, Layer) else Layer


def settings_not_in(other: ModelParams, p: ModelParams) -> list[str]:
    """Return `field=value` for the fields of `p` that have another value in `other`."""
    others = asdict(other)
    return [f"{name}={value!r}" for name, value in asdict(p).items() if value != others[name]]
