"""Whole models on pretrained weights: the same way as from the hub, with tiny models saved to a folder."""

import time

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
)

from learn.checking import hub
from learn.checking.course import (
    NotTried,
    TooLong,
    Wrong,
    clock_stopped,
    get_course,
    judge,
    load_module,
    time_limit,
)
from learn.courses.bert import course as bert
from learn.courses.gpt2 import course as gpt2

TINY_GPT2 = GPT2Config(
    vocab_size=31, n_positions=11, n_embd=12, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0
)
TINY_BERT = BertConfig(
    vocab_size=31,
    max_position_embeddings=11,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=48,
)


def saved(kind, config, folder):
    """A model with weights that hide nothing, in a folder as the hub's are."""
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


def case(course, part, edit=("", "")):
    """The solution, or what an edit makes of it."""
    solution = get_course(course).outline.solution
    text = solution.read_text(encoding="utf-8")
    assert not edit[0] or text.count(edit[0]) == 1
    return get_course(course).case(
        part, load_module(solution, text.replace(*edit) if edit[0] else text), load_module(solution)
    )


def test_gpt2_on_saved_weights(tmp_path):
    check = gpt2.real(saved(GPT2LMHeadModel, TINY_GPT2, tmp_path))
    check(case("gpt2", "GPT2"))
    with pytest.raises(Wrong, match=r"but with the pretrained weights of .* differ"):
        check(case("gpt2", "GPT2", ("self.final_norm(x_BTD) @", "x_BTD @")))
    with pytest.raises(Wrong, match="with the pretrained weights"):
        check(case("gpt2", "GPT2", ("dim: int, eps: float = 1e-5", "dim: int, eps: float = 1e-4")))


@pytest.mark.parametrize(
    ("part", "make"),
    [("BertForMaskedLM", bert.real_masked_lm), ("BertForClassification", bert.real_classification)],
)
def test_bert_on_saved_weights(tmp_path, part, make):
    check = make(saved(BertForPreTraining, TINY_BERT, tmp_path))
    check(case("bert", part))
    for edit in (
        ("+ self.types[types_BT]", ""),
        ("x_BTD = self.norm1(x_BTD + self.attention(x_BTD, mask_BT))", "x_BTD = self.norm1(x_BTD)"),
    ):
        with pytest.raises(Wrong, match="with the pretrained weights"):
            check(case("bert", part, edit))


def test_the_names_of_the_oldest_files_are_understood(tmp_path):
    """The hub's bert-base-uncased says gamma and beta, and has the head of next sentence prediction beside."""
    name = saved(BertForPreTraining, TINY_BERT, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w
        for n, w in weights.items()
        if n != "cls.predictions.decoder.bias"
    }
    assert set(old) != set(weights)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    bert.real_masked_lm(name)(case("bert", "BertForMaskedLM"))


def test_models_are_loaded_in_silence(tmp_path, capfd):
    check = bert.real_classification(saved(BertForMaskedLM, TINY_BERT, tmp_path))
    capfd.readouterr()
    check(case("bert", "BertForClassification"))
    assert capfd.readouterr() == ("", "")


def test_torchs_random_state_stays(tmp_path):
    check = bert.real_classification(saved(BertForMaskedLM, TINY_BERT, tmp_path))
    state = torch.random.get_rng_state()
    check(case("bert", "BertForClassification"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_offline_a_part_is_right_and_says_what_was_not_tried():
    whole = case("gpt2", "GPT2")
    state, says = judge(whole, get_course("gpt2").outline.solution)
    assert (state, says) == ("right", "not tried: pretrained weights: the hub is not reachable")


def test_a_download_that_fails_is_not_tried(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: True)  # and HF_HUB_OFFLINE makes the client refuse
    with pytest.raises(NotTried, match="no/such-model cannot be downloaded"):
        hub.pretrained_folder("no/such-model")


def test_downloaded_weights_need_no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, file, local_files_only: str(tmp_path / file)
    )
    assert hub.pretrained_folder("some/model") == tmp_path


def test_a_hub_that_does_not_answer_costs_one_short_timeout(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    monkeypatch.setattr(hub, "hub_answers", lambda seconds: (asked.append(seconds), time.sleep(3), True)[-1])
    hub.reachable.cache_clear()
    begin = time.monotonic()
    try:
        for _ in range(3):
            with pytest.raises(NotTried, match="not reachable"):
                hub.pretrained_folder("some/model")
    finally:
        hub.reachable.cache_clear()
    assert time.monotonic() - begin < 2
    assert len(asked) == 1


def test_downloads_and_pretrained_models_do_not_count_in_the_time_limit():
    with time_limit(0.3):
        with clock_stopped():
            time.sleep(0.5)
        with pytest.raises(TooLong):
            time.sleep(0.5)
