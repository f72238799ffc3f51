"""A run from params to weights: exact accumulation, what stops it, what is frozen, what is recorded."""

import math
import re
import shutil

import pytest
import torch

from data.data_params import DataParams
from model.model_params import ModelParams
from tests.train import little_run
from tests.train.little_run import CALL
from train.data import make_data
from train.grid.params import Params
from train.grid.run import Run
from train.launch.problems import freeze_problems, train_problems
from train.length import count_steps
from train.logs import log_to_console
from train.run import train_run
from train.saving.outcome import Ending
from train.saving.record import record_of
from train.train_params import TrainParams

TASK = DataParams(dataset_name="maskedcopy", task_args={"max_length": 8}, n_samples=400)
TINY = ModelParams(dim=16, n_layers=1, n_heads=2, max_seq_len=24)


def train_whole(tmp_path, *, data=TASK, model=TINY, **train_fields):
    """An LMTrainer that has trained, and the run's outcome."""
    fields = {"batch_size": 8, "lr": 1e-2, "threads": 1} | train_fields
    return little_run.train(Params(data, TrainParams(**fields), model), CALL._replace(out=tmp_path))


def train(tmp_path, **options):
    """An LMTrainer that has trained."""
    return train_whole(tmp_path, **options)[0]


def weights(lm_trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lm_trainer.model.named_parameters()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.ci
def test_accumulation_equals_the_large_batch_though_parts_score_different_numbers_of_tokens(tmp_path):
    small = train(tmp_path, batch_size=5, accumulate_grad_batches=8, precision="64-true")
    large = train(tmp_path, batch_size=40, precision="64-true")
    assert small.global_step == large.global_step == 9
    for name, weight in weights(large).items():
        torch.testing.assert_close(weights(small)[name], weight, rtol=1e-9, atol=1e-11)
    loader = make_data(TASK, TINY, tmp_path).train_dataloader(5, accumulate=8)
    assert len({int(batch["target_mask"].sum()) for batch in loader}) > 3, (
        "the parts differ, so equality is no accident"
    )


def test_an_incomplete_last_step_of_an_epoch_is_exact_too(tmp_path):
    data = DataParams(dataset_name="maskedcopy", n_samples=50, task_args={"max_length": 8})
    small = train(tmp_path, data=data, batch_size=7, accumulate_grad_batches=4, epochs=2, precision="64-true")
    large = train(tmp_path, data=data, batch_size=28, epochs=2, precision="64-true")
    assert small.global_step == large.global_step == 4
    for name, weight in weights(large).items():
        torch.testing.assert_close(weights(small)[name], weight, rtol=1e-9, atol=1e-11)


def test_the_same_params_give_bitwise_the_same_run_and_another_seed_another(tmp_path):
    runs = [train(tmp_path, dropout=0.2, random_seed=seed) for seed in (3, 3, 4)]
    assert equal(weights(runs[0]), weights(runs[1]))
    assert (
        runs[0].stats.train_stats["stat/train_loss:main"] == runs[1].stats.train_stats["stat/train_loss:main"]
    )
    assert not equal(weights(runs[0]), weights(runs[2]))


def test_validating_and_sampling_does_not_disturb_training(tmp_path):
    text = DataParams(dataset_name="pydoc", debug_crop=6, val_pct=20.0)
    options = {"data": text, "dropout": 0.2, "early_stop_nsamples": 160}
    often, once = train(tmp_path, val_every=3, **options), train(tmp_path, **options)
    assert equal(weights(often), weights(once))
    assert len(often.stats.train_stats["stat/val_loss:main"]) > len(
        once.stats.train_stats["stat/val_loss:main"]
    )


def test_only_matrices_decay(tmp_path):
    optimizer = train(tmp_path, weight_decay=0.3).optimizers().optimizer
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    model = train(tmp_path).model
    assert len(decays) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.3}


def test_early_stop_ends_the_run_where_the_schedule_ends(tmp_path):
    run = train(tmp_path, early_stop_nsamples=100, lr_schedule="linear", hyperparams_log_freq=1)
    assert (run.global_step, run.n_samples) == (13, 104)
    assert run.stats.train_stats["stat/lr"][-1].v == 0.0
    assert run.stats.train_stats["stat/val_loss:main"][-1].n == 104, "a final validation is always recorded"


@pytest.mark.parametrize(
    ("fields", "rows", "steps"),
    [
        ({"batch_size": 8}, 100, 13),
        ({"batch_size": 8, "accumulate_grad_batches": 4}, 100, 4),
        ({"batch_size": 8, "epochs": 3}, 100, 39),
        ({"batch_size": 8, "early_stop_nsamples": 16}, 100, 2),
        ({"batch_size": 8, "early_stop_nsamples": 1000}, 100, 130),
        ({"batch_size": 32, "early_stop_nsamples": 320}, 37, 17),
    ],
)
def test_steps_are_counted_before_training(fields, rows, steps):
    assert count_steps(TrainParams(**fields), rows) == steps


