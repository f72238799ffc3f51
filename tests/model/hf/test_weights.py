"""HuggingFace's models in our LM: equal logits, gradients, states and patterns; and our LM in theirs."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, GPT2ForSequenceClassification, GPT2Model

from model.hf.configs import config_settings, explicit_fields
from model.hf.weights import as_hf, copy_weights, from_hf, load_hf, params_from_config, pretrained_params
from model.lm import LM
from model.model_params import ModelParams
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.hf.hf_models import (
    EVERY_FAMILY,
    EVERY_MODEL,
    FURTHER,
    GROUPS,
    N_SEEDS,
    N_TOKENS,
    OPTIONS,
    all_in_float64,
    make_hf,
    random_hf,
    random_settings,
)
from tests.model.tiny import CharTokenizer, perturb, random_ids, tiny_lm, tiny_params
from tests.train.launch.test_observe import MODEL

IDS = random_ids(3, 24, N_TOKENS)


def loss_of(logits):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def assert_gradients_equal(hf_model, lm, tolerance):
    """Compare the gradients of one loss, parameter by parameter. Theirs are copied in place of weights."""
    loss_of(hf_model(IDS).logits).backward()
    loss_of(lm(IDS)).backward()
    theirs, ours, zero = copy.deepcopy(hf_model), copy.deepcopy(lm), copy.deepcopy(lm)
    for parameter in [*ours.parameters(), *zero.parameters()]:
        parameter.data.fill_(math.nan)
    for factor, lm_of_gradients in ((1, ours), (0, zero)):  # of zeros only the offset of gains is left
        for parameter, original in zip(theirs.parameters(), hf_model.parameters(), strict=True):
            parameter.data = original.grad * factor
        copy_weights(theirs, lm_of_gradients)
    parameters = zip(ours.named_parameters(), zero.parameters(), lm.parameters(), strict=True)
    for (name, expected), offset, parameter in parameters:
        gradient = expected.data - offset.data
        assert_close(parameter.grad, gradient, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    assert max(parameter.grad.abs().max() for parameter in lm.parameters()) > 0.01


def assert_everything_equal(hf_model, lm, tolerance):
    exactly = {"rtol": 0, "atol": tolerance}
    with torch.no_grad():
        theirs = hf_model(IDS, output_hidden_states=True, output_attentions=True)
        ours = lm(IDS, get_embeddings=True, get_attns=True)
        with lm.record("embed", "final_norm") as seen:
            lm(IDS)
    assert_close(ours["logits"], theirs.logits, **exactly)
    assert_close(ours["attns"], torch.stack(theirs.attentions, dim=1), **exactly)
    first, *between, last = theirs.hidden_states  # the last one is normalized
    assert_close(seen["embed"], first, **exactly)
    assert_close(seen["final_norm"], last, **exactly)
    for i, expected in enumerate(between):
        assert_close(ours["embeddings"][:, i], expected, **exactly)
    assert theirs.logits.std() > 0.2


@EVERY_MODEL
def test_parity_in_float32(family, seed):
    hf_model = random_hf(family, seed)
    lm = from_hf(hf_model)
    assert_everything_equal(hf_model, lm, 1e-5)
    assert_gradients_equal(hf_model, lm, 1e-5)


@EVERY_MODEL
def test_parity_in_float64(family, seed):
    with all_in_float64():
        hf_model = random_hf(family, seed)
        lm = from_hf(hf_model)
        assert lm.unembed.weight.dtype == torch.float64
        assert_everything_equal(hf_model, lm, 1e-9)
        assert_gradients_equal(hf_model, lm, 1e-9)


@EVERY_FAMILY
def test_the_random_models_cover_all_options(family):
    drawn = [random_settings(family, seed) for seed in range(N_SEEDS)]
    for name, values in OPTIONS[family].items():
        names = GROUPS.get(name, (name,))
        found = {repr(tuple(settings[n] for n in names)) for settings in drawn}
        assert found == {repr(value if name in GROUPS else (value,)) for value in values}


def fresh_lm(hf_model, n_tokens=N_TOKENS, **fields):
    torch.manual_seed(1)
    return LM(replace(params_from_config(hf_model.config), **fields), CharTokenizer(n_tokens)).eval()


def test_copy_weights_copies():
    hf_model = random_hf("llama", 0)
    lm = from_hf(hf_model)
    before = lm([1, 4])
    perturb(hf_model)
    assert torch.equal(lm([1, 4]), before)
    assert not lm.training


def test_a_tied_readout_may_be_untied():
    hf_model = random_hf("gpt2", 0, tie_word_embeddings=True)
    lm = fresh_lm(hf_model, tied_embeddings=False)
    copy_weights(hf_model, lm)
    assert lm.unembed.weight is not lm.embed.tokens.weight
    assert_close(lm(IDS), hf_model(IDS).logits, rtol=0, atol=1e-5)


def test_rows_without_a_token_and_later_positions_may_be_left_out():
    hf_model = random_hf("gpt2", 0, vocab_size=100)
    lm = fresh_lm(hf_model, n_tokens=99, max_seq_len=10)
    copy_weights(hf_model, lm)
    ids = random_ids(3, 10, 99)
    assert_close(lm(ids), hf_model(ids).logits[..., :99], rtol=0, atol=1e-5)


def test_parameters_added_by_an_edit_stay_as_they_are():
    """An inserted layer has no weights of theirs; the layers behind it still get their own."""
    hf_model = random_hf("llama", 0, num_hidden_layers=2)
    lm = fresh_lm(hf_model)
    inserted = nn.Linear(lm.model_params.dim, lm.model_params.dim)
    before = copy.deepcopy(inserted.state_dict())
    lm.decoder.layers.insert(1, inserted)
    copy_weights(hf_model, lm)
    assert_close(inserted.state_dict(), before)
    del lm.decoder.layers[1]
    assert_close(lm(IDS), hf_model(IDS).logits, rtol=0, atol=1e-5)


def test_lora_starts_without_effect_and_is_merged_by_as_hf():
    hf_model = random_hf("qwen2", 0)
    lm = fresh_lm(hf_model, lora_rank=2)
    copy_weights(hf_model, lm)
    assert_close(lm(IDS), hf_model(IDS).logits, rtol=0, atol=1e-5)
    perturb(lm)
    assert_close(as_hf(lm)(IDS).logits, lm(IDS), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "n_tokens", "fields", "message"),
    [
        ({}, 50, {"n_layers": 3}, "the LM has 3 transformer layers, but the weights are for 2"),
        ({}, 50, {"n_heads": 2}, "n_heads=2, but the weights are for n_heads=4"),
        ({}, 50, {"n_kv_heads": 1}, "n_kv_heads=1, but the weights are for n_kv_heads=2"),
        ({}, 50, {"tied_embeddings": True}, "tied_embeddings=True"),
        ({}, 30, {}, "the tokenizer has 30 tokens, but the weights are for 50"),
        ({}, 51, {}, "the tokenizer has 51 tokens, but the weights are for 50"),
        ({}, 50, {"tokenizer_crop": True}, "tokenizer_crop=True"),
        (
            {},
            50,
            {"dim_ff": 41},
            r"gate_proj.weight of \(40, 32\) does not fit .*linear1.weight of \(41, 32\)",
        ),
        (
            {},
            50,
            {"gated": False},
            "up_proj.weight .* has no place .*: it has no decoder.layers.0.linear_up.weight",
        ),
        ({}, 50, {"separate_heads": True}, "q_proj.weight .* has no place"),
        ({"attention_bias": True}, 50, {"bias_qkv": False}, "q_proj.bias .* has no place"),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_copied(settings, n_tokens, fields, message):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    hf_model = make_hf("llama", intermediate_size=40, **sizes | settings)
    lm = fresh_lm(hf_model, n_tokens, **fields)
    before = copy.deepcopy(lm.state_dict())
    with pytest.raises(ValueError, match=message) as error:
        copy_weights(hf_model, lm)
    assert "\n" not in str(error.value)
    assert_close(lm.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [GPT2Model, GPT2ForSequenceClassification])
def test_models_without_our_readout_are_refused(kind):
    with pytest.raises(ValueError, match=f"of {kind.__name__} has no place in this LM"):
        from_hf(kind(random_hf("gpt2", 0).config))


ROPE = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}
YARN = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}
HEADS = {"hidden_size": 32, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh'; allowed: 'gelu_new'"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False; allowed: True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        (
            "gpt_neox",
            {"rope_parameters": ROPE},
            "gpt_neox with rope_type='dynamic'; allowed: 'default', 'lin",
        ),
        (
            "gpt_neox",
            {"num_attention_heads": 4, "hidden_size": 48},
            "is 3: it must be even",
        ),
        ("llama", {"rope_parameters": ROPE}, "rope_type='dynamic'"),
        (
            "llama",
            {"rope_parameters": YARN | {"attention_factor": 2.0}},
            "attention_factor=2.0 beside rope_type='yarn'",
        ),
        ("llama", {"hidden_act": "mish"}, "hidden_act='mish'"),
        (
            "qwen2",
            {"layer_types": ["chunked_attention"] * 32},
            "layer_types of 'chunked_attention'; allowed: 'full",
        ),
        ("olmo2", HEADS | {"head_dim": 16}, "head_dim=16; allowed: 8"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping=5.0; allowed: None"),
        (
            "gemma2",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention=True; allowed: None, False",
        ),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob=False and num_experts_per_tok=8"),
        ("qwen3_moe", {"norm_topk_prob": True, "num_experts_per_tok": 1}, "num_experts_per_tok=1"),
        (
            "opt",
            {"word_embed_proj_dim": 512, "hidden_size": 1024},
            "word_embed_proj_dim=512; allowed: hidden_size",
        ),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm=True; allowed: False"),
        ("falcon", {"alibi": True}, "a falcon with alibi=True; allowed: False, None"),
        (
            "falcon",
            {"new_decoder_architecture": True, "parallel_attn": False},
            "parallel_attn=False beside new_decoder_architecture=True; allowed: True",
        ),
        (
            "falcon",
            {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3},
            r"num_ln_in_parallel_attn=3 beside new_decoder_architecture=True; allowed: \(None, 1, 2\)",
        ),
        (
            "falcon",
            {"num_ln_in_parallel_attn": 2},
            r"num_ln_in_parallel_attn=2 beside new_decoder_architecture=False; allowed: \(None, 1\)",
        ),
        ("starcoder2", HEADS | {"num_key_value_heads": 2, "head_dim": 16}, "head_dim=16; allowed: 8"),
        ("mixtral", {"num_experts_per_tok": 1}, "a mixtral with num_experts_per_tok=1; allowed: 2 or more"),
        ("mixtral", {"num_local_experts": 1}, "n_experts=1 leaves the router no choice"),
        ("gpt_oss", {"num_experts_per_tok": 1}, "a gpt_oss with num_experts_per_tok=1; allowed: 2 or more"),
        ("gpt_oss", {"swiglu_limit": 10.0}, r"a gpt_oss with swiglu_limit=10.0; allowed: 7.0"),
        ("gpt_oss", {"swiglu_alpha": 1.0}, r"a gpt_oss with swiglu_alpha=1.0; allowed: 1.702"),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": YARN | {"truncate": False}}},
            "a gemma3_text with truncate=False beside rope_type='yarn' of some layers; allowed: True",
        ),
        ("gemma", {"use_bidirectional_attention": True}, "a gemma with use_bidirectional_attention=True"),
        ("bloom", {}, "our layers do not support model_type='bloom'; they support: gpt2, gpt_neox, gptj"),
        ("modernbert", {}, "model_type='modernbert', whose first layer has no norm before attention"),
    ],
    ids=str,
)
def test_configs_that_our_layers_cannot_represent_are_refused(model_type, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        params_from_config(AutoConfig.for_model(model_type, **settings))
    assert "\n" not in str(error.value)


def test_the_fields_of_the_families_as_they_are_published():
    """Settings of config.json files as they lie on the hub, old names included."""
    pythia = AutoConfig.for_model(
        "gpt_neox",
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        rotary_pct=0.25,
        rotary_emb_base=10_000,
    )
    params = params_from_config(pythia)
    assert (params.rotary_frac, params.rotary_base, params.parallel_blocks) == (0.25, 10_000, True)
    qwen = AutoConfig.for_model(
        "qwen2", rope_theta=1_000_000.0, num_key_value_heads=2, use_sliding_window=False
    )
    params = params_from_config(qwen)
    assert (params.rotary_base, params.kv_heads, params.sliding_window) == (1_000_000, 2, None)
    assert (params.bias_qkv, params.bias_out, params.bias_ff) == (True, False, False)
    mistral = params_from_config(AutoConfig.for_model("mistral", rope_theta=1e4))
    assert (mistral.sliding_window, mistral.kv_heads, mistral.norm, mistral.gated) == (
        4096,
        8,
        "rmsnorm",
        True,
    )


ALSO = {
    "opt": ["gpt2"],
    "qwen3_moe": ["qwen3"],
    "smollm3": ["llama"],
    "starcoder2": ["gpt_neox"],
    "falcon": ["gpt_neox", "starcoder2"],
}


@EVERY_MODEL
def test_there_and_back(family, seed, tmp_path):
    """Saved weights give the first logits in transformers, and bitwise the same weights when we load them again."""
    hf_model = random_hf(family, seed)
    lm = from_hf(hf_model)
    as_hf(lm).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(loaded(IDS).logits, hf_model(IDS).logits, rtol=0, atol=1e-5)
    # Some models are of another family, too: Mistral without a window is a Llama.
    as_llama = family == "mistral" and lm.model_params.sliding_window is None
    assert loaded.config.model_type in ("llama" if as_llama else family, *ALSO.get(family, ()))
    again = from_hf(load_hf(str(tmp_path)))
    assert torch.equal(again(IDS), lm(IDS))
    assert explicit_fields(again.model_params) == explicit_fields(lm.model_params) | {
        "tokenizer_source_name": str(tmp_path)
    }


LIKE_LLAMA = {"positions": "rotary", "norm": "rmsnorm", "gated": True, "activation": "silu", "bias": False}

LIKE_GPT_OSS = {
    "n_experts": 4,
    "gated": "clamped",
    "activation": "quick_gelu",
    "router_bias": True,
    "bias_ff": True,
    "attn_sink": "learned",
    "sliding_window": (5, None),
    "rotary_scaling": "yarn_unrounded, factor=4, original=8",
}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gpt2", {"activation": "relu"}),
        ("gpt_neox", {"positions": "rotary", "rotary_frac": 0.5}),
        ("llama", LIKE_LLAMA),
        ("llama", LIKE_LLAMA | {"bias": True, "n_kv_heads": 2, "dim_ff": 24}),
        ("qwen2", LIKE_LLAMA | {"bias_qkv": True}),
        ("mistral", LIKE_LLAMA | {"sliding_window": 5}),
        ("qwen3", LIKE_LLAMA | {"qk_norm": True, "head_dim": 6, "sliding_window": (5, None)}),
        (
            "qwen3_moe",
            LIKE_LLAMA | {"qk_norm": True, "n_experts": (0, 4), "dim_ff": (40, 24), "balance": None},
        ),
        ("mixtral", LIKE_LLAMA | {"n_experts": 4, "sliding_window": 5, "balance": None}),
        ("gpt_oss", LIKE_LLAMA | LIKE_GPT_OSS),
        ("gemma", LIKE_LLAMA | {"mup_input_mult": 4.0, "head_dim": 6}),
        ("starcoder2", {"positions": "rotary", "sliding_window": 5, "n_kv_heads": 2}),
        (
            "falcon",
            {
                "positions": "rotary",
                "parallel_blocks": "one-norm",
                "n_kv_heads": 1,
                "bias": False,
                "bias_norm": True,
            },
        ),
        ("falcon", {"positions": "rotary", "parallel_blocks": "one-norm", "n_kv_heads": 2}),
        ("falcon", {"positions": "rotary", "parallel_blocks": True, "n_kv_heads": 2}),
        ("olmo2", LIKE_LLAMA | {"qk_norm": "all-heads", "norm_position": "inside"}),
        ("smollm3", LIKE_LLAMA | {"positions": ("rotary", "none")}),
        ("llama", LIKE_LLAMA | {"rotary_scaling": "llama3, factor=4, original=8"}),
        ("opt", {"norm_position": "post", "activation": "relu"}),
    ],
)
def test_an_lm_of_our_own_goes_to_transformers(family, fields):
    lm = tiny_lm(dtype=torch.float32, **{"n_heads": 4} | fields)
    ids = random_ids(2, 16)
    hf_model = as_hf(lm)
    assert hf_model.config.model_type == family
    assert (hf_model.config.bos_token_id, hf_model.config.eos_token_id) == (1, 2)
    assert_close(hf_model(ids).logits, lm(ids), rtol=0, atol=1e-4)
    hf_model.train()
    assert_close(hf_model(ids).logits, lm(ids), rtol=0, atol=1e-4)  # no dropout that lm does not have


def test_in_bfloat16():
    hf_model = random_hf("llama", 0).to(torch.bfloat16)
    lm = from_hf(hf_model)
    assert lm.unembed.weight.dtype == torch.bfloat16
    assert as_hf(lm).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": "alibi"}, "gpt2, the nearest, does not support positions='alibi'$"),
        ({"sliding_window": (3, 4)}, r"gpt2, the nearest, does not support sliding_window=\(3, 4\)$"),
        (
            LIKE_LLAMA | {"qk_norm": True, "n_experts": 4, "balance": "bias"},
            "qwen3_moe, the nearest, does not support balance='bias'$",
        ),
        ({"norm_position": "none"}, "gpt2, the nearest, does not support norm_position='none'$"),
        ({"qk_norm": True}, "qk_norm=True"),
        (
            {"positions": "none", "dim": 20, "n_heads": 4},
            "gpt2, the nearest, does not support positions='none'$",
        ),  # odd heads
        ({"n_kv_heads": 1}, "gpt2, the nearest, does not support n_kv_heads=1$"),
        (
            {"n_kv_heads": 1, "positions": "rotary", "rotary_frac": 0.5},
            "gpt_neox, the nearest, does not support n_kv_heads=1$",
        ),
        (
            LIKE_LLAMA | {"n_experts": 4, "experts_per_token": 1},
            "llama, the nearest, does not support n_experts=4$",
        ),
        (LIKE_LLAMA | {"activation": "gelu", "mup_input_mult": 4.0}, "mup_input_mult=4.0$"),
        ({"separate_heads": True}, "separate_heads=True"),
        ({"bias_out": False}, "gpt2, the nearest, does not support bias_out=False$"),
        ({"layer_architecture": ("custom-transformer", "gated-conv")}, "layer_architecture="),
        (
            {"norm": "rmsnorm", "gated": True, "positions": "rotary", "parallel_blocks": True},
            "llama, the nearest, does not support parallel_blocks=True$",
        ),
    ],
    ids=str,
)
def test_params_of_no_family_are_refused(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        as_hf(tiny_lm(**fields))
    assert "\n" not in str(error.value)


BASES = {
    "gpt_neox": {"positions": "rotary", "parallel_blocks": True},
    "gptj": {"positions": "rotary", "parallel_blocks": "one-norm", "readout_bias": True, "rotary_frac": 0.5}
    | {"bias_qkv": False, "bias_out": False},
    "qwen3_moe": LIKE_LLAMA | {"qk_norm": True, "n_experts": 4},
    "gpt_oss": LIKE_LLAMA | LIKE_GPT_OSS,
    "gemma2": LIKE_LLAMA | {"norm_position": "sandwich", "mup_input_mult": 4.0},
    "falcon": {"positions": "rotary", "parallel_blocks": "one-norm", "n_kv_heads": 2},
}


NO_MATTER = {  # outputs do not depend on them, or they stand in other fields
    *("attention", "balance", "balance_rate", "predict_weight", "bias", "lora_rank", "init"),
    *("out_zero_init", "query_zero_init", "readout_zero_init", "parametrization"),
    *(f"mup_base_{size}" for size in ("dim", "heads", "layers")),
    *(f"residual_{what}" for what in ("change", "trainable", "profile")),
    *("kv_rank", "q_rank", "conv_width", "state_dim", "negative_eigenvalues", "fixed_decay"),
}


def valid_params(**fields):
    try:
        return tiny_params(**fields)
    except ValidationError:
        return None


def changes_of(name, before):
    """Values of a field other than `before`, for all layers and for every other one."""
    named = {"experts_per_token": [1], "parallel_blocks": [True, "one-norm"], "qk_norm": [True, "all-heads"]}
    for value in named.get(name, [MODEL[name][0]]):
        yield value
        if name not in ModelParams.of_whole_model:
            yield before, value


@pytest.mark.parametrize(
    "base", [pytest.param(base, marks=() if base == "gptj" else FURTHER) for base in BASES]
)
def test_no_field_is_lost_and_none_breaks_a_config(base):
    """Each field in turn has other values, in some layers too: a config says so, or the model is refused."""
    fields = {"n_heads": 4} | BASES[base]
    plain = tiny_params(**fields)
    no_matter = NO_MATTER | ({"bias_norm"} if plain.norm == "rmsnorm" else set())
    assert config_settings(plain)["model_type"] == base
    for name in MODEL:
        for changed in changes_of(name, getattr(plain.at(0), name)):
            if (params := valid_params(**fields | {name: changed})) is None:
                continue
            try:
                settings = config_settings(params)
            except ValueError:
                continue
            again = params_from_config(AutoConfig.for_model(**settings, vocab_size=30))
            assert config_settings(again) == settings
            found, expected = (explicit_fields(one)[name] for one in (again, params))
            assert name in no_matter or found == expected, f"{name}={changed!r}"


def test_edits_that_params_do_not_show_are_refused(monkeypatch):
    lm = tiny_lm()
    lm.decoder.layers.insert(1, nn.ReLU())
    with pytest.raises(ValueError, match="no equivalent for an edit of the layers"):
        as_hf(lm)
    lm.decoder.layers[1] = nn.Linear(16, 16)
    with pytest.raises(ValueError, match=r"no place for decoder\.layers\.1\.weight"):
        as_hf(lm)
    lm = tiny_lm()
    del lm.decoder.layers[1]
    with pytest.raises(ValueError, match="has 1 transformer layers, but the weights are for 2"):
        as_hf(lm)
    block = TransformerEncoderLayer._ff_block
    monkeypatch.setattr(TransformerEncoderLayer, "_ff_block", lambda *args: block(*args).square())
    with pytest.raises(ValueError, match="no equivalent for an edit of the layers"):
        as_hf(tiny_lm())


def test_going_back_changes_neither_the_lm_nor_any_randomness():
    lm = tiny_lm().train()
    weights, state = copy.deepcopy(lm.state_dict()), torch.get_rng_state()
    as_hf(lm)
    assert_close(lm.state_dict(), weights, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert lm.training


def test_pretrained_params_read_a_config_only(tmp_path):
    hf_model = random_hf("mistral", 1)
    hf_model.config.save_pretrained(tmp_path)
    expected = replace(params_from_config(hf_model.config), tokenizer_source_name=str(tmp_path))
    assert pretrained_params(str(tmp_path)) == expected


def never_asked():
    pytest.fail("the hub was asked")


def test_weights_are_taken_as_safetensors_only(tmp_path):
    hf_model = random_hf("gpt2", 0)
    hf_model.config.save_pretrained(tmp_path)
    torch.save(hf_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors") as error:
        load_hf(str(tmp_path), None, never_asked)
    assert "\n" not in str(error.value)


def rename_weights(folder, new_name):
    weights = load_file(folder / "model.safetensors")
    renamed = {new_name(name): weight for name, weight in weights.items() if new_name(name)}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "as_on_the_hub"),
    [
        ("gpt2", lambda name: name.removeprefix("transformer.")),
        ("gpt_neox", lambda name: name.replace("lm_head", "embed_out")),
    ],
    ids=["gpt2", "gpt_neox"],
)
def test_names_of_weights_on_the_hub(family, as_on_the_hub, tmp_path):
    hf_model = random_hf(family, 0)
    hf_model.save_pretrained(tmp_path)
    rename_weights(tmp_path, as_on_the_hub)
    assert_close(from_hf(load_hf(str(tmp_path)))(IDS), hf_model(IDS).logits, rtol=0, atol=1e-5)


def test_missing_weights_are_an_error(tmp_path):
    random_hf("llama", 0, tie_word_embeddings=False).save_pretrained(tmp_path)
    rename_weights(tmp_path, lambda name: name.replace("lm_head.weight", ""))
    with pytest.raises(ValueError, match=r"has no weights for lm_head\.weight"):
        load_hf(str(tmp_path), None, never_asked)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", "not weights"),
        ("config.json", "not json"),
        ("config.json", '{"model_type": "mistral", "num_hidden_layers": "many"}'),
        ("config.json", '{"model_type": "gpt2", "n_embd": 36}'),
    ],
)
def test_broken_files_are_one_sentence(file, content, tmp_path):
    random_hf("gpt2", 0, n_embd=32).save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        load_hf(str(tmp_path), None, never_asked)
    assert "\n" not in str(error.value)


def test_code_beside_the_weights_is_never_run(monkeypatch, tmp_path):
    """This holds even if trust_remote_code is confirmed at every prompt."""
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for load in (load_hf, pretrained_params):
        with pytest.raises(ValueError, match="cannot be loaded") as error:
            load(str(tmp_path), None, never_asked)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_revision_is_taken_from_the_cache_of_the_hub(monkeypatch, tmp_path):
    models = {"main": random_hf("gpt_neox", 0), "step7": random_hf("gpt_neox", 1)}
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    for commit, (branch, hf_model) in zip("ab", models.items(), strict=True):
        (repository / "refs" / branch).write_text(commit * 40)
        hf_model.save_pretrained(repository / "snapshots" / (commit * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision, branch in ((None, "main"), ("main", "main"), ("step7", "step7"), ("b" * 40, "step7")):
        hf_model = load_hf("some/model", revision, never_asked)
        assert_close(hf_model(IDS).logits, models[branch](IDS).logits)
        source = "some/model" if revision is None else f"some/model@{revision}"  # the tokenizer's, too
        params = replace(params_from_config(models[branch].config), tokenizer_source_name=source)
        assert pretrained_params("some/model", revision, never_asked) == params


def test_offline_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = []
    for load in (load_hf, pretrained_params):
        with pytest.raises(ValueError, match=r"'nowhere/model' at revision='step7'.* a network") as error:
            load("nowhere/model", "step7", lambda: bool(asked.append(1)))
        assert "\n" not in str(error.value)
    assert len(asked) == 2
