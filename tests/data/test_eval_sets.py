"""Evaluation sets: no sample of training, no change of the run's own data, and errors that name the set."""

import random

import pytest

from data import corpora as corpora_module
from data.corpora import corpora
from data.data_params import DataParams
from data.dataloader import LMDataModule
from data.eval_sets import eval_set_problems
from data.syntheticdata import Task, length_before_answer, read_marks, registered, tasks, text_without_marks
from data.tokenizer import TokenizerSpec
from train.grid.expand import GridError, read_grid


def module(params, cache, max_seq_len=64):
    return LMDataModule(params, TokenizerSpec("char"), max_seq_len, cache=cache)


def samples(data, split="val"):
    return [text_without_marks(sample) for sample in data.data.split(split)]


SHORT = DataParams(
    dataset_name="copy",
    task_args={"min_length": 1, "max_length": 4, "n_letters": 3},
    n_samples=150,
    val_pct=10.0,
    eval_sets={
        "short": {"task_args": {"max_length": 3}},
        "long": {"task_args": {"min_length": 9, "max_length": 9}, "n_samples": 40},
        "small": {"n_samples": 5, "task_args": {"min_length": 9, "max_length": 9}},
    },
)


def test_samples_of_training_are_left_out_and_counted(tmp_path):
    data = module(SHORT, tmp_path)
    training = set(samples(data, "train"))
    possible = {f"{word}::{word}" for word in words(1, 3)}
    short = data.eval_sets["short"]
    assert set(samples(short)) == possible - training, "all 39 words exist, as the set asks for 1,000"
    assert short.n_dropped == len(possible & training) > 10
    long = data.eval_sets["long"]
    assert (len(set(samples(long))), long.n_dropped) == (40, 0)
    assert all(len(one) == 9 * 2 + 2 for one in samples(long))
    assert samples(data.eval_sets["small"]) == samples(long)[:5], "a set depends on its params alone"


def words(least, most):
    found = [""]
    for length in range(1, most + 1):
        found = [word + letter for word in found for letter in "abc"]
        yield from found if length >= least else ()


def test_the_data_of_the_run_is_as_without_evaluation_sets(tmp_path):
    data, plain = module(SHORT, tmp_path / "a"), module(SHORT.training_data(), tmp_path / "b")
    assert data.eval_sets
    assert [*data.data.split("val")] == [*plain.data.split("val")]
    assert [*data.data.split("train")] == [*plain.data.split("train")]
    assert data.tokenizer.fingerprint == plain.tokenizer.fingerprint


def test_an_evaluation_set_without_samples_is_an_error_that_names_it(tmp_path):
    params = DataParams(
        dataset_name="copy",
        task_args={"min_length": 1, "max_length": 2, "n_letters": 2},
        n_samples=100,
        val_pct=1.0,
        test_pct=0.0,
        data_seed=1,  # holds out a word of two letters
        eval_sets={"same": {"task_args": {"min_length": 1, "max_length": 1}}},
    )
    with pytest.raises(ValueError, match=r"eval_sets=\{'same': .*no sample is left: all 2 occur in training"):
        _ = module(params, tmp_path).eval_sets


def test_a_token_that_training_lacks_is_an_error(tmp_path):
    params = DataParams(
        dataset_name="copy",
        task_args={"n_letters": 2},
        n_samples=100,
        eval_sets={"x": {"task_args": {"n_letters": 4}}},
    )
    with pytest.raises(ValueError, match=r"eval_sets=\{'x': .*\['c', 'd'\] do not occur in training"):
        _ = module(params, tmp_path).eval_sets


def test_a_finite_task(tmp_path):
    params = DataParams(
        dataset_name="modular_addition", task_args={"p": 7}, val_pct=50.0, eval_sets={"all": {}}
    )
    data = module(params, tmp_path)
    every, training = (
        {text for split in ("train", "val", "test") for text in samples(data, split)},
        samples(data, "train"),
    )
    assert set(samples(data.eval_sets["all"])) == every - set(training)
    assert data.eval_sets["all"].n_dropped == len(training)


