"""Text that cannot be used is refused before training, in one sentence that names file and row or byte."""

import codecs

import pandas as pd
import pytest

from data import corpora
from data.corpora import corpus_names, read_corpus
from data.data_params import DataParams
from data.problems import data_problems
from data.tokenizer import TokenizerSpec


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WHATIF_DATA", str(tmp_path))
    monkeypatch.setattr(corpora, "REPOSITORY", tmp_path / "a" / "b")
    (tmp_path / "mine").mkdir()
    return tmp_path


def problem(name, debug_crop=None):
    params = DataParams(dataset_name=name, debug_crop=debug_crop)
    (found,) = data_problems(params, TokenizerSpec("char"), 32)
    assert "\n" not in found
    return found


def test_a_wrong_byte_far_inside_is_found(folder):
    (folder / "mine" / "data.txt").write_bytes("é line\n".encode() * 50_000 + b"caf\xe9\n")
    found = problem("mine")
    assert f"{folder / 'mine' / 'data.txt'} is not UTF-8 text" in found
    assert "byte 0xe9 at position 400003 in line 50001" in found


def test_utf_16_is_refused_and_the_mark_of_utf_8_is_no_text(folder):
    file = folder / "mine" / "data.txt"
    file.write_bytes("a\nb\nc\n".encode("utf-16"))
    assert "byte 0xff at position 0 in line 1" in problem("mine")
    file.write_bytes(codecs.BOM_UTF8 + b"a\nb\n")
    assert list(read_corpus("mine", None)["train"]) == ["a", "b"]


def test_a_folder_in_place_of_a_file(folder):
    (folder / "mine" / "data.txt").mkdir()
    assert f"{folder / 'mine' / 'data.txt'} cannot be read: Is a directory" in problem("mine")


def test_a_task_wins_over_a_folder_of_its_name(folder, notes):
    (folder / "copy").mkdir()
    (folder / "copy" / "data.txt").write_text("my own\n", encoding="utf-8")
    params, spec = DataParams(dataset_name="copy"), TokenizerSpec("char")
    for _ in range(2):
        assert not list(data_problems(params, spec, 100))
    assert notes == [f"dataset_name='copy' is the built-in task, not your folder {folder / 'copy'}"]


@pytest.mark.parametrize("debug_crop", [None, 40])
@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (b"b", "bytes")])
def test_a_row_of_a_parquet_file_that_is_no_text(folder, value, kind, debug_crop):
    (folder / "ptb").mkdir()
    first = "a" if value is None else b"a"
    rows = [first] * 20 + [value]
    pd.DataFrame({"sentence": rows}).to_parquet(folder / "ptb" / "train-00000.parquet")
    row = 21 if value is None else 1
    found = problem("ptb", debug_crop)
    file = folder / "ptb" / "train-00000.parquet"
    assert f"{file}, row {row}: column 'sentence' holds {kind}, not text" in found


@pytest.mark.parametrize("document", [None, b"bytes", 7])
def test_a_document_that_is_no_string(folder, monkeypatch, document):
    monkeypatch.setitem(corpora.corpora, "theirs", lambda: ["a"] * 9 + [document])
    assert f"document 10 is {type(document).__name__}, not a string" in problem("theirs")


def test_a_folder_named_like_a_built_in_text_wins(folder, notes):
    (folder / "sotu").mkdir()
    (folder / "sotu" / "data.txt").write_text("my own\n", encoding="utf-8")
    for _ in range(2):
        assert list(read_corpus("sotu", None)["train"]) == ["my own"]
    assert notes == [
        f"dataset_name='sotu' is your folder {folder / 'sotu'}, not the built-in text of that name"
    ]
    assert corpus_names().count("sotu") == 1


def test_brackets_make_no_difference(monkeypatch):
    monkeypatch.setattr(corpora.corpora, "entries", {})

    @corpora.corpora.register()
    def with_brackets():
        """Two documents."""
        return ["a", "b"]

    @corpora.corpora.register
    def without():
        """Two documents."""
        return ["a", "b"]

    assert corpora.corpora == {"with-brackets": with_brackets, "without": without}
