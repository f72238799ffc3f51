"""Tasks in which a state follows a sequence: groups, brackets, flip-flops, parity and majority.

The model never sees its answers, so that it cannot carry the state from one answer to the next: the state of every position
must be computed from the inputs.
"""

import random
from collections.abc import Callable
from functools import cache
from itertools import accumulate, permutations

from data.syntheticdata import Sample, check_bounds, n_queries, read_marks, registered, text_without_marks

Permutation = tuple[int, ...]
# Opening and closing, by kind.
BRACKETS = tuple((pair[0], pair[1]) for pair in ("()", "[]", "{}", "<>", "aA", "bB", "cC", "dD"))


def is_even(order: Permutation) -> bool:
    return sum(order[i] > order[j] for j in range(len(order)) for i in range(j)) % 2 == 0


@cache
def elements_of(group: str) -> tuple[Permutation, ...]:
    """Return the elements of S3, S5, A5 or Z60 as permutations, the neutral one first."""
    if group == "Z60":
        return tuple(tuple((i + shift) % 60 for i in range(60)) for shift in range(60))
    degrees = {"S3": 3, "S5": 5, "A5": 5}
    if group not in degrees:
        raise ValueError(f"group must be one of S3, S5, A5, Z60, not {group!r}")
    found = permutations(range(degrees[group]))
    return tuple(order for order in found if group != "A5" or is_even(order))


@cache
def number_of_element(group: str) -> dict[Permutation, int]:
    return {element: i for i, element in enumerate(elements_of(group))}


def product(a: Permutation, b: Permutation) -> Permutation:
    """Return the permutation that applies `a` first, then `b`."""
    return tuple(b[i] for i in a)


def one_of_the_group(group: str, **_: object) -> float:
    return 1 / len(elements_of(group))


def n_factors(sample: Sample) -> int:
    return sample.count("‹") if "‹" in sample[:2] else len(sample) - 3


@registered(chance=one_of_the_group, slices={"factors": n_factors})
def group_word(
    rng: random.Random, group: str = "S5", min_length: int = 8, max_length: int = 8, last_only: bool = False
) -> list[str]:
    """3 ‹ 3 › 5 ‹ 2 › 1 ‹ 4 ›   The product of all elements so far, in S3, S5, A5 or Z60.

    The word problem of Merrill et al. 2024 (arXiv:2404.08819). Elements are numbered; 0 is the neutral one. With
    `last_only` only the product of all is asked for.
    """
    check_bounds(1, min_length=min_length, max_length=max_length)
    factors = rng.choices(elements_of(group), k=rng.randint(min_length, max_length))
    products = accumulate(factors, product)
    number = number_of_element(group)
    names = [
        (str(number[one]), "‹", str(number[so_far]), "›")
        for one, so_far in zip(factors, products, strict=True)
    ]
    if last_only:
        return [*(name[0] for name in names[:-1]), *names[-1]]
    return [token for name in names for token in name]


def depth_of(sample: Sample) -> int:
    """Return the largest number of open brackets."""
    openings, marked = {kind[0] for kind in BRACKETS}, read_marks(sample)
    shown = (token for token, hidden in zip(marked.tokens, marked.hidden, strict=True) if not hidden)
    return max(accumulate(1 if token in openings else -1 for token in shown))


@registered(slices={"depth": depth_of})
def dyck(
    rng: random.Random, n_kinds: int = 4, max_depth: int = 4, min_length: int = 16, max_length: int = 32
) -> str:
    """(‹)›[‹]›]‹)›{‹}›})   Balanced brackets: which bracket closes next. Scored while one is open.

    Dyck-(k, m) of Yao et al. 2021 (arXiv:2105.11115), with k kinds and at most m open brackets. Lengths are even.
    """
    check_bounds(2, min_length=min_length, max_length=max_length)
    if not (1 <= n_kinds <= len(BRACKETS) and max_depth >= 1):
        raise ValueError(
            f"dyck needs n_kinds from 1 to {len(BRACKETS)} and max_depth from 1, not {n_kinds=}, {max_depth=}"
        )
    length = 2 * rng.randint((min_length + 1) // 2, max_length // 2)
    text, stack = "", ""
    for left in range(length, 0, -1):
        may_open, may_close = len(stack) < min(max_depth, left), stack != ""
        if may_open and (not may_close or rng.random() < 0.5):
            opening, closing = rng.choice(BRACKETS[:n_kinds])
            text, stack = text + opening, stack + closing
        else:
            text, stack = text + stack[-1], stack[:-1]
        text += f"‹{stack[-1]}›" if stack else ""
    return text


def one_half(**_: object) -> float:
    return 0.5


def n_ignored(sample: Sample) -> int:
    """Return how many bits stand between the last write and the last read."""
    shown = text_without_marks(sample)
    return (shown.rindex("r") - shown.rindex("w")) // 2 - 1


@registered(chance=one_half, slices={"ignored": n_ignored})
def flip_flop(rng: random.Random, length: int = 64, p_ignore: float = 0.8) -> str:
    """w1i0i1r‹1›w0r‹0›   Read the bit that was written last; other bits are to be ignored.

    FFLM of Liu et al. 2023 (arXiv:2306.00946): pairs of an instruction and a bit, of which the first writes and the last
    reads. `p_ignore` is 0.8 there, 0.98 in its sparse and 0.1 in its dense test.
    """
    if length < 4 or length % 2 or not 0 <= p_ignore <= 1:
        raise ValueError(
            f"flip_flop needs an even length from 4 and p_ignore from 0 to 1, not {length=}, {p_ignore=}"
        )
    kinds = rng.choices("wri", [(1 - p_ignore) / 2, (1 - p_ignore) / 2, p_ignore], k=length // 2 - 2)
    text, written = "", ""
    for kind in ("w", *kinds, "r"):
        bit = rng.choice("01")
        written = bit if kind == "w" else written
        text += f"r‹{written}›" if kind == "r" else kind + bit
    return text


def tagged_bits(rng: random.Random, min_length: int, max_length: int, tag: Callable[[int, int], bool]) -> str:
    """Return random bits, each followed by its tag, 1 or 0: `tag` of the number of ones and of all bits so far."""
    check_bounds(1, min_length=min_length, max_length=max_length)
    bits = rng.choices("01", k=rng.randint(min_length, max_length))
    counts = accumulate(int(bit) for bit in bits)
    return "".join(
        f"{bit}‹{tag(ones, n):d}›" for n, (bit, ones) in enumerate(zip(bits, counts, strict=True), start=1)
    )


@registered(chance=one_half, slices={"length": n_queries})
def cumulative_parity(rng: random.Random, min_length: int = 20, max_length: int = 20) -> str:
    """1‹1›0‹1›1‹0›   After each bit 1 if the number of ones so far is odd, else 0."""
    return tagged_bits(rng, min_length, max_length, lambda ones, n: ones % 2 == 1)


@registered(slices={"length": n_queries})
def cumulative_majority(rng: random.Random, min_length: int = 20, max_length: int = 20) -> str:
    """1‹1›0‹1›0‹0›   After each bit 1 if at least half of the bits so far are ones, else 0."""
    return tagged_bits(rng, min_length, max_length, lambda ones, n: 2 * ones >= n)
