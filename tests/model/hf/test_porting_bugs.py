"""Classic mistakes of ports, planted one by one: each breaks the parity of test_huggingface.py by far."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from model.hf import weights as huggingface
from model.hf.weights import from_hf
from model.lm import LM
from model.transformer.attention import Attention
from model.transformer.embeddings import Rotary
from tests.model.hf.hf_models import N_TOKENS, make_hf
from tests.model.tiny import random_ids

IDS = random_ids(3, 24, N_TOKENS)
SQUARE = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
NEOX = SQUARE | {"rotary_pct": 0.25, "layer_norm_eps": 1e-2}
LLAMA = SQUARE | {"num_key_value_heads": 2, "rope_theta": 300.0, "rms_norm_eps": 1e-2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}


def with_fields(**fields):
    """Plants other params around the same weights."""

    def plant(lm, hf_model, patch):
        other = LM(replace(lm.model_params, **fields), lm.tokenizer)
        other.load_state_dict(lm.state_dict(), strict=False)
        return other

    return plant


def with_weights(change):
    """Plants a change of the poured weights."""

    def plant(lm, hf_model, patch):
        with torch.no_grad():
            change(lm)
        return lm

    return plant


def with_code(owner, name, code):
    """Plants other code."""

    def plant(lm, hf_model, patch):
        patch.setattr(owner, name, code)
        return lm

    return plant


def poured_by(rows):
    """Plants other rows for the fused queries, keys and values of NeoX."""

    def plant(lm, hf_model, patch):
        patch.setitem(huggingface.ROWS_OF_QKV, "query_key_value", rows)
        return from_hf(hf_model, check_logits=False)

    return plant


def interleaved(self, x_BHTK, start=0):
    """Turns numbers 2i and 2i + 1 of a head together, not i and i + half."""
    a, b = x_BHTK[..., ::2], x_BHTK[..., 1::2]
    cos, sin = self.cos_TA[: x_BHTK.shape[2]], self.sin_TA[: x_BHTK.shape[2]]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def each_layer(change):
    def of_lm(lm):
        for layer in lm.decoder.layers:
            change(layer)

    return with_weights(of_lm)


def swap(a, b):
    a.data, b.data = b.data.clone(), a.data.clone()


def rolled_by(n):
    return lambda x: x.copy_(x.roll(n, dims=0))


def no_norm_weights(lm):
    for module in lm.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight.fill_(1)


def no_norm_biases(lm):
    for module in lm.modules():
        if isinstance(module, nn.LayerNorm):
            module.bias.zero_()


def layers_as_text_sorts_them(lm):
    layers = list(lm.decoder.layers)
    lm.decoder.layers = nn.ModuleList(layers[i] for i in sorted(range(len(layers)), key=str))


def without_final_norm(lm):
    lm.decoder.norm = nn.Identity()


def without_scale(layer):
    q = layer.mixer.qkv.weight[: layer.model_params.dim]
    q.mul_(math.sqrt(layer.model_params.head_width))


def tied_by_mistake(lm):
    lm.unembed.weight = lm.embed.tokens.weight


# Families, the settings that bring a mistake out, and what plants it.
PORTING_BUGS = {
    "rotary turns neighbors, not halves": ("llama", LLAMA, with_code(Rotary, "forward", interleaved)),
    "rotary base ignored": ("llama", LLAMA, with_fields(rotary_base=10_000.0)),
    "partial rotary turns the whole head": ("gpt_neox", NEOX, with_fields(rotary_frac=1.0)),
    "rotary left out": ("gpt_neox", NEOX, with_fields(positions="none")),
    "epsilon of another model": ("llama", LLAMA, with_fields(norm_eps=1e-5)),
    "epsilon of another model, layernorm": ("gpt_neox", NEOX, with_fields(norm_eps=1e-5)),
    "rmsnorm without its weight": ("llama", LLAMA, with_weights(no_norm_weights)),
    "layernorm without its bias": ("gpt2", GPT2, with_weights(no_norm_biases)),
    "layernorm for rmsnorm": ("llama", LLAMA, with_fields(norm="layernorm", bias_norm=False)),
    "heads of keys tiled, not repeated": (
        "llama",
        LLAMA,
        with_code(
            Attention, "shared", lambda self, x: x.repeat(1, self.model_params.n_heads // x.shape[1], 1, 1)
        ),
    ),
    "gelu for its tanh form": ("gpt2", GPT2, with_fields(activation="gelu")),
    "tanh form for gelu": ("gpt_neox", NEOX, with_fields(activation="gelu_tanh")),
    "gate and up swapped": (
        "llama",
        LLAMA,
        each_layer(lambda layer: swap(layer.linear1.weight, layer.linear_up.weight)),
    ),
    "qkv of NeoX taken for three blocks": (
        "gpt_neox",
        NEOX,
        poured_by(lambda p: torch.arange(3 * p.dim)),
    ),
    "Conv1D not transposed": (
        "gpt2",
        GPT2,
        each_layer(lambda layer: layer.mixer.out.weight.copy_(layer.mixer.out.weight.T.clone())),
    ),
    "queries and keys swapped": (
        "gpt2",
        GPT2,
        each_layer(
            lambda layer: layer.mixer.qkv.weight[:64].copy_(layer.mixer.qkv.weight[:64].roll(32, dims=0))
        ),
    ),
    "biases of queries, keys and values left out": (
        "qwen2",
        LLAMA,
        each_layer(lambda layer: layer.mixer.qkv.bias.zero_()),
    ),
    "no final norm": ("mistral", LLAMA, with_weights(without_final_norm)),
    "parallel blocks one after the other": ("gpt_neox", NEOX, with_fields(parallel_blocks=False)),
    "blocks one after the other in parallel": (
        "gpt_neox",
        NEOX | {"use_parallel_residual": False},
        with_fields(parallel_blocks=True),
    ),
    "one norm for both parallel blocks": (
        "gpt_neox",
        NEOX,
        each_layer(lambda layer: layer.norm2.load_state_dict(layer.norm1.state_dict())),
    ),
    "window one too wide": ("mistral", LLAMA | {"sliding_window": 5}, with_fields(sliding_window=6)),
    "window one too narrow": ("mistral", LLAMA | {"sliding_window": 5}, with_fields(sliding_window=4)),
    "window forgotten": (
        "qwen2",
        LLAMA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
        with_fields(sliding_window=None),
    ),
    "readout tied by mistake": ("llama", LLAMA, with_weights(tied_by_mistake)),
    "scores not divided by sqrt(K)": ("llama", LLAMA, each_layer(without_scale)),
    "positions one off": (
        "gpt2",
        GPT2,
        with_weights(lambda lm: rolled_by(1)(lm.embed.positions.table.weight)),
    ),
    "layers in the order of their names": (
        "gpt2",
        GPT2 | {"n_layer": 11},
        with_weights(layers_as_text_sorts_them),
    ),
    "embeddings times sqrt(D)": (
        "llama",
        LLAMA,
        with_weights(lambda lm: lm.embed.tokens.weight.mul_(math.sqrt(lm.model_params.dim))),
    ),
}


@pytest.mark.parametrize("bug", PORTING_BUGS)
def test_a_classic_porting_bug_breaks_parity(bug, monkeypatch):
    family, settings, plant = PORTING_BUGS[bug]
    hf_model = make_hf(family, size=0.2, **settings)
    lm = from_hf(hf_model)
    with torch.no_grad():
        expected = hf_model(IDS).logits
        assert_close(lm(IDS), expected, rtol=0, atol=1e-5)
        broken = plant(lm, hf_model, monkeypatch)
        assert float((broken(IDS) - expected).abs().max()) > 50 * 1e-5
