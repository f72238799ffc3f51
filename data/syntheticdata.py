"""Synthetic tasks: a registered function draws one sample, and its name is the task's name.

The function takes a random generator and keyword arguments for the difficulty; its docstring begins with a sample. It
returns a string, whose characters are its tokens, or a list of tokens. Tokens between « and » are scored; without marks
all are. If the last token is scored, the end-of-sequence token is scored, too. Tokens between ‹ and › are scored, and the
model never sees them: a padding token stands in their place. So an answer cannot help with the next one.
"""

import inspect
import itertools
import random
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar, overload

from common.registry import Registry

Sample = str | list[str]
MARKS = ("«", "»", "‹", "›")  # around scored tokens, and around those that the model does not see
OPENING, CLOSING = MARKS[::2], MARKS[1::2]


class Task(NamedTuple):
    """A registered task: the function that draws a sample, and optional functions about the task."""

    name: str
    draw: Callable[..., Sample]  # (rng, **task_args) -> a sample
    # (prompt, answer) -> is a generated answer right? None: only the answer of the sample is right
    check: Callable[[str, str], bool] | None
    # (**arguments) -> chance level of the accuracy; None: the share of the most common target
    chance: Callable[..., float] | None
    # (**task_args) -> all samples of a finite task, to split by row
    rows: Callable[..., Iterator[Sample]] | None
    # Properties of a sample by which results show the accuracy: a function of the sample, by name
    slices: Mapping[str, Callable[[Sample], int]] = {}
    # (sample, **arguments) -> the nats of each scored token under the best predictor that knows how samples are drawn
    reference: Callable[..., list[float]] | None = None
    # (**arguments) -> tokens that belong to the vocabulary although few samples have them
    tokens: Callable[..., Iterable[str]] | None = None

    def arguments(self, task_args: Mapping[str, object]) -> dict[str, object]:
        """Return all arguments of a sample: `task_args`, and the defaults of the others."""
        defaults = {name: one.default for name, one in inspect.signature(self.draw).parameters.items()}
        return {
            name: value for name, value in defaults.items() if value is not inspect.Parameter.empty
        } | dict(task_args)


tasks: Registry[Task] = Registry("task")
Draw = TypeVar("Draw", bound=Callable[..., Sample])


@overload
def registered(draw: Draw) -> Draw: ...
@overload
def registered(
    draw: None = None,
    *,
    check: Callable[[str, str], bool] | None = None,
    chance: Callable[..., float] | None = None,
    rows: Callable[..., Iterator[Sample]] | None = None,
    slices: Mapping[str, Callable[[Sample], int]] | None = None,
    reference: Callable[..., list[float]] | None = None,
    tokens: Callable[..., Iterable[str]] | None = None,
) -> Callable[[Draw], Draw]: ...
def registered(
    draw: Draw | None = None,
    *,
    check: Callable[[str, str], bool] | None = None,
    chance: Callable[..., float] | None = None,
    rows: Callable[..., Iterator[Sample]] | None = None,
    slices: Mapping[str, Callable[[Sample], int]] | None = None,
    reference: Callable[..., list[float]] | None = None,
    tokens: Callable[..., Iterable[str]] | None = None,
) -> Draw | Callable[[Draw], Draw]:
    """Register the decorated function as a task: `@registered`, or `@registered(check=...)` to set fields of Task."""

    def register(draw: Draw) -> Draw:
        check_takes_rng(draw)
        of_length = {"length": length_before_answer} if slices is None else slices
        return tasks.add(draw, Task(draw.__name__, draw, check, chance, rows, of_length, reference, tokens))

    return register(draw) if draw else register


