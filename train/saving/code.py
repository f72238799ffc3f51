"""Code: a hash of each source file that takes part in a run, without what cannot change its result.

Docstrings, comments, layout and log lines do not count. Neither does a registered function, such as a task or an
optimizer, if neither the run's params nor other code that counts names it.
"""

import ast
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from train.grid.run import OwnFile
from train.saving.durable import replacing

START = "train/run.py"  # a run is what this file imports, directly or not
# Folders and files that take part in a run, but do not change its result.
NOT_COUNTED = ("train/launch/", "train/saving/", "train/logs.py", "train/progress.py", "explore/")
# Files that only runs with this field set import.
ON_DEMAND = {"model/hf/": "from_pretrained"}
# Decorators that register a function or class under a name that configs use.
REGISTER = {"registered", "register", "register_tokenizer", "layer_kind", "metric"}
TEXT_ID = re.compile("[0-9a-f]{20}")
INSTALLED = __name__.startswith("whatif.")  # from the wheel, not a clone: see docs/api.md
# What setup.py adds to names of modules for the wheel. Without it the code is that of the repository.
ADDED_BY_WHEEL = re.compile(rb"""(?m)^(\s*from )whatif\.|(["'])whatif\.(?=\w+\.)""")


own_files: dict[str, OwnFile] = {}  # those that this process has loaded, by name
OWN = "with/"  # folder of their names among the files of a project


class CodePart(NamedTuple):
    """A piece of a file: a registered function or class, or all the rest."""

    hash: str
    names: frozenset[str]  # that it uses: some are defined in its own file
    foreign_names: frozenset[str]  # that it imports, or looks up in a module or an object


class SourceFile(NamedTuple):
    """The code of a file, as far as it can change the result of a run."""

    text: str
    modules: frozenset[str]  # that it imports; some of them may be names in modules
    lazy_modules: dict[str, str]  # that a registry imports, by the registered name
    rest: CodePart
    entries: dict[str, CodePart]  # functions and classes, by the name in Python
    registered: dict[str, str]  # name in Python, by registered name


class Code:
    """The files of a project that a run can import, as they were when they were read."""

    def __init__(self, files: Mapping[str, SourceFile]) -> None:
        self.files = files  # by path, relative to the root of the project
        self.names = {name for file in files.values() for name in (*file.registered, *file.lazy_modules)}
        self.known: dict[object, dict[str, str]] = {}

    @cached_property
    def text_id(self) -> str:
        """The name under which the text of all files is kept."""
        return hash_of_text(json.dumps([(name, file.text) for name, file in sorted(self.files.items())]))

    @classmethod
    def read(cls, root: Path) -> "Code":
        """Read the project at `root`, and own files. Raise SyntaxError for a file that is not Python."""
        found = {f"{OWN}{name}": read_source(own.source, f"{OWN}{name}") for name, own in own_files.items()}
        new = [
            START,
            *(path for file in found.values() for module in file.modules for path in files_of(module)),
        ]
        while new:
            name = new.pop()
            if name not in found and (root / name).is_file():
                found[name] = read_source((root / name).read_bytes(), name)
                for module in found[name].modules:
                    new += files_of(module)
                lazy = (path for module in found[name].lazy_modules.values() for path in files_of(module))
                new += (path for path in lazy if not path.startswith(NOT_COUNTED))
        return cls(found)

    def keep(self, out: Path) -> None:
        """Write the text of all files to `out`/code, so that a later call can show what changed since."""
        path = kept_text(out, self.text_id)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = {name: file.text for name, file in self.files.items()}
            with replacing(path) as partial:
                partial.write_bytes(gzip.compress(json.dumps(texts).encode(), mtime=0))

    def hashes(self, values: Mapping[str, object]) -> dict[str, str]:
        """Return the hashes of the code that counts for a run whose fields have these values.

        There is one for each file, "model/lm.py", and for each registered function, "data/syntheticdata.py:copy". Two
        runs have the same code if the hashes of all that they have in common are equal.
        """
        texts = self.names.intersection(texts_in(values))
        places = tuple(place for place, field in ON_DEMAND.items() if values.get(field) is not None)
        key = frozenset(texts), places
        if key not in self.known:
            self.known[key] = hashes_of(self.files, texts, places)
        return self.known[key]


@cache
def read_source(source: bytes, name: str) -> SourceFile:
    source = ADDED_BY_WHEEL.sub(rb"\1\2", source)
    tree = ast.parse(source, name)
    text = source.decode(errors="replace")
    modules, lazy = set[str](), dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules.update(imported(node, name))
        elif isinstance(node, ast.Call) and last_name(node.func) == "add_lazy":
            registered, module = map(ast.literal_eval, node.args)
            lazy[registered] = module
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    registered_as = {node.name: names for node in definitions if (names := registered_names(node))}
    entries = {node.name: code_part(node) for node in definitions if node.name in registered_as}
    rest = [node for node in tree.body if getattr(node, "name", None) not in entries]
    registered = {name: own for own, names in registered_as.items() for name in names}
    return SourceFile(text, frozenset(modules), lazy, code_part(ast.Module(rest, [])), entries, registered)


