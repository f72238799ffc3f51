"""Public names of whatif in other projects: `whatif.LM`, `whatif.mup`, `whatif.residual` and `whatif.explorer`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.lm import LM
    from whatif import explorer, mup, residual

__all__ = ["LM", "explorer", "mup", "residual"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: torch takes seconds, and what only reads a config needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "LM":
        from model.lm import LM

        return LM
    return import_module(f"{__name__}.{name}")
