"""Tokenizers: round trips, special ids, cropping, saving, and hostile files."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from data.corpora import corpora
from data.data_params import DataParams
from data.problems import data_problems
from data.text_rows import TextData
from data.tokenizer import (
    Specials,
    Tokenizer,
    TokenizerSpec,
    check_spec,
    from_transformers,
    make_tokenizer,
    pretrained_tokenizer,
    recipes,
    register_tokenizer,
    spec_identity,
    word_tokenizer,
)

TEXTS = ["the cat sat on the mat\n", "a <bos> in the text, and <|endoftext|>", "naïve café 🙂"] * 3


@pytest.fixture(scope="session")
def gpt2_folder(gpt2_tokenizer, tmp_path_factory):
    """GPT-2's own tokenizer as transformers saves it."""
    folder = tmp_path_factory.mktemp("gpt2-tokenizer")
    gpt2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A small tokenizer of BERT's kind."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "[", "]", "sep"]
    folder = tmp_path_factory.mktemp("bert-tokenizer")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def own(source, texts=TEXTS, vocab_size=300):
    return make_tokenizer(TokenizerSpec(source, vocab_size), lambda: iter(texts))


@pytest.fixture(params=["char", "custom"])
def tokenizer(request):
    return own(request.param)


def test_special_ids_of_our_tokenizers(tokenizer):
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_and_text_that_looks_like_special_tokens(tokenizer, text):
    ids = tokenizer(text)
    assert ids[0] == tokenizer.bos
    assert not set(ids[1:]) & set(tokenizer.specials)
    assert tokenizer.decode([*ids, tokenizer.eos, tokenizer.pad]) == text
    assert tokenizer([text, "the"]) == [ids, tokenizer("the")]
    assert len(tokenizer.tokens(ids)) == len(ids)
    assert tokenizer.tokens(ids)[0] == "<bos>"
    assert max(ids) < tokenizer.n_tokens


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_knows_every_text(text):
    tokenizer = own_bpe
    assert tokenizer.decode(tokenizer(text)) == text


own_bpe = own("custom")


def test_an_unknown_character_is_a_token_of_its_own():
    tokenizer = own("char", ["abc"])
    assert tokenizer.n_tokens == 7
    assert tokenizer("a??b") == [1, 4, 3, 3, 5]
    assert tokenizer.tokens([4, 3]) == ["a", "<unk>"]


def test_bpe_learns_from_the_text_up_to_its_size():
    tokenizer = own("custom", ["the cat sat on the mat " * 20], 270)
    assert tokenizer.n_tokens == 270
    assert len(tokenizer("the")) < 4


def test_bpe_needs_room_for_the_bytes():
    with pytest.raises(ValueError, match="tokenizer_vocab_size=100 must be at least 260"):
        check_spec(TokenizerSpec("custom", 100))


def test_a_word_tokenizer_splits_at_spaces():
    tokenizer = word_tokenizer(["12", "1", "+"])
    assert tokenizer("1 + 12 + 7") == [1, *tokenizer.ids_of(["1", "+", "12", "+", "7"])]
    assert tokenizer.ids_of(["7"]) == [tokenizer.unk]
    assert tokenizer.decode(tokenizer("1 + 12")) == "1 + 12"


def test_gpt2s_tokenizer_gives_its_ids(gpt2_folder):
    tokenizer = make_tokenizer(TokenizerSpec(str(gpt2_folder)), list)
    assert tokenizer.specials == Specials(50256, 50256, 50256, 50256)
    assert tokenizer.n_tokens == 50257
    assert tokenizer("well the weather") == [50256, 4053, 262, 6193]
    assert tokenizer.decode(tokenizer(TEXTS[1])) == TEXTS[1]
    assert 50256 not in tokenizer(TEXTS[1])[1:]


def test_berts_tokenizer_gives_its_ids(bert_folder):
    tokenizer = make_tokenizer(TokenizerSpec(str(bert_folder)), list)
    assert tokenizer.specials == Specials(pad=0, bos=2, eos=3, unk=1)
    assert tokenizer("the cats") == [2, 5, 6, 7]
    assert tokenizer("dog [SEP]") == [2, 1, 8, 10, 9]


