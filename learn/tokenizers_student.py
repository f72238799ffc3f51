"""Tokenizers from scratch: replace each `raise NotImplementedError` and run `python3 -m learn check tokenizers`.

learn/tokenizers.md says what to read first and how long it takes. Work in any order: a check borrows the parts that are
not right yet from the solution. You need Python's standard library and the pattern below, by the package `regex` (it
comes with transformers, and knows kinds of characters such as `\\p{L}`). Do not use tokenizers, transformers, tiktoken,
sentencepiece or this project's own data/: you build here what they do.
"""

import regex

# GPT-2's words: an English ending ('ll); or letters, digits or other signs, each with one space before them if there is
# one; or white space, without its last character if a word follows.
PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

# Code points, first and last, of the characters that BERT treats as Chinese. Each of them is a separate word.
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
    """A printable character for each byte, 0 to 255 (GPT-2, Radford et al. 2019, section 2.2; the table is in its code).

    The bytes 0x21 to 0x7E, 0xA1 to 0xAC and 0xAE to 0xFF become the characters with these code points (`chr(byte)`).
    The 68 others, among them space, line break and all control characters, are not visible. In ascending order they
    get the code points 256, 257, 258 ... So 0 is "Ā", and space, the 33rd of them, is chr(288), "Ġ".
    """
    raise NotImplementedError


def byte_words(text: str) -> list[str]:
    """A text cut into words, and these written in byte characters: "Hi café" is ["Hi", "ĠcafÃ©"].

    PATTERN finds the words; joined they are the whole text, white space included. Then each word's UTF-8 bytes are
    written in the characters of `byte_characters`. Change nothing else: keep case, accents and white space.
    The empty text has no words.
    """
    raise NotImplementedError


def train_bpe(texts: list[str], vocab_size: int) -> list[Pair]:
    """Merges in the order they are learned (Sennrich et al. 2016, section 3.2), on bytes (GPT-2, section 2.2).

    At first every word of `byte_words` is a list of one-character tokens. Then, repeatedly, the most frequent pair of
    neighbors becomes one token wherever it occurs, and the pair is added to the result. For "hug hug hugs pug" that is
    ("u", "g"), then ("h", "ug"), then ("Ġ", "hug") ... Returns these pairs.
    - All texts are counted together. A pair is counted at every place in a word, never across two words, and a word as
      often as it occurs. Places may overlap: "aaa" has the pair ("a", "a") twice.
    - Ids: the 256 byte characters have the ids 0 to 255 in the order of their code points (as `sorted` puts them),
      whether they occur or not; each merge's new token gets the next id.
    - Of equally frequent pairs, merge the one whose first token has the smallest id; among those with the same first
      token, the one whose second token has. (Compare ids, not letters: "ab", a merged token, comes after "z".)
    - A pair becomes one token from left to right: "aaa" turns into "aa", "a".
    - It ends when there are `vocab_size` tokens (after vocab_size - 256 merges, if each makes a new token), or when no
      pair is left. A pair that occurs once is merged, too. Tokens are identified by their text: if a merge makes a token that exists already, the pair is added to the result, and
      the token keeps its id.
    Hints:  count words first (`collections.Counter`) and process each different word once. That takes a few seconds
            for the text of the checks. To be faster, update counts only for words that contain the pair.
    """
    raise NotImplementedError


def apply_merges(word: str, ranks: dict[Pair, int]) -> list[str]:
    """The tokens of one word of `byte_words` (Sennrich et al. 2016, section 3.2, the end).

    `ranks` says how early a pair was merged in training, 0 first. Start with single characters. Of all neighbors, merge
    the pair with the lowest rank wherever it occurs, from left to right. Repeat with the new neighbors, until no
    neighbors are in `ranks`. The empty word has no tokens.
    """
    raise NotImplementedError


