"""Tasks from papers: every scored token against a reference that is computed in another way."""

import itertools
import random
import re
from collections import Counter

import numpy as np
import pytest
from scipy.special import gammaln

from data.expressions import GRAMMAR, is_of_grammar
from data.in_context import bin_values, rounding_variance
from data.state_tracking import elements_of
from data.syntheticdata import Sample, read_marks, tasks

CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">", "a": "A", "b": "B"}


def draws(name: str, n: int = 40, **task_args) -> list[Sample]:
    return [tasks[name].draw(random.Random(seed), **task_args) for seed in range(n)]


def shown_and_answers(sample: Sample) -> tuple[list[str], list[tuple[int, str]]]:
    """The tokens that a model sees, and each hidden answer with the number of tokens before it."""
    marked = read_marks(sample)
    shown, answers = [], []
    for token, hidden, scored in zip(marked.tokens, marked.hidden, marked.scored, strict=True):
        assert scored is hidden
        if hidden:
            answers.append((len(shown), token))
        else:
            shown.append(token)
    return shown, answers


@pytest.mark.parametrize(("group", "order"), [("S3", 6), ("S5", 120), ("A5", 60), ("Z60", 60)])
def test_group_words_by_products_of_matrices(group, order):
    elements = elements_of(group)
    matrices = [np.eye(len(one), dtype=int)[list(one)] for one in elements]
    number = {matrix.tobytes(): i for i, matrix in enumerate(matrices)}
    assert len(number) == order
    assert all(number[(a @ b).tobytes()] >= 0 for a in matrices[:7] for b in matrices), "closed"
    assert (matrices[0] == np.eye(len(matrices[0]))).all()
    if group == "A5":
        assert {round(np.linalg.det(matrix)) for matrix in matrices} == {1}
    for sample in draws("group_word", group=group, min_length=3, max_length=6):
        shown, answers = shown_and_answers(sample)
        so_far = matrices[0]
        for n, (factor, (place, answer)) in enumerate(zip(shown, answers, strict=True), start=1):
            so_far = so_far @ matrices[int(factor)]
            assert (place, int(answer)) == (n, number[so_far.tobytes()])
    [last] = shown_and_answers(draws("group_word", 1, group=group, last_only=True)[0])[1]
    assert last == (8, read_marks(draws("group_word", 1, group=group)[0]).tokens[-1])


def test_dyck_answers_are_the_brackets_that_close_next():
    depths = Counter()
    for sample in draws("dyck", n_kinds=6, max_depth=3, min_length=10, max_length=20):
        shown, answers = shown_and_answers(sample)
        asked = dict(answers)
        depth = 0
        for n in range(1, len(shown) + 1):
            rest = "".join(shown[:n])
            while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>|aA|bB", "", rest)) != rest:
                rest = shorter
            depth = max(depth, len(rest))
            assert asked.get(n) == (CLOSING[rest[-1]] if rest else None)
        assert rest == ""
        assert 10 <= len(shown) <= 20
        depths[depth] += 1
        assert tasks["dyck"].slices["depth"](sample) == depth
    assert max(depths) == 3


def test_flip_flops_read_what_was_written_last():
    for sample in draws("flip_flop", length=32, p_ignore=0.5):
        shown = "".join(read_marks(sample).tokens)
        assert len(shown) == 32
        assert (shown[0], shown[-2]) == ("w", "r")
        for read in re.finditer(r"(?<=r)[01]", shown):
            assert read[0] == re.findall(r"w([01])", shown[: read.start()])[-1]
        ignored = re.fullmatch(r".*w[01]((?:i[01]|r[01])*)r[01]", shown)[1]
        assert tasks["flip_flop"].slices["ignored"](sample) == len(ignored) // 2
    sparse = "".join("".join(sample) for sample in draws("flip_flop", p_ignore=0.98))
    assert sparse.count("i") > 15 * sparse.count("w")


def test_tags_of_bits():
    for name, tag in (
        ("cumulative_parity", lambda ones, n: ones % 2),
        ("cumulative_majority", lambda ones, n: ones >= n / 2),
    ):
        for sample in draws(name, min_length=5, max_length=9):
            shown, answers = shown_and_answers(sample)
            ones = np.cumsum([int(bit) for bit in shown])
            assert answers == [(n, str(int(tag(ones[n - 1], n)))) for n in range(1, len(shown) + 1)]


