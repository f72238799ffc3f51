"""Every activation has a name; whoever looks changes nothing, and whoever patches changes what is said."""

import copy
import pickle
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import model.recording
from model.context import Cache, Context, Layer, layer_kind, layer_kinds
from model.recording import at
from model.transformer.convolution import CausalConv
from tests.model.tiny import KINDS, architectures, perturbed_lm, random_ids, tiny_lm, tiny_params

HEADS = ["q", "k", "v", "scores", "pattern", "z", "head_out"]
FEED_FORWARD = ["mlp_pre", "mlp_post", "mlp_out"]


def names_of(n_layers: int, inside: list[str]) -> list[str]:
    in_layers = [
        f"layers.{i}.{name}" for i in range(n_layers) for name in ("resid_pre", *inside, "resid_post")
    ]
    return ["embed", *in_layers, "final_norm", "logits"]


@pytest.mark.parametrize(
    ("fields", "inside"),
    [
        ({}, [*HEADS, "attn_out", "resid_mid", *FEED_FORWARD]),
        ({"attention": "fused", "n_kv_heads": 1}, [*HEADS, "attn_out", "resid_mid", *FEED_FORWARD]),
        ({"parallel_blocks": True}, [*HEADS, "attn_out", *FEED_FORWARD]),
        ({"dim_ff": 0}, [*HEADS, "attn_out"]),
        ({"layer_architecture": "torch-transformer"}, ["pattern"]),
        ({"layer_architecture": "torch-lstm"}, []),
        ({"layer_architecture": "gated-conv"}, ["z", "attn_out", "resid_mid", *FEED_FORWARD]),
        (
            {"layer_architecture": "linear-attention"},
            ["q", "k", "v", "z", "attn_out", "resid_mid", *FEED_FORWARD],
        ),
    ],
    ids=str,
)
def test_activation_names_by_architecture(fields, inside):
    lm = tiny_lm(**fields).train()
    assert lm.activation_names() == names_of(2, inside)
    assert all(module.training for module in lm.modules())


class TwoConvolutions(Layer):
    """Two writers of one name: each would go on from what the other has left in the cache."""

    def __init__(self, model_params, dropout):
        super().__init__()
        self.convs = nn.ModuleList([CausalConv(model_params, model_params.dim) for _ in range(2)])

    def forward(self, x_BTD, ctx):
        return x_BTD + self.convs[0](x_BTD, ctx) + self.convs[1](x_BTD, ctx)


class TwoTaps(Layer):
    def __init__(self, model_params, dropout):
        super().__init__()

    def forward(self, x_BTD, ctx):
        return ctx.tap("mine", ctx.tap("mine", x_BTD) + 1)


class TwoPasts(Layer):
    def __init__(self, model_params, dropout):
        super().__init__()

    def forward(self, x_BTD, ctx):
        return (
            ctx.with_past("x", x_BTD, dim=1)[:, -x_BTD.shape[1] :] + ctx.with_past("x", x_BTD, dim=1)[:, :1]
        )


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (TwoConvolutions, "cache entry 'layers.0.conv'"),
        (TwoTaps, "activation 'layers.0.mine'"),
        (TwoPasts, "cache entry 'layers.0.x'"),
    ],
)
def test_a_second_write_of_a_name_in_one_pass_is_an_error(layer, says, monkeypatch):
    monkeypatch.setitem(layer_kinds, "two", layer)
    lm = tiny_lm(layer_architecture="two")
    for run in (lambda: lm([1, 4, 5]), lambda: lm([1, 4, 5], cache=Cache(8)), lambda: lm.sample("a", 6)):
        with pytest.raises(ValueError, match=f"{says} is written twice in one forward pass"):
            run()


