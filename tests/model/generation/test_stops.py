"""Stop tokens of samples and beams, special tokens by their text, and models without bos."""

import json
import shutil
import warnings

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

import gpt2
from data.tokenizer import Tokenizer, from_transformers, pretrained_tokenizer
from tests.model.hf.hf_models import make_hf

IDS = [1, 5, 9, 11]
N_TOKENS = 50
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
CHAT = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP<|_> "


def model(**ends):
    """A Llama with random weights; `ends` are its end tokens, in its config and in its generation config."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    hf_model = make_hf("llama", size=0.3, vocab_size=N_TOKENS, max_position_embeddings=48, **sizes)
    hf_model.config.eos_token_id = ends.get("config")
    hf_model.generation_config = GenerationConfig(eos_token_id=ends.get("generation"))
    return hf_model


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A character each, and Qwen2-Instruct's special tokens: no bos, and an end of turn beside the end of text."""
    characters = dict.fromkeys(LETTERS)
    vocab = CHAT | {character: i for i, character in enumerate(characters, 3)}
    rust = RustTokenizer(models.BPE(vocab, []))
    rust.decoder = decoders.Fuse()
    rust.add_special_tokens([*CHAT])
    return PreTrainedTokenizerFast(
        tokenizer_object=rust, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def greedy():
    """The model's greedy continuation of IDS."""
    return gpt2.from_hf(model()).sample(IDS, max_seq_len=30, as_str=False, temperature=0)


def test_without_end_tokens_sampling_goes_on(greedy):
    assert len(greedy) == 30


@pytest.mark.parametrize("where", ["config", "generation"])
@pytest.mark.parametrize("as_list", [False, True])
def test_every_end_token_ends_samples_and_beams(where, as_list, greedy, tmp_path):
    """As in generate() of transformers."""
    third = greedy[6]
    end = greedy.index(third, len(IDS))
    hf_model = model(**{where: [2, third, 49] if as_list else third})
    if where == "config":  # generate() looks at the other one only
        hf_model.generation_config.eos_token_id = hf_model.config.eos_token_id
    options = {"do_sample": False, "pad_token_id": 0, "max_length": 30}
    expected = hf_model.generate(torch.tensor([IDS]), **options)[0].tolist()
    assert expected == greedy[: end + 1]
    if where == "config":
        hf_model.generation_config.eos_token_id = None
    lm = gpt2.from_hf(hf_model)
    assert third in lm.tokenizer.stops
    assert lm.sample(IDS, 30, as_str=False, temperature=0) == expected
    if where == "generation":
        theirs = hf_model.generate(torch.tensor([IDS]), num_beams=3, **options)[0].tolist()
        assert lm.beam_search(IDS, 30, as_str=False, n_beams=3)[0].sample == theirs
    hf_model.save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    lm = gpt2.get_pretrained(str(tmp_path))
    assert set(lm.tokenizer.stops) == {2, third, 49} if as_list else {2, third}
    assert lm.sample(IDS, 30, as_str=False, temperature=0) == expected


def test_a_given_tokenizer_is_not_changed():
    tokenizer = from_transformers(chat_tokenizer())
    lm = gpt2.from_hf(model(generation=[2, 0]), tokenizer)
    assert (tokenizer.stops, lm.tokenizer.stops) == ((2,), (2, 0))
    assert gpt2.from_hf(model(generation=[2]), tokenizer).tokenizer is tokenizer


def test_stops_and_chat_template_are_written_back(tmp_path):
    model(config=2, generation=[2, 0]).save_pretrained(tmp_path / "theirs")
    chat_tokenizer().save_pretrained(tmp_path / "theirs")
    lm = gpt2.get_pretrained(str(tmp_path / "theirs"))
    gpt2.to_hf(lm, tmp_path / "ours")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "ours" / name).read_text())["eos_token_id"] == [2, 0]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    chat = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(chat, tokenize=False) == "<|im_start|>hi<|im_end|>"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").generation_config.eos_token_id == [2, 0]
    again = gpt2.get_pretrained(str(tmp_path / "ours"))
    assert again.tokenizer.stops == lm.tokenizer.stops == (2, 0)
    assert again.tokenizer.specials == lm.tokenizer.specials


@pytest.mark.parametrize("qwen2", [False, True])
def test_to_hf_warns_where_transformers_will_not_keep_to_the_file(qwen2, tmp_path):
    """For Qwen2 AutoTokenizer takes its own class, whatever tokenizer_config.json names."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    hf_model = make_hf("qwen2" if qwen2 else "llama", vocab_size=N_TOKENS, num_key_value_heads=4, **sizes)
    lm = gpt2.from_hf(hf_model, from_transformers(chat_tokenizer()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gpt2.to_hf(lm, tmp_path)
    said = [str(one.message) for one in caught if "AutoTokenizer of transformers" in str(one.message)]
    assert len(said) == qwen2
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs("hi ab")["input_ids"] == lm.tokenizer("hi ab")
    assert gpt2.get_pretrained(str(tmp_path)).tokenizer("hi ab") == lm.tokenizer("hi ab")


def test_stops_and_chat_template_are_saved_with_a_run(tmp_path):
    model(config=[2, 0]).save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    tokenizer = pretrained_tokenizer(str(tmp_path))
    (folder := tmp_path / "saved").mkdir()
    tokenizer.save(folder)
    again = Tokenizer.load(folder)
    assert (again.stops, again.chat_template) == ((2, 0), TEMPLATE)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7, 1000, "a"]}')
    assert pretrained_tokenizer(str(tmp_path)).stops == (2, 0, 7)  # those that it knows
    (folder / "tokenizer_ids.json").write_text(
        '{"specials": {"pad": 0, "bos": null, "eos": 2, "unk": null}, "kept": null}'
    )
    assert Tokenizer.load(folder).stops == (2,)  # of a run saved before there were others
    cropped = tokenizer.cropped([0, 3, 4])
    assert cropped.stops == (cropped.eos, 0)


def test_templates_by_name_and_in_a_file_of_their_own(tmp_path):
    chat_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for given, expected in (
        ("{{ 1 }}", "{{ 1 }}"),
        (
            [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}],
            {"default": "a", "tools": "b"},
        ),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": given}))
        assert pretrained_tokenizer(str(tmp_path)).chat_template == expected
    (tmp_path / "chat_template.jinja").write_text("c")
    assert pretrained_tokenizer(str(tmp_path)).chat_template == "c"


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A model without bos, as Qwen2-Instruct."""
    folder = tmp_path_factory.mktemp("chat")
    model(config=0, generation=[2, 0]).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return gpt2.get_pretrained(str(folder))


