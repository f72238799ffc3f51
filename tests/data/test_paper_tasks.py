"""Tasks from papers: every scored token against a reference that is computed in another way."""

import itertools
import random
import re
from collections import Counter

import numpy as np
import pytest
from scipy.special import gammaln

from data.data_params import DataParams
from data.dataloader import LMDataModule
from data.expressions import GRAMMAR, is_of_grammar
from data.in_context import bin_values, rounding_variance
from data.state_tracking import elements_of
from data.syntheticdata import Sample, read_marks, tasks
from data.tokenizer import TokenizerSpec

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


def test_reassigned_recall_asks_for_the_last_value():
    n_changed = 0
    for sample in draws("reassigned_recall", n_keys=5, n_reassigned=3):
        shown, answers = shown_and_answers(sample)
        pairs, queries = shown[: 2 * 8], shown[2 * 8 :]
        values = pairs[1::2]
        assert len(set(values)) == 8
        occurrences = Counter(pairs[::2])
        assert sorted(occurrences.values()) == [1, 1, 2, 2, 2]
        assert sorted(queries) == sorted(occurrences)
        for (place, answer), key in zip(answers, queries, strict=True):
            assert shown[place - 1] == key
            found = [value for one, value in itertools.pairwise(pairs) if one == key]
            assert answer == found[-1]
            n_changed += answer != found[0]
    assert n_changed == 40 * 3


def test_compositional_recall_needs_both_tokens_of_a_key():
    for sample in draws("compositional_recall", n_names=3, n_asked=5):
        shown, answers = shown_and_answers(sample)
        triples = [tuple(shown[i : i + 3]) for i in range(0, 27, 3)]
        value_of = {(first, second): value for first, second, value in triples}
        assert len(value_of) == len(set(value_of.values())) == 9
        for position in (0, 1):
            assert set(Counter(triple[position] for triple in triples).values()) == {3}
        assert len({shown[place - 2 : place][0] + shown[place - 1] for place, _ in answers}) == 5
        for place, answer in answers:
            assert value_of[shown[place - 2], shown[place - 1]] == answer


def test_the_induction_head_task_asks_for_what_followed_the_mark():
    places = set()
    for sample in draws("induction_head", 100, length=12, vocab_size=5):
        text = " ".join(sample)
        before, after, answer = re.fullmatch(r"((?:\d )*)⇒ ((?:\d )+)⇒ « (\d) » \.", text).groups()
        assert len((before + after).split()) == 10
        assert answer == after.split()[0]
        assert tasks["induction_head"].slices["distance"](sample) == len(after.split()) + 1
        places.add(len(before))
    assert len(places) == 10


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
        by_weak_prior = tasks["linear_regression"].reference(
            sample, dims=dims, n_bins=n_bins, predictor="least-squares"
        )
        for i, loss in enumerate(by_weak_prior):
            [fit, *_] = np.linalg.lstsq(x[:i], y[:i], rcond=None) if i else [np.zeros(dims)]
            rows = np.linalg.svd(x[:i])[2][: min(i, dims)] if i else np.zeros((0, dims))
            inside = rows.T @ rows @ x[i]
            spread = np.linalg.pinv(x[:i].T) @ inside if i else np.zeros(0)
            variance = noise * (1 + spread @ spread) + np.sum((x[i] - inside) ** 2)
            below = np.array([0, *norm.cdf(edges, fit @ x[i], np.sqrt(variance)), 1])
            assert loss == pytest.approx(-np.log(np.maximum(np.diff(below)[bins[i]], 1e-12)), rel=1e-6)
        for i, loss in enumerate(losses):
            kernel = x[: i + 1] @ x[: i + 1].T
            solved = np.linalg.solve(kernel[:i, :i] + noise * np.eye(i), kernel[:i, i]) if i else np.zeros(0)
            mean, variance = solved @ y[:i], kernel[i, i] - solved @ kernel[:i, i] + noise
            below = np.array([0, *norm.cdf(edges, mean, np.sqrt(variance)), 1])
            assert loss == pytest.approx(-np.log(np.diff(below)[bins[i]]))


def test_ridge_is_the_better_predictor_of_regression():
    losses = {"ridge": 0.0, "least-squares": 0.0}
    for sample in draws("linear_regression", 100):
        for predictor in losses:
            losses[predictor] += sum(
                tasks["linear_regression"].reference(sample, dims=4, n_bins=16, predictor=predictor)
            )
    assert losses["ridge"] < losses["least-squares"] < 2 * losses["ridge"]
    assert draws("linear_regression", 3) == draws("linear_regression", 3, predictor="least-squares")


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


