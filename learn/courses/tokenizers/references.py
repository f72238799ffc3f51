"""References for the tokenizers, by HuggingFace's library `tokenizers`."""

import json
from contextlib import suppress
from functools import cache
from itertools import chain

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data.hub import hub_answers, offline
from learn.checking.course import NotTried
from learn.courses.tokenizers.texts import HARD, manual, speech

Pair = tuple[str, str]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BERT_NORMALIZER, BERT_SPLIT = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
UNKNOWN = "[UNK]"


def byte_words(text: str) -> list[str]:
    return [word for word, _ in BYTES.pre_tokenize_str(text)]


@cache
def byte_characters() -> dict[int, str]:
    """Return the table, read off characters whose UTF-8 contains every byte that UTF-8 can contain."""
    found = dict[int, str]()
    for code in chain(range(0x800), range(0x800, 0xD800, 0x400), range(0xE000, 0x110000, 0x400)):
        found |= zip(chr(code).encode(), "".join(byte_words(chr(code))), strict=True)
    never = set(BYTES.alphabet()) - set(found.values())  # 0xC0, 0xFF and such: their characters are their own
    return found | {ord(character): character for character in never}


def bert_words(text: str) -> list[str]:
    return [word for word, _ in BERT_SPLIT.pre_tokenize_str(BERT_NORMALIZER.normalize_str(text))]


@cache
def train_bpe(texts: tuple[str, ...], vocab_size: int) -> list[Pair]:
    """Return the merges that BpeTrainer learns, starting from the 256 byte characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = BYTES
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=BYTES.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return merges_of(tokenizer)


def merges_of(tokenizer: Tokenizer) -> list[Pair]:
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in pairs]


def byte_level(merges: list[Pair]) -> Tokenizer:
    """Return a byte-level BPE tokenizer with these merges, of GPT-2's kind."""
    tokens = dict.fromkeys([*sorted(BYTES.alphabet()), *("".join(pair) for pair in merges)])
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = BYTES, decoders.ByteLevel()
    return tokenizer


def apply_merges(word: str, ranks: dict[Pair, int]) -> list[str]:
    merges = sorted(ranks, key=lambda pair: ranks[pair])
    return [token.value for token in bpe_model(tuple(merges)).tokenize(word)]


@cache
def bpe_model(merges: tuple[Pair, ...]) -> models.BPE:
    return byte_level(list(merges)).model


@cache
def trained_merges() -> list[Pair]:
    """Return 1,000 merges of real text and half of the hard texts, so that some characters need several tokens."""
    return train_bpe((speech(), manual(), *HARD[::2] * 20), 256 + 1000)


@cache
def trained_bpe() -> Tokenizer:
    return byte_level(trained_merges())


def gpt2_tokenizer() -> Tokenizer:
    """Return GPT-2's tokenizer, from the cache or downloaded. "<|endoftext|>" in a text is not special to it."""
    try:
        with offline():
            tokenizer = Tokenizer.from_pretrained("gpt2")
    except Exception:  # the client library raises several kinds
        tokenizer = downloaded("gpt2")
    tokenizer.encode_special_tokens = True
    return tokenizer


def downloaded(name: str) -> Tokenizer:
    if hub_answers():
        with suppress(Exception):  # it may answer, and refuse
            return Tokenizer.from_pretrained(name)
    raise NotTried("GPT-2's own merges, as the Hugging Face hub cannot be reached")


@cache
def train_wordpiece(texts: tuple[str, ...], vocab_size: int) -> list[str]:
    """Return the vocabulary that WordPieceTrainer learns.

    The characters with ## are passed to it in sorted order. By itself it numbers them differently in each run, and
    these numbers decide between equally frequent pairs.
    """
    words = {word for text in texts for word in bert_words(text)}
    rest = sorted({f"##{character}" for word in words for character in word[1:]})
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BERT_NORMALIZER, BERT_SPLIT
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[UNKNOWN, *rest], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab()
    return sorted(ids, key=lambda token: ids[token])


@cache
def trained_vocabulary() -> dict[str, int]:
    """Return 2,000 pieces of real text. Half of the hard texts are left out, so that some words are unknown."""
    return {token: i for i, token in enumerate(train_wordpiece((speech(), *HARD[::2]), 2000))}


def word_pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    if not word:
        return []
    model = models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100)
    return [token.value for token in model.tokenize(word)]


@cache
def trained_wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab=trained_vocabulary(), unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BERT_NORMALIZER, BERT_SPLIT
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer
