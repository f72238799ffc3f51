"""Pretrained tokenizers: the ids are those of tokenizer.json itself, whatever class its config names."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from data.hub import name_and_revision
from data.tokenizer import (
    Specials,
    Tokenizer,
    TokenizerSpec,
    from_transformers,
    make_tokenizer,
    pretrained_tokenizer,
)

TEXT = "Steps:\n\n1. Mix 250 g\n2. Bake the Café's CAKE, don't eat ½ of ﬁve!  漢字 naïve 🙂 x2048\n<|endoftext|> <s>"
BYTES = pre_tokenizers.ByteLevel.alphabet()
LLAMA3 = Regex(r"\p{N}{1,3}| ?[^\s\p{N}]+|\s+")


class Layout(NamedTuple):
    """A tokenizer.json, and what lies beside it."""

    tokenizer_class: str
    normalizer: normalizers.Normalizer | None
    pre_tokenizer: pre_tokenizers.PreTokenizer
    specials: tuple[str, ...] = ("<|endoftext|>",)
    named: dict = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    expected: Specials = Specials(0, 0, 0, 0)
    model: str = "bpe"


def split_then_bytes(first: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


DIGITS = split_then_bytes(pre_tokenizers.Digits(individual_digits=True))
PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False)
GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
S = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"} | {
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True},
}
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_IDS = Specials(0, 2, 3, 1)
LLAMA = ("<unk>", "<s>", "</s>")
NO_ACCENTS = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
LAYOUTS = {
    "digits one by one, as SmolLM2": Layout("GPT2Tokenizer", None, DIGITS, named=GPT2),
    "another regex": Layout("GPT2TokenizerFast", None, split_then_bytes(pre_tokenizers.Split(LLAMA3, "isolated")), named=GPT2),
    "a prefix space": Layout("GPT2Tokenizer", None, pre_tokenizers.ByteLevel(add_prefix_space=True), named=GPT2),
    "nothing named, by the class": Layout("GPT2Tokenizer", normalizers.NFKC(), PLAIN, named={}),
    "neox without NFC": Layout("GPTNeoXTokenizer", None, DIGITS, named=GPT2),
    "neox with NFKC": Layout("GPTNeoXTokenizerFast", normalizers.NFKC(), PLAIN, named=GPT2),
    "qwen in lower case": Layout("Qwen2Tokenizer", normalizers.Lowercase(), PLAIN, CHAT, QWEN, Specials(0, None, 2, 0)),
    "qwen with digits by three": Layout(
        "Qwen2Tokenizer", normalizers.NFC(), split_then_bytes(pre_tokenizers.Split(LLAMA3, "isolated")), CHAT, QWEN, Specials(0, None, 2, 0)
    ),
    "roberta in lower case": Layout("RobertaTokenizer", normalizers.Lowercase(), PLAIN, S, ROBERTA, Specials(1, 0, 2, 3)),
    "roberta without accents": Layout("RobertaTokenizerFast", NO_ACCENTS, PLAIN, S, {}, Specials(1, 0, 2, 3)),
    "bert cased": Layout(
        "BertTokenizer", normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer(), BERT, {}, BERT_IDS, "wordpiece"
    ),
    "bert with accents, CJK in one piece": Layout(
        "BertTokenizerFast",
        normalizers.BertNormalizer(lowercase=True, strip_accents=False, handle_chinese_chars=False),
        pre_tokenizers.Whitespace(),
        BERT,
        dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT, strict=True)),
        BERT_IDS,
        "wordpiece",
    ),
    "llama, prepend never": Layout(
        "LlamaTokenizer", None, pre_tokenizers.Metaspace(prepend_scheme="never"), LLAMA, {}, Specials(2, 1, 2, 0), "unk"
    ),
    "llama, bytes": Layout("LlamaTokenizerFast", None, DIGITS, LLAMA, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, Specials(2, 1, 2, 0)),
    "unigram": Layout("PreTrainedTokenizerFast", normalizers.NFKC(), pre_tokenizers.Metaspace(), LLAMA, {}, Specials(None, None, None, 0), "unigram"),
    "of no class": Layout("PreTrainedTokenizerFast", normalizers.Lowercase(), DIGITS, named=GPT2),
}  # fmt: skip


def write(folder: Path, layout: Layout, **config) -> RustTokenizer:
    """A tokenizer of this layout as a model's folder holds it, trained on TEXT."""
    options = {"special_tokens": list(layout.specials), "show_progress": False, "vocab_size": 700}
    if layout.model == "wordpiece":
        rust = RustTokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(**options)
    elif layout.model == "unigram":
        rust = RustTokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    else:
        unk = {"unk_token": "<unk>"} if layout.model == "unk" else {}
        rust = RustTokenizer(models.BPE(**unk))
        trainer = trainers.BpeTrainer(initial_alphabet=[] if unk else BYTES, **options)
        rust.decoder = decoders.Metaspace() if unk else decoders.ByteLevel()
    rust.pre_tokenizer = layout.pre_tokenizer
    if layout.normalizer:
        rust.normalizer = layout.normalizer
    rust.train_from_iterator([TEXT.replace("<", "").replace(">", "")] * 20, trainer)
    rust.save(str(folder / "tokenizer.json"))
    settings = layout.named | {"tokenizer_class": layout.tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config), encoding="utf-8")
    return rust


