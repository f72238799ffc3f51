"""Optimizers against their formulas, settings by parameter pattern, cautious decay, averaged weights."""

import copy
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data.data_params import DataParams
from model.lm import LM
from model.model_params import ModelParams
from tests.model.tiny import CharTokenizer, batch_of, random_ids, tiny_params
from tests.train.little_run import CALL, train
from train.averages import AveragedWeights
from train.grid.params import Params
from train.launch.problems import group_problems, train_problems
from train.length import with_beta2
from train.optimizers import OF_LIBRARY, make_optimizer
from train.train_params import TrainParams


def fresh(params: ModelParams | None = None) -> LM:
    torch.manual_seed(0)
    return LM(params or tiny_params(), CharTokenizer()).double()


def take_steps(lm: LM, optimizer: torch.optim.Optimizer, n_steps: int = 4, seed: int = 0) -> None:
    torch.manual_seed(seed)
    for _ in range(n_steps):
        optimizer.zero_grad()
        lm.get_losses(batch_of(random_ids(4, 12)), None)[0]["main"].backward()
        optimizer.step()


def weights_after(params: TrainParams, n_steps: int = 4) -> dict[str, torch.Tensor]:
    lm = fresh()
    take_steps(lm, make_optimizer(lm, params), n_steps)
    return {name: p.detach() for name, p in lm.named_parameters()}


def reference_lion(lm: LM, lr: float, betas: tuple[float, float], decay: float):
    """Algorithm 2 of arXiv:2302.06675: c = b1 m + (1 - b1) g; w -= lr (sign(c) + decay w); m = b2 m + (1 - b2) g."""
    momenta = {p: torch.zeros_like(p) for p in lm.parameters()}

    class Reference:
        def zero_grad(self):
            lm.zero_grad()

        @torch.no_grad()
        def step(self):
            for p, m in momenta.items():
                c = betas[0] * m + (1 - betas[0]) * p.grad
                p -= lr * (c.sign() + (decay * p if p.ndim > 1 else 0))
                momenta[p] = betas[1] * m + (1 - betas[1]) * p.grad

    return Reference()


def test_lion_is_its_algorithm():
    params = TrainParams(optimizer="lion", lr=1e-3, betas=(0.8, 0.95), weight_decay=0.5)
    found, twin = weights_after(params), fresh()
    take_steps(twin, reference_lion(twin, 1e-3, (0.8, 0.95), 0.5))
    for name, p in twin.named_parameters():
        if not name.endswith(
            "qkv.bias"
        ):  # gradients of keys' biases are 0, but for noise, whose sign is random
            torch.testing.assert_close(found[name], p.detach(), rtol=0, atol=1e-12)


# Cautious weight decay


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_cautious_decay_takes_only_from_weights_that_move_towards_0(optimizer):
    lr, decay = 1e-2, 0.5
    params = TrainParams(optimizer=optimizer, lr=lr, weight_decay=decay, cautious_decay=True)
    before = {name: p.detach() for name, p in fresh().named_parameters()}
    plain = weights_after(replace(params, weight_decay=0.0, cautious_decay=False), 1)
    found, n_kept = weights_after(params, 1), 0
    for name, w in before.items():
        update = (w - plain[name]) / lr
        decays = (update * w >= 0) if w.ndim > 1 else torch.zeros_like(w)
        torch.testing.assert_close(found[name], w - lr * (update + decay * w * decays))
        n_kept += int((decays == 0).sum()) if w.ndim > 1 else 0
    assert n_kept > 100
    full = weights_after(replace(params, cautious_decay=False), 1)
    assert any(not torch.equal(full[name], found[name]) for name in found)


# Settings by pattern


def groups(**fields) -> dict[str, dict]:
    lm = fresh()
    names = {p: name for name, p in lm.named_parameters()}
    settings = {}
    for group in make_optimizer(lm, TrainParams(**{"lr": 1e-2, "weight_decay": 0.1} | fields)).param_groups:
        settings |= {names[p]: group for p in group["params"]}
    assert settings.keys() == set(names.values())
    return settings


