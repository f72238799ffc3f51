"""Every field of the architecture against a layer written out by hand, position by position, in float64."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.models.t5.modeling_t5 import T5Attention

from model.context import Context
from model.model_params import ModelParams
from model.transformer.attention import Attention
from model.transformer.convolution import Canon
from model.transformer.embeddings import slopes_of
from model.transformer.norms import NormOfAllHeads
from model.transformer.residual import omegas_by_residual
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import (
    POSITIONS,
    architectures,
    default_dtype,
    perturb,
    perturbed_lm,
    random_ids,
    tiny_lm,
    tiny_params,
)
from tests.model.transformer.test_experts import experts_by_hand

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def norm_by_hand(norm: nn.Module, x_D: Tensor, eps: float) -> Tensor:
    if isinstance(norm, nn.LayerNorm):
        centered = x_D - x_D.mean()
        normed = centered / (centered.square().mean() + eps).sqrt()
        normed = normed if norm.weight is None else normed * norm.weight
        return normed if norm.bias is None else normed + norm.bias
    normed = x_D / (x_D.square().mean() + eps).sqrt()
    return normed if norm.weight is None else normed * norm.weight


def turned(x_K: Tensor, position: float, n: int, base: float) -> Tensor:
    """The first n numbers as n / 2 complex ones, real parts first, each turned by an angle of its own."""
    number = torch.complex(x_K[: n // 2], x_K[n // 2 : n])
    angle = position * base ** (-torch.arange(n // 2, dtype=x_K.dtype) / (n // 2))
    number = number * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([number.real, number.imag, x_K[n:]])


def mixed_by_hand(canon: nn.Module, x_TC: Tensor) -> Tensor:
    """Add to each position a weighted sum of itself and the ones before it. The last weight is its own."""
    if not isinstance(canon, Canon):
        return x_TC
    w_WC = canon.weight_WC.flip(0)
    return torch.stack(
        [x_TC[t] + sum(w_WC[i] * x_TC[t - i] for i in range(min(len(w_WC), t + 1))) for t in range(len(x_TC))]
    )


def maps_by_hand(mixer: Attention, x_TD: Tensor, ids_T: Tensor) -> tuple[list[Tensor], ...]:
    """Queries, keys and values of every head, [T, K] each."""
    p = mixer.model_params
    if p.separate_heads:
        every = torch.cat([head(x_TD) for name in "qkv" for head in getattr(mixer.qkv, name)], dim=-1)
    else:
        every = mixer.qkv(x_TD)
    heads = mixed_by_hand(mixer.canon_b, every).split(p.head_dim or p.dim // p.n_heads, dim=-1)
    n, m = p.n_heads, p.n_kv_heads or p.n_heads
    values = list(heads[n + m :])
    if p.value_embeddings:
        embedded = mixer.value_embedding.table.weight[ids_T].chunk(m, dim=-1)
        values = [v + e for v, e in zip(values, embedded, strict=True)]
    if p.value_residual:  # this layer alone is its own first one
        values = [v * mixer.value_residual.lambdas.sum() for v in values]
    return list(heads[:n]), list(heads[n : n + m]), values


def normed_together(norm: nn.Module, heads: list[Tensor]) -> list[Tensor]:
    """Each head, [T, K], after a norm over all heads of a position, if there is one."""
    if not isinstance(norm, NormOfAllHeads):
        return heads
    rows = [
        norm_by_hand(norm.norm, torch.cat(of_position), norm.norm.eps)
        for of_position in zip(*heads, strict=True)
    ]
    return list(torch.stack(rows).chunk(len(heads), dim=-1))


def attention_by_hand(mixer: Attention, canon_a: nn.Module, x_TD: Tensor, ids_T: Tensor) -> Tensor:
    """Compute attention one query at a time, over the keys that it may see."""
    p, x_TD = mixer.model_params, mixed_by_hand(canon_a, x_TD)
    T, K = len(x_TD), p.head_dim or p.dim // p.n_heads
    queries, keys, values = maps_by_hand(mixer, x_TD, ids_T)
    queries, keys = normed_together(mixer.q_norm, queries), normed_together(mixer.k_norm, keys)
    out = torch.zeros(T, p.n_heads * K, dtype=x_TD.dtype)
    for h, q_TK in enumerate(queries):
        own = h // (p.n_heads // len(keys))
        for t in range(T):
            q, scores, seen = q_TK[t], [], []
            for s in range(t + 1 if p.causal else T):
                k = keys[own][s]
                if not may_see(p, h, abs(t - s)):
                    continue
                if p.qk_norm is True:
                    q, k = (
                        norm_by_hand(mixer.q_norm, q_TK[t], p.norm_eps),
                        norm_by_hand(mixer.k_norm, k, p.norm_eps),
                    )
                if p.positions == "rotary":
                    n = int(K * p.rotary_frac)
                    step = 1 if p.rotary_scaling is None else 0.5
                    a, b = turned(q, t * step, n, p.rotary_base), turned(k, s * step, n, p.rotary_base)
                else:
                    a, b = q, k
                K0 = p.mup_base_dim / p.n_heads
                scale = 1 / math.sqrt(K) if p.parametrization == "standard" else math.sqrt(K0) / K
                score = p.mup_attn_mult * scale * (a @ b)
                if p.attn_softcap is not None:
                    score = p.attn_softcap * (1 - 2 / (1 + (2 * score / p.attn_softcap).exp()))  # tanh
                scores.append(score + bias_by_hand(mixer, h, s - t))
                seen.append(values[own][s])
            if p.attn_sink is not None:
                scores.append(
                    mixer.sink.sink_H[h] if p.attn_sink == "learned" else torch.zeros_like(scores[0])
                )
            pattern = torch.stack(scores).softmax(dim=0)[: len(seen)]
            out[t, h * K : h * K + K] = sum(w * v for w, v in zip(pattern, seen, strict=True))
    return mixer.out(gated_by_hand(mixer, out, x_TD))


def may_see(p: ModelParams, h: int, distance: int) -> bool:
    if p.positions == "hard-alibi" and h < p.n_heads // 2 and distance > h + 1:
        return False
    return p.sliding_window is None or distance < p.sliding_window


def bias_by_hand(mixer: Attention, h: int, offset: int) -> Tensor | float:
    p = mixer.model_params
    if p.positions == "alibi":
        return -slopes_of(p.n_heads)[h] * abs(offset)
    if p.positions == "t5":
        bucket = T5Attention._relative_position_bucket(torch.tensor([[offset]]), bidirectional=not p.causal)
        return mixer.on_scores.positions.bias_NH[bucket.item(), h]
    return 0.0


def gated_by_hand(mixer: Attention, out_TN: Tensor, x_TD: Tensor) -> Tensor:
    """Multiply by sigmoids of a linear map, with one number for each head or for each number of a head."""
    p = mixer.model_params
    if p.attn_gate is None:
        return out_TN
    shrunk = 1.0 if p.parametrization == "standard" or p.attn_gate == "element" else p.mup_base_dim / p.dim
    linear_map = mixer.gate.gate.map if p.attn_gate == "head" else mixer.gate.gate
    gate = 1 / (1 + (-linear_map(x_TD * shrunk)).exp())
    return out_TN * gate.repeat_interleave(out_TN.shape[1] // gate.shape[1], dim=1)


def ff_by_hand(layer: TransformerEncoderLayer, x_TD: Tensor) -> Tensor:
    if layer.model_params.n_experts:
        return experts_by_hand(layer.experts, mixed_by_hand(layer.canon_c, x_TD))
    x_TD = mixed_by_hand(layer.canon_c, x_TD)
    a = mixed_by_hand(layer.canon_d, layer.linear1(x_TD))
    is_clamped = layer.model_params.gated == "clamped"
    a = a.clamp(max=7) if is_clamped else a
    a = {
        "relu": lambda: a.clamp(min=0),
        "gelu": lambda: a * (1 + torch.erf(a / math.sqrt(2))) / 2,
        "gelu_tanh": lambda: a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))) / 2,
        "relu2": lambda: a.clamp(min=0) ** 2,
        "silu": lambda: a / (1 + torch.exp(-a)),
        "quick_gelu": lambda: a / (1 + torch.exp(-1.702 * a)),
    }[layer.model_params.activation]()
    if layer.model_params.gated:
        b = mixed_by_hand(layer.canon_d2, layer.linear_up(x_TD))
        a = a * (b.clamp(-7, 7) + 1 if is_clamped else b)
    return layer.linear2(a)


def layer_by_hand(layer: TransformerEncoderLayer, x_TD: Tensor, ids_T: Tensor) -> Tensor:
    p = layer.model_params

    def normed(norm: nn.Module, x_TD: Tensor) -> Tensor:
        return torch.stack([norm_by_hand(norm, x_D, p.norm_eps) for x_D in x_TD])

    def added(norms, block, x_TD: Tensor) -> Tensor:
        if p.norm_position in ("none", "post"):
            return block(x_TD)
        out = block(x_TD if p.norm_position == "inside" else normed(norms.before, x_TD))
        return normed(norms.inside, out) if p.norm_position in ("sandwich", "inside") else out

    def summed(residual, x_TD: Tensor, f_TD: Tensor) -> Tensor:
        if p.residual == "plain":
            return x_TD + (f_TD / p.depth if p.parametrization == "completep" else f_TD)
        if p.residual in ("rezero", "layerscale"):
            return x_TD + residual.gain * f_TD
        return x_TD * residual.omega + f_TD

    def after(norms, x_TD: Tensor) -> Tensor:
        return normed(norms.after, x_TD) if p.norm_position == "post" else x_TD

    attended = added(
        layer.norm1, lambda x_TD: attention_by_hand(layer.mixer, layer.canon_a, x_TD, ids_T), x_TD
    )
    middle = after(layer.norm1, summed(layer.residual_sa, x_TD, attended))
    if p.dim_ff == 0:
        return middle
    norm2 = layer.norm1 if p.parallel_blocks == "one-norm" else layer.norm2
    ff = added(norm2, lambda x_TD: ff_by_hand(layer, x_TD), x_TD if p.parallel_blocks else middle)
    return after(layer.norm2, summed(layer.residual_ff, middle, ff))


def perturbed_layer(params) -> TransformerEncoderLayer:
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        layer = TransformerEncoderLayer(params, dropout=0.0)
    perturb(layer)
    for omega in omegas_by_residual(layer).values():
        omega.data.add_(0.5)
    return layer


# Differential attention has tests of its own.
OUR_LAYER = architectures(layer_architecture="custom-transformer", n_layers=3, diff_attention=False)


def check_by_hand(params: ModelParams, T: int) -> None:
    layer, ids_BT = perturbed_layer(params.at(1, n_tokens=30)), random_ids(2, T)
    x_BTD = torch.randn(2, T, params.dim, dtype=torch.float64)
    expected = torch.stack([layer_by_hand(layer, *row) for row in zip(x_BTD, ids_BT, strict=True)])
    assert_close(layer(x_BTD, Context(ids_BT)), expected, **EXACT)


@settings(deadline=None, max_examples=40)
@given(OUR_LAYER, st.integers(1, 7))
def test_a_layer_equals_one_written_by_hand(params, T):
    check_by_hand(params, T)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(OUR_LAYER, st.integers(1, 16))
def test_many_layers_equal_those_written_by_hand(params, T):
    check_by_hand(params, T)


@pytest.mark.parametrize(
    ("n_heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (16, [i / 2 for i in range(1, 17)]),
        (3, [4, 8, 2]),  # those of 2, then the first of 4
        (6, [2, 4, 6, 8, 1, 3]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_of_alibi_are_the_papers(n_heads, exponents):
    assert slopes_of(n_heads) == [2**-exponent for exponent in exponents]


@settings(deadline=None, max_examples=30)
@given(OUR_LAYER, st.integers(1, 12))
def test_fused_equals_explicit_in_values_and_gradients(params, T):
    if params.norm_position == "none":
        # Activations reach 1e13. Gradients of scores then cancel exactly, or up to a large rounding error in torch's kernel.
        params = replace(params, norm_position="pre")
    params = replace(params, attn_softcap=None, attn_sink=None)  # which the kernel refuses
    results = []
    for attention in ("explicit", "fused"):
        lm = perturbed_lm(replace(params, attention=attention)).train()
        z = lm(random_ids(2, T))
        z.pow(2).mean().backward()
        results.append(([z], [p.grad for p in lm.parameters()]))
    for explicit, fused in zip(*results, strict=True):
        rounding = 1e-8 * max(x.abs().max().item() for x in explicit)
        for a, b in zip(explicit, fused, strict=True):
            assert_close(a, b, rtol=0.0, atol=rounding)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 3])
@pytest.mark.parametrize(
    "fields", [{}, {"positions": "rotary"}, {"attention": "fused"}, {"qk_norm": True}], ids=str
)
def test_shared_keys_and_values_are_repeated_weights(n_kv_heads, fields):
    params = tiny_params(dim=24, n_heads=6, n_kv_heads=n_kv_heads, **fields)
    grouped = perturbed_layer(params).mixer
    full = perturbed_layer(replace(params, n_kv_heads=None)).mixer
    assert grouped.qkv.weight.shape == (24 + 2 * 4 * n_kv_heads, 24)

    def repeated(rows: Tensor) -> Tensor:
        q, k, v = rows.split([24, 4 * n_kv_heads, 4 * n_kv_heads])
        per_query = [
            x.unflatten(0, (n_kv_heads, 4)).repeat_interleave(6 // n_kv_heads, dim=0) for x in (k, v)
        ]
        return torch.cat([q, *(x.flatten(0, 1) for x in per_query)])

    weights = grouped.state_dict()
    weights |= {name: repeated(weights[name]) for name in ("qkv.weight", "qkv.bias")}
    full.load_state_dict(weights)
    x, ids = torch.randn(2, 9, 24, dtype=torch.float64), random_ids(2, 9)
    assert_close(grouped(x, Context(ids)), full(x, Context(ids)), **EXACT)


def test_a_window_hides_what_is_further_back_and_adds_up_over_layers():
    lm = tiny_lm(sliding_window=3, n_layers=2, positions="none")
    a = random_ids(1, 12)
    b = a.clone()
    b[0, 4] = (a[0, 4] + 1) % 30
    differs = (lm(a) != lm(b))[0].any(dim=-1)
    assert differs.tolist() == [4 <= t <= 8 for t in range(12)]  # two positions further with each layer
    pattern = lm(a, get_attns=True)["attns"]
    assert ((pattern > 0) == torch.ones(12, 12, dtype=torch.bool).tril().triu(-2)).all()


PARTS = {
    "qkv": {"mixer.qkv.bias"},
    "out": {"mixer.out.bias"},
    "ff": {"linear1.bias", "linear_up.bias", "linear2.bias"},
    "norm": {f"{norm}.{place}.bias" for norm in ("norm1", "norm2") for place in ("before", "inside")},
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_a_layer_may_have_biases_of_its_own(bias, part):
    own = not bias
    per_part = {
        "qkv": {"bias_qkv": own},
        "out": {"bias_out": own},
        "ff": {"bias_ff": own},
        "norm": {"bias_norm": own},
    }[part]
    params = tiny_params(bias=bias, gated=True, norm_position="sandwich", **per_part)
    names = {
        name for name, _ in TransformerEncoderLayer(params, 0.0).named_parameters() if name.endswith("bias")
    }
    everything = set().union(*PARTS.values())
    assert names == (everything - PARTS[part] if bias else PARTS[part])


def test_without_a_feed_forward_block_there_are_no_parameters_of_one():
    with_ff, without = (TransformerEncoderLayer(tiny_params(dim_ff=width), 0.0) for width in (20, 0))
    gone = {name for name, _ in with_ff.named_parameters()} - {name for name, _ in without.named_parameters()}
    assert {name.split(".")[0] for name in gone} == {"norm2", "linear1", "linear2"}


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_matter_unless_there_are_none(positions):
    lm = tiny_lm(positions=positions, n_layers=1)
    after_ab, after_ba = lm([1, 5, 6, 7])[0, -1], lm([1, 6, 5, 7])[0, -1]
    assert torch.allclose(after_ab, after_ba) == (positions == "none")