def raw_ids(folder: Path, text: str) -> list[int]:
    raw = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    raw.encode_special_tokens = True
    return raw.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_are_those_of_the_file(name, tmp_path):
    layout = LAYOUTS[name]
    write(tmp_path, layout)
    tokenizer = pretrained_tokenizer(str(tmp_path))
    for text in (TEXT, TEXT[::-1], "", " Two  SPACES é"):
        assert tokenizer.encode_batch([text]) == [raw_ids(tmp_path, text)]
    assert tokenizer.specials == layout.expected
    assert tokenizer("Mix")[: len(tokenizer.begin)] == [i for i in [layout.expected.bos] if i is not None]
    mask = next((i for i, text in enumerate(layout.specials) if "mask" in text.lower()), None)
    assert tokenizer.mask == mask
    again = Tokenizer.load(saved(tokenizer, tmp_path / "saved"))
    assert again(TEXT) == tokenizer(TEXT)
    assert again.identity == tokenizer.identity


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "unigram"])
def test_an_object_of_transformers_has_the_ids_of_its_file(name, tmp_path):
    write(tmp_path, LAYOUTS[name])
    tokenizer = from_transformers(AutoTokenizer.from_pretrained(tmp_path))
    assert tokenizer.encode_batch([TEXT]) == [raw_ids(tmp_path, TEXT)]
    assert tokenizer.specials == LAYOUTS[name].expected


def test_a_changed_tokenizer_object_is_used_as_it_is(tmp_path):
    write(tmp_path, LAYOUTS["digits one by one, as SmolLM2"])
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["CAKE"])
    assert from_transformers(theirs).encode_batch(["CAKE"]) == [[theirs.convert_tokens_to_ids("CAKE")]]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert from_transformers(theirs).encode_batch(["MIX"]) == [raw_ids(tmp_path, "mix")]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.pad_token = theirs.eos_token
    theirs(["a", "a b"], padding=True)  # which leaves traces in the object, of no concern here
    assert from_transformers(theirs).encode_batch([TEXT]) == [raw_ids(tmp_path, TEXT)]


def test_an_object_made_from_a_vocabulary_has_no_file(tmp_path, monkeypatch):
    write(tmp_path, LAYOUTS["digits one by one, as SmolLM2"])
    monkeypatch.chdir(tmp_path)
    theirs = BertTokenizer(vocab={word: i for i, word in enumerate([*BERT, "the", "cat", "##s"])})
    assert from_transformers(theirs)("The cats") == [2, 5, 6, 7]


