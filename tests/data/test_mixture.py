"""A mixture of texts: shares, order and rows by references of our own."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass

from data import corpora, mixture, text_rows
from data.cache import changed_fields
from data.data_params import DataParams, column_of_part
from data.dataloader import LMDataModule
from data.eval_sets import eval_set_problems
from data.mixture import MixtureData, MixtureRows
from data.problems import data_problems
from data.text_rows import TextData, TextRows, Tokens
from data.tokenizer import TokenizerSpec, char_tokenizer
from tests.own_texts import register_texts
from train.length import mean_row_length

CHAR = char_tokenizer("abcdef")
TEXTS = {
    "large": [f"{'abc' * (5 + i % 7)} {i}" for i in range(200)],
    "small": [f"{'def' * (3 + i % 4)} {i}" for i in range(30)],
    "other": [f"xyz {i}" for i in range(40)],
}
MIX = DataParams(dataset_name={"large": 1, "small": 3}, val_pct=10.0)


@pytest.fixture(autouse=True)
def texts(monkeypatch):
    register_texts(monkeypatch, TEXTS)


def module(params, cache, **options):
    return LMDataModule(params, TokenizerSpec("char"), 16, cache=cache, **options)


def mixture_of(lengths, weights):
    tokens = [Tokens(np.arange(n * 4 + 1) % 6 + 4, np.array([0]), 0, 0.0) for n in lengths]
    names = [f"t{i}" for i in range(len(lengths))]
    parts = {name: TextRows(one, CHAR, 4, packed=True) for name, one in zip(names, tokens, strict=True)}
    params = DataParams(dataset_name=dict(zip(names, weights, strict=True)))
    return MixtureRows(parts, {name: params.shares[name] for name in names}, CHAR.pad)


SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(0, 5), st.integers(0, 3))
def test_shares_of_a_run(sizes, seed, epoch):
    lengths, weights = zip(*sizes, strict=True)
    rows = mixture_of(lengths, weights)
    exact = np.array(weights) / sum(weights)
    if (exact * len(rows)).min() < 1:
        return
    order = np.concatenate([rows.epoch_order(seed, e) for e in range(epoch + 1)])
    part = np.searchsorted(rows.first_row_P, order, side="right") - 1
    n = len(rows)
    for i, share in enumerate(exact):
        counts = np.cumsum(part == i)
        after_each_epoch = counts[n - 1 :: n] - share * n * np.arange(1, epoch + 2)
        assert (np.abs(after_each_epoch) < 1).all()
        steps = np.arange(1, len(order) + 1)
        assert (np.abs(counts - share * steps) < len(sizes) + 2).all()
        drawn = order[part == i] - rows.first_row_P[i]
        for first in range(0, len(drawn), lengths[i]):  # all rows before any comes again
            one_pass = drawn[first : first + lengths[i]]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) <= set(range(lengths[i]))
    assert (order[-n:] == rows.epoch_order(seed, epoch)).all()


def test_a_text_that_gets_no_row_is_refused():
    with pytest.raises(
        ValueError, match=r"dataset_name=\{'t1': ...\}: its weight gives it less than one of the 30 rows"
    ):
        mixture_of((10, 20), (1000, 1)).epoch_order(0, 0)


def test_rows_are_those_of_the_texts(tmp_path):
    data = module(MIX, tmp_path)
    rows, tokenizer = data.rows("train"), data.tokenizer
    assert isinstance(data.data, MixtureData)
    singles = [
        TextData(DataParams(dataset_name=name, val_pct=10.0), TokenizerSpec("char"), tmp_path, tokenizer)
        for name in MIX.shares
    ]
    expected = [
        row for one in singles for row in (lambda r: [r[i] for i in range(len(r))])(one.rows("train", 16))
    ]
    assert [rows[i] for i in range(len(rows))] == expected
    assert len(rows) == data.n_rows("train") == len(expected)
    indices = np.random.default_rng(0).permutation(len(rows)).tolist()
    block = rows.__getitems__(indices)
    for i, ids, mask, scored in zip(indices, block.x_BT, block.mask_BT, block.target_mask_BT, strict=True):
        assert ids[mask].tolist() == expected[i].ids
        assert scored[mask].tolist() == expected[i].scored
        assert not scored[~mask].any()
    assert block.mask_BT.sum() >= 0.98 * block.mask_BT.size  # only the last row of each text is padded
    assert data.val_bytes == sum(one.val_bytes for one in singles)
    with pytest.raises(IndexError):
        rows[len(rows)]


def rows_of(data, **options):
    return [
        tuple(row) for batch in data.train_dataloader(8, **options) for row in batch["x_indices"].tolist()
    ]


def test_the_same_rows_for_the_same_seed(tmp_path):
    data, again = module(MIX, tmp_path), module(MIX, tmp_path)
    assert rows_of(data, seed=1) == rows_of(again, seed=1)
    assert rows_of(data, seed=1) != rows_of(data, seed=2)
    assert rows_of(data, seed=1) != rows_of(module(replace(MIX, data_seed=1), tmp_path), seed=1)
    loader = data.train_dataloader(8, seed=1)
    first, second = [*loader], [*loader]
    resumed = [*data.train_dataloader(8, seed=1, epoch=1, batches=2)]
    assert [b["x_indices"].tolist() for b in resumed] == [b["x_indices"].tolist() for b in second[2:]]
    assert [b["x_indices"].tolist() for b in first] != [b["x_indices"].tolist() for b in second]


def test_small_texts_are_repeated_and_large_ones_go_on(tmp_path):
    data = module(MIX, tmp_path)
    rows = data.rows("train")
    order = np.concatenate([rows.epoch_order(0, epoch) for epoch in range(3)])
    times = Counter(order.tolist())
    n_small = int(rows.first_row_P[1])  # it has the larger weight, so it comes first
    small = [times[i] for i in range(n_small)]
    large = [times[i] for i in range(n_small, len(rows))]
    assert max(large) - min(large) <= 1
    assert max(small) - min(small) <= 1
    assert sum(small) / len(order) == pytest.approx(0.75, abs=0.01)


def test_one_tokenizer_knows_all_texts(tmp_path):
    data = module(MIX, tmp_path)
    text = "abcdef 0123456789"
    assert data.tokenizer.decode(data.tokenizer(text)[1:]) == text
    custom = LMDataModule(MIX, TokenizerSpec("custom", 300), 16, cache=tmp_path)
    assert custom.tokenizer.n_tokens <= 300
    for part in custom.parts.values():
        assert part.tokenizer is custom.tokenizer
    # A saved tokenizer is used as it is.
    assert module(MIX, tmp_path, tokenizer=CHAR).data.parts["large"].tokenizer is CHAR


def test_chance_is_the_share_of_the_most_common_token(tmp_path):
    data = module(MIX, tmp_path)
    shares = Counter()
    for name, part in data.parts.items():
        rows = part.rows("val")
        counts = Counter(
            i
            for r in range(len(rows))
            for i, scored in zip(rows[r].ids, rows[r].scored, strict=True)
            if scored
        )
        for token, n in counts.items():
            shares[token] += data.shares[name] * n / counts.total()
    assert data.chance == pytest.approx(max(shares.values()))


def test_the_mean_row_is_weighted(tmp_path):
    data = module(replace(MIX, packed=False), tmp_path)
    lengths = {}
    for name, part in data.parts.items():
        rows = part.rows("train")
        lengths[name] = np.mean([len(rows[i].ids) - 1 for i in range(len(rows))])
    assert mean_row_length(data) == pytest.approx(0.25 * lengths["large"] + 0.75 * lengths["small"])


def test_equal_mixtures_are_equal():
    same = [DataParams(dataset_name=name) for name in ({"b": 3, "a": 1.0}, {"a": 1, "b": 3.0})]
    assert same[0] == same[1]
    assert (
        repr(changed_fields(same[0]))
        == repr(changed_fields(same[1]))
        == repr(changed_fields(replace(same[0])))
    )
    assert same[0].label == "b+a"
    assert same[0].shares == {"b": 0.75, "a": 0.25}
    assert DataParams(dataset_name={"a": {"weight": 2}}) == DataParams(dataset_name={"a": 2})
    assert DataParams().shares == {}
    assert column_of_part("stanfordnlp/imdb@v1") == "stanfordnlp-imdb-v1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ({}, "needs at least one text"),
        ({"a": 0}, "the weight of 'a' is 0"),
        ({"a": -1}, "the weight of 'a' is -1"),
        ({"a": "3"}, "the weight of 'a' is '3'"),
        ({"a": True}, "the weight of 'a' is True"),
        ({"a": float("inf")}, "the weight of 'a' is inf"),
        ({"a": float("nan")}, "the weight of 'a' is nan"),
        ({"a": 10**400}, "the weight of 'a' is 1000"),
        ({"a": {"text_column": "x"}}, "the weight of 'a' is None"),
        ({"a": {"weight": 1, "text_colum": "x"}}, "cannot have 'text_colum'; did you mean 'text_column'"),
        ({"a": {"weight": 1, "n_samples": 3}}, "cannot have 'n_samples'"),
        (
            {"a": {"weight": 1, "debug_crop": 0}},
            "dataset_name={'a': ...}: debug_crop Input should be greater than 0",
        ),
        ({"a/b": 1, "a-b": 1}, "two texts of a mixture have the same name in results: a-b, a-b"),
        (3, "valid string"),
        ({3: 1}, "valid string"),
    ],
)
def test_mixtures_that_are_refused(name, said):
    with pytest.raises(ValueError, match=r"dataset_name|Value error") as caught:
        DataParams(dataset_name=name)
    assert said in str(caught.value)


def problems(params):
    return [*data_problems(params, TokenizerSpec("char"), 16), *eval_set_problems(params, 16)]


def test_texts_only():
    assert not problems(MIX)
    said = problems(DataParams(dataset_name={"large": 1, "copy": 1, "nowhere": 1}))
    assert said[0] == "dataset_name={'copy': ...}: a mixture is of texts, but 'copy' is a synthetic task"
    assert "dataset_name='nowhere' is neither a task nor a text" in said[1]
    assert "task_args={'n': 1} is for synthetic tasks" in problems(replace(MIX, task_args={"n": 1}))[0]


def test_a_text_with_fields_of_its_own(tmp_path):
    params = DataParams(dataset_name={"large": {"weight": 1, "debug_crop": 50}, "small": 1}, debug_crop=20)
    data = module(params, tmp_path).data
    n = {
        name: sum(len(part.tokens(split).starts) for split in ("train", "val", "test"))
        for name, part in data.parts.items()
    }
    assert n == {"large": 50, "small": 20}


def test_evaluation_sets(tmp_path):
    sets = {"own": {"dataset_name": "small"}, "new": {"dataset_name": "other", "n_samples": 7}}
    data = module(replace(MIX, eval_sets=sets), tmp_path)
    parts = data.parts
    # That of a text of the mixture is its validation split, as far as nothing else trains on it.
    assert data.eval_sets["own"].data.val.ids.tolist() == parts["small"].data.val.ids.tolist()
    assert len(data.eval_sets["new"].data.val.starts) == 7
    assert not data.eval_sets["own"].parts
    assert not parts["small"].eval_sets
    said = problems(replace(MIX, eval_sets={"mix": {"val_pct": 5.0}}))
    assert "an evaluation set is one text: set its dataset_name, for example to 'small'" in said[0]
    with pytest.raises(ValueError, match="a text of the mixture has this name in results"):
        replace(MIX, eval_sets={"small": {"dataset_name": "other"}})


def test_documents_that_another_text_trains_on_are_counted(tmp_path, monkeypatch, notes):
    monkeypatch.setitem(corpora.corpora, "small", lambda: iter([*TEXTS["large"][::-1], "", ""]))
    for _ in range(2):  # made, and found in the cache
        corpora.log_once.cache_clear()
        notes.clear()
        parts = module(MIX, tmp_path).data.parts
        splits = {
            (name, split): documents_of(parts[name], split) for name in parts for split in ("train", "val")
        }
        for name, other in (("large", "small"), ("small", "large")):
            shared = [one for one in splits[name, "val"] if one in splits[other, "train"]]
            said = f"{len(shared)} validation documents of {name!r} are in the training split of another text"
            assert [said in note for note in notes].count(True) == 1
            assert shared


def documents_of(text, split):
    tokens = text.tokens(split)
    ends = [*tokens.starts[1:], len(tokens.ids)]
    return [
        text.tokenizer.decode(tokens.ids[first:end].tolist())
        for first, end in zip(tokens.starts, ends, strict=True)
    ]


def test_texts_share_the_cache_with_runs_on_one_text(tmp_path):
    tokenizer = module(MIX, tmp_path).tokenizer
    before = sorted(path.name for path in tmp_path.glob("tokens-*"))
    TextData(DataParams(dataset_name="small", val_pct=10.0), TokenizerSpec("char"), tmp_path, tokenizer)
    assert sorted(path.name for path in tmp_path.glob("tokens-*")) == before


def test_a_field_that_a_user_adds_separates_mixtures_in_the_cache(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Extended(DataParams):
        lowercase: bool = False

    class Lowered(text_rows.Documents):
        def read_all(self, indices):
            found = super().read_all(indices)
            return map(str.upper, found) if params.lowercase else found

    monkeypatch.setattr(mixture, "Documents", Lowered)
    texts = set()
    for lowercase in (False, True):
        params = Extended(dataset_name=MIX.dataset_name, lowercase=lowercase)
        data = module(params, tmp_path).data
        texts.add(data.tokenizer.decode(data.parts["small"].val.ids[:9].tolist()))
    assert len(texts) == 2
