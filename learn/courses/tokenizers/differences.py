"""Describe in words how a tokenizer's results differ from the reference.

All is shown by `repr`: a lone surrogate or a control character in a student's result must not spoil the console.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from learn.courses.tokenizers.references import byte_words

Pair = tuple[str, str]
LONGEST = 70  # characters of a text shown


def short(value: object) -> str:
    """Return the `repr` of a value, cut to `LONGEST` characters."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def wrong_type(mine: object, expected: type) -> str | None:
    if isinstance(mine, expected):
        return None
    forgotten = ": is a `return` missing?" if mine is None else ""
    return f"the result is {type(mine).__name__}, expected {expected.__name__}{forgotten}"


def sequences(
    mine: object, right: list, what: str = "token", show: Callable[[Any], str] = short
) -> str | None:
    """Describe the first place, counted from 0, at which two lists differ, or return None."""
    if mine == right and isinstance(mine, list):
        return None
    if not isinstance(mine, list):
        return wrong_type(mine, list)
    for i, (a, b) in enumerate(zip(mine, right, strict=False)):
        if a != b:
            return f"{what} {i} is {show(a)}, expected {show(b)}"
    lengths = f"there are {len(mine)} {what}s, expected {len(right)}"
    longer, says = (right, "missing") if len(mine) < len(right) else (mine, "too many")
    return f"{lengths}: {show(longer[min(len(mine), len(right))])} is the first that is {says}"


def ids(vocabulary: Callable[[], dict[str, int]]) -> Callable[[object, list], str | None]:
    """Return a function that compares two lists of ids and shows ids with their tokens."""

    def show(i: object) -> str:
        tokens = {i: token for token, i in vocabulary().items()}
        return f"{tokens[i]!r} (id {i})" if type(i) is int and i in tokens else short(i)

    return lambda mine, right: sequences(mine, right, show=show)


def texts(mine: object, right: str) -> str | None:
    if wrong := wrong_type(mine, str):
        return wrong
    assert isinstance(mine, str)
    if mine == right:
        return None
    same = next((i for i, (a, b) in enumerate(zip(mine, right, strict=False)) if a != b), None)
    same = min(len(mine), len(right)) if same is None else same
    start = max(same - 20, 0)
    shown = [("..." if start else "") + repr(text[start : start + 50]) for text in (mine, right)]
    return f"the text is {shown[0]}, expected {shown[1]}"


def tables(mine: object, right: dict, what: str) -> str | None:
    """Describe how two dicts differ, or return None."""
    if wrong := wrong_type(mine, dict):
        return wrong
    assert isinstance(mine, dict)
    for key, value in right.items():
        if key not in mine:
            return f"{what} {short(key)} is missing"
        if mine[key] != value:
            return f"{what} {short(key)} has {short(mine[key])}, expected {short(value)}"
    extra = [key for key in mine if key not in right]
    return f"{what} {short(extra[0])} does not belong there" if extra else None


def merges(mine: object, right: list[Pair], trained_on: list[str]) -> str | None:
    """Describe the first merge that differs, and how often each of the two pairs occurs by then."""
    says = sequences(mine, right, "merge")
    if says is None or not isinstance(mine, list):
        return says
    i = next((i for i, (a, b) in enumerate(zip(mine, right, strict=False)) if a != b), None)
    if i is None or not isinstance(mine[i], tuple):
        return says
    return f"{says}: {reason(mine[i], right[i], counted(trained_on, right[:i]))}"


def reason(mine: tuple, right: Pair, pairs: Counter[Pair]) -> str:
    mine_times = next((n for pair, n in pairs.items() if pair == mine), 0)
    if mine_times == 0:
        return f"by then the first occurs nowhere, the second {times(pairs[right])}"
    if mine_times != pairs[right]:
        return f"by then the first occurs {times(mine_times)}, the second {times(pairs[right])}"
    which = 0 if mine[0] != right[0] else 1
    return (
        f"both occur {times(mine_times)}, so ids decide, and the {('first', 'second')[which]} token "
        f"{right[which]!r} has a smaller id than {mine[which]!r}"
    )


def times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def counted(trained_on: list[str], done: list[Pair]) -> Counter[Pair]:
    """Count each pair in the texts after the merges `done`."""
    pairs = Counter[Pair]()
    for word, n in Counter(word for text in trained_on for word in byte_words(text)).items():
        tokens = list(word)
        for pair in done:
            i = 0 if pair[0] in tokens else len(tokens)
            while i < len(tokens) - 1:
                if (tokens[i], tokens[i + 1]) == pair:
                    tokens[i : i + 2] = ["".join(pair)]
                i += 1
        for pair in pairwise(tokens):
            pairs[pair] += n
    return pairs
