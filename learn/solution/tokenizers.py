"""Tokenizers from scratch: a worked solution of learn/tokenizers_student.py. Look here last."""

import math
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import regex

PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
Pair = tuple[str, str]


def byte_characters() -> dict[int, str]:
    """A printable character for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def byte_words(text: str) -> list[str]:
    """Words of a text, with their bytes as printable characters."""
    characters = byte_characters()
    return ["".join(characters[byte] for byte in word.encode()) for word in PATTERN.findall(text)]


def train_bpe(texts: list[str], vocab_size: int) -> list[Pair]:
    """Merges, learned by joining the most frequent pair again and again."""
    ids = {character: i for i, character in enumerate(sorted(byte_characters().values()))}
    counts = Counter(word for text in texts for word in byte_words(text))
    tokens_of = {word: list(word) for word in counts}
    return _train(tokens_of, counts, ids, vocab_size)


def _train(
    tokens_of: dict[str, list[str]],
    counts: dict[str, int],
    ids: dict[str, int],
    vocab_size: int,
    prefix: str = "",
) -> list[Pair]:
    """Return the merges, and add their tokens to `ids`. A pair counts once per place in a word, times the word's count."""
    pairs = Counter[Pair]()
    for word, tokens in tokens_of.items():
        _count(pairs, tokens, counts[word])
    merges = list[Pair]()
    while len(ids) < vocab_size and any(pairs.values()):
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        joined = best[0] + best[1].removeprefix(prefix)
        merges.append(best)
        ids.setdefault(joined, len(ids))
        for word, tokens in tokens_of.items():
            if best[0] in tokens and best[1] in tokens:  # in all other words nothing changes
                tokens_of[word] = _merge(tokens, best, joined)
                _count(pairs, tokens, -counts[word])
                _count(pairs, tokens_of[word], counts[word])
    return merges


def _count(pairs: Counter[Pair], tokens: list[str], times: int) -> None:
    """Add `times` to the count of each pair of neighbors."""
    for pair in pairwise(tokens):
        pairs[pair] += times


def _merge(tokens: list[str], pair: Pair, joined: str) -> list[str]:
    """Return the tokens with every such pair joined to one token, from left to right."""
    merged = list[str]()
    i = 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            merged.append(joined)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


def apply_merges(word: str, ranks: dict[Pair, int]) -> list[str]:
    """Tokens of one word, by applying the earliest merges first."""
    tokens = list(word)
    while len(tokens) > 1:
        best = min(pairwise(tokens), key=lambda pair: ranks.get(pair, math.inf))
        if best not in ranks:
            break
        tokens = _merge(tokens, best, "".join(best))
    return tokens


class ByteLevelBPE:
    """GPT-2's tokenizer: text to ids and back."""

    def __init__(self, merges: list[Pair]) -> None:
        self.characters = byte_characters()
        self.bytes = {character: byte for byte, character in self.characters.items()}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        tokens = sorted(self.bytes) + ["".join(pair) for pair in merges]
        self.vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
        self.tokens = list(self.vocabulary)
        self.known = dict[str, list[int]]()  # ids of words met before

    def encode(self, text: str) -> list[int]:
        ids = list[int]()
        for word in byte_words(text):
            if word not in self.known:
                self.known[word] = [self.vocabulary[token] for token in apply_merges(word, self.ranks)]
            ids += self.known[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        characters = "".join(self.tokens[i] for i in ids)
        return bytes(self.bytes[character] for character in characters).decode(errors="replace")


def bert_words(text: str) -> list[str]:
    """Words as BERT has them: lower case, without accents, punctuation separate."""
    text = "".join(_clean(character) for character in text)
    text = unicodedata.normalize("NFD", text)
    text = "".join(c.lower() for c in text if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def _clean(character: str) -> str:
    """Return the text with spaces for white space, without control characters, and with Chinese characters separate."""
    kind = unicodedata.category(character)
    if character in "\t\n\r" or kind in ("Zs", "Zl", "Zp"):
        return " "
    if kind in ("Cc", "Cf", "Co") or character == "\N{REPLACEMENT CHARACTER}":
        return ""
    if any(first <= ord(character) <= last for first, last in CJK):
        return f" {character} "
    return character


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def word_pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    """Pieces of one word, by the longest match from left to right."""
    if len(word) > 100:
        return ["[UNK]"]
    pieces = list[str]()
    start = 0
    while start < len(word):
        before = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if before + word[start:end] in vocabulary), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(before + word[start:end])
        start = end
    return pieces


class WordPiece:
    """BERT's tokenizer: text to ids and back."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary
        self.tokens = {i: token for token, i in vocabulary.items()}

    def encode(self, text: str) -> list[int]:
        pieces = [piece for word in bert_words(text) for piece in word_pieces(word, self.vocabulary)]
        return [self.vocabulary[piece] for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.tokens[i] for i in ids).replace(" ##", "")


def train_wordpiece(texts: list[str], vocab_size: int) -> list[str]:
    """Vocabulary for WordPiece, by merging pairs as in BPE."""
    counts = Counter(word for text in texts for word in bert_words(text))
    tokens_of = {word: [word[0], *("##" + character for character in word[1:])] for word in counts}
    rest = {token for tokens in tokens_of.values() for token in tokens[1:]}
    characters = {character for word in counts for character in word}
    ids = {token: i for i, token in enumerate(["[UNK]", *sorted(rest), *sorted(characters)])}
    _train(tokens_of, counts, ids, vocab_size, prefix="##")
    return list(ids)
