"""--dry-run: what it says of time, what it costs, and that nothing is left of it."""

import math
import random
import re
import time

import numpy as np
import pytest
import torch

import main
from data.data_params import DataParams
from explore.load import runs
from model.lm import LM
from model.model_params import ModelParams
from train.grid.params import Params, Texts
from train.grid.run import DataFacts, Run, RunSize
from train.launch import estimate
from train.launch.estimate import Pace, estimated_seconds, family, scaled, step_params
from train.launch.tables import as_time
from train.train_params import TrainParams

SMALL = ["--config=test-synth", "--no-wandb"]
FEW = [part for option in ("n_samples=400", "threads=1", "warmup_steps=2") for part in ("--set", option)]


def plan(n_params=1000, **fields) -> Run:
    params = Params(DataParams(), TrainParams(), ModelParams()).changed(**fields)
    return Run(params, {}, "test", size=RunSize(n_params, 100, 0), data=DataFacts(30, 3200, 320, 10.0))


def call(tmp_path, *options: str) -> int:
    return main.main([*SMALL, *FEW, *options, "--out", str(tmp_path)])


def randomness() -> tuple:
    """The state of every generator that the whole process shares."""
    numpys = np.random.mtrand._rand.__getstate__()
    return random.getstate(), repr(numpys), torch.get_rng_state().tolist()


@pytest.mark.slow
@pytest.mark.ci
def test_a_dry_run_leaves_no_trace(tmp_path, capsys):
    before = randomness()
    n_threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    assert call(tmp_path, "--dry-run", "--save", "--set", "dropout=0.1", "--set", "dim=[16,32]") == 0
    assert before == randomness()
    assert (n_threads, grad) == (torch.get_num_threads(), torch.is_grad_enabled())
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
    shown = capsys.readouterr().out
    assert len(re.findall(r"^ +[12] +(16|32) .*\d s$", shown, re.MULTILINE)) == 2
    assert re.search(r"^about [\d.]+ s for 2 runs, one after another on this machine$", shown, re.MULTILINE)


def test_a_run_that_cannot_train_is_found_out(tmp_path, capsys, monkeypatch):
    real = estimate.TimedTrainer.training_step

    def broken(self, batch, batch_idx):
        if self.model.model_params.dim == 32:
            raise RuntimeError("my edit is wrong")
        return real(self, batch, batch_idx)

    monkeypatch.setattr(estimate.TimedTrainer, "training_step", broken)
    assert call(tmp_path, "--dry-run", "--set", "dim=[16,32]") == 1
    shown = capsys.readouterr().out
    assert "a training step of run 2 fails: RuntimeError: my edit is wrong" in shown
    assert re.search(r"^ +2 +32 .*\?$", shown, re.MULTILINE)
    assert re.search(r"^about .* for 1 run, ", shown, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.ci
def test_five_hundred_runs_are_estimated_within_seconds(tmp_path, capsys):
    axes = ["lr=[1e-3,2e-3,3e-3,4e-3,5e-3]", "dim=[16,32,48,64,96]", "n_layers=[1,2,3,4]"]
    started = time.process_time()
    options = [part for axis in axes for part in ("--set", axis)]
    assert call(tmp_path, "--dry-run", "--seed=[1,2,3,4,5]", *options) == 0
    assert time.process_time() - started < 40, (
        "4 of them are timed; memory is estimated for 5 s, and advice timed for as long"
    )
    shown = capsys.readouterr().out
    assert len(re.findall(r"^ +\d+ .* (?:s|min)$", shown, re.MULTILINE)) == 500


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["dim=16", "epochs=40"],
        ["dim=192", "n_layers=4", "epochs=8", "dataset_name=reverse"],
    ],
    ids=["small", "larger"],
)
def test_the_estimate_is_within_a_factor_of_two(tmp_path, capsys, monkeypatch, options):
    """The mean of one before the run and one after: the machine may have got other things to do meanwhile."""
    monkeypatch.setattr("train.launch.plan.as_time", lambda seconds: f"{seconds} s")
    options = [part for option in (*options, "val_every=20") for part in ("--set", option)]
    for how in ("--dry-run", "--save", "--dry-run"):
        assert call(tmp_path, how, *options) == 0
    before, after = map(float, re.findall(r"^about ([\d.]+) s", capsys.readouterr().out, re.MULTILINE))
    [took] = runs(out=str(tmp_path), all=True)["wall_seconds"]
    assert took / 2 < (before + after) / 2 < took * 2


def test_runs_whose_steps_differ_in_size_alone_are_one_family():
    same = [plan(), plan(lr=0.5), plan(random_seed=3), plan(epochs=7), plan(accumulate_grad_batches=4)]
    same += [plan(dim=64), plan(batch_size=3), plan(n_layers=1), plan(n_samples=9)]
    others = [plan(precision="bf16-mixed"), plan(dropout=0.1), plan(layer_architecture="torch-lstm")]
    assert len({family(one) for one in same}) == 1
    assert len({family(one) for one in [same[0], *others]}) == 4


