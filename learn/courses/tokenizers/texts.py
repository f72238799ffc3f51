"""Texts as inputs of the tokenizers' checks: small hard ones, and real ones."""

from functools import cache

from data.corpora import read_corpus

# Every text has something that an obvious implementation gets wrong.
HARD = [
    "Hello world",
    "",
    " ",
    "a  b",
    "  two  spaces, and at the end  ",
    "tab\tand\n\nnew lines \n  x\r\n",
    "don't we'll I'M they've 'twas dogs'",
    "naïve café",
    "nai\u0308ve cafe\u0301 A\u030angstro\u0308m",  # the same accents as characters of their own
    "Ångström Straße İstanbul ÉCOLE",
    "ΣΟΦΟΣ ὀδός",
    "你好,世界 漢字kana かな",
    "🙂 👩‍👩‍👧!",
    "x2 3.14159 1,024 ½ २०२४",
    "a+b=c $5 ~x^2 `y` <z> #1 10%",
    "wait... what?!--“no” (sic) a_b",
    "bell\x07 nul\x00 zero\u200bwidth \ufffd \ue000",
    "no\u00a0break em\u2003space line\u2028end \x0b\x0c\x85.",
    "<|endoftext|> [UNK] [SEP] ##ing",
    "ﬁ ㎏ \u00ad ¿qué? ¡sí!",
    "aaaaa aaaa hahahaha",
]


@cache
def speech() -> str:
    """Return 60,000 characters of English."""
    return "".join(read_corpus("sotu", 8)["train"])[:60_000]


@cache
def manual() -> str:
    """Return 40,000 characters of Python's help, with its columns and signs."""
    return "".join(read_corpus("pydoc", 30)["train"])[:40_000]


@cache
def pieces() -> list[str]:
    """Cut both texts into short pieces, so that a message can show the text of a mistake."""
    text = speech() + manual()
    return [text[i : i + 100] for i in range(0, len(text), 100)]
