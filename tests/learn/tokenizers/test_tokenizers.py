"""Foundations of the tokenizers course: its references, GPT-2's own merges, and a spy that sees the packages."""

import json
from contextlib import suppress

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import BertTokenizer, GPT2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from data.tokenizer import bpe_tokenizer
from learn.__main__ import main
from learn.checking.course import NotTried, get_course, judge, load_module
from learn.checking.spy import Spy
from learn.courses.tokenizers import checks, differences, references
from learn.courses.tokenizers.texts import HARD, manual, pieces, speech

COURSE = get_course("tokenizers")
SOLUTION = load_module(COURSE.outline.solution)
CASE = COURSE.case("ByteLevelBPE", SOLUTION, SOLUTION)


def test_with_the_merges_of_the_real_gpt2(gpt2_tokenizer, monkeypatch):
    rust = Tokenizer.from_str(gpt2_tokenizer.backend_tokenizer.to_str())
    rust.encode_special_tokens = True
    monkeypatch.setattr(references, "gpt2_tokenizer", lambda: rust)
    checks.gpt2_merges(CASE)
    merges = references.merges_of(rust)
    ours = SOLUTION.ByteLevelBPE(merges)
    assert len(merges) == 50_000
    assert len(ours.vocabulary) == 50_256
    assert ours.vocabulary.items() <= rust.get_vocab().items()
    assert ours.decode(ours.encode("".join(HARD))) == "".join(HARD)


@pytest.mark.parametrize("answers", [False, True])
def test_without_the_hub_the_check_of_gpt2s_merges_is_skipped(answers, monkeypatch):
    def unreachable(name):
        raise OSError(name)

    monkeypatch.setattr(references.Tokenizer, "from_pretrained", unreachable)
    monkeypatch.setattr(references, "hub_answers", lambda: answers)
    with pytest.raises(NotTried, match="GPT-2's own merges"):
        checks.gpt2_merges(CASE)


def test_the_table_of_bytes_is_that_of_transformers():
    assert references.byte_characters() == bytes_to_unicode()


def test_berts_reference_is_that_of_transformers():
    specials = {token: 2000 + i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])}
    bert = BertTokenizer(vocab=references.trained_vocabulary() | specials)
    for text in [*(text for text in HARD if "[" not in text), *pieces()[::50]]:
        ids = references.trained_wordpiece().encode(text).ids
        assert bert(text, add_special_tokens=False)["input_ids"] == ids


def test_numbering_characters_in_order_leaves_wordpiece_training_as_it_is():
    texts = (speech()[:5_000],)
    plain = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    plain.normalizer, plain.pre_tokenizer = references.BERT_NORMALIZER, references.BERT_SPLIT
    trainer = trainers.WordPieceTrainer(vocab_size=10_000, special_tokens=["[UNK]"], show_progress=False)
    plain.train_from_iterator(texts, trainer)  # all there is to merge, so that no tie is left out
    assert set(references.train_wordpiece(texts, 100)) < set(plain.get_vocab())


def test_sample_texts_contain_the_hard_cases():
    ids = [i for text in HARD for i in references.trained_wordpiece().encode(text).ids]
    assert ids.count(0) > 5, "there are unknown words"
    whole = [
        references.trained_bpe().decode([i])
        for text in HARD
        for i in references.trained_bpe().encode(text).ids
    ]
    assert sum("\N{REPLACEMENT CHARACTER}" in token for token in whole) > 10, (
        "characters lie in several tokens"
    )
    assert len(speech()) == 60_000
    assert len(manual()) == 40_000


def encode_with_tiktoken():
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)}
    return tiktoken.Encoding("mine", pat_str=".", mergeable_ranks=ranks, special_tokens={}).encode("ab")


def encode_with_sentencepiece():
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor()
    with suppress(RuntimeError):  # it has learned nothing
        processor.encode("ab")


def bpe():
    return references.trained_bpe()


ROUTES = {
    "tokenizers.Tokenizer.encode": lambda: bpe().encode("a b"),
    "tokenizers.Tokenizer.encode_batch": lambda: bpe().encode_batch(["a b"]),
    "tokenizers.Tokenizer.decode": lambda: bpe().decode([1]),
    "tokenizers.Tokenizer.train_from_iterator": lambda: Tokenizer(models.BPE()).train_from_iterator(["ab"]),
    "tokenizers.Tokenizer.from_str": lambda: Tokenizer.from_str(bpe().to_str()),
    "tokenizers.models.BPE": lambda: bpe().model.tokenize("ab"),
    "tokenizers.models.WordPiece": lambda: references.word_pieces("ab", {"[UNK]": 0}),
    "tokenizers.pre_tokenizers": lambda: pre_tokenizers.ByteLevel().pre_tokenize_str("a b"),
    "tokenizers.normalizers": lambda: normalizers.BertNormalizer().normalize_str("A"),
    "tokenizers.decoders": lambda: decoders.ByteLevel().decode(["a"]),
    "tokenizers.implementations": lambda: ByteLevelBPETokenizer().encode("a"),
    "transformers GPT2Tokenizer": lambda: GPT2Tokenizer(vocab={"a": 0}, merges=[])("a"),
    "transformers BertTokenizer": lambda: BertTokenizer(vocab=references.trained_vocabulary())("a"),
    "data.tokenizer": lambda: bpe_tokenizer(["ab ab"], 300).encode_batch(["ab"]),
    "tiktoken": encode_with_tiktoken,
    "sentencepiece": encode_with_sentencepiece,
}


