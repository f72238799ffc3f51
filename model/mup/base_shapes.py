"""muP base shapes: which dimensions of a model's tensors grow with its width, and their sizes in the base model.

Files have the format of the package mup: YAML with a list for each tensor, null for a dimension that does not grow.
"""

from collections.abc import Mapping
from pathlib import Path

import yaml
from torch import nn

from common.text import first_line

# The base shape of each parameter, by name. None: this dimension does not grow.
Shapes = Mapping[str, tuple[int | None, ...]]

HEADER = """# The shapes of a base model. null: a dimension of fixed size; a number: the base's size of one that grows with width.
"""


def make_base_shapes(base: nn.Module, delta: nn.Module, savefile: str | Path | None = None) -> Shapes:
    """Return the shapes of `base`, with None for dimensions of the same size in `delta`, a model of another width.

    Both models may lie on the meta device. With `savefile` the shapes are also written there. Raise ValueError if
    the models have different parameters, or if no dimension differs.
    """
    sizes, others = ({name: p.shape for name, p in model.named_parameters()} for model in (base, delta))
    shapes = {}
    for name in dict.fromkeys([*sizes, *others]):
        size, other = sizes.get(name), others.get(name)
        if size is None or other is None or len(size) != len(other):
            raise ValueError(
                f"{name} is {size and tuple(size)} in the base, but {other and tuple(other)} in the delta: both models "
                "need the same parameters, with as many dimensions"
            )
        shapes[name] = tuple(n if n != m else None for n, m in zip(size, other, strict=True))
    if all(n is None for shape in shapes.values() for n in shape):
        raise ValueError(
            "base and delta have the same width, so no dimension grows: give delta another width"
        )
    if savefile is not None:
        save_base_shapes(shapes, savefile)
    return shapes


def save_base_shapes(shapes: Shapes, path: str | Path) -> None:
    """Write base shapes to a .bsh file, which mup.set_base_shapes can read too."""
    text = yaml.safe_dump({name: list(shape) for name, shape in shapes.items()})
    Path(path).write_text(HEADER + text, encoding="utf-8")


def load_base_shapes(path: str | Path) -> Shapes:
    """Load a .bsh file written here or by the package mup. Raise ValueError for any other file."""
    try:
        read = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = first_line(error)
        raise ValueError(f"{path} cannot be read as base shapes: {reason}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds no base shapes: it must be a mapping of names to lists")
    for name, shape in read.items():
        if not isinstance(shape, list) or not all(n is None or (type(n) is int and n > 0) for n in shape):
            raise ValueError(
                f"{path}: the base shape of {name} is {shape!r}; it must be a list of sizes and nulls"
            )
    return {str(name): tuple(shape) for name, shape in read.items()}
