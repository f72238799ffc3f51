"""The courses: a right file passes whatever its spelling, stubs are told what to do, mistakes and cheats are named."""

import ast
import importlib
import os
import re
import time
from pathlib import Path

import pytest
import torch

from learn import outline
from learn.__main__ import main
from learn.checking import explain
from learn.checking.course import Part, Wrong, get_course, judge, judge_course, load_module
from learn.checking.parity import looks_back_only
from learn.outline import COURSES, Outline

FOLDER = Path(__file__).parent
GPT2 = get_course("gpt2")
COURSE = {name: get_course(name) for name in COURSES}
SOLUTION = {name: load_module(course.outline.solution) for name, course in COURSE.items()}


def another(course):
    """A right file in another spelling than the solution's: what the checks find must not hang on spelling."""
    return FOLDER / course / "another.py"


def edits_of(module, name):
    """(course, part, phrase, edits) of all courses; edits are of their `another.py`."""
    found = []
    for course in COURSES:
        planted = importlib.import_module(f"tests.learn.{course}.{module}")
        found += [
            pytest.param(course, *entry, id=f"{course}-{entry[0]}-{entry[1]}")
            for entry in getattr(planted, name)
        ]
    return found


def planted(course, part, edits):
    """Return the verdict on a part after the edits. All other parts are right."""
    path = another(course)
    text = path.read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return judge(COURSE[course].case(part, load_module(path, text), SOLUTION[course]), path)


@pytest.fixture(autouse=True)
def no_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(outline, "PROGRESS", tmp_path / "progress.json")


@pytest.mark.parametrize("course", COURSES)
def test_files_of_a_course_have_the_same_parts(course):
    parts = list(Outline(course).parts())
    assert list(outline.definitions(Outline(course).student)) == parts
    assert list(COURSE[course].parts) == parts
    assert all(Outline(course).parts().values()), "the map shows the first line of each docstring"


def test_the_drawing_names_existing_parts():
    drawing = (outline.HERE / "architecture.svg").read_text(encoding="utf-8")
    names = set(re.findall(r'<text class="name"[^>]*>(\w+)</text>', drawing))
    assert len(names) >= 8
    assert names <= {*Outline("gpt2").parts(), *Outline("bert").parts()}


