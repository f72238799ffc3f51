"""What a layer may look at besides its input, and where it leaves what a caller asked for.

Shape suffixes:  B batch  T position  D model dim
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Context:
    """One forward pass, as its layers see it."""

    ids_BT: Tensor  # the tokens themselves
    attn_requests: Any = None  # whatever the caller wants attention to know
    wanted: Collection[str] = ()  # names of the activations to record, in every layer
    recorded: dict[str, Tensor] = field(default_factory=dict)  # "layers.0.pattern" and so on
    layer: int = 0  # the layer at work, its index in the stack

    def wants(self, name: str) -> bool:
        return name in self.wanted

    def tap(self, name: str, x: Tensor) -> Tensor:
        """`x` itself, recorded under its layer and name if wanted. All looking inside goes through here."""
        if name in self.wanted:
            self.recorded[f"layers.{self.layer}.{name}"] = x
        return x

    def of_all_layers(self, name: str) -> list[Tensor]:
        """What was recorded under `name`, in the order of the layers that have it."""
        return [x for key, x in self.recorded.items() if key.split(".", 2)[2] == name]


class Layer(nn.Module):
    """A layer that takes `(x_BTD, ctx)`. Any other module in the stack is called with `x_BTD` alone."""

    applies_head_positions = False  # whether positions that act on queries and keys, such as rotary, reach it
