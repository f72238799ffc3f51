"""BERT's properties found broken by themselves, LayerNorm borrowed from another course, shares of the masking."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from learn import notebook, outline
from learn.checking.course import Wrong, get_course, judge_course, load_module
from learn.courses.bert import masking
from learn.courses.bert.course import (
    company_does_not_matter,
    finite,
    looks_both_ways,
    padding_does_not_matter,
)
from learn.outline import Outline

BERT = get_course("bert")
ANOTHER = Path(__file__).parent / "another.py"
GPT2 = ANOTHER.parents[1] / "gpt2" / "another.py"
PADDED = ["SelfAttention", "Block", "Bert", "BertForMaskedLM", "BertForClassification"]
BIAS = "bias = padded[:, None, :]"
FIRST = "n, length, dim = x.shape"


def case(part, *edits):
    """A right file but for these edits."""
    text = ANOTHER.read_text(encoding="utf-8")
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return BERT.case(part, load_module(ANOTHER, text), load_module(BERT.outline.solution))


@pytest.mark.parametrize("part", PADDED)
def test_the_check_of_padding_works_alone(part):
    padding_does_not_matter(case(part))
    with pytest.raises(Wrong, match="sample 0 changes when only its padding does"):
        padding_does_not_matter(case(part, (BIAS, "bias = 0 * padded[:, None, :]")))
    with pytest.raises(Wrong, match="changes when only its padding does"):  # a mask that is right for most
        padding_does_not_matter(
            case(part, (BIAS, "bias = padded[:, None, :].index_fill(2, torch.tensor(6), 0)"))
        )


@pytest.mark.parametrize("part", PADDED)
def test_the_check_of_samples_that_see_each_other_works_alone(part):
    company_does_not_matter(case(part))
    with pytest.raises(Wrong, match="alone than in a batch"):
        company_does_not_matter(case(part, (FIRST, f"x = x + 0.01 * x.mean(0); {FIRST}")))
    with pytest.raises(Wrong, match="alone than in a batch"):  # scores that hang on the padding's length
        company_does_not_matter(case(part, ("size**-0.5", "length**-0.5")))


@pytest.mark.parametrize("part", PADDED[:-1])
def test_the_check_of_both_directions_works_alone(part):
    looks_both_ways(case(part))
    with pytest.raises(Wrong, match="position 0 does not see the last one"):
        looks_both_ways(
            case(part, (BIAS, "bias = padded[:, None, :] + torch.ones(length, length).tril().log()"))
        )


def test_the_check_of_nan_at_padding_works_alone():
    finite(case("Block"))
    with pytest.raises(Wrong, match="not finite at padding"):
        finite(
            case("Block", (BIAS, "bias = padded[:, None, :] + (mask[:, :, None] / mask[:, :, None]).log()"))
        )


def test_wrong_shares_of_masked_tokens_are_reported():
    ids, special = masking.batch(7)

    def told(hidden=0.8, changed=0.5, chosen=0.15):
        generator = torch.Generator().manual_seed(8)
        dice = [torch.rand(ids.shape, generator=generator) < p for p in (chosen, hidden, changed)]
        words = torch.randint(masking.V, ids.shape, generator=generator)
        guessed = dice[0] & ~special
        new = ids.where(~(guessed & dice[2]), words).masked_fill(guessed & dice[1], masking.MASK_ID)
        return masking.shares(ids, special, new, guessed)

    assert told() is None
    assert "tokens are chosen, expected 15 %" in told(chosen=0.18)
    assert "expected 80, 10 and 10 %" in told(hidden=0.88)
    assert "expected 80, 10 and 10 %" in told(changed=0.9)
    assert "expected 80, 10 and 10 %" in told(changed=0)


def test_right_shares_are_within_the_bound_for_100_seeds():
    """Right draws of a hundred seeds are within the bound."""
    right = load_module(BERT.outline.solution).mask_tokens
    for seed in range(100):
        ids, special = masking.batch(seed)
        generator = torch.Generator().manual_seed(seed)
        assert (
            masking.shares(ids, special, *right(ids, special, masking.MASK_ID, masking.V, generator)) is None
        )


@pytest.fixture
def with_gpt2(monkeypatch, tmp_path):
    """Puts a student's GPT-2 file in place, and gives a right BERT file that imports from it."""

    def put(text):
        file = tmp_path / "gpt2_student.py"
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("learn.gpt2_student", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, "learn.gpt2_student", module)
        student = Outline.student.fget
        path = property(lambda self: file if self.course == "gpt2" else student(self))
        monkeypatch.setattr(Outline, "student", path)
        mine = tmp_path / "bert_student.py"
        text = ANOTHER.read_text(encoding="utf-8")
        mine.write_text(text.replace("from learn.solution.gpt2", "from learn.gpt2_student"), encoding="utf-8")
        return mine

    monkeypatch.setattr(outline, "PROGRESS", tmp_path / "progress.json")
    return put


@pytest.mark.parametrize(
    ("edit", "borrowed"),
    [
        (("", ""), ()),
        (("(var + self.eps)", "var"), ("LayerNorm",)),
        (("var = x.var", "raise NotImplementedError; var = x.var"), ("LayerNorm",)),
        (("root = (2", "return x; root = (2"), ()),
    ],
)
def test_layer_norm_is_borrowed_while_the_students_is_not_right(with_gpt2, edit, borrowed):
    mine = with_gpt2(GPT2.read_text(encoding="utf-8").replace(*edit))
    for part in ("Embedding", "Block"):
        [verdict] = judge_course(BERT, mine, part)
        assert (verdict.state, verdict.borrowed) == ("right", borrowed), verdict.says
    [verdict] = judge_course(BERT, mine, "SelfAttention")
    assert verdict.borrowed == (), "it needs no LayerNorm"


def test_in_a_notebook_a_borrowed_layer_norm_goes_back(with_gpt2, monkeypatch, capsys):
    mine = load_module(with_gpt2(Outline("gpt2").student.read_text(encoding="utf-8")))
    mine.__name__ = "__main__"
    for kind in vars(mine).values():
        if isinstance(kind, type) and kind.__module__ == "bert_student":
            kind.__module__ = "__main__"
    monkeypatch.setitem(sys.modules, "__main__", mine)
    stub = mine.LayerNorm
    notebook.check("bert.Block")
    assert "bert.Block: right" in capsys.readouterr().out
    assert mine.LayerNorm is stub


def test_an_error_in_an_imported_file_names_that_file(tmp_path, monkeypatch):
    (tmp_path / "imported.py").write_text("import torch\n\ndef gelu(x:\n", encoding="utf-8")
    mine = tmp_path / "mine.py"
    mine.write_text("import imported\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    [verdict] = judge_course(BERT, mine, "MLP")
    assert "mine.py cannot be read" in verdict.says
    assert "(imported.py, line 3)" in verdict.says


def test_an_error_names_the_file_that_raised_it(tmp_path):
    other = str(Outline("gpt2").student)
    mine = tmp_path / "bert_student.py"
    mine.write_text(f"exec(compile('\\nimport torhc', {other!r}, 'exec'))", encoding="utf-8")
    [verdict] = judge_course(BERT, mine, "gelu")
    assert verdict.says.endswith("No module named 'torhc' (gpt2_student.py, line 2)")
