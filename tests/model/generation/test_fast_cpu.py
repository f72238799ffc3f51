"""Fast copies: the same numbers, no edit or change lost, and the model stays as it is."""

import copy
import functools
import threading
import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from model.context import Context
from model.generation.fast_cpu import MIN_PROMPT_ROWS, FastLinear, fast_copy, packed_weights
from model.transformer.lora import LoRALinear
from model.transformer.scaling import Readout
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import tiny_lm

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


class Operators(TorchDispatchMode):
    """Count the operators that run."""

    def __init__(self):
        super().__init__()
        self.ran = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ran[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def fast_products(call):
    """Return the number of products with packed weights."""
    with Operators() as operators:
        call()
    return operators.ran["bmm"] + operators.ran["baddbmm"] + operators.ran["_linear_pointwise"]


def evaluated(*modules):
    return nn.Sequential(*modules).eval()


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 7, 16, 70])
@torch.no_grad()
def test_fast_linears_equal_linear(n_rows, bias, n_threads):
    model = evaluated(nn.Linear(48, 34, bias=bias))
    inputs = [
        torch.randn(n_rows, 1, 48),
        torch.randn(n_rows, 48),
        torch.randn(48, n_rows).T,
        torch.randn(1, 48),
    ]
    fast = fast_copy(model, n_rows)
    assert fast_products(lambda: fast(inputs[0])) == 1
    for x in inputs:
        assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_prompts_use_packed_weights_and_other_dtypes_do_not():
    model = evaluated(nn.Linear(8, 8))
    prompt = torch.randn(1, MIN_PROMPT_ROWS, 8)
    for n_rows in (1, 2):
        fast = fast_copy(model, n_rows)
        assert fast_products(lambda fast=fast: fast(prompt)) == 1
        assert_close(fast(prompt), prompt @ model[0].weight.T + model[0].bias)
        assert_close(fast(prompt[:, :-1]), fast(prompt)[:, :-1])
        with pytest.raises(RuntimeError, match="dtype"):
            fast(torch.randn(1, 8, dtype=torch.float64))
    # Packing takes longer than the product of a short prompt.
    assert fast_products(lambda: fast_copy(model, 1)(prompt[:, :-1])) == 0
    assert fast_products(lambda: fast_copy(model.double(), 1)(prompt[:, :1].double())) == 0


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("n_positions", [1, MIN_PROMPT_ROWS])
def test_gradients_of_inputs_are_those_of_linear(n_positions, n_rows):
    model = evaluated(nn.Linear(8, 8))
    x = torch.randn(n_rows, n_positions, 8, requires_grad=True)
    [gradient] = torch.autograd.grad(fast_copy(model, n_rows)(x).square().sum(), x)
    [expected] = torch.autograd.grad(model(x).square().sum(), x)
    assert_close(gradient, expected)


@torch.no_grad()
def test_a_weight_that_changes_meanwhile_counts():
    model, x = evaluated(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(1, 8)
    fast = fast_copy(model, 1)
    before = fast(x)
    model[0].weight.mul_(2)
    model[0].bias.add_(1)
    model[1].weight = nn.Parameter(torch.eye(8))
    assert not torch.equal(before, fast(x))
    assert_close(fast(x), model(x))


class Halved(nn.Linear):
    """A subclass of a user: what it adds to nn.Linear counts, and its product is the fast one."""

    def forward(self, x):
        return super().forward(x / 2) + 1


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize(
    "make", [Halved, lambda n, m: Readout(n, m, mult=3.0), lambda n, m: LoRALinear(n, m, bias=True, rank=2)]
)
@torch.no_grad()
def test_subclasses_of_linear_use_packed_weights(make, n_rows):
    model, x = evaluated(make(16, 12)), torch.randn(n_rows, 1, 16)
    for parameter in model.parameters():
        parameter.normal_()
    fast = fast_copy(model, n_rows)
    assert fast_products(lambda: fast(x)) == 1
    assert_close(fast(x), model(x), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_hooks_patches_and_own_classes_are_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model, seen = evaluated(nn.Linear(8, 8), Doubled(8, 8), nn.Linear(8, 8), nn.Identity()), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(module) or out + 1)
    model[3].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[2].forward = torch.sin
    x = torch.randn(1, 8)
    expected = model(x)
    assert_close(fast_copy(model, 1)(x), expected)
    assert seen == [model[0]] * 2


def test_a_hook_for_all_modules_is_called_for_each():
    model, seen = evaluated(nn.Linear(8, 8), nn.Identity()), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(module))
    try:
        fast_copy(model, 1)(torch.randn(1, 8))
    finally:
        hook.remove()
    assert seen == [model[0], model[1], model]


