"""Lists of what a config may say, for --fields and --tasks: its fields, the tasks and the texts."""

import ast
import inspect
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from data.cache import default_of
from data.corpora import corpora, corpus_names
from data.syntheticdata import tasks
from model.problems import MODEL_REGISTRIES
from train.fitted_table import FittedTable, TableColumn
from train.grid.params import FOREIGN_NAMES, SECTION_OF, SECTIONS, field_hint
from train.logs import log
from train.optimizers import optimizers
from train.schedules import schedules

# Fields whose values are names in a registry.
REGISTRIES: dict[str, Mapping[str, object]] = {
    **MODEL_REGISTRIES,
    "lr_schedule": schedules,
    "optimizer": optimizers,
}


class DescribedField(NamedTuple):
    """A field of a config, as users read about it."""

    name: str
    type: str
    default: str
    allowed: list[str]  # names, or bounds of a number
    meaning: str


def described_fields(params_class: type) -> Iterator[DescribedField]:
    """Yield the fields of a params class, in order, with the comments of their lines as meanings."""
    path = Path(inspect.getfile(params_class)).resolve()
    comments, types = comments_in(path), get_type_hints(params_class, include_extras=True)
    fields = {field.name: field for field in fields_of(params_class)}
    for node in class_body(path, params_class.__name__):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in fields:
            field = fields[node.target.id]
            kind = types[field.name]
            meaning = comments.get(node.end_lineno or 0, "")
            default = repr(default_of(field))
            yield DescribedField(
                field.name, plain_type(kind), default, allowed_for(field.name, kind), meaning
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


def allowed_for(name: str, annotation: Any) -> list[str]:
    """Return the values of a Literal, the names of a registry, or the bounds of a number."""
    if name in REGISTRIES:
        return [*REGISTRIES[name]]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if hasattr(annotation, "__metadata__"):
        return bounds_as_text(annotation.__metadata__) or allowed_for("", annotation.__origin__)
    inside = (one for part in get_args(annotation) for one in allowed_for("", part))
    return [*dict.fromkeys(inside)]


def bounds_as_text(metadata: Iterable[Any]) -> list[str]:
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


def summary_of(documented: Any) -> str:
    """Return the first paragraph of a docstring, on one line. Inherited docstrings do not count."""
    docstring = inspect.cleandoc(documented.__doc__ or "")
    return docstring.partition("\n\n")[0].replace("\n", " ")


def show_fields(word: str) -> int:
    """Log the fields whose name, meaning or allowed values contain `word`. Return the exit code: 2 without any."""
    ours = FOREIGN_NAMES.get(word, ("",))[0]
    shown = False
    for name, params_class in SECTIONS.items():
        found = [one for one in described_fields(params_class) if one.name == ours or is_about(one, word)]
        if found:
            columns = [
                TableColumn(name, [one.name for one in found], is_left=True),
                TableColumn("default", [one.default for one in found], is_left=True),
                TableColumn("type", [one.type for one in found], rank=1, is_left=True),
                TableColumn("meaning", [description_of(one) for one in found], wraps=True),
            ]
            log.info(FittedTable(columns))
            shown = True
    if not shown:
        print(f"--fields {word}: no field is about it; {field_hint(word, SECTION_OF)}", file=sys.stderr)
    return 0 if shown else 2


def is_about(field: DescribedField, word: str) -> bool:
    return any(word.lower() in text.lower() for text in (field.name, field.meaning, *field.allowed))


def description_of(field: DescribedField) -> str:
    """Return the meaning of a field, and what it may be."""
    allowed = ", ".join(field.allowed)
    return f"{field.meaning}; {allowed}" if field.meaning and allowed else field.meaning or allowed


def show_tasks() -> int:
    """Log the synthetic tasks, each with a sample, and the texts. Return the exit code."""
    about = [summary_of(task.draw).partition("   ") for task in tasks.values()]
    columns = [
        TableColumn("task", [*tasks], is_left=True),
        TableColumn("sample", [sample for sample, _, _ in about], wraps=True),
        TableColumn("meaning", [meaning.strip() for *_, meaning in about], wraps=True),
    ]
    log.info(FittedTable(columns))
    texts = corpus_names()
    known = [summary_of(corpora[name]) if name in corpora else "a folder of yours" for name in texts]
    log.info(
        FittedTable([TableColumn("text", texts, is_left=True), TableColumn("meaning", known, wraps=True)])
    )
    return 0
