"""A model of transformers comes in as what its modules are, not as what its config says, or it is refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

import gpt2
from model.hf.weights import copy_weights, from_hf, load_hf, logit_difference
from model.lm import LM
from model.mup.base_shapes import make_base_shapes
from model.mup.parametrization import init_, make_readouts, roles, scale_scores
from model.transformer.attention import Attention
from tests.model.hf.hf_models import EVERY_FAMILY, N_TOKENS, make_hf, random_hf
from tests.model.tiny import random_ids

IDS = random_ids(3, 24, N_TOKENS)
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}


def llama(**settings):
    return make_hf("llama", **SMALL | {"intermediate_size": 40} | settings)


def assert_equal_logits(hf_model, lm):
    with torch.no_grad():
        assert_close(lm(IDS), hf_model(IDS).logits[..., : lm.n_tokens], rtol=0, atol=1e-5)


# Tying


@pytest.mark.parametrize("says_tied", [True, False])
@pytest.mark.parametrize("is_tied", [True, False])
def test_tying_is_taken_from_the_tensors(says_tied, is_tied):
    hf_model = llama(tie_word_embeddings=is_tied)
    hf_model.config.tie_word_embeddings = says_tied
    lm = from_hf(hf_model)
    assert (lm.unembed.weight is lm.embed.tokens.weight) == is_tied
    assert lm.model_params.tied_embeddings == is_tied
    assert_equal_logits(hf_model, lm)


def edit_config(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def test_a_file_with_its_own_unembedding_is_loaded_untied_whatever_its_config_says(tmp_path):
    llama(tie_word_embeddings=False).save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    lm = from_hf(load_hf(str(tmp_path)))
    assert not lm.model_params.tied_embeddings
    assert_equal_logits(AutoModelForCausalLM.from_pretrained(tmp_path), lm)


# Modules that do not do what the config says


def removed_layer(hf_model):
    del hf_model.model.layers[1]


def removed_mlp(hf_model):
    hf_model.model.layers[0].mlp = nn.Identity()


def removed_norm(hf_model):
    hf_model.model.norm = nn.Identity()


def other_scaling(hf_model):
    hf_model.model.layers[0].self_attn.scaling *= 0.5


def other_frequencies(hf_model):
    hf_model.model.rotary_emb.inv_freq /= 4


def other_eps(hf_model):
    hf_model.model.layers[1].input_layernorm.variance_epsilon = 0.5


def other_activation(hf_model):
    hf_model.model.layers[1].mlp.act_fn = nn.ReLU()


def hooked(hf_model):
    hf_model.model.layers[0].register_forward_hook(lambda module, inputs, output: output * 0.5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (removed_layer, r"no weights for decoder\.layers\.1\."),
        (removed_mlp, r"no weights for decoder\.layers\.0\.linear1\.weight"),
        (removed_norm, r"no weights for decoder\.norm\.weight"),
        (other_scaling, "logits of this LlamaForCausalLM .* differ by"),
        (other_frequencies, "differ by"),
        (other_eps, "differ by"),
        (other_activation, "differ by"),
        (hooked, "differ by"),
    ],
)
def test_an_edited_module_is_refused(edit, message):
    hf_model = llama()
    edit(hf_model)
    with pytest.raises(ValueError, match=message) as error:
        from_hf(hf_model)
    assert "\n" not in str(error.value)


def test_mistral_reads_its_window_and_no_layer_types():
    hf_model = make_hf(
        "mistral", intermediate_size=40, sliding_window=4, layer_types=["full_attention"] * 2, **SMALL
    )
    lm = from_hf(hf_model)
    assert lm.model_params.sliding_window == 4
    assert_equal_logits(hf_model, lm)


def test_a_window_wider_than_the_shortest_comparison_is_compared():
    hf_model = make_hf(
        "mistral", intermediate_size=40, sliding_window=80, max_position_embeddings=128, **SMALL
    )
    hf_model.config.sliding_window = 100  # what the model goes by
    lm = from_hf(hf_model)
    hf_model.config.sliding_window = 90
    assert logit_difference(hf_model, lm) > 0


def test_edited_layers_of_ours_take_weights_when_asked_to(monkeypatch):
    hf_model = llama()
    attend = Attention.attend
    monkeypatch.setattr(Attention, "attend", lambda self, q, k, v, ctx: attend(self, q * 2, k, v, ctx))
    with pytest.raises(ValueError, match="check_logits=False"):
        from_hf(hf_model)
    lm = gpt2.from_hf(hf_model, check_logits=False)
    assert torch.equal(lm.unembed.weight, hf_model.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY_FAMILY
def test_half_precision_passes_the_check_and_still_sees_an_edit(family, dtype):
    hf_model = random_hf(family, 0).to(dtype)
    lm = from_hf(hf_model)
    assert lm.unembed.weight.dtype == dtype
    lm.decoder.layers[0].mixer.out.weight.data.mul_(-1)
    lm.unembed.weight.data.mul_(-1)
    assert logit_difference(hf_model, lm) > 0


def test_a_source_in_training_mode_stays_in_it():
    hf_model = make_hf("gpt2", n_layer=1, n_embd=32, n_head=2, resid_pdrop=0.5).train()
    from_hf(hf_model)
    assert all(module.training for module in hf_model.modules())


def test_two_values_for_one_parameter_are_refused_and_nothing_is_written():
    hf_model = llama(tie_word_embeddings=True)
    lm = from_hf(hf_model)
    hf_model.lm_head.weight = nn.Parameter(hf_model.lm_head.weight.detach() + 1)
    before = copy.deepcopy(lm.state_dict())
    with pytest.raises(ValueError, match="tied_embeddings=True"):
        copy_weights(hf_model, lm)
    assert_close(lm.state_dict(), before, rtol=0, atol=0)
    lm = from_hf(hf_model)
    lm.unembed.weight = lm.embed.tokens.weight  # by an edit that no field tells of
    with pytest.raises(ValueError, match=r"unembed\.weight would get two different weights"):
        copy_weights(hf_model, lm)


# muP


def mup_gpt2(width=64, n_heads=4):
    def make(dim, heads):
        torch.manual_seed(0)
        shape = {"n_embd": dim, "n_inner": 4 * dim, "n_head": heads, "n_layer": 2, "n_positions": 32}
        return GPT2LMHeadModel(GPT2Config(**shape, vocab_size=N_TOKENS, bos_token_id=0, eos_token_id=0))

    shapes, model = make_base_shapes(make(16, 2), make(24, 3)), make(width, n_heads).eval()
    make_readouts(model, shapes)
    init_(model, roles(model, shapes))
    scale_scores(model, ((width / n_heads) / 8) ** -0.5)
    return model


def test_a_mup_model_brings_its_factors():
    hf_model = mup_gpt2()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    lm = from_hf(hf_model)
    assert_equal_logits(hf_model, lm)
    assert lm.model_params.mup_output_mult == 0.25
    assert lm.model_params.mup_attn_mult == pytest.approx(2**-0.5)
    again = LM(lm.model_params, lm.tokenizer).eval()
    again.load_state_dict(lm.state_dict())
    assert torch.equal(again(IDS), lm(IDS)), "the factors are part of the params, so they are saved"


# Files


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.2.mlp.up_proj.weight", "score.weight"],
)
def test_tensors_that_the_model_does_not_have_are_refused_by_name(name, tmp_path):
    llama().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.ones(2, 32)}))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
        load_hf(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("gpt_neox", ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"]),
    ],
)
def test_buffers_of_older_files_are_no_weights(family, names, tmp_path):
    hf_model = random_hf(family, 0)
    hf_model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.ones(2) for name in names}))
    assert_equal_logits(hf_model, from_hf(load_hf(str(tmp_path))))


def test_weights_in_mxfp4_are_unpacked(tmp_path):
    """gpt-oss is published in blocks of 32 numbers of four bits, each with a power of two as its scale."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 1}
    make_hf("gpt_oss", hidden_size=64, intermediate_size=32, num_local_experts=4, **heads).save_pretrained(
        tmp_path
    )

    def pack(tensors):
        for name in [
            name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        ]:
            n_experts, n_in, n_out = tensors.pop(name).shape
            blocks = torch.randint(256, (n_experts, n_out, n_in // 32, 16), dtype=torch.uint8)
            tensors[f"{name}_blocks"] = blocks
            tensors[f"{name}_scales"] = torch.full(blocks.shape[:3], 127 - 3, dtype=torch.uint8)

    rewrite(tmp_path, pack)
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    hf_model = load_hf(str(tmp_path))
    assert hf_model.model.layers[0].mlp.experts.down_proj.abs().max() == 6 / 8
    assert_equal_logits(hf_model, from_hf(hf_model))


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="an adapter beside its weights: merge"):
        load_hf(str(tmp_path))


@pytest.mark.parametrize("model_type", ["bloom", "mpt", "distilbert", "modernbert", "t5", "bart", "whisper"])
def test_another_architecture_is_refused_from_its_config_alone(model_type, tmp_path):
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"our layers do not support model_type='{model_type}'") as error:
        load_hf(str(tmp_path))
    is_both = model_type in ("t5", "bart", "whisper")
    assert ("an encoder-decoder" in str(error.value)) == is_both


# Tokenizers


def their_tokenizer(n):
    vocab = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, n)}
    rust = RustTokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.mark.parametrize(("n", "padded"), [(1000, 1024), (65, 128), (65, 256), (100, 101), (64, 64)])
def test_rows_of_a_padded_vocabulary_are_never_sampled(n, padded):
    hf_model = llama(vocab_size=padded)
    with torch.no_grad():
        hf_model.lm_head.weight[n:] = 100 * hf_model.lm_head.weight[:1]
    lm = gpt2.from_hf(hf_model, their_tokenizer(n))
    assert lm.n_tokens == n
    ids = lm.sample("w5 w6", max_seq_len=20, as_str=False)
    assert ids[:3] == [0, 5, 6]
    assert max(ids) < n
    with torch.no_grad():
        assert_close(lm(ids), hf_model(torch.tensor([ids])).logits[..., :n], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("n", "padded"), [(30, 50), (40, 72), (65, 64), (700, 1000)])
def test_a_tokenizer_of_another_vocabulary_is_refused(n, padded):
    with pytest.raises(ValueError, match=f"the tokenizer has {n} tokens, but the weights are for {padded}"):
        gpt2.from_hf(llama(vocab_size=padded), their_tokenizer(n))