def registered_names(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """Return the names under which decorators register a function or class: those that a config may use."""
    names = set()
    for decorator in node.decorator_list:
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        if last_name(function) in REGISTER:
            texts = [part.value for part in ast.walk(decorator) if isinstance(part, ast.Constant)]
            names |= {text for text in texts if isinstance(text, str)}
            names |= {node.name, node.name.replace("_", "-")}
    return names


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def imported(node: ast.Import | ast.ImportFrom, name: str) -> Iterator[str]:
    """Yield the modules that a statement in the file `name` imports, and names that may be modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    else:
        package = Path(name).parent.parts
        module = ".".join(
            [*package[: len(package) + 1 - node.level], node.module or ""]
            if node.level
            else [node.module or ""]
        )
        yield from (module.strip("."), *(f"{module}.{alias.name}".strip(".") for alias in node.names))


def files_of(module: str) -> list[str]:
    """Return the files that an import of `module` may run: those of its packages, and its own."""
    parts = module.split(".")
    paths = [Path(*parts[:end]) for end in range(1, len(parts) + 1)]
    return [file.as_posix() for path in paths for file in (path / "__init__.py", path.with_suffix(".py"))]


def code_part(node: ast.AST) -> CodePart:
    counted = Counted().visit(node)
    parts = list(ast.walk(counted))
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    foreign = {part.attr for part in parts if isinstance(part, ast.Attribute)}
    foreign |= {alias.name for part in parts if isinstance(part, ast.ImportFrom) for alias in part.names}
    return CodePart(hash_of_text(ast.dump(counted)), frozenset(names), frozenset(foreign))


class Counted(ast.NodeTransformer):
    """Removes docstrings, log lines and names of metrics. A body that is empty without them becomes `pass`."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        value = node.value
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        function = value.func if isinstance(value, ast.Call) else None
        is_log = isinstance(function, ast.Attribute) and last_name(function.value) == "log"
        # Metrics are computed after the training, and only if a claim names them.
        is_metric = function is not None and ast.unparse(function) == "final_metrics.add_lazy"
        return None if is_text or is_log or is_metric else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node


def hash_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def hashes_of(files: Mapping[str, SourceFile], texts: set[str], places: Collection[str]) -> dict[str, str]:
    """Return the hashes for a run whose fields name `texts`, and that imports the files in `places` on demand."""
    counting = counted_files(files, texts, places)
    entries = {
        name: {files[name].registered[text] for text in texts & files[name].registered.keys()}
        for name in counting
    }
    while True:  # until the code that counts uses no further entry
        parts = {
            name: [files[name].rest, *(files[name].entries[entry] for entry in sorted(entries[name]))]
            for name in counting
        }
        foreign = {name for group in parts.values() for part in group for name in part.foreign_names}
        more = {
            name: entries[name]
            | foreign.union(*(part.names for part in parts[name])) & files[name].entries.keys()
            for name in counting
        }
        if more == entries:
            hashes = {name: files[name].rest.hash for name in counting}
            used = {
                f"{name}:{entry}": files[name].entries[entry].hash
                for name in counting
                for entry in more[name]
            }
            return dict(sorted((hashes | used).items()))
        entries = more


def counted_files(files: Mapping[str, SourceFile], texts: set[str], places: Collection[str]) -> list[str]:
    """Return the files that a run imports and whose code counts."""
    found: list[str] = []
    new = [START, *(name for name in files if name.startswith(OWN))]
    while new:
        name = new.pop()
        is_on_demand = name.startswith(tuple(set(ON_DEMAND).difference(places)))
        if name in files and name not in found and not is_on_demand and not name.startswith(NOT_COUNTED):
            found.append(name)
            lazy = files[name].lazy_modules
            for module in (*files[name].modules, *(lazy[text] for text in lazy.keys() & texts)):
                new += files_of(module)
    return found


def texts_in(value: object) -> Iterator[str]:
    """Yield the texts in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from texts_in([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from texts_in(part)


def differing_files(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the files in which two runs, given by their hashes, have different code.

    Only what both runs use is compared, so that runs on different tasks can have the same code.
    """
    return files_with(part for part in one.keys() & other.keys() if one[part] != other[part])


def changed_files(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the files that were changed, added or removed between two runs with the same params."""
    return files_with(part for part in {**then, **now} if then.get(part) != now.get(part))


def files_with(parts: Iterable[str]) -> list[str]:
    """Return the sorted names of the files of these keys of hashes."""
    return sorted({part.partition(":")[0] for part in parts})


def kept_text(out: Path, text_id: str) -> Path:
    return out / "code" / f"{text_id}.json.gz"


def read_kept_text(out: Path, text_id: str) -> dict[str, str] | None:
    """Return the text of all files of a version of the code, or None if it was not kept here or cannot be read."""
    if not TEXT_ID.fullmatch(text_id):  # it comes from a run folder, which may be anybody's
        return None
    try:
        return read_texts(kept_text(out, text_id))
    except (OSError, EOFError, ValueError, zlib.error):
        return None


@lru_cache(maxsize=16)
def read_texts(path: Path) -> dict[str, str]:
    texts = json.loads(gzip.decompress(path.read_bytes()))
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{path} does not hold the text of files")
    return texts
