"""Nested expressions: modular arithmetic in prefix form, and texts of a context-free grammar (Physics of Language Models 4).

Source: Allen-Zhu 2025, arXiv:2512.17351, tasks Mano and Lano.
"""

import random
from functools import lru_cache

from data.syntheticdata import Sample, check_bounds, registered

OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def expression(rng: random.Random, n_operations: int, p: int) -> tuple[list[str], int]:
    """Return a random expression in prefix form with its value modulo p."""
    if n_operations == 0:
        number = rng.randrange(p)
        return [str(number)], number
    n_left = rng.randrange(n_operations)
    operation = rng.choice(list(OPERATIONS))
    (left, a), (right, b) = (expression(rng, n, p) for n in (n_left, n_operations - 1 - n_left))
    return [operation, *left, *right], OPERATIONS[operation](a, b) % p


def n_operations_of(sample: Sample) -> int:
    return sum(token in OPERATIONS for token in sample)


@registered(slices={"operations": n_operations_of})
def mano(rng: random.Random, min_operations: int = 1, max_operations: int = 6, p: int = 23) -> list[str]:
    """len2 + * 3 9 17 = « 21 » .   The value of an expression in prefix form modulo p, with +, - and *.

    The first token says how many operations there are.
    """
    check_bounds(0, min_operations=min_operations, max_operations=max_operations)
    if p < 2:
        raise ValueError(f"p must be at least 2, not {p}")
    n = rng.randint(min_operations, max_operations)
    tokens, value = expression(rng, n, p)
    return [f"len{n}", *tokens, "=", "«", str(value), "»", "."]


# Each symbol becomes one of two sequences, with equal probability, until only letters are left.
GRAMMAR = {
    "S": ("PQ", "QPR"),
    "P": ("TU", "UTT"),
    "Q": ("UVU", "TV"),
    "R": ("VT", "UV"),
    "T": ("ab", "bca"),
    "U": ("cb", "acc"),
    "V": ("bba", "ca"),
}


def derive(rng: random.Random, symbol: str = "S") -> str:
    """Return a random text of the grammar."""
    return "".join(derive(rng, one) for one in rng.choice(GRAMMAR[symbol])) if symbol in GRAMMAR else symbol


@lru_cache(maxsize=100_000)
def ends_of(symbol: str, text: str) -> frozenset[int]:
    """Return the lengths of all beginnings of `text` that a symbol of the grammar can become."""
    if symbol not in GRAMMAR:
        return frozenset({1} if text.startswith(symbol) else ())
    return frozenset(end for sequence in GRAMMAR[symbol] for end in ends_of_sequence(sequence, text))


def ends_of_sequence(sequence: str, text: str) -> set[int]:
    ends = {0}
    for symbol in sequence:
        ends = {begin + length for begin in ends for length in ends_of(symbol, text[begin:])}
    return ends


def is_of_grammar(prompt: str, answer: str) -> bool:
    """Return True if the prompt with its answer is a text of the grammar."""
    text = prompt.removesuffix(":") + answer
    return len(text) in ends_of("S", text)


@registered(check=is_of_grammar)
def lano(rng: random.Random, min_prefix: int = 2, max_prefix: int = 8) -> str:
    """abcb:«bbacb»   Any end that makes a text of a fixed context-free grammar. The check accepts every valid one.

    A small grammar of 7 symbols in place of the paper's.
    """
    check_bounds(1, min_prefix=min_prefix, max_prefix=max_prefix)
    text = derive(rng)
    n = min(rng.randint(min_prefix, max_prefix), len(text) - 1)
    return f"{text[:n]}:«{text[n:]}»"
