"""Results on disk, named by what they were made from: a folder is complete or is not there."""

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).resolve().parents[1]
READS_FILE = "reads.json"


def digest(*parts: object) -> str:
    """A short name for values that have a telling repr."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


used: list[Path] = []  # folders that were asked for


class Reads:
    """Names of the params fields that code reads to make a data set."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.known = True  # False: a folder of the cache was made while nobody noted what was read

    def save(self, folder: Path) -> None:
        (folder / READS_FILE).write_text(json.dumps(sorted(self.names)), encoding="utf-8")

    def add(self, folder: Path) -> None:
        """Add what was read when `folder` was made."""
        try:
            self.names.update(json.loads((folder / READS_FILE).read_text(encoding="utf-8")))
        except OSError:
            self.known = False


noted: list[Reads] = []  # of the innermost note_reads


@contextmanager
def note_reads() -> Iterator[Reads]:
    """Keep, with every folder made meanwhile, the names that the caller adds to these Reads.

    A folder made earlier adds its names: they are the same, since its key holds the fields and the code. Use one
    `note_reads` for each data set.
    """
    reads = Reads()
    noted.append(reads)
    try:
        yield reads
    finally:
        noted.pop()


@functools.cache
def code_digest() -> str:
    """Of the files in data/: whoever edits a task, or this code, must not meet yesterday's results."""
    return tree_digest(Path(__file__).parent)


def tree_digest(folder: Path) -> str:
    """Return the digest of all Python files in `folder` and its subfolders."""
    files = sorted(folder.rglob("*.py"))
    return digest(*((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files))


def changed_fields(params: Any) -> tuple[tuple[str, object], ...]:
    """Return name and value of every dataclass field that is not at its default, in order of names.

    A field that a user adds is in every cache key as soon as it is set. At its default it leaves the keys as they were.
    """
    values = (
        (field.name, getattr(params, field.name), default_of(field)) for field in dataclasses.fields(params)
    )
    return tuple(sorted((name, in_order(value)) for name, value, default in values if value != default))


def default_of(field: dataclasses.Field) -> object:
    """Return the default of a dataclass field, `MISSING` if it has none."""
    default: Any = field.default
    factory = field.default_factory
    if hasattr(default, "is_required"):  # pydantic's Field(...)
        return (
            dataclasses.MISSING if default.is_required() else default.get_default(call_default_factory=True)
        )
    return default if factory is dataclasses.MISSING else factory()


def in_order(value: object) -> object:
    """Return `value` with the keys of its dicts sorted, so that equal values have equal reprs."""
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value, key=repr)}
    if isinstance(value, list | tuple):
        return type(value)(map(in_order, value)) if type(value) in (list, tuple) else value
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else value


def source_files(file: Path, package: str) -> set[Path]:
    """Return `file` and the project's files that it imports, directly or through others, with those of their packages.

    `package` is the package of the module in `file`, for relative imports. The project is the repository and the folder
    of `file`; installed packages do not count.
    """
    roots = PROJECT, file.resolve().parent
    found: set[Path] = set()
    to_read = [(file.resolve(), package)]
    while to_read:
        path, package = to_read.pop()
        if path in found:
            continue
        found.add(path)
        for name in with_parents([package, *imported_names(path, package)]):
            module = sys.modules.get(name)
            origin = Path(getattr(module, "__file__", None) or "").resolve()
            in_project = (
                any(origin.is_relative_to(root) for root in roots) and "site-packages" not in origin.parts
            )
            if in_project and origin.suffix == ".py":
                to_read.append((origin, getattr(module, "__package__", None) or ""))
    return found


def with_parents(names: Iterable[str]) -> set[str]:
    """Return dotted names and the packages around them, whose __init__.py runs at an import, too."""
    return {
        ".".join(parts[: i + 1]) for name in names for parts in [name.split(".")] for i in range(len(parts))
    }


def function_digest(function: Callable[..., object]) -> str:
    """Return the digest of the file that defines `function` and of the project's files it imports.

    Of a partial the arguments count, too, of a callable object its attributes, of a builtin function the name.
    """
    if isinstance(function, functools.partial):
        return digest(function_digest(function.func), in_order(function.args), in_order(function.keywords))
    function = inspect.unwrap(function)
    if isinstance(function, type) or inspect.isbuiltin(function):
        state: object = function.__qualname__
    else:
        state = {} if inspect.isroutine(function) else in_order(vars(function))
    try:
        file = Path(inspect.getfile(definition_of(function)))
    except TypeError:  # written in no file
        if function.__module__ in sys.stdlib_module_names:
            return digest(function.__module__, state)
        file = Path()
    if not file.is_file():  # typed into a notebook: nothing is known to be as it was earlier
        return uuid.uuid4().hex
    module = sys.modules.get(function.__module__)
    files = source_files(file, getattr(module, "__package__", None) or "")
    return digest(state, *sorted(path.read_bytes() for path in files))


def definition_of(function: Callable[..., object]) -> Any:
    """Return what was written in a file: a function or class as it is, of any other object its class."""
    return function if inspect.isroutine(function) or isinstance(function, type) else type(function)


def imported_names(file: Path, package: str) -> Iterator[str]:
    """Yield the full name of everything that `file` imports and that may be a module."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def lock(file: IO) -> bool:
    """Lock an open file until it is closed or its process ends. Return False if another holds it or locks are missing."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


@contextmanager
def unfinished_folder(cache: Path) -> Iterator[Path]:
    """Create a folder to build in, and remove it at the end. The lock beside it tells others that its process lives."""
    with tempfile.NamedTemporaryFile(dir=cache, prefix="unfinished-", suffix=".lock") as file:
        lock(file)
        folder = Path(file.name).with_suffix("")
        # Made only when the lock is held, so that whoever sees the folder can rely on the lock.
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(cache: Path) -> None:
    """Remove the unfinished folders of processes that were killed. Those without a lock file are left alone."""
    for folder in cache.glob("unfinished-*/"):
        path = folder.with_suffix(".lock")
        with suppress(FileNotFoundError), path.open("r+") as file:
            if lock(file):
                shutil.rmtree(folder, ignore_errors=True)
                path.unlink(missing_ok=True)


def cached(cache: Path, kind: str, key: tuple[object, ...], build: Callable[[Path], None]) -> Path:
    """The folder of `cache` that `build` filled for this `key`, now or earlier."""
    folder = cache / f"{kind}-{digest(code_digest(), key)}"
    used.append(folder)
    if folder.exists():
        for reads in noted[-1:]:
            reads.add(folder)
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    remove_unfinished(cache)
    with unfinished_folder(cache) as workplace:
        made = workplace / kind
        made.mkdir()
        build(made)
        for reads in noted[-1:]:
            reads.save(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same result
                raise
    return folder
