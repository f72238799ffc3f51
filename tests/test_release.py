"""Releases and checks outside .ci/run: notes from the changelog, the workflow, and pre-commit."""

import re
import tomllib

import pytest
import yaml

from common.repository import REPOSITORY
from docs.release_notes import release_notes


def test_release_notes_are_the_section_of_the_version():
    changelog = "# Changelog\n\n## Unreleased\n\n- a\n\n## 0.2.0 (2027-01-02)\n\n- b\n\n### New\n\n- c\n\n## 0.2\n\n- d\n"
    assert release_notes("v0.2.0", changelog, "0.2.0") == "- b\n\n### New\n\n- c"
    assert release_notes("v0.2", changelog, "0.2") == "- d"
    with pytest.raises(ValueError, match="the tag is v0"):
        release_notes("v0.2.0", changelog, "0.3.0")
    with pytest.raises(ValueError, match="no section '## 0"):
        release_notes("v0.3.0", changelog, "0.3.0")


def test_workflow_and_pre_commit_run_the_checks_of_ci():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert {"run": ".ci/run"} in workflow["jobs"]["check"]["steps"]
    versions = workflow["jobs"]["check"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [f"Programming Language :: Python :: {version}" for version in versions] == project["classifiers"]
    [hooks] = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    checks = re.findall(r"-m ((?:ruff|mypy) .*)", (REPOSITORY / ".ci/run").read_text(encoding="utf-8"))
    assert [hook["entry"] for hook in hooks["hooks"]] == [f"python3 -m {check}" for check in checks]
