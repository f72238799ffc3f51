"""The HTML page holds the patterns of the model, and nothing but them: no foreign tag, no address, whatever a token says."""

import base64
import hashlib
import html
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel

import gpt2
from data.tokenizer import char_tokenizer, word_tokenizer
from explore.html import LEVELS, attention_film, attention_html, fill_page
from explore.inspection.patterns import Patterns, attention_patterns, visible
from explore.inspection.scores import detect_heads
from model.context import Layer
from model.lm import LM
from model.model_params import ModelParams


def little_lm(seed: int = 0, **fields) -> LM:
    torch.manual_seed(seed)
    fields = {"dim": 8, "n_layers": 2, "n_heads": 2, "max_seq_len": 20} | fields
    return LM(ModelParams(**fields), char_tokenizer("abcde ")).eval()


class Scripts(HTMLParser):
    """The tags of a page in order, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.texts.append(data)


def contents(page: str) -> tuple[dict, np.ndarray]:
    """Return what a browser reads from a page: the data, and the weights [step, head, T, S]."""
    data, packed, _ = Scripts(page).texts
    data = json.loads(data)
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    n_tokens, n_heads = len(data["tokens"]), sum(n for _, n in data["layers"])
    high, low = raw.reshape(len(data["steps"]), 2, n_heads, n_tokens, n_tokens).astype(int).swapaxes(0, 1)
    codes = (high << 8 | low) - ((high & 128) << 9)
    weights = np.sign(codes) * (codes / data["levels"]) ** 2
    return data, np.where(codes == -32768, np.nan, weights)


@torch.no_grad()
def attns_of(lm: LM, text: str) -> np.ndarray:
    return lm(text, get_attns=True)["attns"][0].flatten(0, 1).numpy()


def one_head(pattern_TS: np.ndarray) -> str:
    tokens = [f"t{i}" for i in range(len(pattern_TS))]
    return fill_page([(None, Patterns(tokens, {0: pattern_TS[None]}, 1))])


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({}, [[0, 2], [1, 2]]),
        ({"n_heads": 4, "n_kv_heads": 2, "attention": "fused"}, [[0, 4], [1, 4]]),
        ({"layer_architecture": "torch-transformer"}, [[0, 2], [1, 2]]),
        (
            {"layer_architecture": ("gated-conv", "custom-transformer", "torch-gru"), "n_layers": 6},
            [[1, 2], [4, 2]],
        ),
    ],
)
def test_the_weights_of_every_head_are_there(fields, layers):
    lm = little_lm(**fields)
    data, weights = contents(attention_html(lm, "abc abc").html)
    attns = attns_of(lm, "abc abc")
    assert data["layers"] == layers
    assert data["tokens"] == ["<bos>", *"abc·abc"]
    assert np.all(np.abs(weights[0] - attns) <= np.sqrt(attns) / LEVELS + 1e-6)
    assert np.all(np.triu(weights[0], 1) == 0)


def test_gpt2_has_the_same_page():
    config = GPT2Config(n_embd=8, n_layer=3, n_head=2, vocab_size=10, n_positions=16)
    lm = gpt2.from_hf(GPT2LMHeadModel(config), char_tokenizer("abcdef"))
    data, weights = contents(attention_html(lm, "abc").html)
    assert data["layers"] == [[0, 2], [1, 2], [2, 2]]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=2e-3)


def test_layers_without_patterns_are_named():
    lm = little_lm(layer_architecture=("gated-conv", "custom-transformer"), n_layers=3)
    assert (
        contents(attention_html(lm, "abc").html)[0]["about"] == "2 heads, 4 tokens; no patterns in layer 0, 2"
    )


def test_one_sequence_of_a_model_with_attention_is_asked_for():
    with pytest.raises(ValueError, match="one sequence, but the input is a batch of 2"):
        attention_html(little_lm(), torch.ones(2, 3))
    with pytest.raises(ValueError, match="layer_architecture='torch-lstm'"):
        attention_html(little_lm(layer_architecture="torch-lstm", positions="none"), "abc")


class OverFewerKeys(Layer):
    def forward(self, x_BTD, ctx):
        ctx.tap("pattern", torch.ones(len(x_BTD), 2, x_BTD.shape[1], 3))
        return x_BTD


def test_a_pattern_of_another_shape_is_refused():
    lm = little_lm()
    lm.decoder.layers[1] = OverFewerKeys()
    with pytest.raises(ValueError, match=r"layers.1.pattern has shape \(1, 2, 4, 3\), expected"):
        attention_html(lm, "abc")


def test_dropout_is_off_and_patched_patterns_are_shown():
    lm = LM(ModelParams(dim=8, n_layers=2, n_heads=2), char_tokenizer("abc"), dropout=0.5).train()
    assert attention_html(lm, "abc").html == attention_html(lm, "abc").html
    assert lm.training
    with lm.patch({"layers.1.pattern": lambda x: torch.eye(4).expand_as(x)}):
        _, weights = contents(attention_html(lm, "abc").html)
    np.testing.assert_array_equal(weights[0, 2:], np.broadcast_to(np.eye(4), (2, 4, 4)))


def test_weights_on_later_tokens_are_always_shown():
    pattern = np.eye(5, dtype=np.float32)
    pattern[1, 4], pattern[2, 3] = 1e-30, 0.25
    data, weights = contents(one_head(pattern))
    assert data["kinds"] == ["future"]
    assert data["leaks"] == [[0, 0.25]]
    assert weights[0, 0, 1, 4] > 0
    assert abs(weights[0, 0, 2, 3] - 0.25) < 1e-3
    assert (weights != 0).sum() == 7
    pattern[0, 1], pattern[0, 2] = np.nan, np.inf
    [[head, largest]] = contents(one_head(pattern))[0]["leaks"]
    assert (head, largest > 1e6) == (0, True)


def test_weights_outside_0_to_1_are_kept():
    pattern = np.tril(np.full((4, 4), 3.5, np.float32))
    pattern[2, 1], pattern[3, 0], pattern[3, 3], pattern[1, 1] = -0.7, np.nan, np.inf, 200
    data, weights = contents(one_head(pattern))
    assert data["kinds"] == ["nan", "negative"]
    assert data["leaks"] == []
    finite = np.isfinite(pattern)
    np.testing.assert_array_equal(np.isfinite(weights[0, 0]), finite)
    np.testing.assert_allclose(weights[0, 0][finite], pattern[finite], rtol=1e-3)


def test_a_film_has_one_page_for_all_steps():
    models = {0: little_lm(0), 100: little_lm(1), 250: little_lm(2)}
    data, weights = contents(attention_film(iter(models.items()), "abc").html)
    assert data["steps"] == [0, 100, 250]
    for shown, lm in zip(weights, models.values(), strict=True):
        np.testing.assert_allclose(shown, attns_of(lm, "abc"), atol=1e-3)
    assert contents(attention_html(models[0], "abc").html)[0]["steps"] == [None]


def test_a_film_is_of_one_model():
    with pytest.raises(ValueError, match="step 5 has other tokens, layers or heads"):
        attention_film([(0, little_lm()), (5, little_lm(n_heads=4))], "abc")
    with pytest.raises(ValueError, match="no checkpoints"):
        attention_film([], "abc")


def test_a_page_too_large_for_a_browser_is_refused(monkeypatch):
    monkeypatch.setattr("explore.html.MAX_WEIGHTS", 2 * 2 * 4 * 4)
    steps = [(0, little_lm()), (5, little_lm())]
    attention_film(steps[:1], "abc")
    with pytest.raises(ValueError, match="a page of 128 attention weights is too large"):
        attention_film(steps, "abc")


def test_a_page_is_saved_under_the_output_root(tmp_path, capsys):
    page = attention_html(little_lm(), "abc", filename="demo/first", out=str(tmp_path))
    path = tmp_path / "attentions" / "demo" / "first.html"
    assert path.read_text(encoding="utf-8") == page.html
    assert str(path) in capsys.readouterr().out
    assert len(repr(page)) < 100


def test_a_notebook_shows_a_page_in_an_iframe():
    page = attention_html(little_lm(), "abc")
    parsed = Scripts(page._repr_html_())
    [(tag, attrs)] = parsed.tags
    attrs = dict(attrs)
    assert tag == "iframe"
    assert attrs["srcdoc"] == page.html
    assert attrs["sandbox"] == "allow-scripts allow-downloads"
    assert re.search(r"height: \d+px", attrs["style"])


def test_the_page_is_complete_and_runs_one_script_only():
    page = attention_html(little_lm(), "abc").html
    assert not re.search(r"<!--\w+-->", page)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|\bsrc=|href=|innerHTML|eval\(", page)
    [policy] = [dict(attrs)["content"] for tag, attrs in Scripts(page).tags if "http-equiv" in dict(attrs)]
    digest = base64.b64encode(hashlib.sha256(Scripts(page).texts[-1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_title_names_model_run_and_text():
    lm = little_lm()
    lm.name = "2024-04-22--16-17-00, step <500>"
    page = attention_html(lm, "abc " * 4).html
    name = "2024-04-22--16-17-00, step <500>: custom-transformer, 2 layers of dim 8"
    assert contents(page)[0]["name"] == name
    title = re.search("<title>(.*)</title>", page)
    assert html.unescape(title[1]) == f"{name}: <bos>abc abc abc abc "


def test_the_page_has_scores_and_relative_norms_of_values():
    lm = little_lm(n_heads=4, n_kv_heads=2)
    data, _ = contents(attention_html(lm, "abcabc").html)
    [scores] = data["scores"]
    assert list(scores) == ["previous token", "duplicate token", "induction", "sink", "entropy"]
    table = detect_heads(lm, "abcabc")
    for name in ("previous_token", "duplicate_token", "induction"):
        assert scores[name.replace("_", " ")] == pytest.approx(table[name].tolist(), abs=1e-4)
    pattern_HTS = np.concatenate(list(attention_patterns(lm, "abcabc").of_layer.values()))
    assert scores["sink"] == pytest.approx(pattern_HTS[:, 1:, 0].mean(axis=1), abs=1e-4)
    entropy_HT = [[stats.entropy(row) for row in pattern_TS] for pattern_TS in pattern_HTS]
    assert scores["entropy"] == pytest.approx(np.mean(entropy_HT, axis=1), abs=1e-4)
    with torch.no_grad(), lm.record("v") as seen:
        lm("abcabc")
    norms = torch.cat([seen[f"layers.{i}.v"][0].norm(dim=-1).repeat_interleave(2, dim=0) for i in (0, 1)])
    expected = norms / norms.amax(dim=1, keepdim=True)
    np.testing.assert_allclose(data["norms"][0], expected, atol=1e-4)
    lm = little_lm(layer_architecture="torch-transformer")
    assert contents(attention_html(lm, "abc").html)[0]["norms"] == [[None] * 4]


EVIL = [
    "</script><img src=x onerror=alert(1)>",
    "<!--",
    "<!--weights-->",
    "\u2028",
    "\"'&",
    "<script>",
    "]]>",
    "\\",
]


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(EVIL), st.text(max_size=9)), min_size=1, max_size=6))
def test_no_token_escapes_from_its_string(tokens):
    patterns = {0: np.eye(len(tokens), dtype=np.float32)[None]}
    page = fill_page([(None, Patterns([visible(token) for token in tokens], patterns, 1))])
    plain = fill_page([(None, Patterns(["a"] * len(tokens), patterns, 1))])
    assert Scripts(page).tags == Scripts(plain).tags
    data, weights = contents(page)
    assert data["tokens"] == [visible(token) for token in tokens]
    np.testing.assert_array_equal(weights, patterns[0][None])
    page.encode("utf-8")


@given(st.text(max_size=20))
def test_invisible_characters_are_escaped(token):
    shown = visible(token)
    assert shown.isprintable()
    assert not any(character.isspace() for character in shown)
    if token.isprintable():
        assert shown.removeprefix("◌") == token.replace(" ", "·")


def test_some_odd_tokens_as_they_are_shown():
    lm = LM(
        ModelParams(dim=8, n_layers=1, n_heads=2), word_tokenizer(["a\u200bb", "\u202e", "\u0301", "שלום"])
    )
    tokens = attention_patterns(lm, torch.tensor([[1, 4, 5, 6, 7]])).tokens
    assert tokens == ["<bos>", "a\\u200bb", "◌\u0301", "שלום", "\\u202e"]
    assert [visible(token) for token in ("\t", "\x00", " a", "\ud800", "\xa0")] == [
        "\\t",
        "\\x00",
        "·a",
        "\\ud800",
        "\\xa0",
    ]
