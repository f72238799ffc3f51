"""Keys of cached data: every field and every file that the data depend on."""

import functools
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic.dataclasses import dataclass

from data import corpora
from data.cache import cached, changed_fields, function_digest, source_files, tree_digest
from data.corpora import Hub
from data.data_params import DataParams
from data.syntheticdata import Task, registered, tasks
from data.task_rows import TaskData, task_key
from data.text_rows import TextData
from data.tokenizer import TokenizerSpec

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Extended(DataParams):
    """DataParams as a user extends them."""

    lowercase: bool = False
    val_task_args: dict | None = None


class Caller:
    """A callable object."""

    def __init__(self, n):
        self.n = n

    def __call__(self, rng):
        return "ab" * self.n


def test_only_fields_that_are_not_at_their_default_are_in_a_key():
    assert changed_fields(Extended()) == changed_fields(DataParams()) == ()
    assert changed_fields(Extended(lowercase=True, data_seed=3)) == (("data_seed", 3), ("lowercase", True))
    one, other = {"a": 1, "b": [2]}, {"b": [2], "a": 1}
    assert repr(changed_fields(Extended(task_args=one))) == repr(changed_fields(Extended(task_args=other)))


def test_each_field_of_data_params_has_a_key_of_its_own():
    values = {
        "dataset_name": "copy", "task_args": {"x": 1}, "n_samples": 7, "val_pct": 1.0, "test_pct": 1.0,
        "debug_crop": 5, "packed": True, "data_seed": 1, "text_column": "t", "subset": "s", "train_split": "x", "lowercase": True, "val_task_args": {"x": 1},
    }  # fmt: skip
    assert set(values) == set(Extended.__dataclass_fields__) - {
        "eval_sets",
        "eval_every",
    }  # these change no sample
    keys = {repr(task_key(tasks["copy"], Extended(**{name: value}))) for name, value in values.items()}
    assert len(keys) == len(values)


def test_a_users_field_separates_texts_in_the_cache(tmp_path, monkeypatch):
    from data import text_rows as text

    def data(lowercase):
        read = lambda *_: {"train": iter([f"Aa Bb Cc {i}" for i in range(50)])}  # noqa: E731
        lower = lambda *_: {"train": (t.lower() for t in read()["train"])}  # noqa: E731
        monkeypatch.setattr(text, "read_corpus", lower if lowercase else read)
        return TextData(Extended("pydoc", lowercase=lowercase), TokenizerSpec("char"), tmp_path)

    plain, lower = data(False), data(True)
    assert plain.source != lower.source
    assert "A" in plain.tokenizer.decode(plain.train.ids)
    assert "A" not in lower.tokenizer.decode(lower.train.ids)


def test_a_field_that_changes_held_out_samples_keeps_the_splits_disjoint(tmp_path, monkeypatch):
    from data.task_rows import DrawnSamples

    plain_draw = DrawnSamples.draw

    def draw(self, split, i, attempt):
        if split == "train" or not self.data_params.val_task_args:
            return plain_draw(self, split, i, attempt)
        self.rng.seed(f"{split}/{i}/{attempt}")
        return self.task.draw(self.rng, **self.data_params.val_task_args)

    monkeypatch.setattr(DrawnSamples, "draw", draw)
    common = {
        "dataset_name": "copy",
        "task_args": {"min_length": 1, "max_length": 3, "n_letters": 6},
        "n_samples": 300,
    }
    for val_task_args in (None, {"min_length": 2, "max_length": 3, "n_letters": 6}):
        data = TaskData(tasks["copy"], Extended(**common, val_task_args=val_task_args), tmp_path)
        assert not set(data.split("train")) & set(data.split("val"))


def test_content_identifies_the_text_but_not_its_packing(tmp_path):
    texts = [TextData(DataParams("pydoc", debug_crop=9, packed=packed), TokenizerSpec("char"), tmp_path)
             for packed in (None, True, False)]  # fmt: skip
    assert len({text.content for text in texts}) == 1
    assert len({text.source for text in texts}) == 3


@pytest.mark.parametrize("odd", [functools.partial(lambda rng, n: "ab" * n, n=3), Caller(3)])
def test_a_task_that_is_no_function_is_refused(odd):
    n_tasks = len(tasks)
    with pytest.raises(TypeError, match="@registered needs a function, written with def, not"):
        registered(odd)
    assert len(tasks) == n_tasks


def test_cache_keys_of_partials_and_objects_include_code_and_values():
    def numbers(n):
        return range(n)

    same = [functools.partial(numbers, 2), functools.partial(numbers, 2)]
    others = [functools.partial(numbers, 3), functools.partial(numbers, n=2), numbers, Caller(1), Caller(2)]
    assert function_digest(same[0]) == function_digest(same[1])
    assert function_digest(Caller(1)) == function_digest(Caller(1))
    assert len({function_digest(one) for one in [same[0], *others, len, sorted, Caller]}) == 9


