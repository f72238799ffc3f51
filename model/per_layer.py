"""Fields with a value for each layer: a tuple for a field of one value takes turns over the depth."""

import copy
import math
from dataclasses import fields
from functools import lru_cache
from typing import Any, ClassVar, Self, get_args, get_origin

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, InitErrorDetails, PydanticCustomError


@dataclass(frozen=True)
class PerLayer:
    """Base class of params whose fields may have one value for each layer.

    Such a field holds a tuple, `sliding_window=(64, 64, 64, None)`: layer i has the value `i % 4`. Every layer's
    values are validated together, as if they were the values of the whole model. `at(i)` returns them.
    """

    # Fields that code outside the layers reads: they refuse tuples.
    of_whole_model: ClassVar[frozenset[str]] = frozenset()
    layer_index: ClassVar[int | None] = None  # set by `at`: index of the layer that these params are for
    n_passes: ClassVar[int | None] = None  # set by `at`: number of layers in a forward pass
    n_tokens: ClassVar[int | None] = None  # set by `at`: size of the vocabulary

    @model_validator(mode="wrap")
    @classmethod
    def check_each_layer(cls, given: ArgsKwargs, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Validate the fields of each layer. Raise ValidationError with the number of the layer in its messages."""
        values = given.kwargs or {}
        turns = {name: value for name, value in values.items() if takes_turns(cls, name, value)}
        if not turns:
            return validate(given)
        layers: list[Any] = []
        n_layers = max(map(len, turns.values()))
        while len(layers) < n_layers:
            i = len(layers)
            own = {name: value[i % len(value)] for name, value in turns.items()}
            try:
                layers.append(validate(ArgsKwargs(given.args, {**values, **own})))
            except ValidationError as error:
                raise naming_layer(error, i, turns) from None
            # validate() returns the same object each time.
            layers[-1] = copy.copy(layers[-1])
            if not i:
                n_layers = max(n_layers, min(layers[0].n_layers, math.lcm(*map(len, turns.values()))))
        params = validate(
            ArgsKwargs(given.args, {**values, **{name: value[0] for name, value in turns.items()}})
        )
        for name, value in turns.items():
            validated = tuple(getattr(layer, name) for layer in layers[: len(value)])
            object.__setattr__(params, name, shortest_turn(validated))
        return params

    @property
    def turns(self) -> dict[str, tuple[Any, ...]]:
        """The fields that have several values, which take turns over the depth."""
        return {name: value for name, value in vars(self).items() if takes_turns(type(self), name, value)}

    @property
    def period(self) -> int:
        """Number of layers after which the values of all fields repeat."""
        return math.lcm(*map(len, self.turns.values()))

    def at(self, layer_index: int, n_passes: int | None = None, n_tokens: int | None = None) -> Self:
        """Return the params for layer `layer_index`, where every field has one value.

        `n_passes` is the number of layers in a forward pass, by default n_layers * n_loops. `n_tokens` is the size of the
        vocabulary, which layers with a table of tokens need.
        """
        own = {name: values[layer_index % len(values)] for name, values in self.turns.items()}
        params = object.__new__(type(self))
        of_layer = {"layer_index": layer_index, "n_passes": n_passes, "n_tokens": n_tokens}
        vars(params).update(vars(self), **own, **of_layer)
        return params

    def each_layer(self) -> list[Self]:
        """Return the params of the first layers, up to the one after which all values have occurred together."""
        params: Any = self
        longest = max(map(len, self.turns.values()), default=1)
        return [self.at(i) for i in range(max(longest, min(params.n_layers, self.period)))]

    def values_of(self, name: str) -> tuple[Any, ...]:
        """Return the values of a field in the order in which they take turns."""
        value = vars(self)[name]
        return value if takes_turns(type(self), name, value) else (value,)


def takes_turns(params_class: Any, name: str, value: object) -> bool:
    """Return True for a tuple whose elements are values of a field for one layer each."""
    if not isinstance(value, tuple) or not value or name in params_class.of_whole_model:
        return False
    return name in scalar_fields(params_class)


@lru_cache
def scalar_fields(params_class: Any) -> frozenset[str]:
    """Return the fields whose own type is not a tuple."""
    return frozenset(field.name for field in fields(params_class) if not may_be_tuple(field.type))


def may_be_tuple(annotation: object) -> bool:
    if annotation in (tuple, object, Any) or get_origin(annotation) is tuple:
        return True
    return any(map(may_be_tuple, get_args(annotation)))


def shortest_turn(values: tuple[Any, ...]) -> Any:
    """Return the shortest tuple that gives every layer the same value as `values` does; the value itself if it is one."""
    n = len(values)
    turn = next(values[:k] for k in range(1, n + 1) if n % k == 0 and values[:k] * (n // k) == values)
    return turn[0] if len(turn) == 1 else turn


def naming_layer(error: ValidationError, layer_index: int, turns: dict[str, Any]) -> ValidationError:
    """Return `error` with the layer in the messages about fields that have several values."""
    details: list[InitErrorDetails] = []
    for one in error.errors(include_url=False):
        message = one["msg"].removeprefix("Value error, ")
        if (one["loc"][:1] and one["loc"][0] in turns) or any(f"{name}=" in message for name in turns):
            message = f"layer {layer_index}: {message}"
        # The message is the context of the error, not its template, as it may contain braces.
        custom = PydanticCustomError("value_error", "{message}", {"message": message})
        details.append(InitErrorDetails(type=custom, loc=one["loc"], input=one["input"]))
    return ValidationError.from_exception_data(error.title, details)
