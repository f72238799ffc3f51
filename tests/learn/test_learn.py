"""The course: a right file passes whatever its spelling, stubs are told what to do, mistakes and cheats are named."""

from pathlib import Path

import pytest
import torch

from learn import explain
from learn.__main__ import main
from learn.checks import looks_back_only
from learn.course import Case, Wrong, judge, judge_course, load
from learn.gpt2_course import GPT2
from tests.learn.planted import MISTAKES
from tests.learn.planted_cheats import CHEATS, OTHERS

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


def in_short(value):
    """Names of parametrised tests: edits are too long."""
    return value if isinstance(value, str) else ""


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


@pytest.mark.parametrize(("part", "phrase", "edits"), MISTAKES, ids=in_short)
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


@pytest.mark.parametrize(("part", "phrase", "edits"), CHEATS, ids=in_short)
def test_a_cheat_is_caught(part, phrase, edits):
    state, says = planted(part, edits)
    assert state == "wrong"
    assert phrase in says


@pytest.mark.parametrize(("part", "phrase", "edits"), OTHERS, ids=in_short)
def test_anything_else_is_described(part, phrase, edits):
    state, says = planted(part, edits)
    assert state == "wrong"
    assert not says.startswith("it looks like")
    assert any(one in says for one in phrase.split("|")), says


def test_a_part_that_is_not_right_is_borrowed_for_those_after_it(tmp_path):
    file = tmp_path / "mine.py"
    text = ANOTHER.read_text(encoding="utf-8")
    text = text.replace("return self.out(torch.cat(heads, dim=2))", "raise NotImplementedError")
    file.write_text(text.replace("0.5 + 0.5 * t", "1 + t"), encoding="utf-8")
    found = {verdict.part.name: verdict for verdict in judge_course(GPT2, file)}
    assert [name for name in found if found[name].state != "right"] == ["gelu", "attention"]
    assert found["gelu"].state == "wrong"
    assert found["attention"].state == "not built"
    assert found["gpt2"].borrowed == ("gelu", "CausalAttention")


def test_one_part_alone(tmp_path, capsys):
    file = tmp_path / "mine.py"
    stubs = GPT2.student.read_text(encoding="utf-8")
    mlp = "self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)"
    head, tail = stubs.split("class MLP(nn.Module):")
    tail = tail.replace("raise NotImplementedError", mlp, 1)
    tail = tail.replace("raise NotImplementedError", "return self.down(gelu(self.up(x)))", 1)
    file.write_text(f"{head}class MLP(nn.Module):{tail}", encoding="utf-8")
    assert main(["check", "mlp", "--file", str(file)]) == 0
    assert capsys.readouterr().out.split("(")[0].strip() == "mlp: right"


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("import torch\n\ndef gelu(x:\n", encoding="utf-8")
    assert main(["check", "gelu", "--file", str(file)]) == 1
    told = capsys.readouterr().out
    assert "mine.py cannot be read" in told
    assert "line 3" in told


def test_the_map_shows_progress(tmp_path, capsys):
    file = tmp_path / "mine.py"
    text = ANOTHER.read_text(encoding="utf-8")
    file.write_text(
        text.replace("return torch.stack(losses).mean()", "raise NotImplementedError"), encoding="utf-8"
    )
    assert main(["map", "--file", str(file)]) == 0
    told = capsys.readouterr().out
    assert "8 of 9 parts are right" in told
    assert "not built" in told


def test_looking_ahead_is_found_by_itself():
    with pytest.raises(Wrong, match="position 0 looks ahead"):
        looks_back_only(Case(PART["attention"], load(ANOTHER, edited_mask("scores")), SOLUTION, ()))
    looks_back_only(Case(PART["attention"], load(ANOTHER), SOLUTION, ()))


def edited_mask(mask):
    text = ANOTHER.read_text(encoding="utf-8")
    return text.replace("torch.where(place[:, None] >= place, scores, -torch.inf)", mask)


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (torch.zeros(2, 3), "shape is [2, 3], expected [3, 2]"),
        (torch.tensor([[1.0, 2], [3, 4], [5, 7]]), "only row 2 and column 1 differ"),
        (torch.tensor([[2.0, 4], [6, 8], [10, 12]]), "2 times what it should be (2)"),
        (torch.tensor([[2.0, 3], [4, 5], [6, 7]]), "off by the same 1"),
        (
            torch.tensor([[1.0, 2], [3, torch.nan], [5, 6]]),
            "1 of 6 numbers are not finite, first at row 1, column 1",
        ),
        ([1.0], "list, not a tensor"),
    ],
)
def test_differences_in_words(mine, says):
    right = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    assert says in explain.difference(mine, right, ("row", "column"))
    assert explain.difference(right.clone(), right, ("row", "column")) is None