def test_a_model_without_bos_gets_none(chat):
    t = chat.tokenizer
    a, b = t.encode_batch(["ab"])[0]
    assert t.bos is None
    assert t("ab") == [a, b]
    assert t(["ab", "b"]) == [[a, b], [b]]
    assert chat("ab").shape == (1, 2, N_TOKENS)
    assert chat.sample("ab", 3, as_str=False, temperature=0)[:2] == [a, b]
    assert chat.sample("ab", 4, temperature=0).startswith("ab")
    assert chat.beam_search("ab", 4, as_str=False)[0].sample[:2] == [a, b]
    assert chat.perplexities(["ab"]).total_tokens == 1
    assert chat.perplexities(["ab", ""]).mean == pytest.approx(chat.perplexities([[a, b]]).mean, rel=1e-4)
    assert chat.sample([0], 4, as_str=False)[0] == 0  # ids are taken as they stand


def test_a_model_without_bos_refuses_an_empty_prompt(chat):
    for call in (chat.sample, chat.beam_search):
        with pytest.raises(ValueError, match=r"pref='' gives .* nothing to continue: .* no bos"):
            call("")
    with pytest.raises(ValueError, match="at least one"):
        chat("")


def test_special_tokens_in_a_prompt_are_text_unless_one_asks(chat):
    t = chat.tokenizer
    text = "<|im_start|>a<|im_end|>"
    [a] = t("a")
    assert set(t(text)) & set(CHAT.values()) == set()
    assert t(text, parse_special=True) == [1, a, 2]
    assert t([text, "a"], parse_special=True) == [[1, a, 2], [a]]
    assert set(t(text)) & set(CHAT.values()) == set()  # nothing of it stays
    t(text, parse_special=True)
    assert t.rust.encode_special_tokens
    assert chat.sample(text, 5, as_str=False, parse_special=True)[:3] == [1, a, 2]
    assert len(chat.sample(text, 30, as_str=False)) > 20
    assert chat.beam_search(text, 5, as_str=False, parse_special=True)[0].sample[:3] == [1, a, 2]


def test_a_text_with_its_own_bos_gets_no_second_one():
    theirs = chat_tokenizer()
    theirs.bos_token = "<|im_start|>"
    t = from_transformers(theirs)
    [a] = t("a")[1:]
    assert t("<|im_start|>a", parse_special=True) == t("a", parse_special=True) == [1, a]


@pytest.mark.parametrize("stop", ["<|endoftext|>", "<|im_start|>", "a"])
def test_stop_takes_special_tokens_by_their_text(stop, chat):
    t = chat.tokenizer
    i = t.special_ids[stop] if stop in CHAT else t(stop)[0]
    lm = gpt2.from_hf(model())
    lm.tokenizer = from_transformers(chat_tokenizer())
    with torch.no_grad():
        lm.unembed.weight[i] += 5 * lm.unembed.weight.abs().max()
    rows = [
        lm.sample("bcd", 40, as_str=False, stop=stop, generator=torch.Generator().manual_seed(k))
        for k in range(20)
    ]
    assert any(row[-1] == i for row in rows)
    assert all(i not in row[3:-1] for row in rows)
    assert rows == [
        lm.sample("bcd", 40, as_str=False, stop=i, generator=torch.Generator().manual_seed(k))
        for k in range(20)
    ]
    with pytest.raises(ValueError, match=r"'<.nothing.>' is not one token"):
        lm.sample("bcd", stop="<|nothing|>")


def test_stop_tokens_are_left_out_of_the_text(chat):
    [a] = chat.tokenizer("a")
    assert chat.tokenizer.decode([a, 2]) == chat.tokenizer.decode([a, 0]) == "a"
    ordinary = gpt2.from_hf(model(generation=[a]), from_transformers(chat_tokenizer()))
    assert ordinary.tokenizer.decode([a]) == "a"  # an ordinary token that ends a sample is part of its text


def test_a_run_keeps_its_tokenizer_when_the_pretrained_folder_is_gone(tmp_path):
    """A run keeps its tokenizer when the pretrained one has gone."""
    chat_tokenizer().save_pretrained(tmp_path / "a")
    tokenizer = pretrained_tokenizer(str(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    assert tokenizer("ab")
    with pytest.raises(ValueError, match="is not on this machine"):
        pretrained_tokenizer(str(tmp_path / "a"))