def test_the_smallest_and_the_largest_of_each_family_are_timed(monkeypatch):
    timed = []

    def measure(plan, call, seconds):
        timed.append((plan.params.model.dim, plan.params.train.precision))
        return Pace(1, plan.params.model.dim, 0, 0)

    monkeypatch.setattr(estimate, "time_steps", measure)
    plans = [plan(dim=dim) for dim in (64, 32, 128, 96, 32)] + [plan(dim=64, precision="bf16-mixed")]
    seconds, notes, _ = estimate.estimate(plans, None)
    assert timed == [(32, "32-true"), (128, "32-true"), (64, "bf16-mixed")]
    assert notes == []
    assert seconds[1] == seconds[4] == 1 + 100 * 32
    assert seconds[1] < seconds[0] < seconds[3] < seconds[2] == 1 + 100 * 128
    assert seconds[5] == 1 + 100 * 64


def test_cached_texts_of_deleted_params_are_not_used_for_others():
    text = Texts()
    assert len({text(ModelParams(dim=4 * i)) for i in range(1, 200)}) == 199


def test_estimates_of_untimed_runs_lie_between_the_smallest_and_the_largest():
    paces = {10.0: Pace(1, 1, 2, 0), 1000.0: Pace(3, 100, 4, 1)}
    assert scaled(505.0, paces) == pytest.approx((2, 50.5, 3, 0.5)), "halfway"
    assert [scaled(size, paces) for size in paces] == [*paces.values()]
    assert scaled(20.0, {10.0: Pace(1, 1, 2, 3)}) == pytest.approx((1, 2, 4, 6)), "in proportion to one"


@pytest.mark.parametrize(
    ("fields", "n_batches", "n_validations"),
    [
        ({}, 100, 1),
        ({"batch_size": 64, "epochs": 2}, 100, 2),
        ({"accumulate_grad_batches": 3, "epochs": 3}, 300, 3),
        ({"val_every": 40}, 100, 3),
    ],
)
def test_a_run_is_its_batches_and_validations(fields, n_batches, n_validations):
    pace = Pace(start=0.5, batch=1e-2, val_batch=1e-3, generation=0.2)
    n_val_batches = 320 / fields.get("batch_size", TrainParams().batch_size)
    expected = 0.5 + n_batches * 1e-2 + n_validations * (n_val_batches * 1e-3 + 0.2)
    assert estimated_seconds(plan(**fields), pace) == pytest.approx(expected)


def test_times_are_shown_in_readable_units():
    shown = {
        None: "?",
        0.04: "0.0 s",
        9.94: "9.9 s",
        44.2: "44 s",
        300: "5.0 min",
        4000: "67 min",
        7200: "2.0 h",
        4e5: "4.6 days",
    }
    assert {seconds: as_time(seconds) for seconds in shown} == shown


@pytest.mark.slow
@pytest.mark.ci
def test_a_dry_run_with_one_batch_an_epoch_times_steps(tmp_path, capsys):
    """Statistics are then looked at after every step; none of them is an error of the user's."""
    options = ["n_samples=40", "batch_size=64", "epochs=5", "optimizer='sgd'", "lr=1e5", "threads=1"]
    words = [part for option in options for part in ("--set", option)]
    assert main.main([*SMALL, *words, "--dry-run", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "fails" not in shown
    assert "diverged" not in shown
    assert "for 1 run" in shown


@pytest.mark.slow
@pytest.mark.ci
def test_a_batch_larger_than_the_data_is_timed(tmp_path, capsys, monkeypatch):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "data.txt").write_text("".join(f"line {i}\n" for i in range(9)))
    monkeypatch.setenv("WHATIF_DATA", str(tmp_path))
    options = ["threads=1", "max_seq_len=64"]
    words = [
        "--config=test-nlp",
        "--no-wandb",
        "--task=few",
        *(part for one in options for part in ("--set", one)),
    ]
    assert main.main([*words, "--dry-run", "--out", str(tmp_path)]) == 0
    assert "for 1 run" in capsys.readouterr().out


def test_timing_leaves_the_model_as_it_is():
    assert step_params(TrainParams(lr=3.0, warmup_steps=5)).lr < 1e-6


def test_events_between_steps_do_not_change_the_kind_of_step():
    between = TrainParams(val_every=7, patience=2, checkpoint_every=3, max_tokens=100)
    assert step_params(between) == step_params(TrainParams())


def test_steps_are_timed_even_if_losses_are_nan(tmp_path, capsys, monkeypatch):
    """A model whose loss is NaN at once is stopped in training, with the reason; its steps take time all the same."""
    original = LM.get_losses

    def get_losses(self, *args, **kwargs):
        losses, n = original(self, *args, **kwargs)
        return {"main": losses["main"] * math.nan}, n

    monkeypatch.setattr(LM, "get_losses", get_losses)
    options = ["n_samples=40", "batch_size=64", "epochs=5", "threads=1"]
    words = [part for option in options for part in ("--set", option)]
    assert main.main([*SMALL, *words, "--dry-run", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "for 1 run" in shown
    assert "diverged" not in shown
    assert "fails" not in shown
