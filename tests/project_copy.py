"""A copy of the project in a git repository of its own, for tests that edit code and compare it with a commit."""

import shutil
import subprocess
import sys
from pathlib import Path

from common.repository import REPOSITORY

PARTS = ("common", "configs", "data", "explore", "learn", "model", "train")
SCORES = "scores_BHTS = (q_BHTK / (math.sqrt(K) * self.temperature)) @ k_BHSK.mT"


class ProjectCopy:
    """The copy in `folder`; its outputs go to `out`."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out = folder, out
        for name in PARTS:
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "main.py", folder)
        (folder / ".gitignore").write_text("__pycache__\n", encoding="utf-8")
        self.git("init", "-q", "-b", "main")
        self.commit("first")

    def git(self, *args: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *identity, *args]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def commit(self, subject: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", subject)

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that occurs exactly once in a file."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def main(self, *options: str) -> tuple[int, str]:
        """Run main.py without wandb. Return its exit code and its output."""
        command = [sys.executable, "main.py", "--no-wandb", f"--out={self.out}", *options]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=600, check=False
        )
        return done.returncode, done.stdout + done.stderr
