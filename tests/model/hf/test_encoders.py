"""BERT and RoBERTa of transformers in our LM: equal logits, gradients, states and patterns, with padding too; and back."""

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForMaskedLM, BertForPreTraining

import gpt2
from model.hf.configs import params_from_config
from model.hf.weights import as_hf, copy_weights, from_hf, load_hf, pretrained_params
from model.lm import LM
from tests.model.hf.hf_models import all_in_float64
from tests.model.tiny import CharTokenizer, perturb, random_ids, tiny_lm

N_TOKENS, T = 50, 20
IDS = random_ids(3, T, N_TOKENS - 3) + 3  # none of them is padding, by which RoBERTa counts positions
REAL = torch.arange(T) < torch.tensor([[T], [13], [5]])
OPTIONS = {
    "hidden_size": [32, 48],
    "num_hidden_layers": [1, 2, 3],
    "num_attention_heads": [1, 2, 4],
    "intermediate_size": [40, 72],
    "layer_norm_eps": [1e-12, 1e-2],
    "tie_word_embeddings": [True, True, False],
    "type_vocab_size": [1, 2],
}
FAMILIES = ["bert", "roberta"]
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
EVERY_MODEL = pytest.mark.parametrize(
    ("family", "seed"), [(family, seed) for family in FAMILIES for seed in range(6)]
)


def make(family, *, size=0.05, seed=0, **settings):
    """A model with every parameter perturbed, norms and biases too, that shows its attention patterns."""
    config = AutoConfig.for_model(
        family,
        **{"vocab_size": N_TOKENS, "max_position_embeddings": T + 4, "intermediate_size": 40} | settings,
    )
    torch.manual_seed(seed)
    hf_model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager")
    perturb(hf_model, size)
    return hf_model.to(torch.get_default_dtype()).eval()


def random_model(family, seed, **settings):
    """Over six seeds every value comes up."""
    rng = random.Random(family)
    columns = {name: (values * 6)[:6] for name, values in OPTIONS.items()}
    for column in columns.values():
        rng.shuffle(column)
    activation = {"hidden_act": ["gelu", "gelu_new", "relu"][seed % 3]} if family == "bert" else {}
    drawn = {name: column[seed] for name, column in columns.items()}
    return make(family, seed=seed, **drawn | activation | settings)


def loss_of(logits):
    return F.cross_entropy(logits.flatten(0, 1), IDS.roll(1, dims=1).flatten())


def types_of(hf_model):
    return hf_model.base_model.embeddings.token_type_embeddings.weight


