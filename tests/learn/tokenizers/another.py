"""A right student's file in another spelling than the solution's: what the checks find must not hang on spelling."""

import itertools
import unicodedata
from collections import defaultdict

import regex

PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
SIGNS = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def byte_characters():
    table, shift = {}, 256
    for byte in range(256):
        if 33 <= byte <= 126 or (161 <= byte <= 255 and byte != 173):
            table[byte] = chr(byte)
        else:
            table[byte] = chr(shift)
            shift += 1
    return table


def byte_words(text):
    table = byte_characters()
    found = []
    for match in PATTERN.finditer(text):
        word = ""
        for byte in bytes(match.group(), "utf-8"):
            word += table[byte]
        found.append(word)
    return found


def start_ids():
    return {c: i for i, c in enumerate(sorted(byte_characters().values(), key=ord))}


def learn(words, ids, vocab_size, glue):
    """Words as lists of tokens with their counts; an index says in which words a pair may stand."""
    counts, places = defaultdict(int), defaultdict(set)

    def change(i, sign):
        tokens, times = words[i]
        for k in range(len(tokens) - 1):
            pair = tokens[k], tokens[k + 1]
            counts[pair] += sign * times
            places[pair].add(i)

    for i in range(len(words)):
        change(i, 1)
    merges = []
    while len(ids) < vocab_size:
        most = max(counts.values(), default=0)
        if most <= 0:
            break
        ties = [pair for pair in counts if counts[pair] == most]
        ties.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        pair = ties[0]
        merges.append(pair)
        new = glue(*pair)
        if new not in ids:
            ids[new] = len(ids)
        for i in list(places[pair]):
            change(i, -1)
            words[i] = (replace(words[i][0], pair, new), words[i][1])
            change(i, 1)
    return merges


def replace(tokens, pair, new):
    out, joined = [], False
    for token in tokens:
        joined = bool(out) and not joined and (out[-1], token) == pair
        if joined:
            out[-1] = new
        else:
            out.append(token)
    return out


def train_bpe(texts, vocab_size):
    times = {}
    for text in texts:
        for word in byte_words(text):
            times[word] = times.get(word, 0) + 1
    words = [([*word], n) for word, n in times.items()]
    return learn(words, start_ids(), vocab_size, lambda a, b: a + b)


def apply_merges(word, ranks):
    tokens = [*word]
    while True:
        found = [(ranks[pair], pair) for pair in itertools.pairwise(tokens) if pair in ranks]
        if not found:
            return tokens
        _, pair = sorted(found)[0]
        tokens = replace(tokens, pair, pair[0] + pair[1])


class ByteLevelBPE:
    def __init__(self, merges):
        self.ranks = dict(zip(merges, range(len(merges)), strict=True))
        self.vocabulary = start_ids()
        for a, b in merges:
            self.vocabulary.setdefault(a + b, len(self.vocabulary))
        self.back = {i: token for token, i in self.vocabulary.items()}
        self.known = {}

    def tokens(self, word):
        if word not in self.known:
            self.known[word] = apply_merges(word, self.ranks)
        return self.known[word]

    def encode(self, text):
        words = byte_words(text)
        return [self.vocabulary[token] for word in words for token in self.tokens(word)]

    def decode(self, ids):
        byte_of = {c: b for b, c in byte_characters().items()}
        data = bytearray()
        for i in ids:
            data.extend(byte_of[c] for c in self.back[i])
        return data.decode("utf-8", errors="replace")


RANGES = "4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B920-2CEAF F900-FAFF 2F800-2FA1F"


CHINESE = {
    n for a, b in (pair.split("-") for pair in RANGES.split()) for n in range(int(a, 16), int(b, 16) + 1)
}


def chinese(c):
    return ord(c) in CHINESE


def punctuation(c):
    return c in SIGNS or unicodedata.category(c)[0] == "P"


def bert_words(text):
    spaced = []
    for c in text:
        kind = unicodedata.category(c)
        if c in ("\t", "\n", "\r") or kind[0] == "Z":
            spaced.append(" ")
        elif kind in {"Cc", "Cf", "Co"} or c == "\ufffd":
            continue
        elif chinese(c):
            spaced += [" ", c, " "]
        else:
            spaced.append(c)
    plain = unicodedata.normalize("NFD", "".join(spaced))
    words, word = [], ""
    for c in plain:
        if unicodedata.category(c) == "Mn":
            continue
        alone = punctuation(c)
        if alone or c == " ":
            words += [word, c]
            word = ""
        else:
            word += c.lower()
    return [w for w in [*words, word] if w not in ("", " ")]


def word_pieces(word, vocabulary):
    limit = 100
    if len(word) > limit:
        return ["[UNK]"]
    found, rest, mark = [], word, ""
    while rest:
        for size in range(len(rest), 0, -1):
            piece = mark + rest[:size]
            if piece in vocabulary:
                break
        else:
            return ["[UNK]"]
        found.append(piece)
        rest = rest[size:]
        mark = "##"
    return found


class WordPiece:
    def __init__(self, vocabulary):
        self.vocabulary = vocabulary
        self.back = dict(zip(vocabulary.values(), vocabulary, strict=True))

    def encode(self, text):
        ids = []
        for word in bert_words(text):
            for piece in word_pieces(word, self.vocabulary):
                ids.append(self.vocabulary[piece])
        return ids

    def decode(self, ids):
        text = ""
        for n, i in enumerate(ids):
            token = self.back[i]
            if n and token.startswith("##"):
                text += token[2:]
            else:
                text += " " + token if n else token
        return text


def train_wordpiece(texts, vocab_size):
    times = {}
    for text in texts:
        for word in bert_words(text):
            times[word] = times.get(word, 0) + 1
    words = [([word[0]] + ["##" + c for c in word[1:]], n) for word, n in times.items()]
    inner = sorted({"##" + c for word in times for c in word[1:]})
    outer = sorted({c for word in times for c in word})
    ids = {token: i for i, token in enumerate(["[UNK]", *inner, *outer])}
    learn(words, ids, vocab_size, lambda a, b: a + b[2:])
    return list(ids)
