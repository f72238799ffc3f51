"""Recall and copying as in MAD (Poli et al. 2024, arXiv:2403.17844), and variants of associative recall.

Keys and values are numbers from two halves of a vocabulary, and what belongs to what is drawn for each sample. Scored values
are in the input, too, once they have been predicted.
"""

import random
import string
from functools import cache

from data.syntheticdata import Sample, check_bounds, n_queries, registered


def halves(vocab_size: int) -> tuple[list[str], list[str]]:
    """Return the keys and the values of a vocabulary."""
    if vocab_size < 4:
        raise ValueError(f"vocab_size must be at least 4, not {vocab_size}")
    names = [str(i) for i in range(vocab_size)]
    return names[: vocab_size // 2], names[vocab_size // 2 :]


def one_value(vocab_size: int, **_: object) -> float:
    return 1 / (vocab_size - vocab_size // 2)


def asked(key: list[str], value: list[str]) -> list[str]:
    return [*key, "«", *value, "»"]


@registered(chance=one_value, slices={"queries": n_queries})
def recall(
    rng: random.Random, vocab_size: int = 16, length: int = 64, n_noise: int = 0, p_noise: float = 0.2
) -> list[str]:
    """3 11 5 9 3 « 11 » 5 « 9 »   Pairs of a key and its value; a value is scored if its key has occurred before.

    In-context recall of MAD. With `n_noise` tokens of a vocabulary of their own, a share `p_noise` of the pairs is replaced
    by two of them: noisy recall.
    """
    keys, values = halves(vocab_size)
    if length < 4 or n_noise < 0 or not 0 <= p_noise < 1:
        raise ValueError(f"recall needs {length=} from 4, {n_noise=} from 0 and {p_noise=} from 0 to 1")
    value_of = {key: rng.choice(values) for key in keys}
    sample: list[str] = []
    seen: list[str] = []
    for left in range(length // 2, 0, -1):
        if n_noise and left > 1 and rng.random() < p_noise:
            sample += [f"n{rng.randrange(n_noise)}" for _ in range(2)]
            continue
        key = rng.choice(seen if left == 1 and seen else keys)
        sample += asked([key], [value_of[key]]) if key in seen else [key, value_of[key]]
        seen.append(key)
    return [*sample, "."]


@registered(chance=one_value, slices={"queries": n_queries})
def fuzzy_recall(rng: random.Random, vocab_size: int = 16, length: int = 64, max_motif: int = 3) -> list[str]:
    """3 5 , 11 2 , 4 , 9 , 3 5 , « 11 2 »   Recall of values of one to three tokens, by keys of one to three."""
    keys, values = halves(vocab_size)
    check_bounds(1, max_motif=max_motif, half_of_the_vocabulary=len(keys))
    room = 2 * max_motif + 2  # of a pair with its commas
    if length < 2 * room:
        raise ValueError(f"length must be at least {2 * room} with {max_motif=}, not {length}")
    value_of: dict[tuple[str, ...], list[str]] = {}
    sample: list[str] = []
    n = 0
    while n + 2 * room <= length:
        is_repeat = value_of and rng.random() < 0.5
        key = rng.choice(list(value_of)) if is_repeat else tuple(rng.sample(keys, rng.randint(1, max_motif)))
        is_repeat = key in value_of
        value = value_of.setdefault(key, rng.choices(values, k=rng.randint(1, max_motif)))
        sample += [*key, ",", *(("«", *value, "»") if is_repeat else value), ","]
        n += len(key) + len(value) + 2
    key = rng.choice(list(value_of))
    return [*sample, *key, ",", "«", *value_of[key], "»", "."]


@registered(chance=one_value, slices={})
def associative_recall(rng: random.Random, n_pairs: int = 8, vocab_size: int = 32) -> list[str]:
    """3 20 7 31 5 18 7 « 31 » .   Pairs of a key and its value, then one of the keys (H3: Fu et al. 2022)."""
    keys, values = halves(vocab_size)
    check_bounds(1, n_pairs=n_pairs, half_of_the_vocabulary=len(keys))
    value_of = {key: rng.choice(values) for key in rng.sample(keys, n_pairs)}
    query = rng.choice(list(value_of))
    return [*(token for pair in value_of.items() for token in pair), *asked([query], [value_of[query]]), "."]


def one_shown_value(n_keys: int, n_reassigned: int, **_: object) -> float:
    """Return the accuracy of guessing one of the values in the sample."""
    return 1 / (n_keys + n_reassigned)


@registered(chance=one_shown_value, slices={"keys": n_queries})
def reassigned_recall(
    rng: random.Random, n_keys: int = 8, n_reassigned: int = 4, vocab_size: int = 64
) -> list[str]:
    """3 40 7 51 3 38 7 ‹ 51 › 3 ‹ 38 ›   Multi-query recall in which some keys get a second value: the last one counts.

    `n_reassigned` of the keys occur twice, each time with another value. A model that returns the first value of a key is
    right for the others only. All pairs stand in random order, before the queries.
    """
    keys, values = halves(vocab_size)
    check_bounds(1, n_keys=n_keys, half_of_the_vocabulary=len(keys))
    check_bounds(0, n_reassigned=n_reassigned, n_keys=n_keys)
    check_bounds(1, n_keys_and_reassigned=n_keys + n_reassigned, half_of_the_vocabulary=len(values))
    chosen = rng.sample(keys, n_keys)
    order = chosen + rng.sample(chosen, n_reassigned)
    rng.shuffle(order)
    pairs = [*zip(order, rng.sample(values, len(order)), strict=True)]
    last_value = dict(pairs)
    rng.shuffle(chosen)
    queries = [token for key in chosen for token in (key, "‹", last_value[key], "›")]
    return [*(token for pair in pairs for token in pair), *queries]


def one_of_the_grid(n_names: int, **_: object) -> float:
    """Return the accuracy of guessing one of the values in the sample."""
    return 1 / n_names**2


@registered(chance=one_of_the_grid, slices={"queries": n_queries})
def compositional_recall(
    rng: random.Random, n_names: int = 3, n_asked: int = 4, n_values: int = 32
) -> list[str]:
    """a0 b1 v7 a1 b1 v4 a0 b1 ‹ v7 ›   Multi-query recall by keys of two tokens, of which neither alone decides.

    Each of `n_names` first tokens occurs with each of `n_names` second ones, so that one token of the key leaves `n_names`
    values. `n_asked` of the keys are asked for.
    """
    check_bounds(1, n_asked=n_asked, n_keys=n_names**2)
    check_bounds(2, n_names=n_names, n_values=n_values)
    check_bounds(4, n_keys=n_names**2, n_values=n_values)
    keys = [(f"a{i}", f"b{j}") for i in range(n_names) for j in range(n_names)]
    rng.shuffle(keys)
    value_of = {key: f"v{i}" for key, i in zip(keys, rng.sample(range(n_values), len(keys)), strict=True)}
    queries = [token for key in rng.sample(keys, n_asked) for token in (*key, "‹", value_of[key], "›")]
    return [*(token for key in keys for token in (*key, value_of[key])), *queries]


def one_of_the_vocabulary(vocab_size: int, **_: object) -> float:
    return 1 / vocab_size


def distance_to_mark(sample: Sample) -> int:
    """Return the number of tokens from the first mark to the second."""
    first, second = (i for i, token in enumerate(sample) if token == "⇒")
    return second - first


@registered(chance=one_of_the_vocabulary, slices={"distance": distance_to_mark})
def induction_head(rng: random.Random, length: int = 30, vocab_size: int = 16) -> list[str]:
    """3 9 ⇒ 7 2 5 ⇒ « 7 » .   Random tokens and a mark among them; at the end, what followed the mark (H3: Fu et al. 2022)."""
    if length < 3 or vocab_size < 2:
        raise ValueError(f"induction_head needs {length=} from 3 and {vocab_size=} from 2")
    tokens = [str(rng.randrange(vocab_size)) for _ in range(length - 2)]
    place = rng.randrange(len(tokens))
    return [*tokens[:place], "⇒", *tokens[place:], *asked(["⇒"], [tokens[place]]), "."]


@registered(slices={})
def selective_copying(rng: random.Random, n_tokens: int = 16, length: int = 64, n_letters: int = 14) -> str:
    """__c_a___b>«cab»   The letters among blanks, in their order. Their number is always the same."""
    if not (1 <= n_tokens <= length and 1 <= n_letters <= 26):
        raise ValueError(
            f"selective_copying needs 1 <= n_tokens <= length and n_letters up to 26, not {n_tokens=}, {length=}, {n_letters=}"
        )
    places = set(rng.sample(range(length), n_tokens))
    word = rng.choices(string.ascii_lowercase[:n_letters], k=n_tokens)
    rest = iter(word)
    return "".join(next(rest) if i in places else "_" for i in range(length)) + f">«{''.join(word)}»"


@cache
def lasting_values(vocab_size: int) -> dict[str, str]:
    """Return a value for every key, the same in all samples."""
    keys, values = halves(vocab_size)
    dice = random.Random(0)
    return {key: dice.choice(values) for key in keys}


@registered(chance=one_value, slices={})
def memorization(rng: random.Random, vocab_size: int = 256, n_pairs: int = 16) -> list[str]:
    """3 ‹ 140 › 17 ‹ 201 ›   The value of each key, which is the same in all samples: knowledge in the weights."""
    value_of = lasting_values(vocab_size)
    check_bounds(1, n_pairs=n_pairs, half_of_the_vocabulary=len(value_of))
    return [token for key in rng.sample(list(value_of), n_pairs) for token in (key, "‹", value_of[key], "›")]
