"""The structure of the code: which way imports point, where heavy libraries live, no field named as text."""

import ast
import re
from pathlib import Path

import pytest

from train.grid.params import SECTION_OF

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ["main.py", "gpt2.py", "model_explorer.py", "data", "model", "train", "explore", "learn"]
MAY_IMPORT = {
    "data": {"data"},
    "model": {"model"},
    "train": {"train", "model", "data"},
    "explore": {"explore", "train", "model", "data"},
    "learn": {"learn", "explore", "train", "model", "data"},
    "gpt2": {"model", "data"},
    "main": {"train", "explore", "learn"},
    "model_explorer": {"explore", "learn"},
}
ONLY_IN = {
    "wandb": {"train/stats.py"},
    "matplotlib": {"explore/plots.py"},
    "datasets": {"data/corpora.py"},
    "statsmodels": {"explore/compare/verdicts.py"},
    "transformers": {
        "data/tokenizer.py",
        "gpt2.py",
        "model/hf/weights.py",
        "learn/courses/gpt2/references.py",
        "learn/courses/generation/references.py",
        "learn/courses/training/references.py",
        "learn/courses/bert/references.py",
        "learn/checking/hub.py",
        "learn/courses/further/references.py",
        "learn/further_student.py",
        "learn/solution/further.py",
    },
    "ray": {"train/launch/cluster.py"},
    "lightning": {"train/trainer.py", "train/run.py", "train/checkpoint.py", "train/launch/estimate.py"},
}
PARAMS_MAY_IMPORT = {"typing", "pydantic"}


def product_files() -> list[Path]:
    paths = [ROOT / name for name in PRODUCT]
    return [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]


FILES = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in product_files()}


def imports(tree: ast.AST) -> set[str]:
    """Top-level names of everything a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where things come from"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_point_one_way(file):
    place = Path(file).parts[0].removesuffix(".py")
    own = imports(FILES[file]) & set(MAY_IMPORT)
    assert own <= MAY_IMPORT[place], f"{file} may not import {own - MAY_IMPORT[place]}"


@pytest.mark.parametrize("file", FILES)
def test_heavy_libraries_live_in_one_place(file):
    for library in imports(FILES[file]) & set(ONLY_IN):
        assert file in ONLY_IN[library], f"{library} belongs in {ONLY_IN[library]}, not in {file}"


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("_params.py")])
def test_params_import_nothing_heavy(file):
    assert imports(FILES[file]) <= PARAMS_MAY_IMPORT


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("_params.py")])
def test_a_field_stands_on_one_line_with_its_comment(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    [params] = [node for node in FILES[file].body if isinstance(node, ast.ClassDef)]
    for node in params.body:
        if isinstance(node, ast.AnnAssign):
            assert node.lineno == node.end_lineno
            name = lines[node.lineno - 1].split(":")[0].strip()
            obvious = {"n_layers", "epochs", "dropout", "devices", "precision"}
            assert "  # " in lines[node.lineno - 1] or name in obvious, name


@pytest.mark.parametrize("file", FILES)
def test_no_field_is_looked_up_by_its_name_as_text(file):
    for node in ast.walk(FILES[file]):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "setattr", "hasattr")
        ):
            assert not (isinstance(node.args[1], ast.Constant) and node.args[1].value in SECTION_OF), (
                ast.unparse(node)
            )
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            assert node.slice.value not in SECTION_OF, f"{file}: {ast.unparse(node)}"


@pytest.mark.parametrize("file", FILES)
def test_every_file_opens_by_saying_what_it_is(file):
    if not file.endswith("__init__.py"):
        docstring = ast.get_docstring(FILES[file])
        assert docstring, file
        assert len(docstring.splitlines()[0]) > 20


def test_no_import_cycles():
    modules = {file.removesuffix(".py").replace("/", "."): tree for file, tree in FILES.items()}
    graph = {
        name: {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module in modules}
        for name, tree in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_readme_tree_names_every_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        if not file.endswith("__init__.py"):
            assert re.search(rf"\b{re.escape(Path(file).name)}\b", readme), f"{file} is not in README's tree"