@pytest.mark.parametrize(
    ("name", "task_args"),
    [("recall", {}), ("recall", {"n_noise": 5, "p_noise": 0.4}), ("associative_recall", {})],
)
def test_recall_scores_what_has_been_shown(name, task_args):
    for sample in draws(name, **task_args):
        marked = read_marks(sample)
        words = [
            (token, scored)
            for token, scored in zip(marked.tokens, marked.scored, strict=True)
            if token != "."
        ]
        known: dict[str, str] = {}
        for (key, key_scored), (value, scored) in (
            itertools.batched(words, 2)
            if hasattr(itertools, "batched")
            else zip(words[::2], words[1::2], strict=True)
        ):
            if key.startswith("n"):
                assert not scored
                continue
            assert not key_scored
            assert scored is (key in known)
            assert known.setdefault(key, value) == value
        assert words[-1][1], "the last value is always known"
    if "n_noise" in task_args:
        n = Counter(
            token[0] == "n" for sample in draws(name, **task_args) for token in read_marks(sample).tokens
        )
        assert 0.3 < n[True] / n.total() < 0.5


def test_fuzzy_recall():
    for sample in draws("fuzzy_recall"):
        text = " ".join(token for token in sample if token != ".")
        parts = [part.strip() for part in text.split(",")]
        known: dict[str, str] = {}
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            plain = value.replace("«", "").replace("»", "").strip()
            assert value.startswith("«") is (key in known)
            assert known.setdefault(key, plain) == plain
        assert len(read_marks(sample).tokens) <= 64
        assert value.startswith("«")


def test_selective_copying_and_memorization():
    for sample in draws("selective_copying", n_tokens=5, length=12):
        word, answer = re.fullmatch(r"([a-z_]{12})>«([a-z]{5})»", sample).groups()
        assert word.replace("_", "") == answer
    known: dict[str, str] = {}
    for sample in draws("memorization", 100):
        shown, answers = shown_and_answers(sample)
        for key, (_, value) in zip(shown, answers, strict=True):
            assert known.setdefault(key, value) == value
    assert len(known) == 128
    assert tasks["memorization"].chance(**tasks["memorization"].arguments({})) == 1 / 128


def test_the_reference_of_markov_chains_is_the_marginal_likelihood():
    """The product of the predictions is the Dirichlet-multinomial probability of the transitions."""
    for sample in draws("markov_chain", 10, n_states=4, alpha=0.7, length=30):
        states = [int(token) for token in read_marks(sample).tokens[:-1]]
        counts = np.zeros((4, 4))
        np.add.at(counts, (states[:-1], states[1:]), 1)
        log_p = (
            gammaln(4 * 0.7)
            - gammaln(counts.sum(1) + 4 * 0.7)
            + (gammaln(counts + 0.7) - gammaln(0.7)).sum(1)
        )
        losses = tasks["markov_chain"].reference(sample, n_states=4, alpha=0.7)
        assert sum(losses) == pytest.approx(-log_p.sum())
        assert len(losses) == sum(read_marks(sample).scored) == 29


def test_the_reference_of_regression_is_a_gaussian_process():
    """Ridge regression is a Gaussian process with the kernel x x'."""
    from scipy.stats import norm

    dims, n_bins = 3, 8
    edges = np.sqrt(dims) * norm.ppf(np.arange(1, n_bins) / n_bins)
    noise = rounding_variance(dims, n_bins)
    for sample in draws("linear_regression", 5, dims=dims, n_bins=n_bins, n_points=6):
        tokens = read_marks(sample).tokens[:-1]
        x = bin_values(n_bins, 1.0)[np.array([int(t[1:]) for t in tokens if t[0] == "x"])].reshape(-1, dims)
        bins = np.array([int(t[1:]) for t in tokens if t[0] == "y"])
        y = bin_values(n_bins, np.sqrt(dims))[bins]
        losses = tasks["linear_regression"].reference(sample, dims=dims, n_bins=n_bins)
        assert len(losses) == 6
        for i, loss in enumerate(losses):
            kernel = x[: i + 1] @ x[: i + 1].T
            solved = np.linalg.solve(kernel[:i, :i] + noise * np.eye(i), kernel[:i, i]) if i else np.zeros(0)
            mean, variance = solved @ y[:i], kernel[i, i] - solved @ kernel[:i, i] + noise
            below = np.array([0, *norm.cdf(edges, mean, np.sqrt(variance)), 1])
            assert loss == pytest.approx(-np.log(np.diff(below)[bins[i]]))


