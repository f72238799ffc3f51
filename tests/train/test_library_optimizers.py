"""Optimizers of pytorch-optimizer: resumed bit by bit, decay of matrices alone, averages of schedule-free."""

import copy
import importlib.util
import signal
from dataclasses import replace

import pytest
import torch

from tests.model.tiny import tiny_params
from tests.train.killed import forked, killed_at
from tests.train.test_checkpoint import assert_same, call, outcome  # noqa: F401 -- a fixture
from tests.train.test_optimizers import ScheduleFreeByHand, averaged_run, fresh, take_steps
from tests.train.test_param_groups import WIDE, slopes
from train.averages import AveragedWeights
from train.launch.problems import group_problems, train_problems
from train.optimizers import OF_LIBRARY, SCALED_AS_ADAM, make_optimizer, optimizers
from train.train_params import TrainParams

pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(
        importlib.util.find_spec("pytorch_optimizer") is None, reason="requirements-optimizers.txt"
    ),
]


def params_of(name: str, **fields) -> TrainParams:
    return TrainParams(optimizer=name, lr=1e-2, lr_schedule="constant", **fields)


@pytest.mark.parametrize("name", sorted(OF_LIBRARY))
def test_it_has_the_settings_of_the_params_and_decoupled_decay(name):
    params = params_of(name, betas=(0.7, 0.8), adam_eps=1e-5, weight_decay=0.3)
    group = make_optimizer(fresh(), params).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-2, (0.7, 0.8), 1e-5, 0.3)
    assert group.get("weight_decouple", True)


@pytest.mark.parametrize("name", sorted(OF_LIBRARY))
def test_it_goes_on_from_its_state_bit_by_bit(name):
    params = params_of(name)
    assert not [*train_problems(params)]
    lm = fresh()
    first = {n: p.detach().clone() for n, p in lm.named_parameters()}
    optimizer = make_optimizer(lm, params)
    take_steps(lm, optimizer, 13)  # more than the 10 steps after which SOAP renews its basis
    other = fresh()
    other.load_state_dict(lm.state_dict())
    again = make_optimizer(other, params)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, rule in ((lm, optimizer), (other, again)):
        take_steps(model, rule, 12, seed=1)
    assert all(torch.equal(p, other.get_parameter(n)) for n, p in lm.named_parameters())
    assert all(not torch.equal(p, first[n]) for n, p in lm.named_parameters())


def test_schedule_free_is_its_algorithm():
    params = params_of("schedule-free", betas=(0.7, 0.9), weight_decay=0.3)
    lm, twin = fresh(), fresh()
    theirs = make_optimizer(lm, params)
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in theirs.param_groups]
    of_twin = dict(zip(lm.parameters(), twin.parameters(), strict=True))
    groups = [group | {"params": [of_twin[p] for p in group["params"]]} for group in groups]
    take_steps(lm, theirs, 6)
    settings = {"lr": 1e-2, "betas": (0.7, 0.9), "eps": params.adam_eps}
    take_steps(twin, ScheduleFreeByHand(groups, **settings, eps_of_square=1e-15), 6)
    for p, by_hand in of_twin.items():
        if p.abs().sum() and p.grad.abs().max() > 1e-12:  # gradients of keys' biases are noise
            torch.testing.assert_close(p, by_hand, rtol=0, atol=1e-9)


def soap_by_hand(weight, gradient_of, params: TrainParams, n_steps: int):
    """Algorithm 3 of arXiv:2409.11321: Adam in the eigenbases of G G' and G' G. The first gradient only begins these."""
    (b1, b2), w_MN = params.betas, weight
    left = right = momentum = squares = 0.0
    for t in range(n_steps):
        g = gradient_of(w_MN)
        if t == 0:
            left, right = (1 - b2) * g @ g.T, (1 - b2) * g.T @ g
            bases = [torch.linalg.eigh(one).eigenvectors.flip(1) for one in (left, right)]
            continue
        momentum = b1 * momentum + (1 - b1) * g
        squares = b2 * squares + (1 - b2) * (bases[0].T @ g @ bases[1]) ** 2
        turned = bases[0].T @ (momentum / (1 - b1**t)) @ bases[1]
        update = turned / ((squares / (1 - b2**t)).sqrt() + params.adam_eps / (1 - b2**t) ** 0.5)
        w_MN = (w_MN - params.lr * bases[0] @ update @ bases[1].T) * (1 - params.lr * params.weight_decay)
        left, right = (b2 * old + (1 - b2) * new for old, new in ((left, g @ g.T), (right, g.T @ g)))
        if t % 10 == 0:
            for i, one in enumerate((left, right)):
                order = (bases[i].T @ one @ bases[i]).diagonal().argsort(descending=True)
                squares = squares.index_select(i, order)
                bases[i] = torch.linalg.qr((one @ bases[i])[:, order]).Q
    return w_MN


