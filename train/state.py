"""Convert attributes of an object to plain data, so that a checkpoint holds what users add but no code."""

import pickle
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

PLAIN_TYPES = (type(None), bool, int, float, str)
FACTORIES: dict[str, Callable[[], object]] = {
    factory.__name__: factory for factory in (int, float, str, bool, list, dict, set)
}


KeyAndValue = tuple[object, object]  # a key and its value, both as data
Mapped = TypeVar("Mapped")
Saved = dict[str, tuple[str, object]]  # attributes by name: ("value" or "state", data)


class NotData(TypeError):
    """Raised for a value other than numbers, text, tensors, generators and containers of them."""


class HasState(Protocol):
    """An object that saves and restores itself."""

    def state_dict(self) -> object: ...
    def load_state_dict(self, state: Any, /) -> object: ...


class Conversion(NamedTuple):
    """Conversion of a type of value to data that `torch.load(..., weights_only=True)` reads, and back."""

    save: Callable[[Any], Any]
    load: Callable[[Any], Any]


def to_data(value: object) -> object:
    """Return `value` as plain values and tuples (name of its kind, content). Raise NotData if this loses something."""
    if type(value) in PLAIN_TYPES:
        return value
    name = "numpy" if isinstance(value, np.ndarray | np.generic) else NAMES.get(type(value))
    if name is None:
        raise NotData(f"{type(value).__name__} is not plain data")
    return name, CONVERSIONS[name].save(value)


def from_data(data: object) -> Any:
    """Return the value that `to_data` converted. Tensors and generators are on their original device."""
    if not isinstance(data, tuple):
        return data
    name, content = data
    return CONVERSIONS[name].load(content)


def items_to_data(values: Iterable[object]) -> list[object]:
    return [to_data(value) for value in values]


def items_from_data(make: Callable[[Iterable[object]], object], data: list[object]) -> object:
    return make(from_data(item) for item in data)


def pairs_to_data(mapping: Mapping[object, object]) -> list[KeyAndValue]:
    return [(to_data(key), to_data(value)) for key, value in mapping.items()]


def pairs_from_data(make: Callable[[dict[object, object]], Mapped], data: list[KeyAndValue]) -> Mapped:
    return make({from_data(key): from_data(value) for key, value in data})


def tensor_to_data(tensor: Tensor) -> tuple[Tensor, str, bool]:
    # Clone, so that a small view is not saved with all of a large storage.
    return tensor.detach().cpu().clone(), str(tensor.device), tensor.requires_grad


def tensor_from_data(data: tuple[Tensor, str, bool]) -> Tensor:
    tensor, device, requires_grad = data
    return tensor.to(device).requires_grad_(requires_grad)


def generator_from_data(data: tuple[str, Tensor]) -> torch.Generator:
    device, state = data
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator


def random_from_data(data: object) -> random.Random:
    generator = random.Random()
    generator.setstate(from_data(data))
    return generator


def numpy_generator_from_data(data: tuple[str, object]) -> np.random.Generator:
    name, state = data
    bits = getattr(np.random, name)()
    bits.state = from_data(state)
    return np.random.Generator(bits)


def defaultdict_to_data(values: defaultdict) -> tuple[str | None, list[KeyAndValue]]:
    factory = values.default_factory
    if factory is not None and FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
        raise NotData(f"defaultdict of {factory!r} is not plain data")
    return getattr(factory, "__name__", None), pairs_to_data(values)


def defaultdict_from_data(data: tuple[str | None, list[KeyAndValue]]) -> defaultdict:
    factory, pairs = data
    return defaultdict(None if factory is None else FACTORIES[factory], pairs_from_data(dict, pairs))


def numpy_to_data(values: np.ndarray | np.generic) -> tuple[Tensor, bool]:
    if values.dtype.kind not in "biuf":
        raise NotData(f"numpy values of {values.dtype} are not plain data")
    return torch.from_numpy(np.array(values)), isinstance(values, np.generic)


def numpy_from_data(data: tuple[Tensor, bool]) -> np.ndarray | np.generic:
    tensor, is_scalar = data
    return tensor.numpy()[()] if is_scalar else tensor.numpy()


