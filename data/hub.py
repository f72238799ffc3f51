"""The Hugging Face hub: a quick test for a connection, an offline mode, and the folders of its models."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def hub_answers(timeout: float = 5.0) -> bool:
    """Return whether the hub responds within `timeout` seconds, at HF_ENDPOINT or huggingface.co.

    Return False without a request if HF_HUB_OFFLINE is set.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:
        return True  # an HTTP error still shows that the hub responds
    except OSError:
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Make the hub's client use earlier downloads only, inside the `with` block."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def name_and_revision(source: str) -> tuple[str, str | None]:
    """Split "EleutherAI/pythia-70m@step1000" into name and revision.

    The revision is None without an "@", or if `source` is an existing folder.
    """
    name, _, revision = source.partition("@")
    return (source, None) if Path(source).is_dir() else (name, revision or None)


def local_snapshot(name: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """Return the folder `name`, or the folder of an earlier download, if it has the first of `files`; else None.

    Return None, too, if that file is the only one of `files` in the download.
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
    """Download `files`, as far as the repository has them. Return their folder, or None if the first is missing."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    # Not found, forbidden, or an invalid name: the caller reports the error of its next request.
    except (OSError, ValueError):
        return None
    return folder if (folder / files[0]).is_file() else None