def test_layers_share_values_within_one_pass_only(monkeypatch):
    class Counts(Layer):
        def __init__(self, model_params, dropout):
            super().__init__()
            self.index, self.depth = model_params.layer_index, model_params.depth

        def forward(self, x_BTD, ctx):
            ctx.shared["seen"] = [*ctx.shared.get("seen", []), self.index]
            passes.append(ctx.shared["seen"])
            return x_BTD

    passes = []
    monkeypatch.setitem(layer_kinds, "counts", Counts)
    lm = tiny_lm(layer_architecture="counts", n_layers=3)
    lm([1, 2])
    lm([1, 2])
    assert passes == [[0], [0, 1], [0, 1, 2]] * 2
    assert [layer.depth for layer in lm.decoder.layers] == [3, 3, 3]


def test_the_params_of_a_layer_are_those_of_the_model_with_its_place():
    params = tiny_params(n_layers=3)
    own = params.at(2, 6)
    assert (own, own.layer_index, own.depth) == (params, 2, 6)
    assert (params.layer_index, params.depth) == (None, 3)
    assert "layer_index" not in repr(own)
    assert repr(replace(own, dim=32)) == repr(replace(params, dim=32))
    assert replace(own, n_layers=5).depth == 5


def test_a_users_layer_has_names_without_any_code():
    @layer_kind("plain-of-a-test")
    class Plain(Layer):
        def __init__(self, model_params, dropout):
            super().__init__()

        def forward(self, x_BTD, ctx):
            return 2 * ctx.tap("mine", x_BTD)

    lm = tiny_lm(layer_architecture=("torch-gru", "plain-of-a-test"))
    del layer_kinds["plain-of-a-test"]
    lm.decoder.layers.insert(1, nn.ReLU())
    expected = [f"layers.{i}.{name}" for i in range(3) for name in ("resid_pre", "resid_post")]
    assert lm.activation_names() == [
        "embed",
        *expected[:5],
        "layers.2.mine",
        expected[5],
        "final_norm",
        "logits",
    ]
    with lm.record() as seen:
        lm(random_ids(2, 5))
    assert_close(seen["layers.1.resid_post"], seen["layers.0.resid_post"].relu())
    assert_close(seen["layers.2.resid_post"], 2 * seen["layers.1.resid_post"])


@pytest.mark.parametrize("fields", [{}, {"n_kv_heads": 1}, {"lora_rank": 2}], ids=str)
def test_recorded_activations_satisfy_the_equations(fields):
    lm = tiny_lm(**fields)
    with lm.record() as seen:
        logits = lm(random_ids(3, 7))
    assert torch.equal(seen["logits"], logits)
    assert torch.equal(seen["layers.0.resid_pre"], seen["embed"])
    assert torch.equal(seen["layers.1.resid_pre"], seen["layers.0.resid_post"])
    for i, layer in enumerate(lm.decoder.layers):
        x = {name: seen[f"layers.{i}.{name}"] for name in (*HEADS, "attn_out", "resid_mid", *FEED_FORWARD)}
        assert_close(x["scores"].softmax(dim=-1), x["pattern"])
        assert_close(x["pattern"] @ x["v"].expand(3, lm.model_params.kv_heads, 7, 8), x["z"])
        assert_close(x["head_out"].sum(dim=1) + layer.mixer.out.bias, x["attn_out"])
        for head in range(2):  # a head's part of the map: the map of all heads, the others zero
            alone = torch.zeros_like(x["z"])
            alone[:, head] = x["z"][:, head]
            out = layer.mixer.out(alone.transpose(1, 2).flatten(2)) - layer.mixer.out.bias
            assert_close(x["head_out"][:, head], out)
        assert_close(x["resid_mid"], seen[f"layers.{i}.resid_pre"] + x["attn_out"])
        assert_close(nn.functional.gelu(x["mlp_pre"]), x["mlp_post"])
        assert_close(layer.linear2(x["mlp_post"]), x["mlp_out"])
        assert_close(seen[f"layers.{i}.resid_post"], x["resid_mid"] + x["mlp_out"])
    assert_close(lm.decoder.norm(seen["layers.1.resid_post"]), seen["final_norm"])


def run(lm, ids, *patterns):
    """Logits, gradients and the state of the random numbers after one training pass."""
    torch.manual_seed(0)
    lm.zero_grad()
    if patterns:
        with lm.record(*patterns):
            logits = lm(ids)
    else:
        logits = lm(ids)
    logits.log_softmax(dim=-1)[..., 3].sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])
    return logits, gradients, torch.get_rng_state()


