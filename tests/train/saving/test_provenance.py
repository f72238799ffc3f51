"""Diff of a run: it holds everything needed to restore the code and the configs of the run."""

import subprocess

from train.saving import provenance


def git(folder, *args: str, **options) -> bytes:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True, **options).stdout


def test_a_config_that_git_does_not_know_is_in_the_diff(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in ("configs", "model"):
        (here / folder).mkdir(parents=True)
    (here / "configs" / "old.txt").write_text("TrainParams\n")
    (here / "model" / "lm.py").write_text("x = 1\n")
    (here / ".gitignore").write_text("configs/my-*\n")
    git(here, "init", "-q")
    git(here, "add", "-A")
    git(here, "commit", "-qm", "first")
    git(tmp_path, "clone", "-q", str(here), str(there))
    (here / "configs" / "new.txt").write_text("TrainParams\nlr = 0.5\n")
    (here / "configs" / "my-own.txt").write_text("TrainParams\nlr = 0.25\n")
    (here / "configs" / "old.txt").write_text("TrainParams\nlr = 1.0\n")
    (here / "model" / "new.py").write_text("y = 2\n")
    (here / "notes.txt").write_text("private\n")
    monkeypatch.setattr(provenance, "REPOSITORY", here)
    diff = provenance.code_diff(git(here, "rev-parse", "HEAD").decode().strip())
    assert b"private" not in diff
    git(there, "apply", input=diff)
    for name in ("configs/new.txt", "configs/my-own.txt", "configs/old.txt", "model/new.py"):
        assert (there / name).read_text() == (here / name).read_text()
