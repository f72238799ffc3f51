"""Provenance: the code that trained a run, as git commit, diff, file hashes and package versions."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from common.repository import REPOSITORY
from train.grid.params import Params
from train.grid.run import OwnFile
from train.saving.code import INSTALLED, Code, own_files

PLAIN_DIFF = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "numpy")


class Version(NamedTuple):
    """The version of the code that this process runs."""

    commit: str | None  # None outside git
    subject: str  # of the commit
    diff: bytes
    code: Code

    def hashes(self, params: Params) -> dict[str, str]:
        """Return the hash of each file whose code counts for a run; see train/saving/code.py."""
        return self.code.hashes(params.flat())


# In a worker: the code of the first process.
taken: ContextVar[Version | None] = ContextVar("taken", default=None)


def code_of_this_process() -> Version:
    """Return the code at the time of the first call, which is before the first run starts."""
    return taken.get() or first_code(tuple(own_files.values()))


@cache
def first_code(own: tuple[OwnFile, ...]) -> Version:
    """Return the code as it is now, which includes the user's `own` files."""
    commit = git("rev-parse", "--verify", "HEAD").decode().strip() or None
    subject = git("log", "-1", "--format=%s").decode(errors="replace").strip()
    return Version(commit, subject, code_diff(commit), Code.read(REPOSITORY))


def take_code_of(code: Version) -> None:
    """Use the code of the first process in a worker, even if files have changed since."""
    taken.set(code)


def code_diff(commit: str | None) -> bytes:
    """Return the patch by which `git apply` turns the commit into the current .py files and configs.

    Untracked .py files are included if they lie in a top folder with tracked ones, which excludes virtual environments.
    Untracked configs are included too, even ignored ones: a run cannot be repeated without its config.
    """
    diff = ("diff", "--relative", *PLAIN_DIFF)
    changed = git(*diff, commit, "--", "*.py", "configs/*.txt") if commit else b""
    ours = set(map(top_folder, git_files("*.py")))
    untracked = [
        name for name in git_files("--others", "--exclude-standard", "*.py") if top_folder(name) in ours
    ]
    untracked += git_files("--others", "configs/*.txt")
    return changed + b"".join(git(*diff, "--no-index", "--", os.devnull, name) for name in untracked)


def top_folder(name: str) -> tuple[str, ...]:
    return Path(name).parts[:-1][:1]


def git_files(*args: str) -> list[str]:
    return os.fsdecode(git("ls-files", "-z", *args)).split("\0")[:-1]


def git(*args: str) -> bytes:
    """Return the output of git in the repository; empty if there is no git or no repository."""
    if INSTALLED:  # a repository around it is that of another project
        return b""
    try:
        command = ["git", "-C", str(REPOSITORY), *args]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return b""


def code_id(hashes: Mapping[str, str]) -> str:
    """Return a short name for the code with these hashes; "unknown" without any."""
    text = json.dumps(hashes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8] if hashes else "unknown"


@cache
def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
