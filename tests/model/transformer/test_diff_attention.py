"""Differential attention equals that of transformers and the paper's equations, and stays the same in width under muP."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import DiffLlamaConfig
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaRotaryEmbedding

from model.context import Context
from model.lm import LM
from model.transformer.attention import Attention
from model.transformer.diff_attention import lambda_init
from tests.model.tiny import CharTokenizer, default_dtype, perturb, random_ids, tiny_lm, tiny_params

T, K = 7, 4
FIELDS = {"n_heads": 4, "norm": "rmsnorm", "positions": "rotary", "bias": False, "diff_attention": True}


def mixer_of_layer(i: int, **fields) -> Attention:
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        mixer = Attention(tiny_params(**FIELDS | fields).at(i), 0.0)
    perturb(mixer)
    return mixer


def test_it_is_that_of_transformers():
    mixer = mixer_of_layer(3, n_kv_heads=2)
    config = DiffLlamaConfig(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=10_000.0
    )
    config._attn_implementation = "eager"
    theirs, rotary = DiffLlamaAttention(config, layer_idx=3).double(), DiffLlamaRotaryEmbedding(config)
    q, k, v = mixer.qkv.weight.split([16, 8, 8])
    # Their output map takes the pairs in turn, each with both halves.
    out = mixer.out.weight.unflatten(1, (2, 2, K)).transpose(1, 2).flatten(1)
    part = mixer.sink
    weights = {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": out}
    weights |= {
        "lambda_q1": part.q1_K,
        "lambda_k1": part.k1_K,
        "lambda_q2": part.q2_K,
        "lambda_k2": part.k2_K,
    }
    theirs.load_state_dict(weights)
    torch.nn.init.ones_(mixer.gate.norm.weight)  # theirs has none
    x_BTD = torch.randn(2, T, 16, dtype=torch.float64)
    angles = rotary(x_BTD, torch.arange(T)[None])
    future = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = theirs(x_BTD, tuple(x.double() for x in angles), future)
    # They compute lambda and rotations in float32.
    assert_close(mixer(x_BTD, Context(random_ids(2, T))), expected, rtol=1e-5, atol=1e-6)


def test_it_is_the_papers_equation():
    mixer, x_TD = mixer_of_layer(1, positions="none"), torch.randn(T, 16, dtype=torch.float64)
    q, k, v = (x_TC.unflatten(1, (4, K)) for x_TC in mixer.qkv(x_TD).split(16, dim=1))
    part, initial = mixer.sink, 0.8 - 0.6 * math.exp(-0.3 * (2 - 1))  # layers count from 1
    lam = (part.q1_K @ part.k1_K).exp() - (part.q2_K @ part.k2_K).exp() + initial
    rows = []
    for t in range(T):
        both = []
        for a, b in ((0, 2), (1, 3)):
            first, second = (torch.softmax(k[: t + 1, h] @ q[t, h] / math.sqrt(K), dim=0) for h in (a, b))
            y = (first - lam * second) @ torch.cat([v[: t + 1, a], v[: t + 1, b]], dim=1)
            y = y / (y.square().mean() + 1e-5).sqrt() * mixer.gate.norm.weight * (1 - initial)
            both.append(y)
        rows.append(torch.cat([both[0][:K], both[1][:K], both[0][K:], both[1][K:]]))
    expected = torch.stack(rows) @ mixer.out.weight.T
    assert_close(mixer(x_TD[None], Context(random_ids(1, T)))[0], expected, rtol=1e-10, atol=1e-10)


def test_recorded_patterns_are_the_differences():
    lm = tiny_lm(**FIELDS)
    attns = lm("abcd", get_attns=True)["attns"]
    assert attns.shape == (1, 2, 4, 5, 5)
    assert torch.equal(attns[:, :, :2], attns[:, :, 2:])
    lambdas = torch.stack([layer.mixer.sink.weight() for layer in lm.decoder.layers])
    assert_close(attns.sum(dim=-1), (1 - lambdas)[None, :, None, None].expand(1, 2, 4, 5))


def test_lambda_begins_at_the_papers_value():
    params = tiny_params(**FIELDS, n_layers=3)
    assert [round(lambda_init(params.at(i)), 4) for i in range(3)] == [0.2, 0.3555, 0.4707]
    lm = LM(params, CharTokenizer())
    for i, layer in enumerate(lm.decoder.layers):
        assert layer.mixer.sink.weight().item() == pytest.approx(lambda_init(params.at(i)), abs=0.1)


def test_lambda_divides_its_products_by_the_width_of_a_head_in_mup():
    part = mixer_of_layer(0, parametrization="mup", mup_base_dim=4, mup_base_heads=2).sink
    first, second = (part.q1_K @ part.k1_K).exp(), (part.q2_K @ part.k2_K).exp()
    assert part.weight().item() != pytest.approx((first - second + 0.2).item())
    # A head has 4 numbers, and 2 in the base.
    assert part.weight().item() == pytest.approx((first.sqrt() - second.sqrt() + 0.2).item())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"n_heads": 1},
            "diff_attention=True makes pairs of heads, so n_heads=1 and n_kv_heads=1 must be even",
        ),
        ({"n_kv_heads": 1}, "n_heads=2 and n_kv_heads=1 must be even"),
        ({"attention": "fused"}, "cannot apply diff_attention=True"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_params(diff_attention=True, **fields)
