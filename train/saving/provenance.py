"""Provenance: the code that trained a run, as git commit, diff, file hashes and package versions."""

import ast
import hashlib
import json
import os
import platform
import subprocess
import sys
from contextvars import ContextVar
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from common.repository import REPOSITORY

PLAIN_DIFF = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "numpy")
DECISIVE = ("model", "train", "data", "common")  # folders whose code affects the results of a run
STUDENTS = {"learn.gpt2_student": "learn/gpt2_student.py"}  # by module: decisive if it is imported


class Code(NamedTuple):
    """The code of this process: its git commit (None outside git), the diff to it, and a hash of each relevant file."""

    commit: str | None
    diff: bytes
    hashes: dict[str, str]


# In a worker: the code of the first process.
taken: ContextVar[Code | None] = ContextVar("taken", default=None)


def code_of_this_process() -> Code:
    """Return the code at the time of the first call, which is before the first run starts."""
    return taken.get() or first_code()


@cache
def first_code() -> Code:
    commit = git("rev-parse", "--verify", "HEAD").decode().strip() or None
    return Code(commit, code_diff(commit), hashes_of_code())


def take_code_of(code: Code) -> None:
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
    try:
        command = ["git", "-C", str(REPOSITORY), *args]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return b""


def hashes_of_code() -> dict[str, str]:
    """Return a hash of the syntax tree of each file. Comments and layout do not change it."""
    files = sorted(path for folder in DECISIVE for path in (REPOSITORY / folder).rglob("*.py"))
    in_use = [REPOSITORY / name for module, name in STUDENTS.items() if module in sys.modules]
    files += [path for path in in_use if path.is_file()]
    return {path.relative_to(REPOSITORY).as_posix(): hash_of_code(path.read_bytes()) for path in files}


def hash_of_code(source: bytes) -> str:
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()[:20]


def code_id(hashes: dict[str, str]) -> str:
    """Return a short name for the code with these hashes by file; "unknown" without any."""
    text = json.dumps(hashes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8] if hashes else "unknown"


def changed_files(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the names of files that were changed, added or removed."""
    return sorted(name for name in then | now if then.get(name) != now.get(name))


@cache
def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
