"""Registries: functions and classes that a decorator adds, to be looked up by name."""

from collections.abc import Callable, Iterator, MutableMapping
from importlib import import_module
from typing import Generic, TypeVar, cast, overload

from common.text import did_you_mean

T = TypeVar("T")
Made = TypeVar("Made")


class UnknownName(KeyError):
    """Raised for a name that is not registered."""

    def __str__(self) -> str:
        return self.args[0]


class Lazy:
    """An entry whose module is imported when its name is looked up."""

    def __init__(self, module: str) -> None:
        self.module = module


class Registry(MutableMapping[str, T], Generic[T]):
    """A mapping of names to registered entries, in the order in which they were registered.

    `kind` is the word for an entry in error messages. `underscore` replaces each "_" of a function's name.
    """

    def __init__(self, kind: str, *, underscore: str = "_") -> None:
        self.kind = kind
        self.underscore = underscore
        self.entries: dict[str, T | Lazy] = {}

    @overload
    def register(self, made: Made) -> Made: ...
    @overload
    def register(self, made: None = None, *, name: str | None = None) -> Callable[[Made], Made]: ...
    def register(self, made: Made | None = None, *, name: str | None = None) -> Made | Callable[[Made], Made]:
        """Register the decorated function or class: `@register`, `@register()`, or `@register(name=...)` for another name."""

        def decorator(made: Made) -> Made:
            return self.add(made, cast(T, made), name)

        return decorator if made is None else decorator(made)

    def add(self, named: Made, entry: T, name: str | None = None) -> Made:
        """Register `entry` under `name`, by default the name of the function or class `named`. Return `named`."""
        self[name or named.__name__.replace("_", self.underscore)] = entry  # type: ignore[attr-defined]
        return named

    def add_lazy(self, name: str, module: str) -> None:
        """Register `name`. Its first lookup imports `module`, which must register the entry itself."""
        self.entries[name] = Lazy(module)

    def loaded(self) -> list[str]:
        """Return the names whose lookup imports nothing."""
        return [name for name, entry in self.entries.items() if not isinstance(entry, Lazy)]

    def __getitem__(self, name: str) -> T:
        if name not in self.entries:
            raise UnknownName(f"there is no {self.kind} {name!r}; {did_you_mean(name, self, list_all=True)}")
        entry = self.entries[name]
        if isinstance(entry, Lazy):
            import_module(entry.module)
            return self.entries[name]  # type: ignore[return-value]
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __setitem__(self, name: str, entry: T) -> None:
        self.entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