@pytest.mark.slow
@pytest.mark.ci
@settings(max_examples=60, deadline=None)
@given(architectures(attention="explicit"), st.sampled_from([torch.float32, torch.float64]))
def test_recording_changes_no_bit(params, dtype):
    lm = perturbed_lm(params, dropout=0.3, dtype=dtype).train()
    ids = random_ids(3, 9)
    plain, plain_grads, plain_state = run(lm, ids)
    assume(plain.isfinite().all() and plain_grads.isfinite().all())  # the stream can grow without norms
    seen, seen_grads, seen_state = run(lm, ids, "*")
    assert torch.equal(plain, seen)
    assert torch.equal(plain_state, seen_state)
    tolerance = 1e-4 if dtype is torch.float32 else 1e-10
    assert_close(seen_grads, plain_grads, rtol=0, atol=tolerance * float(plain_grads.abs().max()))


@pytest.mark.parametrize("fields", [{}, {"alibi": True}, {"sliding_window": 3}], ids=str)
def test_the_fused_kernel_is_left_only_for_scores_or_pattern(fields, monkeypatch):
    if fields.pop("alibi", False):
        fields["positions"] = "alibi"
    lm = tiny_lm(attention="fused", **fields)
    ids = random_ids(2, 9)
    others = [name for name in lm.activation_names() if not name.endswith(("scores", "pattern"))]
    plain = lm(ids)
    with lm.record(*others) as seen:
        assert torch.equal(lm(ids), plain)
    with lm.record() as everything:
        assert_close(lm(ids), plain)
    assert set(everything) - set(seen) == {
        f"layers.{i}.{name}" for i in range(2) for name in ("scores", "pattern")
    }
    for name in seen:
        assert_close(seen[name], everything[name])


