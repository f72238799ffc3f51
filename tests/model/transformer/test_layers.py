"""The layers equal torch's, and no layer shows a position its future."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from model.context import Context
from model.recording import Recording
from model.transformer.attention import Attention
from model.transformer.embeddings import Rotary, Sinusoidal
from model.transformer.transformer import Transformer
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import ATTENTIVE, COMBINATIONS, KINDS, perturb, random_ids, tiny_lm, tiny_params


@pytest.mark.parametrize(("kind", "positions"), COMBINATIONS)
@settings(deadline=None, max_examples=6)
@given(st.data())
def test_no_position_sees_the_future_by_value(kind, positions, data):
    T = data.draw(st.integers(2, 16))
    cut = data.draw(st.integers(1, T - 1))
    lm = tiny_lm(layer_architecture=kind, positions=positions, seed=data.draw(st.integers(0, 3)))
    a, b = random_ids(2, T, seed=1), random_ids(2, T, seed=2)
    b[:, :cut] = a[:, :cut]
    b[:, cut] = (a[:, cut] + 1) % 30
    assert_close(lm(a)[:, :cut], lm(b)[:, :cut])
    assert not torch.allclose(lm(a)[:, cut], lm(b)[:, cut])


@pytest.mark.parametrize("fields", [{}, {"norm_position": "post"}, {"attention": "fused"}], ids=str)
@pytest.mark.parametrize(("kind", "positions"), COMBINATIONS)
def test_no_position_sees_the_future_by_gradient(kind, positions, fields):
    lm = tiny_lm(layer_architecture=kind, positions=positions, **fields).train()
    ids = random_ids(2, 5)
    for position in range(5):
        x = lm.embed(ids).detach().requires_grad_()
        # Squared, because the sum over a LayerNorm's outputs has no gradient of its own.
        lm.unembed(lm.decoder(x, Context(ids)))[:, position].pow(2).sum().backward()
        assert (x.grad[:, : position + 1].abs().amax(dim=-1) > 1e-9).all()
        assert (x.grad[:, position + 1 :] == 0).all()


@pytest.mark.parametrize("kind", ATTENTIVE)
@pytest.mark.parametrize("training", [False, True])
def test_attention_patterns_are_causal_distributions(kind, training):
    lm = tiny_lm(layer_architecture=kind, dropout=0.5, n_layers=3).train(training)
    attns = lm(random_ids(4, 9), get_attns=True)["attns"]
    assert attns.shape == (4, 3, 2, 9, 9)
    assert_close(attns.sum(dim=-1), torch.ones(4, 3, 2, 9, dtype=torch.float64))
    assert (attns.triu(1) == 0).all()
    assert (attns[..., 8, :] > 0).all()


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_recording_changes_no_logits_of_any_layer_kind(kind):
    lm = tiny_lm(layer_architecture=kind, dropout=0.5).train()
    results = []
    for get_attns in (False, True, False):
        torch.manual_seed(0)
        result = lm(random_ids(4, 9), get_embeddings=True, get_attns=get_attns)
        results.append(result["logits"])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert all(module.training for module in lm.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_recording_no_activation_name_is_built(kind, monkeypatch):
    monkeypatch.setattr(Context, "named", None)
    assert tiny_lm(layer_architecture=kind)("abc").isfinite().all()


def test_a_pattern_that_cannot_be_patched_is_not_patched_in_silence():
    lm = tiny_lm(layer_architecture="torch-transformer")
    with pytest.raises(ValueError, match="not patched"), lm.patch({"layers.1.pattern": 0.5}):
        lm("abc")


def torch_twin(ours: TransformerEncoderLayer, activation: str) -> nn.TransformerEncoderLayer:
    """torch's layer with the weights of ours."""
    params = ours.model_params
    pre = params.norm_position == "pre"
    twin = nn.TransformerEncoderLayer(
        params.dim,
        params.n_heads,
        4 * params.dim,
        0.0,
        activation,
        batch_first=True,
        norm_first=pre,
        bias=params.bias,
    )
    place = "before" if pre else "after"
    names = {
        "mixer.qkv.": "self_attn.in_proj_",
        "mixer.out.": "self_attn.out_proj.",
        f"norm1.{place}.": "norm1.",
        f"norm2.{place}.": "norm2.",
    }
    weights = {}
    for name, weight in ours.state_dict().items():
        for our_name, their_name in names.items():
            name = name.replace(our_name, their_name)
        weights[name] = weight
    twin.double().load_state_dict(weights)
    return twin


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("training", [False, True])
def test_our_layer_is_torchs(norm_position, activation, training, bias):
    torch.manual_seed(0)
    params = tiny_params(norm_position=norm_position, activation=activation, bias=bias)
    ours = TransformerEncoderLayer(params, dropout=0.0).double()
    perturb(ours)
    twin = torch_twin(ours, activation)
    ours.train(training), twin.train(training)
    x = torch.randn(3, 11, 16, dtype=torch.float64)
    future = torch.ones(11, 11, dtype=torch.bool).triu(1)
    y = ours(x, Context(random_ids(3, 11)))
    expected = twin(x, src_mask=future, is_causal=True)
    assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    assert_close(ours.linear1.weight.grad, twin.linear1.weight.grad)
    assert_close(ours.mixer.qkv.weight.grad, twin.self_attn.in_proj_weight.grad)


