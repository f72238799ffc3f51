"""Text as rows: every token predicted and scored exactly once, splits by document, little memory."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import corpora
from data import text_rows as text
from data.batch import mycollate, n_real_tokens
from data.data_params import DataParams
from data.text_rows import (
    Documents,
    TextData,
    TextRows,
    Tokens,
    batches,
    read_tokens,
    split_by_document,
    write_tokens,
)
from data.tokenizer import Specials, Tokenizer, TokenizerSpec, char_tokenizer

CHAR = char_tokenizer("abcdef ")
SHARED = Tokenizer(char_tokenizer("abcdef ").rust, Specials(pad=2, bos=2, eos=2, unk=3))  # as in GPT-2
NO_BOS = Tokenizer(char_tokenizer("abcdef ").rust, Specials(pad=2, bos=None, eos=2, unk=3))  # as in Qwen2
DOCUMENTS = st.lists(st.text("abcdef ", max_size=12), min_size=1, max_size=6)


def tokens_of(documents, tokenizer):
    """Return the tokens that the rows should hold, by the test's own reference."""
    if tokenizer.bos != tokenizer.eos:
        pieces = [[tokenizer.bos, *tokenizer(document)[1:], tokenizer.eos] for document in documents]
        starts = np.cumsum([0, *map(len, pieces)])[:-1]
    else:
        pieces = [[tokenizer.bos, *tokenizer(document)[1:]] for document in documents]
        starts = np.cumsum([0, *map(len, pieces)])[:-1]
        pieces.append([tokenizer.eos])
    return Tokens(np.concatenate(pieces).astype(np.uint16), starts, 0, 0.0)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(1, 9), st.booleans(), st.sampled_from([CHAR, SHARED]))
