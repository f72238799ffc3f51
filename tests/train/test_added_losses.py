"""Losses that layers add: they are trained on beside the main one, count as FLOPs, and keep what they reach alive."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from data.batch import mycollate
from data.data_params import DataParams
from model.context import Context, layer_kinds
from model.lm import LM
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import CharTokenizer, random_ids, tiny_params
from tests.train.little_run import CALL, train
from train.flops import flops_per_row
from train.grid.params import Params
from train.launch.check_models import checks_of, outcome_of
from train.probe import probe
from train.train_params import TrainParams

E, V = 32, 50  # experts, and a vocabulary that holds those of all tokenizers here


class Experts(TransformerEncoderLayer):
    """Each token goes to one of many experts; a second loss balances them (Fedus et al. 2021, equation 4)."""

    weight = 0.01
    closed: tuple[int, ...] = ()  # experts that no token is sent to

    def __init__(self, model_params, dropout):
        super().__init__(model_params, dropout)
        self.router = nn.Linear(model_params.dim, E)
        self.experts = nn.ModuleList([nn.Linear(model_params.dim, model_params.dim) for _ in range(E)])

    def _ff_block(self, x_BTD, ctx):
        probs_BTE = self.router(x_BTD).softmax(dim=-1)
        closed = torch.tensor(self.closed, dtype=torch.int64)
        best_BT = probs_BTE.index_fill(-1, closed, 0.0).argmax(dim=-1)
        share_E = F.one_hot(best_BT, E).float().mean(dim=(0, 1))
        ctx.add_loss("balance", E * (share_E * probs_BTE.mean(dim=(0, 1))).sum(), self.weight)
        out_BTD = torch.zeros_like(x_BTD)
        for e, expert in enumerate(self.experts):
            here = best_BT == e
            if here.any():
                out_BTD[here] = expert(x_BTD[here]) * probs_BTE[..., e][here][:, None]
        return super()._ff_block(x_BTD, ctx) + out_BTD


class Heads(TransformerEncoderLayer):
    """Beside its output a layer predicts the token after next, with weights that no logit depends on."""

    def __init__(self, model_params, dropout):
        super().__init__(model_params, dropout)
        self.further = nn.Linear(model_params.dim, V)

    def forward(self, x_BTD, ctx):
        y_BTD = super().forward(x_BTD, ctx)
        z_BTV = self.further(y_BTD)[:, :-2]
        ctx.add_loss("further", F.cross_entropy(z_BTV.flatten(0, 1), ctx.ids_BT[:, 2:].flatten()), 0.3)
        return y_BTD


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    monkeypatch.setitem(layer_kinds, "experts", Experts)
    monkeypatch.setitem(layer_kinds, "heads", Heads)


def make(kind, **fields) -> LM:
    torch.manual_seed(0)
    return LM(tiny_params(layer_architecture=kind, **fields), CharTokenizer(30))


@pytest.mark.parametrize("kind", ["experts", "heads"])
def test_parameters_reached_by_few_tokens_or_an_added_loss_only_are_not_called_dead(kind):
    lm = make(kind)
    assert probe(lm) == (None, [])
    params = Params(DataParams(dataset_name="copy"), TrainParams(), lm.model_params)
    for name in ("every parameter gets a gradient", "the first loss is near log vocabulary"):
        assert outcome_of(checks_of(params)[name], lm, params).result == "pass"


def test_parameters_that_no_loss_reaches_are_called_dead(monkeypatch):
    monkeypatch.setattr(Context, "add_loss", lambda *_: None)
    dead = [f"decoder.layers.{i}.further.{kind}" for i in range(2) for kind in ("weight", "bias")]
    assert probe(make("heads")).without_gradient == dead


def test_an_expert_that_no_token_can_reach_is_dead(monkeypatch):
    monkeypatch.setattr(Experts, "closed", (5,))
    names = probe(make("experts", n_layers=1)).without_gradient
    assert names == [f"decoder.layers.0.experts.5.{kind}" for kind in ("weight", "bias")]


def test_losses_of_one_name_add_up_over_layers_weighted_and_stand_beside_main(monkeypatch):
    lm = make("experts").eval()
    batch = mycollate(random_ids(3, 9).tolist())
    losses, n_rows = lm.get_losses(batch, None)
    assert (list(losses), n_rows) == (["main", "balance"], 3)
    plain = lm.get_batch_xyz(batch)
    main = F.cross_entropy(plain.z.flatten(0, 1), plain.y.flatten())
    assert_close(losses["main"], main)
    monkeypatch.setattr(Experts, "weight", 0.02)
    assert_close(lm.get_losses(batch, None)[0]["balance"], 2 * losses["balance"])
    monkeypatch.setattr(Experts, "weight", 0.01)
    single = make("experts", n_layers=1).eval().get_losses(batch, None)[0]["balance"]
    assert 0.01 <= single < losses["balance"], "each is at least its weight"


def test_losses_of_an_xyz_are_its_own_and_nothing_is_left_by_generation_or_in_copies():
    lm = make("experts")
    batch = mycollate(random_ids(3, 9).tolist())
    xyz = lm.get_batch_xyz(batch)
    assert list(lm.get_losses(batch, None, xyz=xyz)[0]) == ["main", "balance"]
    other = copy.deepcopy(lm)
    assert not other.added_losses
    other.sample("a", 6)
    other(random_ids(1, 5))
    assert not other.added_losses


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("main", torch.zeros(()), "'main' is the loss of the predictions"),
        ("b", torch.zeros(3), r"has shape \(3,\); it must be a scalar"),
    ],
)
def test_invalid_added_losses_are_refused(name, value, says):
    with pytest.raises(ValueError, match=says):
        Context(random_ids(1, 2)).add_loss(name, value)


def test_flops_are_those_of_all_losses():
    tokens, D = 12, 16
    further = 3 * 2 * 2 * tokens * D * V  # forward and backward of both layers
    assert flops_per_row(make("heads"), tokens) - flops_per_row(make("custom-transformer"), tokens) == further


def test_flops_of_an_edited_get_losses_are_counted(monkeypatch):
    plain, lm = flops_per_row(make("custom-transformer"), 9), make("custom-transformer", norm_eps=2e-5)

    def get_losses(self, batch, train_params, loss_requests=None, xyz=None):
        losses, n = original(self, batch, train_params)
        return losses | {"more": (self.unembed.weight @ self.unembed.weight.T).sum() * train_params.lr}, n

    original = LM.get_losses
    monkeypatch.setattr(LM, "get_losses", get_losses)
    assert flops_per_row(lm, 9, TrainParams()) == plain + 3 * 2 * 30 * 30 * 16


@pytest.mark.parametrize("objective", ["masked", "next-token"])
def test_masked_models_are_counted_too(objective):
    lm = make("custom-transformer", objective=objective, causal=objective != "masked")
    numbers = torch.get_rng_state()
    assert flops_per_row(lm, 9) == flops_per_row(make("custom-transformer"), 9)
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("kind", ["experts", "heads"])
def test_a_run_trains_and_records_what_layers_add(kind, tmp_path):
    call = CALL._replace(out=tmp_path)
    data = DataParams(dataset_name="copy", n_samples=400, val_pct=10.0, task_args={"max_length": 6})
    params = Params(data, TrainParams(batch_size=32), tiny_params(layer_architecture=kind))
    lm_trainer, outcome = train(params, call)
    name = "balance" if kind == "experts" else "further"
    for stat in (f"stat/train_loss:{name}", f"stat/val_loss:{name}", "stat/val_loss:main"):
        assert all(entry.v > 0 for entry in lm_trainer.stats.train_stats[stat])
    assert outcome.values["leak"] is None