def test_torch_transformer_is_its_twin_in_values_and_patterns():
    theirs = tiny_lm(layer_architecture="torch-transformer")
    ours = tiny_lm(layer_architecture="custom-transformer")
    for our_layer, their_layer in zip(ours.decoder.layers, theirs.decoder.layers, strict=True):
        their_layer.block.load_state_dict(torch_twin(our_layer, "gelu").state_dict())
    for module in ("embed", "unembed"):
        getattr(theirs, module).load_state_dict(getattr(ours, module).state_dict())
    theirs.decoder.norm.load_state_dict(ours.decoder.norm.state_dict())
    a, b = (lm(random_ids(2, 8), get_attns=True) for lm in (ours, theirs))
    assert_close(a["logits"], b["logits"])
    assert_close(a["attns"], b["attns"])


@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_separate_heads_equal_merged_ones(positions):
    torch.manual_seed(0)
    merged = Attention(tiny_params(positions=positions), 0.0).double()
    perturb(merged)
    separate = Attention(tiny_params(positions=positions, separate_heads=True), 0.0).double()
    heads = [*separate.qkv.q, *separate.qkv.k, *separate.qkv.v]
    assert len(heads) == 3 * 2
    with torch.no_grad():
        for i, head in enumerate(heads):  # 8 rows each, queries of both heads first
            head.weight.copy_(merged.qkv.weight[8 * i : 8 * i + 8])
            head.bias.copy_(merged.qkv.bias[8 * i : 8 * i + 8])
    separate.out.load_state_dict(merged.out.state_dict())
    x, ids = torch.randn(2, 5, 16, dtype=torch.float64), random_ids(2, 5)
    assert_close(separate(x, Context(ids)), merged(x, Context(ids)))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_fused_equals_explicit_in_values_and_gradients(positions):
    explicit = tiny_lm(positions=positions).train()
    fused = tiny_lm(positions=positions, attention="fused").train()
    ids = random_ids(3, 12)
    for lm in (explicit, fused):
        lm(ids).pow(2).sum().backward()
    assert_close(fused(ids), explicit(ids))
    for a, b in zip(fused.parameters(), explicit.parameters(), strict=True):
        assert_close(a.grad, b.grad)


def test_fused_attention_steps_aside_for_patterns_and_attn_requests(monkeypatch):
    lm = tiny_lm(attention="fused")
    calls = []
    monkeypatch.setattr(Attention, "attend", lambda self, q, k, v, ctx: calls.append(ctx.attn_requests) or q)
    lm("ab")
    assert calls == []
    lm("ab", attn_requests=False)
    assert calls == [False, False]
    calls.clear()
    with pytest.raises(ValueError, match="pattern"):  # nothing recorded by the stand-in above
        lm("ab", get_attns=True)
    assert calls == [None, None]