def test_every_token_is_predicted_and_scored_exactly_once(documents, max_seq_len, packed, tokenizer):
    rows = TextRows(tokens_of(documents, tokenizer), tokenizer, max_seq_len, packed)
    batch = mycollate(rows.__getitems__(list(range(len(rows)))), pad=tokenizer.pad)
    x, mask, scored = batch["x_indices"], batch["mask"], batch["target_mask"]
    assert x.shape[1] <= max_seq_len + 1
    expected = []
    for document in documents:
        expected += [*tokenizer(document)[1:], tokenizer.eos]
    assert x[scored].tolist() == expected
    predicted_bos = len(documents) - 1 if packed and tokenizer is CHAR else 0
    assert n_real_tokens(batch) == len(expected) + predicted_bos
    assert (x[~mask] == tokenizer.pad).all()
    assert not (scored & ~mask).any()
    assert not scored[:, 0].any()
    for i in range(len(rows)):
        row = rows[i]
        assert row.ids == x[i][mask[i]].tolist()
        assert row.scored == scored[i][mask[i]].tolist()


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS, st.integers(1, 9), st.booleans())
def test_without_bos_nothing_stands_in_front(documents, max_seq_len, packed):
    """A token without a predecessor is not predicted: the very first one or, unpacked, the first of every document."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(documents, NO_BOS, Path(folder))
        tokens = read_tokens(Path(folder))
    pieces = [[*NO_BOS(document), 2] for document in documents]
    assert tokens.ids.tolist() == [i for piece in pieces for i in piece]
    assert tokens.n_first_bytes == sum(len(document) > 0 for document in documents)
    rows = TextRows(tokens, NO_BOS, max_seq_len, packed)
    batch = [rows[i] for i in range(len(rows))]
    scored = [i for row in batch for i, is_scored in zip(row.ids, row.scored, strict=True) if is_scored]
    assert scored == (tokens.ids[1:].tolist() if packed else [i for piece in pieces for i in piece[1:]])


@settings(max_examples=30, deadline=None)
@given(DOCUMENTS, st.integers(1, 9))
def test_rows_of_one_document_hold_nothing_else(documents, max_seq_len):
    rows = TextRows(tokens_of(documents, CHAR), CHAR, max_seq_len, packed=False)
    joined = []
    for i in range(len(rows)):
        ids = rows[i].ids
        joined += ids if ids[0] == CHAR.bos else ids[1:]
        assert CHAR.bos not in ids[1:]
    assert joined == [i for document in documents for i in [*CHAR(document), CHAR.eos]]


def test_packed_rows_are_full():
    rows = TextRows(tokens_of(["abc", "de"] * 50, CHAR), CHAR, 16, packed=True)
    lengths = [len(rows[i].ids) for i in range(len(rows))]
    assert lengths[:-1] == [17] * (len(rows) - 1)
    with pytest.raises(IndexError):
        rows[len(rows)]


@pytest.mark.parametrize("tokenizer", [CHAR, SHARED], ids=["separate", "shared"])
@pytest.mark.parametrize("at_once", [3, 10, 1000])
def test_tokens_read_from_disk_equal_those_in_memory(tokenizer, at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "CHARS_AT_ONCE", at_once)
    documents = ["abc de fa", "", "bbbbbbbbbbbbbbbbbbbb", "a b", "é"]
    write_tokens(iter(documents), tokenizer, tmp_path)
    tokens, expected = read_tokens(tmp_path), tokens_of(documents, tokenizer)
    assert tokens.ids.dtype == np.uint16
    assert tokens.ids.tolist() == expected.ids.tolist()
    assert tokens.starts.tolist() == expected.starts.tolist()
    assert tokens.n_bytes == sum(len(document.encode()) for document in documents)
    targets = [i for i in expected.ids[1:].tolist() if i != 1]
    assert tokens.chance == pytest.approx(max(map(targets.count, targets)) / len(targets), abs=0.01)


def test_large_vocabularies_take_four_bytes(tmp_path):
    tokenizer = char_tokenizer(map(chr, range(0x10000, 0x10000 + 70_000)))
    write_tokens([last := chr(0x10000 + 69_999)], tokenizer, tmp_path)
    assert read_tokens(tmp_path).ids.tolist() == [*tokenizer(last), 2] == [1, 70_003, 2]


def test_long_documents_are_tokenized_in_pieces_with_the_same_ids(monkeypatch):
    monkeypatch.setattr(text, "CHARS_AT_ONCE", 50)
    document = "the cat sat  on the mat " * 30
    parts = [piece for batch in batches([document, "end"]) for piece in batch]
    assert max(len(piece.text) for piece in parts) <= 50
    assert "".join(piece.text for piece in parts) == document + "end"
    assert [piece.first for piece in parts].count(True) == [piece.last for piece in parts].count(True) == 2


def params(**changes):
    return DataParams(dataset_name="mine", **changes)


def test_split_by_document():
    splits = split_by_document({"train": range(200)}, params(val_pct=10.0, test_pct=5.0))
    assert [len(splits[s]) for s in ("train", "val", "test")] == [170, 20, 10]
    assert sorted([*splits["train"], *splits["val"], *splits["test"]]) == list(range(200))
    assert splits == split_by_document({"train": range(200)}, params(val_pct=10.0, test_pct=5.0))
    other = split_by_document({"train": range(200)}, params(val_pct=10.0, test_pct=5.0, data_seed=1))
    assert other["val"] != splits["val"]


def test_splits_that_the_corpus_brings_are_used():
    own = {"train": range(100), "val": range(100, 110), "test": range(110, 115)}
    splits = split_by_document(own, params(val_pct=50.0))
    assert {split: list(indices) for split, indices in splits.items()} == {s: list(r) for s, r in own.items()}
    del own["test"]
    splits = split_by_document(own, params(val_pct=50.0, test_pct=10.0))
    assert [len(splits[s]) for s in ("train", "val", "test")] == [90, 10, 10]


def test_too_few_documents():
    with pytest.raises(ValueError, match=r"dataset_name='mine' with debug_crop=None has only 2 documents"):
        split_by_document({"train": range(2)}, params())
    assert len(split_by_document({"train": range(2)}, params(test_pct=0.0))["val"]) == 1


@pytest.fixture
def corpus(monkeypatch):
    documents = [f"{'abc def '[: 1 + i % 8]}{i}\n" for i in range(100)]
    monkeypatch.setitem(corpora.corpora, "mine", lambda: iter(documents))
    return documents


def all_text(data, split):
    rows = data.rows(split, 7)
    return "".join(data.tokenizer.decode(rows[i].ids[1 if i else 0 :]) for i in range(len(rows)))


@pytest.mark.parametrize("source", ["char", "custom"])
def test_the_splits_hold_all_of_the_text_once(corpus, source, tmp_path):
    data = TextData(params(), TokenizerSpec(source, 300), tmp_path)
    texts = {split: all_text(data, split) for split in ("train", "val", "test")}
    lines = [line for t in texts.values() for line in t.splitlines(keepends=True)]
    assert sorted(lines) == sorted(corpus)
    assert data.val_bytes == len(texts["val"].encode())
    assert len(texts["val"].splitlines()) == len(texts["test"].splitlines()) == 5


def test_the_tokenizer_sees_the_training_split_only(monkeypatch, tmp_path):
    documents = [f"a{chr(0x4E00 + i)}" for i in range(40)]
    monkeypatch.setitem(corpora.corpora, "mine", lambda: iter(documents))
    data = TextData(params(val_pct=20.0, test_pct=20.0), TokenizerSpec("char"), tmp_path)
    assert data.tokenizer.n_tokens == 4 + 1 + 24
    ids = data.val.ids.tolist()
    assert ids.count(data.tokenizer.unk) == 8
    assert ids.count(data.tokenizer.pad) == 0


@pytest.mark.parametrize(("packed", "expected"), [(None, 5 * 2), (False, 5 * 2 + 5)])
def test_bytes_that_no_token_explains_are_counted(packed, expected, monkeypatch, tmp_path):
    """Two unknown bytes in every document, and without bos the first byte of one in rows of its own."""
    train, val = ["abc"] * 9, ["ab\u00e9"] * 5
    monkeypatch.setitem(corpora.corpora, "mine", lambda: iter(train))
    monkeypatch.setattr(text, "read_corpus", lambda *_: {"train": train, "val": val, "test": val})
    data = TextData(params(packed=packed), TokenizerSpec("-"), tmp_path, tokenizer=NO_BOS)
    assert (data.val_bytes, data.val_unknown_bytes) == (5 * 4, expected)
    with_bos = TextData(params(packed=packed), TokenizerSpec("-"), tmp_path, tokenizer=CHAR)
    assert with_bos.val_unknown_bytes == 5 * 2
    # A sample without a prompt begins as a document in the middle of a row does.
    assert data.tokenizer.start == [2]


def test_an_edited_pretrained_tokenizer_is_no_other_one_from_the_cache(corpus, tmp_path):
    (folder := tmp_path / "pretrained").mkdir()
    n_tokens = []
    for characters in ("abc", "abcdef"):
        char_tokenizer(characters).rust.save(str(folder / "tokenizer.json"))
        for crop in (False, True):
            spec = TokenizerSpec(str(folder), crop=crop)
            n_tokens.append(TextData(params(), spec, tmp_path / "cache").tokenizer.n_tokens)
    assert n_tokens[2] == n_tokens[0] + 3
    assert n_tokens[3] == n_tokens[1] + 3


def test_the_text_is_read_once_and_then_comes_from_the_cache(monkeypatch, corpus, tmp_path):
    spec, reads = TokenizerSpec("char"), []
    monkeypatch.setattr(text, "read_corpus", lambda *a: reads.append(a) or corpora.read_corpus(*a))
    first = TextData(params(), spec, tmp_path)
    assert len(reads) == 1
    second = TextData(params(), spec, tmp_path)
    assert len(reads) == 1
    assert second.train.ids.tolist() == first.train.ids.tolist()
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    reused = TextData(params(), TokenizerSpec("not-needed"), tmp_path, tokenizer=first.tokenizer)
    assert len(reads) == 1
    assert reused.val.ids.tolist() == first.val.ids.tolist()
    first.rows("test", 8)  # is not made before it is asked for
    assert len(reads) == 2


@pytest.mark.parametrize(
    "change", [{"data_seed": 1}, {"debug_crop": 50}, {"val_pct": 10.0}, {"test_pct": 0.0}]
)
def test_other_params_miss_the_cache_of_tokens(corpus, tmp_path, change):
    first = TextData(params(), TokenizerSpec("char"), tmp_path)
    other = TextData(params(**change), TokenizerSpec("char"), tmp_path)
    assert other.train.ids.tolist() != first.train.ids.tolist()
    assert not list(tmp_path.glob("unfinished-*"))


def test_another_tokenizer_misses_the_cache(corpus, tmp_path):
    char = TextData(params(), TokenizerSpec("char"), tmp_path)
    custom = TextData(params(), TokenizerSpec("custom", 300), tmp_path)
    smaller = TextData(params(), TokenizerSpec("custom", 261), tmp_path)
    for data in (char, custom, smaller):
        assert sorted(all_text(data, "val").split()) == sorted(all_text(char, "val").split())
    assert len(custom.val.ids) < len(smaller.val.ids) < len(char.val.ids)


def test_edited_text_misses_the_cache(corpus, tmp_path):
    TextData(params(), TokenizerSpec("char"), tmp_path)
    corpus[:] = [line.replace("a", "e") for line in corpus]
    assert "a" not in all_text(TextData(params(), TokenizerSpec("char"), tmp_path), "train")


PEAK = """
import resource, sys
from pathlib import Path
from data import corpora
from data.data_params import DataParams
from data.text_rows import TextData
from data.tokenizer import TokenizerSpec
n, source, cache = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
line = " ".join(map(str, range(2000)))
corpora.corpora["mine"] = lambda: (f"{i} {line}" for i in range(n))
TextData(DataParams(dataset_name="mine"), TokenizerSpec(source, 400), cache)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["char", "custom"])
def test_a_corpus_ten_times_larger_takes_hardly_more_memory(source, tmp_path):
    def peak(n):
        command = [sys.executable, "-c", PEAK, str(n), source, str(tmp_path / str(n))]
        repository = Path(__file__).parents[2]
        return int(subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout)

    assert peak(2000) < 1.3 * peak(200)


