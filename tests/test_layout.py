"""The structure of the code: which way imports point, where heavy libraries live, no field named as text."""

import ast
import re
from collections import Counter

import pytest

from common.repository import REPOSITORY
from docs.messages import product_files
from train.grid.params import SECTION_OF

# What each package or module may import of ours, besides `common`. The entry with the longest matching name holds; a minus takes away.
MAY_IMPORT = {
    "common": "common",
    "data": "data",
    "model": "model -model.hf",
    "model.model_params": "model.per_layer",
    "model.per_layer": "",
    "model.context": "model.model_params",
    "model.inputs": "",
    "model.transformer": "model.transformer model.context model.model_params",
    "model.mup": "model.mup model.transformer",
    "model.generation": "model.generation model.transformer model.context model.model_params model.inputs",
    "model.recording": "model.context",
    "model.perplexity": "model.inputs",
    "model.masking": "model.generation model.perplexity model.inputs",
    "model.problems": "model.transformer model.context model.model_params",
    "model.lm": "model -model.hf -model.mup -model.shapes -model.observe",
    "model.hf": "model",
    "train": "train -train.launch model data",
    "train.train_params": "",
    "train.logs": "",
    "train.grid": "train.grid train.train_params train.logs model.model_params data.data_params data.held_out",
    "train.saving": "train.saving train.grid train.train_params train.logs train.processes train.stats model data",
    "train.launch": "train model data",
    "explore": "explore train -train.launch model data",
    "explore.inspection": "explore -explore.compare -explore.scaling train -train.launch model data",
    "explore.compare": "explore -explore.inspection -explore.scaling train -train.launch model data",
    "explore.scaling": "explore -explore.inspection train model data",
    "learn": "learn explore train model data",
    "gpt2": "model data explore.model_card",
    "main": "train explore",
    "model_explorer": "explore train.own_parts gpt2",
    "whatif": "whatif model model_explorer gpt2",
}
ONLY_IN = {
    "wandb": {"train/stats.py"},
    "pytorch_optimizer": {"train/library.py"},
    "matplotlib": {"explore/plots.py"},
    "datasets": {"data/corpora.py"},
    "altair": {"explore/compare/charts.py"},
    "vl_convert": {"explore/compare/charts.py"},
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
    "submitit": {"train/launch/slurm.py"},
    "lm_eval": {"explore/evals/adapter.py"},
    "lightning": {"train/trainer.py", "train/callbacks.py", "train/run.py", "train/checkpoint.py"},
}
PARAMS_MAY_IMPORT = {"typing", "pydantic", "pydantic_core", "dataclasses", "re", "common", "model"}
PARAMS_MAY_IMPORT |= {"copy", "math", "functools"}


FILES = {
    str(path.relative_to(REPOSITORY)): ast.parse(path.read_text(encoding="utf-8")) for path in product_files()
}


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


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(file) for file in FILES}


def own_imports(tree: ast.AST) -> set[str]:
    """Return the modules of ours that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= whole or {node.module}
    return found & MODULES


def lies_in(module: str, place: str) -> bool:
    return f"{module}.".startswith(f"{place}.")


def may_import(module: str, other: str) -> bool:
    rule = MAY_IMPORT[max((place for place in MAY_IMPORT if lies_in(module, place)), key=len)].split()
    denied = {place[1:] for place in rule if place.startswith("-")}
    rule.append("common")
    return any(lies_in(other, place) for place in rule) and not any(lies_in(other, place) for place in denied)


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_rules(file):
    refused = {other for other in own_imports(FILES[file]) if not may_import(module_of(file), other)}
    assert not refused, f"{file} may not import {refused}"


@pytest.mark.parametrize(
    ("module", "line", "allowed"),
    [
        ("train.trainer", "from train.launch.sweep import sweep", False),
        ("train.trainer", "from train.saving import run_folder", True),
        ("train.saving.weights", "from train.trainer import LMTrainer", False),
        ("model.mup.scores", "from model.lm import LM", False),
        ("model.lm", "from model.hf import weights", False),
        ("explore.scaling.transfer", "from explore.compare import verdicts", True),
        ("explore.compare.report", "import explore.scaling.transfer", False),
        ("model.context", "from common.registry import Registry", True),
        ("common.registry", "from data import corpora", False),
        ("data.cache", "def f():\n    from model.inputs import Tokenizer", False),
    ],
)
def test_the_rules_tell_right_from_wrong(module, line, allowed):
    [other] = own_imports(ast.parse(line))
    assert may_import(module, other) == allowed


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(("train/grid/", "common/"))])
def test_reading_a_config_imports_no_torch(file):
    assert not imports(FILES[file]) & {"torch", "lightning", "numpy", "matplotlib"}


@pytest.mark.parametrize("file", FILES)
def test_heavy_libraries_live_in_one_place(file):
    for library in imports(FILES[file]) & set(ONLY_IN):
        assert file in ONLY_IN[library], f"{library} belongs in {ONLY_IN[library]}, not in {file}"


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(("_params.py", "per_layer.py"))])
def test_params_import_nothing_heavy(file):
    assert imports(FILES[file]) <= PARAMS_MAY_IMPORT


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("_params.py")])
def test_a_field_stands_on_one_line_with_its_comment(file):
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    [params] = [node for node in FILES[file].body if isinstance(node, ast.ClassDef)]
    for node in params.body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
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
    graph = {module_of(file): own_imports(tree) for file, tree in FILES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


# Names that mean the same wherever they are defined: an interface and the class behind it, a function and its public form.
ONE_MEANING = {"T", "P", "M", "log", "main", "Namer", "Tokenizer", "from_hf"}
# Each course and its solution mirror the names of what they teach, as the students' files do.
COURSES = ("learn/courses/", "learn/solution/")


def top_level_names(tree: ast.Module) -> set[str]:
    """Return the names of functions, classes and values, without entries of registries: configs give those their names."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            decorators = {ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list}
            if not any(name == "registered" or name.endswith(".register") for name in decorators):
                names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("__")} - ONE_MEANING


def test_a_name_has_one_meaning():
    files = [file for file in FILES if not file.startswith(COURSES) and not file.endswith("_student.py")]
    owners: dict[str, list[str]] = {}
    for file in files:
        for name in top_level_names(FILES[file]):
            owners.setdefault(name, []).append(file)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}
    assert set(owners) >= {"LM", "REPOSITORY", "train_run"}


def test_every_function_is_used():
    """A function at the top of a file is named in a second place, or registered by a decorator."""
    folders = [path for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith(".")]
    files = [*REPOSITORY.glob("*.*"), *(path for folder in folders for path in folder.rglob("*.*"))]
    texts = [
        path.read_text(errors="ignore") for path in files if path.suffix in (".py", ".md", ".toml", ".ipynb")
    ]
    n_named = Counter(word for text in texts for word in re.findall(r"\w+", text))
    functions = [
        (file, node)
        for file, tree in FILES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.decorator_list
    ]
    assert len(functions) > 1_000
    assert [f"{file}: {node.name}" for file, node in functions if n_named[node.name] < 2] == []
