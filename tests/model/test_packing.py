"""Packed maps: the numbers of nn.Linear, and nothing of an edit or a change lost."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from model.packing import MOST_ROWS, packed_maps
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


def packed_runs(call):
    with Operators() as operators:
        call()
    return operators.ran["_linear_pointwise"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 7, 16, MOST_ROWS])
@torch.no_grad()
def test_the_numbers_are_those_of_linear(n_rows, bias):
    model = nn.Sequential(nn.Linear(48, 33, bias=bias))
    inputs = [
        torch.randn(n_rows, 1, 48),
        torch.randn(n_rows, 48),
        torch.randn(48, n_rows).T,
        torch.randn(1, 48),
    ]
    with packed_maps(model, n_rows):
        packed = [model(x) for x in inputs]
        assert packed_runs(lambda: model(inputs[0])) == 1
    for x, y in zip(inputs, packed, strict=True):
        assert_close(y, model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_many_rows_and_other_kinds_of_numbers_go_the_usual_way():
    model = nn.Linear(8, 8)
    many = torch.randn(MOST_ROWS + 1, 8)
    with packed_maps(nn.Sequential(model), 1):
        assert packed_runs(lambda: model(many)) == 0
        with pytest.raises(RuntimeError, match="dtype"):
            model(torch.randn(1, 8, dtype=torch.float64))
    with packed_maps(nn.Sequential(model), MOST_ROWS + 1):
        assert packed_runs(lambda: model(many[:1])) == 0
    with packed_maps(nn.Sequential(model.double()), 1):
        assert packed_runs(lambda: model(many[:1].double())) == 0


@torch.no_grad()
def test_a_weight_that_changes_meanwhile_counts():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(1, 8)
    with packed_maps(model, 1):
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

    model, seen = nn.Sequential(nn.Linear(8, 8), Doubled(8, 8), nn.Linear(8, 8)), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out) or out + 1)
    model[2].forward = torch.sin
    x = torch.randn(1, 8)
    expected = model(x)
    with packed_maps(model, 1):
        assert_close(model(x), expected)
    assert len(seen) == 2


def test_everything_is_as_it_was_afterwards():
    model = nn.Sequential(nn.Linear(8, 8))
    with packed_maps(model, 1):
        assert "forward" in vars(model[0])
    with pytest.raises(TypeError), packed_maps(model, 1):
        model(None, None)
    assert "forward" not in vars(model[0])
    model(torch.randn(1, 8)).sum().backward()
    assert model[0].weight.grad is not None


def test_generation_takes_it_and_says_the_same():
    lm = tiny_lm(dtype=torch.float32)
    with Operators() as operators:
        sample = lm.sample("ab", 10, temperature=0)
        beams = lm.beam_search("ab", 10)
    assert operators.ran["_linear_pointwise"] > 100
    double = copy.deepcopy(lm).double()
    assert sample == double.sample("ab", 10, temperature=0)
    assert beams[0].sample == double.beam_search("ab", 10)[0].sample