@pytest.fixture
def texts(monkeypatch):
    """Two texts of 40 documents of letters, of which they share ten."""
    dice = random.Random(0)
    documents = ["".join(dice.choices("abcdefgh ", k=50)) for _ in range(70)]
    monkeypatch.setitem(corpora, "one", lambda: iter(documents[:40]))
    monkeypatch.setitem(corpora, "two", lambda: iter(documents[30:]))
    corpora_module.fingerprints.get({}).clear()
    return documents


def test_the_documents_of_another_text_without_those_of_training(texts, tmp_path):
    params = DataParams(
        dataset_name="one", packed=False, test_pct=0.0, eval_sets={"two": {"dataset_name": "two"}, "val": {}}
    )
    data = module(params, tmp_path)
    two = data.eval_sets["two"]
    known = {text for text in texts[30:40] if text not in documents(data)}
    assert two.n_dropped == len(known) >= 8
    assert set(documents(two)) == set(texts[30:]) - known
    assert two.val_bytes == sum(map(len, documents(two)))
    assert set(documents(data.eval_sets["val"])) == set(documents(data)), "of the same text, what is held out"


def documents(data):
    joined = "".join(
        data.tokenizer.decode(row.ids) + "\n"
        for row in map(data.rows("val").__getitem__, range(data.n_rows("val")))
    )
    return [text for text in joined.split("\n") if text]


BAD = {
    '{"long": {"dim": 3}}': "'long' cannot change 'dim'",
    '{"long": {"tokenizer_source_name": "gpt2"}}': "'long' cannot change 'tokenizer_source_name'",
    '{"a[b]": {}}': "no name of an evaluation set",
    '{"long": {"n_samples": 0}}': "greater than 0",
    '[{}, {"long": {}}]': "eval_sets = .* is no axis",
    '{"x": {"task_args": {"length": 3}}}': "has no 'length'",
    '{"x": {"dataset_name": "pydoc"}}': "'pydoc' is no task",
    '{"x": {"task_args": {"max_length": 90, "min_length": 90}}}': "max_seq_len=64 is too small",
}


@pytest.mark.parametrize("value", BAD)
def test_bad_sets_are_refused_at_their_line(value, tmp_path):
    (tmp_path / "c.txt").write_text(f'DataParams\ndataset_name = "copy"\neval_sets = {value}\n')

    def problems(runs):
        for run in runs:
            yield from ((message, run.places) for message in eval_set_problems(run.params.data, 64))

    with pytest.raises(GridError, match=BAD[value]) as error:
        read_grid([tmp_path / "c.txt"], problems=problems)
    assert "c.txt:3" in str(error.value)
    assert len(error.value.errors) == 1


def test_eval_every_without_sets_is_refused():
    with pytest.raises(ValueError, match="eval_every=2 needs eval_sets"):
        DataParams(eval_every=2)


def test_slices_of_every_task():
    expected = {"long_addition": "digits", "numbersort": "numbers", "induction": "period", "mqar": "pairs"}
    for name, task in tasks.items():
        sample = task.draw(random.Random(0))
        values = {key: value(sample) for key, value in task.slices.items()}
        assert [*values] == [] if name == "modular_addition" else [expected.get(name, "length")]
        if name in ("copy", "sort", "parity", "maskedcopy"):
            assert values["length"] == "".join(read_marks(sample).tokens).index(":")
    assert tasks["long_addition"].slices["digits"]("37+985=«1022»") == 3
    assert tasks["numbersort"].slices["numbers"]("31,4,159::«4,31,159»") == 3
    assert tasks["mqar"].slices["pairs"](tasks["mqar"].draw(random.Random(0), n_pairs=3)) == 3
    block = tasks["induction"].draw(random.Random(1), min_period=5, max_period=5, length=12)
    assert tasks["induction"].slices["period"](block) == 5
    assert length_before_answer(["a", "b", "«", "c", "»"]) == 2


def test_a_task_names_its_slices_where_it_is_registered(monkeypatch):
    monkeypatch.setattr(tasks, "entries", dict(tasks.entries))

    @registered(slices={"ones": lambda sample: sample.count("1")})
    def bits(rng: random.Random) -> str:
        return "101"

    assert isinstance(tasks["bits"], Task)
    assert tasks["bits"].slices["ones"]("1011") == 3
