"""The Hugging Face hub: whether it can be reached, found out in seconds instead of minutes, and folders of its models."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def hub_answers(timeout: float = 5.0) -> bool:
    """True if the hub (HF_ENDPOINT, else huggingface.co) says anything at all; False if HF_HUB_OFFLINE forbids to ask."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:
        return True  # a refusal is an answer too
    except OSError:
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Inside, the hub's client looks only at what it has downloaded earlier."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def name_and_revision(source: str) -> tuple[str, str | None]:
    """Split "EleutherAI/pythia-70m@step1000"; a folder of that name, or a name alone, has no revision."""
    name, _, revision = source.partition("@")
    return (source, None) if Path(source).is_dir() else (name, revision or None)


def local_snapshot(name: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """Return the folder `name`, or that of a repository downloaded earlier, if it has the first of `files`; else None.

    A repository from which only that one file was downloaded counts as not downloaded.
    """
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name) if (Path(name) / files[0]).is_file() else None
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
    has = [(folder / file).is_file() for file in files]
    return folder if has[0] and any(has[1:]) else None


def download_snapshot(name: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """Download those of `files` that a repository has; return their folder, None if it lacks the first of them."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError):  # not found, not allowed, or no name at all: whoever asks next says so
        return None
    return folder if (folder / files[0]).is_file() else None
