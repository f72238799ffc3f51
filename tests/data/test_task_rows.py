"""Tasks as rows: held-out samples disjoint from training, everything lazy and fixed by DataParams."""

import random
import time
import tracemalloc

import pytest
import torch

from data import task_rows as samples
from data.batch import Batch, parts
from data.data_params import DataParams
from data.dataloader import LMDataModule, TokenizerSpec
from data.syntheticdata import Task, tasks, text_without_marks
from data.task_rows import DrawnSamples, ListedSamples, TaskData, TaskRows
from data.tokenizer import OWN_SPECIALS, char_tokenizer
from model.lm import LM
from model.model_params import ModelParams


def params(name="copy", **changes):
    return DataParams(**({"dataset_name": name, "n_samples": 1000} | changes))


def data_of(cache, name="copy", **changes):
    return TaskData(tasks[name], params(name, **changes), cache)


def letters(rng, n=2, k=3):
    """a«b»"""
    return "".join(rng.choices("abcdefgh"[:k], k=n))


LETTERS = Task("letters", letters, None, None, None)
SMALL = {  # few different samples, so that training draws do hit those held out
    "copy": {"max_length": 5, "n_letters": 3},
    "parity": {"max_length": 8},
    "modular_addition": {"p": 20},
}


@pytest.mark.parametrize("name", sorted(tasks))
def test_no_held_out_sample_is_trained_on(name, tmp_path):
    args = SMALL.get(name, {})
    data = data_of(tmp_path, name, n_samples=500, val_pct=8.0, test_pct=8.0, task_args=args)
    splits = {
        split: [text_without_marks(sample) for sample in data.split(split)]
        for split in ("train", "val", "test")
    }
    held_out = splits["val"] + splits["test"]
    assert len(set(held_out)) == len(held_out)
    assert not set(held_out) & set(splits["train"])
    if name != "modular_addition":
        assert [len(splits[s]) for s in ("train", "val", "test")] == [420, 40, 40]


def test_training_draws_do_hit_held_out_samples_without_the_guard(tmp_path, monkeypatch):
    """Otherwise the test above proves nothing."""
    monkeypatch.setattr(DrawnSamples, "is_held_out", lambda self, found: False)
    data = data_of(tmp_path, "parity", n_samples=500, val_pct=8.0, test_pct=8.0, task_args=SMALL["parity"])
    assert {text_without_marks(s) for s in data.split("val")} & {
        text_without_marks(s) for s in data.split("train")
    }


def test_samples_depend_on_the_data_seed_and_their_index_alone(tmp_path):
    a, b = data_of(tmp_path / "a"), data_of(tmp_path / "b")
    random.seed(5)
    order = [700, 3, 500, 3]
    assert [a.samples.sample("train", i) for i in order] == [b.samples.sample("train", i) for i in order]
    assert list(a.split("val")) == list(b.split("val"))
    other = data_of(tmp_path / "c", data_seed=1)
    assert list(other.split("val")) != list(a.split("val"))
    assert other.samples.sample("train", 0) != a.samples.sample("train", 0)


def test_a_finite_task_is_split_by_row(tmp_path):
    data = data_of(
        tmp_path, "modular_addition", val_pct=50.0, test_pct=10.0, n_samples=100_000, task_args={"p": 59}
    )
    splits = {
        split: [text_without_marks(sample) for sample in data.split(split)]
        for split in ("train", "val", "test")
    }
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1393, "val": 1740, "test": 348}
    assert len({row for rows in splits.values() for row in rows}) == 59 * 59
    assert isinstance(data.samples, ListedSamples)
    assert data.tokenizer.n_tokens == 4 + 59 + 3


def test_too_few_different_samples_is_one_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"dataset_name='copy'.* has too few different samples: n_samples=1000"
    ):
        TaskData(LETTERS, params(), tmp_path)
    assert not list(tmp_path.iterdir())
    everything_held_out = params(n_samples=18, val_pct=25.0, test_pct=25.0)
    data = TaskData(LETTERS, everything_held_out, tmp_path)  # 9 samples exist, 8 are held out
    assert len({text_without_marks(sample) for sample in data.split("train")}) == 1


def test_nothing_left_to_train_on():
    with pytest.raises(ValueError, match="n_samples=2 with debug_crop=None gives 2 samples"):
        samples.split_sizes(params(n_samples=2), None)
    assert samples.split_sizes(params(debug_crop=50), None) == {"train": 46, "val": 2, "test": 2}
    assert samples.split_sizes(params(test_pct=0.0), None) == {"train": 950, "val": 50, "test": 0}


