"""Inputs of the further exercises: the text needs its word order, the known head is one, Trainer has to run."""

from collections import defaultdict

import pytest
import torch

from explore.inspection.scores import head_scores
from learn.checking.course import Wrong, judge, load_module
from learn.checking.values import describe_difference
from learn.courses.further import course as further
from learn.courses.further import runs as further_runs
from learn.courses.further.models import induction_lm, random_lm, repeated, tiny_bert
from learn.courses.further.text import ANIMALS, CLS, LONGEST, PAD, WORDS, sentences
from learn.solution import further as solution

TEXT = sentences(2000)


def words(row):
    return [WORDS[i] for i in row.tolist() if i not in (PAD, CLS, WORDS.index("[SEP]"))]


def test_sentences_are_distinct_and_rightly_labeled():
    assert len({tuple(row) for row in TEXT.ids.tolist()}) == 2000
    assert TEXT.ids.shape == TEXT.mask.shape == (2000, LONGEST)
    assert torch.equal(TEXT.mask == 1, TEXT.ids != PAD)
    assert TEXT.mask.sum(1).max() == LONGEST
    for row, label in zip(TEXT.ids, TEXT.labels.tolist(), strict=True):
        hunter, prey = (word for word in words(row) if word in ANIMALS)
        if "was" in words(row):
            hunter, prey = prey, hunter
        assert label == (ANIMALS.index(hunter) > ANIMALS.index(prey))


@pytest.mark.parametrize("what", ["no order", "no grammar"])
def test_neither_words_nor_animals_determine_the_label(what):
    """Among all sentences with the same words, or the same animals in the same order, labels are even."""
    labels = defaultdict(list)
    for row, label in zip(sentences(6000).ids, sentences(6000).labels.tolist(), strict=True):
        animals = [word for word in words(row) if word in ANIMALS]
        small = {*words(row)} & {"was", "by"}
        key = (*sorted(animals), *sorted(small)) if what == "no order" else tuple(animals)
        labels[key].append(label)
    for found in labels.values():
        assert 0.44 < sum(found) / len(found) < 0.56


def test_a_frozen_body_stays_near_chance():
    model = tiny_bert()
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    known, held_out = TEXT.part(slice(1600)), TEXT.part(slice(1600, None))
    solution.finetune(model, *known, generator=torch.Generator().manual_seed(0))
    assert solution.accuracy(model, *held_out) < 0.65


def test_training_only_the_head_is_noticed_by_the_unchanged_body():
    """Even if the comparison with small models found nothing, the body that has not changed shows it."""
    file = load_module(further.OUTLINE.solution)

    def only_the_head(model, *texts, **settings):
        model.bert.requires_grad_(False)
        return solution.finetune(model, *texts, n_epochs=1)

    file.finetune = only_the_head
    with pytest.raises(Wrong, match=r"chance is 50 %. The body has not moved: only the head"):
        further.learns_to_read(further.COURSE.case("finetune", file, solution))


@pytest.mark.parametrize("order", [(2, 0, 4, 1, 3), (0, 1, 2, 3, 4)])
def test_hand_set_heads_do_what_they_were_made_for(order):
    lm, ids = induction_lm(order), repeated()
    scores = solution.induction_scores(lm, ids)
    head, half, idle, same, _ = order
    assert scores[1, [head, idle]].min() > 0.99
    assert 0.5 < scores[1, half] < 0.9
    assert scores[0].max() < 0.2
    assert scores[1, same] < 0.2
    assert scores.argmax() == scores.shape[1] + idle
    table = head_scores(lm)
    assert table.previous_token[0, order[0]] > 0.99
    losses = {i: solution.ablated_loss(lm, ids, 1, i) for i in order}
    whole = losses[idle]
    assert whole < 0.01
    assert losses[head] > 100 * whole
    assert 2 * whole < losses[half] < losses[head] / 2
    assert solution.ablated_loss(lm, ids, 0, order[0]) > losses[head]
    assert solution.find_induction_head(lm, ids) == (1, head)


def test_scores_are_those_of_the_explorer():
    """On its own samples: random tokens, and the same again."""
    from explore.inspection.scores import repeated_sequences as samples

    for lm in (random_lm(), induction_lm((3, 1, 0, 2, 4))):
        ids, _ = samples(lm, 16, None, 0)
        right = torch.tensor(head_scores(lm).induction.unstack().to_numpy())
        torch.testing.assert_close(solution.induction_scores(lm, ids), right)


def test_huggingfaces_trainer_has_to_run():
    file = load_module(further.OUTLINE.solution)
    file.train_with_huggingface = lambda model, ids, **settings: [0.0]
    with pytest.raises(Wrong, match=r"transformers\.Trainer never ran"):
        further.trainer_ran(further.COURSE.case("train_with_huggingface", file, solution))


def test_without_accelerate_one_sentence_says_what_to_install(monkeypatch):
    """A part that is not built is still reported as not built."""
    name = "train_with_huggingface"
    file, stubs = load_module(further.OUTLINE.solution), load_module(further.OUTLINE.student)
    monkeypatch.setattr(further_runs, "find_spec", lambda name: None)

    def no_accelerate(*args, **settings):
        raise ImportError("Trainer requires accelerate")

    no_accelerate.__module__ = file.__name__
    file.train_with_huggingface = no_accelerate
    says = "not tried: transformers.Trainer needs one more package: pip install accelerate"
    assert judge(further.COURSE.case(name, file, solution), further.OUTLINE.student) == ("right", says)
    assert judge(further.COURSE.case(name, stubs, solution), further.OUTLINE.student)[0] == "not built"


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        ({"a": 1, "b": torch.zeros(2)}, None),
        ({"b": torch.zeros(2)}, "there is no a"),
        ({"a": 2, "b": torch.zeros(2)}, "a: it is 2, expected 1"),
        ({"a": None, "b": torch.zeros(2)}, "a: it is NoneType, expected int: is a `return` missing?"),
        ({"a": 1, "b": torch.tensor([0.0, 1.0])}, "b: only row 1 differ; the largest difference is at row 1"),
    ],
)
def test_differences_of_named_results_are_described_in_words(mine, says):
    told = describe_difference(mine, {"a": 1, "b": torch.zeros(2)})
    assert told == says or told.startswith(says)
