"""--against: what is exported, which runs train with it, and on which samples both sides are judged."""

import json
import random
import subprocess
import sys

import pytest

from common.repository import REPOSITORY
from tests.explore.compare.fake_runs import DEFAULT
from tests.project_copy import SCORES, ProjectCopy
from tests.train.test_own_parts import PARTS
from train.grid.expand import GridError, field_defaults, read_grid
from train.grid.params import SECTIONS, Params
from train.launch.against import config_text, defaults_at, export

TINY = ["--config=test-synth", "--set=n_samples=1000", "--set=dim=16", "--set=batch_size=32", "--seed=[1,2]"]
slow = pytest.mark.slow


@pytest.fixture
def project(tmp_path):
    return ProjectCopy(tmp_path / "project", tmp_path / "out")


def test_the_config_of_a_baseline_makes_exactly_its_runs(tmp_path):
    wanted = [
        {"dataset_name": "copy", "lr": 0.1, "betas": (0.9, 0.95), "dim": 16},
        {"dataset_name": "copy", "lr": 0.2, "betas": (0.8, 0.95), "dim": 16},
        {"dataset_name": "copy", "lr": 0.1, "betas": (0.8, 0.95), "dim": 32},
    ]  # no product of lists, and values occur more than once
    file = tmp_path / "a.txt"
    file.write_text(config_text(wanted))
    assert [run.params for run in read_grid([file])] == [params_of(fields) for fields in wanted]
    file.write_text(config_text(wanted[:1]))
    assert [run.params for run in read_grid([file])] == [params_of(wanted[0])]
    product = [{"dataset_name": "copy", "dim": dim, "lr": lr} for dim in (16, 32) for lr in (0.1, 0.2)]
    file.write_text(config_text(product))
    assert "Grid" not in file.read_text()
    assert sorted(repr(run.params) for run in read_grid([file])) == sorted(
        repr(params_of(one)) for one in product
    )


def params_of(fields) -> Params:
    return DEFAULT.changed(**fields)


def test_defaults_are_read_from_the_text_of_a_commit():
    found = {name: value for section in SECTIONS for name, value in defaults_at(REPOSITORY, section)}
    assert found.keys() == field_defaults().keys()
    assert {
        name: value for name, value in found.items() if value is not ...
    }.items() <= field_defaults().items()


@pytest.mark.parametrize("ref", ["no-such-branch", "--output=x", "HEAD~99999"])
def test_a_ref_that_does_not_exist_is_refused(ref, tmp_path):
    if subprocess.run(["git", "-C", REPOSITORY, "rev-parse"], capture_output=True, check=False).returncode:
        pytest.skip("not in a git repository")
    with pytest.raises(GridError, match="there is no such commit, branch or tag"):
        export(ref, tmp_path)
    assert not any(tmp_path.iterdir())


@slow
def test_a_baseline_is_trained_once_and_git_is_left_alone(project):
    before = sorted(str(path) for path in (project.folder / ".git").rglob("*"))
    project.edit("model/transformer/attention.py", SCORES, SCORES.replace("(q_BHTK", "1 * (q_BHTK", 1))
    code, said = project.main(*TINY, "--against", "--jobs=2")
    assert "0 of 2 runs are saved, 2 to train" in said
    assert code == 0, said
    assert "no worse: every run has exactly the loss that it had before" in said
    code, said = project.main(*TINY, "--against", "--set=n_heads=[2,4]")  # those with 4 heads are saved
    assert "2 of 4 runs are saved, 2 to train" in said
    assert "no worse: every run has exactly the loss that it had before" in said
    assert sorted(str(path) for path in (project.folder / ".git").rglob("*")) == before
    [exported] = [path for path in (project.out / "code").iterdir() if path.is_dir()]
    assert (exported / "model/transformer/attention.py").read_text().count(SCORES) == 1
    code, said = project.main(*TINY, "--against")
    assert code == 0
    assert "with the code of HEAD (first): 2 of 2 runs are saved" in said
    assert "--resume: 2 finished" in said
    # Saved runs of an edit that changes results are not taken for those of the commit.
    project.edit("model/transformer/attention.py", "1 * (q_BHTK", "0 * (q_BHTK")
    for n_finished in (0, 2):
        code, said = project.main(*TINY, "--against")
        assert "with the code of HEAD (first): 2 of 2 runs are saved" in said
        assert ("--resume: 2 finished" in said) == (n_finished == 2)
        assert "exactly the loss that it had before" not in said


@slow
def test_both_codes_use_the_same_parts_of_a_users_file(project, tmp_path):
    file = tmp_path / "my_parts.py"
    file.write_text(PARTS)
    project.edit("model/transformer/attention.py", SCORES, SCORES.replace("(q_BHTK", "1 * (q_BHTK", 1))
    options = [*TINY, f"--with={file}", "--set=optimizer='slow_sgd'", "--against"]
    code, said = project.main(*options)
    assert code == 0, said
    assert "no worse: every run has exactly the loss that it had before" in said
    _, said = project.main(*options)
    assert "2 of 2 runs are saved" in said
    # Runs of an earlier version of the file are not taken for those of the present one.
    file.write_text(PARTS.replace("lr / 10", "lr * 10"))
    _, said = project.main(*options)
    assert "0 of 2 runs are saved, 2 to train" in said
    assert "no worse: every run has exactly the loss that it had before" in said


