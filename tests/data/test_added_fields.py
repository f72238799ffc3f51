"""Fields that a user adds to DataParams, in a copy of the repository, as axes of a grid."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EDITS = {
    "data/data_params.py": [
        (
            '    dataset_name: str = "sotu"',
            "    lowercase: bool = False\n    val_task_args: dict[str, Any] | None = None\n"
            '    dataset_name: str = "sotu"',
        )
    ],
    "data/text_rows.py": [
        (
            "            for document in documents:\n",
            "            for document in documents:\n"
            "                document = document.lower() if data_params.lowercase else document\n",
        )
    ],
    "data/task_rows.py": [
        (
            "        return self.task.draw(self.rng, **self.data_params.task_args)\n",
            "        d = self.data_params\n"
            "        args = d.task_args if split == 'train' else d.val_task_args or d.task_args\n"
            "        return self.task.draw(self.rng, **args)\n",
        )
    ],
}
CONFIGS = {
    "text": 'DataParams\ndataset_name = "pydoc"\ndebug_crop = 20\nlowercase = [False, True]\n'
    'ModelParams\ntokenizer_source_name = "char"\n',
    "task": 'DataParams\ndataset_name = "copy"\nn_samples = 400\n'
    'task_args = {"min_length": 1, "max_length": 3, "n_letters": 6}\n'
    'val_task_args = [None, {"min_length": 2, "max_length": 3, "n_letters": 6}]\n',
}
SCRIPT = """
import json, sys
from pathlib import Path
from train.data import make_data
from train.grid.expand import read_grid
from train.saving.earlier_runs import identity

found = []
for run in read_grid([Path(sys.argv[1])]):
    module = make_data(run.params.data, run.params.model, Path("cache"))
    data, rows = module.data, module.rows
    split = lambda name: [list(map(int, rows(name).__getitems__([i])[0].ids)) for i in range(len(rows(name)))]
    found.append({
        "identity": identity(run.params, module.content),
        "splits": None if module.task is None else {name: split(name) for name in ("train", "val")},
        "vocabulary": data.tokenizer.decode(range(data.tokenizer.n_tokens)),
    })
print(json.dumps(found))
"""


@pytest.fixture
def copy(tmp_path):
    for folder in ("common", "data", "model", "train"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file, edits in EDITS.items():
        text = (tmp_path / file).read_text(encoding="utf-8")
        for old, new in edits:
            assert text.count(old) == 1, (file, old)
            text = text.replace(old, new)
        (tmp_path / file).write_text(text, encoding="utf-8")
    return tmp_path


def runs_of(config, copy):
    (copy / "axis.txt").write_text(CONFIGS[config], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "axis.txt"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_an_axis_over_a_field_used_where_documents_are_read_gives_other_tokens(copy):
    plain, lower = runs_of("text", copy)
    assert plain["identity"] != lower["identity"]
    assert "T" in plain["vocabulary"]
    assert "T" not in lower["vocabulary"]


@pytest.mark.slow
def test_an_axis_over_arguments_of_held_out_samples_keeps_splits_disjoint(copy):
    runs = runs_of("task", copy)
    for run in runs:
        train, val = ({tuple(row) for row in run["splits"][name]} for name in ("train", "val"))
        assert train
        assert not train & val
    one, other = (run["splits"]["val"] for run in runs)
    assert one != other
