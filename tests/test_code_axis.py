"""The natural way of working, edit and rerun, ends in a verdict on the edit."""

import pandas as pd
import pytest

import model_explorer
from tests.project_copy import SCORES, ProjectCopy

pytestmark = pytest.mark.slow
OPTIONS = ["--config=test-synth", "--set=n_samples=2000", "--seed=[1,2,3]"]


def test_an_edit_that_harms_is_called_worse(tmp_path):
    project = ProjectCopy(tmp_path / "project", tmp_path / "out")
    code, said = project.main(*OPTIONS, "--save")
    assert code == 0, said
    project.edit("model/transformer/attention.py", SCORES, SCORES.replace("(q_BHTK", "0 * (q_BHTK", 1))
    code, said = project.main(*OPTIONS, "--against")
    assert code == 3, said
    assert "with the code of HEAD (first): 3 of 3 runs are saved" in said
    assert "against HEAD (first): worse: loss +" in said
    verdicts = (project.out / "reports" / "test-synth" / "report.md").read_text(encoding="utf-8")
    assert "code=attention.py +1 -1: worse; loss +" in verdicts
    assert (
        "these runs were trained by 2 versions of the code: first (3 runs), attention.py +1 -1 (3 runs)"
        in verdicts
    )
    results = pd.read_csv(project.out / "reports" / "test-synth" / "results.csv")
    assert results.code.tolist() == ["first"] * 3 + ["attention.py +1 -1"] * 3
    report = (project.out / "reports" / "test-synth" / "report.html").read_text(encoding="utf-8")
    assert "+        scores_BHTS = 0 * (q_BHTK" in report
    first, other = results.timestamp[[0, 3]]
    found = model_explorer.diff(first, other, out=str(project.out))
    assert found.fields == {}
    assert "+        scores_BHTS = 0 * (q_BHTK" in found.code
    assert found.first_step == 0
