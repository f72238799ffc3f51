"""Differences of two runs."""

import json

import pytest

import model_explorer
from tests.explore.compare.fake_runs import DEFAULT, fake_run


@pytest.fixture
def pair(tmp_path):
    """Two runs with equal statistics, and a function that changes files of the second one and returns the diff."""
    folders = [fake_run(tmp_path, "demo", number, DEFAULT) for number in (0, 1)]
    (folders[1] / "stats.json").write_text((folders[0] / "stats.json").read_text())
    for folder in folders:
        about = json.loads((folder / "about.json").read_text())
        code = {"model/lm.py": "0", "data/syntheticdata.py": "0", "data/syntheticdata.py:copy": "0"}
        (folder / "about.json").write_text(json.dumps(about | {"code": code}))

    def changed(**files):
        for name, change in files.items():
            path = folders[1] / f"{name}.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        return model_explorer.diff(*(folder.name for folder in folders), out=str(tmp_path))

    return changed


def test_equal_runs_do_not_differ(pair):
    found = pair()
    assert found == ({}, "", "", None)
    assert str(found) == "all training losses that both runs have are equal"


def test_fields_and_data_that_differ_are_named(pair):
    def other_params(params):
        params["model"]["dim"] = 64
        params["train"]["lr"] = 0.5

    found = pair(params=other_params, about=lambda about: about.update(content="abc"))
    assert found.fields == {"lr": (DEFAULT.train.lr, 0.5), "dim": (DEFAULT.model.dim, 64)}
    assert "dim: 128 -> 64" in str(found)
    assert found.data == "the text or the samples differ"


def test_the_first_step_whose_losses_differ_is_found(pair):
    def other_loss(stats):
        losses = stats["stat/train_loss:main"]
        losses[7][3] += 1e-6
        losses[9][3] = float("nan")

    steps: list[int] = []
    found = pair(stats=lambda stats: (steps.append(stats["stat/train_loss:main"][7][0]), other_loss(stats)))
    assert [found.first_step] == steps
    assert f"training losses first differ at step {found.first_step}" in str(found)


def test_changed_files_are_named_where_the_text_was_not_kept(pair):
    """A registered function that only one run uses is no change."""
    code = {"model/lm.py": "1", "data/syntheticdata.py": "0", "data/syntheticdata.py:sort": "1"}
    assert pair(about=lambda about: about.update(code=code)).code == "changed: model/lm.py"
