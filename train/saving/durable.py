"""Write files and folders that survive a kill and a power cut: content reaches the disk before its name does."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot sync folders. For a file the error may mean a full disk.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync `folder` with all files and folders in it."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end. An error leaves `path` unchanged."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Create `path` and its missing parents. Raise FileExistsError if `path` exists."""
    missing = [path, *takewhile(lambda parent: not parent.exists(), path.parents)]
    path.mkdir(parents=True)
    for folder in missing:
        sync(folder.parent)


def rename(path: Path, target: Path) -> Path:
    """Rename a file or folder within its parent folder and return `target`."""
    path.rename(target)
    sync(target.parent)
    return target
