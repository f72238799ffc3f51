"""Write the parts of docs/ that follow from the code and from kept runs: `python3 -m docs.generate`.

A test fails if they are out of date. A page marks such a part by a line `<!-- generated: NAME -->` before it and
`<!-- end -->` after it.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields as fields_of
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

import train.document
from common.repository import REPOSITORY
from data.corpora import corpora
from data.syntheticdata import tasks as registered_tasks
from explore.compare.claims import table_of_claims
from explore.compare.reproductions import Reproduction, all_reproductions, read_reproduction
from explore.compare.reproductions_page import FIGURES, page_part
from explore.compare.reproductions_page import figures as figures_of
from main import RECORDS
from model.context import layer_kinds as all_layer_kinds
from model.lm import LM  # noqa: F401  (it registers the layer kinds)
from model.per_layer import PerLayer
from model.transformer.embeddings import position_kinds
from model.transformer.rotary_scaling import rotary_scalings as registered_scalings
from train.final_metrics import final_metrics
from train.grid.expand import CONFIGS
from train.grid.params import SECTIONS
from train.launch.discover import REGISTRIES as ALL_REGISTRIES
from train.launch.discover import class_body, comments_in, described_fields, summary_of
from train.optimizers import optimizers as registered_optimizers
from train.schedules import schedules as registered_schedules

DOCS = REPOSITORY / "docs"
PACKAGES = ("common", "data", "model", "train", "explore", "learn", "whatif")

# A process may have registered further ones: the student's, or those of tests.
registered_layer_kinds = {
    name: kind for name, kind in all_layer_kinds.items() if kind.__module__.startswith("model.")
}

# Fields whose values are names in a registry, without further layer kinds that this process has registered.
REGISTRIES: dict[str, Iterable[str]] = {**ALL_REGISTRIES, "layer_architecture": registered_layer_kinds}

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
    path = Path(inspect.getfile(cls)).resolve().relative_to(REPOSITORY)
    rows = []
    for field in described_fields(cls):
        is_named = field.name in REGISTRIES or field.type.startswith("str")
        names = REGISTRIES.get(field.name, field.allowed)
        allowed = ", ".join(f"`{value}`" for value in names) if is_named else ", ".join(field.allowed)
        rows.append(row(f"`{field.name}`", field.type, f"`{field.default}`", allowed, field.meaning))
    headings = "| field | type | default | allowed values | meaning |"
    lines = [f"### `{name}` (`{path}`)", "", headings, "|" + "---|" * 5, *rows]
    if issubclass(cls, PerLayer):
        names = (field.name for field in fields_of(cls) if field.name not in cls.of_whole_model)
        lines += ["", f"These fields may differ by layer: {', '.join(f'`{name}`' for name in names)}."]
    return "\n".join(lines)


@part
def document() -> str:
    """Return a table of the keys of each part of the JSON document: type and meaning."""
    path = Path(inspect.getfile(train.document)).resolve()
    comments, tables = comments_in(path), []
    for name in (
        "Content",
        "RunEntry",
        "VerdictEntry",
        "CheckEntry",
        "NoiseEntry",
        "ClaimEntry",
        "FasterEntry",
    ):
        keys = [node for node in class_body(path, name) if isinstance(node, ast.AnnAssign)]
        rows = [
            row(
                f"`{ast.unparse(key.target)}`",
                f"`{ast.unparse(key.annotation)}`",
                comments.get(key.lineno, ""),
            )
            for key in keys
        ]
        about = inspect.getdoc(getattr(train.document, name))
        tables.append(
            "\n".join([f"### `{name}`", "", f"{about}", "", table(["key", "type", "meaning"], rows)])
        )
    return "\n\n".join(tables)


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
def metrics() -> str:
    """Return a table of the registered final metrics, without those that a user or a test adds."""
    shipped = {name: one for name, one in final_metrics.items() if one.__module__.startswith("explore.")}
    return named_table("metric", shipped)


@part
def claims() -> str:
    """Return the table that a call prints of judged claims: those of the kept runs of `induction`."""
    shown = StringIO()
    induction = read_reproduction("induction", CONFIGS, RECORDS)
    Console(file=shown, width=120, color_system=None).print(table_of_claims(induction.verdicts))
    return "\n".join(
        ["```", *(line.rstrip() for line in shown.getvalue().splitlines() if line.strip()), "```"]
    )


@part
def rotary_scalings() -> str:
    """Return a table of the rotary scalings: settings with their defaults, and the meaning."""
    rows = []
    for name, scaling in registered_scalings.items():
        settings = list(inspect.signature(scaling).parameters.values())[2:]
        shown = ", ".join(
            one.name if one.default is one.empty else f"{one.name}={one.default:g}" for one in settings
        )
        rows.append(row(f"`{name}`", f"`{shown}`", summary_of(scaling)))
    return table(["name", "settings", "meaning"], rows)


@part
def positions() -> str:
    """Return a table of the kinds of positions, each described by the module that implements it."""
    kinds = {
        name: kind.on_scores or acting(kind.on_heads, kind.on_embeddings)
        for name, kind in position_kinds.items()
    }
    return named_table("positions", kinds)


@part
def reproductions() -> str:
    """Return the published results beside those of our own runs. `write_figures` writes their figures."""
    return page_part(published_results())


@cache
def published_results() -> list[Reproduction]:
    return all_reproductions(CONFIGS, RECORDS)


def acting(on_heads: type, on_embeddings: type) -> type:
    return on_embeddings if on_heads is position_kinds["none"].on_heads else on_heads


def named_table(heading: str, registry: Mapping[str, Any]) -> str:
    """Return a table with each registered name and the first paragraph of its docstring."""
    return table([heading, ""], [row(f"`{name}`", summary_of(made)) for name, made in registry.items()])


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


def write_figures(folder: Path) -> None:
    """Write the figures of published results to `folder`, and delete those that are no longer made."""
    made = figures_of(published_results())
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.svg"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


def main() -> None:
    write_figures(DOCS / FIGURES)
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