def check_takes_rng(draw: Callable[..., Sample]) -> None:
    """Raise TypeError unless `draw` is a function whose first parameter can be the random generator."""
    if not inspect.isfunction(draw):
        raise TypeError(
            f"@registered needs a function, written with def, not {draw!r}: the function's name becomes the task's name"
        )
    first = next(iter(inspect.signature(draw).parameters.values()), None)
    if first is None or first.default is not first.empty or first.kind is first.KEYWORD_ONLY:
        code = draw.__code__
        raise TypeError(
            f"{code.co_filename}:{code.co_firstlineno}: the task {draw.__name__!r} needs the random generator as its first "
            f"parameter: def {draw.__name__}(rng: random.Random, ...)"
        )


class Marked(NamedTuple):
    """A sample without its marks: its tokens, and whether each of them and the end of the sequence are scored."""

    tokens: list[str]
    scored: list[bool]
    end_scored: bool
    hidden: list[bool]  # True where the model does not see a token


def read_marks(sample: Sample) -> Marked:
    """Split a sample into its tokens and its marks."""
    if not any(mark in sample for mark in OPENING):
        return Marked(list(sample), [True] * len(sample), True, [False] * len(sample))
    tokens, scored, hidden, mark = [], [], [], ""
    for token in sample:
        if token in MARKS:
            mark = token if token in OPENING else ""
        else:
            tokens.append(token)
            scored.append(mark != "")
            hidden.append(mark == "‹")
    return Marked(tokens, scored, mark != "" or sample[-1] == "»", hidden)


def length_before_answer(sample: Sample) -> int:
    """Return the number of tokens before the first scored one, or of all tokens if all are scored.

    Colons and an equals sign at the end do not count: the length of `abc::«abc»` is 3.
    """
    tokens = list(itertools.takewhile(lambda token: token not in OPENING, sample))
    return len("".join(tokens).rstrip(":=")) if isinstance(sample, str) else len(tokens)


def text_without_marks(sample: Sample) -> str:
    """Return the text of a sample without marks: equal for samples with the same tokens."""
    joined = sample if isinstance(sample, str) else " ".join(sample)
    return joined.translate(dict.fromkeys(map(ord, MARKS)))


def check_bounds(least: int, **bounds: int) -> None:
    """Raise ValueError unless least <= low <= high. Pass the two bounds as keywords, the lower one first."""
    (low_name, low), (high_name, high) = bounds.items()
    if not least <= low <= high:
        raise ValueError(
            f"{least} <= {low_name} <= {high_name} is required, but {low_name}={low} and {high_name}={high}"
        )


def letters(rng: random.Random, min_length: int, max_length: int, n_letters: int) -> str:
    """Return a random word of `min_length` to `max_length` letters from the first `n_letters` of the alphabet."""
    if not 1 <= n_letters <= 26:
        raise ValueError(f"n_letters must be from 1 to 26, not {n_letters}")
    check_bounds(0, min_length=min_length, max_length=max_length)
    return "".join(rng.choices(string.ascii_lowercase[:n_letters], k=rng.randint(min_length, max_length)))


@registered
def copy(rng: random.Random, min_length: int = 5, max_length: int = 20, n_letters: int = 26) -> str:
    """abca::«abca»   The letters once more."""
    word = letters(rng, min_length, max_length, n_letters)
    return f"{word}::«{word}»"


def without_blanks(masked: str) -> str:
    return masked.replace("*", "")


@registered
def maskedcopy(
    rng: random.Random, min_length: int = 5, max_length: int = 20, n_letters: int = 26, p_masked: float = 0.3
) -> str:
    """ab*c*a::«abca»   The letters once more, leaving out the masked places (also known as selective copying)."""
    word = letters(rng, min_length, max_length, n_letters)
    if not 0 <= p_masked <= 1:
        raise ValueError(f"p_masked must be from 0 to 1, not {p_masked}")
    masked = "".join("*" if rng.random() < p_masked else letter for letter in word)
    return f"{masked}::«{without_blanks(masked)}»"


def backwards(word: str) -> str:
    return word[::-1]