def test_factors_apply_to_what_matches_and_to_nothing_else():
    found = groups(
        param_groups={
            "embed.*": {"lr": 10, "weight_decay": 0},
            "*.bias": {"lr": 0.5, "weight_decay": 3.0},
            "embed.tokens.*": {"lr": 2, "betas": (0.5, 0.75)},
        }
    )
    plain = groups()
    tokens, table = found["embed.tokens.weight"], found["embed.positions.table.weight"]
    assert (tokens["lr"], tokens["weight_decay"], tokens["betas"]) == (pytest.approx(0.2), 0, (0.5, 0.75))
    assert tokens["name"] == "matrices of embed.* and embed.tokens.*"
    assert (table["lr"], table["weight_decay"], table["betas"]) == (pytest.approx(0.1), 0, (0.9, 0.95))
    changed = {name for name, group in found.items() if group["name"] != plain[name]["name"]}
    assert changed == {name for name in found if name.startswith("embed.") or name.endswith(".bias")}
    for name in found.keys() - changed:
        assert (found[name]["lr"], found[name]["weight_decay"]) == (1e-2, plain[name]["weight_decay"])
    assert all(found[name]["weight_decay"] == 0 for name in changed if name.endswith(".bias")), "none decays"


def test_a_factor_of_the_learning_rate_scales_the_first_update():
    before = {name: p.detach() for name, p in fresh().named_parameters()}
    fields = {"optimizer": "sgd", "lr": 1e-2, "weight_decay": 0.0}
    plain = weights_after(TrainParams(**fields), 1)
    found = weights_after(TrainParams(**fields, param_groups={"*.linear1.*": {"lr": 10}}), 1)
    for name, w in before.items():
        factor = 10 if ".linear1." in name else 1
        torch.testing.assert_close(found[name] - w, factor * (plain[name] - w))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "sgd"])
def test_factors_stand_on_those_of_mup(optimizer):
    params = tiny_params(dim=64, n_heads=8, parametrization="mup", mup_base_dim=16, mup_base_heads=2)
    lm, own = fresh(params), {"*.linear1.weight": {"lr": 3}}
    plain = TrainParams(optimizer=optimizer, lr=1e-2)
    found = {
        p: g for g in make_optimizer(lm, replace(plain, param_groups=own)).param_groups for p in g["params"]
    }
    for group in make_optimizer(lm, plain).param_groups:
        for p in group["params"]:
            is_named = any(p is layer.linear1.weight for layer in lm.decoder.layers)
            assert found[p]["lr"] == pytest.approx(group["lr"] * (3 if is_named else 1))
            assert found[p]["weight_decay"] == group["weight_decay"]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"embed.*": {"rate": 2}}, "'embed.*' has 'rate'; allowed: 'lr' and 'weight_decay'"),
        ({"embed.*": {}}, "'embed.*' changes nothing"),
        ({"embed.*": {"lr": 0}}, "lr=0; it should be a number above 0; parameters in freeze do not train"),
        ({"embed.*": {"lr": "2"}}, "lr='2'; it should be a number"),
        ({"embed.*": {"lr": True}}, "lr=True; it should be a number"),
        ({"embed.*": {"weight_decay": math.inf}}, "weight_decay=inf; it should be a number, 0 or above"),
        ({"embed.*": {"betas": (0.9, 1.0)}}, "it should be a pair of numbers from 0 to below 1"),
    ],
    ids=str,
)
def test_bad_groups_are_refused_at_birth(groups, said):
    with pytest.raises(ValueError, match="param_groups") as error:
        TrainParams(param_groups=groups)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"param_groups": {"embd.*": {"lr": 2}}}, "parameters matches 'embd.*'; there are embed."),
        ({"param_groups": {"embed.*": {"lr": 2}}, "freeze": ("embed.*",)}, "matches 'embed.*'"),
        ({"param_groups": {"embed.*": {"betas": (0, 0)}}, "optimizer": "sgd"}, "optimizer='sgd' has none"),
        ({"param_groups": {"*": {"betas": (0, 0)}}, "optimizer": "muon"}, "updates without betas"),
    ],
    ids=str,
)
def test_groups_without_effect_are_refused_with_the_grid(fields, said):
    [problem] = group_problems(tiny_params(), TrainParams(**fields))
    assert said in problem
    right = {"embed.*": {"betas": (0, 0)}}
    assert not [*group_problems(tiny_params(), TrainParams(param_groups=right, optimizer="muon"))]


