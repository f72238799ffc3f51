"""Own parts: Python files outside the repository that register what configs name, such as layers, optimizers and tasks."""

import atexit
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from common.registry import Lazy, Registry
from data.corpora import corpora
from data.syntheticdata import tasks
from data.tokenizer import recipes
from model.context import layer_kinds
from model.transformer.norms import norms
from model.transformer.transformerencoderlayer import activations
from train.final_metrics import final_metrics
from train.grid.run import OwnFile
from train.optimizers import optimizers
from train.saving.code import own_files
from train.schedules import schedules

PART_REGISTRIES: tuple[Registry[Any], ...] = (
    layer_kinds,
    norms,
    activations,
    optimizers,
    schedules,
    tasks,
    corpora,
    recipes,
    final_metrics,
)
MODULE_NAME = "own_parts_"  # begins the name of the module that a file becomes


def load_parts(path: str | Path) -> list[str]:
    """Run a Python file whose decorators register parts, as `--with` does. Return the names that configs may now use.

    A file that is loaded again replaces its earlier parts. Its code then counts as that of a run, and a saved run keeps
    a copy. Raise ValueError if the file cannot be read or run, or if it registers a name that exists already.
    """
    file = Path(path).resolve()
    try:
        return register_parts(OwnFile(str(file), file.read_bytes()))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def register_parts(own: OwnFile) -> list[str]:
    """Run a file of the user's own, from the bytes that were read. Return the names that it registers."""
    if own_files.get(own.name) == own:
        return part_names(own)
    if own.name in own_files and own_files[own.name].path != own.path:
        raise ValueError(f"{own.path}: {own_files[own.name].path} has the same name; rename one of them")
    unregister(own.name)
    before = [dict(registry.entries) for registry in PART_REGISTRIES]
    try:
        run_file(own)
        for registry, entries in zip(PART_REGISTRIES, before, strict=True):
            for name, entry in entries.items():
                if is_replaced(entry, registry.entries[name]):
                    raise ValueError(
                        f"it registers the {registry.kind} {name!r}, which exists already; rename it"
                    )
    except BaseException as error:
        own_files.pop(own.name, None)
        for registry, entries in zip(PART_REGISTRIES, before, strict=True):
            restore(registry, entries)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(f"{place_in(own, error)}: {what_failed(own, error)}") from error
    own_files[own.name] = own  # at its earlier place, as a later file may use it
    names_by_file[own.name] = [
        (registry, name)
        for registry, entries in zip(PART_REGISTRIES, before, strict=True)
        for name in registry.entries.keys() - entries.keys()
    ]
    return part_names(own)


names_by_file: dict[str, list[tuple[Registry[Any], str]]] = {}  # by the name of the file


def register_all(files: Iterable[OwnFile]) -> None:
    """Register the parts of the first process in a worker."""
    for own in files:
        register_parts(own)


def part_names(own: OwnFile) -> list[str]:
    return sorted(name for _, name in names_by_file[own.name])


def restore(registry: Registry[Any], entries: dict[str, Any]) -> None:
    """Give a registry its earlier entries, but keep lazy ones that were loaded: their modules are not imported again."""
    now = registry.entries
    registry.entries = {
        name: entry if is_replaced(entry, now.get(name)) else now[name] for name, entry in entries.items()
    }


def is_replaced(entry: object, now: object) -> bool:
    """Return True if a file has replaced an entry. A lazy entry is not replaced when its own module is imported."""
    if isinstance(entry, Lazy):
        return now is not entry and getattr(now, "__module__", None) != entry.module
    return now is not entry


def remove_parts(file_name: str) -> None:
    """Remove a file of the user's own and its parts."""
    own_files.pop(file_name, None)
    unregister(file_name)


def unregister(file_name: str) -> None:
    """Remove the parts that an earlier version of a file registered."""
    for registry, name in names_by_file.pop(file_name, []):
        registry.entries.pop(name, None)


def run_file(own: OwnFile) -> None:
    """Run the file as a module. Caches of tasks find its code in a file, so other machines get a copy of it."""
    path = Path(own.path)
    if not (path.is_file() and path.read_bytes() == own.source):
        folder = tempfile.mkdtemp(prefix="whatif-parts-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder, own.name)
        path.write_bytes(own.source)
    name = f"{MODULE_NAME}{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError("its name should end in .py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(own.source, str(path), "exec"), vars(module))  # noqa: S102 -- the user asks for it


def what_failed(own: OwnFile, error: BaseException) -> str:
    """Return the error of a file in words, with what to do if it imports a file that lies beside it."""
    message = f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, ModuleNotFoundError) and error.name:
        beside = Path(own.path).with_name(f"{error.name}.py")
        if beside.is_file():
            return (
                f"it imports {beside.name}, which lies beside it, but only files given by --with count as code and travel: give "
                f"{beside.name} first, as a --with of its own, and import it by the name {MODULE_NAME}{error.name}"
            )
    return message


def place_in(own: OwnFile, error: BaseException) -> str:
    """Return "my_parts.py:12", the line of the file in which an error arose, if there is one."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{own.path}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == own.name]
    return f"{own.path}:{lines[-1]}" if lines else own.path