@pytest.mark.parametrize("course", COURSES)
def test_stubs_hold_no_code(course):
    """Every function of a student's file ends in a bare `raise NotImplementedError`, after its docstring."""
    tree = ast.parse(Outline(course).student.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = [ast.unparse(line) for line in node.body if not isinstance(line, ast.Expr)]
            assert body == ["raise NotImplementedError"], node.name


@pytest.mark.slow
@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("spelling", ["solution", "another"])
def test_a_right_file_passes_every_check(course, spelling):
    file = Outline(course).solution if spelling == "solution" else another(course)
    verdicts = list(judge_course(COURSE[course], file))
    for verdict in verdicts:
        assert verdict.state == "right", verdict.says
    assert [v.part for v in verdicts] == list(COURSE[course].parts)


@pytest.mark.parametrize("course", COURSES)
def test_stubs_are_reported_as_not_built_with_their_line(course, capsys):
    assert main(["check", course]) == 1
    told = capsys.readouterr().out
    for part in COURSE[course].parts:
        assert f"{part} is not built yet" in told
    assert "Traceback" not in told
    assert f"{course}_student.py, line" in told


@pytest.mark.slow
@pytest.mark.parametrize(("course", "part", "phrase", "edits"), edits_of("planted", "MISTAKES"))
def test_a_planted_mistake_is_named(course, part, phrase, edits):
    state, says = planted(course, part, edits)
    assert state == "wrong"
    assert says.startswith("it looks like"), says
    assert phrase in says


def test_every_known_mistake_is_planted():
    told = [param.values[:3] for param in edits_of("planted", "MISTAKES")]
    for course in COURSES:
        for mistake in COURSE[course].mistakes:
            times = sum(
                (course, mistake.part) == (c, part) and phrase in mistake.says for c, part, phrase in told
            )
            assert times == 1, mistake.says


@pytest.mark.slow
@pytest.mark.parametrize(("course", "part", "phrase", "edits"), edits_of("cheats", "CHEATS"))
def test_a_cheat_is_caught(course, part, phrase, edits):
    state, says = planted(course, part, edits)
    assert state == "wrong"
    assert phrase in says, says


@pytest.mark.slow
@pytest.mark.parametrize(("course", "part", "phrase", "edits"), edits_of("cheats", "OTHERS"))
def test_an_unknown_mistake_is_described(course, part, phrase, edits):
    state, says = planted(course, part, edits)
    assert state == "wrong"
    assert not says.startswith("it looks like")
    assert any(one in says for one in phrase.split("|")), says


def written(tmp_path, *edits, course="gpt2"):
    """A right file but for these edits."""
    file = tmp_path / "mine.py"
    text = another(course).read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    return file


def test_a_part_that_is_not_right_is_borrowed_for_those_after_it(tmp_path):
    unbuilt = ("return self.out(torch.cat(heads, dim=2))", "raise NotImplementedError")
    file = written(tmp_path, unbuilt, ("0.5 + 0.5 * t", "1 + t"))
    found = {verdict.part: verdict for verdict in judge_course(GPT2, file)}
    assert [name for name in found if found[name].state != "right"] == ["gelu", "CausalAttention"]
    assert found["gelu"].state == "wrong"
    assert found["CausalAttention"].state == "not built"
    assert found["GPT2"].borrowed == ("gelu", "CausalAttention")
    assert found["Embedding"].borrowed == ()


def test_one_part_alone(tmp_path, capsys):
    file = tmp_path / "mine.py"
    stubs = GPT2.outline.student.read_text(encoding="utf-8")
    mlp = "self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)"
    head, tail = stubs.split("class MLP(nn.Module):")
    tail = tail.replace("raise NotImplementedError", mlp, 1)
    tail = tail.replace("raise NotImplementedError", "return self.down(gelu(self.up(x)))", 1)
    file.write_text(f"{head}class MLP(nn.Module):{tail}", encoding="utf-8")
    assert main(["check", "gpt2.mlp", "--file", str(file)]) == 0
    assert capsys.readouterr().out.split("(")[0].strip() == "gpt2.MLP: right"


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("import torch\n\ndef gelu(x:\n", encoding="utf-8")
    assert main(["check", "gpt2.gelu", "--file", str(file)]) == 1
    told = capsys.readouterr().out
    assert "mine.py cannot be read" in told
    assert "line 3" in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gpt2.Atention"], "no part 'gpt2.Atention'; did you mean gpt2.CausalAttention?"),
        (["attention"], "did you mean gpt2.CausalAttention, "),
        (["Block"], "'Block' is ambiguous; use one of: gpt2.Block, bert.Block"),
        (["xyz"], "no part 'xyz'. The courses are tokenizers, gpt2, "),
        (["gpt2", "--file", "missing.py"], "--file=missing.py: there is no such file"),
        (["gpt2", "--file", str(Outline("gpt2").readme)], "it must be a Python file"),
        (["--file", str(Outline("bert").student), "gpt2.gelu"], "that is the file of bert, not of gpt2"),
        (["--file", str(another("gpt2"))], "say which course"),
    ],
)
def test_an_unknown_part_is_answered_with_similar_names(arguments, says, capsys):
    with pytest.raises(SystemExit) as exit_of:
        main(["check", *arguments])
    assert exit_of.value.code == 2
    assert says in capsys.readouterr().err


def test_borrowed_parts_are_named_in_right_verdicts_too(tmp_path, capsys):
    file = written(tmp_path, ("0.5 + 0.5 * t", "1 + t"))
    assert main(["check", "gpt2.MLP", "--file", str(file)]) == 0
    assert "(checked with the solution's gelu, as yours is not right yet)" in capsys.readouterr().out
    assert main(["check", "gpt2.CausalAttention", "--file", str(file)]) == 0
    assert "solution's" not in capsys.readouterr().out