def test_attention_dropout_hits_the_used_pattern_and_not_the_recorded_one():
    attention = Attention(tiny_params(), dropout=0.5).double().train()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    seen = Recording(["pattern", "z", "v"])
    ids = random_ids(2, 9)
    attention(x, Context(ids, taps=[seen]))
    assert not torch.allclose(seen["pattern"] @ seen["v"], seen["z"])
    attention.eval()(x, Context(ids, taps=[seen]))
    assert_close(seen["pattern"] @ seen["v"], seen["z"])


@pytest.mark.parametrize(("kind", "torch_class"), [("torch-lstm", nn.LSTM), ("torch-gru", nn.GRU)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_stack_of_rnn_layers_is_torchs_rnn_of_many_layers(kind, torch_class, bias):
    torch.manual_seed(0)
    params = tiny_params(layer_architecture=kind, n_layers=3, norm_position="post", bias=bias)
    stack = Transformer(params).double()
    perturb(stack)
    whole = torch_class(16, 16, num_layers=3, batch_first=True, bias=bias).double()
    with torch.no_grad():
        for i, layer in enumerate(stack.layers):
            for name, weight in layer.rnn.named_parameters():
                whole.get_parameter(name.replace("l0", f"l{i}")).copy_(weight)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    assert_close(stack(x, Context(random_ids(2, 7))), whole(x)[0])


def test_rotary_scores_depend_on_distance_only_and_match_complex_numbers():
    rotary = Rotary(tiny_params(dim=16, n_heads=2, max_seq_len=64, rotary_base=100.0))
    q, k = torch.randn(2, 8, dtype=torch.float64).unbind()
    turned_q, turned_k = (rotary(x.expand(1, 1, 64, 8))[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in (0, 1, 5, 30):
        along = scores.diagonal(-distance)
        assert_close(along, along[:1].expand_as(along), rtol=1e-5, atol=1e-5)
    assert not torch.isclose(scores[1, 0], scores[2, 0], atol=1e-3)
    # Coordinates i and i + 4 are one complex number, turned by position * base^(-i / 4).
    number = torch.complex(q[:4], q[4:])
    angle = 13 * 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = number * torch.polar(torch.ones(4, dtype=torch.float64), angle)
    assert_close(turned_q[13], torch.cat([expected.real, expected.imag]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [6, 7])
def test_sinusoidal_table_is_the_papers_formula(dim):
    table = Sinusoidal(tiny_params(dim=dim, n_heads=1, positions="sin"))(torch.zeros(1, 16, dim))[0]
    for position in (0, 1, 15):
        for i in range(dim):
            angle = position / 10_000 ** (2 * (i // 2) / dim)
            wave = math.cos(angle) if i % 2 else math.sin(angle)
            assert table[position, i].item() == pytest.approx(wave * 0.2 * math.sqrt(2 / dim), abs=1e-6)


def test_any_module_may_stand_in_the_list_of_layers():
    lm = tiny_lm(n_layers=3)
    plain = lm(random_ids(2, 6), get_embeddings=True)["embeddings"]
    lm.decoder.layers.insert(1, nn.ReLU())
    result = lm(random_ids(2, 6), get_embeddings=True, get_attns=True)
    assert result["embeddings"].shape == (2, 4, 6, 16)
    assert result["attns"].shape == (2, 3, 2, 6, 6)
    assert_close(result["embeddings"][:, 0], plain[:, 0])
    assert_close(result["embeddings"][:, 1], plain[:, 0].relu())
    assert not torch.allclose(result["embeddings"][:, 2], plain[:, 1])


def test_a_layer_finds_the_ids_and_the_requests_in_its_context(monkeypatch):
    seen = []
    block = TransformerEncoderLayer._ff_block
    monkeypatch.setattr(
        TransformerEncoderLayer,
        "_ff_block",
        lambda self, x, ctx: (
            seen.append((ctx.ids_BT.tolist(), ctx.attn_requests, ctx.layer)) or block(self, x, ctx)
        ),
    )
    tiny_lm()([1, 10, 7], attn_requests="please")
    assert seen == [([[1, 10, 7]], "please", 0), ([[1, 10, 7]], "please", 1)]


def test_biases_can_be_left_out():
    lm = tiny_lm(bias=False)
    assert not [name for name, _ in lm.named_parameters() if name.endswith("bias")]
