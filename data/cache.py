"""Content-addressed cache on disk: the key names a folder, and a folder only appears once it is complete."""

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
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from common.repository import REPOSITORY

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

READS_FILE = "reads.json"


def digest(*parts: object) -> str:
    """Return 20 hex digits of the SHA-256 of the reprs of `parts`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


class Reads:
    """The params fields that the code of a data set has read, and the data set's folders in the cache."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.folders: list[Path] = []
        # False if a cache folder was built without note_reads, so that its fields are unknown.
        self.known = True

    def save(self, folder: Path) -> None:
        """Write the names to `folder` as JSON."""
        (folder / READS_FILE).write_text(json.dumps(sorted(self.names)), encoding="utf-8")

    def add(self, folder: Path) -> None:
        """Add the names saved with `folder`; set `known` to False if it has none."""
        try:
            self.names.update(json.loads((folder / READS_FILE).read_text(encoding="utf-8")))
        except OSError:
            self.known = False


# The Reads of the innermost open note_reads.
active_reads: ContextVar[Reads | None] = ContextVar("active_reads", default=None)


@contextmanager
def note_reads() -> Iterator[Reads]:
    """Save the names in the yielded Reads with every cache folder that is built inside the `with` block.

    A folder that exists already adds its saved names instead. Its key contains the fields and the code, so the names
    would be the same. Use one `note_reads` for each data set.
    """
    reads = Reads()
    token = active_reads.set(reads)
    try:
        yield reads
    finally:
        active_reads.reset(token)


@functools.cache
def code_digest() -> str:
    """Return the digest of all files in data/, so that an edit of a task or of this code invalidates the cache."""
    return tree_digest(Path(__file__).parent)


