"""Known mistakes to plant in tests/learn/tokenizers/another.py: the part, what should be said, and (old, new) edits."""

MET_FIRST = """met = [pair for tokens, _ in words for pair in itertools.pairwise(tokens)]
        ties.sort(key=met.index)"""
NO_OVERLAP = """pair = tokens[k], tokens[k + 1]
            skip = k > 0 and not skip and pair == (tokens[k - 1], tokens[k])
            counts[pair] += 0 if skip else sign * times"""
ONE_PASS = """tokens = []
    for character in word:
        if tokens and (tokens[-1], character) in ranks:
            tokens[-1] += character
        else:
            tokens.append(character)
    return tokens"""
LONGEST = """tokens = []
    known = {a + b for a, b in ranks}
    while word:
        size = len(word)
        while size > 1 and word[:size] not in known:
            size -= 1
        tokens.append(word[:size])
        word = word[size:]
    return tokens"""
TIES = "ties.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))"
DATA = 'return data.decode("utf-8", errors="replace")'
MN = 'if unicodedata.category(c) == "Mn":'
UNKNOWN = 'else:\n            return ["[UNK]"]'

MISTAKES = [
    ("byte_characters", "space is taken", [("33 <= byte", "32 <= byte")]),
    ("byte_characters", "0x7F", [("<= 126", "<= 127")]),
    ("byte_characters", "0xA0", [("161 <=", "160 <=")]),
    ("byte_characters", "0xAD", [(" and byte != 173", "")]),
    ("byte_characters", "no byte from 0x80", [(" or (161 <= byte <= 255 and byte != 173)", "")]),
    ("byte_characters", "without gaps", [("chr(shift)", "chr(byte + 256)")]),
    ("byte_characters", "its own code point", [("chr(shift)", "chr(byte)")]),
    (
        "byte_words",
        "their UTF-8 bytes",
        [
            ('bytes(match.group(), "utf-8")', "map(ord, match.group())"),
            ("table[byte]\n    ", "table.get(byte, chr(byte))\n    "),
        ],
    ),
    ("byte_words", "a space is put before", [("finditer(text)", "finditer(' ' + text)")]),
    ("byte_words", "cut at white space", [("PATTERN.finditer(text)", "regex.finditer(r'\\S+', text)")]),
    ("byte_words", "space before a word", [("bytes(match.group(), ", "bytes(match.group().strip(), ")]),
    ("byte_words", "stripped at its ends", [("finditer(text)", "finditer(text.strip())")]),
    ("byte_words", "lower case", [("finditer(text)", "finditer(text.lower())")]),
    ("byte_words", "composed", [("finditer(text)", "finditer(unicodedata.normalize('NFC', text))")]),
    (
        "byte_words",
        "not cut",
        [("for match in PATTERN.finditer(text)", "for whole in [text]"), ("match.group()", "whole")],
    ),
    ("train_bpe", "larger ids", [(TIES, TIES[:-1] + ", reverse=True)")]),
    ("train_bpe", "met first", [(TIES, MET_FIRST)]),
    ("train_bpe", "by its letters", [(TIES, "ties.sort()")]),
    (
        "train_bpe",
        "across words",
        [("for word in byte_words(text):", "for word in [''.join(byte_words(text))]:")],
    ),
    ("train_bpe", "counts once", [("[([*word], n)", "[([*word], 1)")]),
    (
        "train_bpe",
        "only the first text",
        [("in texts:\n        for word in byte", "in texts[:1]:\n        for word in byte")],
    ),
    ("train_bpe", "vocab_size merges", [("while len(ids) <", "while len(merges) <")]),
    ("train_bpe", "occurs twice", [("most <= 0", "most <= 1")]),
    (
        "train_bpe",
        "characters that occur",
        [
            (
                "learn(words, start_ids()",
                "learn(words, {c: i for i, c in enumerate(sorted({*''.join(times)}))}",
            )
        ],
    ),
    (
        "train_bpe",
        "overlap",
        [
            ("pair = tokens[k], tokens[k + 1]\n            counts[pair] += sign * times", NO_OVERLAP),
            ("tokens, times = words[i]\n", "tokens, times = words[i]\n        skip = False\n"),
        ],
    ),
    (
        "train_bpe",
        "right to left",
        [("replace(words[i][0], pair, new)", "replace(words[i][0][::-1], pair[::-1], new)[::-1]")],
    ),
    ("train_bpe", "merged tokens", [("merges.append(pair)", "merges.append(pair[0] + pair[1])")]),
    ("apply_merges", "highest rank", [("sorted(found)[0]", "sorted(found)[-1]")]),
    ("apply_merges", "leftmost", [("sorted(found)[0]", "found[0]")]),
    ("apply_merges", "in one pass", [("tokens = [*word]", ONE_PASS)]),
    (
        "apply_merges",
        "after one merge",
        [("tokens = replace(tokens, pair, pair", "return replace(tokens, pair, pair")],
    ),
    ("apply_merges", "as in WordPiece", [("tokens = [*word]", LONGEST)]),
    (
        "apply_merges",
        "right to left",
        [
            (
                "replace(tokens, pair, pair[0] + pair[1])",
                "replace(tokens[::-1], pair[::-1], pair[0] + pair[1])[::-1]",
            )
        ],
    ),
    (
        "ByteLevelBPE",
        "go by the byte",
        [
            (
                "self.vocabulary = start_ids()",
                "self.vocabulary = dict(zip(byte_characters().values(), range(256)))",
            )
        ],
    ),
    (
        "ByteLevelBPE",
        "come before",
        [
            ("self.vocabulary = start_ids()", "self.vocabulary = {}"),
            ("for a, b in merges:", "for a, b in [*merges, *((c, '') for c in start_ids())]:"),
        ],
    ),
    (
        "ByteLevelBPE",
        "begin at 0",
        [("(a + b, len(self.vocabulary))", "(a + b, len(self.vocabulary) - 256)")],
    ),
    ("ByteLevelBPE", "across words", [("words = byte_words(text)", "words = [''.join(byte_words(text))]")]),
    (
        "ByteLevelBPE",
        "one by one",
        [
            ("data = bytearray()", "data = ''"),
            (
                "data.extend(byte_of[c] for c in self.back[i])",
                "data += bytes(byte_of[c] for c in self.back[i]).decode(errors='replace')",
            ),
            (DATA, "return data"),
        ],
    ),
    ("ByteLevelBPE", "left out of the decoded", [(DATA, DATA.replace("replace", "ignore"))]),
    ("ByteLevelBPE", "Latin-1", [(DATA, "return ''.join(map(chr, data))")]),
    ("ByteLevelBPE", "left in byte characters", [(DATA, "return ''.join(self.back[i] for i in ids)")]),
    ("ByteLevelBPE", "text is stripped", [(DATA, DATA + ".strip()")]),
    (
        "bert_words",
        "accents stay",
        [(MN, "if False:"), ('unicodedata.normalize("NFD", "".join(spaced))', '"".join(spaced)')],
    ),
    ("bert_words", "taken apart", [(MN, "if False:")]),
    (
        "bert_words",
        "decompose first",
        [('plain = unicodedata.normalize("NFD", "".join(spaced))', 'plain = "".join(spaced)')],
    ),
    ("bert_words", "capital letters", [("c.lower()", "c")]),
    ("bert_words", "final sigma", [('"".join(spaced))', '"".join(spaced)).lower()')]),
    ("bert_words", "only ASCII", [(' or unicodedata.category(c)[0] == "P"', "")]),
    ("bert_words", "signs such as", [("c in SIGNS or ", "")]),
    ("bert_words", "is dropped", [("words += [word, c]", "words += [word]")]),
    ("bert_words", "Chinese", [('spaced += [" ", c, " "]', "spaced.append(c)")]),
    (
        "bert_words",
        "become spaces; they should be removed",
        [('"\\ufffd":\n            continue', '"\\ufffd":\n            spaced.append(" ")')],
    ),
    ("bert_words", "format characters", [('"Cf", ', "")]),
    ("bert_words", "U+FFFD", [(' or c == "\\ufffd"', "")]),
    ("bert_words", "tabs and line breaks", [('c in ("\\t", "\\n", "\\r") or ', "")]),
    ("word_pieces", "without ##", [('mark = "##"', 'mark = ""')]),
    ("word_pieces", "first piece is looked up with", [('[], word, ""', '[], word, "##"')]),
    ("word_pieces", "the shortest", [("range(len(rest), 0, -1)", "range(1, len(rest) + 1)")]),
    ("word_pieces", "are kept", [(UNKNOWN, 'else:\n            return [*found, "[UNK]"]')]),
    (
        "word_pieces",
        "only the character",
        [
            (
                UNKNOWN,
                'else:\n            found.append("[UNK]")\n            rest = rest[1:]\n            mark = "##"\n            continue',
            )
        ],
    ),
    ("word_pieces", "of 100 characters", [("len(word) > limit", "len(word) >= limit")]),
    ("word_pieces", "are taken apart", [("limit = 100", "limit = 10_000")]),
    ("word_pieces", "## is taken off", [("found.append(piece)", "found.append(rest[:size])")]),
    (
        "WordPiece",
        "at white space only",
        [("bert_words(text):\n            for piece", "text.split():\n            for piece")],
    ),
    (
        "WordPiece",
        "as a whole",
        [("in word_pieces(word, self.vocabulary):", "in [word] if word in self.vocabulary else ['[UNK]']:")],
    ),
    (
        "WordPiece",
        "left out of the ids",
        [
            (
                "ids.append(self.vocabulary[piece])",
                "ids += [self.vocabulary[piece]] if piece != '[UNK]' else []",
            )
        ],
    ),
    ("WordPiece", "## stays", [('if n and token.startswith("##"):', "if False:")]),
    (
        "WordPiece",
        "no spaces between",
        [('if n and token.startswith("##"):', "if True:"), ("token[2:]", "token.removeprefix('##')")],
    ),
    (
        "WordPiece",
        "have a space before them; they",
        [('if n and token.startswith("##"):', "token = token.removeprefix('##')\n            if False:")],
    ),
    ("WordPiece", "off the first token", [("if n and token.startswith", "if token.startswith")]),
    (
        "WordPiece",
        "left out of the decoded",
        [("in enumerate(ids)", "in enumerate(j for j in ids if self.back[j] != '[UNK]')")],
    ),
    ("train_wordpiece", "stays inside", [("a + b[2:]", "a + b")]),
    ("train_wordpiece", "not in the vocabulary", [('["[UNK]", *inner, *outer]', "[*inner, *outer]")]),
    ("train_wordpiece", "come before", [('["[UNK]", *inner, *outer]', '["[UNK]", *outer, *inner]')]),
    (
        "train_wordpiece",
        "begin a word",
        [("{c for word in times for c in word}", "{word[0] for word in times}")],
    ),
    (
        "train_wordpiece",
        "has ## too",
        [
            ('[word[0]] + ["##" + c for c in word[1:]]', '["##" + c for c in word]'),
            ("for c in word[1:]})", "for c in word})"),
        ],
    ),
    ("train_wordpiece", "larger ids", [(TIES, TIES[:-1] + ", reverse=True)")]),
    ("train_wordpiece", "counts once", [("[1:]], n) for", "[1:]], 1) for")]),
    ("train_wordpiece", "occurs twice", [("most <= 0", "most <= 1")]),
    ("train_wordpiece", "vocabulary is sorted", [("return list(ids)", "return sorted(ids)")]),
]