def assert_gradients_equal(hf_model, lm, tolerance):
    """Compare the gradients of one loss. Theirs are copied in place of weights; folded parameters are left out."""
    loss_of(hf_model(IDS).logits).backward()
    loss_of(lm(IDS)).backward()
    theirs, ours = copy.deepcopy(hf_model), copy.deepcopy(lm)
    for parameter, original in zip(theirs.parameters(), hf_model.parameters(), strict=True):
        parameter.data = torch.zeros_like(original) if original.grad is None else original.grad
    types_of(theirs).data = torch.zeros_like(types_of(theirs))
    for parameter in ours.parameters():
        parameter.data.fill_(math.nan)
    copy_weights(theirs, ours)
    for (name, expected), parameter in zip(ours.named_parameters(), lm.parameters(), strict=True):
        assert_close(parameter.grad, expected.data, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    of_all_positions = lm.embed.positions.table.weight.grad.sum(dim=0)
    assert_close(types_of(hf_model).grad[0], of_all_positions, rtol=0, atol=tolerance)
    assert max(parameter.grad.abs().max() for parameter in lm.parameters()) > 0.01


def assert_everything_equal(hf_model, lm, tolerance):
    exactly = {"rtol": 0, "atol": tolerance}
    with torch.no_grad():
        theirs = hf_model(IDS, output_hidden_states=True, output_attentions=True)
        ours = lm(IDS, get_embeddings=True, get_attns=True)
        with lm.record("embed") as seen:
            lm(IDS)
    assert_close(ours["logits"], theirs.logits, **exactly)
    assert_close(ours["attns"], torch.stack(theirs.attentions, dim=1), **exactly)
    assert_close(seen["embed"], theirs.hidden_states[0], **exactly)
    assert_close(ours["embeddings"], torch.stack(theirs.hidden_states[1:], dim=1), **exactly)
    assert theirs.logits.std() > 0.1


@EVERY_MODEL
def test_parity_in_float32(family, seed):
    hf_model = random_model(family, seed)
    lm = from_hf(hf_model)
    assert_everything_equal(hf_model, lm, 1e-5)
    assert_gradients_equal(hf_model, lm, 1e-6)


@EVERY_MODEL
def test_parity_in_float64(family, seed):
    with all_in_float64():
        hf_model = random_model(family, seed)
        lm = from_hf(hf_model)
        assert_everything_equal(hf_model, lm, 1e-10)
        assert_gradients_equal(hf_model, lm, 1e-10)


@EVERY_FAMILY
@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_parity_with_padding(family, attention):
    hf_model = random_model(family, 0)
    lm = LM(replace(params_from_config(hf_model.config), attention=attention), CharTokenizer(N_TOKENS)).eval()
    copy_weights(hf_model, lm)
    padded = IDS.masked_fill(~REAL, hf_model.config.pad_token_id)
    with torch.no_grad():
        ours, theirs = lm(padded, mask=REAL), hf_model(padded, attention_mask=REAL.long()).logits
        unhidden = lm(padded)
    assert_close(ours[REAL], theirs[REAL], rtol=0, atol=1e-5)
    assert (unhidden - ours)[REAL].abs().max() > 1e-3


@EVERY_FAMILY
def test_there_and_back(family, tmp_path):
    """An LM of their shape is written as a BERT, with the same logits; read again, it is the same to the bit."""
    hf_model = random_model(family, 1)
    lm = from_hf(hf_model)
    as_hf(lm).save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.config.model_type == "bert"
    assert_close(loaded(IDS).logits, hf_model(IDS).logits, rtol=0, atol=1e-5)
    assert torch.equal(from_hf(load_hf(str(tmp_path)))(IDS), lm(IDS))


@EVERY_FAMILY
def test_from_files(family, tmp_path):
    hf_model = random_model(family, 2)
    hf_model.save_pretrained(tmp_path)
    assert torch.equal(from_hf(load_hf(str(tmp_path)))(IDS), from_hf(hf_model)(IDS))
    params = pretrained_params(str(tmp_path))
    assert params == replace(params_from_config(hf_model.config), tokenizer_source_name=str(tmp_path))
    assert params.max_seq_len == {"bert": T + 4, "roberta": T + 2}[family]


def test_a_bert_of_our_own_goes_to_transformers():
    shape = {"causal": False, "objective": "masked", "norm_position": "post", "norm_eps": 1e-12}
    head = {"embedding_norm": True, "readout_transform": True, "readout_bias": True}
    lm = tiny_lm(dtype=torch.float32, **shape, **head)
    ids = random_ids(2, 16)
    hf_model = as_hf(lm).train()  # no dropout that lm does not have
    assert hf_model.config.model_type == "bert"
    assert_close(hf_model(ids).logits, lm(ids), rtol=0, atol=1e-4)


def test_a_bert_for_pretraining_is_refused_because_its_next_sentence_head_would_be_lost():
    config = random_model("bert", 0).config
    with pytest.raises(ValueError, match="of BertForPreTraining has no place in this LM"):
        from_hf(BertForPreTraining(config))


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {"is_decoder": True}, "a bert with is_decoder=True; allowed: False"),
        ("bert", {"hidden_act": "tanh"}, "hidden_act='tanh'"),
        ("roberta", {"hidden_act": "relu"}, "a roberta with hidden_act='relu'; allowed: 'gelu'"),
        ("roberta", {"pad_token_id": 0}, "a roberta with pad_token_id=0; allowed: 1"),
    ],
)
def test_encoders_that_our_layers_cannot_represent_are_refused(family, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        params_from_config(AutoConfig.for_model(family, **settings))
    assert "\n" not in str(error.value)


def test_decoders_are_still_written_as_decoders():
    assert as_hf(tiny_lm()).config.model_type == "gpt2"
    with pytest.raises(ValueError, match=r"gpt2, the nearest, does not support readout_bias=True$"):
        as_hf(tiny_lm(readout_bias=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("google-bert/bert-base-uncased", "The capital of France is [MASK].", "paris"),
        ("FacebookAI/roberta-base", "The capital of France is<mask>.", "Paris"),
    ],
)
def test_trained_weights(name, text, expected):
    """Compare weights of the hub if they were downloaded earlier, as tests use no network."""
    try:
        lm = gpt2.get_pretrained(name)
    except ValueError as error:
        pytest.skip(str(error))
    hf_model = load_hf(name)
    ids = torch.tensor([lm.tokenizer.with_gaps(text)])
    with torch.no_grad():
        assert_close(lm(ids), hf_model(ids).logits, rtol=0, atol=1e-3)
    assert expected in lm.fill(text)