# beta2 by half-life


def test_a_gradient_counts_half_after_the_half_life_at_any_batch_size(monkeypatch):
    monkeypatch.setattr("train.length.mean_row_length", lambda data: 10.0)
    params = TrainParams(batch_size=8, beta2_half_life=4000)
    for n, steps in ((1, 50), (4, 12.5)):
        changed = with_beta2(replace(params, accumulate_grad_batches=n), object())
        assert changed.betas[1] ** steps == pytest.approx(0.5)
        assert changed.betas[0] == params.betas[0]
    assert with_beta2(TrainParams(), object()) == TrainParams()
    [problem] = train_problems(replace(params, optimizer="sgd"))
    assert "optimizer='sgd' has none" in problem


# Averages


def test_a_moving_average_is_torchs_and_training_does_not_see_it():
    lm, decay = fresh(), 0.7
    optimizer = make_optimizer(lm, TrainParams(lr=1e-2))
    averaged = AveragedWeights(lm, decay)
    reference = AveragedModel(lm, multi_avg_fn=get_ema_multi_avg_fn(decay))
    twin = copy.deepcopy(lm)
    twin_optimizer = make_optimizer(twin, TrainParams(lr=1e-2))
    for step in range(5):
        take_steps(lm, optimizer, 1, seed=step)
        take_steps(twin, twin_optimizer, 1, seed=step)
        averaged.update()
        reference.update_parameters(lm)
        with averaged.in_place(optimizer):
            for name, p in lm.named_parameters():
                torch.testing.assert_close(p, reference.module.get_parameter(name), rtol=0, atol=1e-12)
    assert not torch.allclose(lm.embed.tokens.weight, averaged.moving["embed.tokens.weight"])
    assert all(torch.equal(p, twin.get_parameter(name)) for name, p in lm.named_parameters())


def averaged_run(tmp_path, **fields):
    data = DataParams(dataset_name="maskedcopy", task_args={"max_length": 8}, n_samples=100)
    params = TrainParams(**{"batch_size": 8, "threads": 1, "lr": 1e-2, "val_every": 3} | fields)
    model = ModelParams(dim=16, n_layers=1, n_heads=2, max_seq_len=24)
    return train(Params(data, params, model), CALL._replace(out=tmp_path))


def test_both_losses_are_results_and_the_average_is_what_is_left(tmp_path):
    plain, of_plain = averaged_run(tmp_path)
    mean, of_mean = averaged_run(tmp_path, ema_decay=0.8)
    assert of_mean.values["weights"] == "averaged"
    assert "unaveraged_val_loss" not in of_plain.values
    assert of_mean.values["unaveraged_val_loss"] == of_plain.values["val_loss"] != of_mean.values["val_loss"]
    for name, p in mean.model.named_parameters():
        assert torch.equal(p, mean.averaged.moving[name]), name
    curves = [run.stats.train_stats for run in (plain, mean)]
    assert [s.v for s in curves[0]["stat/train_loss:main"]] == [
        s.v for s in curves[1]["stat/train_loss:main"]
    ]
    assert curves[0]["stat/val_loss:main"][1].v != curves[1]["stat/val_loss:main"][1].v


def test_an_optimizer_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr("train.optimizers.find_spec", lambda name: None)
    assert {"soap", "schedule-free"} <= OF_LIBRARY
    [problem] = train_problems(TrainParams(optimizer="soap"))
    assert problem == (
        "optimizer='soap' needs the package pytorch-optimizer: pip install -r requirements-optimizers.txt"
    )
    [problem] = train_problems(TrainParams(optimizer="prodigy"))
    assert problem.startswith("optimizer='prodigy' is not registered; there are: adamw, sgd, muon")
    assert problem.endswith("pytorch-optimizer has more: pip install -r requirements-optimizers.txt")


