"""The pages in docs/: their generated parts follow from the code, and list everything there is."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from data import adder_board, corpora, expressions, in_context, recall_tasks, state_tracking, syntheticdata
from data.data_params import DataParams
from docs.generate import DOCS, generated, parts
from docs.generate import registered_layer_kinds as layer_kinds
from model.lm import LM  # noqa: F401  (it registers the layer kinds)
from model.model_params import ModelParams
from model.transformer.embeddings import position_kinds
from tests.test_layout import FILES
from train import library_optimizers, optimizers, schedules
from train.train_params import TrainParams

PAGES = sorted(DOCS.glob("*.md"))
CLASSES = (DataParams, TrainParams, ModelParams)


def rows(part: str) -> dict[str, list[str]]:
    """Return the cells of the rows of a part's tables, by the name in the first cell."""
    split = [re.split(r"(?<!\\)\|", line[2:-2]) for line in part.splitlines() if line.startswith("| `")]
    return {first.strip("` "): [cell.strip() for cell in cells] for first, *cells in split}


def registered_in(module) -> set[str]:
    """Return the functions below a registry's decorator in a module's source: a look past the registry."""
    found = re.findall(
        r"^@(?:registered|\w+\.register)\b.*\ndef (\w+)\(", inspect.getsource(module), re.MULTILINE
    )
    assert found
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert generated(text) == text, "run `python3 -m docs.generate`"


def test_the_map_of_the_code_names_every_file():
    text = (DOCS / "code.md").read_text(encoding="utf-8")
    for file in FILES:
        folder, name = str(Path(file).parent), Path(file).name
        if folder != "." and name != "__init__.py":
            table = text.partition(f"\n### `{folder}/`\n")[2].partition("\n### ")[0]
            assert f"\n| `{name}` | " in table, file


@pytest.mark.parametrize("cls", CLASSES)
def test_the_page_of_fields_has_every_field_with_its_default(cls):
    text = (DOCS / "fields.md").read_text(encoding="utf-8")
    table = rows(text.partition(f"\n### `{cls.__name__}` (")[2].partition("\n##")[0])
    assert list(table) == [field.name for field in fields(cls)]
    for name, default in vars(cls()).items():
        assert table[name][1] == f"`{default!r}`", name


def test_a_field_has_its_type_its_allowed_values_and_its_meaning():
    table = rows(parts["fields"]())
    assert table["n_kv_heads"][0] == "int or None"
    assert table["layer_architecture"][0] == "str"
    assert table["dim"][2] == "> 0"
    assert table["objective"][2] == "`next-token`, `masked`, `diffusion`"
    assert table["dim"][3] == "width of the residual stream"
    described = sum(bool(cells[3]) for cells in table.values())
    assert described > 0.9 * len(table)


def test_names_in_a_registry_are_allowed_values():
    table = rows(parts["fields"]())
    for name, registry in {
        "layer_architecture": layer_kinds,
        "positions": position_kinds,
        "optimizer": optimizers.optimizers,
        "lr_schedule": schedules.schedules,
    }.items():
        assert re.findall("`(.*?)`", table[name][2]) == list(registry)


@pytest.mark.parametrize(
    ("part", "module"),
    [("tasks", syntheticdata), ("texts", corpora), ("optimizers", optimizers), ("schedules", schedules)],
)
def test_a_list_names_every_registered_function(part, module):
    table = rows(parts[part]())
    expected = registered_in(module)
    others = {
        "optimizers": [library_optimizers],
        "tasks": [state_tracking, recall_tasks, in_context, expressions, adder_board],
    }
    expected = expected.union(*map(registered_in, others.get(part, [])))
    assert {name.replace("-", "_") for name in table} == expected
    assert all(cells[0] for cells in table.values())


def test_a_task_has_its_sample_and_its_arguments():
    assert rows(parts["tasks"]())["parity"] == [
        "`0110111::«1».`",
        "1 if the number of ones is odd, else 0. The unscored full stop keeps chance at one half.",
        "`min_length=1`, `max_length=30`",
    ]


def test_layer_kinds_are_those_of_the_decorators():
    sources = "\n".join(
        (DOCS.parent / file).read_text(encoding="utf-8") for file in FILES if file.startswith("model/")
    )
    named = re.findall(r'^@layer_kind\("([\w-]+)"\)', sources, re.MULTILINE)
    table = rows(parts["layer_kinds"]())
    assert set(table) == set(named)
    assert all(cells[0] for cells in table.values())


def test_positions_are_those_that_a_model_takes():
    table = rows(parts["positions"]())
    assert set(table) == {"none", "learned", "sin", "rotary", "alibi", "hard-alibi", "t5"}
    assert "angles" in table["rotary"][0]
    assert "distance" in table["alibi"][0]


def test_a_bound_that_follows_from_another_is_left_out():
    assert rows(parts["fields"]())["val_pct"][2] == "> 0, < 100"