@pytest.mark.parametrize(("n_steps", "error"), [(11, 1e-10), (31, 1e-5)])
def test_soap_is_its_algorithm(n_steps, error):
    """The library renews the bases in float32, from step 12 on."""
    torch.manual_seed(0)
    start, target = torch.randn(2, 5, 5, dtype=torch.float64)
    # In its own eigenbasis the first gradient is diagonal. A large eps keeps Adam from blowing up the zeros beside it.
    params = params_of("soap", betas=(0.7, 0.9), weight_decay=0.3, adam_eps=1e-3)
    weight = torch.nn.Parameter(start.clone())
    optimizer = optimizers["soap"]([{"params": [weight], "weight_decay": 0.3}], params)

    def loss(w):
        return (w - target).cosh().sum()

    for _ in range(n_steps):
        optimizer.zero_grad()
        loss(weight).backward()
        optimizer.step()
    found = soap_by_hand(start, torch.func.grad(loss), params, n_steps)
    torch.testing.assert_close(weight.detach(), found, rtol=0, atol=error)


@pytest.mark.parametrize("name", sorted(OF_LIBRARY))
def test_only_matrices_decay(name):
    def after(decay: float) -> dict[str, torch.Tensor]:
        lm = fresh()
        optimizer = make_optimizer(lm, params_of(name, weight_decay=decay))
        for _ in range(2):
            optimizer.zero_grad()
            # A loss that is 0 leaves decay as the only force.
            sum(p.sum() * 0 for p in lm.parameters()).backward()
            optimizer.step()
        return {n: p.detach() for n, p in lm.named_parameters()}

    plain, decayed = after(0.0), after(0.5)
    for n, p in plain.items():
        if p.ndim < 2:
            assert torch.equal(p, decayed[n]), n
        elif name != "lamb" and p.any():
            assert decayed[n].norm() < p.norm(), n


def test_averages_of_schedule_free_are_the_librarys_and_training_does_not_see_them():
    lm = fresh()
    optimizer = make_optimizer(lm, params_of("schedule-free"))
    take_steps(lm, optimizer, 5)
    trained = {n: p.detach().clone() for n, p in lm.named_parameters()}
    averaged = AveragedWeights(lm, None)
    with averaged.in_place(optimizer):
        found = {n: p.detach().clone() for n, p in lm.named_parameters()}
    assert all(torch.equal(p, trained[n]) for n, p in lm.named_parameters())
    optimizer.eval()
    for n, p in lm.named_parameters():
        torch.testing.assert_close(p, found[n], rtol=0, atol=1e-12)
        assert not torch.equal(p, trained[n])


def test_a_run_of_schedule_free_has_both_losses(tmp_path):
    fields = {"optimizer": "schedule-free", "lr_schedule": "constant"}
    trainer, often = averaged_run(tmp_path, **fields)
    _, once = averaged_run(tmp_path, **fields | {"val_every": None})
    assert often.values["weights"] == "averaged"
    assert often.values["unaveraged_val_loss"] != often.values["val_loss"]
    for column in ("val_loss", "unaveraged_val_loss"):
        assert often.values[column] == once.values[column], "validations change nothing"
    last = trainer.stats.train_stats["stat/val_loss:main"][-1].v
    assert last == often.values["val_loss"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"optimizer": "schedule-free"}, "lr_schedule='constant'"),
        ({"optimizer": "schedule-free", "lr_schedule": "constant", "betas": (0.0, 0.9)}, "betas[0] above 0"),
        (
            {"optimizer": "schedule-free", "lr_schedule": "constant", "ema_decay": 0.9},
            "averages weights itself",
        ),
        ({"optimizer": "schedule-free", "lr_schedule": "constant", "cautious_decay": True}, "cautious_decay"),
        ({"optimizer": "soap", "strategy": "fsdp", "devices": 2}, "use strategy='ddp'"),
    ],
    ids=str,
)
def test_what_they_do_not_support_is_refused(fields, said):
    assert any(said in problem for problem in train_problems(TrainParams(**fields)))