def test_bigram_backcopy_can_score_all_tokens():
    for marked, sample in zip(
        draws("bigram_backcopy"), draws("bigram_backcopy", all_scored=True), strict=True
    ):
        assert sample == read_marks(marked).tokens
        assert all(read_marks(sample).scored)


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
    for sample in draws("long_addition", max_digits=3, fixed_width=True, reverse=True):
        a, b, answer = re.fullmatch(r"(\d{3})\+(\d{3})=«(\d{4})»", sample).groups()
        assert int(answer[::-1]) == int(a) + int(b)
        carries = sum((int(a) % 10**k + int(b) % 10**k) >= 10**k for k in (1, 2, 3))
        assert tasks["long_addition"].slices["carries"](sample) == carries
        digits = max(len(number.lstrip("0") or "0") for number in (a, b))
        assert tasks["long_addition"].slices["digits"](sample) == digits


def test_addition_backwards_without_a_fixed_width():
    for sample in draws("long_addition", max_digits=3, reverse=True):
        a, b, answer = re.fullmatch(r"(\d{1,3})\+(\d{1,3})=«(\d{1,4})»", sample).groups()
        assert answer == f"{int(a) + int(b)}"[::-1]


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


BAD_ARGUMENTS = {
    "group_word": {"group": "Z7"},
    "dyck": {"n_kinds": 0},
    "flip_flop": {"length": 7},
    "cumulative_parity": {"min_length": 9, "max_length": 3},
    "cumulative_majority": {"min_length": 0},
    "recall": {"p_noise": 1.0},
    "fuzzy_recall": {"length": 3},
    "associative_recall": {"n_pairs": 99},
    "reassigned_recall": {"n_reassigned": 9},
    "compositional_recall": {"n_asked": 10},
    "induction_head": {"length": 2},
    "selective_copying": {"n_tokens": 65},
    "memorization": {"n_pairs": 200},
    "markov_chain": {"alpha": 0.0},
    "linear_regression": {"predictor": "lasso"},
    "few_shot": {"burst": 9},
    "bigram_backcopy": {"n_trigger_tokens": 0},
    "mano": {"p": 1},
    "lano": {"min_prefix": 0},
    "adder_board": {"max_digits": 11},
    "long_addition": {"min_digits": 5, "max_digits": 4},
    "histogram": {"layout": "under"},
    "mqar": {"n_pairs": 0},
    "induction": {"max_period": 64},
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match=r"must|needs|required") as error:
        draws(name, 1, **BAD_ARGUMENTS[name])
    assert "\n" not in str(error.value)
    assert ". " not in str(error.value)
    assert any(argument in str(error.value) for argument in BAD_ARGUMENTS[name])


def test_adder_board_never_draws_a_pair_of_its_verification_set():
    dice = random.Random(0)
    drawn = {tasks["adder_board"].draw(dice, max_digits=1)[:21] for _ in range(3000)}
    of_the_set = {"0000000000+0000000000", "0000000000+0000000001"}
    assert drawn == {f"{a:010}+{b:010}" for a in range(10) for b in range(10)} - of_the_set


def test_the_verification_set_of_adder_board_is_kept_whole_and_out_of_training(tmp_path):
    dice = random.Random(2025)
    drawn = [(dice.randint(0, 9_999_999_999), dice.randint(0, 9_999_999_999)) for _ in range(10_000)]
    data = LMDataModule(
        DataParams(
            dataset_name="adder_board",
            task_args={"max_digits": 2},
            n_samples=3000,
            eval_sets={"board": {"dataset_name": "adder_board_test", "n_samples": 10_010}},
        ),
        TokenizerSpec("char"),
        34,
        cache=tmp_path,
    )
    board = data.eval_sets["board"]
    sums = Counter()
    for sample in board.data.split("val"):
        a, b, answer = re.fullmatch(r"(\d{10})\+(\d{10})=«(\d{11})»", sample).groups()
        assert int(answer[::-1]) == int(a) + int(b)
        sums[int(a), int(b)] += 1
    assert board.n_dropped == 0
    assert sums.total() == 10_010
    assert sums.most_common(1) == [((9_999_999_999, 9_999_999_999), 2)]
    assert not Counter(drawn) - sums
    assert (0, 0) in sums - Counter(drawn)
    assert (sums - Counter(drawn)).total() == 10
    training = [*data.data.split("train")]
    assert all(sample[:8] + sample[11:19] == "0" * 16 for sample in training)
    assert not {"0000000000+0000000000", "0000000000+0000000001"} & {sample[:21] for sample in training}
    assert {1, 2} == {tasks["adder_board"].slices["digits"](sample) for sample in training}
    assert {0, 1, 2} == {tasks["adder_board"].slices["carries"](sample) for sample in training}
