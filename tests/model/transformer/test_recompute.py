"""recompute="layer": gradients stay the same to the last bit, whatever a layer does; or the grid is refused."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from data.data_params import DataParams
from model.context import Layer, layer_kinds
from model.lm import LM
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import COMBINATIONS, CharTokenizer, batch_of, random_ids, tiny_params
from train.grid.expand import Run
from train.grid.params import Params
from train.launch.problems import grid_problems
from train.train_params import TrainParams

ROWS = batch_of(random_ids(3, 12))


class Sharing(TransformerEncoderLayer):
    """A layer that uses all that a context offers: shared values, a list that grows, and added losses."""

    def forward(self, x_BTD, ctx):
        past = ctx.shared.setdefault("past", [])
        past.append(x_BTD)
        first = ctx.shared.setdefault("first", self.linear1(x_BTD).mean(dim=-1, keepdim=True))
        ctx.shared["sum"] = ctx.shared.get("sum", 0) + x_BTD.tanh()
        ctx.add_loss("size", x_BTD.exp().mean(), weight=0.1)
        return super().forward(sum(past) / len(past) + first + ctx.shared["sum"], ctx)


def gradients(lm: LM, recompute: bool, autocast: bool = False) -> dict[str, torch.Tensor]:
    lm.decoder.recompute = recompute
    lm.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses, _ = lm.train().get_losses(ROWS, TrainParams())
    sum(losses.values()).backward()
    found = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    return found | losses | {"random state": torch.get_rng_state()}


def assert_same(lm: LM, **options) -> None:
    stored, recomputed = gradients(lm, False, **options), gradients(lm, True, **options)
    assert stored.keys() == recomputed.keys()
    assert all(torch.equal(x, recomputed[name]) for name, x in stored.items())


def numbers_stored(lm: LM, recompute: bool) -> int:
    """The numbers that autograd keeps for the backward pass, parameters not counted."""
    lm.decoder.recompute, kept = recompute, {}
    parameters = {p.untyped_storage().data_ptr() for p in lm.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in parameters:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        lm.train().get_losses(ROWS, TrainParams())
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_gradients_are_the_same_to_the_last_bit(combination, autocast):
    kind, positions = combination
    if kind == "torch-lstm" and autocast:
        pytest.skip("torch has no LSTM in bfloat16 on some CPUs")
    torch.manual_seed(0)
    params = tiny_params(layer_architecture=kind, positions=positions, n_layers=3)
    assert_same(LM(params, CharTokenizer(), dropout=0.2), autocast=autocast)


def test_less_is_stored():
    lm = LM(tiny_params(n_layers=6), CharTokenizer())
    assert numbers_stored(lm, True) < 0.4 * numbers_stored(lm, False)


def test_a_layer_may_use_all_of_its_context(monkeypatch):
    monkeypatch.setitem(layer_kinds, "sharing", Sharing)
    torch.manual_seed(0)
    assert_same(LM(tiny_params(layer_architecture="sharing", n_layers=4), CharTokenizer(), dropout=0.1))


def test_modules_that_are_no_layers_and_layers_that_repeat_are_recomputed(monkeypatch):
    torch.manual_seed(0)
    lm = LM(tiny_params(n_layers=2), CharTokenizer(), dropout=0.1)
    lm.decoder.layers.insert(1, nn.Sequential(nn.Tanh(), nn.Dropout(0.2)))
    monkeypatch.setattr(lm.decoder, "passes", lambda: list(enumerate([*lm.decoder.layers] * 2)))
    assert_same(lm)


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_experts_choose_the_same_and_their_loads_count_once(balance):
    torch.manual_seed(0)
    lm = LM(tiny_params(n_experts=4, dim_ff=12, balance=balance), CharTokenizer(), dropout=0.1)
    assert_same(lm)
    loads = {}
    for recompute in (False, True):
        gradients(lm, recompute)
        loads[recompute] = lm.added_losses.expert_loads
    assert loads[True].keys() == loads[False].keys() == set(range(len(lm.decoder.layers)))
    for i, load_E in loads[False].items():
        assert load_E.any()
        assert torch.equal(load_E, loads[True][i])


def test_recorded_activations_are_those_without_recomputation():
    torch.manual_seed(0)
    lm = LM(tiny_params(), CharTokenizer())
    found = []
    for lm.decoder.recompute in (False, True):
        with lm.record("layers.*.z") as seen:
            losses, _ = lm.train().get_losses(ROWS, TrainParams())
        found.append([*torch.autograd.grad(losses["main"], list(seen.values())), *seen.values()])
    assert len(found[0]) == 4
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


class InPlace(Layer):
    def __init__(self, model_params, dropout):
        super().__init__()

    def forward(self, x_BTD, ctx):
        n = ctx.shared.setdefault("n", torch.zeros(()))
        y_BTD = (x_BTD + n).sin()
        n.add_(1)
        return y_BTD


class Drawing(InPlace):
    def forward(self, x_BTD, ctx):
        return x_BTD.sin() * torch.full_like(x_BTD, random.random())


class Counting(InPlace):
    def __init__(self, model_params, dropout):
        super().__init__(model_params, dropout)
        self.norm = nn.BatchNorm1d(model_params.dim)

    def forward(self, x_BTD, ctx):
        return self.norm(x_BTD.mT).mT


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (InPlace, "an input of layer 1 was changed in place"),
        (Drawing, "would differ"),
        (Counting, "norm.running_mean would differ"),
    ],
)
def test_a_layer_that_cannot_run_twice_is_refused(monkeypatch, kind, why):
    monkeypatch.setitem(layer_kinds, "mine", kind)
    params = Params(DataParams(), TrainParams(), tiny_params()).changed(
        layer_architecture="mine", recompute="layer"
    )
    [(problem, _)] = grid_problems([Run(params, {}, "trial")], root=Path())
    assert problem.startswith("recompute='layer' does not work with this model: ")
    assert why in problem
    assert not [*grid_problems([Run(params.changed(recompute="none"), {}, "trial")], root=Path())]


def test_together_with_compile_it_is_refused():
    with pytest.raises(ValueError, match="recompute='layer' does not work with compile=True"):
        TrainParams(recompute="layer", compile=True)
