"""Whether an architecture exists, before anything is built."""

from collections.abc import Iterator
from difflib import get_close_matches

from torch import nn

from model.embeddings import position_kinds
from model.model_params import ModelParams
from model.transformer.transformer import layer_kinds
from model.transformer.transformerencoderlayer import activations


def model_problems(model_params: ModelParams) -> Iterator[str]:
    """A sentence for each name that no registry has, and for positions that the layers would ignore."""
    kind, positions = model_params.layer_architecture, model_params.positions
    for field, name, existing in (
        ("layer_architecture", kind, layer_kinds.keys()),
        ("positions", positions, position_kinds.keys()),
        ("activation", model_params.activation, activations.keys()),
    ):
        if name not in existing:
            near = get_close_matches(name, existing, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            yield f"{field}={name!r} does not exist; {hint}there are: {', '.join(existing)}"
    usual = [name for name, places in position_kinds.items() if places.on_heads is nn.Identity]
    ignored = kind in layer_kinds and not layer_kinds[kind].applies_head_positions
    if ignored and positions in position_kinds.keys() - usual:
        yield (
            f"positions={positions!r} acts on queries and keys inside a layer, which layer_architecture={kind!r} "
            f"does not let it; take positions from {', '.join(usual)}"
        )