def test_without_tokenizer_json_transformers_makes_the_tokenizer(tmp_path):
    words = [*BERT, "the", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert pretrained_tokenizer(str(tmp_path))("The cats") == [2, 5, 6, 7]


def test_ids_of_the_config_count_if_nothing_else_names_them(tmp_path):
    """As in the folder of somebody who trained a tokenizer with the `tokenizers` library and saved the model beside it."""
    write(tmp_path, LAYOUTS["of no class"], bos_token_id=0, eos_token_id=[0])
    (tmp_path / "tokenizer_config.json").unlink()
    assert pretrained_tokenizer(str(tmp_path)).specials == Specials(0, 0, 0, None)
    write(tmp_path, LAYOUTS["of no class"], bos_token_id=5, eos_token_id=5)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = pretrained_tokenizer(str(tmp_path))
    assert tokenizer.specials == Specials(None, None, None, None)  # 5 is an ordinary token
    assert tokenizer.stops == (5,)  # though the model's end


def test_an_edited_folder_is_read_again(tmp_path):
    write(tmp_path, LAYOUTS["of no class"])
    before = pretrained_tokenizer(str(tmp_path))
    assert pretrained_tokenizer(str(tmp_path)) is before
    write(tmp_path, LAYOUTS["another regex"])
    assert pretrained_tokenizer(str(tmp_path)).encode_batch([TEXT]) == [raw_ids(tmp_path, TEXT)]
    assert before.encode_batch([TEXT]) != [raw_ids(tmp_path, TEXT)]


def test_a_folder_of_weights_alone_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"a folder without a tokenizer .*save_pretrained\(folder\)"
    ) as caught:
        pretrained_tokenizer(str(tmp_path))
    assert ":)" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 3}'])
def test_a_damaged_file_is_one_sentence(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="holds no readable tokenizer: ") as caught:
        pretrained_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_beside_the_tokenizer_is_one_sentence(tmp_path):
    write(tmp_path, LAYOUTS["of no class"])
    for name in ("tokenizer_config.json", "config.json"):
        before = (tmp_path / name).read_text(encoding="utf-8")
        for content in ("[1]", "{", '{"added_tokens_decoder": 3, "chat_template": 7}'):
            (tmp_path / name).write_text(content, encoding="utf-8")
            if name == "config.json" and content.startswith('{"'):
                continue
            with pytest.raises(ValueError, match="holds no readable tokenizer: "):
                pretrained_tokenizer(str(tmp_path))
        (tmp_path / name).write_text(before, encoding="utf-8")


def in_the_hubs_cache(cache: Path, commit: str, name: str = "some/model", branch: str = "main") -> Path:
    """The folder of a commit of a repository as the hub's client lays it out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    (folder := repository / "snapshots" / commit).mkdir(parents=True)
    return folder


def test_the_revision_reaches_the_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("data.tokenizer.hub_answers", lambda: False)
    main = in_the_hubs_cache(tmp_path, "a" * 40)
    step = in_the_hubs_cache(tmp_path, "b" * 40, branch="step1000")
    write(main, LAYOUTS["of no class"])
    write(step, LAYOUTS["another regex"])
    assert name_and_revision("some/model@step1000") == ("some/model", "step1000")
    for tokenizer, folder in (
        (pretrained_tokenizer("some/model"), main),
        (pretrained_tokenizer("some/model", "step1000"), step),
        (pretrained_tokenizer("some/model@step1000"), step),
        (make_tokenizer(TokenizerSpec("some/model@" + "b" * 40), list), step),
    ):
        assert tokenizer.encode_batch([TEXT]) == [raw_ids(folder, TEXT)]
    with pytest.raises(ValueError, match="tokenizer_source_name='some/model@step2' is not on this machine"):
        pretrained_tokenizer("some/model@step2")


def test_a_cached_tokenizer_json_alone_is_not_a_complete_tokenizer(tmp_path, monkeypatch):
    """The library `tokenizers` downloads that file alone, which does not say what begins and ends a text."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("data.tokenizer.hub_answers", lambda: False)
    folder = in_the_hubs_cache(tmp_path, "a" * 40)
    write(folder, LAYOUTS["of no class"])
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="'some/model' is not on this machine"):
        pretrained_tokenizer("some/model")


