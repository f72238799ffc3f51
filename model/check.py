"""Whether an architecture exists, before anything is built."""

from collections.abc import Collection
from difflib import get_close_matches

from torch import nn

from model.embeddings import position_kinds
from model.model_params import ModelParams
from model.transformer.transformer import layer_kinds
from model.transformer.transformerencoderlayer import activations


def check_model(model_params: ModelParams) -> None:
    """ValueError for a name that no registry has, or for positions that the layers would ignore."""
    kind, positions = model_params.layer_architecture, model_params.positions
    check_name("layer_architecture", kind, layer_kinds)
    check_name("positions", positions, position_kinds)
    check_name("activation", model_params.activation, activations)
    on_heads = position_kinds[positions].on_heads is not nn.Identity
    if on_heads and not layer_kinds[kind].applies_head_positions:
        others = [name for name, places in position_kinds.items() if places.on_heads is nn.Identity]
        raise ValueError(
            f"positions={positions!r} acts on queries and keys inside a layer, which layer_architecture={kind!r} "
            f"does not let it; take positions from {', '.join(others)}"
        )


def check_name(field: str, value: str, existing: Collection[str]) -> None:
    if value in existing:
        return
    near = get_close_matches(value, existing, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{field}={value!r} does not exist; {hint}there are: {', '.join(existing)}")