def test_a_cropped_tokenizer_keeps_the_tokens_of_the_text(gpt2_folder):
    tokenizer = make_tokenizer(
        TokenizerSpec(str(gpt2_folder), crop=True), lambda: ["well the weather", "the end"]
    )
    # The tokens: well, the (with and without space), weather, end; <|endoftext|>; unk.
    assert tokenizer.n_tokens == 4 + 1 + 1 + 1
    ids = tokenizer("well the weather")
    assert tokenizer.decode(ids) == "well the weather"
    assert tokenizer.bos == tokenizer.eos == tokenizer.pad != tokenizer.unk
    assert tokenizer("well zebra")[2:] == [tokenizer.unk] * (len(tokenizer("well zebra")) - 2)
    assert tokenizer.tokens([tokenizer.unk]) == ["<unk>"]
    assert tokenizer("") == [tokenizer.bos]


@pytest.mark.parametrize("kind", ["char", "custom", "words", "cropped"])
def test_a_saved_tokenizer_is_loaded_unchanged(kind, tmp_path, gpt2_folder):
    if kind == "words":
        tokenizer = word_tokenizer(["the", "mat"])
    elif kind == "cropped":
        tokenizer = make_tokenizer(TokenizerSpec(str(gpt2_folder), crop=True), lambda: TEXTS)
    else:
        tokenizer = own(kind)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    for text in [*TEXTS, "zebra <eos>"]:
        assert loaded(text) == tokenizer(text)
        assert loaded.decode(loaded(text)) == tokenizer.decode(tokenizer(text))
    assert (loaded.specials, loaded.n_tokens) == (tokenizer.specials, tokenizer.n_tokens)
    assert loaded.fingerprint == tokenizer.fingerprint


def test_fingerprints_tell_tokenizers_apart(bert_folder):
    bert = make_tokenizer(TokenizerSpec(str(bert_folder)), list)
    others = [own("char"), own("char", ["abc"]), own("custom"), bert, bert.cropped([5]), bert.cropped([5, 6])]
    assert len({other.fingerprint for other in others}) == len(others)


# The tokenizers library panics when it reads this, which is no Exception to Python.
PANIC = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    "added_tokens": [],
}
IDS = {"specials": {"pad": 0, "bos": 1, "eos": 2, "unk": 3}, "kept": None}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"\x80\x04\x95pickle"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}'),
        ("tokenizer.json", json.dumps(PANIC).encode()),
        ("tokenizer_ids.json", b"[" * 100_000),
        ("tokenizer_ids.json", b"null"),
        ("tokenizer_ids.json", b'{"specials": 3}'),
        ("tokenizer_ids.json", json.dumps(IDS | {"specials": IDS["specials"] | {"sep": 1}}).encode()),
        ("tokenizer_ids.json", json.dumps(IDS | {"specials": IDS["specials"] | {"bos": -1}}).encode()),
        ("tokenizer_ids.json", json.dumps(IDS | {"specials": IDS["specials"] | {"bos": 10**9}}).encode()),
        ("tokenizer_ids.json", json.dumps(IDS | {"specials": IDS["specials"] | {"bos": "1"}}).encode()),
        ("tokenizer_ids.json", json.dumps(IDS | {"kept": [0, 1, 2, 10**9]}).encode()),
        ("tokenizer_ids.json", json.dumps(IDS | {"kept": [3, 2, 1, 0]}).encode()),
        ("tokenizer_ids.json", json.dumps(IDS | {"kept": "all"}).encode()),
        ("tokenizer_ids.json", None),
    ],
)
def test_a_damaged_or_foreign_file_is_one_sentence(name, content, tmp_path):
    own("char").save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="holds no readable tokenizer: ") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_the_hub_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr("data.tokenizer.hub_answers", lambda: False)
    with pytest.raises(
        ValueError, match="tokenizer_source_name='gpt2-nowhere' is not on this machine and the hub cannot be"
    ):
        check_spec(TokenizerSpec("gpt2-nowhere"))


@pytest.mark.slow
@pytest.mark.ci
def test_from_transformers_leaves_the_original_alone(gpt2_folder):
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained(gpt2_folder)
    from_transformers(original)
    assert original("<|endoftext|>").input_ids == [50256]


@pytest.fixture
def words(monkeypatch):
    """A tokenizer of the user's own: one function, which is all it takes."""
    monkeypatch.setattr(recipes, "entries", dict(recipes.entries))

    def check_size(spec: TokenizerSpec) -> None:
        if spec.vocab_size < 10:
            raise ValueError(f"tokenizer_vocab_size={spec.vocab_size} must be at least 10")

    @register_tokenizer(check=check_size)
    def words(texts, spec):
        """A token for each of the first words."""
        found = {word for text in texts() for word in text.split()}
        return word_tokenizer(sorted(found)[: spec.vocab_size])

    @register_tokenizer
    def bare(texts, spec):
        return Tokenizer(words(texts, spec).rust, Specials(None, None, None, None))

    return words


