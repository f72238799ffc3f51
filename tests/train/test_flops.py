"""Operations counted against formulas written out by hand, and the machine's peak against a product of one's own."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from data.data_params import DataParams
from model.lm import LM
from model.model_params import ModelParams
from tests.train.little_run import CALL, train
from train import flops
from train.flops import count_operations, flops_per_row, peak_flops
from train.grid.params import Params
from train.optimizers import freeze
from train.train_params import TrainParams

D, V, L, T, F = 24, 50, 3, 17, 40
MODEL = ModelParams(dim=D, n_layers=L, n_heads=4, dim_ff=F, max_seq_len=32)
COPY = DataParams(dataset_name="copy", n_samples=400, val_pct=10.0, task_args={"max_length": 6})


def make(model: ModelParams = MODEL) -> LM:
    return LM(model, SimpleNamespace(n_tokens=V))


def by_hand(tokens: int) -> int:
    """Multiply-adds of projections, feed-forward block, scores and mix, readout; 2 operations each; backward twice forward."""
    layer = tokens * (4 * D * D + 2 * D * F) + 2 * tokens * tokens * D
    return 3 * 2 * (L * layer + tokens * D * V)


@pytest.mark.parametrize("tokens", [1, T, 32])
def test_a_small_transformer_takes_what_the_formula_says(tokens):
    assert flops_per_row(make(), tokens) == by_hand(tokens)


def test_the_same_operations_count_the_same_however_they_are_done():
    fused = MODEL.__class__(**vars(MODEL) | {"attention": "fused"})
    torchs = MODEL.__class__(**vars(MODEL) | {"layer_architecture": "torch-transformer"})
    assert flops_per_row(make(fused), T) == flops_per_row(make(torchs), T) == by_hand(T)


def test_frozen_weights_take_no_gradient():
    lm = make()
    freeze(lm, TrainParams(freeze=("decoder.layers.*",)))
    in_layers = 2 * L * T * (4 * D * D + 2 * D * F)
    assert flops_per_row(lm, T) == by_hand(T) - in_layers


@pytest.mark.parametrize("kind", ["torch-lstm", "torch-gru"])
def test_recurrent_layers_of_long_rows_are_counted_from_short_ones(kind):
    lm = make(ModelParams(dim=8, n_layers=2, n_heads=2, layer_architecture=(kind, "custom-transformer")))
    trained = tuple(True for _ in lm.parameters())
    assert flops_per_row(lm, 21) == count_operations(lm.model_params, None, V, trained, 21)


def test_flops_that_cannot_be_counted_are_none(monkeypatch):
    flops.counts.clear()
    monkeypatch.setattr(LM, "forward", lambda self, x: x if 10 in x else 0)
    assert flops_per_row(make(), T) is None
    flops.counts.clear()


def test_runs_that_differ_in_what_their_losses_do_not_read_are_counted_once(monkeypatch):
    def counts_of(*rates: float) -> tuple[list[int], int]:
        flops.counts.clear()
        made = [flops_per_row(lm, T, TrainParams(lr=lr)) for lr in rates]
        return made, sum(map(len, flops.counts.values()))

    lm, get_losses = make(), LM.get_losses
    assert counts_of(0.1, 0.2) == ([by_hand(T)] * 2, 1)

    def with_rate(self, batch, train_params, *more):
        losses, n = get_losses(self, batch, train_params, *more)
        again, _ = get_losses(self, batch, train_params, *more)
        return losses | ({"more": again["main"]} if train_params.lr > 0.1 else {}), n

    monkeypatch.setattr(LM, "get_losses", with_rate)
    (low, high, same), n_counted = counts_of(0.1, 0.2, 0.1)
    assert low == same < high
    assert n_counted == 2


def test_counting_leaves_the_model_and_randomness_alone():
    lm = make()
    state, numbers = {k: v.clone() for k, v in lm.state_dict().items()}, torch.get_rng_state()
    flops.counts.clear()
    flops_per_row(lm, T)
    assert all(torch.equal(v, state[k]) for k, v in lm.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(p.grad is None for p in lm.parameters())


def test_a_summary_says_what_training_took(tmp_path):
    model = ModelParams(dim=16, n_layers=1, n_heads=2, max_seq_len=32)
    params = Params(COPY, TrainParams(batch_size=64), model)
    run, outcome = train(params, CALL._replace(out=tmp_path))
    summary = json.loads(json.dumps(outcome.as_row()))
    tokens = round(run.n_tokens / run.n_samples)
    assert 5 < tokens < 20
    assert summary["flops"] == flops_per_row(run.model, tokens, run.train_params) * run.n_samples
    assert summary["achieved_flops"] == pytest.approx(summary["flops"] / run.train_seconds)
    assert 0 < summary["achieved_flops"] < summary["peak_flops"]
    assert summary["trained_tokens"] == run.n_tokens
    assert summary["sample"] == run.sample != ""
    assert summary["final_loss"] == summary["val_loss"]


def test_the_peak_is_measured_once_and_quickly(monkeypatch):
    flops.measured_peak.cache_clear()
    started = time.perf_counter()
    peak = peak_flops(torch.device("cpu"), "32-true")
    assert time.perf_counter() - started < 0.5
    matrix = torch.ones(512, 512)
    seconds = min(flops.seconds_of_product(matrix) for _ in range(5))
    assert peak > 0.2 * 2 * 512**3 / seconds
    monkeypatch.setattr(flops, "seconds_of_product", lambda _: pytest.fail("measured again"))
    assert peak_flops(torch.device("cpu"), "32-true") == peak
