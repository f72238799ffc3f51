"""The wheel: what setup.py renames, and the package in a project that has modules with our names."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import main
import setup
from common.repository import REPOSITORY
from docs.messages import product_files
from tests.test_layout import imports, module_of
from tests.train.killed import forked
from train.saving.code import ADDED_BY_WHEEL

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = {path: str(path.relative_to(REPOSITORY)) for path in product_files()}
SHIPPED = {path: name for path, name in NAMES.items() if not name.startswith(setup.LEFT_OUT)}

SOURCE = '''"""From data.cache import nothing."""
from data.cache import (  # from data.cache
    digest,
)
from collections import Counter as data
FOUND = "é", "data.cache", "data", "data.cache.digest"
'''
RENAMED = SOURCE.replace("\nfrom data.", "\nfrom whatif.data.").replace('"data.cache"', '"whatif.data.cache"')


def test_imports_and_strings_are_renamed():
    assert setup.renamed(SOURCE.encode()).decode() == RENAMED
    with pytest.raises(ValueError, match=r"import data\.cache: only `from"):
        setup.renamed(b"def f():\n    import data.cache")


def test_renamed_code_counts_as_that_of_the_repository():
    for path, name in SHIPPED.items():
        source = path.read_bytes()
        renamed = setup.renamed(source)
        assert not imports(ast.parse(renamed)) & set(setup.OURS), name
        assert ADDED_BY_WHEEL.sub(rb"\1\2", renamed) == ADDED_BY_WHEEL.sub(rb"\1\2", source) == source, name


def test_requirements_and_extras_follow_the_files():
    path = REPOSITORY / "requirements.txt"
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", path.read_text(), re.MULTILINE))
    needed = setup.requirements(path)
    assert "torch>=2.9" in needed
    assert f"altair>={pinned['altair']}" in needed
    assert all(re.fullmatch(r"[\w-]+>=[\w.]+", one) for one in needed)
    extras = setup.extras()
    assert extras["ray"] == ["ray>=2.60"]
    assert set(extras) >= {"dev", "lens", "optimizers", "ray"}
    assert "models" not in extras  # its packages could replace torch


# Run after the examples of docs/api.md, in the folder of another project. Prints the library that each module lacks.
IMPORT_ALL = """
import importlib, json, pathlib, pkgutil
from whatif.train.saving.run_folder import output_root

lacks = {}
for module in pkgutil.walk_packages(whatif.__path__, "whatif."):
    try:
        importlib.import_module(module.name)
        lacks[module.name] = None
    except ModuleNotFoundError as error:
        lacks[module.name] = error.name
del os.environ["WHATIF_OUT"]
assert output_root() == pathlib.Path.home() / "whatif"
print(json.dumps(lacks))
"""
LIBRARIES_OF_EXTRAS = {"lm_eval", "pytorch_optimizer", "ray", "submitit"}
# A task that a registry imports when its name is looked up.
RUN = ["--config=test-synth", "--no-wandb", "--save", "--set=dataset_name='dyck'", "--set=task_args={}"]
RUN += ["--set=max_seq_len=96", "--set=n_samples=300", "--set=early_stop_nsamples=128", "--set=threads=1"]


class OtherProject:
    """A git repository with modules that have our names, and an environment with the wheel and the libraries of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
        for name in setup.OURS:
            error = "raise ImportError('this module belongs to the other project')"
            (self.folder / f"{name}.py").write_text(error, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        offline = ["--no-deps", "--no-index"]
        build = ["wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, REPOSITORY]
        subprocess.run([*pip, *build], check=True)
        [self.wheel] = folder.glob("*.whl")
        venv.create(folder / "venv")
        self.executable = folder / "venv" / "bin" / "python"
        subprocess.run([*pip, "--python", self.executable, "install", *offline, self.wheel], check=True)
        site = sysconfig.get_path("purelib", vars={"base": folder / "venv"})
        libraries = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
        Path(site, "libraries.pth").write_text(libraries, encoding="utf-8")

    def python(self, *args: str, out: Path) -> str:
        """Return what Python prints in this project."""
        done = subprocess.run(
            [self.executable, *args],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": "", "WHATIF_OUT": str(out)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return OtherProject(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def runs(project, tmp_path_factory):
    """The folders of one run, trained by the wheel and by the repository. The outputs of each lie in a folder of their own."""
    out = tmp_path_factory.mktemp("out")
    project.python("-m", "whatif.main", *RUN, out=out / "wheel")
    assert forked(lambda: main.main([*RUN, f"--out={out / 'repository'}"])) == 0
    return [
        next((out / name / "saved-models").rglob("about.json")).parent for name in ("wheel", "repository")
    ]


@pytest.mark.slow
@pytest.mark.ci
def test_the_wheel_holds_one_package(project):
    with zipfile.ZipFile(project.wheel) as wheel:
        names = set(wheel.namelist())
    about = f"{PROJECT['name']}-{PROJECT['version']}.dist-info/"
    assert {name for name in names if not name.startswith(("whatif/", about))} == set()
    modules = {f"whatif/{name.removeprefix('whatif/')}" for name in SHIPPED.values()}
    assert {name for name in names if name.endswith(".py")} == modules
    assert names >= {"whatif/reproductions/sort.json", "whatif/configs/reproduce/sort.txt"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_has_the_same_weights_and_the_same_code(runs):
    weights = [(folder / "model.safetensors").read_bytes() for folder in runs]
    assert weights[0] == weights[1]
    wheel, repository = (json.loads((folder / "about.json").read_text()) for folder in runs)
    assert wheel["code"] == repository["code"]
    assert "data/state_tracking.py:dyck" in wheel["code"]
    assert wheel["summary"]["val_loss"] == repository["summary"]["val_loss"]
    assert wheel["commit"] is None, "that of the other project has nothing to do with it"
    assert list(runs[0].parents[3].rglob("report.html")), "explore/page/ is in the wheel"


@pytest.mark.slow
@pytest.mark.ci
def test_the_examples_run_and_every_module_can_be_imported(project, runs):
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    said = project.python("-c", "\n".join([*examples, IMPORT_ALL]), out=runs[1].parents[3]).splitlines()
    assert len(said) == 1, "a run of the repository opens without a word about changed code"
    lacks = json.loads(said[0])
    modules = {module_of(name).removeprefix("whatif.") for name in SHIPPED.values()} - {"whatif"}
    assert set(lacks) == {f"whatif.{module}" for module in modules}
    assert set(lacks.values()) <= {None, *LIBRARIES_OF_EXTRAS}
