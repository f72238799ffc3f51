"""Quick modules: the same numbers, and nothing of an edit or a change lost."""

import copy
import functools
import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from model.context import Context
from model.generation.fast_cpu import MOST_ROWS, QuickLinear, kept, quick
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import tiny_lm

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


class Operators(TorchDispatchMode):
    """Counts what really runs."""

    def __init__(self):
        super().__init__()
        self.ran = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ran[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def quick_runs(call):
    """How many products of laid out weights run: for one row, and for a few."""
    with Operators() as operators:
        call()
    return operators.ran["bmm"] + operators.ran["_linear_pointwise"]


def evaluated(*modules):
    return nn.Sequential(*modules).eval()


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 7, 16, MOST_ROWS])
@torch.no_grad()
def test_the_numbers_are_those_of_linear(n_rows, bias, n_threads):
    model = evaluated(nn.Linear(48, 34, bias=bias))
    inputs = [
        torch.randn(n_rows, 1, 48),
        torch.randn(n_rows, 48),
        torch.randn(48, n_rows).T,
        torch.randn(1, 48),
    ]
    with quick(model, n_rows):
        outputs = [model(x) for x in inputs]
        assert quick_runs(lambda: model(inputs[0])) == 1
    for x, y in zip(inputs, outputs, strict=True):
        assert_close(y, model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_many_rows_and_other_kinds_of_numbers_go_the_usual_way():
    model = evaluated(nn.Linear(8, 8))
    many = torch.randn(MOST_ROWS + 1, 8)
    for n_rows in (1, 2):
        with quick(model, n_rows):
            assert quick_runs(lambda: model(many)) == 0
            assert_close(model(many), many @ model[0].weight.T + model[0].bias)
            with pytest.raises(RuntimeError, match="dtype"):
                model(torch.randn(1, 8, dtype=torch.float64))
    with quick(model, MOST_ROWS + 1):
        assert quick_runs(lambda: model(many[:1])) == 0
    with quick(model.double(), 1):
        assert quick_runs(lambda: model(many[:1].double())) == 0


@torch.no_grad()
def test_a_weight_that_changes_meanwhile_counts():
    model, x = evaluated(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(1, 8)
    with quick(model, 1):
        before = model(x)
        model[0].weight.mul_(2)
        model[0].bias.add_(1)
        model[1].weight = nn.Parameter(torch.eye(8))
        after = model(x)
    assert not torch.equal(before, after)
    assert_close(after, model(x))


@torch.no_grad()
def test_hooks_and_maps_of_the_users_own_are_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model, seen = evaluated(nn.Linear(8, 8), Doubled(8, 8), nn.Linear(8, 8), nn.Identity()), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out) or out + 1)
    model[3].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[2].forward = torch.sin
    x = torch.randn(1, 8)
    expected = model(x)
    with quick(model, 1):
        assert_close(model(x), expected)
    assert len(seen) == 2


def test_everything_is_as_it_was_afterwards():
    model = evaluated(nn.Linear(8, 8), nn.Dropout(0.5), nn.Sequential(nn.Identity()))
    before = [(type(module), {**vars(module)}) for module in model.modules()]
    with quick(model, 1):
        assert type(model[0]) is QuickLinear
        assert isinstance(model[1], nn.Dropout)
        assert model[1].p == 0.5
        assert "0" in vars(model[2])
    with pytest.raises(TypeError), quick(model, 1):
        model(None, None)
    assert [(type(module), vars(module)) for module in model.modules()] == before
    model(torch.randn(1, 8)).sum().backward()
    assert model[0].weight.grad is not None


def test_a_dropout_that_is_to_drop_still_does():
    model = evaluated(nn.Dropout(0.5), nn.Dropout(0.5))
    model[0].train()
    with quick(model, 1):
        assert 300 < (model(torch.ones(1000)) == 2).sum() < 700


def test_a_part_that_is_replaced_meanwhile_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x):
            self.part = nn.ReLU()
            return self.part(x)

    model = Twice().eval()
    with quick(model, 1):
        assert model(torch.tensor([-1.0])) == 0
    assert type(model.part) is nn.ReLU
    assert "part" not in vars(model)


@torch.no_grad()
def test_weights_are_laid_out_once_and_anew_when_they_change():
    model, x = evaluated(nn.Linear(8, 8)), torch.randn(1, 8)
    made = []
    for factor in (None, None, 2, None):
        if factor is not None:
            model[0].weight.mul_(factor)
        with quick(model, 1):
            made.append(model[0].laid_out)
            out = model(x)
        assert_close(out, model(x))
    assert made[0] is made[1] is not made[2] is made[3]
    with quick(model, 2):
        assert model[0].laid_out.n_rows == 2
    other = copy.deepcopy(model)
    other[0].weight.zero_()
    with quick(other, 2):
        assert_close(other(x)[0], other[0].bias)
    assert model[0] in kept
    linear = weakref.ref(model[0])
    del model
    assert linear() is None, "what is kept does not keep the model"


def generates(lm):
    """Whether it did so in inference mode."""
    seen = []
    hook = lm.decoder.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    lm.sample("ab", 10)
    hook.remove()
    return seen[-1]


@functools.lru_cache
def factors(n):
    return torch.full((n,), 0.5)[None]


def kept_by_a_function(layer, x_BTD):
    return x_BTD * factors(x_BTD.shape[-1])


def kept_by_a_layer(layer, x_BTD):
    if not hasattr(layer, "factors"):
        layer.factors = {"all": torch.full((x_BTD.shape[-1],), 0.5)}
    return x_BTD * layer.factors["all"]


@pytest.mark.parametrize("edit", [kept_by_a_function, kept_by_a_layer])
def test_what_an_edit_keeps_of_generation_is_fit_for_training(edit, monkeypatch):
    factors.cache_clear()
    lm = tiny_lm(dtype=torch.float32)
    assert generates(lm), "a model that keeps nothing goes the quick way"
    forward = TransformerEncoderLayer.forward
    monkeypatch.setattr(
        TransformerEncoderLayer, "forward", lambda self, x, ctx: edit(self, forward(self, x, ctx))
    )
    lm = tiny_lm(dtype=torch.float32)
    assert not generates(lm)
    lm.train()("abc").sum().backward()
    assert lm.decoder.layers[0].linear1.weight.grad.any()


def test_an_edit_that_wants_gradients_gets_them_in_generation(monkeypatch):
    forward = TransformerEncoderLayer.forward

    def uphill(self, x_BTD, ctx):
        with torch.enable_grad():
            x_BTD = x_BTD.detach().requires_grad_()
            [gradient_BTD] = torch.autograd.grad(
                forward(self, x_BTD, Context(ctx.ids_BT)).square().sum(), x_BTD
            )
        return forward(self, x_BTD.detach(), ctx) + 0 * gradient_BTD

    monkeypatch.setattr(TransformerEncoderLayer, "forward", uphill)
    lm = tiny_lm(dtype=torch.float32)
    assert not generates(lm)


def test_generation_takes_it_and_says_the_same():
    lm = tiny_lm(dtype=torch.float32)
    with Operators() as operators:
        sample = lm.sample("ab", 10, temperature=0)
        samples = lm.sample(["ab"] * 3, 10, temperature=0)
        beams = lm.beam_search("ab", 10)
    assert operators.ran["bmm"] > 100
    assert operators.ran["_linear_pointwise"] > 100
    double = copy.deepcopy(lm).double()
    assert sample == double.sample("ab", 10, temperature=0) == samples[2]
    assert beams[0].sample == double.beam_search("ab", 10)[0].sample