@registered
def reverse(rng: random.Random, min_length: int = 5, max_length: int = 20, n_letters: int = 26) -> str:
    """abcd::«dcba»   The letters from the last to the first."""
    word = letters(rng, min_length, max_length, n_letters)
    return f"{word}::«{backwards(word)}»"


def sorted_letters(word: str) -> str:
    return "".join(sorted(word))


@registered
def sort(rng: random.Random, min_length: int = 5, max_length: int = 20, n_letters: int = 26) -> str:
    """cabac::«aabcc»   The letters in alphabetical order."""
    word = letters(rng, min_length, max_length, n_letters)
    return f"{word}::«{sorted_letters(word)}»"


COUNTS = string.digits + string.ascii_uppercase  # one token for a number up to 35


def frequencies(word: str) -> str:
    count = Counter(word)
    return "".join(COUNTS[count[letter]] for letter in word)


def possible_counts(max_length: int, **_: object) -> str:
    """Return the tokens of all counts in a word. The largest ones are rare."""
    return COUNTS[1 : max_length + 1]


@registered(tokens=possible_counts)
def histogram(
    rng: random.Random, min_length: int = 5, max_length: int = 20, n_letters: int = 10, layout: str = "after"
) -> str:
    """abcaa::«31133»   The count of each letter in the word (A for 10, B for 11 and so on; at most 35 letters).

    With `layout="beside"` the count of each letter is asked for right behind it, in a second copy of the word, and the model
    does not see the counts: abcaa::a‹3›b‹1›...
    """
    if max_length >= len(COUNTS):
        raise ValueError(f"max_length must be under {len(COUNTS)}, not {max_length}")
    if layout not in ("after", "beside"):
        raise ValueError(f"layout must be 'after' or 'beside', not {layout!r}")
    word = letters(rng, min_length, max_length, n_letters)
    if layout == "after":
        return f"{word}::«{frequencies(word)}»"
    return f"{word}::" + "".join(f"{one}‹{n}›" for one, n in zip(word, frequencies(word), strict=True))


def frequencies_of_frequencies(word: str) -> str:
    count = Counter(word)
    shared = Counter(count.values())
    return "".join(COUNTS[shared[count[letter]]] for letter in word)


@registered(tokens=possible_counts)
def doublehistogram(
    rng: random.Random, min_length: int = 5, max_length: int = 20, n_letters: int = 10
) -> str:
    """abcaa::«12211»   For each letter, the number of different letters with the same count, itself included."""
    word = letters(rng, min_length, max_length, n_letters)
    return f"{word}::«{frequencies_of_frequencies(word)}»"


def numbers_in_order(numbers: str) -> str:
    return ",".join(sorted(numbers.split(","), key=int))


def n_numbers(sample: Sample) -> int:
    return 1 + "".join(sample).partition("::")[0].count(",")


@registered(slices={"numbers": n_numbers})
def numbersort(rng: random.Random, min_numbers: int = 2, max_numbers: int = 8, max_number: int = 999) -> str:
    """31,4,159::«4,31,159»   The numbers in ascending order."""
    check_bounds(1, min_numbers=min_numbers, max_numbers=max_numbers)
    if max_number < 0:
        raise ValueError(f"max_number must be at least 0, not {max_number}")
    numbers = ",".join(str(rng.randint(0, max_number)) for _ in range(rng.randint(min_numbers, max_numbers)))
    return f"{numbers}::«{numbers_in_order(numbers)}»"


def n_digits(sample: Sample) -> int:
    """Return the number of digits of the larger summand, without leading zeros."""
    return max(len(str(int(number))) for number in "".join(sample).partition("=")[0].split("+"))


def n_carries(sample: Sample) -> int:
    """Return in how many places the sum of two numbers carries."""
    a, b = (number[::-1] for number in "".join(sample).partition("=")[0].split("+"))
    carry = count = 0
    for x, y in itertools.zip_longest(a, b, fillvalue="0"):
        carry = int(x) + int(y) + carry > 9
        count += carry
    return count


