"""Write the parts of docs/ that follow from the code: `python3 -m docs.generate`. A test holds them true.

A page marks such a part by a line `<!-- generated: NAME -->` before it and `<!-- end -->` after it.
"""

import ast
import inspect
import re
import tokenize
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.repository import REPOSITORY
from data.corpora import corpora
from data.syntheticdata import tasks as registered_tasks
from model.context import layer_kinds as all_layer_kinds
from model.lm import LM  # noqa: F401  (it registers the layer kinds)
from model.transformer.embeddings import position_kinds
from model.transformer.norms import norms
from model.transformer.transformerencoderlayer import activations
from train.grid.params import SECTIONS
from train.optimizers import optimizers as registered_optimizers
from train.schedules import schedules as registered_schedules

DOCS = REPOSITORY / "docs"
PACKAGES = ("common", "data", "model", "train", "explore", "learn")

# A process may have registered further ones: the student's, or those of tests.
registered_layer_kinds = {
    name: kind for name, kind in all_layer_kinds.items() if kind.__module__.startswith("model.")
}

# Fields whose values are names in a registry.
REGISTRIES: dict[str, Iterable[str]] = {
    "layer_architecture": registered_layer_kinds,
    "positions": position_kinds,
    "norm": norms,
    "activation": activations,
    "lr_schedule": registered_schedules,
    "optimizer": registered_optimizers,
}

parts: dict[str, Callable[[], str]] = {}


def part(function: Callable[[], str]) -> Callable[[], str]:
    """Register a function that returns the Markdown of the part that is named like it."""
    parts[function.__name__] = function
    return function