def test_an_endless_loop_ends():
    endless = Part(make=lambda my: my.loop, checks=(lambda case: case.part.make(case.mine)(),), seconds=0.3)
    text = "def loop():\n    while True:\n        try:\n            pass\n        except Exception:\n            pass\n"
    path = Path("mine.py")
    case = GPT2.case("gelu", load_module(path, text), SOLUTION["gpt2"])
    begin = time.monotonic()
    state, says = judge(type(case)("loop", endless, case.mine, case.solution, ()), path)
    assert (state, time.monotonic() - begin < 10) == ("wrong", True)
    assert "had not ended after 0 s: is there an endless loop? It was at line" in says


def test_the_map_shows_what_checks_found(tmp_path, capsys):
    file = written(
        tmp_path,
        ("return torch.stack(losses).mean()", "raise NotImplementedError"),
        ("0.5 + 0.5 * t", "1 + t"),
    )
    arguments = ["map", "gpt2", "--file", str(file)]
    assert shown(arguments, capsys) == {"not checked": 9, "not built": 1}
    main(["check", "gpt2", "--file", str(file)])
    capsys.readouterr()
    assert shown(arguments, capsys) == {"right": 8, "wrong": 1, "not built": 1}
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("1 + t", "0.5 + 0.5 * t") + "\n# a comment\n", encoding="utf-8")
    assert shown(arguments, capsys) == {"right": 8, "not checked": 1, "not built": 1}
    outline.PROGRESS.write_text("{not json", encoding="utf-8")
    assert shown(arguments, capsys) == {"not checked": 9, "not built": 1}


def test_map_and_check_end_with_the_progress_and_the_next_step(tmp_path, capsys):
    file = written(tmp_path, ("return self.down(x)", "raise NotImplementedError"))
    main(["check", "gpt2", "--file", str(file)])
    checked = capsys.readouterr().out.splitlines()[-2:]
    assert checked[0] == f"{'█' * 36}{'░' * 4} 9 of 10 parts are right, about 15 min left"
    assert checked[1].startswith("next: gpt2.MLP (mine.py, line ")
    assert checked[1].endswith("): read the same, section 3.3 (5 min), then build (10 min)")
    main(["map", "gpt2", "--file", str(file)])
    assert capsys.readouterr().out.splitlines()[-3:-1] == checked
    line = int(checked[1].split("line ")[1].split(")")[0])
    assert "raise NotImplementedError" in file.read_text(encoding="utf-8").splitlines()[line - 1]
    main(["check", "gpt2", "--file", str(another("gpt2"))])
    assert capsys.readouterr().out.splitlines()[-1] == f"{'█' * 40} 10 of 10 parts are right"


def test_the_next_step_is_in_a_course_that_has_been_begun():
    begun = {"tokenizers": {"train_bpe": "not built"}, "bert": {"gelu": "right", "MLP": "wrong"}}
    assert outline.next_part(begun) == (Outline("bert"), "MLP")
    assert outline.next_part({"bert": {"gelu": "not built"}}) == (Outline("bert"), "gelu")
    assert outline.next_part({"bert": {"gelu": "right"}}) is None


@pytest.mark.parametrize("course", [course for course in COURSES if course != "further"])
def test_every_part_has_its_minutes(course):
    """The table of the course's readme has a row for each part, and for nothing else."""
    efforts = Outline(course).efforts()
    assert list(efforts) == list(Outline(course).parts())
    assert all(effort.building > 0 for effort in efforts.values())


