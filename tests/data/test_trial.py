"""Arguments of tasks that would hang the check or fill the memory are refused in one sentence, in time."""

import inspect
import multiprocessing
import re
import time

import pytest

from data import problems as check
from data import trial
from data.data_params import DataParams
from data.problems import data_problems
from data.syntheticdata import registered, tasks
from data.tokenizer import TokenizerSpec

BAD = (0, -1, 10**9, "x", None, 2.5, [0] * 10**5)
CASES = [
    (name, argument, value)
    for name, task in tasks.items()
    for argument in list(inspect.signature(task.draw).parameters)[1:]
    for value in BAD
]
# Values that are odd and yet make samples.
ALLOWED = {
    *(("vocab_size", name, 10**9) for name in ("induction", "mqar", "induction_head")),
    *(("n_reassigned", "reassigned_recall", 0), ("n_values", "compositional_recall", 10**9)),
    *(("min_length", name, 0) for name in ("copy", "maskedcopy", "reverse", "sort", "histogram")),
    ("min_length", "doublehistogram", 0),
    ("min_length", "parity", 0),
    ("min_digits", "long_addition", 0),
    ("p_masked", "maskedcopy", 0),
    *(("power", "mqar", value) for value in (0, -1, 2.5)),
    *(("alpha", "markov_chain", value) for value in (10**9, 2.5)),
    *(("zipf", "few_shot", value) for value in (0, 10**9, 2.5)),
    *((argument, "recall", 0) for argument in ("n_noise", "p_noise")),
    *(("n_noise", "recall", 10**9), ("n_members", "few_shot", 10**9), ("p", "mano", 10**9)),
    *(("max_depth", "dyck", 10**9), ("max_prefix", "lano", 10**9), ("n_tasks", "linear_regression", 10**9)),
    *(("n_tasks", "linear_regression", 0), ("burst", "few_shot", 0), ("min_operations", "mano", 0)),
    ("p_ignore", "flip_flop", 0),
}


def problems(name, max_seq_len=128, **task_args):
    return list(data_problems(DataParams(name, task_args=task_args), TokenizerSpec("char"), max_seq_len))


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(check, "ENOUGH_SECONDS", 0.3)
    monkeypatch.setattr(check, "MAX_DRAWING_SECONDS", 0.6)
    monkeypatch.setattr(check, "MAX_LISTING_SECONDS", 0.6)


@pytest.fixture
def task():
    names = []

    def register(draw, **options):
        registered(**options)(draw)
        names.append(draw.__name__)
        return draw.__name__

    yield register
    for name in names:
        del tasks[name]


@pytest.mark.slow
@pytest.mark.ci
def test_a_hundred_million_letters_are_refused_in_time():
    start = time.monotonic()
    [problem] = problems("copy", max_length=100_000_000)
    assert time.monotonic() - start < 5
    assert problem.startswith("task_args={'max_length': 100000000} with dataset_name='copy'")
    assert "takes more than 2.0 s, or does not end" in problem


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("name", tasks)
def test_each_bad_argument_is_one_sentence(name):
    for task_name, argument, value in CASES:
        if task_name != name:
            continue
        found = problems(name, **{argument: value})
        is_allowed = not isinstance(value, list) and (argument, name, value) in ALLOWED
        assert len(found) == (0 if is_allowed else 1), (argument, value, found)
        assert all("task_args={'" + argument in problem for problem in found), found
        assert all("\n" not in problem and len(problem) < 600 for problem in found), found


def waits(rng):
    time.sleep(60)


def fills_memory(rng):
    return "ab" * len(bytearray(2 << 30))


def leaves(rng):
    raise SystemExit(3)


def calls_c(rng):
    return "a" * sum(range(10**12))  # one call: no Python code runs meanwhile


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (waits, "takes more than 0.6 s"),
        (calls_c, "takes more than 0.6 s"),
        (fills_memory, "needs more memory than is available"),
        (leaves, r"ends its process \(exit code 3\)"),
    ],
)
def test_a_draw_that_does_not_return_is_refused(draw, message, task, monkeypatch):
    monkeypatch.setattr(trial, "MAX_SECONDS", 2.0)
    start = time.monotonic()
    [problem] = problems(task(draw))
    assert re.search(message, problem), problem
    assert f"task_args={{}} with dataset_name={draw.__name__!r}" in problem
    assert time.monotonic() - start < 5


@pytest.mark.usefixtures("short_limits")
def test_a_task_with_slow_draws_is_accepted(task):
    def slow(rng):
        time.sleep(0.02)
        return f"{rng.random()}"

    assert problems(task(slow)) == []


def test_rows_of_a_finite_task_are_counted_without_repetitions(task):
    def two_rows(rng):
        return "ab"

    assert problems(task(two_rows, rows=lambda: iter(["ab", "cd"] * 50)))[0].endswith(
        "gives 2 samples, too few to split by val_pct=5.0 and test_pct=5.0"
    )


def test_trying_a_task_leaves_no_process_behind():
    problems("copy")
    assert multiprocessing.active_children() == []
