"""The course: a right file passes whatever its spelling, stubs are told what to do, mistakes and cheats are named."""

from pathlib import Path

import pytest

from learn.__main__ import main
from learn.course import Case, judge, judge_course, load
from learn.gpt2_course import GPT2
from tests.learn.planted import CHEATS, MISTAKES

ANOTHER = Path(__file__).with_name("another_student.py")
SOLUTION = load(GPT2.solution)
PART = {part.name: part for part in GPT2.parts}


def planted(part, edits):
    """What is said of a part after the edits; all other parts are right."""
    text = ANOTHER.read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    mistakes = tuple(mistake for mistake in GPT2.mistakes if mistake.part == part)
    return judge(Case(PART[part], load(ANOTHER, text), SOLUTION, mistakes), ANOTHER)


@pytest.mark.parametrize("file", [GPT2.solution, ANOTHER])
def test_a_right_file_passes_every_check(file):
    verdicts = judge_course(GPT2, file)
    assert [(verdict.state, verdict.says) for verdict in verdicts] == [("right", "")] * len(GPT2.parts)


def test_bare_stubs_are_told_where_to_begin(capsys):
    assert main(["check"]) == 1
    told = capsys.readouterr().out
    for part in GPT2.parts:
        assert f"{part.defines} is not built yet" in told
    assert "Traceback" not in told
    assert "gpt2_student.py, line" in told


@pytest.mark.parametrize(
    ("part", "phrase", "edits"), MISTAKES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_planted_mistake_is_named(part, phrase, edits):
    state, says = planted(part, edits)
    assert state == "wrong"
    assert says.startswith("it looks like"), says
    assert phrase in says


def test_every_known_mistake_is_planted():
    told = [(part, phrase) for part, phrase, _ in MISTAKES]
    for mistake in GPT2.mistakes:
        assert sum(part == mistake.part and phrase in mistake.says for part, phrase in told) == 1, (
            mistake.says
        )


@pytest.mark.parametrize(
    ("part", "phrase", "edits"), CHEATS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_cheat_is_caught(part, phrase, edits):
    state, says = planted(part, edits)
    assert state == "wrong"
    assert phrase in says
