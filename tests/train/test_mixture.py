"""Runs on a mixture: its loss is the weighted mean of single evaluations, and everything that names data copes with it."""

import math
from dataclasses import replace

import pytest
import torch

import main
from data import corpora
from data.data_params import DataParams
from explore.load import get_model_by_timestamp, runs
from explore.verify import check_val_loss
from model.model_params import ModelParams
from tests.own_texts import register_texts
from tests.train.little_run import CALL, train
from tests.train.test_eval_sets import same_training, steps_of
from train.data import make_data
from train.evaluation import Evaluation, make_evaluation
from train.grid.expand import read_grid
from train.grid.params import Params
from train.grid.run import Run
from train.launch.metrics import trial_of
from train.launch.plan import measure_data
from train.launch.problems import grid_problems
from train.saving.code import Code
from train.saving.earlier_runs import run_identity
from train.train_params import TrainParams

TEXTS = {
    "abc": [f"{'abc' * (5 + i % 7)} {i}" for i in range(60)],
    "defg": [f"{'defg' * (3 + i % 4)} {i}é" for i in range(40)],
    "other": [f"abc {i}" for i in range(40)],
}
MIX = DataParams(dataset_name={"abc": 3, "defg": 1}, val_pct=20.0)
MODEL = ModelParams(dim=8, n_layers=1, n_heads=2, max_seq_len=12, tokenizer_source_name="char")
TRAIN = TrainParams(batch_size=7, max_steps=12, val_every=5, dropout=0.1)


@pytest.fixture(autouse=True)
def texts(monkeypatch):
    register_texts(monkeypatch, TEXTS)


def reference(lm, part):
    """The nats, right tokens, scored tokens and bytes of a validation split, row by row."""
    nats, right, n = 0.0, 0, 0
    rows = part.rows("val")
    for i in range(len(rows)):
        row = rows[i]
        with torch.no_grad():
            logs = lm(torch.tensor([row.ids[:-1]]))[0].log_softmax(-1)
        for t in range(1, len(row.ids)):
            if row.scored[t]:
                nats -= float(logs[t - 1, row.ids[t]])
                right += int(logs[t - 1].argmax() == row.ids[t])
                n += 1
    return nats, right, n, part.val_bytes


