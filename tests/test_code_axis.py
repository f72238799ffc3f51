"""The natural way of working, edit and rerun, ends in a verdict on the edit."""

import shutil
import subprocess
import sys

import pandas as pd

import model_explorer
from common.repository import REPOSITORY
from tests.marks import SLOW

pytestmark = SLOW
COMMAND = ["main.py", "--config=test-synth", "--no-wandb", "--save", "--set=n_samples=2000", "--seed=[1,2,3]"]
LINE = "scores_BHTS = (q_BHTK / (math.sqrt(K) * self.temperature)) @ k_BHSK.mT"


def test_an_edit_that_harms_is_called_worse(tmp_path):
    copy, out = tmp_path / "project", tmp_path / "out"
    for name in ("common", "configs", "data", "explore", "learn", "model", "train"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "main.py", copy)
    attention = copy / "model" / "transformer" / "attention.py"
    for text in ("scores_BHTS = 0 * (", None):
        done = subprocess.run(
            [sys.executable, *COMMAND, f"--out={out}"],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if text:
            source = attention.read_text(encoding="utf-8")
            assert LINE in source
            attention.write_text(
                source.replace(LINE, LINE.replace("scores_BHTS = (", text)), encoding="utf-8"
            )
    assert "code=attention.py +1 -1: worse; loss +" in done.stdout
    assert (
        "these runs were trained by 2 versions of the code: first (3 runs), attention.py +1 -1 (3 runs)"
        in done.stdout
    )
    results = pd.read_csv(out / "reports" / "test-synth" / "results.csv")
    assert results.code.tolist() == ["first"] * 3 + ["attention.py +1 -1"] * 3
    report = (out / "reports" / "test-synth" / "report.html").read_text(encoding="utf-8")
    assert "+        scores_BHTS = 0 * (q_BHTK" in report
    first, other = results.timestamp[[0, 3]]
    found = model_explorer.diff(first, other, out=str(out))
    assert found.fields == {}
    assert "+        scores_BHTS = 0 * (q_BHTK" in found.code
    assert found.first_step == 0
