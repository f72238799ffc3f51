"""Build the wheel: one package, whatif, with our packages below it. pyproject.toml holds what is not computed here."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OURS = ("common", "data", "model", "train", "explore", "learn", "main", "gpt2", "model_explorer")
LEFT_OUT = ("learn",)  # its files are there to be edited
FOLDERS = ("configs", "reproductions")  # of data that the code reads
FILES = {name: sorted((ROOT / name).rglob("*")) or [ROOT / f"{name}.py"] for name in (*OURS, *FOLDERS)}
# Names of modules that may stand in a string. Those with a dot are no words of other meaning.
DOTTED = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in OURS
    for path in FILES[name]
    if path.suffix == ".py" and path.parent != ROOT
}


class BuildPackage(build_py):
    """Copies our files below whatif/, where imports and other names of our modules begin with `whatif.`."""

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit("whatif needs no editable install: edit a clone, and run its main.py")
        target = Path(self.build_lib, "whatif")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        shutil.copytree(ROOT / "whatif", target, ignore=shutil.ignore_patterns("__pycache__"))
        for name in {*OURS, *FOLDERS}.difference(LEFT_OUT):
            for source in FILES[name]:
                copy = target / source.relative_to(ROOT)
                if not source.is_dir() and source.suffix != ".pyc":
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, copy)
        for path in target.rglob("*.py"):
            path.write_bytes(renamed(path.read_bytes()))


def renamed(source: bytes) -> bytes:
    """Return the source of a module with `whatif.` before each name of a module of ours."""
    lines = source.splitlines(keepends=True)
    for line, column in sorted(names_of_modules(ast.parse(source)), reverse=True):
        text = lines[line - 1]
        lines[line - 1] = text[:column] + b"whatif." + text[column:]
    return b"".join(lines)


def names_of_modules(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Yield the line and the column, in bytes, of each name of a module of ours, in an import or as a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in OURS:
            yield node.lineno, node.col_offset + len("from ")
        elif isinstance(node, ast.Constant) and node.value in DOTTED:
            yield node.lineno, node.col_offset + len('"')
        elif isinstance(node, ast.Import) and any(name.name.split(".")[0] in OURS for name in node.names):
            raise ValueError(f"{ast.unparse(node)}: only `from ... import` can name a module below whatif")


def requirements(path: Path) -> list[str]:
    """Return the packages of a requirements file, with the range that a comment gives to the wheel.

    Other pinned versions, which are those that were tested, become the lowest.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    ranges = [line.partition("# the wheel takes ")[2] or line.partition("#")[0].strip() for line in lines]
    return [line.replace("==", ">=") for line in ranges if line and not line.startswith("-r ")]


def extras() -> dict[str, list[str]]:
    """Return the extras by name: the files requirements-NAME.txt that build on requirements.txt."""
    paths = [path for path in ROOT.glob("requirements-*.txt") if "-r requirements.txt" in path.read_text()]
    return {path.stem.partition("-")[2]: requirements(path) for path in paths}


if __name__ == "__main__":
    setup(
        cmdclass={"build_py": BuildPackage},
        install_requires=requirements(ROOT / "requirements.txt"),
        extras_require=extras(),
    )