class ScheduleFreeByHand(torch.optim.Optimizer):
    """Algorithm 1 of arXiv:2405.15682. The gradient is taken at y, and x is the mean of all z.

    Its state has the names of the library's: z, and the weights are y. The library adds `eps_of_square` in the root.
    `eval` puts x in the place of y. The way back by `train` rounds, as that of the library does.
    """

    def __init__(self, groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, eps_of_square=0.0):
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "train_mode": True}
        )
        self.n_steps, self.eps_of_square = 0, eps_of_square

    @torch.no_grad()
    def step(self):
        self.n_steps += 1
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for y in group["params"]:
                state = self.state[y]
                if not state:
                    state.update(z=y.clone(), x=y.clone(), v=0.0)
                state["v"] = b2 * state["v"] + (1 - b2) * y.grad**2
                mean_square = state["v"] / (1 - b2**self.n_steps) + self.eps_of_square
                update = y.grad / (mean_square.sqrt() + group["eps"])
                state["z"] = state["z"] - group["lr"] * (update + group["weight_decay"] * y)
                state["x"] = state["x"] + (state["z"] - state["x"]) / self.n_steps
                y.copy_((1 - b1) * state["z"] + b1 * state["x"])

    @torch.no_grad()
    def eval(self):
        for y, state in self.state.items():
            y.copy_(state["x"])

    @torch.no_grad()
    def train(self):
        for y, state in self.state.items():
            b1, _ = self.param_groups[0]["betas"]
            y.copy_(((1 - b1) * state["z"] + b1 * state["x"]) * (1 + 1e-7))


@pytest.mark.parametrize("n_steps", [1, 5])
def test_averages_of_schedule_free_are_the_means_of_its_iterates(monkeypatch, n_steps):
    library = SimpleNamespace(load_optimizer={"ScheduleFreeAdamW": ScheduleFreeByHand}.__getitem__)
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", library)
    lm = fresh()
    optimizer = make_optimizer(lm, TrainParams(optimizer="schedule-free", lr=1e-2, betas=(0.7, 0.9)))
    take_steps(lm, optimizer, n_steps)
    before = [p.detach().clone() for p in lm.parameters()]
    with AveragedWeights(lm, None).in_place(optimizer):
        for p in lm.parameters():
            torch.testing.assert_close(p.detach(), optimizer.state[p]["x"], rtol=0, atol=1e-12)
    assert all(map(torch.equal, lm.parameters(), before)), "training goes on from the exact weights"


LIBRARY = {  # the class of each of its optimizers, and settings beside those of Adam
    "soap": ("SOAP", {}),
    "schedule-free": ("ScheduleFreeAdamW", {}),
    "adopt": ("ADOPT", {"weight_decouple": True}),
    "laprop": ("LaProp", {"weight_decouple": True}),
    "lamb": ("Lamb", {"weight_decouple": True}),
}


@pytest.mark.parametrize("name", sorted(OF_LIBRARY))
def test_an_optimizer_of_the_library_gets_the_settings_of_the_params(name, monkeypatch):
    kind, others = LIBRARY[name]

    def make(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, **settings):
        assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
        assert (lr, betas, eps, settings) == (1e-2, (0.7, 0.8), 1e-5, {})
        return torch.optim.SGD(groups, lr=lr)

    def make_decoupled(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decouple=False):
        assert weight_decouple is True
        return make(groups, lr, betas, eps)

    makers = {kind: make_decoupled if others else make}
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", SimpleNamespace(load_optimizer=makers.__getitem__))
    params = TrainParams(optimizer=name, lr=1e-2, betas=(0.7, 0.8), adam_eps=1e-5, weight_decay=0.3)
    assert isinstance(make_optimizer(fresh(), params), torch.optim.SGD)


def test_only_matrices_decay():
    assert {g["weight_decay"] for n, g in groups(optimizer="lion").items() if n.endswith("bias")} == {0}