def test_regression_with_few_maps_repeats_them():
    def signs(**task_args) -> set[str]:
        found = set()
        for sample in draws("linear_regression", 30, dims=1, n_points=12, **task_args):
            tokens = read_marks(sample).tokens[:-1]
            pairs = [
                (int(x[1:]) - 7.5, int(y[1:]) - 7.5) for x, y in zip(tokens[::2], tokens[1::2], strict=True)
            ]
            found.add(round(sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs), 1))
        return found

    assert len(signs(n_tasks=2)) < len(signs())


def test_few_shot_labels():
    for relabel in (False, True):
        shifts = set()
        for sample in draws("few_shot", relabel=relabel):
            tokens = read_marks(sample).tokens[:-1]
            pairs = [
                (int(c[1:]) // 4, int(label[1:])) for c, label in zip(tokens[::2], tokens[1::2], strict=True)
            ]
            [shift] = {(label - of_class) % 8 for of_class, label in pairs}
            shifts.add(shift)
            assert Counter(of_class for of_class, _ in pairs)[pairs[-1][0]] >= 5
        assert shifts == (set(range(8)) if relabel else {0})
    common = Counter(
        token
        for s in draws("few_shot", 100, zipf=2.0, n_members=1, burst=0)
        for token in s
        if token[0] == "c"
    )
    assert common.most_common(1)[0][0] == "c0"


def test_bigram_backcopy_copies_behind_triggers():
    for sample in draws("bigram_backcopy"):
        tokens, scored, *_ = read_marks(sample)
        for before, trigger, after, is_scored in zip(
            tokens, tokens[1:], tokens[2:], scored[2:], strict=False
        ):
            assert is_scored is trigger.startswith("t")
            assert after == before or not is_scored


def test_mano_values():
    for sample in draws("mano"):
        text = " ".join(read_marks(sample).tokens)
        n, expression, value = re.fullmatch(r"len(\d+) (.*) = (\d+) \.", text).groups()
        stack: list[int] = []
        for token in reversed(expression.split()):
            if token.isdigit():
                stack.append(int(token))
            else:
                a, b = stack.pop(), stack.pop()
                stack.append({"+": a + b, "-": a - b, "*": a * b}[token])
        assert [one % 23 for one in stack] == [int(value)]
        assert sum(token in "+-*" for token in expression.split()) == int(n)


def test_the_check_of_lano_knows_every_text_of_the_grammar():
    def texts(symbol: str) -> set[str]:
        if symbol not in GRAMMAR:
            return {symbol}
        return {"".join(parts) for seq in GRAMMAR[symbol] for parts in itertools.product(*map(texts, seq))}

    every = texts("S")
    assert len(every) > 500
    dice = random.Random(0)
    for text in sorted(every)[::7]:
        assert is_of_grammar(f"{text[:3]}:", text[3:])
        i = dice.randrange(len(text))
        changed = text[:i] + dice.choice("abc") + text[i + 1 :]
        assert is_of_grammar(f"{changed[:2]}:", changed[2:]) is (changed in every)
    for sample in draws("lano"):
        assert sample.replace(":«", "").removesuffix("»") in every


def test_addition_with_a_fixed_width_backwards():
    check = tasks["long_addition"].check
    for sample in draws("long_addition", max_digits=3, fixed_width=True, reverse=True):
        a, b, answer = re.fullmatch(r"(\d{3})\+(\d{3})=«(\d{4})»", sample).groups()
        assert int(answer[::-1]) == int(a) + int(b)
        assert check(f"{a}+{b}=", answer)
        assert not check(f"{a}+{b}=", answer[::-1]) or answer == answer[::-1]
        carries = sum((int(a) % 10**k + int(b) % 10**k) >= 10**k for k in (1, 2, 3))
        assert tasks["long_addition"].slices["carries"](sample) == carries
    with pytest.raises(ValueError, match="reverse=True needs fixed_width=True"):
        draws("long_addition", 1, reverse=True)


def test_a_histogram_with_counts_beside_the_letters():
    for sample in draws("histogram", layout="beside"):
        shown, answers = shown_and_answers(sample)
        word, _, again = "".join(shown).partition("::")
        assert word == again
        assert [answer for _, answer in answers] == [
            "0123456789ABCDEFGHIJK"[word.count(letter)] for letter in word
        ]


@pytest.mark.parametrize("name", sorted(tasks))
def test_chance_and_reference_take_the_arguments_of_the_task(name):
    task = tasks[name]
    arguments = task.arguments({})
    if task.chance is not None:
        assert 0 < task.chance(**arguments) < 1
    if task.reference is not None:
        sample = task.draw(random.Random(0))
        assert len(task.reference(sample, **arguments)) == sum(read_marks(sample).scored)