def test_a_dropout_in_training_mode_still_drops():
    model = evaluated(nn.Dropout(0.5), nn.Dropout(0.5))
    model[0].train()
    assert 300 < (fast_copy(model, 1)(torch.ones(1000)) == 2).sum() < 700


def test_attributes_set_during_generation_are_set_on_the_model():
    class Stores(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.gone = nn.Identity(), 1

        def forward(self, x):
            self.part, self.seen = nn.ReLU(), x
            self.same = self.part
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("mask", torch.ones(1))
            del self.gone
            return self.part(x) * self.scale * self.mask

    model = evaluated(Stores())
    x = torch.tensor([-1.0])
    assert fast_copy(model, 1)(x) == 0
    stored = model[0]
    assert type(stored.part) is nn.ReLU
    assert stored.same is stored.part
    assert stored.seen is x
    assert [*dict(model.named_parameters())] == ["0.scale"]
    assert [*dict(model.named_buffers())] == ["0.mask"]
    assert not hasattr(stored, "gone")


def changed_in_place(weight):
    with torch.no_grad():
        weight.mul_(2)


def changed_through_data(weight):
    weight.data[3, 2] += 1.0


def stepped(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()


@torch.no_grad()
def loaded(weight):
    linear = nn.Linear(8, 8)
    linear.weight = weight
    linear.load_state_dict(nn.Linear(8, 8).state_dict())


@pytest.mark.parametrize("change", [changed_in_place, changed_through_data, stepped, loaded])
def test_weights_are_packed_once_and_anew_when_they_change(change):
    model, x, made = evaluated(nn.Linear(8, 8)), torch.randn(1, 8), []
    for edit in (None, None, change, None):
        if edit is not None:
            edit(model[0].weight)
        with torch.no_grad():
            fast = fast_copy(model, 1)
            assert_close(fast(x), model(x))
        made.append(fast[0].packed_weight)
    assert made[0] is made[1] is not made[2] is made[3]
    assert fast_copy(model, 2)[0].packed_weight.n_rows == 2


def test_packed_weights_do_not_keep_the_model():
    model = evaluated(nn.Linear(8, 8))
    assert isinstance(fast_copy(model, 1)[0], FastLinear)
    assert model[0] in packed_weights
    linear = weakref.ref(model[0])
    del model
    assert linear() is None


def state(lm):
    """Return classes, attributes and tensors of all modules, except for what generation remembers of its checks."""
    tensors = [*lm.parameters(), *lm.buffers()]
    modules = [(module, type(module), [*vars(module)], module.training) for module in lm.modules()]
    return modules, [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [None, Interrupted, KeyboardInterrupt])
@pytest.mark.parametrize("generate", ["sample", "beam_search"])
def test_the_model_stays_as_it_is(error, generate, monkeypatch):
    lm = tiny_lm(dtype=torch.float32, dropout=0.5).train()
    lm.decoder.layers[1].eval()
    forward, calls = TransformerEncoderLayer.forward, []

    def stops(self, x_BTD, ctx):
        calls.append(None)
        if error is not None and len(calls) == 25:
            raise error
        return forward(self, x_BTD, ctx)

    monkeypatch.setattr(TransformerEncoderLayer, "forward", stops)
    before = state(lm)
    if error is None:
        getattr(lm, generate)("ab", 14)
    else:
        with pytest.raises(error):
            getattr(lm, generate)("ab", 14)
    assert len(calls) >= 25
    assert state(lm) == before
    lm("ab").sum().backward()
    assert lm.unembed.weight.grad is not None


def patched_forward(lm):
    layer = lm.decoder.layers[0]
    layer.forward = lambda x_BTD, ctx, forward=layer.forward: -forward(x_BTD, ctx)


def patched_method(lm):
    layer = lm.decoder.layers[0]
    layer._ff_block = lambda x_BTD, ctx: x_BTD.roll(1, dims=-1)


def hooked(lm):
    lm.decoder.layers[1].mixer.register_forward_hook(lambda module, args, out: -3 * out)


def hooked_leaf(lm):
    lm.decoder.layers[1].linear2.register_forward_pre_hook(lambda module, args: (-args[0],))


def swapped(lm):
    lm.decoder.layers[0].linear1 = nn.Linear(16, 64)


def without_norm(lm):
    lm.decoder.norm = nn.Identity()


def zeroed(lm):
    lm.decoder.layers[0].linear2.weight.data.zero_()


EDITS = [patched_forward, patched_method, hooked, hooked_leaf, swapped, without_norm, zeroed]


@pytest.mark.parametrize("edit", EDITS)
def test_the_next_call_sees_an_edit(edit):
    """The reference is a model in double precision, which has no packed weights, and no cache."""
    lm = tiny_lm(dtype=torch.float32)
    before = lm.sample("ab", 6, temperature=0, return_logprobs=True)[1]
    torch.manual_seed(1)
    edit(lm)
    ids, after = lm.sample("ab", 6, as_str=False, temperature=0, return_logprobs=True)
    logprobs_TV = lm(ids)[0].log_softmax(dim=-1)
    expected = [logprobs_TV[t - 1, ids[t]].item() for t in range(3, len(ids))]
    assert_close(after, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(torch.tensor(before[:1]), torch.tensor(after[:1]), atol=1e-3)


def test_a_method_that_breaks_the_cache_is_detected_after_a_sample(monkeypatch):
    lm = tiny_lm(dtype=torch.float32)
    lm.sample("ab", 9)
    forward = TransformerEncoderLayer._ff_block
    monkeypatch.setattr(
        TransformerEncoderLayer,
        "_ff_block",
        lambda self, x, ctx: forward(self, x - x.mean(dim=1, keepdim=True), ctx),
    )
    with pytest.warns(UserWarning, match="without a cache"):
        sample = lm.sample("ab", 9, temperature=0)
    assert sample == lm.sample("ab", 9, temperature=0, use_cache=False)


def test_two_threads_sample_from_one_model():
    lm = tiny_lm(dtype=torch.float32, dropout=0.5).train()
    expected = [copy.deepcopy(lm).sample(pref, 16, temperature=0) for pref in ("ab", "c")]
    found, errors = {}, []

    def samples(i, pref):
        try:
            found[i] = {lm.sample(pref, 16, temperature=0) for _ in range(10)}
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=samples, args=part) for part in enumerate(("ab", "c"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert found == {0: {expected[0]}, 1: {expected[1]}}
    assert all(module.training for module in lm.modules())


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
def test_values_that_an_edit_stores_during_generation_are_fit_for_training(edit, monkeypatch):
    factors.cache_clear()
    forward = TransformerEncoderLayer.forward
    monkeypatch.setattr(
        TransformerEncoderLayer, "forward", lambda self, x, ctx: edit(self, forward(self, x, ctx))
    )
    lm = tiny_lm(dtype=torch.float32)
    lm.sample("ab", 10)
    if edit is kept_by_a_layer:
        assert hasattr(lm.decoder.layers[0], "factors")
    lm.train()("abc").sum().backward()
    assert lm.decoder.layers[0].linear1.weight.grad.any()


def test_an_edit_may_compute_gradients_during_generation(monkeypatch):
    forward, gradients = TransformerEncoderLayer.forward, []

    def uphill(self, x_BTD, ctx):
        with torch.enable_grad():
            x_BTD = x_BTD.detach().requires_grad_()
            loss = forward(self, x_BTD, Context(ctx.ids_BT)).square().sum()
            gradients.extend(torch.autograd.grad(loss, x_BTD))
        return forward(self, x_BTD.detach(), ctx)

    monkeypatch.setattr(TransformerEncoderLayer, "forward", uphill)
    tiny_lm(dtype=torch.float32).sample("ab", 10)
    assert all(gradient.any() for gradient in gradients)


def test_generation_uses_packed_weights_and_gives_the_same_samples():
    lm = tiny_lm(dtype=torch.float32)
    with Operators() as operators:
        sample = lm.sample("ab", 10, temperature=0)
        samples = lm.sample(["ab"] * 3, 10, temperature=0)
        beams = lm.beam_search("ab", 10)
    assert operators.ran["baddbmm"] > 50
    assert operators.ran["_linear_pointwise"] > 100
    double = copy.deepcopy(lm).double()
    assert sample == double.sample("ab", 10, temperature=0) == samples[2]
    assert beams[0].sample == double.beam_search("ab", 10)[0].sample
