"""Loads of experts are logged, and balance experts once per optimizer step, by all tokens of the step."""

import pytest
import torch
from torch.testing import assert_close

from data.data_params import DataParams
from model.model_params import ModelParams
from tests.model.tiny import batch_of, random_ids
from tests.train.little_run import CALL, train
from train.expert_loads import ExpertLoads
from train.grid.params import Params
from train.grid.run import Run, RunSize
from train.launch.problems import group_problems
from train.launch.tables import plan_table, result_table
from train.saving.outcome import Ending, Outcome
from train.train_params import TrainParams

COPY = DataParams(dataset_name="copy", n_samples=150, task_args={"max_length": 6})
E, STEPS = 4, 12


def train_experts(out, accumulate_grad_batches: int = 1, **fields):
    params = {"dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 24, "n_experts": E, "dim_ff": 16}
    return train(
        Params(
            COPY,
            TrainParams(
                lr=1e-2,
                batch_size=8,
                max_steps=STEPS,
                hyperparams_log_freq=1,
                accumulate_grad_batches=accumulate_grad_batches,
            ),
            ModelParams(**params | fields),
        ),
        CALL._replace(out=out),
    )


def loads_of(trainer, layer: int) -> torch.Tensor:
    """The load of each expert at each step, [steps, E]."""
    stats = trainer.stats.train_stats
    found = [[stat.v for stat in stats[f"stat/expert_load:layers.{layer}.{e}"]] for e in range(E)]
    return torch.tensor(found).T


@pytest.mark.parametrize("accumulate", [1, 2])
def test_biases_follow_the_loads_of_whole_steps(accumulate, tmp_path):
    trainer, outcome = train_experts(tmp_path, accumulate, balance="bias", balance_rate=0.01)
    for i, layer in enumerate(trainer.model.decoder.layers):
        load_SE = loads_of(trainer, i)
        assert load_SE.shape == (STEPS, E)
        assert_close(load_SE.sum(dim=1), torch.full((STEPS,), float(E)))
        assert load_SE.std() > 0.1
        expected_E = 0.01 * (1 - load_SE).sign().sum(dim=0)
        assert_close(layer.experts.bias_E, expected_E, rtol=0, atol=1e-6)
    values = outcome.values
    experts = 2 * E * (2 * 16 * 16 + 16 + 16)
    assert values["n_params"] - values["n_active_params"] == experts // 2


@pytest.mark.slow
def test_both_kinds_of_balance_even_out_the_loads(tmp_path):
    spread = {}
    for balance in (None, "loss", "bias"):
        rate = {None: None, "loss": 0.1, "bias": 0.02}[balance]
        trainer, _ = train_experts(tmp_path, balance=balance, balance_rate=rate, n_layers=1)
        spread[balance] = loads_of(trainer, 0)[-4:].mean(dim=0).std().item()
    assert max(spread["loss"], spread["bias"]) < 0.5 * spread[None]


def test_a_layer_that_runs_twice_counts_both_times(monkeypatch, tmp_path):
    trainer, _ = train_experts(tmp_path, balance="bias", n_layers=1)
    lm = trainer.model
    monkeypatch.setattr(lm.decoder, "passes", lambda: [(0, lm.decoder.layers[0]), (1, lm.decoder.layers[0])])
    lm.added_losses.expert_loads = {0: torch.tensor([9.0, 1, 1, 1]), 1: torch.tensor([1.0, 1, 1, 20])}
    loads, before = ExpertLoads(), lm.decoder.layers[0].experts.bias_E.clone()
    loads.add(lm, batch_of(random_ids(2, 4)))
    found = loads.end_step(lm, n_processes=1)
    assert [load_E.sum().item() for load_E in found.values()] == [12, 23]
    moved = lm.decoder.layers[0].experts.bias_E - before
    assert_close(moved, 0.001 * torch.tensor([-1.0, 1, 1, -1]))
    assert not loads.end_step(lm, n_processes=1)


def test_muon_is_refused():
    [problem] = group_problems(ModelParams(n_experts=(0, 2)), TrainParams(optimizer="muon"))
    assert problem.startswith("optimizer='muon' updates single matrices, but those of n_experts=(0, 2)")


@pytest.mark.parametrize(("n_active", "is_shown"), [((100, 100), False), ((100, 40), True)])
def test_tables_show_active_parameters_where_there_are_experts(n_active, is_shown):
    sizes = [RunSize(100, 10, 10, None, n) for n in n_active]
    runs = [Run(Params(COPY, TrainParams(), ModelParams()), {}, "test", size=size) for size in sizes]
    outcomes = [Outcome(Ending.FINISHED, values={"n_params": 100, "n_active_params": n}) for n in n_active]
    for table in (plan_table(runs, ["1 s"] * 2, ["1 MB"] * 2), result_table(runs, outcomes)):
        columns = {column.title: column.cells for column in table.columns}
        assert ("active" in columns) == is_shown
        if is_shown:
            assert list(columns["active"]) == ["100", "40"]
