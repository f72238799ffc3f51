"""Parts of the four exercises of `further`, and their checks."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from learn.checking.checks import EVERY, agrees, honest
from learn.checking.course import Case, Check, Course, Part, Wrong
from learn.checking.mistakes import read_mistakes
from learn.checking.samples import integers
from learn.checking.spy import Spy
from learn.checking.values import describe_difference
from learn.courses.further import references
from learn.courses.further.models import induction_lm, random_lm, repeated, tiny_bert, tiny_gpt2
from learn.courses.further.runs import (
    LABELS,
    Run,
    ablated,
    by_paper,
    by_the_course,
    by_trainer,
    continued,
    counted,
    finetuned,
    found,
    in_training,
    mixed,
    scored,
    wrapped,
)
from learn.courses.further.text import sentences
from learn.outline import Outline

# Places whose code must not do the work.
OTHERS = ("torch.optim", "torch.nn.utils", "transformers", "explore/", "train/", "the checks")


def not_by_others(run: Callable[[Any], object]) -> Check:
    """Return a check that others' code did not do the exercise. All of torch is allowed but optimizers and clipping."""

    def check(case: Case) -> None:
        with Spy() as spy:
            run(case.mine)
        others = {place for place, _ in spy.work_of_others()} - set(OTHERS)
        honest(case, spy, (*others, *spy.cheats()))

    return check


def same(run: Run) -> Check:
    return agrees(run, lambda: run(references), describe_difference)


def learns_to_read(case: Case) -> None:
    """Fine-tune a small BERT on 1,600 sentences. Raise Wrong if accuracy on 400 others is below 95 %."""
    text, model = sentences(2000), tiny_bert()
    known, held_out = text.part(slice(1600)), text.part(slice(1600, None))
    body = copy.deepcopy(model.bert.state_dict())
    case.mine.finetune(model, *known, generator=torch.Generator().manual_seed(0))
    score = case.mine.accuracy(model, *held_out)
    if score < 0.95:
        still = all(torch.equal(old, model.bert.state_dict()[name]) for name, old in body.items())
        why = " The body has not moved: only the head was trained." if still else ""
        raise Wrong(
            f"accuracy on the held-out sentences is {score:.1%}, expected at least 95 %; chance is 50 %.{why}"
        )


def trainer_ran(case: Case) -> None:
    """Raise Wrong unless transformers' Trainer did the training, rather than a loop that does the same."""
    with Spy() as spy:
        TRAINED(case.mine)
    if ("transformers", "Trainer") not in spy.work_of_others():
        raise Wrong("right, but transformers.Trainer never ran: this exercise is to train with it.")
    honest(case, spy, (*dict(spy.work_of_others()), *spy.cheats()))


MIXED = [by_paper, *(mixed(strength) for strength in (0.0, 1.0, 0.5, 2.5, -1.0))]
CONTINUED = [continued(*way) for way in ((1.5,), (-1.0,), (0.0,), (1.0,), (1.5, 1), (0.5, 2))]
FINETUNED = [
    finetuned(n_epochs=2, batch_size=4, lr=0.02),
    finetuned(n_epochs=10, batch_size=5, lr=0.05),
    finetuned(),
]
IDS, ANY_IDS = repeated(), integers(9, 5, 20)
KNOWN = [
    ("a model whose induction head is 2 of layer 1", lambda: induction_lm((2, 0, 4, 1, 3)), IDS),
    ("a model whose induction head is 0 of layer 1", lambda: induction_lm((0, 1, 2, 3, 4)), IDS),
]
UNKNOWN = ("a random model", in_training(lambda: random_lm(dropout=0.5)), ANY_IDS)
WRAPPED = [wrapped(labels) for labels in (LABELS, None, LABELS.masked_fill(LABELS < 4, -100))]
TRAINED = by_trainer(n_epochs=3, batch_size=4, lr=0.02, seed=1)


def part(make: Callable[[Any], Any], runs: list[Run], *checks: Check, seconds: float = 60.0) -> Part:
    return Part(make, checks=(*EVERY, *map(same, runs), *checks), seconds=seconds)


PARTS = {
    "pair_logprobs": part(lambda my: my.pair_logprobs, MIXED, not_by_others(MIXED[1])),
    "continue_pair": part(lambda my: my.continue_pair, CONTINUED, not_by_others(by_the_course)),
    "accuracy": part(
        lambda my: my.accuracy,
        [counted("evaluation"), counted("training")],
        not_by_others(counted("training")),
    ),
    "finetune": part(
        lambda my: my.finetune, FINETUNED, not_by_others(FINETUNED[0]), learns_to_read, seconds=180.0
    ),
    "induction_scores": part(
        lambda my: my.induction_scores,
        [scored(*model) for model in (*KNOWN, UNKNOWN)],
        not_by_others(scored(*KNOWN[0])),
    ),
    "ablated_loss": part(
        lambda my: my.ablated_loss,
        [ablated(*model) for model in (*KNOWN, UNKNOWN)],
        not_by_others(ablated(*KNOWN[0])),
    ),
    "find_induction_head": part(
        lambda my: my.find_induction_head,
        [found(*model) for model in (*KNOWN, UNKNOWN)],
        not_by_others(found(*KNOWN[0])),
    ),
    "ForTrainer": part(lambda my: my.ForTrainer(tiny_gpt2()), WRAPPED, not_by_others(WRAPPED[0])),
    "train_with_huggingface": part(
        lambda my: my.train_with_huggingface,
        [TRAINED, by_trainer(batch_size=5, lr=1e-3)],
        trainer_ran,
        seconds=180.0,
    ),
}

OUTLINE = Outline("further")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes), uses=(("training", "train"),))
