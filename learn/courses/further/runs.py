"""Runs for the checks of `further`: functions from a file, the student's or the references, to named results."""

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

from learn.checking.course import NotTried, Wrong
from learn.checking.samples import floats, integers
from learn.courses.further import references
from learn.courses.further.models import (
    BagOfWords,
    seeded,
    tiny_gpt2,
)
from learn.courses.gpt2 import references as gpt2_references

V = 11  # tokens of the GPT-2
LABELS = integers(V, 3, 7)
Run = Callable[[Any], dict[str, Any]]  # from the student's file, or the references, to named results


def number(value: Any) -> Tensor:
    """Return a float as a tensor, so that it is compared up to rounding."""
    if not isinstance(value, float):
        raise Wrong(f"the result is {type(value).__name__}, expected a float: `.item()` makes one.")
    return torch.tensor(value, dtype=torch.float64)


def mixed(strength: float) -> Run:
    """Return a run of pair_logprobs on three rows."""

    def run(my: Any) -> dict[str, Any]:
        logits = floats(3, V, spread=2.0), floats(3, V, seed=1) + 5.0
        given = tuple(one.clone() for one in logits)
        result = my.pair_logprobs(*given, strength)
        if not all(map(torch.equal, given, logits)):
            raise Wrong(
                "pair_logprobs changes the logits it was given: an operation in place (`-=`, `sub_`)?"
            )
        return {f"the log-probabilities at strength={strength}": result}

    return run


def by_paper(my: Any) -> dict[str, Any]:
    """Run the docstring's example."""
    a, b = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.75, 0.25]]).double().log()
    return {"log p for p_a = (0.5, 0.5), p_b = (0.75, 0.25), strength 2": my.pair_logprobs(a, b, 2.0)}


def continued(strength: float, seed: int | None = None) -> Run:
    """Return a run that continues contexts of five and three tokens by eight tokens."""

    def run(my: Any) -> dict[str, Any]:
        model = references.Logits(gpt2_references.twin(tiny_gpt2(spread=1.0)))
        new = after_contexts(my, model, strength, seed)
        if not isinstance(new, Tensor):
            raise Wrong(f"the result is {type(new).__name__}, not a tensor with the new tokens.")
        return {told(strength, seed): new.tolist()}

    return run


def after_contexts(my: Any, model: nn.Module, strength: float, seed: int | None) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    contexts = integers(V, 5), integers(V, 3)
    return seeded(lambda: my.continue_pair(model, *contexts, 8, strength, generator))


def told(strength: float, seed: int | None) -> str:
    way = "the most probable tokens" if seed is None else f"tokens drawn with seed {seed}"
    return f"the continuation at strength={strength} by {way}"


def by_the_course(my: Any) -> object:
    """Continue with the course's own GPT-2, which has no ready-made operators."""
    return after_contexts(my, tiny_gpt2(spread=1.0), 1.5, 0)


def bag(before: str, n: int) -> tuple[BagOfWords, tuple[Tensor, Tensor, Tensor]]:
    """Return a small classifier in a mode, and texts that it classifies rightly except every third."""
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
    """Return a run of a few fine-tuning steps: losses, weights, and the modes in which the model was called."""
    case = ", ".join(f"{name}={value}" for name, value in settings.items())

    def run(my: Any) -> dict[str, Any]:
        model, texts = bag("training", 10)
        generator = torch.Generator().manual_seed(7)
        losses = seeded(lambda: my.finetune(model, *texts, **settings, generator=generator))
        if not isinstance(losses, list):
            raise Wrong(
                f"finetune should return the list of losses that `train` returns, not {type(losses).__name__}."
            )
        results: dict[str, Any] = {f"the number of steps (10 texts, {case})": len(losses)}
        results |= {f"the loss of step {i} ({case})": number(loss) for i, loss in enumerate(losses)}
        results |= {
            f"`{name}` afterwards ({case})": p.detach().clone() for name, p in model.named_parameters()
        }
        return results | {"how the model was called": sorted(model.notes)}

    return run


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
    """Return the state of a model that an inspection must leave unchanged."""
    return {"training mode afterwards": lm.training, "hooks left on the model": len(lm.taps)}


def in_training(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: make().train()


def wrapped(labels: Tensor | None) -> Run:
    """Return a run of a forward pass as Trainer makes it, and of the gradients of its loss."""
    case = "without labels" if labels is None else "with labels of -100" if (labels < 0).any() else ""

    def run(my: Any) -> dict[str, Any]:
        made = my.ForTrainer(tiny_gpt2(spread=0.3))
        out = made(input_ids=LABELS, labels=labels)
        if not isinstance(out, dict):
            raise Wrong(
                f'forward should return a dict {{"loss": ..., "logits": ...}}, not {type(out).__name__}.'
            )
        results = {f"what is returned {case}": sorted(out), f"the logits {case}": out.get("logits")}
        if "loss" not in out:
            return results
        if not isinstance(out["loss"], Tensor) or not out["loss"].requires_grad:
            raise Wrong(
                "no gradient flows back from the loss: return it as a tensor, without .item() or .detach()."
            )
        out["loss"].backward()
        results[f"the loss {case}"] = out["loss"].detach()
        return results | {f"the gradient of `tokens` {case}": made.model.embedding.tokens.grad}

    return run


def by_trainer(**settings: Any) -> Run:
    """Return a run of Trainer: losses and weights in float32, in which transformers computes losses, and files left."""
    case = ", ".join(f"{name}={value}" for name, value in settings.items())

    def run(my: Any) -> dict[str, Any]:
        model = tiny_gpt2(spread=0.3)
        with tempfile.TemporaryDirectory() as folder, chdir(folder), quiet(), torch.random.fork_rng():
            losses = with_trainer(my, model, **settings)
            left = sorted(path.name for path in Path(folder).rglob("*"))
        if not isinstance(losses, list):
            raise Wrong(f"the result is {type(losses).__name__}, expected the list of losses.")
        results: dict[str, Any] = {f"the number of losses ({case})": len(losses)}
        results |= {f"the loss of step {i} ({case})": torch.tensor(a) for i, a in enumerate(losses)}
        results |= {
            f"`{name}` afterwards ({case})": p.detach().float() for name, p in model.named_parameters()
        }
        return results | {"files left behind": left}

    return run


def with_trainer(my: Any, model: nn.Module, **settings: Any) -> Any:
    try:
        return my.train_with_huggingface(model, integers(V, 12, 8), **settings)
    except ImportError as error:
        if find_spec("accelerate") is None:
            raise NotTried("transformers.Trainer needs one more package: pip install accelerate") from error
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress output of libraries in the `with` block."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