class ByteLevelBPE:
    """GPT-2's tokenizer (Radford et al. 2019, section 2.2): text to ids and back.

    Attributes:  vocabulary: dict[str, int]   ids by token: the 256 byte characters in the order of their code points
                 are 0 to 255, then come the tokens of the merges in their order (a token that is there keeps its id)
    Hints:  a word always has the same tokens. Cache them in a dict, and a speech takes a second instead of a minute.
            No token is special here: "<|endoftext|>" in a text is ordinary text.
    """

    def __init__(self, merges: list[Pair]) -> None:
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The ids of the tokens of all words. A lone surrogate has no UTF-8, so that `str.encode` may raise."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """The text of these ids, which undoes `encode`.

        Join the bytes of all tokens first, then decode UTF-8: a character may be split over several tokens.
        Bytes that are not valid UTF-8 (a model may generate any) become U+FFFD: bytes.decode with `errors="replace"`.
        """
        raise NotImplementedError


def bert_words(text: str) -> list[str]:
    """A text as BERT's words: "Naïve, isn't it?" is ["naive", ",", "isn", "'", "t", "it", "?"] (BERT's code).

    In this order, one character after another (`unicodedata.category` gives its kind, as "Lu" or "Mn"):
    1. Tab, "\\n", "\\r" and separators (kinds Zs, Zl, Zp) become a space. All other characters of the kinds Cc, Cf and Co
       (control, format and private use, such as a zero-width space) are removed, and so is U+FFFD.
    2. A space is put on both sides of every character in CJK.
    3. Accents are removed: decompose (`unicodedata.normalize("NFD", ...)`), then leave out the kind Mn.
    4. Lower case, each character by itself: `str.lower` of a whole text makes Greek final sigmas, BERT does not.
    5. Every punctuation character is a word of its own: those of a kind that begins with P, and all in
       `string.punctuation` ($, + and ~ are symbols to Unicode, punctuation to BERT).
    6. The words are the parts between spaces.
    """
    raise NotImplementedError


def word_pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    """The pieces of one word of `bert_words`, longest match first (Devlin et al. 2019, section 3; BERT's code).

    The first piece is the longest beginning of the word that is in the vocabulary. The next is the longest beginning of
    the rest, and so on. Pieces after the first are looked up with "##" before them: "playing" may be ["play", "##ing"].
    - If at some point no piece fits, the whole word is ["[UNK]"].
    - A word of more than 100 characters is ["[UNK]"] too; one of 100 is not.
    """
    raise NotImplementedError


class WordPiece:
    """BERT's tokenizer (Devlin et al. 2019, section 3): text to ids, and ids to readable text.

    Attributes:  vocabulary: dict[str, int]   ids by token, as given; "[UNK]" is among them
    """

    def __init__(self, vocabulary: dict[str, int]) -> None:
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces of all words. Adds no [CLS] or [SEP]. "[SEP]" in a text is three words."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """Join tokens by spaces. A token with "##" follows directly, without a space and without the "##".

        If the first token begins with "##", it keeps it. "[UNK]" is written as such.
        """
        raise NotImplementedError


def train_wordpiece(texts: list[str], vocab_size: int) -> list[str]:
    """A vocabulary for WordPiece, in the order of ids, made as the library `tokenizers` makes it: by BPE.

    (Google's own training, which chose pairs by the likelihood of the text, was never published.) As in `train_bpe`,
    with these differences:
    - Words are those of `bert_words`. At first a word's tokens are its first character, then the others with "##"
      before each of them: "hug" is h, ##u, ##g.
    - Ids: "[UNK]" is 0. Then come all one-character tokens with "##" that occur, sorted; then all characters that occur
      anywhere in words, without "##", sorted; then the merged tokens.
    - The token made of a pair drops the second one's "##": ("h", "##u") is "hu", ("##u", "##g") is "##ug".
    - It ends when there are `vocab_size` tokens, or no pair is left. If there are more at the start, all are kept.
    Returns the tokens, each once.
    """
    raise NotImplementedError
