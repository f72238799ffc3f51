"""Interface between a layer and the forward pass: side inputs, cached state, activations and added losses.

Shape suffixes:  B batch  T position  D model dim
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from common.registry import Registry


class Tap(Protocol):
    """An observer of activations by name, which may also replace them."""

    def wants(self, name: str) -> bool: ...
    def __call__(self, name: str, x: Tensor) -> Tensor: ...


class Uncacheable(ValueError):
    """Raised if a forward pass cannot continue from a cache."""


class Cache:
    """State of layers after the tokens so far, by name, batch first. Generation continues from it."""

    def __init__(self, length: int, n_logits: int | None = None) -> None:
        self.length = length  # largest number of tokens
        self.n_logits = n_logits  # the unembedding gets as many of the last positions; None: all
        self.seen = 0  # number of tokens so far
        self.kept: dict[str, Tensor] = {}

    def take(self, rows_B: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        # One tensor after the other, so that the old and the new cache are never in memory together.
        for name in self.kept:
            self.kept[name] = self.kept[name][rows_B]


class AddedLosses(dict[str, Tensor]):
    """Weighted losses that layers added in the last forward pass of `LM.get_batch_xyz`, and the loads of their experts.

    A copy of a model starts without any.
    """

    wanted = False  # True only in get_batch_xyz: generation does not use them
    targets: Tensor | None = None  # ids [B, T] that the losses of n_predict need, if wanted

    def __init__(self) -> None:
        super().__init__()
        self.expert_loads: dict[int, Tensor] = {}  # tokens of each expert, by layer

    def __reduce__(self) -> tuple:
        return AddedLosses, ()


@dataclass
class Context:
    """State of one forward pass that layers share.

    With a cache x_BTD holds the last T tokens only, while ids_BT holds all tokens so far.
    """

    ids_BT: Tensor
    attn_requests: Any = None  # any value that the caller passes to attention
    taps: Sequence[Tap] = ()
    cache: Cache | None = None
    real_BT: Tensor | None = None  # False at padding, which no real token attends to; None: no padding
    padding_B: Tensor | None = None  # padding positions at the start of each row; None: no padding there
    counted_BT: Tensor | None = None  # False: not in added losses and statistics; None: all tokens are
    layer: int | None = None  # number of the active layer in Transformer.passes; None outside the layers
    shared: dict[str, Any] = field(default_factory=dict)  # values that layers share in a forward pass
    losses: dict[str, Tensor] = field(default_factory=dict)  # by `add_loss`
    expert_loads: dict[int, Tensor] = field(default_factory=dict)  # by layer, from `add_expert_load`
    written: set[tuple[str, int | None, str]] = field(default_factory=set)  # see `claim`

    @property
    def start(self) -> int:
        """Position of the first token in x_BTD."""
        return 0 if self.cache is None else self.cache.seen

    def named(self, name: str) -> str:
        return name if self.layer is None else f"layers.{self.layer}.{name}"

    def claim(self, what: str, name: str) -> None:
        """Raise ValueError if this forward pass has used the name before: one of the two values would be lost."""
        if (key := (what, self.layer, name)) in self.written:
            raise ValueError(
                f"{what} {self.named(name)!r} is written twice in one forward pass: give each writer its own name, "
                "and each repetition of a layer its own number in Transformer.passes"
            )
        self.written.add(key)

    def wants(self, name: str) -> bool:
        return any(tap.wants(self.named(name)) for tap in self.taps)

    def tap(self, name: str, x: Tensor) -> Tensor:
        """Return `x`, or the tensor that a patch puts in its place. All recording and patching goes through here.

        Raise ValueError for a name that was used before in this forward pass.
        """
        self.claim("activation", name)
        for tap in self.taps:
            x = tap(self.named(name), x)
        return x

    def add_loss(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add `weight * value`, a scalar, to the training loss. Losses of the same name add up over the layers.

        `LM.get_losses` returns them beside "main". Raise ValueError for the name "main", or if `value` is not a scalar.
        """
        if name == "main":
            raise ValueError("ctx.add_loss: 'main' is the loss of the predictions; use another name")
        if value.dim():
            raise ValueError(
                f"ctx.add_loss({name!r}): the loss has shape {tuple(value.shape)}; it must be a scalar"
            )
        added = weight * value
        self.losses[name] = self.losses[name] + added if name in self.losses else added

    def add_expert_load(self, load_E: Tensor) -> None:
        """Record how many tokens each expert of this layer gets. Training logs the loads and balances them."""
        self.claim("expert load", "expert_load")
        self.expert_loads[self.layer or 0] = load_E.detach()

    def with_past(self, name: str, x: Tensor, dim: int) -> Tensor:
        """Return the cached tensor of earlier tokens under this name, concatenated with `x` along `dim`."""
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
        """Return the state that `keep` stored under this name after the previous tokens, or None at the start.

        Raise ValueError for rows padded on the left: the padding would enter the state.
        """
        if self.padding_B is not None:
            raise ValueError(
                f"mask has padding at the left of rows, which would enter the state of {self.named(name)}: pad on the right"
            )
        return None if self.cache is None else self.cache.kept.get(self.named(name))

    def keep(self, name: str, state: Tensor) -> None:
        """Store a state, batch first, for later tokens."""
        self.claim("cache entry", name)
        if self.cache is not None:
            self.cache.kept[self.named(name)] = state


Refused = Collection[object] | Callable[[Any], bool]  # values of a field, or a predicate of a value


def all_except(*allowed: object) -> Callable[[object], bool]:
    """Return a predicate for `Layer.refuses` that is True for every value other than `allowed`."""
    return lambda value: value not in allowed


class Layer(nn.Module):
    """A layer that takes `(x_BTD, ctx)`. Any other module in the stack is called with `x_BTD` alone.

    `refuses` names the values that a kind does not support, by field: a set of them, or a predicate of a value, such as
    `all_except(None)`. A restriction on several fields together belongs in `__init__`, as a ValueError. Both kinds of
    errors are reported for the whole grid before it starts. A field without effect needs no declaration.
    """

    refuses: ClassVar[Mapping[str, Refused]] = {}
    # False: positions that act inside attention need another layer kind in the stack.
    has_attention: ClassVar[bool] = True
    # True: with a cache the layer computes earlier positions again, so a prompt is faster at once than in pieces.
    computes_past_again: ClassVar[bool] = False

    def state_size(self, T: int) -> int | None:
        """Return how many numbers generation needs of `T` earlier tokens of a row; None: unknown."""
        return None


MakeLayer = Callable[..., nn.Module]  # (model_params, dropout) -> a Layer or any other module
layer_kinds: Registry[MakeLayer] = Registry("layer kind")


def layer_kind(name: str) -> Callable[[MakeLayer], MakeLayer]:
    """Register the decorated class, or function that returns a module, as a value of `layer_architecture`."""
    return layer_kinds.register(name=name)


# The Block that a student builds in the courses. No other code outside learn/ refers to the courses.
layer_kinds.add_lazy("student", "learn.layer")