def test_missing_files_of_a_cached_tokenizer_are_downloaded(tmp_path, monkeypatch):
    """Offline, the tokenizer's class says what tokenizer_config.json would have said, as in transformers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = in_the_hubs_cache(tmp_path, "a" * 40)
    write(folder, LAYOUTS["qwen in lower case"], model_type="qwen2", eos_token_id=[2, 10**15])
    config = (folder / "tokenizer_config.json").read_bytes()
    (folder / "tokenizer_config.json").unlink()
    monkeypatch.setattr("data.tokenizer.hub_answers", lambda: False)
    assert pretrained_tokenizer("some/model").eos == 0
    asked = []

    def download(name, revision, files):
        asked.append((name, revision, "tokenizer_config.json" in files))
        (folder / "tokenizer_config.json").write_bytes(config)
        return folder

    monkeypatch.setattr("data.tokenizer.hub_answers", lambda: True)
    monkeypatch.setattr("data.tokenizer.download_snapshot", download)
    for _ in range(2):
        assert (pretrained_tokenizer("some/model").eos, pretrained_tokenizer("some/model").stops) == (2, (2,))
    assert asked == [("some/model", None, True)]


# Tokenizers without special tokens

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "it", "did", "so"]


@pytest.fixture
def bare(tmp_path) -> Path:
    """A folder of a tokenizer that knows ten words and nothing special."""
    rust = RustTokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=rust).save_pretrained(tmp_path)
    return tmp_path


def test_without_special_tokens_every_id_is_text(bare):
    tokenizer = pretrained_tokenizer(str(bare))
    assert tokenizer.specials == Specials(None, None, None, None)
    assert tokenizer.stops == ()
    assert tokenizer("the cat") == [0, 1]
    assert tokenizer.decode([0, 1]) == "the cat"
    assert tokenizer.pad in range(tokenizer.n_tokens)
    theirs = from_transformers(AutoTokenizer.from_pretrained(bare))
    assert (theirs.specials, theirs("the")) == (tokenizer.specials, [0])


@pytest.mark.parametrize("crop", [False, True])
def test_training_gives_them_special_tokens_behind_all_others(crop, bare, tmp_path):
    tokenizer = make_tokenizer(TokenizerSpec(str(bare), crop=crop), lambda: [" ".join(WORDS)])
    assert tokenizer("the cat dog") == [tokenizer.bos, 0, 1, tokenizer.unk]
    assert len({*tokenizer.specials}) == 4
    assert min(tokenizer.specials) >= 10
    assert max(tokenizer.specials) == tokenizer.n_tokens - 1
    assert tokenizer.decode([tokenizer.bos, 0, 1, tokenizer.eos]) == "the cat"
    assert tokenizer.stops == (tokenizer.eos,)
    again = Tokenizer.load(saved(tokenizer, tmp_path / "saved"))
    assert (again.specials, again("the cat dog")) == (tokenizer.specials, tokenizer("the cat dog"))


def test_characters_without_special_tokens(tmp_path):
    """BPE without an unknown token: what it does not know leaves no token, here and in tokenizer.json itself."""
    rust = RustTokenizer(models.BPE({"a": 0, "b": 1}, []))
    rust.decoder = decoders.Fuse()
    rust.save(str(tmp_path / "tokenizer.json"))
    tokenizer = make_tokenizer(TokenizerSpec(str(tmp_path)), list)
    assert tokenizer("abxa")[1:] == [0, 1, 0]
    assert min(tokenizer.specials) == 2
    assert tokenizer.decode(tokenizer("ab")) == "ab"
