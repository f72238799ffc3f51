"""Runs opened by later code, a copy of the repository edited in between; and what is known of the code of a run."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.train.little_run import REPOSITORY, python
from train.saving import provenance


@pytest.fixture(scope="module")
def copy_of_repo(tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "whatif"
    for folder in ("common", "data", "model", "train", "tests"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "as it was")
    return copy


def git(folder: Path, *args: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


SAVE = "import sys; from pathlib import Path; from tests.train.little_run import save_run; print(save_run(Path(sys.argv[1])))"
LOAD = "import sys; from pathlib import Path; from train.saving.run_folder import load_run; print(load_run(Path(sys.argv[1])).params)"


@pytest.fixture(scope="module")
def old_run(copy_of_repo, tmp_path_factory):
    process = python(SAVE, tmp_path_factory.mktemp("old"), cwd=copy_of_repo)
    assert process.returncode == 0, process.stderr
    return Path(process.stdout.strip())


def load_after(copy: Path, folder: Path, file: str, before: str, after: str) -> subprocess.CompletedProcess:
    """`folder` loaded by the code of `copy` with one edit, which is then undone."""
    text = (copy / file).read_text()
    assert before in text
    (copy / file).write_text(text.replace(before, after))
    try:
        return python(LOAD, folder, cwd=copy)
    finally:
        (copy / file).write_text(text)


@pytest.mark.slow
def test_a_field_added_since_has_its_default_and_a_changed_model_is_announced(copy_of_repo, old_run):
    field = "    n_layers: NonNegativeInt = 4"
    new = load_after(
        copy_of_repo, old_run, "model/model_params.py", field, "    inject_relu: bool = False\n" + field
    )
    assert "inject_relu=False" in new.stdout, new.stderr
    commit = git(copy_of_repo, "rev-parse", "HEAD").strip()
    assert [
        line for line in new.stdout.splitlines() if "model/model_params.py changed" in line and commit in line
    ]
    same = load_after(copy_of_repo, old_run, "train/schedules.py", "import math", "import math  # edited")
    assert "ModelParams" in same.stdout
    assert " changed since" not in same.stdout


@pytest.mark.slow
@pytest.mark.parametrize("after", ["    wsd_share: float = 0.2\n", ""], ids=["renamed", "removed"])
def test_a_field_gone_since_is_refused_by_name_with_its_commit(copy_of_repo, old_run, after):
    before = next(
        line for line in (copy_of_repo / "train/train_params.py").read_text().splitlines(keepends=True) if "wsd_decay_frac" in line
    )  # fmt: skip
    loaded = load_after(copy_of_repo, old_run, "train/train_params.py", before, after)
    assert loaded.returncode != 0
    last = loaded.stderr.strip().splitlines()[-1]
    commit = git(copy_of_repo, "rev-parse", "HEAD").strip()
    assert last.startswith("ValueError")
    assert f"TrainParams has no field 'wsd_decay_frac'; the run was saved at commit {commit}" in last


def test_the_diff_holds_our_code_and_nothing_else(tmp_path, monkeypatch):
    ours, secret = tmp_path / "ours", "sk-secret"
    files = {
        "main.py": "a = 1\n",
        "model/lm.py": "b = 1\n",
        "configs/test.txt": "c = 1\n",
        "README.md": "d\n",
        "keys.json": "{}\n",
    }
    write(ours, files | {".gitignore": "ignored.py\n"})
    git(ours, "init", "-q")
    git(ours, "add", ".")
    git(ours, "commit", "-qm", "as it was")
    git(ours, "config", "diff.noprefix", "true")  # whatever a user's git is set to
    clean = tmp_path / "clean"
    git(tmp_path, "clone", "-q", str(ours), str(clean))
    changed = {
        "main.py": "a = 2\n",
        "model/lm.py": "b = 2\n",
        "configs/test.txt": "c = 2\n",
        "model/new/idea.py": "e = 1\n",
        "top.py": "",
    }
    others = ["README.md", "keys.json", ".env", "model/notes.txt", "ignored.py", "venv/lib/site.py"]
    write(ours, changed | dict.fromkeys(others, secret))
    monkeypatch.setattr(provenance, "REPOSITORY", ours)
    code = provenance.first_code.__wrapped__(())
    assert secret.encode() not in code.diff
    (tmp_path / "diff.patch").write_bytes(code.diff)
    git(clean, "apply", "--allow-empty", str(tmp_path / "diff.patch"))
    assert {name: (clean / name).read_text() for name in changed} == changed
    assert code.commit == git(ours, "rev-parse", "HEAD").strip()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_outside_git_there_is_no_commit_and_no_diff(tmp_path, monkeypatch):
    write(tmp_path, {"model/lm.py": "b = 1\n"})
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    code = provenance.first_code.__wrapped__(())
    assert (code.commit, code.diff) == (None, b"")
    monkeypatch.setenv("PATH", "")
    assert provenance.first_code.__wrapped__(()).commit is None
