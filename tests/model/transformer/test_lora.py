"""LoRA: no change at the start, a thin one later, in every linear map of the layers, and gone without trace when merged."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.lm import LM
from model.transformer.lora import LoRALinear, is_lora, merge_lora, merged_weight
from tests.model.tiny import MIXERS, CharTokenizer, perturb, random_ids, tiny_lm, tiny_params

LAYERS = {
    "ours": {},
    "gated, untied": {"gated": True, "activation": "silu", "tied_embeddings": False, "bias": False},
    "separate heads, grouped": {"separate_heads": True, "n_kv_heads": 1, "positions": "rotary"},
    "all mixers": {"layer_architecture": tuple(MIXERS), "n_layers": len(MIXERS)},
}
each_kind = pytest.mark.parametrize("fields", LAYERS.values(), ids=LAYERS)


@each_kind
def test_lora_changes_no_bit_of_the_initial_logits(fields):
    plain = tiny_lm(dtype=torch.float32, **fields)
    lora = LM(replace(plain.model_params, lora_rank=3), plain.tokenizer).eval()
    missing, unexpected = lora.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(map(is_lora, missing))
    assert torch.equal(lora(random_ids(3, 9)), plain(random_ids(3, 9)))


@each_kind
def test_lora_is_in_every_linear_map_of_the_layers_and_nowhere_else(fields):
    lm = tiny_lm(lora_rank=2, **fields)
    linear = [module for module in lm.decoder.modules() if isinstance(module, nn.Linear)]
    assert linear
    assert all(isinstance(module, LoRALinear) for module in linear)
    assert sum(map(is_lora, dict(lm.named_parameters()))) == 2 * len(linear)
    assert not any(isinstance(module, LoRALinear) for module in (lm.unembed, lm.embed))


@each_kind
def test_merged_lora_has_the_same_logits_and_is_a_plain_model(fields):
    lm = tiny_lm(lora_rank=2, dtype=torch.float32, **fields).double()
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    merged = merge_lora(lm)
    ids = random_ids(3, 9)
    torch.testing.assert_close(merged(ids), lm(ids), rtol=1e-10, atol=1e-10)
    assert merged.model_params == replace(lm.model_params, lora_rank=0)
    assert not any(map(is_lora, merged.state_dict()))
    assert not any(isinstance(module, LoRALinear) or module.training for module in merged.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in lm.state_dict().items())
    assert (merged.unembed.weight is merged.embed.tokens.weight) == lm.model_params.tied_embeddings
    lm.load_state_dict({name: torch.zeros_like(weight) for name, weight in before.items()})
    assert merged(ids).abs().max() > 1, "a copy of its own"


def test_the_change_has_the_rank_that_was_asked_for():
    torch.manual_seed(0)
    linear = LoRALinear(12, 9, True, rank=3)
    x = torch.randn(5, 12)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    perturb(linear)
    change = merged_weight(linear) - linear.weight
    assert torch.linalg.matrix_rank(change) == 3
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight + change, linear.bias))
    plain = nn.Linear(12, 9)
    assert merged_weight(plain) is plain.weight


def test_only_b_has_a_gradient_at_the_start_so_that_both_can_learn():
    torch.manual_seed(0)
    lm = LM(tiny_params(lora_rank=2), CharTokenizer())
    lm(random_ids(3, 9)).square().sum().backward()
    for name, parameter in lm.named_parameters():
        if is_lora(name):
            assert bool(parameter.grad.any()) == name.endswith("lora_b")


def test_head_outputs_contain_the_part_of_lora():
    lm = tiny_lm(lora_rank=2, n_layers=1)
    with torch.no_grad(), lm.record("head_out", "attn_out") as seen:
        lm(random_ids(3, 9))
    heads, out = seen["layers.0.head_out"], seen["layers.0.attn_out"]
    torch.testing.assert_close(heads.sum(dim=1) + lm.decoder.layers[0].mixer.out.bias, out)
