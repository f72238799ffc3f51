"""Small inputs that were once wrong without a word: other people's models and tokenizers, and configs at the edge."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

import gpt2
import main
from data.tokenizer import pretrained_tokenizer
from model.mup.base_shapes import make_base_shapes
from model.mup.parametrization import init_, make_readouts, roles, scale_scores

CASES = Path(__file__).resolve().parent
SIZES = {
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MAX_CHECK_SECONDS = 5.0


def tiny(family: str, *, masked: bool = False, **settings):
    """A random model of transformers, with weights large enough that every part matters."""
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(family, **(SIZES | settings))).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def toy_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, 64)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def some_ids() -> Tensor:
    return torch.randint(4, 64, (1, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(lm, hf) -> float:
    return float((lm(some_ids()) - hf(some_ids(), use_cache=False).logits).abs().max())


def test_a_tokenizers_own_pre_tokenizer_is_kept(tmp_path):
    """SmolLM2's layout: weights like Llama's, the class GPT2Tokenizer, digits split before bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    digits, as_bytes = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, as_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Steps:\n\n1. Mix\n\n2. Bake\n\n3. Eat"] * 50, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"} | names))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    text = "Steps:\n\n1. Mix"
    [ids] = pretrained_tokenizer(str(tmp_path)).encode_batch([text])
    assert list(ids) == tokenizer.encode(text, add_special_tokens=False).ids


def test_a_files_own_unembedding_counts_whatever_the_config_says(tmp_path):
    tiny("llama", tie_word_embeddings=False).save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    hf = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert difference(gpt2.get_pretrained(str(tmp_path)), hf) < 1e-4


def with_head_of_its_own(model):
    model.lm_head.weight = nn.Parameter(torch.randn(64, 32))
    model.config.tie_word_embeddings = True


def with_scaled_attention(model):
    model.model.layers[0].self_attn.scaling *= 0.5


def with_slow_rotation(model):
    model.model.rotary_emb.inv_freq /= 4


def without_an_mlp(model):
    model.model.layers[0].mlp = nn.Identity()


def without_a_layer(model):
    del model.model.layers[1]


def without_final_norm(model):
    model.model.norm = nn.Identity()


@pytest.mark.parametrize(
    "change",
    [
        with_head_of_its_own,
        with_scaled_attention,
        with_slow_rotation,
        without_an_mlp,
        without_a_layer,
        without_final_norm,
    ],
)
def test_a_changed_model_is_read_as_it_is_or_refused(change):
    hf = tiny("llama")
    change(hf)
    try:
        lm = gpt2.from_hf(hf)
    except ValueError:
        return
    assert difference(lm, hf) < 1e-3


def test_a_window_beside_layers_that_all_see_everything():
    hf = tiny("mistral", sliding_window=4, layer_types=["full_attention"] * 2)
    try:
        lm = gpt2.from_hf(hf)
    except ValueError:
        return
    assert difference(lm, hf) < 1e-3


def test_a_mup_model_of_transformers_is_read_with_its_factors():
    def make(width: int, heads: int):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
        config = AutoConfig.for_model("gpt2", **(SIZES | sizes | {"n_inner": 4 * width}))
        return AutoModelForCausalLM.from_config(config)

    shapes, hf = make_base_shapes(make(16, 2), make(24, 3)), make(64, 4).eval()
    make_readouts(hf, shapes)
    init_(hf, roles(hf, shapes))
    scale_scores(hf, (16 / 8) ** -0.5)
    assert difference(gpt2.from_hf(hf), hf) < 1e-3


def test_every_stop_token_of_a_list_ends_a_sample(tmp_path):
    ids = [1, 5, 9, 11]
    third = gpt2.from_hf(tiny("llama")).sample(ids, max_seq_len=30, as_str=False, temperature=0)[6]
    hf = tiny("llama")
    hf.config.eos_token_id = hf.generation_config.eos_token_id = [2, third]
    hf.save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    expected = hf.generate(torch.tensor([ids]), max_length=30, do_sample=False, pad_token_id=0)[0].tolist()
    for lm in (gpt2.get_pretrained(str(tmp_path)), gpt2.from_hf(hf)):
        assert list(lm.sample(ids, max_seq_len=30, as_str=False, temperature=0)) == expected


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {}),
        ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}),
        ("bloom", {}),
        ("falcon", {}),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
        ("openai-gpt", {}),
        ("modernbert", {"masked": True}),
        ("deberta-v2", {"masked": True}),
        ("mpnet", {"masked": True}),
    ],
)
@torch.no_grad()
def test_scores_are_scaled_or_refused(family, settings):
    hf = tiny(family, **settings)
    before = hf(some_ids()).logits.clone()
    try:
        scale_scores(hf, 0.25)
    except ValueError:
        return
    assert not torch.equal(hf(some_ids()).logits, before)


@torch.no_grad()
def test_scores_of_torchs_attention_are_scaled_or_refused():
    attention, x = nn.MultiheadAttention(32, 4, batch_first=True).eval(), torch.randn(1, 5, 32)
    before = attention(x, x, x)[0]
    try:
        scale_scores(attention, 0.25)
    except ValueError:
        return
    assert not torch.equal(attention(x, x, x)[0], before)


def test_a_row_without_finite_logits_leaves_the_others_alone():
    lm = gpt2.from_hf(tiny("gpt2", tie_word_embeddings=False))
    lm.embed.tokens.weight.data[7] = math.nan
    alone = lm.sample([5, 6], max_seq_len=10, as_str=False, generator=torch.Generator().manual_seed(3))
    assert set(alone[2:]) != {0}
    with pytest.raises(ValueError, match=r"row 1\b.*step 0|step 0.*row 1\b"):
        lm.sample([[5, 6], [7, 6]], max_seq_len=10, as_str=False)


@torch.no_grad()
def test_padding_on_the_left_moves_no_position():
    lm = gpt2.from_hf(tiny("gpt2"))
    ids = torch.tensor([[0, 0, 0, 4, 5, 6], [4, 7, 8, 9, 10, 11]])
    try:
        padded = lm(ids, mask=torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6]))
    except ValueError:
        return
    torch.testing.assert_close(padded[0, -1], lm([4, 5, 6])[0, -1])


@pytest.mark.parametrize("family", ["bloom", "mpt", "distilbert", "modernbert", "t5"])
def test_models_that_our_layers_cannot_represent_are_refused_from_the_config_alone(family, tmp_path):
    AutoConfig.for_model(family).save_pretrained(tmp_path)  # there are no weights to read
    toy_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="our layers do not support"):
        gpt2.get_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("dim-overflow", 2, "dim"),
        ("masked-64true", 0, ""),
        ("masked-len1", 2, "max_seq_len"),
        ("n-layers-hang", 2, "n_layers"),
        ("task-args-hang", 2, "max_length"),
    ],
)
def test_a_config_at_the_edge_is_checked_in_seconds(name, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main, "CONFIGS", CASES)
    started = time.process_time()
    assert main.main([f"--config={name}", "--no-wandb", "--dry-run", "--out", str(tmp_path)]) == code
    assert time.process_time() - started < MAX_CHECK_SECONDS
    if code:
        assert said in capsys.readouterr().err