def test_a_million_samples_cost_nothing_up_front(tmp_path):
    tracemalloc.start()
    start = time.perf_counter()
    data = data_of(tmp_path, n_samples=100_000_000, val_pct=0.001, test_pct=0.001)
    rows = data.rows("train", 64)
    row = rows[len(rows) - 1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 99_998_000
    assert len(row.ids) > 10
    assert peak < 5_000_000
    assert time.perf_counter() - start < 10


def test_test_samples_are_drawn_for_their_hash_only(tmp_path, monkeypatch):
    data_of(tmp_path)
    monkeypatch.setattr(samples.DrawnSamples, "hold_out", None)
    drawn = []
    draw = samples.DrawnSamples.draw
    monkeypatch.setattr(samples.DrawnSamples, "draw", lambda self, *a: drawn.append(a) or draw(self, *a))
    data = data_of(tmp_path)
    assert not drawn  # all from the cache
    data.rows("val", 64)[0]
    data.rows("train", 64)[0]
    assert {split for split, *_ in drawn} == {"val", "train"}


@pytest.mark.parametrize(
    "change", [{"task_args": {"n_letters": 5}}, {"data_seed": 3}, {"val_pct": 7.0}, {"n_samples": 999}]
)
def test_other_params_miss_the_cache_of_samples(tmp_path, change):
    data_of(tmp_path)
    before = set(tmp_path.iterdir())
    data_of(tmp_path, **change)
    assert len(set(tmp_path.iterdir()) - before) == 2
    data_of(tmp_path)
    assert len(set(tmp_path.iterdir()) - before) == 2


def test_rows_hold_bos_sample_and_eos_with_the_answer_scored(tmp_path):
    data = data_of(tmp_path)
    t = data.tokenizer
    for i in range(50):
        ids, scored, _ = data.rows("val", 64)[i]
        question = data.samples.sample("val", i).split("«")[0]
        assert ids == [t.bos, *t(question)[1:], *t(question[:-2])[1:], t.eos]
        assert scored == [False] * (len(question) + 1) + [True] * (len(question) - 1)  # the end is scored too


def test_unscored_ends(tmp_path):
    scored = data_of(tmp_path, "parity").rows("train", 64)[0].scored
    assert scored.count(True) == 1
    assert scored[-3:] == [True, False, False]


def test_packed_rows_hold_whole_samples_and_all_of_them(tmp_path):
    single, packed = data_of(tmp_path), data_of(tmp_path, packed=True)
    rows = packed.rows("train", 128)
    n = (128 + 1) // (packed.longest + 2)
    assert n == 2
    assert len(rows) == 900 // n
    one_by_one = single.rows("train", 128)
    for i in (0, 7, len(rows) - 1):
        assert rows[i].ids == [*one_by_one[2 * i].ids, *one_by_one[2 * i + 1].ids]
        assert rows[i].scored == [*one_by_one[2 * i].scored, *one_by_one[2 * i + 1].scored]


def test_a_sample_longer_than_the_longest_found_is_never_cut(tmp_path):
    data = data_of(tmp_path, packed=True)
    data.longest = 10  # as if the search had missed the long ones
    rows = TaskRows(data, "train", 64)
    with pytest.raises(
        ValueError, match=r"packed=True has room for samples of up to 10 tokens, .* has one of \d+"
    ):
        [rows[i] for i in range(len(rows))]  # never a row with a part of a sample
    rows = TaskRows(data, "train", 20)
    with pytest.raises(
        ValueError,
        match=r"max_seq_len=20 is too small: dataset_name='copy' with task_args=\{\} has samples of",
    ):
        [rows[i] for i in range(len(rows))]


def test_samples_must_fit(tmp_path):
    data = data_of(tmp_path)
    assert data.longest == 42
    data.rows("train", 43)
    with pytest.raises(ValueError, match=r"max_seq_len=42 is too small.* at least 43 are needed"):
        data.rows("train", 42)


def test_chance_is_the_accuracy_of_the_most_frequent_answer(tmp_path):
    assert data_of(tmp_path / "m", "mqar", task_args={"n_pairs": 2}).chance == 0.75
    counts = {"0": 0, "1": 0}
    data = data_of(tmp_path / "p", "parity")
    for sample in data.split("val"):
        counts[sample.split("«")[1][0]] += 1
    assert data.chance == max(counts.values()) / 50


def test_the_vocabulary_finds_rare_tokens(tmp_path):
    def rare(rng):
        """a"""
        return "".join(rng.choices("ab", k=20)) + ("z" if rng.random() < 0.004 else "")

    data = TaskData(Task("rare", rare, None, None, None), params(n_samples=50_000, val_pct=0.1), tmp_path)
    assert data.tokenizer.n_tokens == 7


@pytest.mark.parametrize(
    ("name", "task_args", "n_tokens"),
    [
        ("histogram", {"min_length": 1, "max_length": 30, "n_letters": 2}, 2 + 1 + 30),
        ("doublehistogram", {"min_length": 1, "max_length": 30, "n_letters": 2}, 2 + 1 + 30),
        ("few_shot", {"n_classes": 900, "zipf": 2.0}, 900 * 4 + 8 + 1),
        ("bigram_backcopy", {"vocab_size": 200}, 200 + 3 + 1),
    ],
)
def test_the_vocabulary_has_tokens_that_no_sample_may_show(tmp_path, name, task_args, n_tokens):
    data = TaskData(tasks[name], params(dataset_name=name, task_args=task_args, n_samples=200), tmp_path)
    assert data.tokenizer.n_tokens == n_tokens + len(OWN_SPECIALS)
    rows = data.rows("train", 200)
    [rows[i] for i in range(len(rows))]


def test_a_token_too_rare_for_the_vocabulary_is_named(tmp_path):
    data = data_of(tmp_path)
    data.tokenizer = char_tokenizer("abcdefghijklmnopqrstuvwxy:")  # as if the search had missed the z
    rows = data.rows("train", 64)
    with pytest.raises(
        ValueError, match=r"dataset_name='copy' with task_args=\{\} draws the token 'z' too rarely"
    ):
        [rows[i] for i in range(len(rows))]


def test_prompts_stop_before_the_answer(tmp_path):
    data = data_of(tmp_path)
    for i, prompt in enumerate(data.prompts(10)):
        assert prompt.text == data.samples.sample("val", i).split("«")[0]
        assert prompt.ids == data.tokenizer(prompt.text)
    assert len(data.prompts(10_000)) == 50


def test_hidden_answers_are_targets_that_no_input_shows(tmp_path):
    """The inputs have padding in the place of hidden answers, packed or not; all else is as without hiding."""
    batches = {}
    for show in (True, False):
        for packed in (False, True):
            params = DataParams(
                "mqar", {"show_answer": show, "length": 24}, n_samples=300, val_pct=20.0, packed=packed
            )
            data = LMDataModule(params, TokenizerSpec("char"), 64, cache=tmp_path)
            batches[show, packed] = next(iter(data.val_dataloader(8)))
            assert data.hides_answers is not show
    for packed in (False, True):
        seen, hidden = batches[True, packed], batches[False, packed]
        assert "shown" not in seen
        scored = hidden["target_mask"]
        assert scored.sum() == 8 * 4 * (2 if packed else 1)
        assert torch.equal(hidden["x_indices"], seen["x_indices"])
        assert torch.equal(scored, seen["target_mask"])
        assert (hidden["shown"][scored] == data.tokenizer.pad).all()
        assert torch.equal(hidden["shown"][~scored], hidden["x_indices"][~scored])
        assert hidden.cut(20)["shown"].shape == (8, 21)
        assert [part["shown"].shape[0] for part in parts(hidden, 4)] == [4, 4]


def test_the_model_gets_inputs_without_hidden_answers(tmp_path):
    """Other answers change targets and losses, but no logit."""
    params = DataParams("mqar", {"show_answer": False, "length": 24}, n_samples=300, val_pct=20.0)
    data = LMDataModule(params, TokenizerSpec("char"), 64, cache=tmp_path)
    lm = LM(ModelParams(dim=16, n_heads=2, n_layers=1, max_seq_len=64), tokenizer=data.tokenizer)
    batch = next(iter(data.val_dataloader(8)))
    other = Batch(batch)
    other["x_indices"] = torch.where(batch["target_mask"], batch["x_indices"].roll(1, 0), batch["x_indices"])
    one, two = (lm.get_batch_xyz(which) for which in (batch, other))
    assert torch.equal(one.z, two.z)
    assert not torch.equal(one.y, two.y)
    assert torch.equal(one.x, batch["shown"][:, :-1])