class Counting(TorchDispatchMode):
    """Every operation that torch carries out."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_recorded_unless_asked(kind, monkeypatch):
    lm, ids = tiny_lm(layer_architecture=kind), random_ids(2, 9)
    with lm.record():
        lm(ids)
    compared = []
    fits = model.recording.matches_pattern
    monkeypatch.setattr(
        model.recording, "matches_pattern", lambda *names: compared.append(names) or fits(*names)
    )
    with Counting() as now:
        lm(ids)
    assert lm.taps == []
    assert compared == []
    with Counting() as looked_at, lm.record("resid_*", "logits"):  # what exists anyway
        lm(ids)
    assert compared
    monkeypatch.setattr(Context, "tap", lambda ctx, name, x: x)
    monkeypatch.setattr(Context, "wants", lambda ctx, name: False)
    with Counting() as without:
        lm(ids)
    assert now.operations == looked_at.operations == without.operations


@settings(max_examples=40, deadline=None)
@given(architectures(), st.data())
def test_no_patch_is_ignored(params, data):
    """Each activation, replaced by noise, changes the logits, or is refused."""
    lm = perturbed_lm(params)
    ids = random_ids(2, 8)
    name = data.draw(st.sampled_from(lm.activation_names()))
    plain = lm(ids)
    noise = torch.Generator().manual_seed(0)

    def noisy(x):
        size = 1 + x[x.isfinite()].abs().max()  # without norms the stream can be large
        return x + size * torch.randn(x.shape, generator=noise, dtype=x.dtype)  # the future's -inf stays

    passes = dict(lm.decoder.passes())
    theirs = type(passes[int(name.split(".")[1])]).__name__ if name.startswith("layers.") else ""
    if theirs == "TorchTransformer" and name.endswith("pattern"):
        with pytest.raises(ValueError, match="can be recorded, but not patched"), lm.patch({name: noisy}):
            lm(ids)
    else:
        with lm.patch({name: noisy}):
            assert not torch.allclose(lm(ids), plain)
        assert torch.equal(lm(ids), plain)


def test_patches_may_be_functions_numbers_and_tensors():
    lm, ids, others = tiny_lm(), random_ids(3, 7), random_ids(3, 7, seed=1)
    name = "layers.1.z"
    with lm.record("z") as clean:
        lm(others)
    theirs, zeros = clean[name], torch.zeros_like(clean[name])
    for edit, expected in [
        (lambda z: 0 * z, lambda z: zeros),
        (0, lambda z: zeros),
        (theirs, lambda z: theirs),
        (theirs[:1, :, :1], lambda z: theirs[:1, :, :1].expand(3, 2, 7, 8)),
        ("mean", lambda z: torch.stack([z.mean(dim=0)] * 3)),
        (lambda z: z.float(), lambda z: z.float().double()),
        (lambda z: 2.5, lambda z: zeros + 2.5),
        (lambda z: z.mul_(2), lambda z: 2 * z),
    ]:
        with lm.record(name) as before, lm.patch({name: edit}), lm.record(name, "attn_out") as seen:
            lm(ids)
        assert torch.equal(seen[name], expected(before[name]))
        out = lm.decoder.layers[1].mixer.out(seen[name].transpose(1, 2).flatten(2))
        assert_close(seen["layers.1.attn_out"], out)


def test_a_whole_recording_is_a_patch():
    lm, ids, others = tiny_lm(), random_ids(3, 7), random_ids(3, 7, seed=1)
    with lm.record("resid_post") as seen:
        logits = lm(others)
    with lm.patch(seen):
        assert torch.equal(lm(ids), logits)


def test_removing_a_head_is_removing_its_columns_of_the_matrix():
    lm, ids = tiny_lm(), random_ids(3, 7)
    with lm.patch({"layers.0.z": at(0, heads=1)}):
        patched = lm(ids)
    with lm.patch({"layers.0.head_out": at(0, heads=[1])}):
        assert_close(lm(ids), patched)
    with torch.no_grad():
        lm.decoder.layers[0].mixer.out.weight[:, 8:] = 0
    assert_close(lm(ids), patched)


def test_at_restricts_a_patch_to_positions_and_heads():
    lm, ids = tiny_lm(n_heads=4), random_ids(2, 7)
    with lm.record("z", "resid_pre") as clean:
        lm(ids)
    for edit, there in [
        (at(7, heads=2), (slice(None), 2)),
        (at(7, positions=-1), (slice(None), slice(None), 6)),
        (at(7, heads=[0, 3], positions=slice(2, 4)), (slice(None), slice(0, 4, 3), slice(2, 4))),
        (at(lambda z: z + 1 - z + 6, heads=1, positions=[5]), (slice(None), 1, 5)),
        (at(torch.full((7, 4), 7.0), heads=1, positions=5), (slice(None), 1, 5)),
    ]:
        expected = clean["layers.1.z"].clone()
        expected[there] = 7
        with lm.patch({"layers.1.z": edit}), lm.record("z") as seen:
            lm(ids)
        assert_close(seen["layers.1.z"], expected)
        assert torch.equal(seen["layers.0.z"], clean["layers.0.z"])
    with lm.patch({"layers.1.resid_pre": at(0, positions=3)}), lm.record("resid_pre") as seen:
        lm(ids)
    expected = clean["layers.1.resid_pre"].clone()
    expected[:, 3] = 0
    assert torch.equal(seen["layers.1.resid_pre"], expected)


def test_a_recording_inside_a_patch_sees_it_and_one_around_it_does_not():
    lm, ids = tiny_lm(), random_ids(2, 5)
    once, twice = {"layers.0.z": 1.0}, {"layers.0.z": lambda z: z + 1}
    with lm.record("z") as around, lm.patch(once), lm.patch(twice), lm.record("z") as inside:
        result = lm(ids, get_embeddings=True)
    assert (inside["layers.0.z"] == 2).all()
    assert not torch.allclose(around["layers.0.z"], inside["layers.0.z"])
    assert torch.equal(around["layers.1.z"], inside["layers.1.z"])
    assert not torch.allclose(result["logits"], lm(ids))
    assert not torch.allclose(result["embeddings"], lm(ids, get_embeddings=True)["embeddings"])


def test_nested_recordings_of_one_name_end_independently():
    lm, ids = tiny_lm(), random_ids(2, 5)
    with lm.record("z") as outer:
        with lm.record("z") as inner:
            lm(ids)
        lm(random_ids(2, 6))
    assert inner["layers.0.z"].shape[2] == 5
    assert outer["layers.0.z"].shape[2] == 6


@pytest.mark.parametrize("fields", [{}, {"attention": "fused"}, {"layer_architecture": "torch-gru"}], ids=str)
def test_gradients_of_activations_equal_those_of_added_values(fields):
    lm, ids = tiny_lm(**fields), random_ids(2, 5)

    def loss():
        return lm(ids).log_softmax(dim=-1)[:, :, 3].sum()

    with lm.record() as seen:
        seen_loss = loss()
    for x in seen.values():
        x.retain_grad()
    seen_loss.backward()
    for name, x in seen.items():
        nothing = torch.zeros_like(x, requires_grad=True)
        with lm.patch({name: lambda x, nothing=nothing: x + nothing}):
            loss().backward()
        assert nothing.grad.abs().sum() > 0
        assert_close(x.grad, nothing.grad, msg=name)


def test_inference_mode_and_no_grad_record_too():
    lm, ids = tiny_lm(), random_ids(2, 5)
    with torch.inference_mode(), lm.record("z") as seen:
        lm(ids)
    assert seen["layers.0.z"].shape == (2, 2, 5, 8)


def test_a_misspelt_name_is_answered_with_the_nearest():
    lm = tiny_lm(n_layers=12, dim=8)
    for ask, wrong, hint in [
        (lm.record("layers.0.patern", "z"), "layers.0.patern", "did you mean 'layers.0.pattern'"),
        (lm.record("head_outs"), "head_outs", "did you mean 'head_out'"),
        (lm.patch({"layers.12.z": 0}), "layers.12.z", "did you mean 'layers.2.z' or"),
        (lm.patch({"z": 0, "*.resid_past": 0}), "*.resid_past", "did you mean '*.resid_post'"),
        (lm.record("neurons"), "neurons", "there are: embed, layers.*.resid_pre, layers.*.q, layers.*.k"),
    ]:
        message = re.escape(f"no activation is named {wrong!r}; ") + ".*" + re.escape(hint)
        with pytest.raises(ValueError, match=message), ask:
            lm("ab")
    fused = tiny_lm(attention="fused")
    with pytest.raises(ValueError, match="did you mean 'pattern'"), fused.record("patterns"):
        fused("ab")


def test_a_recording_without_a_forward_pass_is_an_error():
    lm = tiny_lm()
    with pytest.raises(ValueError, match="the model did not run inside the with-block"), lm.record("z"):
        tiny_lm()("ab")
    with pytest.raises(ValueError, match="the model did not run inside the with-block"), lm.patch({"z": 0}):
        pass


def test_unrecorded_activations_are_a_key_error():
    lm = tiny_lm()
    with lm.record("z") as seen:
        lm("ab")
    assert "layers.0.q" not in seen
    assert len(seen) == 2
    with pytest.raises(KeyError, match=r"'layers\.0\.q' was not recorded; there are: layers\.\*\.z"):
        seen["layers.0.q"]
    with pytest.raises(KeyError, match=r"'layers\.2\.z' was not recorded; did you mean 'layers\.[01]\.z'"):
        seen["layers.2.z"]
    with (
        pytest.raises(ValueError, match="no activation is named 'misspelt'"),
        lm.record("misspelt") as nothing,
    ):
        lm("ab")
    with pytest.raises(KeyError, match=r"'layers\.0\.z' was not recorded; there are: none"):
        nothing["layers.0.z"]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (torch.zeros(5), r"layers\.0\.z has the shape \(2, 2, 3, 8\), but the edit returns \(5,\)"),
        (lambda z: z[0, 0, 0, :3], r"has the shape \(2, 2, 3, 8\), but the edit returns \(3,\)"),
        (
            lambda z: None,
            r"an edit of layers\.0\.z must be a tensor, a number, .* a number, not None",
        ),
        ("zero", "not 'zero'"),
        (at(0, heads=2), "heads=2; allowed: 0 to 1"),
        (at(0, positions=[0, 3]), r"positions=\[0, 3\]; allowed: 0 to 2"),
    ],
)
def test_edits_that_do_not_fit(edit, complaint):
    lm = tiny_lm()
    plain = lm(random_ids(2, 3))
    with pytest.raises(ValueError, match=complaint), lm.patch({"layers.0.z": edit}):
        lm(random_ids(2, 3))
    assert torch.equal(lm(random_ids(2, 3)), plain)


@pytest.mark.parametrize(
    ("edits", "complaint"),
    [
        ({"resid_mid": at(0, heads=0)}, "heads=0 needs an activation with heads"),
        ({"z": "mean"}, r"'mean' averages over the batch, but layers\.0\.z has a batch of one"),
    ],
)
def test_edits_that_mean_nothing_here(edits, complaint):
    lm = tiny_lm()
    with pytest.raises(ValueError, match=complaint), lm.patch(edits):
        lm("ab")


def test_an_error_inside_a_recording_is_raised_and_ends_the_recording():
    lm = tiny_lm()
    with pytest.raises(ZeroDivisionError), lm.record("misspelt"), lm.patch({"wrong": 0}):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="is longer than max_seq_len=16"), lm.record("misspelt"):
        lm(random_ids(1, 17))
    assert lm.taps == []


def test_recorded_activations_changed_in_place_are_an_error():
    lm = tiny_lm()
    lm.decoder.layers.insert(1, nn.ReLU(inplace=True))
    with torch.no_grad(), lm.record("resid_post") as seen:
        lm("ab")
    with pytest.raises(ValueError, match=r"layers\.0\.resid_post was changed in place after it was recorded"):
        seen["layers.0.resid_post"]
    assert (seen["layers.1.resid_post"] >= 0).all()


def test_copies_of_a_model_are_neither_recorded_nor_patched():
    lm, ids = tiny_lm(), random_ids(2, 5)
    plain = lm(ids)
    with lm.patch({"z": lambda z: 0 * z}), lm.record("z") as seen:
        patched = lm(ids)
        recorded = seen["layers.0.z"]
        for twin in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm))):  # noqa: S301 -- our own bytes
            assert twin.taps == []
            assert torch.equal(twin(ids), plain)
            assert seen["layers.0.z"] is recorded
            with twin.record("z") as twins:
                twin(ids)
            assert len(twins) == 2
        assert torch.equal(lm(ids), patched)


def test_activation_names_does_not_disturb_recordings():
    lm, ids = tiny_lm(dropout=0.5).train(), random_ids(2, 5)
    with lm.record("layers.0.z") as seen, lm.patch({"layers.0.resid_pre": torch.ones(2, 5, 16)}):
        lm(ids)
        before, state = seen["layers.0.z"], torch.get_rng_state()
        assert len(lm.activation_names()) == 2 * 14 + 3
        assert seen["layers.0.z"] is before
        assert torch.equal(torch.get_rng_state(), state)
        assert len(lm.taps) == 2


@pytest.mark.slow
def test_a_compiled_model_is_recorded_uncompiled():
    lm, ids = tiny_lm(dtype=torch.float32), random_ids(2, 9)
    plain = lm(ids)
    with lm.record() as expected:
        lm(ids)
    lm.compile()
    assert_close(lm(ids), plain)
    compiled = lm._compiled_call_impl
    with lm.record() as seen:
        lm(ids)
        with lm.patch({"layers.0.z": 0}):
            patched = lm(ids)
    assert list(seen) == list(expected)
    assert lm._compiled_call_impl is compiled
    assert not torch.allclose(patched, plain)
    with lm.record() as seen:
        assert torch.equal(lm(ids), plain)
    for name in expected:
        assert torch.equal(seen[name], expected[name])
    wrapped = torch.compile(lm)  # another module: it is compiled once more, with those who look
    with lm.record("z", "logits") as seen:
        wrapped(ids)
    for name in seen:
        assert_close(seen[name], expected[name])
