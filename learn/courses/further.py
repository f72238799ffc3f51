"""The four exercises of `further`: what each part is run on beside what is right, and what it must stand."""

import copy
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.checks import EVERY, agrees, by_hand_in, honest
from learn.checking.course import Case, Check, Course, NotTried, Part, Wrong
from learn.checking.mistakes import read_mistakes
from learn.checking.samples import floats, integers
from learn.checking.spy import Spy
from learn.checking.values import differ
from learn.courses import further_references as references
from learn.courses import gpt2_references
from learn.courses.further_models import (
    BagOfWords,
    TinyBert,
    induction_lm,
    random_lm,
    repeated,
    seeded,
    tiny_gpt2,
)
from learn.courses.further_text import sentences
from learn.outline import Outline

V = 11  # tokens of the GPT-2
Run = Callable[[Any], dict[str, Any]]  # of a file, or of what is right: named results
OTHERS = (
    "torch.optim",
    "torch.nn.utils",
    "transformers",
    "explore/",
    "train/",
)  # whose work none is wanted of


def same(run: Run) -> Check:
    return agrees(run, lambda: run(references), differ)


def number(value: Any) -> Tensor:
    """A float of the student's, to be compared but for rounding."""
    if not isinstance(value, float):
        raise Wrong(f"what is returned is {type(value).__name__}, expected a float: `.item()` makes one.")
    return torch.tensor(value, dtype=torch.float64)


def mixed(strength: float) -> Run:
    """Log-probabilities of two rows."""

    def run(my: Any) -> dict[str, Any]:
        logits = floats(3, V, spread=2.0), floats(3, V, seed=1) + 5.0
        return {f"the log-probabilities at strength={strength}": my.pair_logprobs(*logits, strength)}

    return run


def by_paper(my: Any) -> dict[str, Any]:
    """The docstring's example."""
    a, b = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.75, 0.25]]).double().log()
    return {"p for p_a = (0.5, 0.5), p_b = (0.75, 0.25), strength 2": my.pair_logprobs(a, b, 2.0).exp()}


def continued(strength: float, seed: int | None = None) -> Run:
    """Twelve tokens after two contexts of three and five."""

    def run(my: Any) -> dict[str, Any]:
        model = references.Logits(gpt2_references.twin(tiny_gpt2(spread=1.0)))
        new = after_contexts(my, model, strength, seed)
        if not isinstance(new, Tensor):
            raise Wrong(f"what comes back is {type(new).__name__}, not a tensor with the new tokens.")
        return {told(strength, seed): new.tolist()}

    return run


def after_contexts(my: Any, model: nn.Module, strength: float, seed: int | None) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    contexts = integers(V, 5), integers(V, 3)
    return my.continue_pair(model, *contexts, 8, strength, generator)


def told(strength: float, seed: int | None) -> str:
    way = "the most probable tokens" if seed is None else f"tokens drawn with seed {seed}"
    return f"the continuation at strength={strength} by {way}"


def by_the_course(my: Any) -> object:
    """The same with a model in which nothing is ready made."""
    return after_contexts(my, tiny_gpt2(spread=1.0), 1.5, 0)


def bag(before: str, n: int) -> tuple[BagOfWords, tuple[Tensor, Tensor, Tensor]]:
    """A small classifier in a mode, and texts for it, of which it knows all but every third."""
    ids, lengths = integers(V, n, 6), 2 + integers(5, n, 1, seed=3)
    mask = (torch.arange(6) < lengths).long()
    model = seeded(lambda: BagOfWords(V, 3)).double()
    labels = model(ids, mask).argmax(dim=-1)
    labels[::3] = (labels[::3] + 1) % 3
    model.notes.clear()
    return model.train(before == "training"), (ids, mask, labels)


def counted(before: str) -> Run:
    def run(my: Any) -> dict[str, Any]:
        model, texts = bag(before, 40)
        came = f"for a model that came in {before} mode"
        return {
            f"the accuracy {came}": number(my.accuracy(model, *texts)),
            f"how the model was called {came}": sorted(model.notes),
            f"training mode afterwards {came}": model.training,
        }

    return run


