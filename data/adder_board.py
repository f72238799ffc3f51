"""AdderBoard: sums of two numbers of ten digits, and the 10,010 sums by which the leaderboard compares models.

Source: the leaderboard github.com/anadim/AdderBoard for the smallest transformer that gets 99 % of them right.
"""

import random
from collections.abc import Iterator
from functools import cache

from data.syntheticdata import check_bounds, n_carries, n_digits, registered, sum_text, summands

WIDTH = 10  # digits of a summand
MAX_SUMMAND = 10**WIDTH - 1
# In the order of the leaderboard, which lists the largest sum twice.
EDGE_CASES = (
    (0, 0),
    (0, 1),
    (MAX_SUMMAND, 0),
    (MAX_SUMMAND, 1),
    (MAX_SUMMAND, MAX_SUMMAND),
    (5_000_000_000, 5_000_000_000),
    (1_111_111_111, 8_888_888_889),
    (1_234_567_890, 9_876_543_210),
    (MAX_SUMMAND, MAX_SUMMAND),
    (1, MAX_SUMMAND),
)


@cache
def verification_pairs() -> tuple[tuple[int, int], ...]:
    """Return the pairs of the verification set: ten edge cases, then 10,000 random pairs drawn with seed 2025."""
    dice = random.Random(2025)
    drawn = [(dice.randint(0, MAX_SUMMAND), dice.randint(0, MAX_SUMMAND)) for _ in range(10_000)]
    return (*EDGE_CASES, *drawn)


@cache
def excluded_pairs() -> frozenset[tuple[int, int]]:
    return frozenset(verification_pairs())


def padded_sum(a: int, b: int) -> str:
    """Return a sample: summands with leading zeros, and the sum from its last digit to its first."""
    return sum_text(a, b, WIDTH, from_last_digit=True)


SLICES = {"digits": n_digits, "carries": n_carries}


@registered(slices=SLICES)
def adder_board(rng: random.Random, min_digits: int = 1, max_digits: int = 10) -> str:
    """0000000037+0000000985=«22010000000»   The sum of two numbers of ten digits, from its last digit to its first.

    The number of digits after the leading zeros is drawn for each summand, from `min_digits` to `max_digits`. The pairs of
    `adder_board_test` are never drawn.
    """
    check_bounds(1, min_digits=min_digits, max_digits=max_digits)
    check_bounds(1, max_digits=max_digits, digits_of_the_layout=WIDTH)
    pair = summands(rng, min_digits, max_digits)
    while pair in excluded_pairs():
        pair = summands(rng, min_digits, max_digits)
    return padded_sum(*pair)


def verification_samples() -> Iterator[str]:
    return (padded_sum(a, b) for a, b in verification_pairs())


@registered(rows=verification_samples, slices=SLICES)
def adder_board_test(rng: random.Random) -> str:
    """1111111111+8888888889=«00000000001»   The 10,010 sums by which AdderBoard compares models: an evaluation set."""
    return padded_sum(*rng.choice(verification_pairs()))