NAMES: dict[type, str] = {  # by exact type: a subclass may hold more
    **{kind: kind.__name__ for kind in (list, tuple, set, frozenset, dict, OrderedDict, Counter)},
    deque: "deque",
    defaultdict: "defaultdict",
    Tensor: "tensor",
    torch.Generator: "torch generator",
    random.Random: "python generator",
    np.random.Generator: "numpy generator",
}
CONVERSIONS: dict[str, Conversion] = {
    **{
        kind.__name__: Conversion(items_to_data, partial(items_from_data, kind))
        for kind in (list, tuple, set, frozenset)
    },
    **{
        kind.__name__: Conversion(pairs_to_data, partial(pairs_from_data, kind))
        for kind in (dict, OrderedDict, Counter)
    },
    "deque": Conversion(
        lambda values: (values.maxlen, items_to_data(values)),
        lambda data: items_from_data(partial(deque, maxlen=data[0]), data[1]),
    ),
    "defaultdict": Conversion(defaultdict_to_data, defaultdict_from_data),
    "tensor": Conversion(tensor_to_data, tensor_from_data),
    "numpy": Conversion(numpy_to_data, numpy_from_data),
    "torch generator": Conversion(lambda dice: (str(dice.device), dice.get_state()), generator_from_data),
    "python generator": Conversion(lambda dice: to_data(dice.getstate()), random_from_data),
    "numpy generator": Conversion(
        lambda dice: (type(dice.bit_generator).__name__, to_data(dice.bit_generator.state)),
        numpy_generator_from_data,
    ),
}


class Attributes:
    """The attributes of `owner` that change or are added from now on, except those named in `without`.

    Data is saved directly; objects with `state_dict` and `load_state_dict` are saved by these methods. Modules,
    optimizers and learning-rate schedules are left out: Lightning saves them itself.
    """

    def __init__(self, owner: object, without: Iterable[str] = ()) -> None:
        self.owner = owner
        self.without = frozenset(without)
        self.initial = dict(self.attributes())
        self.fingerprints = {name: value_fingerprint(value) for name, value in self.initial.items()}

    def attributes(self) -> Iterable[tuple[str, object]]:
        kept_by_others = (nn.Module, Optimizer, LRScheduler, Attributes)
        for name, value in vars(self.owner).items():
            if name not in self.without and not isinstance(value, kept_by_others):
                yield name, value

    def save(self) -> tuple[Saved, list[str]]:
        """Return the changed attributes as data, and the names of those that cannot be saved."""
        saved: Saved = {}
        lost: list[str] = []
        for name, value in self.attributes():
            if not has_state(value) and self.is_unchanged(name, value):
                continue
            try:
                if not has_state(value):
                    saved[name] = ("value", to_data(value))
                elif name in self.initial:  # else a resumed run has no object to load it into
                    saved[name] = ("state", to_data(value.state_dict()))
                else:
                    lost.append(name)
            except (NotData, RecursionError):
                lost.append(name)
        return saved, lost

    def is_unchanged(self, name: str, value: object) -> bool:
        if name not in self.initial:
            return False
        is_same = value is self.initial[name] or is_data(value)
        return is_same and value_fingerprint(value) == self.fingerprints[name]

    def restore(self, saved: Saved) -> None:
        """Restore the attributes of an earlier `save`."""
        for name, (kind, data) in saved.items():
            if kind == "value":
                setattr(self.owner, name, from_data(data))
            else:
                getattr(self.owner, name).load_state_dict(from_data(data))


def has_state(value: object) -> TypeGuard[HasState]:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def is_data(value: object) -> bool:
    try:
        to_data(value)
    except (NotData, RecursionError):
        return False
    return True


def value_fingerprint(value: object) -> bytes | None:
    """Return bytes that differ if values differ, or None.

    Only data and objects whose attributes are data have a fingerprint.
    """
    for content in (value, getattr(value, "__dict__", len)):
        if is_data(content):
            return pickle.dumps(to_data(content))
    return None