def finetuned(**settings: Any) -> Run:
    """Losses and weights of a few steps, and how the model was called."""
    case = ", ".join(f"{name}={value}" for name, value in settings.items())

    def run(my: Any) -> dict[str, Any]:
        model, texts = bag("training", 10)
        losses = my.finetune(model, *texts, **settings, generator=torch.Generator().manual_seed(7))
        if not isinstance(losses, list):
            raise Wrong(
                f"finetune returns the list of losses that `train` gives, not {type(losses).__name__}."
            )
        results: dict[str, Any] = {f"the number of steps (10 texts, {case})": len(losses)}
        results |= {f"the loss of step {i} ({case})": number(loss) for i, loss in enumerate(losses)}
        results |= {
            f"`{name}` afterwards ({case})": p.detach().clone() for name, p in model.named_parameters()
        }
        return results | {"how the model was called": sorted(model.notes)}

    return run


def learns_to_read(case: Case) -> None:
    """Fine-tuning a small BERT on 1,600 sentences, judged on 400 others."""
    text, model = sentences(2000), seeded(TinyBert)
    known, held_out = text.part(slice(1600)), text.part(slice(1600, None))
    body = copy.deepcopy(model.bert.state_dict())
    case.mine.finetune(model, *known, generator=torch.Generator().manual_seed(0))
    score = case.mine.accuracy(model, *held_out)
    if score < 0.95:
        still = all(torch.equal(old, model.bert.state_dict()[name]) for name, old in body.items())
        why = " The body has not moved: only the head was trained." if still else ""
        raise Wrong(
            f"of the held-out sentences {score:.1%} are told right, 95 % are wanted, 50 % is chance.{why}"
        )


def scored(what: str, make: Callable[[], Any], ids: Tensor) -> Run:
    def run(my: Any) -> dict[str, Any]:
        lm = make()
        scores = seeded(lambda: my.induction_scores(lm, ids))
        if isinstance(scores, Tensor):
            scores = scores.double()
        return {f"the scores [layer, head] of {what}": scores} | afterwards(lm)

    return run


def ablated(what: str, make: Callable[[], Any], ids: Tensor) -> Run:
    def run(my: Any) -> dict[str, Any]:
        lm, results = make(), dict[str, Any]()
        for layer in range(lm.model_params.n_layers):
            for head in range(lm.model_params.n_heads):
                place = f"the loss of {what} without head {head} of layer {layer}"
                results[place] = number(seeded(partial(my.ablated_loss, lm, ids, layer, head)))
        return results | afterwards(lm)

    return run


def found(what: str, make: Callable[[], Any], ids: Tensor) -> Run:
    def run(my: Any) -> dict[str, Any]:
        place = my.find_induction_head(make(), ids)
        return {f"the head found in {what}": tuple(map(int, place)) if place is not None else "None"}

    return run


def afterwards(lm: Any) -> dict[str, Any]:
    """What a look at a model must leave as it was."""
    return {"training mode afterwards": lm.training, "who still looks at activations": len(lm.taps)}


