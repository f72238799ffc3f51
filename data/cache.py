"""Results on disk, named by what they were made from: a folder is complete or is not there."""

import functools
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path


def digest(*parts: object) -> str:
    """A short name for values that have a telling repr."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


used: list[Path] = []  # folders that were asked for


@functools.cache
def code_digest() -> str:
    """Of the files in data/: whoever edits a task, or this code, must not meet yesterday's results."""
    return digest(*(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))


def cached(cache: Path, kind: str, key: tuple[object, ...], build: Callable[[Path], None]) -> Path:
    """The folder of `cache` that `build` filled for this `key`, now or earlier."""
    folder = cache / f"{kind}-{digest(code_digest(), key)}"
    used.append(folder)
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="unfinished-") as workplace:
        made = Path(workplace) / kind
        made.mkdir()
        build(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same result
                raise
    return folder
