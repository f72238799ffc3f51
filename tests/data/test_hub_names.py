"""Any data set of the hub by its name, with the real `datasets` code on files in the hub's layout."""

import datasets
import pandas as pd
import pytest

from data import corpora
from data.corpora import corpus_fingerprint, find_corpus, is_hub_name, read_corpus
from data.data_params import DataParams
from data.problems import data_problems
from data.tokenizer import TokenizerSpec

REVIEWS = {"train": ["good", "bad"] * 20, "test": ["fine"], "unsupervised": ["odd"] * 30}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that answers, and whose data sets are folders on this machine. Returns the calls of load_dataset."""
    monkeypatch.setattr(corpora, "REPOSITORY", tmp_path / "a" / "b")
    monkeypatch.setenv("WHATIF_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(corpora, "hub_answers", lambda: True)
    monkeypatch.chdir(tmp_path)
    load, calls = datasets.load_dataset, []

    def load_dataset(path, **options):
        calls.append((path, options))
        given = {name: options[name] for name in ("name", "streaming")}
        return load(str(tmp_path / "hub" / path), cache_dir=str(tmp_path / "cache"), **given)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for split, texts in REVIEWS.items():
        file = tmp_path / "hub" / "stanfordnlp" / "imdb" / "plain_text" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"text": texts, "label": 1}).to_parquet(file)
    yaml = "---\nconfigs:\n- config_name: plain_text\n  data_files:\n"
    yaml += "".join(f"  - split: {split}\n    path: plain_text/{split}-*\n" for split in REVIEWS)
    (tmp_path / "hub" / "stanfordnlp" / "imdb" / "README.md").write_text(f"{yaml}---\n", encoding="utf-8")
    return calls


def documents(name="stanfordnlp/imdb", debug_crop=None, **fields):
    found = read_corpus(name, debug_crop, DataParams(dataset_name=name, **fields))
    return {split: list(texts) for split, texts in found.items()}


def problem(name="stanfordnlp/imdb", **fields):
    (found,) = data_problems(DataParams(dataset_name=name, **fields), TokenizerSpec("char"), 32)
    assert "\n" not in found
    return found


def test_a_data_set_by_its_name(hub):
    assert documents() == {"train": REVIEWS["train"], "test": REVIEWS["test"]}
    assert not list(data_problems(DataParams(dataset_name="stanfordnlp/imdb"), TokenizerSpec("char"), 32))
    assert documents(train_split="unsupervised")["train"] == REVIEWS["unsupervised"]
    assert "there are: test, train, unsupervised" in problem(train_split="unsup")
    assert "has no column 'review'; there are: text, label" in problem(text_column="review")
    assert "row 1: column 'label' holds int, not text" in problem(text_column="label")


def test_debug_crop_streams(hub):
    assert documents(debug_crop=3)["train"] == REVIEWS["train"][:3]
    assert hub[-1][1]["streaming"] is True
    documents()
    assert hub[-1][1]["streaming"] is False


def test_subset_and_revision_reach_the_hub(hub):
    documents(subset="plain_text")
    assert hub[-1][1]["name"] == "plain_text"
    documents("stanfordnlp/imdb@refs/convert/parquet")
    assert hub[-1] == (
        "stanfordnlp/imdb",
        {"name": None, "revision": "refs/convert/parquet", "data_dir": None, "streaming": False},
    )
    assert "it has the subsets ['plain_text']; set subset" in problem(subset="plane")


def test_several_subsets_are_listed(hub, tmp_path):
    folder = tmp_path / "hub" / "a" / "b"
    folder.mkdir(parents=True)
    for name in ("de", "fr"):
        pd.DataFrame({"text": [name] * 9}).to_parquet(folder / f"{name}.parquet")
    yaml = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("de", "fr"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{yaml}---\n", encoding="utf-8")
    assert "it has the subsets ['de', 'fr']; set subset" in problem("a/b")
    assert documents("a/b", subset="fr") == {"train": ["fr"] * 9}


def test_code_from_the_hub_is_never_run(hub, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found imdb.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert "code from the hub is never run; add @refs/convert/parquet to its name" in problem()


def test_a_folder_in_the_working_directory_is_not_taken_for_the_hub(hub, tmp_path):
    (tmp_path / "stanfordnlp" / "imdb").mkdir(parents=True)
    assert "the working directory has a folder stanfordnlp/imdb" in problem()
    assert not hub


def test_without_a_network(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "hub_answers", lambda: False)

    def refuse(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    said = problem("owner/name")
    assert "dataset_name='owner/name' is not on this machine and the hub cannot be reached" in said
    assert str(tmp_path / "nothing" / "owner" / "name") in said


@pytest.mark.parametrize(
    ("name", "is_name"),
    [
        ("stanfordnlp/imdb", True),
        ("a/b@main", True),
        ("a/b@refs/convert/parquet", True),
        ("imdb", False),
        ("a/b/c", False),
        ("../b", False),
        ("a/..", False),
        ("a/b..c", False),
        ("a/b@../c", False),
        ("a/b\n", False),
        ("https://x/y", False),
    ],
)
def test_names(name, is_name):
    assert is_hub_name(name) is is_name


def test_fingerprints_tell_revisions_apart(hub):
    assert corpus_fingerprint("a/b") != corpus_fingerprint("a/b@main") != corpus_fingerprint("a/c")
    assert find_corpus("a/b@main") == corpora.Hub("a/b", column=None, revision="main")