def in_training(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: make().train()


def wrapped(labels: Tensor | None) -> Run:
    """A forward pass as Trainer makes it, and the gradients of its loss."""
    case = "without labels" if labels is None else "with labels of -100" if (labels < 0).any() else ""

    def run(my: Any) -> dict[str, Any]:
        made = my.ForTrainer(tiny_gpt2(spread=0.3))
        out = made(input_ids=LABELS, labels=labels)
        if not isinstance(out, dict):
            raise Wrong(f'forward returns {{"loss": ..., "logits": ...}}, a dict, not {type(out).__name__}.')
        results = {f"what is returned {case}": sorted(out), f"the logits {case}": out.get("logits")}
        if "loss" not in out:
            return results
        if not isinstance(out["loss"], Tensor) or not out["loss"].requires_grad:
            raise Wrong("no gradient flows back from the loss: it is a tensor, without .item() or .detach().")
        out["loss"].backward()
        results[f"the loss {case}"] = out["loss"].detach()
        return results | {f"the gradient of `tokens` {case}": made.model.embedding.tokens.grad}

    return run


def by_trainer(**settings: Any) -> Run:
    """Losses and weights, in single precision, in which transformers computes losses; and what is left on disk."""
    case = ", ".join(f"{name}={value}" for name, value in settings.items())

    def run(my: Any) -> dict[str, Any]:
        if find_spec("accelerate") is None:
            raise NotTried("transformers.Trainer needs one more package: pip install accelerate")
        model = tiny_gpt2(spread=0.3)
        with tempfile.TemporaryDirectory() as folder, chdir(folder), quiet(), torch.random.fork_rng():
            losses = my.train_with_huggingface(model, integers(V, 12, 8), **settings)
            left = sorted(path.name for path in Path(folder).rglob("*"))
        if not isinstance(losses, list):
            raise Wrong(f"what comes back is {type(losses).__name__}, expected the list of losses.")
        results: dict[str, Any] = {f"the number of losses ({case})": len(losses)}
        results |= {f"the loss of step {i} ({case})": torch.tensor(a) for i, a in enumerate(losses)}
        results |= {
            f"`{name}` afterwards ({case})": p.detach().float() for name, p in model.named_parameters()
        }
        return results | {"files left behind": left}

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries print of their progress."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def trainer_ran(case: Case) -> None:
    """It is transformers' Trainer that was asked for, not a loop that does the same."""
    with Spy() as spy:
        TRAINED(case.mine)
    if ("transformers", "Trainer") not in spy.work_of_others():
        raise Wrong("right, but transformers.Trainer never ran: the exercise is to let it do the work.")
    honest(case, spy, places=())


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
LABELS = integers(V, 3, 7)
WRAPPED = [wrapped(labels) for labels in (LABELS, None, LABELS.masked_fill(LABELS < 4, -100))]
TRAINED = by_trainer(n_epochs=3, batch_size=4, lr=0.02, seed=1)


def part(make: Callable[[Any], Any], runs: list[Run], *checks: Check, seconds: float = 60.0) -> Part:
    return Part(make, checks=(*EVERY, *map(same, runs), *checks), seconds=seconds)


PARTS = {
    "pair_logprobs": part(lambda my: my.pair_logprobs, MIXED, by_hand_in(MIXED[1], OTHERS)),
    "continue_pair": part(lambda my: my.continue_pair, CONTINUED, by_hand_in(by_the_course, OTHERS)),
    "accuracy": part(
        lambda my: my.accuracy,
        [counted("evaluation"), counted("training")],
        by_hand_in(counted("training"), OTHERS),
    ),
    "finetune": part(
        lambda my: my.finetune, FINETUNED, by_hand_in(FINETUNED[0], OTHERS), learns_to_read, seconds=180.0
    ),
    "induction_scores": part(
        lambda my: my.induction_scores,
        [scored(*model) for model in (*KNOWN, UNKNOWN)],
        by_hand_in(scored(*KNOWN[0]), OTHERS),
    ),
    "ablated_loss": part(
        lambda my: my.ablated_loss,
        [ablated(*model) for model in (*KNOWN, UNKNOWN)],
        by_hand_in(ablated(*KNOWN[0]), OTHERS),
    ),
    "find_induction_head": part(
        lambda my: my.find_induction_head,
        [found(*model) for model in (*KNOWN, UNKNOWN)],
        by_hand_in(found(*KNOWN[0]), OTHERS),
    ),
    "ForTrainer": part(lambda my: my.ForTrainer(tiny_gpt2()), WRAPPED, by_hand_in(WRAPPED[0], OTHERS)),
    "train_with_huggingface": part(
        lambda my: my.train_with_huggingface,
        [TRAINED, by_trainer(batch_size=5, lr=1e-3)],
        trainer_ran,
        seconds=180.0,
    ),
}

OUTLINE = Outline("further")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes), uses=(("training", "train"),))