def test_code_without_a_source_file_always_misses_the_cache():
    for code in ("def typed(rng): return 'ab'", "class typed:\n def __call__(self, rng): return 'ab'"):
        scope = {"__name__": "__main__x"}
        exec(code, scope)  # noqa: S102 -- as a notebook does
        assert function_digest(scope["typed"]) != function_digest(scope["typed"])


def test_the_cache_key_of_a_hub_text_includes_a_reader_outside_data(tmp_path, monkeypatch):
    def fingerprint_with(code):
        (tmp_path / "my_reader.py").write_text(code)
        monkeypatch.setitem(sys.modules, "my_reader", None)
        spec = importlib.util.spec_from_file_location("my_reader", tmp_path / "my_reader.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "my_reader", module)
        spec.loader.exec_module(module)
        monkeypatch.setitem(corpora.corpora, "mine", lambda: Hub("a/b", documents=module.read))
        return corpora.corpus_fingerprint("mine")

    first, again = (fingerprint_with("def read(rows): return iter(rows)") for _ in range(2))
    assert first == again != fingerprint_with("def read(rows): return map(str.lower, rows)")
    monkeypatch.setitem(corpora.corpora, "mine", lambda: Hub("a/b", documents=corpora.articles))
    assert "data" in corpora.articles.__module__
    assert corpora.reader_digest(corpora.articles) == corpora.reader_digest(iter) == ""


def test_code_in_subfolders_counts(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("x = 1")
    before = tree_digest(tmp_path)
    (tmp_path / "sub" / "a.py").write_text("x = 2")
    assert tree_digest(tmp_path) != before


TASK_FILES = {
    "task_file.py": "from task_helper import WORD\nfrom task_package import inner\ndef mine(rng): return WORD",
    "task_helper.py": "from task_words import WORD",
    "task_words.py": "WORD = 'ab'",
    "task_rows.py": "def all_rows(): return iter(['ab'])",
    "task_chance.py": "def chance(): return 0.5",
    "task_package/__init__.py": "",
    "task_package/inner.py": "from . import deep\nfrom .sub.far import X",
    "task_package/deep.py": "",
    "task_package/sub/__init__.py": "",
    "task_package/sub/far.py": "from ..up import X",
    "task_package/up.py": "X = 1",
}


@pytest.fixture
def task_of_many_files(tmp_path, monkeypatch):
    """A task whose functions import files directly, through others and relative to a package."""
    for name, text in TASK_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    import task_chance
    import task_file
    import task_rows

    yield Task("mine", task_file.mine, None, task_chance.chance, task_rows.all_rows)
    for name in set(sys.modules) - before:
        if name.startswith("task_"):
            del sys.modules[name]


@pytest.mark.parametrize("changed", TASK_FILES)
def test_every_file_a_task_imports_counts(changed, task_of_many_files, tmp_path):
    before = task_key(task_of_many_files, DataParams("mine"))
    assert task_key(task_of_many_files, DataParams("mine")) == before
    with (tmp_path / changed).open("a") as file:
        file.write("\nY = 2\n")
    assert task_key(task_of_many_files, DataParams("mine")) != before


def test_files_that_a_task_does_not_import_do_not_count(task_of_many_files, tmp_path):
    found = source_files(tmp_path / "task_file.py", "")
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {
        *TASK_FILES.keys() - {"task_rows.py", "task_chance.py"}
    }


BUILDS_FOR_EVER = """
import sys, time
from pathlib import Path
from data.cache import cached

def build(folder):
    (folder / "half").write_text("done")
    print("building", flush=True)
    time.sleep(600)

cached(Path(sys.argv[1]), "kind", ("slow",), build)
"""


def test_unfinished_folders_go_when_their_process_is_dead(tmp_path):
    def build_other(key):
        return cached(tmp_path, "kind", (key,), lambda folder: None)

    process = subprocess.Popen(
        [sys.executable, "-c", BUILDS_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        (living,) = tmp_path.glob("unfinished-*/")
        past = time.time() - 30 * 24 * 3600
        os.utime(living, (past, past))
        build_other(1)
        assert (living / "kind" / "half").read_text() == "done"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert living.exists()
    build_other(1)
    assert living.exists()  # nothing was built
    assert {path.name for path in tmp_path.iterdir()} - {living.name, f"{living.name}.lock"} == {
        build_other(1).name
    }
    build_other(2)
    assert {*tmp_path.iterdir()} == {build_other(1), build_other(2)}


def test_builds_of_one_process_leave_each_other_alone(tmp_path):
    def build(folder):
        inner = cached(tmp_path, "kind", ("inner",), lambda inner: None)
        assert folder.exists()
        assert inner.exists()

    cached(tmp_path, "kind", ("outer",), build)
    assert len(list(tmp_path.iterdir())) == 2


def test_without_locks_nothing_is_removed_and_all_is_built(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (tmp_path / "unfinished-other").mkdir()
    (tmp_path / "unfinished-other.lock").touch()
    assert cached(tmp_path, "kind", ("key",), lambda folder: None).exists()
    assert (tmp_path / "unfinished-other").exists()
