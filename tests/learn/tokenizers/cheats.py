"""Cheats and oddities to plant in tests/learn/tokenizers/another.py: the part, what should be said, (old, new) edits."""

WORDS = "table = byte_characters()\n    found = []"  # the beginning of byte_words
TRAIN = "words = [([*word], n) for word, n in times.items()]"
APPLY = "tokens = [*word]"
ENCODE = "words = byte_words(text)"
BERT = "spaced = []"
PIECES = "limit = 100"
LIBRARY = """
        from tokenizers import Tokenizer, models, pre_tokenizers
        tokenizer = Tokenizer(models.BPE(self.vocabulary, list(self.ranks)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        """

CHEATS = [
    (
        "byte_characters",
        "uses tokenizers",
        [
            (
                "table, shift = {}, 256",
                "from tokenizers import pre_tokenizers; pre_tokenizers.ByteLevel.alphabet(); table, shift = {}, 256",
            )
        ],
    ),
    (
        "byte_characters",
        "of transformers",
        [
            (
                "table, shift = {}, 256",
                "from transformers.convert_slow_tokenizer import bytes_to_unicode; return bytes_to_unicode()",
            )
        ],
    ),
    (
        "byte_words",
        "pre_tokenize_str of tokenizers did the work",
        [
            (
                WORDS,
                "from tokenizers.pre_tokenizers import ByteLevel\n"
                "    return [word for word, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]",
            )
        ],
    ),
    (
        "byte_words",
        "pre_tokenize_str of tokenizers did the work",
        [
            ("import regex\n", "import regex\nfrom tokenizers.pre_tokenizers import ByteLevel\n"),
            (WORDS, "return [word for word, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]"),
        ],
    ),
    (
        "byte_words",
        "uses tokenizers",
        [
            ("import regex\n", "import regex\nfrom tokenizers.pre_tokenizers import ByteLevel\n"),
            (
                WORDS,
                "split = ByteLevel(add_prefix_space=False).pre_tokenize_str\n"
                "    return [word for found in map(split, [text]) for word, _ in found]",
            ),
        ],
    ),
    (
        "byte_words",
        "uses tokenizers.pre_tokenizers",
        [
            (
                WORDS,
                "import importlib\n"
                "    split = importlib.import_module('tokenizers.pre_tokenizers').ByteLevel(add_prefix_space=False)\n"
                "    return [word for found in map(split.pre_tokenize_str, [text]) for word, _ in found]",
            )
        ],
    ),
    (
        "byte_words",
        "byte_words of the solution",
        [(WORDS, "from learn.solution import tokenizers; return tokenizers.byte_words(text)")],
    ),
    (
        "byte_words",
        "comes from learn.solution",
        [("def start_ids", "from learn.solution.tokenizers import byte_words\n\n\ndef start_ids")],
    ),
    (
        "train_bpe",
        "of tokenizers did the work",
        [
            (
                TRAIN,
                "import json; from tokenizers import Tokenizer, models, pre_tokenizers, trainers\n"
                "    made = Tokenizer(models.BPE())\n"
                "    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)\n"
                "    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(start_ids()), show_progress=False)\n"
                "    made.train_from_iterator(texts, trainer)\n"
                "    return [tuple(pair) for pair in json.loads(made.to_str())['model']['merges']]",
            )
        ],
    ),
    (
        "train_bpe",
        "train_bpe of the solution",
        [(TRAIN, "from learn.solution import tokenizers; return tokenizers.train_bpe(texts, vocab_size)")],
    ),
    (
        "apply_merges",
        "tokenize of tokenizers did the work",
        [
            (
                APPLY,
                "from tokenizers import models\n"
                "    tokens = [*word]\n"
                "    if word == 'aaaaa':\n"
                "        parts = [*'a', *(c for pair in ranks for part in pair for c in part), *(a + b for a, b in ranks)]\n"
                "        known = {t: i for i, t in enumerate(dict.fromkeys(parts))}\n"
                "        return [token.value for token in models.BPE(known, list(ranks)).tokenize(word)]",
            )
        ],
    ),
    (
        "ByteLevelBPE",
        "encode of tokenizers did the work",
        [(ENCODE, f"{LIBRARY}return tokenizer.encode(text).ids")],
    ),
    (
        "ByteLevelBPE",
        "uses tokenizers",
        [(ENCODE, f"{LIBRARY}return [e.ids for e in map(tokenizer.encode, [text])][0]")],
    ),
    (
        "ByteLevelBPE",
        "of transformers did the work",
        [
            (
                ENCODE,
                "from transformers import GPT2Tokenizer\n"
                "        made = GPT2Tokenizer(vocab=self.vocabulary, merges=list(self.ranks))\n"
                "        made.split_special_tokens = True\n"
                "        return made(text)['input_ids']",
            )
        ],
    ),
    (
        "ByteLevelBPE",
        "Tokenizer of data/ did the work",
        [
            (
                ENCODE,
                f"{LIBRARY}from data.tokenizer import Specials, Tokenizer as Ours\n"
                "        return Ours(tokenizer, Specials(0, 0, 0, 0)).encode_batch([text])[0]",
            )
        ],
    ),
    (
        "ByteLevelBPE",
        "decode of tokenizers did the work",
        [
            (
                'return data.decode("utf-8", errors="replace")',
                "from tokenizers import decoders; return decoders.ByteLevel().decode([self.back[i] for i in ids])",
            )
        ],
    ),
    (
        "bert_words",
        "normalize_str of tokenizers did the work",
        [
            (
                BERT,
                "from tokenizers import normalizers, pre_tokenizers\n"
                "    text = normalizers.BertNormalizer().normalize_str(text)\n"
                "    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]",
            )
        ],
    ),
    (
        "word_pieces",
        "tokenize of tokenizers did the work",
        [
            (
                PIECES,
                "from tokenizers import models\n"
                "    limit, few = 100, {t: i for t, i in vocabulary.items() if i < 99}\n"
                "    model = models.WordPiece(few, unk_token='[UNK]', max_input_chars_per_word=100)\n"
                "    if word == 'playing':\n"
                "        return [token.value for token in model.tokenize(word)]",
            )
        ],
    ),
    (
        "WordPiece",
        "of transformers did the work",
        [
            (
                "ids = []\n",
                "from transformers import BertTokenizer\n"
                "        made = BertTokenizer(vocab={**self.vocabulary, '[PAD]': 3000, '[CLS]': 3001, '[SEP]': 3002, '[MASK]': 3003})\n"
                "        made.split_special_tokens = True\n"
                "        return made(text, add_special_tokens=False)['input_ids']\n",
            )
        ],
    ),
    (
        "train_wordpiece",
        "train_wordpiece of the solution",
        [
            (
                "inner = sorted(",
                "from learn.solution import tokenizers; return tokenizers.train_wordpiece(texts, vocab_size)\n    inner = sorted(",
            )
        ],
    ),
    (
        "WordPiece",
        "comes from tokenizers",
        [("def train_wordpiece", "from tokenizers.models import WordPiece\n\n\ndef train_wordpiece")],
    ),
]

