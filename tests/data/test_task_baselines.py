"""The table of tasks from papers in docs/tasks-and-texts.md: its chance levels, and the accuracy of a shortcut."""

import ast
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache

import pytest

from data.eval_sets import most_common_target
from data.recall_tasks import lasting_values
from data.state_tracking import elements_of, product
from data.syntheticdata import read_marks, tasks
from docs.generate import DOCS
from train.grid.expand import CONFIGS, config_files, read_grid

N_SAMPLES = 200
END = ""  # the end of the sequence
# The tokens before a scored one, without hidden answers -> equally likely guesses.
Guess = Callable[[list[str]], list[str]]


def draws(name, **task_args):
    return [tasks[name].draw(random.Random(seed), **task_args) for seed in range(N_SAMPLES)]


def accuracy(guess: Guess, name: str, **task_args) -> float:
    """Return the expected accuracy of guesses on scored positions, the end of the sequence included."""
    right, n_scored = 0.0, 0
    for sample in draws(name, **task_args):
        marked, before = read_marks(sample), list[str]()
        targets = [
            *zip(marked.tokens, marked.scored, marked.hidden, strict=True),
            (END, marked.end_scored, False),
        ]
        for token, scored, hidden in targets:
            if scored:
                options = guess(before)
                right += options.count(token) / len(options)
                n_scored += 1
            if not hidden:
                before.append(token)
    return right / n_scored


def most_common(tokens: list[str], otherwise: str = "0") -> list[str]:
    return [Counter(tokens).most_common(1)[0][0]] if tokens else [otherwise]


def numbers_from(low: int, tokens: list[str]) -> list[str]:
    return [token for token in tokens if token.isdigit() and int(token) >= low]


def with_prefix(prefix: str, tokens: list[str]) -> list[str]:
    return [token for token in tokens if token.startswith(prefix)]


def product_of_the_last_two(before: list[str]) -> list[str]:
    elements = elements_of("S5")
    factors = [elements[int(one)] for one in before[-2:]]
    found = product(*factors) if len(factors) == 2 else factors[0]
    return [str(elements.index(found))]


def value_of_the_nearest_point(before: list[str]) -> list[str]:
    *earlier, x = [before[i : i + 5] for i in range(0, len(before), 5)]

    def distance(point):
        return sum((int(a[1:]) - int(b[1:])) ** 2 for a, b in zip(point, x, strict=False))

    return [min(earlier, key=distance)[4]] if earlier else ["y7"]


def digits_without_carries(before: list[str]) -> list[str]:
    a, b, answer = re.split(r"[+=]", "".join(before))
    n = len(answer)
    if n > len(a):
        return [END]
    return [str((int(a[-1 - n]) + int(b[-1 - n])) % 10) if n < len(a) else "0"]


def letters_of_the_sample(before: list[str]) -> list[str]:
    text, _, answer = "".join(before).partition(">")
    return most_common([one for one in text if one != "_"]) if len(answer) < 16 else [END]


@cache
def followers_in_lano() -> dict[str, Counter]:
    found = defaultdict(Counter)
    for seed in range(1000, 3000):
        sample = tasks["lano"].draw(random.Random(seed))
        text = re.sub("[:«»]", "", sample)
        for i in range(sample.index(":"), len(text) + 1):
            found[text[max(0, i - 2) : i]][text[i : i + 1]] += 1
    return found


def likely_letter(before: list[str]) -> list[str]:
    last_two = "".join(before).replace(":", "")[-2:]
    return [followers_in_lano()[last_two].most_common(1)[0][0]]


def sum_of_all_numbers(before: list[str]) -> list[str]:
    return [str(sum(map(int, numbers_from(0, before))) % 23)]


def closing_of_the_last_opening(before: list[str]) -> list[str]:
    return [{"(": ")", "[": "]", "{": "}", "<": ">"}[next(one for one in reversed(before) if one in "([{<")]]


def last_bit(before: list[str]) -> list[str]:
    return [next(one for one in reversed(before) if one in "01")]


def values_of_the_first_name(before: list[str]) -> list[str]:
    return [value for name, value in zip(before[:27:3], before[2:27:3], strict=True) if name == before[-2]]


