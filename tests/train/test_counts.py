"""Counts come from the masks where they are used: any split of a step has the gradient of the whole, whatever is scored."""

import random

import pytest
import torch

import model.masking
from data.data_params import DataParams
from data.tokenizer import char_tokenizer
from model.lm import LM, XYZ
from model.model_params import ModelParams
from model.perplexity import NOT_SCORED
from tests.model.tiny import default_dtype, tiny_params
from tests.train.test_trainer import train, weights
from train.trainer import LMTrainer

SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1, "lr_schedule": "constant"}
EXACT = {"gradient_clip_val": None, "precision": "64-true", "early_stop_nsamples": 32, **SGD}


def update(tmp_path, **fields) -> torch.Tensor:
    """The change of all weights in training."""
    moved = weights(train(tmp_path, **EXACT | fields))
    start = weights(train(tmp_path, **EXACT | fields | {"lr": 1e-300}))
    return torch.cat([(moved[name] - start[name]).flatten() for name in moved])


def assert_splits_agree(tmp_path, splits=((8, 4), (1, 32)), **fields) -> torch.Tensor:
    whole = update(tmp_path, batch_size=32, **fields)
    assert whole.norm() > 0
    for size, n in splits:
        parts = update(tmp_path, batch_size=size, accumulate_grad_batches=n, **fields)
        assert (parts - whole).norm() / whole.norm() < 1e-6, (size, n)
    return whole


@pytest.fixture
def mixed_lengths(tmp_path, monkeypatch):
    """A text of short and long lines."""
    monkeypatch.setenv("WHATIF_DATA", str(tmp_path))
    dice = random.Random(0)
    lines = ["".join(dice.choice("abcdefgh") for _ in range(dice.choice([1, 2, 3, 30]))) for _ in range(400)]
    (tmp_path / "mixlen").mkdir()
    (tmp_path / "mixlen" / "data.txt").write_text("\n".join(lines) + "\n")
    return DataParams(dataset_name="mixlen", packed=False)


@pytest.mark.parametrize("objective", ["masked", "diffusion", "next-token"])
def test_accumulation_weighs_by_the_tokens_that_are_hidden(objective, mixed_lengths, tmp_path, monkeypatch):
    original = model.masking.draw_noise
    # The same tokens are hidden, however the rows are batched.
    monkeypatch.setattr(model.masking, "draw_noise", lambda rows, is_training: original(rows, False))
    params = ModelParams(
        dim=16,
        n_layers=1,
        n_heads=2,
        max_seq_len=40,
        objective=objective,
        causal=objective == "next-token",
        tokenizer_source_name="char",
    )
    assert_splits_agree(tmp_path, data=mixed_lengths, model=params)


def cropped(training_step):
    def step(self, batch, batch_idx):
        return training_step(self, {name: t[:, :14] for name, t in batch.items()}, batch_idx)

    return step


@pytest.mark.slow
@pytest.mark.ci
def test_a_batch_may_be_cropped_in_training_step(tmp_path, monkeypatch):
    """A length curriculum does so. Loss and gradient are means over the remaining tokens."""
    plain = train(tmp_path, **EXACT, batch_size=32).stats.train_stats["stat/train_loss:main"][0].v
    monkeypatch.setattr(LMTrainer, "training_step", cropped(LMTrainer.training_step))
    assert_splits_agree(tmp_path)
    run = train(tmp_path, **EXACT, batch_size=32)
    assert run.stats.train_stats["stat/train_loss:main"][0].v == pytest.approx(plain, rel=0.1), "not scaled"
    assert run.n_samples == 32
    assert run.n_tokens <= 32 * 13
    assert run.stopped == "finished"


def every_other(y):
    return torch.where(torch.arange(y.shape[1], device=y.device) % 2 == 0, y, NOT_SCORED)


@pytest.mark.slow
@pytest.mark.ci
def test_get_batch_xyz_may_change_the_scored_tokens(tmp_path, monkeypatch):
    plain, original = update(tmp_path, batch_size=32), LM.get_batch_xyz

    def edited(self, *args, **kwargs):
        x, y, z = original(self, *args, **kwargs)
        return XYZ(x, every_other(y), z)

    monkeypatch.setattr(LM, "get_batch_xyz", edited)
    assert not torch.allclose(assert_splits_agree(tmp_path), plain)