def test_patience_stops_and_keeps_the_best_weights(tmp_path):
    fields = {"gradient_clip_val": None, "val_every": 5, "patience": 2, "lr_schedule": "constant"}
    run, outcome = train_whole(tmp_path, lr=0.7, epochs=20, **fields)
    losses = [stat.v for stat in run.stats.train_stats["stat/val_loss:main"]]
    assert run.stopped.startswith("early stop")
    assert run.global_step < 900
    [best] = run.stats.train_stats["stat/best_val_loss:main"]
    assert best.v == pytest.approx(min(losses), rel=1e-6), "the best weights are put back and validated"
    assert losses[-1] > best.v
    assert outcome.ending is Ending.EARLY_STOP
    assert outcome.values["weights"] == "best"
    assert outcome.values["val_loss"] == best.v
    assert outcome.values["final_loss"] == losses[-1]


def test_frozen_parameters_stay_and_others_move(tmp_path):
    run = train(tmp_path, freeze=("decoder.layers.0.mixer.*", "embed.positions.*"), random_seed=1)
    start = train(tmp_path, lr=1e-30, weight_decay=0.0, random_seed=1)
    for name, weight in weights(run).items():
        frozen = name.startswith(("decoder.layers.0.mixer.", "embed.positions."))
        assert torch.allclose(weight, weights(start)[name], rtol=0, atol=1e-20) == frozen, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"freeze": ("decoder.layer.0.*",)},
            "none of 16 parameters matches 'decoder.layer.0.*'; there are decoder.layers.0.",
        ),
        ({"freeze": ("*",)}, "leaves nothing to train"),
        (
            {"lr_schedule": "cosin"},
            "lr_schedule='cosin' is not registered; did you mean 'cosine'? there are: constant, linear, cosine, wsd, cooldown, cyclic, plateau",
        ),
        (
            {"optimizer": "muom"},
            "optimizer='muom' is not registered; did you mean 'muon'? there are: adamw, sgd, muon",
        ),
        ({"precision": "16-mixed"}, "precision='16-mixed' needs a GPU"),
        (
            {"strategy": "foo"},
            "strategy='foo' with devices=1 is not available: You selected an invalid strategy name",
        ),
    ],
)
def test_untrainable_settings_are_refused_in_one_sentence(fields, message):
    if fields.get("precision") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    train = TrainParams(**fields)
    [problem] = [*train_problems(train), *freeze_problems(TINY, train.freeze)]
    assert message in problem


def test_compile_without_a_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    [problem] = train_problems(TrainParams(compile=True))
    assert re.fullmatch(r"compile=True needs a C\+\+ compiler .*install one, or set compile=False", problem)


def test_a_diverging_run_ends_with_a_message_and_keeps_what_it_has(tmp_path):
    fields = {"gradient_clip_val": None, "optimizer": "sgd", "lr_schedule": "constant"}
    run, outcome = train_whole(tmp_path, lr=1e6, epochs=10, **fields)
    assert run.stopped.startswith("diverged: training loss")
    assert run.global_step < 200
    assert len(run.stats.train_stats["stat/train_loss:main"]) == run.global_step
    assert outcome.diverged
    assert "val_loss" in outcome.values


@pytest.mark.parametrize(
    "data", [TASK, DataParams(dataset_name="pydoc", debug_crop=8, val_pct=20.0)], ids=["task", "text"]
)
def test_a_short_run_that_ends_in_nan_has_diverged_too(tmp_path, data):
    """Shorter than the steps between two looks at the statistics, and with a sample to be drawn from NaN."""
    fields = {"gradient_clip_val": None, "early_stop_nsamples": 80, "optimizer": "sgd"}
    run, outcome = train_whole(tmp_path, data=data, lr=1e30, **fields)
    assert run.stopped.startswith("diverged: training loss nan")
    assert math.isnan(outcome.values["val_loss"])


def test_every_batch_and_every_statistic_is_recorded_once(tmp_path):
    run = train(tmp_path, epochs=2, hyperparams_log_freq=10, accumulate_grad_batches=2)
    stats = run.stats.train_stats
    losses = stats["stat/train_loss:main"]
    assert len(losses) == 2 * 45
    assert [stat.n for stat in losses] == list(range(8, 361, 8)) + list(range(368, 721, 8))
    counters = sorted(stat.c for values in stats.values() for stat in values)
    assert counters == list(range(len(counters)))
    assert [stat.s for stat in stats["stat/lr"]] == [*range(46)], "once in every optimizer step"
    assert [stat.s for stat in stats["stat/train_seconds"]] == [0, 10, 20, 30, 40]
    assert [stat.s for stat in stats["stat/val_loss:main"]] == [23, 46]
    layers = {name for name in stats if name.startswith("stat/grad_norm:")}
    assert layers == {
        f"stat/grad_norm:{name}"
        for name in ("embed.tokens", "embed.positions.table", "decoder.layers.0", "decoder.norm")
    }