def tree_digest(folder: Path) -> str:
    """Return the digest of all Python files in `folder` and its subfolders: relative paths and contents."""
    files = sorted(folder.rglob("*.py"))
    return digest(*((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files))


def changed_fields(params: "DataclassInstance") -> tuple[tuple[str, object], ...]:
    """Return (name, value) of every dataclass field that differs from its default, sorted by name.

    A field that a user adds therefore enters every cache key once it is set, and changes no key at its default.
    """
    values = (
        (field.name, getattr(params, field.name), default_of(field)) for field in dataclasses.fields(params)
    )
    return tuple(
        sorted((name, sorted_contents(value)) for name, value, default in values if value != default)
    )


def default_of(field: dataclasses.Field) -> object:
    """Return the default of a dataclass field, or `dataclasses.MISSING`."""
    default: Any = field.default
    factory = field.default_factory
    if hasattr(default, "is_required"):  # pydantic's Field(...)
        return (
            dataclasses.MISSING if default.is_required() else default.get_default(call_default_factory=True)
        )
    return default if factory is dataclasses.MISSING else factory()


def sorted_contents(value: object) -> object:
    """Return `value` with sorted dicts and sets, so that equal values have equal reprs."""
    if isinstance(value, dict):
        return {key: sorted_contents(value[key]) for key in sorted(value, key=repr)}
    if isinstance(value, list | tuple):
        return type(value)(map(sorted_contents, value)) if type(value) in (list, tuple) else value
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else value


def source_files(file: Path, package: str) -> set[Path]:
    """Return `file`, the project files it imports directly or indirectly, and their packages' `__init__.py`.

    `package` is the package of the module in `file`, to resolve relative imports. Project files lie in this repository
    or in the folder of `file`; installed packages are excluded.
    """
    roots = REPOSITORY, file.resolve().parent
    found: set[Path] = set()
    to_read = [(file.resolve(), package)]
    while to_read:
        path, package = to_read.pop()
        if path in found:
            continue
        found.add(path)
        for name in with_parents([package, *imported_names(path.read_bytes(), package)]):
            module = sys.modules.get(name)
            origin = Path(getattr(module, "__file__", None) or "").resolve()
            in_project = (
                any(origin.is_relative_to(root) for root in roots) and "site-packages" not in origin.parts
            )
            if in_project and origin.suffix == ".py":
                to_read.append((origin, getattr(module, "__package__", None) or ""))
    return found


def with_parents(names: Iterable[str]) -> set[str]:
    """Return the dotted names and all their parent packages, since an import runs those `__init__.py` files, too."""
    return {
        ".".join(parts[: i + 1]) for name in names for parts in [name.split(".")] for i in range(len(parts))
    }


def function_digest(function: Callable[..., object]) -> str:
    """Return the digest of the file that defines `function` and of the project files it imports.

    A partial adds its arguments, a callable object its attributes, and a builtin function its name. A function
    without a source file, such as one typed into a notebook, gets a new random digest at each call.
    """
    if isinstance(function, functools.partial):
        return digest(
            function_digest(function.func), sorted_contents(function.args), sorted_contents(function.keywords)
        )
    function = inspect.unwrap(function)
    if isinstance(function, type) or inspect.isbuiltin(function):
        state: object = function.__qualname__
    else:
        state = {} if inspect.isroutine(function) else sorted_contents(vars(function))
    try:
        file = Path(inspect.getfile(definition_of(function)))
    except TypeError:  # builtins have no file
        if function.__module__ in sys.stdlib_module_names:
            return digest(function.__module__, state)
        file = Path()
    # Typed into a notebook: whether the code has changed is unknown, so no cached result may match.
    if not file.is_file():
        return uuid.uuid4().hex
    module = sys.modules.get(function.__module__)
    files = source_files(file, getattr(module, "__package__", None) or "")
    return digest(state, *sorted(path.read_bytes() for path in files))


def definition_of(function: Callable[..., object]) -> Callable[..., object]:
    """Return the object that has source code: a function or class itself, or the class of any other object."""
    return function if inspect.isroutine(function) or isinstance(function, type) else type(function)


@functools.cache
def imported_names(source: bytes, package: str) -> frozenset[str]:
    """Return the absolute dotted name of each import in a file; some name functions or classes instead of modules."""
    return frozenset(names_of_imports(ast.parse(source), package))


def names_of_imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def lock(file: IO) -> bool:
    """Lock an open file until it is closed or its process ends.

    Return False if another process holds the lock, or if the system does not support locks.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


@contextmanager
def unfinished_folder(cache: Path) -> Iterator[Path]:
    """Yield a new folder to build in, and remove it on exit.

    A locked file beside the folder tells other processes that its owner is alive.
    """
    with tempfile.NamedTemporaryFile(dir=cache, prefix="unfinished-", suffix=".lock") as file:
        lock(file)
        folder = Path(file.name).with_suffix("")
        # Create the folder only after locking, so that every process that sees the folder also sees the lock.
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(cache: Path) -> None:
    """Remove the unfinished folders of killed processes. Folders without a lock file stay."""
    for folder in cache.glob("unfinished-*/"):
        path = folder.with_suffix(".lock")
        with suppress(FileNotFoundError), path.open("r+") as file:
            if lock(file):
                shutil.rmtree(folder, ignore_errors=True)
                path.unlink(missing_ok=True)


def cached(cache: Path, kind: str, key: tuple[object, ...], build: Callable[[Path], None]) -> Path:
    """Return the folder in `cache` for this `key`; call `build(folder)` to fill it if it does not exist.

    `kind` is the first part of the folder's name. The name also covers the code in data/ and `key`.
    """
    folder = cache / f"{kind}-{digest(code_digest(), key)}"
    reads = active_reads.get()
    if reads:
        reads.folders.append(folder)
    if folder.exists():
        if reads:
            reads.add(folder)
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    remove_unfinished(cache)
    with unfinished_folder(cache) as workplace:
        made = workplace / kind
        made.mkdir()
        build(made)
        if reads:
            reads.save(made)
        try:
            made.rename(folder)
        except OSError:
            # If the folder exists, another process was faster and has built the same.
            if not folder.exists():
                raise
    return folder