def summands(rng: random.Random, min_digits: int, max_digits: int) -> tuple[int, int]:
    """Return two random numbers. The number of digits is drawn first, for each number."""
    a, b = (rng.randrange(10 ** rng.randint(min_digits, max_digits)) for _ in range(2))
    return a, b


def sum_text(a: int, b: int, width: int, from_last_digit: bool) -> str:
    """Return the sum of two numbers as a sample: numbers of `width` digits and a sum of one more, with leading zeros."""
    answer = f"{a + b:0{width + 1}}"
    return f"{a:0{width}}+{b:0{width}}=«{answer[::-1] if from_last_digit else answer}»"


@registered(slices={"digits": n_digits, "carries": n_carries})
def long_addition(
    rng: random.Random,
    min_digits: int = 1,
    max_digits: int = 10,
    fixed_width: bool = False,
    reverse: bool = False,
) -> str:
    """37+985=«1022»   The sum of two numbers; the number of digits is drawn first, so that short ones occur, too.

    With `fixed_width` numbers have leading zeros: `max_digits` digits, and the sum one more. With `reverse` the sum begins
    with its last digit, as in Lee et al. 2023 (arXiv:2307.03381).
    """
    check_bounds(0, min_digits=min_digits, max_digits=max_digits)
    a, b = summands(rng, min_digits, max_digits)
    return sum_text(a, b, max_digits if fixed_width else 0, reverse)


@registered
def parity(rng: random.Random, min_length: int = 1, max_length: int = 30) -> str:
    """0110111::«1».   1 if the number of ones is odd, else 0. The unscored full stop keeps chance at one half."""
    check_bounds(0, min_length=min_length, max_length=max_length)
    bits = rng.choices("01", k=rng.randint(min_length, max_length))
    return f"{''.join(bits)}::«{bits.count('1') % 2}»."


def modular_sum(a: int, b: int, p: int) -> list[str]:
    return [str(a), "+", str(b), "=", "«", str((a + b) % p), "»", "."]


def all_modular_sums(p: int = 59) -> Iterator[list[str]]:
    return (modular_sum(a, b, p) for a in range(p) for b in range(p))


def one_of_p(p: int, **_: object) -> float:
    return 1 / p


@registered(chance=one_of_p, rows=all_modular_sums, slices={})
def modular_addition(rng: random.Random, p: int = 59) -> list[str]:
    """17 + 50 = « 8 » .   The sum modulo p.

    Each of the p * p rows occurs once, in one split. To see grokking, train on 40 % of them: val_pct=60, test_pct=0.
    """
    if p < 1:
        raise ValueError(f"p must be at least 1, not {p}")
    return modular_sum(rng.randrange(p), rng.randrange(p), p)


def period_of(sample: Sample) -> int:
    return sample.index("«") - 1  # one token of the second copy is not scored


