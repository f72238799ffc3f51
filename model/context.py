"""What a layer may look at besides its input, what it may keep for the next token, and where its activations are seen.

Shape suffixes:  B batch  T position  D model dim
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from model.model_params import ModelParams


class Tap(Protocol):
    """Someone who looks at activations by name, and may put another tensor in their place."""

    def wants(self, name: str) -> bool: ...
    def __call__(self, name: str, x: Tensor) -> Tensor: ...


class Uncacheable(ValueError):
    """Raised where a forward pass cannot go on from what was kept of an earlier one."""


class Cache:
    """What layers keep of the tokens they have gone through, by name, batch first: generation goes on from there."""

    def __init__(self, length: int) -> None:
        self.length = length  # tokens there is room for
        self.seen = 0  # tokens gone through
        self.kept: dict[str, Tensor] = {}

    def take(self, rows_B: Tensor) -> None:
        """Go on with these rows of the batch, in this order."""
        self.kept = {name: kept[rows_B] for name, kept in self.kept.items()}


class AddedLosses(dict[str, Tensor]):
    """The weighted losses that layers added in the last forward pass of `LM.get_batch_xyz`. A copy of a model has none."""

    wanted = False  # generation has no use for them

    def __reduce__(self) -> tuple:
        return AddedLosses, ()


@dataclass
class Context:
    """One forward pass, as its layers see it. With a cache x_BTD holds the last T tokens only, ids_BT all so far."""

    ids_BT: Tensor
    attn_requests: Any = None  # whatever the caller wants attention to know
    taps: Sequence[Tap] = ()
    cache: Cache | None = None
    real_BT: Tensor | None = None  # False at padding, which no real token may see; None: there is none
    padding_B: Tensor | None = None  # how many positions of padding rows begin with; None: no row does
    layer: int | None = None  # the layer at work, its number in Transformer.passes; None outside of it
    shared: dict[str, Any] = field(default_factory=dict)  # for layers of this forward pass, to hand things on
    losses: dict[str, Tensor] = field(default_factory=dict)  # by `add_loss`
    written: set[tuple[str, int | None, str]] = field(default_factory=set)  # see `claim`

    @property
    def start(self) -> int:
        """The position of the first token in x_BTD."""
        return 0 if self.cache is None else self.cache.seen

    def named(self, name: str) -> str:
        return name if self.layer is None else f"layers.{self.layer}.{name}"

    def claim(self, what: str, name: str) -> None:
        """Raise ValueError if this forward pass has written to the name before: one of the two would be lost."""
        if (key := (what, self.layer, name)) in self.written:
            raise ValueError(
                f"{what} {self.named(name)!r} is written twice in one forward pass; give each writer a name of its "
                "own, and a layer that comes again another number in Transformer.passes"
            )
        self.written.add(key)

    def wants(self, name: str) -> bool:
        return any(tap.wants(self.named(name)) for tap in self.taps)

    def tap(self, name: str, x: Tensor) -> Tensor:
        """`x`, or what someone puts in its place. All looking inside, and all patching, goes through here.

        ValueError for a name that was given before in this forward pass.
        """
        self.claim("activation", name)
        for tap in self.taps:
            x = tap(self.named(name), x)
        return x

    def add_loss(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add `weight * value`, a scalar, to the loss that is trained on. Losses of one name add up over the layers.

        `LM.get_losses` gives them beside "main". ValueError for the name "main", or for a value that is no scalar.
        """
        if name == "main":
            raise ValueError("ctx.add_loss: 'main' is the loss of the predictions; take another name")
        if value.dim():
            raise ValueError(f"ctx.add_loss({name!r}): a loss is a scalar, not of shape {tuple(value.shape)}")
        added = weight * value
        self.losses[name] = self.losses[name] + added if name in self.losses else added

    def with_past(self, name: str, x: Tensor, dim: int) -> Tensor:
        """`x` behind all that was given under this name for earlier tokens; `dim` is that of positions."""
        self.claim("cache entry", name)
        if self.cache is None:
            return x
        name = self.named(name)
        room, end = self.cache.kept.get(name), self.start + x.shape[dim]
        if room is None:
            room = x.new_empty([*x.shape[:dim], self.cache.length, *x.shape[dim + 1 :]])
            self.cache.kept[name] = room
        room.narrow(dim, self.start, x.shape[dim]).copy_(x)
        return room.narrow(dim, 0, end)

    def recall(self, name: str) -> Tensor | None:
        """What was kept under this name at the end of the tokens so far; None at the start.

        ValueError for rows padded on the left: a state would go through the padding.
        """
        if self.padding_B is not None:
            raise ValueError(
                f"mask has padding at the left of rows, which would enter the state of {self.named(name)}: pad on the right"
            )
        return None if self.cache is None else self.cache.kept.get(self.named(name))

    def keep(self, name: str, state: Tensor) -> None:
        """Leave a state, batch first, for the tokens to come."""
        self.claim("cache entry", name)
        if self.cache is not None:
            self.cache.kept[self.named(name)] = state


class Layer(nn.Module):
    """A layer that takes `(x_BTD, ctx)`. Any other module in the stack is called with `x_BTD` alone."""

    has_attention = True  # False: positions that act inside attention mean nothing to layers of this kind

    @classmethod
    def possible(cls, model_params: ModelParams) -> ModelParams:
        """The nearest architecture that layers of this kind can have: another one is refused."""
        return model_params

    @classmethod
    def problems(cls, model_params: ModelParams) -> Iterator[str]:
        """A sentence for what layers of this kind cannot do, and `possible` does not tell."""
        return iter(())


MakeLayer = Callable[..., nn.Module]  # (model_params, dropout) -> a Layer or any other module
layer_kinds: dict[str, MakeLayer] = {}


def layer_kind(name: str) -> Callable[[MakeLayer], MakeLayer]:
    """Makes the decorated class, or function that makes a module, available to `layer_architecture`."""

    def register(make: MakeLayer) -> MakeLayer:
        layer_kinds[name] = make
        return make

    return register
