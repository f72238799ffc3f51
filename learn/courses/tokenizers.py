"""The parts of the tokenizers: what each is tried on, and what it must stand."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from learn.checking.checks import agrees, by_hand, own
from learn.checking.course import Case, Check, Course, Part, Wrong
from learn.checking.imports import imports_none
from learn.checking.mistakes import read_mistakes
from learn.courses import tokenizers_differences as differences
from learn.courses import tokenizers_references as references
from learn.courses.tokenizers_texts import HARD, manual, pieces, speech
from learn.outline import Outline

OTHERS = ("tokenizers", "transformers", "tiktoken", "sentencepiece", "data")
Differ = Callable[[Any, Any], str | None]


def same(
    make: Callable[[Any], Callable], samples: Callable[[], list[tuple]], right: Callable, differ: Differ
) -> Check:
    """On every one of the samples, each a tuple of arguments, what the reference gives."""

    def compute(module: Any) -> list:
        function = make(module)
        return [called(function, sample) for sample in samples()]

    def differ_on(mine: list, expected: list) -> str | None:
        for sample, a, b in zip(samples(), mine, expected, strict=True):
            if says := differ(a, b):
                return f"on {', '.join(map(differences.short, sample))}: {says}"
        return None

    return agrees(compute, lambda: [right(*sample) for sample in samples()], differ_on)


def called(function: Callable, sample: tuple) -> object:
    """The result; an error gets to know what it was that it came up on."""
    try:
        return function(*sample)
    except Exception as error:
        error.add_note(f"on {', '.join(map(differences.short, sample))}")
        raise


def each(texts: Callable[[], list]) -> Callable[[], list[tuple]]:
    return lambda: [(text,) for text in texts()]


def function(name: str) -> Callable[[Any], Callable]:
    return lambda my: getattr(my, name)


def part(make: Callable[[Any], Callable], inputs: list[tuple], *checks: Check, seconds: float = 30.0) -> Part:
    """A part whose work nobody else does."""
    return Part(make, lambda: inputs, checks=(own, *checks, by_hand, imports_none(*OTHERS)), seconds=seconds)


HARD_TEXTS, REAL_TEXTS = each(lambda: HARD), each(pieces)
TRY = [(text,) for text in HARD]


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
    """Enough that many pairs are equally frequent, little enough that naive training takes seconds."""
    return [speech()[:20_000], manual()[:10_000], *HARD]


def trains(samples: Callable[[], list[tuple]]) -> Check:
    """The merges of the reference. What differs is explained by counting in the very texts."""

    def compute(module: Any) -> list:
        return [called(module.train_bpe, (list(texts), size)) for texts, size in samples()]

    def right() -> list:
        return [references.train_bpe(tuple(texts), size) for texts, size in samples()]

    def differ(mine: list, expected: list) -> str | None:
        for (texts, size), a, b in zip(samples(), mine, expected, strict=True):
            if says := differences.merges(a, b, texts):
                return f"on {differences.short(texts)}, vocab_size={size}: {says}"
        return None

    return agrees(compute, right, differ)


# Encoding with a thousand merges of real text.
def with_merges(my: Any) -> Callable:
    ranks = {pair: rank for rank, pair in enumerate(references.trained_merges())}
    return partial(my.apply_merges, ranks=ranks)


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
    ("xyz", {("a", "b"): 0}),
    ("", {("a", "b"): 0}),
]


def bpe(my: Any) -> Any:
    return my.ByteLevelBPE(list(references.trained_merges()))


def encodings() -> list[tuple]:
    """Ids as they may come: of texts, of halves of characters, of nothing."""
    encoded = [references.trained_bpe().encode(text).ids for text in HARD]
    broken = [part for ids in encoded for part in (ids[1:], ids[:-1], ids[::-1], ids[::2])]
    return [(ids,) for ids in (*encoded, *broken)]


def vocabulary_is(make: Callable[[Any], Any], right: Callable[[], dict[str, int]]) -> Check:
    def check(case: Case) -> None:
        made = make(case.mine)
        if not hasattr(made, "vocabulary"):
            raise Wrong(f"the attribute `vocabulary` of {case.name} is missing.")
        agrees(
            lambda module: make(module).vocabulary,
            right,
            lambda mine, expected: differences.tables(mine, expected, "in `vocabulary`, the token"),
        )(case)

    return check


def gpt2_merges(case: Case) -> None:
    """With the merges of the real GPT-2, the ids of the real GPT-2."""
    gpt2 = references.gpt2_tokenizer()
    merges = references.merges_of(gpt2)
    ids = differences.ids(gpt2.get_vocab)
    texts = each(lambda: [*HARD, *pieces()[::5]])
    same(lambda my: my.ByteLevelBPE(merges).encode, texts, lambda text: gpt2.encode(text).ids, ids)(case)


# WordPiece with two thousand pieces of real text.
def wordpiece(my: Any) -> Any:
    return my.WordPiece(dict(references.trained_vocabulary()))


FEW_PIECES = {
    token: i
    for i, token in enumerate(
        ["[UNK]", "un", "##aff", "##able", "##a", "##f", "play", "##ing", "p", "##lay", "##x", "x", "ing"]
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
        *(
            same(
                function("byte_words"),
                texts,
                references.byte_words,
                partial(differences.sequences, what="word"),
            )
            for texts in (HARD_TEXTS, REAL_TEXTS)
        ),
    ),
    "train_bpe": part(
        function("train_bpe"),
        SMALL_TRAINING[:3],
        trains(small_training),
        trains(lambda: [(training_text(), 256 + 200)]),
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
        *(
            same(
                lambda my: bpe(my).encode,
                texts,
                lambda text: references.trained_bpe().encode(text).ids,
                differences.ids(lambda: references.trained_bpe().get_vocab()),
            )
            for texts in (HARD_TEXTS, REAL_TEXTS)
        ),
        same(
            lambda my: bpe(my).decode,
            encodings,
            lambda ids: references.trained_bpe().decode(ids, skip_special_tokens=False),
            differences.texts,
        ),
        gpt2_merges,
        seconds=60,
    ),
    "bert_words": part(
        function("bert_words"),
        TRY,
        *(
            same(
                function("bert_words"),
                texts,
                references.bert_words,
                partial(differences.sequences, what="word"),
            )
            for texts in (HARD_TEXTS, REAL_TEXTS)
        ),
    ),
    "word_pieces": part(
        function("word_pieces"),
        [(word, FEW_PIECES) for word in FEW_WORDS],
        same(
            lambda my: lambda word: my.word_pieces(word, dict(FEW_PIECES)),
            each(lambda: FEW_WORDS + LONG_WORDS),
            lambda word: references.word_pieces(word, FEW_PIECES),
            partial(differences.sequences, what="piece"),
        ),
        same(
            lambda my: partial(my.word_pieces, vocabulary=dict(references.trained_vocabulary())),
            real_words,
            lambda word: references.word_pieces(word, references.trained_vocabulary()),
            partial(differences.sequences, what="piece"),
        ),
    ),
    "WordPiece": part(
        lambda my: lambda text: wordpiece(my).decode(wordpiece(my).encode(text)),
        TRY[:8],
        vocabulary_is(wordpiece, references.trained_vocabulary),
        *(
            same(
                lambda my: wordpiece(my).encode,
                texts,
                lambda text: references.trained_wordpiece().encode(text).ids,
                differences.ids(references.trained_vocabulary),
            )
            for texts in (HARD_TEXTS, REAL_TEXTS)
        ),
        same(
            lambda my: wordpiece(my).decode,
            wordpiece_ids,
            lambda ids: references.trained_wordpiece().decode(ids, skip_special_tokens=False),
            differences.texts,
        ),
    ),
    "train_wordpiece": part(
        function("train_wordpiece"),
        SMALL_VOCABULARIES[:3],
        same(pieces_trained, lambda: SMALL_VOCABULARIES, right_pieces, differences.sequences),
        same(pieces_trained, lambda: [(training_text(), 400)], right_pieces, differences.sequences),
        seconds=90,
    ),
}

OUTLINE = Outline("tokenizers")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes))
