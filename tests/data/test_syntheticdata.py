"""Every task's samples are what its docstring says, by references of the test's own."""

import random
import re
from collections import Counter

import pytest

from common.registry import Registry
from data.syntheticdata import (
    Task,
    distinct_choices,
    length_before_answer,
    read_marks,
    registered,
    tasks,
    text_without_marks,
)


def draw_many(name, n=300, **args):
    return [tasks[name].draw(random.Random(i), **args) for i in range(n)]


def question_and_answer(sample):
    return re.fullmatch(r"(.*?)(?:::|=)«(.*)»", sample).groups()


REFERENCES = {
    "copy": lambda q: q,
    "maskedcopy": lambda q: "".join(c for c in q if c != "*"),
    "reverse": lambda q: "".join(q[len(q) - 1 - i] for i in range(len(q))),
    "sort": lambda q: "".join(c * q.count(c) for c in "abcdefghijklmnopqrstuvwxyz"),
    "histogram": lambda q: "".join(f"{q.count(c):X}" for c in q),
    "doublehistogram": lambda q: "".join(str(sum(q.count(d) == q.count(c) for d in set(q))) for c in q),
    "numbersort": lambda q: ",".join(map(str, sorted(map(int, q.split(","))))),
    "long_addition": lambda q: str(sum(map(int, q.split("+")))),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_answers_are_right(name):
    for sample in draw_many(name):
        question, answer = question_and_answer(sample)
        assert answer == REFERENCES[name](question)
    assert tasks[name].check is None, "only the answer of the sample is right"


def test_every_task_is_documented_by_a_sample_of_its_own_layout():
    needed = "copy maskedcopy reverse sort histogram doublehistogram numbersort long_addition induction mqar parity modular_addition"
    assert set(needed.split()) <= set(tasks)
    for name in needed.split():
        sample, explanation = tasks[name].draw.__doc__.split("   ", 1)
        assert "«" in sample
        assert explanation.strip()
        if name in REFERENCES:
            question, answer = question_and_answer(sample)
            assert REFERENCES[name](question) == answer


@pytest.mark.parametrize("name", sorted(tasks))
def test_samples_depend_on_the_rng_alone_and_vary(name):
    assert draw_many(name, 20) == draw_many(name, 20)
    random.seed(1)
    assert len({text_without_marks(sample) for sample in draw_many(name, 50)}) > 25


def test_parity_scores_the_parity_and_not_the_end():
    for sample in draw_many("parity"):
        bits, answer = re.fullmatch(r"([01]+)::«([01])»\.", sample).groups()
        assert int(answer) == bits.count("1") % 2
    assert not read_marks("01::«1».").end_scored


def test_modular_addition():
    for a, _, b, _, _, c, *_ in draw_many("modular_addition", p=7):
        assert (int(a) + int(b) - int(c)) % 7 == 0
    rows = list(tasks["modular_addition"].rows(p=7))
    assert len({text_without_marks(row) for row in rows}) == 49
    assert {text_without_marks(s) for s in draw_many("modular_addition", p=7)} == {
        text_without_marks(row) for row in rows
    }
    assert tasks["modular_addition"].chance(p=7) == 1 / 7


def test_induction_repeats_with_a_varying_period_and_scores_the_later_copies():
    periods = set()
    for sample in draw_many("induction"):
        tokens, scored, end_scored, _ = read_marks(sample)
        period = scored.index(True) - 1  # the block's end comes as a surprise
        periods.add(period)
        assert len(tokens) == 65
        assert all(tokens[i] == tokens[i - period] for i in range(period, 64))
        assert len(set(tokens[:period])) == period, "so that one token tells the next"
        assert scored == [False] * (period + 1) + [True] * (63 - period) + [False]
        assert not end_scored
    assert periods == set(range(12, 33))
    with pytest.raises(ValueError, match="max_period=32 must be under length=30"):
        draw_many("induction", 1, length=30)


def test_mqar_asks_each_key_once_at_an_even_slot_and_scores_its_value():
    slots = Counter()
    for sample in draw_many("mqar", n_pairs=4, length=32, vocab_size=64):
        tokens, scored, end_scored, _ = read_marks(sample)
        ids = [int(token) for token in tokens]
        keys, values = ids[:8:2], ids[1:8:2]
        assert len(set(keys)) == len(set(values)) == 4
        assert all(1 <= key < 32 <= value < 64 for key, value in zip(keys, values, strict=True))
        asked = [i for i in range(8, len(ids)) if scored[i]]
        assert {ids[i - 1]: ids[i] for i in asked} == dict(zip(keys, values, strict=True))
        assert all((i - 1 - 8) % 2 == 0 for i in asked)
        assert all(ids[i] == 0 for i in range(8, len(ids)) if i not in asked and i + 1 not in asked)
        assert not end_scored
        assert len(ids) == 33
        slots.update((i - 9) // 2 for i in asked)
    assert slots[0] > 2 * slots[11]  # near gaps are the likelier ones
    assert tasks["mqar"].chance(n_pairs=4, show_answer=True) == pytest.approx((1 / 4 + 1 / 3 + 1 / 2 + 1) / 4)
    assert tasks["mqar"].chance(n_pairs=4, show_answer=False) == 1 / 4
    strict = draw_many("mqar", n_pairs=4, show_answer=False)
    assert [text_without_marks(sample) for sample in strict] == list(
        map(text_without_marks, draw_many("mqar", n_pairs=4))
    )
    assert all(read_marks(sample).hidden == read_marks(sample).scored for sample in strict)
    with pytest.raises(ValueError, match=r"4 \* n_pairs <= length"):
        draw_many("mqar", 1, n_pairs=9)


def test_distinct_choices_follow_their_weights():
    rng = random.Random(0)
    first = Counter(distinct_choices(rng, [1, 3, 0], 2)[0] for _ in range(4000))
    assert first[2] == 0
    assert 2.6 < first[1] / first[0] < 3.4
    assert all(sorted(distinct_choices(rng, [1, 3, 2], 3)) == [0, 1, 2] for _ in range(50))


@pytest.mark.parametrize(
    ("sample", "tokens", "scored", "end_scored", "hidden"),
    [
        ("ab:«ba»", "ab:ba", "00011", True, "00000"),
        ("a«b»c«d»e", "abcde", "01010", False, "00000"),
        ("abc", "abc", "111", True, "000"),
        ("a«b", "ab", "01", True, "00"),
        ("a«»", "a", "0", True, "0"),
        (["12", "«", "3", "»", "."], ["12", "3", "."], "010", False, "000"),
        ("a‹b›c«d»e‹f›", "abcdef", "010101", False, "010001"),
    ],
)
def test_marks_of_a_sample_are_read(sample, tokens, scored, end_scored, hidden):
    flags = [[flag == "1" for flag in flags] for flags in (scored, hidden)]
    assert read_marks(sample) == (list(tokens), flags[0], end_scored, flags[1])


def test_registering_a_task_takes_one_place(monkeypatch):
    monkeypatch.setattr("data.syntheticdata.tasks", (mine := Registry("task")))

    @registered
    def plain(rng):
        """a"""
        return "a"

    @registered(check=str.__eq__, chance=lambda: 0.5)
    def special(rng):
        """b"""
        return "b"

    assert mine["plain"] == Task("plain", plain, None, None, None, {"length": length_before_answer})
    assert mine["special"].check("b", "b")
    assert mine["special"].chance() == 0.5