@registered(slices={"period": period_of})
def induction(
    rng: random.Random, length: int = 64, min_period: int = 12, max_period: int = 32, vocab_size: int = 64
) -> list[str]:
    """7 3 9 7 « 3 9 7 3 » .   A repeated block of different random tokens; its period is drawn for each sample.

    With a fixed period, a head that attends a fixed distance back solves the task without induction. The first token of
    the second copy is not scored: the end of the block is unpredictable.
    """
    if max_period >= length or max_period > vocab_size:
        raise ValueError(f"{max_period=} must be under {length=}, to be repeated, and at most {vocab_size=}")
    check_bounds(1, min_period=min_period, max_period=max_period)
    period = rng.randint(min_period, max_period)
    block = [str(token) for token in rng.sample(range(vocab_size), period)]
    copies = (block * (length // period + 1))[period:length]
    return [*block, copies[0], "«", *copies[1:], "»", "."]


def one_of_the_values_left(n_pairs: int, show_answer: bool, **_: object) -> float:
    """Return the accuracy of guessing among those values of the sample that no answer has shown yet.

    A model that reads the values of a sample but ignores the keys reaches this accuracy. A guess among all values of
    the vocabulary is right far less often, so an untrained model starts below `chance`.
    """
    return sum(1 / left for left in range(1, n_pairs + 1)) / n_pairs if show_answer else 1 / n_pairs


def n_queries(sample: Sample) -> int:
    return sample.count("«") + sample.count("‹")


@registered(chance=one_of_the_values_left, slices={"pairs": n_queries})
def mqar(
    rng: random.Random,
    n_pairs: int = 4,
    length: int = 32,
    vocab_size: int = 64,
    power: float = 0.01,
    show_answer: bool = True,
) -> list[str]:
    """5 40 9 33 0 0 9 « 33 » 0 0 5 « 40 » 0   Multi-query associative recall: each key again, and its value.

    As in zoology (Arora et al. 2023), keys come from the lower half of the vocabulary, values from the upper half. A
    power law draws the slot of each query without replacement; all other slots hold 0. Unlike there, the value also
    follows in the input after its prediction. With `show_answer=False` it does not, so that chance is 1 / n_pairs.
    """
    if not 4 <= 4 * n_pairs <= length < vocab_size:
        raise ValueError(
            f"mqar needs 4 <= 4 * n_pairs <= length < vocab_size, not {n_pairs=}, {length=}, {vocab_size=}"
        )
    keys = rng.sample(range(1, vocab_size // 2), n_pairs)
    values = rng.sample(range(vocab_size // 2, vocab_size), n_pairs)
    n_slots = (length - 2 * n_pairs) // 2
    slots = distinct_choices(rng, [(slot + 1) ** (power - 1) for slot in range(n_slots)], n_pairs)
    begin, end = "«»" if show_answer else "‹›"
    asked = {
        slot: (str(key), begin, str(value), end) for slot, key, value in zip(slots, keys, values, strict=True)
    }
    pairs = [str(token) for pair in zip(keys, values, strict=True) for token in pair]
    return [*pairs, *(token for slot in range(n_slots) for token in asked.get(slot, ("0", "0"))), "0"]


def distinct_choices(rng: random.Random, weights: Sequence[float], k: int) -> list[int]:
    """Return `k` different indices, drawn one after the other with probabilities proportional to `weights`."""
    left = list(weights)
    chosen = []
    for _ in range(k):
        chosen += rng.choices(range(len(left)), left)
        left[chosen[-1]] = 0
    return chosen


# Tasks in files of their own, which are read when one of them is looked up.
tasks.add_lazy("group_word", "data.state_tracking")
tasks.add_lazy("dyck", "data.state_tracking")
tasks.add_lazy("flip_flop", "data.state_tracking")
tasks.add_lazy("cumulative_parity", "data.state_tracking")
tasks.add_lazy("cumulative_majority", "data.state_tracking")
tasks.add_lazy("recall", "data.recall_tasks")
tasks.add_lazy("fuzzy_recall", "data.recall_tasks")
tasks.add_lazy("associative_recall", "data.recall_tasks")
tasks.add_lazy("reassigned_recall", "data.recall_tasks")
tasks.add_lazy("compositional_recall", "data.recall_tasks")
tasks.add_lazy("induction_head", "data.recall_tasks")
tasks.add_lazy("selective_copying", "data.recall_tasks")
tasks.add_lazy("memorization", "data.recall_tasks")
tasks.add_lazy("markov_chain", "data.in_context")
tasks.add_lazy("linear_regression", "data.in_context")
tasks.add_lazy("few_shot", "data.in_context")
tasks.add_lazy("bigram_backcopy", "data.in_context")
tasks.add_lazy("mano", "data.expressions")
tasks.add_lazy("lano", "data.expressions")
tasks.add_lazy("adder_board", "data.adder_board")
tasks.add_lazy("adder_board_test", "data.adder_board")