# The shortcut of each row of the table.
SHORTCUTS: dict[str, Guess] = {
    "mqar(show_answer=False)": lambda before: before[1:8:2],
    "induction()": lambda before: [before[-22]] if len(before) >= 22 else ["0"],
    "recall()": lambda before: most_common(numbers_from(8, before)),
    "recall(n_noise=16)": lambda before: most_common(numbers_from(8, before)),
    "fuzzy_recall()": lambda before: most_common(numbers_from(8, before)),
    "associative_recall()": lambda before: before[1:-1:2],
    "reassigned_recall()": lambda before: [before[before.index(before[-1]) + 1]],
    "compositional_recall()": values_of_the_first_name,
    "induction_head()": lambda before: numbers_from(0, before),
    "selective_copying()": letters_of_the_sample,
    "memorization()": lambda before: most_common([*lasting_values(256).values()]),
    "group_word()": product_of_the_last_two,
    "dyck()": closing_of_the_last_opening,
    "flip_flop()": last_bit,
    "cumulative_parity()": last_bit,
    "cumulative_majority()": last_bit,
    "markov_chain()": most_common,
    "linear_regression()": value_of_the_nearest_point,
    "few_shot()": lambda before: most_common(with_prefix("l", before)),
    "few_shot(burst=1, relabel=True)": lambda before: most_common(with_prefix("l", before)),
    "bigram_backcopy()": lambda before: most_common(numbers_from(0, before)),
    "mano()": sum_of_all_numbers,
    "lano()": likely_letter,
    "long_addition(fixed_width=True, reverse=True)": digits_without_carries,
    "adder_board()": digits_without_carries,
    "adder_board_test()": digits_without_carries,
    "histogram(layout='beside')": lambda before: [str(before[before.index(":") :].count(before[-1]))],
}


def task_and_arguments(call: str) -> tuple[str, dict[str, object]]:
    """Read `name(argument=value)`."""
    node = ast.parse(call, mode="eval").body
    return node.func.id, {one.arg: ast.literal_eval(one.value) for one in node.keywords}


def chance_of(name: str, task_args: dict[str, object]) -> float:
    task = tasks[name]
    if task.chance is not None:
        return task.chance(**task.arguments(task_args))
    return most_common_target([read_marks(sample) for sample in draws(name, **task_args)])


def percent(share: float) -> str:
    return f"{100 * share:.{3 if share > 0.99 else 2}g} %"


def rows_of_the_table() -> dict[str, list[str]]:
    text = (DOCS / "tasks-and-texts.md").read_text(encoding="utf-8")
    table = text.partition("### Tasks from papers")[2].partition("\n#")[0]
    rows = [line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {first.strip("`"): cells for first, *cells in rows}


def test_the_table_has_every_task_from_a_paper():
    calls = [call if "(" in call else f"{call}()" for call in rows_of_the_table()]
    assert calls == [*SHORTCUTS]
    plain = {"copy", "maskedcopy", "reverse", "sort", "doublehistogram", "numbersort", "parity"}
    named = {task_and_arguments(call)[0] for call in calls}
    assert named == set(tasks) - plain - {"modular_addition"}


def test_the_table_names_the_runs_that_measure_its_minutes():
    runs = read_grid(config_files("paper-tasks", CONFIGS))
    measured = [(run.params.data.dataset_name, run.params.data.task_args) for run in runs]
    assert [*map(task_and_arguments, SHORTCUTS)] == [*measured[:-1], ("adder_board_test", {}), measured[-1]]


@pytest.mark.parametrize("call", SHORTCUTS)
def test_chance_and_the_accuracy_of_the_shortcut(call):
    name, task_args = task_and_arguments(call)
    cells = rows_of_the_table()[call.removesuffix("()")]
    chance, shortcut = chance_of(name, task_args), accuracy(SHORTCUTS[call], name, **task_args)
    assert [cells[2], cells[4]] == [percent(chance), percent(shortcut)]


def values_left(before: list[str]) -> list[str]:
    return [value for value in before[1:8:2] if value not in before[8:]]


# The guesses behind each chance level that a task computes from its arguments.
GUESSES: dict[str, Guess] = {
    "modular_addition()": lambda before: [str(i) for i in range(59)],
    "mqar()": values_left,
    "mqar(show_answer=False)": lambda before: before[1:8:2],
    "recall()": lambda before: [str(i) for i in range(8, 16)],
    "fuzzy_recall()": lambda before: [str(i) for i in range(8, 16)],
    "associative_recall()": lambda before: [str(i) for i in range(16, 32)],
    "reassigned_recall()": lambda before: before[1:24:2],
    "compositional_recall()": lambda before: before[2:27:3],
    "induction_head()": lambda before: [str(i) for i in range(16)],
    "memorization()": lambda before: [str(i) for i in range(128, 256)],
    "group_word(group='S3')": lambda before: [str(i) for i in range(6)],
    "group_word(group='A5')": lambda before: [str(i) for i in range(60)],
    "group_word(group='Z60', last_only=True)": lambda before: [str(i) for i in range(60)],
    "group_word(group='S5', last_only=True)": lambda before: [str(i) for i in range(120)],
    "flip_flop()": lambda before: ["0", "1"],
    "cumulative_parity()": lambda before: ["0", "1"],
    "few_shot()": lambda before: [f"l{i}" for i in range(8)],
}


@pytest.mark.parametrize("call", GUESSES)
def test_guesses_reach_the_chance_level(call):
    name, task_args = task_and_arguments(call)
    expected = tasks[name].chance(**tasks[name].arguments(task_args))
    assert accuracy(GUESSES[call], name, **task_args) == pytest.approx(expected, rel=0.02)


def test_every_chance_level_of_a_task_has_its_guesses():
    named = {task_and_arguments(call)[0] for call in GUESSES}
    assert named == {name for name, task in tasks.items() if task.chance is not None}
