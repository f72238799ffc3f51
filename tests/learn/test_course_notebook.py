"""The courses as notebooks: executed by a kernel, with the solution's code in the cells, and with a mistake."""

import ast
import re

import nbformat
import pytest
from nbclient import NotebookClient

from learn import notebook
from learn.__main__ import main
from learn.notebook import as_notebook, code, segment
from learn.outline import COURSES, Definition, Outline, definitions
from tests.marks import SLOW

QUICK = ["gpt2"]


def parameters():
    return [pytest.param(name, marks=SLOW if name in QUICK else pytest.mark.slow) for name in COURSES]


def solved(outline, edit=lambda text: text):
    """The notebook with the solution's code where the stubs are, and its imports and helpers before."""
    text = edit(outline.solution.read_text(encoding="utf-8"))
    tree, parts = ast.parse(text), definitions(outline.solution)
    written = {node.name: segment(text, node) for node in tree.body if isinstance(node, Definition)}
    rest = [segment(text, node) for node in tree.body[1:] if getattr(node, "name", None) not in parts]
    notebook = as_notebook(outline)
    for cell in notebook["cells"]:
        for name in parts:
            if cell["source"].startswith((f"class {name}(", f"class {name}:", f"def {name}(")):
                cell["source"] = written[name]
    notebook["cells"].insert(3, {"id": "helpers"} | code("\n".join(rest)))
    return notebook


def executed(notebook, folder):
    """Run a notebook and return the output of each code cell, by the cell's source."""
    read = nbformat.from_dict(notebook)
    nbformat.validate(read)
    NotebookClient(read, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return {
        cell.source: "".join(shown(output) for output in cell.outputs)
        for cell in read.cells
        if cell.cell_type == "code"
    }


def shown(output):
    """Return the printed text of an output without color codes."""
    text = output["text"] if "text" in output else output["data"]["text/plain"]
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.mark.parametrize("course", parameters())
def test_the_solution_in_the_cells_passes(course, tmp_path):
    printed = executed(solved(Outline(course)), tmp_path)
    checks = [text for source, text in printed.items() if source.startswith("check(")]
    assert len(checks) == len(Outline(course).parts())
    for text in checks:
        more = r"(\n  (not tried: .*|\(checked with the solution's .*\)))*"
        assert re.fullmatch(rf"[\w.]+: right \(\d+ checks\){more}\s*", text), text


@pytest.mark.slow
def test_stubs_and_mistakes_in_cells_are_reported(tmp_path):
    """A stub, a mistake, an error and its line, and what is borrowed meanwhile, which goes back."""
    notebook = as_notebook(Outline("gpt2"))
    kept = {"LayerNorm", "gelu", "MLP", "Block"}
    cells = [
        c for c in notebook["cells"] if not is_part(c) or any(k in c["source"].split("\n")[0] for k in kept)
    ]
    texts = {
        "def gelu": "def gelu(x):\n    return x * torch.sigmoid(1.702 * x)",
        "class MLP": "class MLP(nn.Module):\n    def __init__(self, dim):\n        super().__init__()\n"
        "        self.up = nn.Liner(dim, 4 * dim)",
    }
    for cell in cells:
        for start, text in texts.items():
            if cell["source"].startswith(start):
                cell["source"] = text
    cells.append({"id": "last"} | code("print('CausalAttention' in globals(), gelu(torch.tensor(1.0)))"))
    printed = executed(notebook | {"cells": cells}, tmp_path)
    assert "LayerNorm is not built yet" in printed['check("gpt2.LayerNorm")']
    assert "it looks like this is x sigmoid(1.702 x)" in printed['check("gpt2.gelu")']
    assert "has no attribute 'Liner' (your cells, line 4)" in printed['check("gpt2.MLP")'].replace("\n", " ")
    assert "Block is not built yet" in printed['check("gpt2.Block")']
    assert "False tensor(0.845" in printed[cells[-1]["source"]]


def is_part(cell):
    return cell["source"].startswith(("class ", "def ", "check("))


def test_the_command_writes_a_notebook_and_never_over_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["notebook", "gpt2"]) == 0
    text = (tmp_path / "learn_gpt2.ipynb").read_text(encoding="utf-8")
    assert nbformat.reads(text, as_version=4).cells[0].source.startswith("# Build GPT-2")
    assert main(["notebook"]) == 1, "all of them"
    assert "learn_gpt2.ipynb exists already and was not changed" in capsys.readouterr().err
    assert (tmp_path / "learn_further.ipynb").is_file()
    assert (tmp_path / "learn_gpt2.ipynb").read_text(encoding="utf-8") == text


def test_an_unknown_part_is_reported_in_a_cell_too(capsys):
    notebook.check("brt.gelu")
    notebook.check("gelu")
    told = capsys.readouterr().out
    assert "no part 'brt.gelu'; did you mean gpt2.gelu, bert.gelu?" in told
    assert "'gelu' is ambiguous; use one of: gpt2.gelu, bert.gelu" in told
