"""Parts of the tokenizers course: inputs and checks for each."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from learn.checking.course import Check, Course
from learn.checking.mistakes import read_mistakes
from learn.courses.tokenizers import differences, references
from learn.courses.tokenizers.checks import (
    at_length,
    each,
    function,
    gpt2_merges,
    part,
    same,
    trains,
    vocabulary_is,
)
from learn.courses.tokenizers.texts import HARD, manual, pieces, speech
from learn.outline import Outline

HARD_TEXTS, REAL_TEXTS = each(lambda: HARD), each(pieces)
TRY = [(text,) for text in HARD]


def cuts(name: str, texts: Callable[[], list[tuple]], right: Callable[[str], list[str]]) -> Check:
    return same(function(name), texts, right, partial(differences.sequences, what="word"))


# Training: a list of texts and a vocabulary size each.
SMALL_TRAINING = [
    (["hug hug hugs pug"], 262),
    (["aaaa aaaa aaa"], 260),
    (["zzz bc"], 258),
    (["ab ab cd cd"], 259),  # equally frequent pairs
    (["zx zy zx zy bz bz"], 261),
    (["abcd abcd ab z zab"], 262),
    (["low lower", "lowest slow low"], 270),
    (["naïve naïveté 你好 你好"], 275),
    ([""], 300),
    ([], 300),
    (["ab"], 300),  # no pair is left before that
    (["some text"], 256),
]


def small_training() -> list[tuple]:
    return [*SMALL_TRAINING, ([speech()[:1500]], 280)]


@cache
def training_text() -> list[str]:
    """Return texts long enough for many equally frequent pairs, and short enough to train plainly in seconds."""
    return [speech()[:20_000], manual()[:10_000], *HARD]


# Encoding with a thousand merges of real text.
def with_merges(my: Any) -> Callable:
    ranks = {pair: rank for rank, pair in enumerate(references.trained_merges())}
    return lambda word: my.apply_merges(word, ranks)


def right_merges(word: str) -> list[str]:
    return references.apply_merges(word, {p: i for i, p in enumerate(references.trained_merges())})


def some_words() -> list[tuple]:
    words = [word for text in (*HARD, speech()) for word in references.byte_words(text)]
    return [(word,) for word in dict.fromkeys(["", *words])]


FEW_MERGES = [
    ("aaaaa", {("a", "a"): 0, ("aa", "a"): 1}),
    ("abcbc", {("b", "c"): 0, ("a", "b"): 1}),
    ("abcd", {("a", "b"): 1, ("c", "d"): 0, ("ab", "cd"): 2}),
    ("abcab", {("a", "b"): 0, ("b", "c"): 1, ("c", "ab"): 2}),
    ("abc", {("b", "c"): 1, ("a", "b"): 0}),  # ranks are what counts, not the order in the dict,
    ("abc", {("ab", "c"): 0, ("a", "b"): 1}),  # and what was passed over comes up again
    ("xyz", {("a", "b"): 0}),
    ("", {("a", "b"): 0}),
]


def bpe(my: Any) -> Any:
    return my.ByteLevelBPE(list(references.trained_merges()))


def bpe_encodes(texts: Callable[[], list[tuple]]) -> Check:
    return same(
        lambda my: bpe(my).encode,
        texts,
        lambda text: references.trained_bpe().encode(text).ids,
        differences.ids(lambda: references.trained_bpe().get_vocab()),
    )


def encodings() -> list[tuple]:
    """Return ids to decode: of texts, of parts of characters, and none."""
    encoded = [references.trained_bpe().encode(text).ids for text in HARD]
    broken = [part for ids in encoded for part in (ids[1:], ids[:-1], ids[::-1], ids[::2])]
    return [(ids,) for ids in (*encoded, *broken)]


# WordPiece with two thousand pieces of real text.
def wordpiece(my: Any) -> Any:
    return my.WordPiece(dict(references.trained_vocabulary()))


def wordpiece_encodes(texts: Callable[[], list[tuple]]) -> Check:
    return same(
        lambda my: wordpiece(my).encode,
        texts,
        lambda text: references.trained_wordpiece().encode(text).ids,
        differences.ids(references.trained_vocabulary),
    )


def with_vocabulary(my: Any) -> Callable:
    vocabulary = dict(references.trained_vocabulary())
    return lambda word: my.word_pieces(word, vocabulary)


FEW_PIECES = {
    token: i
    for i, token in enumerate(
        ["un", "[UNK]", "##aff", "##able", "##a", "##f", "play", "##ing", "p", "##lay", "##x", "x", "ing"]
    )
}
FEW_WORDS = ["unaffable", "playing", "play", "una", "unk", "xxx", "ing", "zing", "playzing", "xing"]
LONG_WORDS = ["x" * 99, "x" * 100, "x" * 101]


def real_words() -> list[tuple]:
    words = [word for text in (*HARD, speech()) for word in references.bert_words(text)]
    return [(word,) for word in dict.fromkeys(words)]


def wordpiece_ids() -> list[tuple]:
    encoded = [references.trained_wordpiece().encode(text).ids for text in HARD]
    return [(ids,) for ids in (*encoded, *(ids[::-1] for ids in encoded))]


SMALL_VOCABULARIES = [
    (["hug hug hugs pug"], 16),
    (["aaaa aaaa aaa"], 8),
    (["abcd abcd ab ab xcd"], 20),
    (["Hé, hé!", "low lower lowest"], 40),
    ([""], 10),
    (["ab"], 2),
]


def pieces_trained(my: Any) -> Callable:
    return lambda texts, size: my.train_wordpiece(list(texts), size)


def right_pieces(texts: list[str], size: int) -> list[str]:
    return references.train_wordpiece(tuple(texts), size)


PARTS = {
    "byte_characters": part(
        function("byte_characters"),
        [()],
        same(
            function("byte_characters"),
            lambda: [()],
            references.byte_characters,
            partial(differences.tables, what="byte"),
        ),
    ),
    "byte_words": part(
        function("byte_words"),
        TRY,
        cuts("byte_words", HARD_TEXTS, references.byte_words),
        cuts("byte_words", REAL_TEXTS, references.byte_words),
    ),
    "train_bpe": part(
        function("train_bpe"),
        SMALL_TRAINING[:3],
        trains(small_training),
        at_length(trains(lambda: [(training_text(), 256 + 200)])),
        seconds=90,
    ),
    "apply_merges": part(
        function("apply_merges"),
        FEW_MERGES,
        same(function("apply_merges"), lambda: FEW_MERGES, references.apply_merges, differences.sequences),
        same(with_merges, some_words, right_merges, differences.sequences),
    ),
    "ByteLevelBPE": part(
        lambda my: lambda text: bpe(my).decode(bpe(my).encode(text)),
        TRY[:8],
        vocabulary_is(bpe, lambda: references.trained_bpe().get_vocab()),
        bpe_encodes(HARD_TEXTS),
        same(
            lambda my: bpe(my).decode,
            encodings,
            lambda ids: references.trained_bpe().decode(ids, skip_special_tokens=False),
            differences.texts,
        ),
        bpe_encodes(REAL_TEXTS),
        gpt2_merges,
        seconds=60,
    ),
    "bert_words": part(
        function("bert_words"),
        TRY,
        cuts("bert_words", HARD_TEXTS, references.bert_words),
        cuts("bert_words", REAL_TEXTS, references.bert_words),
    ),
    "word_pieces": part(
        function("word_pieces"),
        [(word, FEW_PIECES) for word in FEW_WORDS],
        same(
            function("word_pieces"),
            lambda: [(word, dict(FEW_PIECES)) for word in FEW_WORDS + LONG_WORDS],
            references.word_pieces,
            partial(differences.sequences, what="piece"),
        ),
        same(
            with_vocabulary,
            real_words,
            lambda word: references.word_pieces(word, references.trained_vocabulary()),
            partial(differences.sequences, what="piece"),
        ),
    ),
    "WordPiece": part(
        lambda my: lambda text: wordpiece(my).decode(wordpiece(my).encode(text)),
        TRY[:8],
        vocabulary_is(wordpiece, references.trained_vocabulary),
        wordpiece_encodes(HARD_TEXTS),
        same(
            lambda my: wordpiece(my).decode,
            wordpiece_ids,
            lambda ids: references.trained_wordpiece().decode(ids, skip_special_tokens=False),
            differences.texts,
        ),
        wordpiece_encodes(REAL_TEXTS),
    ),
    "train_wordpiece": part(
        function("train_wordpiece"),
        SMALL_VOCABULARIES[:3],
        same(pieces_trained, lambda: SMALL_VOCABULARIES, right_pieces, differences.sequences),
        at_length(
            same(pieces_trained, lambda: [(training_text(), 400)], right_pieces, differences.sequences)
        ),
        seconds=90,
    ),
}

OUTLINE = Outline("tokenizers")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes))