def test_watch_checks_again_when_a_file_is_saved(tmp_path, capsys, monkeypatch):
    file = written(tmp_path, ("0.5 + 0.5 * t", "1 + t"))
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            written(tmp_path)
            os.utime(file, (1, 1))  # even if the clock of the file system is coarse
        if len(naps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", nap)
    assert main(["check", "gpt2.gelu", "--watch", "--file", str(file)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gpt2.gelu: ")]
    assert [line.split()[1] for line in told] == ["wrong", "right"]


def test_watch_goes_with_check_only(capsys):
    with pytest.raises(SystemExit):
        main(["map", "--watch"])
    assert "--watch goes with check" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_loses_no_progress(tmp_path, capsys):
    file = written(tmp_path)
    main(["check", "gpt2.gelu", "--file", str(file)])
    file.write_text("def gelu(x:", encoding="utf-8")
    capsys.readouterr()
    assert main(["map", "gpt2", "--file", str(file)]) == 0
    told = capsys.readouterr().out
    assert "mine.py cannot be read: '(' was never closed (line 1)" in told.split("└")[-1], "below the table"
    assert shown(["map", "gpt2", "--file", str(file)], capsys) == {
        "right": 1,
        "not checked": len(GPT2.parts) - 1,
    }


def shown(arguments, capsys):
    assert main(arguments) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "│ gpt2." in line]
    states = [row.split("│")[3].strip() for row in rows]
    return {state: states.count(state) for state in states}


def test_the_map_does_without_a_place_to_write(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outline, "PROGRESS", tmp_path / "missing" / "progress.json")
    assert main(["check", "gpt2.gelu", "--file", str(another("gpt2"))]) == 0
    capsys.readouterr()
    assert shown(["map", "gpt2", "--file", str(another("gpt2"))], capsys) == {"not checked": len(GPT2.parts)}


TWO_HEADS_IN_ONE = [  # what a first draft may look like: nothing of it is in the list of mistakes
    ("for h in range(self.n_heads):", "for h in range(1):"),
    ("mine = slice(h * size, (h + 1) * size)", "mine = slice(0, dim)"),
]
NO_MASK = ("torch.where(place[:, None] >= place, scores, -torch.inf)", "scores")


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        (
            [NO_MASK, (" * size**-0.5", "")],
            "it looks like two mistakes: .*not divided.*; and .*no causal mask",
        ),
        (TWO_HEADS_IN_ONE, r"For an input of shape \[1, 1, 12\] it is right"),
        ([*TWO_HEADS_IN_ONE, NO_MASK], "^position 0 looks ahead.* Fix that first"),
        ([("x.shape[1:]", "x.shape[1:]; x = x.flip(2)")], r"wrong even for an input of shape \[1, 1, 12\]"),
        ([("self.qkv(x)", "self.qkv(x[:, :, 1:])")], r"\(the input was \[2, 7, 12\]\)"),
    ],
)
def test_several_mistakes_at_once_are_described(edits, says):
    state, said = planted("gpt2", "CausalAttention", edits)
    assert state == "wrong"
    assert re.search(says, said, re.DOTALL), said


def test_the_check_of_looking_ahead_works_alone():
    text = another("gpt2").read_text(encoding="utf-8")
    ahead = text.replace("torch.where(place[:, None] >= place, scores, -torch.inf)", "scores")
    with pytest.raises(Wrong, match="position 0 looks ahead"):
        looks_back_only(GPT2.case("CausalAttention", load_module(another("gpt2"), ahead), SOLUTION["gpt2"]))
    looks_back_only(GPT2.case("CausalAttention", load_module(another("gpt2")), SOLUTION["gpt2"]))


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (torch.zeros(2, 3), "shape is [2, 3], expected [3, 2]"),
        (torch.tensor([[1.0, 2], [3, 4], [5, 7]]), "only row 2 and column 1 differ"),
        (torch.tensor([[2.0, 4], [6, 8], [10, 12]]), "2 times what it should be (2)"),
        (torch.tensor([[2.0, 3], [4, 5], [6, 7]]), "off by the same 1"),
        (
            torch.tensor([[1.0, 2], [3, torch.nan], [5, 6]]),
            "1 of 6 numbers are not finite (0 * inf and inf - inf are NaN), first at row 1, column 1",
        ),
        ([1.0], "list, not a tensor"),
    ],
)
def test_differences_of_tensors_are_described_in_words(mine, says):
    right = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    assert says in explain.difference(mine, right, ("row", "column"))
    assert explain.difference(right.clone(), right, ("row", "column")) is None