@part
def files() -> str:
    """Return a table for each folder of the code: its files, and the first sentence of each."""
    folders: dict[Path, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py"), key=lambda path: (path.parent, path.name)):
            if path.name != "__init__.py":
                row = f"| `{path.name}` | {first_sentence(path)} |"
                folders.setdefault(path.parent.relative_to(REPOSITORY), []).append(row)
    tables = [
        "\n".join([f"### `{folder}/`", "", "| file | |", "|---|---|", *rows])
        for folder, rows in folders.items()
    ]
    return "\n\n".join(tables)


def first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\n| +Shape suffixes:", docstring, maxsplit=1)[0].replace("|", "\\|")


@part
def fields() -> str:
    """Return a table for each params class: type, default, allowed values and meaning of each field."""
    return "\n\n".join(field_table(name, cls) for name, cls in SECTIONS.items())


def field_table(name: str, cls: type) -> str:
    path = Path(inspect.getfile(cls)).resolve()
    rows, comments, types = [], comments_in(path), get_type_hints(cls, include_extras=True)
    for node in class_body(path, cls.__name__):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = next((field for field in fields_of(cls) if field.name == node.target.id), None)
            if field is not None:
                cells = [plain_type(types[field.name]), f"`{default_of(field)!r}`"]
                cells += [
                    allowed_values(field.name, types[field.name]),
                    comments.get(node.end_lineno or 0, ""),
                ]
                rows.append(row(f"`{field.name}`", *cells))
    heading = f"### `{name}` (`{path.relative_to(REPOSITORY)}`)"
    return "\n".join(
        [heading, "", "| field | type | default | allowed values | meaning |", "|" + "---|" * 5, *rows]
    )


def class_body(path: Path, name: str) -> list[ast.stmt]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def comments_in(path: Path) -> dict[int, str]:
    """Return the comment at the end of each line, by line number; a line with a comment alone counts for the next."""
    comments: dict[int, str] = {}
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                alone = not token.line[: token.start[1]].strip()
                comments[token.start[0] + alone] = token.string.lstrip("# ")
    return comments


def default_of(field: Any) -> Any:
    """Return the default of a dataclass field, which pydantic's Field may wrap."""
    default = field.default
    factory = getattr(default, "default_factory", None) or field.default_factory
    if factory is not MISSING and factory is not None:
        return factory()
    return getattr(default, "default", default)


def plain_type(annotation: Any) -> str:
    """Return a type without its bounds: `Annotated[int, Gt(0)] | None` becomes `int or None`."""
    if annotation is type(None):
        return "None"
    if get_origin(annotation) is Literal:
        return "str"
    if hasattr(annotation, "__metadata__"):
        return plain_type(annotation.__origin__)
    if get_origin(annotation) in (tuple, dict):
        inside = ["..." if one is ... else plain_type(one) for one in get_args(annotation)]
        return f"{get_origin(annotation).__name__}[{', '.join(inside)}]"
    if get_args(annotation):
        return " or ".join(plain_type(one) for one in get_args(annotation))
    return getattr(annotation, "__name__", str(annotation))


def allowed_values(name: str, annotation: Any) -> str:
    """Return the values of a Literal, the names of a registry, or the bounds of a number."""
    if name in REGISTRIES:
        return ", ".join(f"`{value}`" for value in REGISTRIES[name])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        return ", ".join(bounds(annotation.__metadata__))
    inside = (allowed_values("", one) for one in get_args(annotation))
    return ", ".join(dict.fromkeys(filter(None, inside)))


def bounds(metadata: Iterable[Any]) -> list[str]:
    """Return bounds such as `> 0` from the metadata of an Annotated type. Strict bounds replace others."""
    constraints = [constraint for one in metadata for constraint in getattr(one, "metadata", [one])]
    found = {
        key: f"{sign} {getattr(constraint, key):,}"
        for key, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        for constraint in constraints
        if getattr(constraint, key, None) is not None
    }
    lower, upper = found.get("gt", found.get("ge")), found.get("lt", found.get("le"))
    return [bound for bound in (lower, upper) if bound]


@part
def tasks() -> str:
    """Return a table of the tasks: a sample, the arguments and their defaults, and the meaning."""
    rows = []
    for name, task in registered_tasks.items():
        sample, _, meaning = summary_of(task.draw).partition("   ")
        arguments = list(inspect.signature(task.draw).parameters.values())[1:]
        shown = ", ".join(f"`{one.name}={one.default!r}`" for one in arguments)
        rows.append(row(f"`{name}`", f"`{sample}`", meaning.strip(), shown))
    return table(["task", "sample", "meaning", "arguments"], rows)


@part
def texts() -> str:
    """Return a table of the registered text corpora."""
    return named_table("text", corpora)


@part
def layer_kinds() -> str:
    return named_table("layer kind", registered_layer_kinds)


@part
def optimizers() -> str:
    return named_table("optimizer", registered_optimizers)


@part
def schedules() -> str:
    return named_table("schedule", registered_schedules)


@part
def positions() -> str:
    """Return a table of the kinds of positions, each described by the module that implements it."""
    kinds = {
        name: kind.on_scores or acting(kind.on_heads, kind.on_embeddings)
        for name, kind in position_kinds.items()
    }
    return named_table("positions", kinds)


def acting(on_heads: type, on_embeddings: type) -> type:
    return on_embeddings if on_heads is position_kinds["none"].on_heads else on_heads


def named_table(heading: str, registry: Mapping[str, Any]) -> str:
    """Return a table with each registered name and the first paragraph of its docstring."""
    return table([heading, ""], [row(f"`{name}`", summary_of(made)) for name, made in registry.items()])


def summary_of(documented: Any) -> str:
    """Return the first paragraph of a docstring, on one line. Inherited docstrings do not count."""
    docstring = inspect.cleandoc(documented.__doc__ or "")
    return docstring.partition("\n\n")[0].replace("\n", " ")


def table(headings: list[str], rows: list[str]) -> str:
    return "\n".join([row(*headings), "|" + "---|" * len(headings), *rows])


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def generated(page: str) -> str:
    """Return the text of a page with all its generated parts made anew. Raise KeyError for an unknown part."""
    return re.sub(
        r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{parts[match[2]]()}\n\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
