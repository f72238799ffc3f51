"""Latent attention equals that of transformers, and its cache holds the latent alone."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from model.context import Cache, Context
from model.lm import LM
from model.transformer.latent_attention import LatentAttention
from tests.model.tiny import CharTokenizer, default_dtype, perturb, random_ids, tiny_lm, tiny_params

H, K, A, T = 2, 8, 4, 7
EXACT = {"rtol": 1e-10, "atol": 1e-10}
FIELDS = {
    "layer_architecture": "mla",
    "positions": "rotary",
    "rotary_frac": 0.5,
    "rotary_base": 100.0,
    "norm": "rmsnorm",
    "bias": False,
    "kv_rank": 6,
}


def by_head(weight, *sizes):
    """Reorder the rows of maps side by side, each by head, so that every head has its rows of all maps together."""
    parts = weight.split([H * n for n in sizes])
    return torch.cat([part.unflatten(0, (H, -1)) for part in parts], dim=1).flatten(0, 1)


def theirs_of(mixer: LatentAttention, q_rank: int | None) -> DeepseekV3Attention:
    config = DeepseekV3Config(
        hidden_size=16,
        num_attention_heads=H,
        num_key_value_heads=H,
        kv_lora_rank=6,
        q_lora_rank=q_rank,
        qk_nope_head_dim=K,
        qk_rope_head_dim=A,
        v_head_dim=K,
        rope_interleave=False,
    )
    config._attn_implementation = "sdpa"  # the other one computes the softmax in float32
    theirs = DeepseekV3Attention(config, layer_idx=0).double()
    weights = {
        "kv_a_proj_with_mqa.weight": mixer.down.weight,
        "kv_a_layernorm.weight": mixer.kv_norm.weight,
        "kv_b_proj.weight": by_head(mixer.up.weight, K, K),
        "o_proj.weight": mixer.out.weight,
    }
    if q_rank is None:
        weights["q_proj.weight"] = mixer.queries[0].weight
    else:
        names = ("q_a_proj", "q_a_layernorm", "q_b_proj")
        weights |= {f"{name}.weight": part.weight for name, part in zip(names, mixer.queries, strict=True)}
    theirs.load_state_dict(weights)
    for name in ("kv_a_layernorm", "q_a_layernorm"):  # theirs compute in float32
        if (norm := getattr(theirs, name)) is not None:
            exact = nn.RMSNorm(norm.weight.shape[0], eps=1e-5)
            exact.weight = norm.weight
            setattr(theirs, name, exact)
    return theirs


@pytest.mark.parametrize("q_rank", [None, 5])
def test_it_is_that_of_transformers(q_rank):
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        mixer = LatentAttention(tiny_params(**FIELDS, q_rank=q_rank), 0.0)
    perturb(mixer)
    theirs = theirs_of(mixer, q_rank)
    x_BTD = torch.randn(2, T, 16, dtype=torch.float64, requires_grad=True)
    angles_TA = torch.arange(T).double()[:, None] * 100.0 ** (-torch.arange(0, A, 2).double() / A)
    angles_1TA = torch.cat([angles_TA, angles_TA], dim=1)[None]
    future = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = theirs(x_BTD, (angles_1TA.cos(), angles_1TA.sin()), future)
    y_BTD = mixer(x_BTD, Context(random_ids(2, T)))
    assert_close(y_BTD, expected, **EXACT)
    direction = torch.randn_like(y_BTD)
    [ours] = torch.autograd.grad((y_BTD * direction).sum(), x_BTD)
    [gradient] = torch.autograd.grad((expected * direction).sum(), x_BTD)
    assert_close(ours, gradient, **EXACT)


@pytest.mark.parametrize(("positions", "n"), [("none", 0), ("rotary", A)])
def test_the_cache_holds_the_latent_and_one_key_for_all_heads(positions, n):
    lm = tiny_lm(**FIELDS | {"positions": positions, "n_layers": 1})
    cache = Cache(9)
    lm(random_ids(3, 9), cache=cache)
    shapes = {name: tuple(kept.shape) for name, kept in cache.kept.items()}
    assert shapes == {"layers.0.latent": (3, 9, 6), "layers.0.k": (3, 1, 9, n)}
    assert lm.decoder.layers[0].state_size(9) == 9 * (6 + n)


@pytest.mark.parametrize(
    "fields", [{"kv_rank": 3}, {"q_rank": 3}, {"head_dim": 4, "mup_base_heads": 1}], ids=str
)
def test_a_width_that_does_not_grow_has_no_rule_in_mup(fields):
    params = tiny_params(layer_architecture="mla", parametrization="mup", mup_base_dim=8, **fields)
    with pytest.raises(ValueError, match=f"{next(iter(fields))}=. with layer_architecture='mla' is a width"):
        LM(params, CharTokenizer())
