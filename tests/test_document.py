"""--json: one document on stdout, of the types that docs/automation.md shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ConfigDict, TypeAdapter

import main
from common.repository import REPOSITORY
from tests.project_copy import SCORES, ProjectCopy
from train import document
from train.document import plain

for part in (
    document.RunEntry,
    document.VerdictEntry,
    document.CheckEntry,
    document.NoiseEntry,
    document.ClaimEntry,
    document.Content,
):
    part.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
SCHEMA = TypeAdapter(document.Content)
TINY = [
    "--config=test-synth",
    "--no-wandb",
    "--json",
    "--set=n_samples=500",
    "--set=dim=16",
    "--set=epochs=1",
]


@pytest.fixture
def call(capfd, tmp_path):
    """Run main.py in this process. Return its document, which must have the documented types, and its exit code."""

    def run(*options: str):
        code = main.main([*options, f"--out={tmp_path}"])
        found = json.loads(capfd.readouterr().out)
        SCHEMA.validate_python(found)
        assert found["exit_code"] == code
        assert found["command"] == [*options, f"--out={tmp_path}"]
        return found

    return run


def test_a_dry_run(call):
    found = call(*TINY, "--dry-run", "--seed=[1,2]")
    assert [run["number"] for run in found["runs"]] == [1, 2]
    assert [run["params"]["train"]["random_seed"] for run in found["runs"]] == [1, 2]
    assert all(run["seconds"] > 0 and run["size"]["n_params"] > 0 for run in found["runs"])
    first, second = (run["memory"] for run in found["runs"])
    assert first == second  # seeds change nothing
    assert first["weights"] == first["gradients"] == 4 * found["runs"][0]["size"]["n_params"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--set=lrr=3"], "--set lrr=3: there is no field 'lrr'; did you mean 'lr'?"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--margin=1"], "--margin and --bisect need --against"),
        (["--against", "--noise"], "--against and --noise are judged in separate calls"),
    ],
)
def test_errors(call, options, error):
    found = call(*TINY, *options)
    assert (found["exit_code"], found["errors"]) == (2, [error])
    assert "runs" not in found


@pytest.mark.slow
@pytest.mark.ci
def test_runs_verdicts_checks_and_noise(call):
    found = call(*TINY, "--seed=[1,2]", "--save", "--set=positions=['none','sin']")
    assert [run["ended"] for run in found["runs"]] == ["finished"] * 4
    assert {row["variant"] for row in found["verdicts"]} == {"positions=none", "positions=sin"}
    for run in found["runs"]:
        saved = json.loads(Path(run["folder"], "about.json").read_text())
        assert run["values"]["val_loss"] == saved["summary"]["val_loss"]
        assert run["identity"] == saved["identity"]
    means = {row["variant"]: row["mean"] for row in found["verdicts"]}
    losses = [
        run["values"]["val_loss"] for run in found["runs"] if run["params"]["model"]["positions"] == "sin"
    ]
    assert means["positions=sin"] == pytest.approx(sum(losses) / 2)
    found = call(*TINY, "--seed=[1,2]", "--resume", "--noise")
    assert found["noise"][0]["n_seeds"] == 2
    found = call(*TINY, "--check")
    assert {check["result"] for check in found["checks"]} <= {"pass", "skip"}


@pytest.mark.slow
def test_a_judgement_and_the_loop_of_the_docs(tmp_path):
    project = ProjectCopy(tmp_path / "project", tmp_path / "out")
    page = (REPOSITORY / "docs" / "automation.md").read_text(encoding="utf-8")
    [loop] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(loop.splitlines()) <= 11
    ideas = project.folder / "ideas"
    ideas.mkdir()
    for name, factor in (("1-harmful", "0"), ("2-helpful", "2")):
        project.edit(
            "model/transformer/attention.py", SCORES, SCORES.replace("(q_BHTK", f"{factor} * (q_BHTK", 1)
        )
        (ideas / f"{name}.patch").write_text(project.git("diff"))
        project.git("checkout", "-q", ".")
    project.git("config", "user.name", "a")
    project.git("config", "user.email", "a@b")
    small = loop.replace('--json"', f'--json --set=n_samples=4000 --out={project.out}"')
    done = subprocess.run(
        [sys.executable, "-c", small],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=800,
    )
    assert "1-harmful.patch worse" in done.stdout
    assert "2-helpful.patch better" in done.stdout
    assert project.git("log", "--format=%s").splitlines() == ["2-helpful", "first"]
    code, said = project.main(
        "--config=test-synth",
        "--set=n_samples=4000",
        "--seed=[1,2]",
        "--against=HEAD~1",
        "--json",
        separate=True,
    )
    found = SCHEMA.validate_python(json.loads(said))
    assert found["exit_code"] == code
    assert len(found["verdicts"]) == 1
    assert found["margin"] > 0


def test_values_become_what_json_has():
    import numpy as np

    found = plain(
        {"a": (1, 2.5, float("nan")), "b": np.float64(2), "c": REPOSITORY, 3: None, "d": {"e": True}}
    )
    assert found == {"a": [1, 2.5, None], "b": 2.0, "c": str(REPOSITORY), "3": None, "d": {"e": True}}