@pytest.mark.slow
@pytest.mark.ci
def test_get_losses_may_change_the_scored_tokens(tmp_path, monkeypatch):
    plain, original = update(tmp_path, batch_size=32), LM.get_losses

    def edited(self, batch, train_params, loss_requests=None, xyz=None):
        x, y, z = xyz or self.get_batch_xyz(batch, loss_requests, train_params)
        return original(self, batch, train_params, xyz=XYZ(x, every_other(y), z))

    monkeypatch.setattr(LM, "get_losses", edited)
    assert not torch.allclose(assert_splits_agree(tmp_path), plain)


def test_losses_without_a_count_are_refused_with_accumulation(tmp_path, monkeypatch):
    def edited(self, batch, train_params, loss_requests=None, xyz=None):
        _, _, z = xyz or self.get_batch_xyz(batch, loss_requests, train_params)
        return {"main": z.square().mean()}, len(z)

    monkeypatch.setattr(LM, "get_losses", edited)
    assert train(tmp_path, early_stop_nsamples=16).global_step == 2
    with pytest.raises(ValueError, match=r"get_losses must set self\.n_scored"):
        train(tmp_path, early_stop_nsamples=16, accumulate_grad_batches=2)


def test_clipping_sees_the_gradient_of_the_mean(tmp_path):
    """SGD moves by lr times the clipped gradient, whose norm is the bound, with accumulation as without."""
    moved = update(tmp_path, batch_size=8, accumulate_grad_batches=4, gradient_clip_val=0.01)
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    free = update(tmp_path, batch_size=8, accumulate_grad_batches=4, gradient_clip_val=1e9)
    assert torch.allclose(free, update(tmp_path, batch_size=32), rtol=1e-9, atol=1e-14)


def test_precision_decides_nothing_about_which_tokens_are_hidden():
    """Lightning trains and validates in 64-true with another default dtype."""
    batch = {
        "x_indices": torch.arange(60).reshape(3, 20) % 11,
        "mask": torch.ones(3, 20, dtype=torch.bool),
        "target_mask": torch.ones(3, 20, dtype=torch.bool),
    }
    params = tiny_params(objective="masked", causal=False)
    lm = LM(params, char_tokenizer("abcdefghijklm").with_mask())
    for mode in (True, False):
        targets = []
        for dtype in (torch.float32, torch.float64):
            with default_dtype(dtype):
                torch.manual_seed(0)
                shown = model.masking.mask_tokens(model.masking.unmasked_batch(batch, lm.train(mode)), lm)
                targets.append(torch.stack([shown.x, shown.y]))
        assert torch.equal(*targets), mode


def test_val_every_counts_optimizer_steps_over_the_ends_of_epochs(tmp_path):
    # 360 rows are 45 batches: 22 whole steps of two and a short one, so that batches are not twice the steps.
    run = train(tmp_path, epochs=2, accumulate_grad_batches=2, val_every=4)
    assert run.global_step == 46
    at = [stat.s for stat in run.stats.train_stats["stat/val_loss:main"]]
    assert at == [*range(4, 46, 4), 46]


@pytest.mark.parametrize("fields", [{"patience": 1}, {"lr_schedule": "plateau", "lr_plateau_patience": 1}])
def test_no_two_validations_are_of_the_same_weights(fields, tmp_path):
    """Two validations of the same weights would count as no gain: patience would end training, plateau halve lr."""
    run = train(tmp_path, accumulate_grad_batches=8, val_every=1, lr=1e-3, epochs=2, **fields)
    at = [stat.s for stat in run.stats.train_stats["stat/val_loss:main"]]
    assert at == sorted(set(at))
    assert run.global_step > 6
    assert run.schedule.reductions == 0


def test_statistics_are_drained_and_a_stop_is_taken_at_the_end_of_a_step(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr("train.trainer.DRAIN_EVERY", 5)
    monkeypatch.setattr(LMTrainer, "drain_and_judge", lambda self: steps.append(self.global_step))
    train(tmp_path, accumulate_grad_batches=2)
    assert steps == [5, 10, 15, 20, 23], "the last is that of the validation"


@pytest.mark.parametrize("accumulate", [1, 4])
def test_training_step_gets_batches_that_can_be_cut(accumulate, tmp_path, monkeypatch):
    step, seen = LMTrainer.training_step, []

    def short(self, batch, batch_idx):
        seen.append(batch.cut(5)["x_indices"].shape[1])
        return step(self, batch.cut(5), batch_idx)

    monkeypatch.setattr(LMTrainer, "training_step", short)
    run = train(tmp_path, batch_size=8, accumulate_grad_batches=accumulate, early_stop_nsamples=64)
    assert seen == [6] * 8
    assert run.n_tokens == 64 * 5
