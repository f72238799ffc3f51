"""Texts in files of the data folder: layouts that agree give equal documents; files that cannot be used are refused."""

import json
import socket

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from data import corpora
from data.corpora import corpus_fingerprint, corpus_names, own_folder, read_corpus
from data.data_params import DataParams
from data.problems import data_problems
from data.text_rows import TextData
from data.tokenizer import TokenizerSpec

LINES = [f"line {i} of é text" for i in range(40)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a text in the data folder, and no network."""
    monkeypatch.setenv("WHATIF_DATA", str(tmp_path / "texts"))
    monkeypatch.setattr(corpora, "REPOSITORY", tmp_path / "a" / "b")

    def refuse(*_, **__):
        raise AssertionError("a connection to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "texts" / "mine").mkdir(parents=True)
    return tmp_path / "texts" / "mine"


def write(path, lines=LINES, column="text", **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{column: line, **columns} for line in lines]
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text("\n".join(lines), encoding="utf-8")


def documents(name="mine", debug_crop=None, **fields):
    found = read_corpus(name, debug_crop, DataParams(dataset_name=name, **fields))
    return {split: list(texts) for split, texts in found.items()}


def problem(name="mine", **fields):
    (found,) = data_problems(DataParams(dataset_name=name, **fields), TokenizerSpec("char"), 32)
    assert "\n" not in found
    return found


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_table_equals_the_same_lines_in_data_txt(ending, folder, tmp_path):
    write(folder / "data.txt")
    write(folder.parent / "other" / f"rows{ending}", n=1)
    assert documents() == documents("other") == {"train": LINES}
    data = [
        TextData(DataParams(dataset_name=name), TokenizerSpec("char"), tmp_path) for name in ("mine", "other")
    ]
    for split in ("train", "val", "test"):
        one, other = (each.tokens(split) for each in data)
        assert one.ids.tolist() == other.ids.tolist()
        assert one.text == other.text
    assert documents("other", debug_crop=3) == {"train": LINES[:3]}


def test_each_txt_file_is_a_document(folder):
    (folder / "b").mkdir()
    for name, text in (("b/two.txt", "more\nlines\n\n"), ("one.txt", "a line")):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / ".hidden.txt").write_text("no", encoding="utf-8")
    assert documents() == {"train": ["more\nlines\n\n", "a line"]}
    assert "mine" in corpus_names()
    (folder / "data.txt").write_text("x\ny\n", encoding="utf-8")  # comes first, as ever
    assert documents() == {"train": ["x", "y"]}


@pytest.mark.parametrize("val", ["validation", "valid", "val", "dev"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_names_of_files_are_splits(val, ending, folder):
    for name, line in (("train", "a"), (f"{val}-00000-of-00001", "b"), ("test.part1", "c")):
        write(folder / f"{name}{ending}", [line])
    assert documents() == {"train": ["a"], "val": ["b"], "test": ["c"]}


def test_layouts_of_the_hub(folder):
    """Those of its parquet branch and of most data sets, with a split that is not read unless it is named."""
    for place in ("plain_text/train/0000", "plain_text/test/0000", "plain_text/unsupervised/0000"):
        write(folder.parent / "stanfordnlp" / "imdb" / f"{place}.parquet", [place], label=1)
    for place in ("train-00000-of-00001", "test-00000-of-00001", "unsupervised-00000-of-00001"):
        write(folder.parent / "stanfordnlp--imdb2" / f"{place}.parquet", [place], label=1)
    assert documents("stanfordnlp/imdb") == {
        "train": ["plain_text/train/0000"],
        "test": ["plain_text/test/0000"],
    }
    chosen = documents("stanfordnlp/imdb", train_split="unsupervised")
    assert chosen == {"train": ["plain_text/unsupervised/0000"], "test": ["plain_text/test/0000"]}
    assert documents("stanfordnlp/imdb2")["test"] == ["test-00000-of-00001"]
    chosen = documents("stanfordnlp/imdb2", train_split="test")
    assert chosen == {"train": ["test-00000-of-00001"]}
    assert "there are: test, train, unsupervised" in problem("stanfordnlp/imdb", train_split="tset")


def test_subsets_are_folders(folder):
    for subset in ("de", "fr"):
        write(folder / subset / "train.jsonl", [subset])
    assert documents(subset="fr") == {"train": ["fr"]}
    assert documents() == {"train": ["de", "fr"]}
    write(folder.parent / "other" / "en" / "data.txt")
    assert documents("other", subset="en") == {"train": LINES}
    for wrong in ("en", "..", "../mine/fr", str(folder)):
        assert f"has no folder subset={wrong!r}; there are: de, fr" in problem(subset=wrong)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_the_column_of_text(ending, folder):
    write(folder / f"a{ending}", ["x"], "body", label=3)
    assert documents() == {"train": ["x"]}
    write(folder / f"a{ending}", ["x"], "body", text="y", label=3)
    assert documents() == {"train": ["y"]}
    assert documents(text_column="body") == {"train": ["x"]}
    write(folder / f"a{ending}", ["x"], "body", title="y")
    assert "has several columns of text, body, title: set text_column" in problem()
    assert "has no column 'boddy'; did you mean 'body'? there are: body, title" in problem(
        text_column="boddy"
    )
    write(folder / f"a{ending}", [1], "label")
    assert "has no column of text; there are: label" in problem()
    assert "row 1: column 'label' holds int" in problem(
        text_column="label"
    ) or ":1: column 'label' holds int" in problem(text_column="label")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'text': 1}", ":2: not JSON: Expecting property name"),
        ("[1]", ':2: list, but each line must be an object such as {"text": "..."}'),
        ('{"test": "a"}', ":2: there is no 'text'; there are: test"),
        ('{"text": null}', ":2: column 'text' holds null, not text"),
        ('{"text": 3}', ":2: column 'text' holds int, not text"),
        ('{"text": "\\ud800"}', ":2: column 'text' holds half of a surrogate pair"),
        ("[" * 10**5, ":2: not JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(line, said, folder):
    (folder / "a.jsonl").write_text(f'{{"text": "a"}}\n{line}\n', encoding="utf-8")
    assert f"{folder / 'a.jsonl'}{said}" in problem()


def test_text_that_is_not_utf8(folder):
    (folder / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    assert f"{folder / 'a.jsonl'} is not UTF-8 text: byte 0xe9 at position 27 in line 2" in problem()
    (folder / "a.jsonl").unlink()
    binary = pa.array([b"a", b"caf\xe9"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    parquet.write_table(pa.table({"text": text}), folder / "a.parquet")
    assert f"{folder / 'a.parquet'}, row 2: column 'text' is not UTF-8 text" in problem()


def test_a_damaged_parquet_file(folder):
    file = folder / "a.parquet"
    file.write_bytes(b"no parquet")
    assert f"{file} is no parquet file, or damaged" in problem()
    write(file, [f"{i} " * 50 for i in range(2000)])
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    assert str(file) in problem()


def test_files_that_do_not_belong_together(folder):
    write(folder / "a.jsonl")
    write(folder / "b.txt")
    assert f"{folder} has files of several kinds, a.jsonl and b.txt: keep those of one kind" in problem()
    (folder / "a.jsonl").unlink()
    write(folder / "train.txt")
    assert f"{folder / 'b.txt'} belongs to no split, but train.txt does" in problem()
    (folder / "train.txt").unlink()
    (folder / "b.txt").rename(folder / "test.txt")
    assert "has no split 'train'; there are: test: set train_split" in problem()


def test_an_empty_table(folder):
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "a.parquet")
    assert "has only 0 documents" in problem()
    parquet.write_table(pa.table({"text": pa.array([None, None])}), folder / "a.parquet")
    assert "has no column of text; there are: text" in problem()
    assert "row 1: column 'text' holds null, not text" in problem(text_column="text")


@pytest.mark.parametrize(
    "name", ["../mine", "a/../mine", "/etc/passwd", "a//b", "..", "../../x", "a/b/c", "a/b@", "a/b@../c"]
)
def test_no_name_leaves_the_data_folder(name, folder):
    write(folder / "data.txt")
    assert own_folder(name) is None
    assert "is neither a task nor a text" in problem(name)


def test_fingerprints_follow_files_and_their_names(folder):
    write(folder / "a.jsonl")
    seen = {corpus_fingerprint("mine")}
    write(folder / "a.jsonl", LINES[1:])
    seen.add(corpus_fingerprint("mine"))
    (folder / "a.jsonl").rename(folder / "train.jsonl")
    seen.add(corpus_fingerprint("mine"))
    assert len(seen) == 3