def test_facts_of_cached_tokens_are_plain_json(corpus, tmp_path):
    TextData(params(), TokenizerSpec("char"), tmp_path)
    for facts in tmp_path.glob("tokens-*/facts.json"):
        expected = {
            "dtype",
            "n_bytes",
            "n_unknown_bytes",
            "n_first_bytes",
            "n_empty",
            "n_in_training",
            "chance",
            "text",
        }
        assert set(json.loads(facts.read_text())) == expected


def faults_said(documents, tmp_path, monkeypatch, caplog, **fields):
    """The log lines about a text, from a call that tokenizes it and from one that finds it in the cache."""
    monkeypatch.setitem(corpora.corpora, "mine", lambda: iter(documents))
    said = []
    for _ in range(2):
        corpora.log_once.cache_clear()
        caplog.clear()
        with caplog.at_level("INFO", "whatif.data"):
            TextData(DataParams(dataset_name="mine", **fields), TokenizerSpec("char"), tmp_path)
        said.append([record.getMessage() for record in caplog.records])
    assert said[0] == said[1]
    return said[0]


def test_validation_documents_that_are_trained_on_are_counted(tmp_path, monkeypatch, caplog):
    documents = [f"document {i}" for i in range(50)] * 2
    [line] = faults_said(documents, tmp_path, monkeypatch, caplog, val_pct=10.0, test_pct=0.0)
    data = Documents(DataParams(dataset_name="mine", val_pct=10.0, test_pct=0.0), tmp_path)
    train = [*data.read("train")]
    n = sum(document in train for document in data.read("val"))
    assert n > 0
    assert f"{n} of 10 validation documents are in the training split too" in line


def test_validation_documents_without_a_token_are_counted(tmp_path, monkeypatch, caplog):
    documents = ["" if i % 2 else f"document {i}" for i in range(100)]
    [line] = faults_said(documents, tmp_path, monkeypatch, caplog, val_pct=20.0, test_pct=0.0)
    data = Documents(DataParams(dataset_name="mine", val_pct=20.0, test_pct=0.0), tmp_path)
    assert f"{[*data.read('val')].count('')} of 20 validation documents have no token" in line


def test_a_sound_text_gets_no_warning(tmp_path, monkeypatch, caplog):
    documents = [f"document {i}" for i in range(100)]
    assert faults_said(documents, tmp_path, monkeypatch, caplog) == []