def test_mup_refuses_optimizers_without_a_rule():
    wide = tiny_params(parametrization="mup")
    refused = {name for name in OF_LIBRARY if [*group_problems(wide, params_of(name))]}
    assert refused == OF_LIBRARY - SCALED_AS_ADAM == {"soap", "lamb"}


NOT_FOR_US = {
    "lbfgs": "doesn't support per-parameter options",
    "adahessian": "",  # a second derivative
    "adammini": "",  # takes the model
    "ranger21": "num_iterations",
    "scion": "its state is more than numbers and tensors",
}


@pytest.mark.parametrize("name", ["prodigy", "adan", "came", "kron", *NOT_FOR_US])
def test_every_optimizer_of_the_library_has_a_name_or_is_refused_in_a_sentence(name):
    problems = [*train_problems(params_of(name))]
    if name in NOT_FOR_US:
        [problem] = problems
        assert problem.startswith(f"optimizer={name!r} of pytorch-optimizer does not work here: ")
        assert NOT_FOR_US[name] in problem
        assert "\n" not in problem
        return
    assert not problems
    lm = fresh()
    before = {n: p.detach().clone() for n, p in lm.named_parameters()}
    take_steps(lm, make_optimizer(lm, params_of(name)), 3)
    assert all(p.isfinite().all() and not torch.equal(p, before[n]) for n, p in lm.named_parameters())


def test_settings_that_an_optimizer_of_the_library_does_not_have_are_refused():
    [problem] = train_problems(params_of("prodigi"))
    assert problem.startswith(
        "optimizer='prodigi' is not registered; did you mean 'prodigy'? there are: adamw, "
    )
    assert problem.endswith("and those of pytorch-optimizer")
    [problem] = train_problems(params_of("adan", beta2_half_life=1e3))
    assert "optimizer='adan' has none" in problem, "it has three betas"
    [problem] = group_problems(tiny_params(parametrization="mup"), params_of("prodigy"))
    assert "has no rule for optimizer='prodigy'" in problem
    for name in ("schedulefreesgd", "splus"):
        assert any("averages weights itself" in p for p in train_problems(params_of(name, ema_decay=0.9)))


@pytest.mark.parametrize("name", ["schedulefreesgd", "schedulefreeradam", "splus"])
def test_averages_of_other_optimizers_are_validated(name, tmp_path):
    _, averaged = averaged_run(tmp_path, optimizer=name, lr_schedule="constant")
    assert averaged.values["weights"] == "averaged"
    assert averaged.values["unaveraged_val_loss"] != averaged.values["val_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCALED_AS_ADAM))
def test_activations_keep_their_size_in_mup(name):
    params = replace(WIDE, tied_embeddings=False, init="unit")
    found = slopes(params, lr=2**-6, optimizer=name)
    assert -0.6 <= min(found.values()) <= max(found.values()) <= 0.2, found
    assert max(abs(slope) for tap, slope in found.items() if "resid" in tap) <= 0.2, found
    standard = slopes(replace(params, parametrization="standard"), lr=2**-6, optimizer=name)
    assert max(standard.values()) >= (0.3 if name == "adopt" else 0.8), standard  # its first step only looks


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("soap", marks=pytest.mark.ci), "schedule-free"])
def test_a_killed_run_ends_as_it_would_have(name, call):  # noqa: F811
    fields = [f"optimizer={name!r}", "lr_schedule='constant'", "checkpoint_every=5"]
    assert forked(lambda: call(*fields, out="whole", options=["--save"])) == 0
    assert forked(lambda: killed_at("batch", 30, lambda: call(*fields))) == -signal.SIGKILL
    assert forked(lambda: call(*fields)) == 0
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))