def test_a_tokenizer_is_added_by_a_decorator(words, monkeypatch, tmp_path):
    documents = [f"the cat {i}" for i in range(40)]
    monkeypatch.setitem(corpora, "mine", lambda: iter(documents))
    data = TextData(DataParams(dataset_name="mine"), TokenizerSpec("words", 20), tmp_path)
    assert data.tokenizer.n_tokens == 4 + 20
    assert data.tokenizer.decode(data.tokenizer("10 11")) == "10 11"
    smaller = TextData(DataParams(dataset_name="mine"), TokenizerSpec("words", 12), tmp_path)
    assert smaller.tokenizer.n_tokens == 4 + 12
    bare = TextData(DataParams(dataset_name="mine"), TokenizerSpec("bare", 12), tmp_path)
    assert bare.tokenizer.specials == Specials(0, 1, 2, 3)  # every text has an end


def test_a_registered_tokenizer_is_checked_with_the_grid(words):
    text = DataParams(dataset_name="sotu")
    assert not list(data_problems(text, TokenizerSpec("words", 20), 32))
    [problem] = data_problems(text, TokenizerSpec("words", 5), 32)
    assert problem.endswith("tokenizer_vocab_size=5 must be at least 10")


def test_a_nearly_right_tokenizer_name_gets_a_hint(monkeypatch):
    monkeypatch.setattr("data.tokenizer.hub_answers", lambda: False)
    for name in ("chars", "costum"):
        [problem] = data_problems(DataParams(dataset_name="sotu"), TokenizerSpec(name), 32)
        right = "char" if name == "chars" else "custom"
        assert f"tokenizer_source_name={name!r} is not on this machine" in problem
        assert f"did you mean {right!r}? there are: char, custom" in problem


def test_the_code_of_a_registered_tokenizer_is_part_of_its_identity(tmp_path, monkeypatch):
    """An edit of its code misses the cache, as an edit of a task does."""
    monkeypatch.setattr(recipes, "entries", dict(recipes.entries))
    file, found = tmp_path / "mine.py", set()
    for n in (1, 2, 2):
        file.write_text(f"def mine(texts, spec):\n    return {n}\n")
        namespace: dict = {}
        exec(compile(file.read_text(), str(file), "exec"), namespace)  # noqa: S102 -- as an import of it does
        register_tokenizer(namespace["mine"])
        found.add(spec_identity(TokenizerSpec("mine")))
    assert len(found) == 2


def n_unknown(tokenizer, text):
    return tokenizer.unknown_bytes(text, tokenizer.encode_batch([text])[0])


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("char", "abcab", 0),
        ("char", "a?b\u00e9\u6f22", 1 + 2 + 3),
        ("char", "a \n", 2),  # spaces are characters like others
        ("custom", "a?b\u00e9\u6f22 \U0001f642", 0),
        ("dropping", "a?b\u00e9 \u6f22", 1 + 2 + 3),
        ("words", "the dog  sat\n", 3),
        ("bert", "the dog, cats", 3 + 1),
        ("cropped", "well zebra", 6),
        ("cropped", "well the weather", 0),
    ],
)
def test_bytes_behind_unknown_tokens(kind, text, expected, request, gpt2_folder, bert_folder):
    if kind == "dropping":
        tokenizer = Tokenizer(
            RustTokenizer(models.BPE({"a": 0, "b": 1}, [])), Specials(None, None, None, None)
        )
    elif kind == "words":
        tokenizer = word_tokenizer(["the", "sat"])
    elif kind == "bert":
        tokenizer = make_tokenizer(TokenizerSpec(str(bert_folder)), list)
    elif kind == "cropped":
        spec = TokenizerSpec(str(gpt2_folder), crop=True)
        tokenizer = make_tokenizer(spec, lambda: ["well the weather"])
    else:
        tokenizer = own(kind, ["abc" * 9])
    assert n_unknown(tokenizer, text) == expected


@pytest.mark.parametrize("content", [PANIC, {}, PANIC | {"normalizer": {"type": "unheard of"}}])
def test_a_pretrained_folder_that_makes_the_library_panic_is_one_sentence(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "a"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="tokenizer_source_name=") as caught:
        pretrained_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