@pytest.mark.parametrize("route", ROUTES)
def test_the_spy_sees_packages_work(route):
    bpe(), references.trained_vocabulary()  # made before anyone looks on
    with Spy() as spy:
        ROUTES[route]()
    place = route.split(".")[0].split(" ")[0]
    assert {"data": "data/"}.get(place, place) in [where for where, _ in spy.work_of_others()]


def test_the_spy_does_not_take_a_students_work_for_a_packages():
    with Spy() as spy:
        SOLUTION.WordPiece(references.trained_vocabulary())
        SOLUTION.train_bpe(["ab ab"], 258)
        SOLUTION.ByteLevelBPE([("a", "b")]).encode("ab")
        json.dumps({}), sorted([2, 1])
    assert spy.work_of_others() == []


def judged(part, *edits):
    text = COURSE.outline.solution.read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = COURSE.outline.solution.with_name("mine.py")
    return judge(COURSE.case(part, load_module(path, text), SOLUTION), path)


def test_an_import_that_the_part_does_not_use_is_allowed():
    unused = ("import regex\n", "import regex\nimport tokenizers\nfrom tokenizers import models\n")
    assert judged("byte_words", unused)[0] == "right"


def test_forbidden_packages_are_found_in_helpers():
    helper = "def _cut(text):\n    import tokenizers.pre_tokenizers as p\n    return list(map(p.ByteLevel(False).pre_tokenize_str, [text]))\n\n\n"
    state, says = judged(
        "byte_words",
        ("def byte_words(", f"{helper}def byte_words("),
        (
            "    characters = byte_characters()\n    return",
            "    return [word for word, _ in _cut(text)[0]]\n    return",
        ),
    )
    assert state == "wrong"
    assert "uses tokenizers" in says


def test_a_borrowed_part_does_not_count_as_a_packages_work():
    """The solution's file has the name of a package, and so has what is borrowed from it."""
    path = COURSE.outline.solution.with_name("mine.py")
    mine = load_module(path, COURSE.outline.solution.read_text(encoding="utf-8"))
    mine.byte_words = SOLUTION.byte_words
    assert judge(COURSE.case("train_bpe", mine, SOLUTION), path) == ("right", "")


def test_a_result_that_cannot_be_printed_is_described(tmp_path, capsys):
    """A lone surrogate has no UTF-8, and a console must not stop at it."""
    file = tmp_path / "mine.py"
    text = COURSE.outline.solution.read_text(encoding="utf-8")
    wrong = "return [chr(0xDC80) + word for word in text.split()]"
    file.write_text(
        text.replace("    characters = byte_characters()\n    return", f"    {wrong}\n    return")
    )
    assert main(["check", "tokenizers.byte_words", "--file", str(file)]) == 1
    assert r"word 0 is '\udc80Hello', expected 'Hello'" in capsys.readouterr().out
    raising = 'raise ValueError("\\udc80")'
    file.write_text(
        text.replace("    characters = byte_characters()\n    return", f"    {raising}\n    return")
    )
    assert main(["check", "tokenizers.byte_words", "--file", str(file)]) == 1
    capsys.readouterr().out.encode()


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        ([("l", "o")], "there are 1 merges, expected 3"),
        (
            [("o", "w"), ("l", "o"), ("s", "t")],
            "merge 0 is ('o', 'w'), expected ('l', 'o'): both occur 3 times",
        ),
        ([("s", "t"), ("lo", "w"), ("s", "t")], "by then the first occurs once, the second 3 times"),
        (
            [("l", "o"), ("o", "w"), ("s", "t")],
            "merge 1 is ('o', 'w'), expected ('lo', 'w'): by then the first occurs nowhere",
        ),
        (["lo", "low", "st"], "merge 0 is 'lo', expected ('l', 'o')"),
        (None, "is a `return` missing"),
    ],
)
def test_differences_of_merges_are_described_in_words(mine, says):
    texts, right = ["low lower slowest"], [("l", "o"), ("lo", "w"), ("low", "e")]
    assert references.train_bpe(tuple(texts), 259) == right
    assert says in differences.merges(mine, right, texts)
    assert differences.merges(list(right), right, texts) is None