def test_two_mistakes_at_once_are_named_in_numeric_results(tmp_path):
    both = [
        ("v_hat = v / (1 - self.b2**t)", "v_hat = v"),
        ("v_hat**0.5 + self.eps", "(v_hat + self.eps) ** 0.5"),
    ]
    state, says = planted("training", "AdamW", both)
    assert state == "wrong"
    assert says.startswith("it looks like two mistakes: the bias correction of v"), says
    assert "eps is inside the root" in says


def test_the_unbuilt_method_of_a_class_is_named():
    unbuilt = ("        return self.out(torch.cat(heads, dim=2))", "        raise NotImplementedError")
    assert planted("gpt2", "CausalAttention", [unbuilt])[1].startswith(
        "CausalAttention is not built yet: `forward` is left. Its docstring says what to do: another.py, line "
    )


@pytest.mark.slow
@pytest.mark.ci
def test_an_endless_beam_search_is_reported():
    never = ("for n in range(1, n_new + 1):", "for n in [1] * 1000:")
    state, says = planted("generation", "beam_search", [never])
    assert state == "wrong"
    assert "does your loop not end at n_new?" in says


@pytest.mark.parametrize(
    ("course", "part", "edit", "says"),
    [
        (
            "generation",
            "beam_search",
            ("float(sums[0]) / n**", "float(sums[0]) / (n + 1) **"),
            "should be over",
        ),
        ("generation", "beam_search", ("float(sums[0])", "float(values[0])"), "should be over"),
        ("generation", "beam_search", ("return done[0][1],", "return torch.tensor(done[0][1]),"), "a list"),
        (
            "generation",
            "beam_search",
            ("    done, cache", "    prompt += [0]\n    done, cache"),
            "changes the prompt",
        ),
        (
            "tokenizers",
            "apply_merges",
            (
                "    while True:",
                "    for a, b in ranks:\n        tokens = replace(tokens, (a, b), a + b)\n    while True:\n        return tokens",
            ),
            "on 'abc', {('b', 'c'): 1, ('a', 'b'): 0}",
        ),
        (
            "tokenizers",
            "word_pieces",
            ("if piece in vocabulary:", "if vocabulary.get(piece):"),
            "on 'unaffable', {'un': 0, ",
        ),
        (
            "further",
            "pair_logprobs",
            ("mixed = (1 - strength) * logits_a +", "logits_b -= logits_a\n    mixed = logits_a +"),
            "changes the logits",
        ),
        (
            "gpt2",
            "gelu",
            ("    root = (2", "    exit(3)\n    root = (2"),
            "gelu stops with SystemExit: 3 (another.py, line",
        ),
    ],
)
def test_mistakes_that_once_passed_the_checks_are_wrong_now(course, part, edit, says):
    state, said = planted(course, part, [edit])
    assert state == "wrong"
    assert says in said


@pytest.mark.parametrize("text", ["exit()", "import torhc", None])
def test_a_missing_file_or_one_that_exits_is_reported(text, tmp_path, capsys, monkeypatch):
    file = tmp_path / "gpt2_student.py"
    if text:
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(Outline, "student", file)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "gpt2.gelu"]) == 1
    assert "gpt2_student.py cannot be read: " in capsys.readouterr().out
    assert main(["map", "gpt2"]) == 0
    assert main(["notebook", "gpt2"]) == (0 if text else 1)


def test_layer_norm_refuses_what_it_would_only_normalize_in_part():
    """torch.nn.LayerNorm((3, 4)) normalizes two dimensions: the course's is for the last one only, and says so."""
    with pytest.raises(TypeError, match=r"dim=\(3, 4\) must be an int"):
        SOLUTION["gpt2"].LayerNorm((3, 4))
    x = torch.randn(2, 3, 4)
    expected = torch.nn.LayerNorm(4)(x)
    torch.testing.assert_close(SOLUTION["gpt2"].LayerNorm(4)(x), expected)