@slow
def test_a_field_of_the_edit_stays_at_its_default_or_is_refused(project):
    project.edit(
        "train/train_params.py", "    lr: PositiveFloat", "    boost: float = 1.0\n    lr: PositiveFloat"
    )
    code, said = project.main(*TINY, "--against", "--set=boost=1.0")
    assert code == 0, said
    code, said = project.main(*TINY, "--against", "--set=boost=2.0")
    assert code == 2
    assert "--set boost=2.0: boost=2.0, but the code of HEAD has no field 'boost'" in said


@slow
def test_a_commit_that_cannot_train_is_a_failure_that_bisect_skips(project):
    project.edit("model/transformer/attention.py", SCORES, "raise RuntimeError('broken')")
    project.commit("broken")
    project.edit("model/transformer/attention.py", "raise RuntimeError('broken')", SCORES)
    code, said = project.main(*TINY, "--against")
    assert code == 1, said
    assert "2 of 2 runs failed with the code of HEAD: nothing is compared" in said
    assert project.main(*TINY, "--against", "--bisect")[0] == 125
    assert project.main(*TINY, "--against=no-such-branch", "--bisect")[0] == 125


@slow
def test_other_held_out_samples_of_a_task_are_refused(project):
    project.edit("data/task_rows.py", '}/{split}/{i}/{attempt}")', '}/{split}/{i}/{attempt}!")')
    code, said = project.main(*TINY, "--against")
    assert code == 4, said
    assert "the change gives this data other held-out samples" in said


@slow
def test_a_text_read_differently_is_judged_on_the_baselines_text(project, tmp_path, monkeypatch):
    monkeypatch.setenv("WHATIF_DATA", str(tmp_path / "data"))
    text = tmp_path / "data" / "tale"
    text.mkdir(parents=True)
    words = ["the", "cat", "saw", "a", "dog", "and", "ran", "home"]
    dice = random.Random(0)
    (text / "data.txt").write_text("\n\n".join(" ".join(dice.choices(words, k=12)) for _ in range(200)))
    options = [
        "--config=test-nlp",
        "--set=dataset_name='tale'",
        "--set=tokenizer_source_name='char'",
        "--set=dim=16",
        "--set=n_layers=1",
        "--set=max_seq_len=32",
        "--seed=[1,2]",
    ]
    project.edit(
        "data/text_rows.py", "text = document.encode()", "text = document.replace('cat', 'dog').encode()"
    )
    code, said = project.main(*options, "--against")
    assert code in (0, 3, 4), said
    about = [
        json.loads(path.read_text()) for path in sorted(project.out.glob("saved-models/*/*/*/about.json"))
    ]
    assert len({one["held_out"]["text"] for one in about}) == 2
    # What was trained without cats does worse on the text that has some, though its own text is easier.
    losses = [one["summary"]["bits_per_byte"] for one in sorted(about, key=lambda one: one["timestamp"])]
    numbers = next(line.split() for line in said.splitlines() if line.startswith(" all runs"))
    assert float(numbers[3]) == pytest.approx(sum(losses[:2]) / 2, abs=1e-4)
    assert float(numbers[4]) > sum(losses[2:]) / 2 + 0.05
    # An edit that moves held-out documents into the training split is refused.
    project.edit("data/text_rows.py", ".replace('cat', 'dog')", "")
    project.edit(
        "data/text_rows.py",
        "random.Random(data_params.data_seed)",
        "random.Random(data_params.data_seed + 1)",
    )
    code, said = project.main(*options, "--against")
    assert code == 4, said
    assert "2 of 2 held-out documents of the baseline are in the training split of the new code" in said


@slow
def test_git_bisect_finds_the_commit_that_harms(project):
    swapped = SCORES.replace("(math.sqrt(K) * self.temperature)", "(self.temperature * math.sqrt(K))")
    edits = {
        2: ("model/lm.py", '"""', '"""A note. '),
        3: ("model/transformer/attention.py", SCORES, swapped),
        5: ("model/transformer/attention.py", swapped, swapped.replace("(q_BHTK", "0 * (q_BHTK", 1)),
        7: ("model/transformer/attention.py", "0 * (q_BHTK", "0.0 * (q_BHTK"),
    }
    for number in range(1, 9):
        (project.folder / "notes.txt").write_text(f"{number}\n")
        if number in edits:
            file, old, new = edits[number]
            path = project.folder / file
            path.write_text(path.read_text().replace(old, new, 1))
        project.commit(f"change {number}")
    options = "--config=test-synth --no-wandb --set=n_samples=2000 --seed=[1,2,3] --against=main~8 --bisect"
    project.git("bisect", "start", "main", "main~8")
    found = project.git("bisect", "run", sys.executable, "main.py", f"--out={project.out}", *options.split())
    assert "change 5" in found.split("is the first bad commit")[1]