def test_norms_by_layer_are_those_of_its_parameters(tmp_path):
    run = train(tmp_path, lr=1e-30, weight_decay=0.0, hyperparams_log_freq=1)
    layer = run.model.decoder.layers[0]
    expected = math.sqrt(sum((p.detach() ** 2).sum().item() for p in layer.parameters()))
    assert run.stats.train_stats["stat/weight_norm:decoder.layers.0"][-1].v == pytest.approx(
        expected, rel=1e-5
    )


def test_padding_is_no_token(tmp_path):
    run = train(tmp_path)
    loader = make_data(TASK, TINY, tmp_path).train_dataloader(8)
    real = sum(int(batch["mask"][:, 1:].sum()) for batch in loader)
    assert run.n_tokens == real
    assert real < sum(batch["mask"][:, 1:].numel() for batch in loader)


@pytest.mark.slow
def test_training_learns(tmp_path):
    data = DataParams(
        dataset_name="copy", task_args={"min_length": 1, "max_length": 4, "n_letters": 8}, n_samples=3000
    )
    model = ModelParams(dim=32, n_layers=2, n_heads=2, max_seq_len=12)
    _, outcome = train_whole(tmp_path, data=data, model=model, batch_size=32, epochs=4, lr=3e-3)
    assert outcome.values["val_accuracy"] > 0.95
    assert outcome.values["chance"] < 0.6


@pytest.mark.parametrize(
    "fields", [{"precision": "bf16-mixed"}, {"optimizer": "sgd"}, {"lr_schedule": "plateau"}]
)
def test_other_ways_to_train_run(tmp_path, fields):
    run = train(tmp_path, early_stop_nsamples=80, **fields)
    assert math.isfinite(run.result["val_loss:main"])


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_compiled_training_equals_plain_training(tmp_path):
    plain, compiled = (
        train(tmp_path, optimizer="sgd", early_stop_nsamples=80, compile=on) for on in (False, True)
    )
    assert weights(plain).keys() == weights(compiled).keys()
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], weight, rtol=1e-3, atol=1e-5)


def test_gradients_are_clipped(tmp_path):
    """SGD without momentum moves by lr times the clipped gradient, whose norm is the bound."""
    options = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "weight_decay": 0.0, "early_stop_nsamples": 8}
    runs = {clip: weights(train(tmp_path, gradient_clip_val=clip, **options)) for clip in (1e-9, 0.01)}
    moved = torch.cat([(runs[0.01][name] - runs[1e-9][name]).flatten() for name in runs[0.01]])
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


class Tracker:
    """Stands in for wandb's, and keeps how the run ended."""

    id, name, failed = "1", None, None

    def log(self, row):
        pass

    def finish(self, failed=False, summary=()):
        self.failed = failed


@pytest.mark.parametrize(
    ("fields", "failed"), [({"lr": 1e9, "optimizer": "sgd", "gradient_clip_val": None}, True), ({}, False)]
)
def test_wandb_hears_of_a_diverged_run_as_failed_and_the_log_when_it_happens(
    fields, failed, tmp_path, monkeypatch, capsys
):
    tracker = Tracker()
    monkeypatch.setattr("train.saving.record.start_tracker", lambda *_: tracker)
    log_to_console()
    params = Params(TASK, TrainParams(batch_size=8, threads=1, **fields), TINY)
    run, call = Run(params, {}, "trial"), CALL._replace(out=tmp_path, wandb=True)
    with record_of(run, None, call) as record:
        outcome = train_run(run, record, call)
    assert outcome.diverged == failed == tracker.failed
    assert capsys.readouterr().out.count("training stops after step") == failed
    assert ("is the first activation that is not finite" in outcome.why) == failed


def test_wandb_hears_of_a_run_that_raised_as_failed(tmp_path, monkeypatch):
    tracker = Tracker()
    monkeypatch.setattr("train.saving.record.start_tracker", lambda *_: tracker)
    run = Run(Params(TASK, TrainParams(threads=1), TINY), {}, "trial")
    with pytest.raises(ZeroDivisionError), record_of(run, None, CALL._replace(wandb=True)):
        raise ZeroDivisionError
    assert tracker.failed