@pytest.mark.parametrize("packed", [None, False])
def test_the_loss_is_the_weighted_mean_of_single_evaluations(packed, tmp_path):
    data = replace(MIX, packed=packed)
    run, outcome = train(Params(data, TRAIN, MODEL), CALL._replace(out=tmp_path))
    lm, values = run.model.eval(), outcome.values
    found = {name: reference(lm, part) for name, part in run.data.parts.items()}
    shares = {"abc": 0.75, "defg": 0.25}
    assert run.data.shares == shares
    for name, (nats, right, n, n_bytes) in found.items():
        assert values[f"val_loss[{name}]"] == pytest.approx(nats / n, rel=1e-5)
        assert values[f"val_accuracy[{name}]"] == pytest.approx(right / n)
        assert values[f"bits_per_byte[{name}]"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert values["val_loss"] == pytest.approx(
        sum(shares[p] * found[p][0] / found[p][2] for p in shares), rel=1e-5
    )
    assert values["val_accuracy"] == pytest.approx(sum(shares[p] * found[p][1] / found[p][2] for p in shares))
    # A text in which each part has its share of the tokens.
    bits = sum(shares[p] * found[p][0] / math.log(2) / found[p][2] for p in shares)
    n_bytes = sum(shares[p] * found[p][3] / found[p][2] for p in shares)
    assert values["bits_per_byte"] == pytest.approx(bits / n_bytes, rel=1e-5)
    assert steps_of(run, "val_loss[abc]") == steps_of(run, "val_loss:main") == [5, 10, 12]


@pytest.mark.parametrize("b", [1, 4, 1000])
def test_batches_that_hold_rows_of_several_texts(b, tmp_path):
    run, outcome = train(
        Params(MIX, replace(TRAIN, max_steps=1, val_every=None), MODEL), CALL._replace(out=tmp_path)
    )
    evaluation = make_evaluation(run.model.eval(), run.data)
    for batch in run.data.val_dataloader(b):
        evaluation.add(batch, TRAIN)
    result = evaluation.result()
    for name, part in run.data.parts.items():
        single = Evaluation(run.model, part)
        for batch in part.val_dataloader(5):
            single.add(batch, TRAIN)
        assert result[f"val_loss[{name}]"] == pytest.approx(single.result()["val_loss:main"], rel=1e-5)
    assert result["val_loss:main"] == pytest.approx(outcome.values["val_loss"], rel=1e-5)
    assert isinstance(evaluation.sample(), str)


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
def test_models_that_fill_gaps(objective, tmp_path):
    model = replace(MODEL, objective=objective, causal=False)
    _, outcome = train(Params(MIX, TRAIN, model), CALL._replace(out=tmp_path))
    values = outcome.values
    assert values["val_loss"] == pytest.approx(
        0.75 * values["val_loss[abc]"] + 0.25 * values["val_loss[defg]"]
    )
    assert values["bits_per_byte"] is None


def test_evaluation_sets_stand_beside_the_texts(tmp_path):
    sets = {"more": {"dataset_name": "other"}, "again": {"dataset_name": "abc"}}
    call = CALL._replace(out=tmp_path)
    plain, _ = train(Params(MIX, TRAIN, MODEL), call)
    run, outcome = train(Params(replace(MIX, eval_sets=sets, eval_every=1), TRAIN, MODEL), call)
    same_training(plain, run)
    names = {name.partition("[")[2] for name in outcome.values if name.startswith("val_loss[")}
    assert names == {"abc]", "defg]", "more]", "again]"}
    assert outcome.values["val_loss[again]"] == pytest.approx(outcome.values["val_loss[abc]"], rel=1e-5)


def test_a_mixture_of_one_text_has_the_loss_of_the_text(tmp_path):
    mix = replace(MIX, dataset_name={"abc": 2})
    run, outcome = train(Params(mix, TRAIN, MODEL), CALL._replace(out=tmp_path))
    alone = make_data(replace(MIX, dataset_name="abc"), MODEL, tmp_path / "cache")
    assert alone.tokenizer.fingerprint == run.data.tokenizer.fingerprint
    evaluation = Evaluation(run.model.eval(), alone)
    for batch in alone.val_dataloader(7):
        evaluation.add(batch, TRAIN)
    assert outcome.values["val_loss"] == pytest.approx(evaluation.result()["val_loss:main"], rel=1e-5)
    assert outcome.values["chance"] == pytest.approx(alone.chance)


def test_a_grid_saved_reported_resumed_and_opened(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mix.txt").write_text(
        "DataParams\ndataset_name = [{'abc': 3, 'defg': 1}, 'abc']\nval_pct = 20.0\n"
        "TrainParams\nmax_steps = 3\nbatch_size = 7\nlr = [1e-3, 1e-2]\n"
        "ModelParams\ndim = 8\nn_layers = 1\nn_heads = 2\nmax_seq_len = 12\ntokenizer_source_name = 'char'\n"
        'Expect\nclaims = {\'learnable\': \'val_loss("defg", dataset_name={"abc": 3, "defg": 1}) < 100\'}\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(main, "CONFIGS", tmp_path / "configs")
    options = ["--config=mix", "--no-wandb", "--save", f"--out={tmp_path}"]
    assert main.main(options) == 0
    assert main.main(["--report=mix", f"--out={tmp_path}"]) == 0
    pages = [*tmp_path.rglob("*.html")]
    assert any("abc" in page.read_text(encoding="utf-8") for page in pages)
    table = runs(str(tmp_path), dataset_name={"defg": 1, "abc": 3})
    assert len(table) == 2
    assert {one.name for one in (tmp_path / "saved-models" / "mix").iterdir()} == {"abc+defg", "abc"}
    assert set(table["config"]) == {"mix"}
    assert len(runs(str(tmp_path), dataset_name="abc")) == 2
    assert main.main([*options, "--resume"]) == 0
    assert len(runs(str(tmp_path))) == 4
    opened = get_model_by_timestamp(table.index[0], out=str(tmp_path))
    assert opened.params["data"].dataset_name == {"abc": 3, "defg": 1}
    check_val_loss(opened.lm, opened.dataset, opened.params["train"], float(table["val_loss"].iloc[0]))
    parts = [0.75 * table["val_loss[abc]"].iloc[0], 0.25 * table["val_loss[defg]"].iloc[0]]
    assert sum(parts) == pytest.approx(table["val_loss"].iloc[0])


def test_names_of_folders_and_of_the_wandb_project():
    class Args:
        config, wandb_proj_name = "test", None

    namer = main.Namer(
        Params(replace(MIX, dataset_name={"stanfordnlp/imdb": 3, "sotu": 1}), TRAIN, MODEL), Args()
    )
    assert namer.wandb_proj_name() == "base-test-stanfordnlp--imdb+sotu"
    assert namer.save_folder_name("now") == "test/stanfordnlp--imdb+sotu/now"


def test_a_list_of_mixtures_is_an_axis(tmp_path):
    config = tmp_path / "a.txt"
    config.write_text(
        "DataParams\ndataset_name = [{'abc': 3, 'defg': 1}, {'abc': 1, 'defg': 1}, 'abc']\n"
        "ModelParams\ntokenizer_source_name = 'char'\n",
        encoding="utf-8",
    )
    found = read_grid([config], problems=lambda runs: grid_problems(runs, tmp_path))
    assert [run.params.data.label for run in found] == ["abc+defg", "abc+defg", "abc"]
    assert len({run_identity(run.params, "text") for run in found}) == 3
    for name, said in (
        ("{'abc': 0}", r"a.txt:2: DataParams cannot have dataset_name = .*the weight of 'abc' is 0"),
        ("{'abc': 1, 'copy': 1}", r"a.txt:2: dataset_name=\{'copy': ...\}: a mixture is of texts"),
    ):
        config.write_text(f"DataParams\ndataset_name = {name}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            read_grid([config], problems=lambda runs: grid_problems(runs, tmp_path))


def test_the_order_of_texts_and_the_kind_of_weights_make_no_other_run():
    one, other = (
        run_identity(Params(replace(MIX, dataset_name=name), TRAIN, MODEL), "text")
        for name in ({"abc": 3, "defg": 1}, {"defg": 1.0, "abc": 3.0})
    )
    assert one == other


def test_the_content_is_that_of_all_texts(tmp_path, monkeypatch):
    def content():
        _, facts = measure_data(MIX, MODEL, tmp_path, None)
        return facts.content

    before = content()
    assert content() == before
    monkeypatch.setitem(corpora.corpora, "defg", lambda: iter([*TEXTS["defg"], "g"]))
    assert content() != before


def test_the_code_of_both_texts_counts():
    code = Code.read(corpora.REPOSITORY)
    of_mix = code.hashes(Params(replace(MIX, dataset_name={"sotu": 1, "pydoc": 1}), TRAIN, MODEL).flat())
    assert {"data/corpora.py:sotu", "data/corpora.py:pydoc"} <= of_mix.keys()
    assert "data/corpora.py:ptb" not in of_mix
    of_one = code.hashes(Params(replace(MIX, dataset_name="sotu"), TRAIN, MODEL).flat())
    assert "data/corpora.py:pydoc" not in of_one


def test_claims_may_name_the_loss_of_a_text(tmp_path):
    _, facts = measure_data(MIX, MODEL, tmp_path, None)
    run = Run(Params(MIX, TRAIN, MODEL), {}, "test", number=1, data=facts)
    recorded = trial_of(run, CALL._replace(out=tmp_path))
    assert {"val_loss[abc]", "val_loss[defg]", "bits_per_byte[defg]"} <= recorded.columns
