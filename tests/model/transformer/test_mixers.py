"""Mixers in place of attention: each equals its recurrence written out step by step, and is safe in low precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from model.context import Cache, Context
from model.lm import LM
from model.transformer.mixers import GatedConv, LinearAttention
from tests.model.tiny import (
    KINDS,
    MIXERS,
    CharTokenizer,
    batch_of,
    default_dtype,
    perturb,
    random_ids,
    tiny_lm,
    tiny_params,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def conv_step(weight_WC: Tensor, inputs: list[Tensor]) -> Tensor:
    """The newest input times the last row, the one before it times the row before ..."""
    return sum(row * x for row, x in zip(reversed(weight_WC), reversed(inputs), strict=False))


def gated_conv_by_hand(mixer: GatedConv, x_TD: Tensor) -> Tensor:
    seen, out = [], []
    for x_D in x_TD:
        b, c, x = mixer.bcx(x_D).chunk(3)
        seen.append(b * x)
        out.append(mixer.out(c * conv_step(mixer.conv.weight_WC, seen)))
    return torch.stack(out)


def linear_attention_by_hand(mixer: LinearAttention, x_TD: Tensor) -> Tensor:
    """Equations 18 to 20 of the paper: s += phi(k) v', z += phi(k), y = phi(q) s / phi(q) z."""
    K = x_TD.shape[1] // mixer.n_heads
    s, z, out = {}, {}, []
    for x_D in x_TD:
        q_D, k_D, v_D = mixer.qkv(x_D).chunk(3)
        y_D = torch.zeros_like(x_D)
        for h in range(mixer.n_heads):
            own = slice(h * K, h * K + K)
            q, k = (torch.where(a > 0, a + 1, a.exp()) for a in (q_D[own], k_D[own]))
            s[h] = s.get(h, 0) + torch.outer(k, v_D[own])
            z[h] = z.get(h, 0) + k
            y_D[own] = q @ s[h] / (q @ z[h])
        out.append(mixer.out(y_D))
    return torch.stack(out)


BY_HAND = {
    GatedConv: gated_conv_by_hand,
    LinearAttention: linear_attention_by_hand,
}


@pytest.mark.parametrize("make", BY_HAND)
@pytest.mark.parametrize(
    "fields",
    [{}, {"n_heads": 1}, {"bias": False}, {"bias_qkv": False, "conv_width": 1}, {"conv_width": 3}],
    ids=str,
)
def test_a_mixer_is_its_recurrence(make, fields):
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        mixer = make(tiny_params(n_heads=fields.pop("n_heads", 4), **fields), 0.0)
    perturb(mixer)
    x_BTD = torch.randn(2, 13, 16, dtype=torch.float64, requires_grad=True)
    y_BTD = mixer(x_BTD, Context(random_ids(2, 13)))
    expected = torch.stack([BY_HAND[make](mixer, x_TD) for x_TD in x_BTD])
    assert_close(y_BTD, expected, **EXACT)
    direction = torch.randn_like(y_BTD)
    inputs = [x_BTD, *mixer.parameters()]
    for a, b in zip(
        torch.autograd.grad((y_BTD * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
        strict=True,
    ):
        assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [*KINDS, tuple(KINDS)], ids=str)
@settings(deadline=None, max_examples=4)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=6).filter(lambda chunks: sum(chunks) <= 16))
def test_mixers_with_a_cache_give_the_same_in_chunks(kind, chunks):
    lm = tiny_lm(layer_architecture=kind, n_layers=2 if isinstance(kind, str) else len(kind))
    ids, cache, parts = random_ids(3, sum(chunks)), Cache(16), []
    with torch.no_grad():
        for end in torch.tensor(chunks).cumsum(0):
            parts.append(lm(ids[:, :end], cache=cache))
        assert_close(torch.cat(parts, dim=1), lm(ids), **EXACT)


def test_a_gated_convolution_sees_as_many_positions_as_its_width():
    lm = tiny_lm(layer_architecture="gated-conv", conv_width=3, positions="none", n_layers=1)
    a = random_ids(1, 12)
    b = a.clone()
    b[0, 4] = (a[0, 4] + 1) % 30
    assert (lm(a) != lm(b))[0].any(dim=-1).tolist() == [4 <= t <= 6 for t in range(12)]


def long_lm(kind: str, dtype: torch.dtype) -> LM:
    return tiny_lm(layer_architecture=kind, n_layers=1, max_seq_len=1024).to(dtype)


@pytest.mark.parametrize("kind", MIXERS)
def test_long_inputs_are_safe_in_float32(kind):
    """As near to float64 as rounding allows, in values and gradients."""
    results = []
    for dtype in (torch.float32, torch.float64):
        lm = long_lm(kind, dtype)
        z = lm(random_ids(1, 1024))
        z.square().mean().backward()
        results.append([z, *(p.grad for p in lm.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


@pytest.mark.parametrize("kind", MIXERS)
def test_bfloat16_is_safe(kind):
    lm, exact = long_lm(kind, torch.float32), long_lm(kind, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = lm(random_ids(1, 1024))
    z.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in lm.parameters())
    expected = exact(random_ids(1, 1024))
    assert (z - expected).norm() < 0.05 * expected.norm()


def test_linear_attention_survives_features_that_vanish():
    """Far below 0 they are 0 in float32, and their sum, which divides, with them."""
    mixer = LinearAttention(tiny_params(), 0.0)
    with torch.no_grad():
        mixer.qkv.bias[:32] = -100.0
    x_BTD = torch.randn(2, 9, 16, requires_grad=True)
    y_BTD = mixer(x_BTD, Context(random_ids(2, 9)))
    y_BTD.sum().backward()
    assert y_BTD.isfinite().all()
    assert x_BTD.grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("norm_position", ["pre", "post", "sandwich", "none"])
def test_the_stream_grows_no_faster_than_under_attention(kind, norm_position):
    sizes = {}
    for each in ("custom-transformer", kind):
        torch.manual_seed(0)
        # Its outputs are normalized even without norms of the layer.
        has_own_norm = kind in ("deltanet", "mlstm") and norm_position == "none" and each != kind
        params = tiny_params(
            layer_architecture=each,
            dim=64,
            n_layers=16,
            norm_position="pre" if has_own_norm else norm_position,
        )
        with (lm := LM(params, CharTokenizer())).record("resid_post") as seen:
            lm(random_ids(4, 16))
        sizes[each] = [x.square().mean().sqrt() for x in seen.of_all_layers("resid_post")]
    for ours, attentions in zip(sizes[kind], sizes["custom-transformer"], strict=True):
        # A norm gives the outputs of these kinds size 1, as in their papers; means over positions are smaller.
        most = 2.5 if kind in ("deltanet", "mamba2", "mlstm") else 1.2
        assert 0.3 * attentions < ours < most * attentions


@pytest.mark.parametrize("kind", MIXERS)
def test_every_mixer_learns_to_repeat(kind):
    """A new word of three letters again and again: after the first one, all can be known."""
    torch.manual_seed(0)
    lm = LM(tiny_params(layer_architecture=kind, dim=32), CharTokenizer(14))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2, weight_decay=0.0)
    # Here one of two heads begins with a decay of e^-1.6, too fast to look three positions back.
    for step in range(120 if kind in ("gated-delta", "mamba2") else 60):
        ids = random_ids(16, 3, 14, seed=step).repeat(1, 4)
        loss = lm.get_losses(batch_of(ids, torch.arange(12).ge(3).expand(16, 12)), None)[0]["main"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
    assert loss < 0.1 * math.log(14)