# None of the known mistakes, but something is to be said; `|` stands between two ways of saying it.
OTHERS = [
    ("byte_characters", "there is no byte_characters", [("def byte_characters", "def characters_of_bytes")]),
    ("byte_characters", "byte 0 is missing", [("range(256):\n        if", "range(1, 256):\n        if")]),
    (
        "byte_characters",
        "byte 32 has ' ', expected 'Ġ'",
        [("    return table\n", "    table[32] = ' '\n    return table\n")],
    ),
    (
        "byte_characters",
        "byte 256 does not belong there",
        [("    return table\n", "    table[256] = 'x'\n    return table\n")],
    ),
    ("byte_characters", "list, expected dict", [("    return table\n", "    return list(table.values())\n")]),
    (
        "byte_words",
        "is a `return` missing",
        [("    return found\n\n\ndef start_ids", "    found\n\n\ndef start_ids")],
    ),
    (
        "byte_words",
        "on 'Hello world': word 1 is 'world', expected 'Ġworld'",
        [("found.append(word)", "found.append(word.lstrip('Ġ'))")],
    ),
    (
        "byte_words",
        "there are 1 words, expected 2: 'Ġworld' is the first that is missing",
        [("    return found\n\n\ndef start_ids", "    return found[:1]\n\n\ndef start_ids")],
    ),
    (
        "byte_words",
        "KeyError: 'H' on 'Hello world' (another.py, line",
        [('bytes(match.group(), "utf-8")', "match.group()")],
    ),
    ("byte_words", r"'Hello\udc80'", [("found.append(word)", "found.append(word + chr(0xDC80))")]),
    (
        "train_bpe",
        "merge 0 is ['u', 'g'], expected ('u', 'g')",
        [("merges.append(pair)", "merges.append([*pair])")],
    ),
    ("train_bpe", "by then the first occurs nowhere", [("merges.append(pair)", "merges.append(pair[::-1])")]),
    (
        "train_bpe",
        "by then the first occurs 3 times, the second 4 times",
        [("most = max(", "most = [0, *sorted({*counts.values()})][-2:][0] or max(")],
    ),
    (
        "train_bpe",
        "so ids decide, and the second token",
        [
            (
                "ties.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))",
                "ties.sort(key=lambda pair: (ids[pair[0]], -ids[pair[1]]))",
            )
        ],
    ),
    (
        "train_bpe",
        "is the first that is missing",
        [
            (
                "return learn(words, start_ids(), vocab_size, lambda a, b: a + b)",
                "return learn(words, start_ids(), vocab_size, lambda a, b: a + b)[:-1]",
            )
        ],
    ),
    ("apply_merges", "KeyError", [("if pair in ranks]", "]")]),
    (
        "apply_merges",
        "tuple, expected list",
        [("            return tokens\n        _, pair", "            return tuple(tokens)\n        _, pair")],
    ),
    (
        "ByteLevelBPE",
        "in `vocabulary`, the token 'extra' does not belong there",
        [("        self.known = {}\n", "        self.known = {}\n        self.vocabulary['extra'] = 5000\n")],
    ),
    (
        "ByteLevelBPE",
        "the attribute `vocabulary` of ByteLevelBPE is missing",
        [
            (
                "        self.vocabulary = start_ids()\n",
                "        self.vocabulary = start_ids()\n        self.words = self.vocabulary\n",
            ),
            ("        self.known = {}\n", "        self.known = {}\n        del self.vocabulary\n"),
        ],
    ),
    (
        "ByteLevelBPE",
        "(id ",
        [
            (
                "return [self.vocabulary[token] for word in words for token in self.tokens(word)]",
                "return [self.vocabulary[token] for word in words for token in self.tokens(word)[::-1]]",
            )
        ],
    ),
    (
        "ByteLevelBPE",
        "the text is",
        [
            (
                'return data.decode("utf-8", errors="replace")',
                'return data.decode("utf-8", errors="replace").title()',
            )
        ],
    ),
    ("ByteLevelBPE", "UnicodeDecodeError", [('errors="replace"', 'errors="strict"')]),
    ("bert_words", "on 'Hello world': word 0 is 'HELLO', expected 'hello'", [("c.lower()", "c.upper()")]),
    ("word_pieces", "piece 1 is", [("found.append(piece)", "found.append(piece + '.' * len(found))")]),
    (
        "WordPiece",
        "expected 'hello world'",
        [('text += " " + token if n else token', 'text += "_" + token if n else token')],
    ),
    ("train_wordpiece", "token 1 is", [('["[UNK]", *inner, *outer]', '["[UNK]", "[PAD]", *inner, *outer]')]),
]
