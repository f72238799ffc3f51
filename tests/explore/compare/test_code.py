"""Labels of code: runs of one code share one whatever their params, and a label says what changed."""

from pathlib import Path

import pytest

from data.data_params import DataParams
from explore.compare.code import CodeOfRun, code_labels, diff_between
from model.model_params import ModelParams
from train.grid.params import Params
from train.saving.code import Code
from train.train_params import TrainParams

RUN = "from model.lm import LM\nfrom data.tasks import tasks\n"
TASKS = "tasks = Registry()\n\n\n@registered\ndef copy():\n    return 1\n\n\n@registered\ndef sort():\n    return 2\n"
FILES = {"train/run.py": RUN, "model/lm.py": "class LM:\n    scale = 1\n", "data/tasks.py": TASKS}
SORT = {"data/tasks.py": TASKS.replace("return 2", "return 3")}
SCALE = {"model/lm.py": "class LM:\n    # wider\n    scale = 2\n"}


@pytest.fixture
def code_of(tmp_path):
    """Function that returns the code of a run on a task, with some files changed."""
    made = []

    def make(task: str = "copy", subject: str = "", edited: bool = True, **changed: str) -> CodeOfRun:
        root = tmp_path / str(len(made))
        made.append(root)
        for name, text in (FILES | changed).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        code = Code.read(root)
        code.keep(tmp_path)
        params = Params(DataParams(dataset_name=task), TrainParams(), ModelParams())
        return CodeOfRun(code.hashes(params.flat()), subject, edited, code.text_id, tmp_path)

    return make


def test_runs_of_one_code_on_different_tasks_share_a_label(code_of):
    copy, sort = code_of("copy"), code_of("sort")
    assert copy.hashes != sort.hashes
    assert code_labels([copy, sort, copy]) == ["first"] * 3


def test_an_edit_is_labelled_by_file_and_lines(code_of):
    first, other = code_of(), code_of(**SCALE)
    assert code_labels([first, other]) == ["first", "lm.py +2 -1"]
    assert code_labels([other, first]) == ["first", "lm.py +1 -2"]


def test_an_edit_of_a_task_changes_only_runs_on_it(code_of):
    runs = [code_of("copy"), code_of("sort"), code_of("copy", **SORT), code_of("sort", **SORT)]
    assert code_labels(runs) == ["first", "first", "first", "tasks.py +1 -1"]


def test_a_clean_tree_is_labelled_by_its_commit(code_of):
    runs = [code_of(subject="Begin", edited=False), code_of(subject="Scale", edited=False, **SCALE)]
    runs.append(code_of(subject="Begin", **SCALE, **SORT))
    assert code_labels(runs[:2]) == ["Begin", "Scale"]
    assert code_labels([code_of(subject="Begin"), runs[1]]) == ["Begin (edited)", "Scale"]


def test_two_edits_never_share_a_label(code_of):
    more = {"model/lm.py": "class LM:\n    # wider\n    scale = 3\n"}
    runs = [code_of(), code_of(**SCALE), code_of(**more), code_of(**SCALE)]
    assert code_labels(runs) == ["first", "lm.py +2 -1", "lm.py +2 -1 (2)", "lm.py +2 -1"]


def test_without_the_kept_text_files_are_named(code_of):
    first, other = code_of(), code_of(**SCALE)
    assert code_labels([first._replace(out=Path("nowhere")), other]) == ["first", "lm.py changed"]
    assert code_labels([CodeOfRun(), first, CodeOfRun()])[::2] == ["unknown", "unknown"]


def test_the_diff_of_two_codes(code_of):
    first, other = code_of(), code_of(**SCALE)
    lines = diff_between(first, other).splitlines()
    assert lines[:2] == ["--- a/model/lm.py", "+++ b/model/lm.py"]
    assert lines[3:] == [" class LM:", "-    scale = 1", "+    # wider", "+    scale = 2"]
    assert diff_between(first, first) == ""
    assert diff_between(first, other._replace(text_id="0")) is None
