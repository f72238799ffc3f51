"""Checks that compare results of a student's tokenizers with the references."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from learn.checking.checks import agrees, by_hand, own
from learn.checking.course import Case, Check, Part, Wrong
from learn.checking.imports import imports_none
from learn.courses.tokenizers import differences, references
from learn.courses.tokenizers.texts import HARD, pieces

OTHERS = ("tokenizers", "transformers", "tiktoken", "sentencepiece", "data")
Differ = Callable[[Any, Any], str | None]


def same(
    make: Callable[[Any], Callable], samples: Callable[[], list[tuple]], right: Callable, differ: Differ
) -> Check:
    """Return a check that results equal the reference's on all samples. A sample is a tuple of arguments."""

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
    """Return the result. If the call raises, add the sample to the exception as a note."""
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
    """Return a part with these checks and those that the student's own code did the work."""
    return Part(make, lambda: inputs, checks=(own, *checks, by_hand, imports_none(*OTHERS)), seconds=seconds)


def at_length(check: Check) -> Check:
    """Return the check without known mistakes. Small samples reveal them, and training with each takes a minute."""
    return lambda case: check(replace(case, mistakes=()))


def trains(samples: Callable[[], list[tuple]]) -> Check:
    """Return a check that merges equal the reference's. A difference is explained by counts in the texts."""

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
    """Raise Wrong unless the real GPT-2's merges give the real GPT-2's ids."""
    gpt2 = references.gpt2_tokenizer()
    merges = references.merges_of(gpt2)
    ids = differences.ids(gpt2.get_vocab)
    texts = each(lambda: [*HARD, *pieces()[::5]])
    same(lambda my: my.ByteLevelBPE(merges).encode, texts, lambda text: gpt2.encode(text).ids, ids)(case)
