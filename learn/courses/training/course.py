"""Parts of the training course: runs beside torch's own code, and checks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.checks import EVERY, agrees, by_hand_in, has
from learn.checking.course import Case, Check, Course, Part, Wrong, load_module
from learn.checking.mistakes import read_mistakes
from learn.checking.samples import floats, integers
from learn.checking.values import describe_difference
from learn.courses.training import references
from learn.outline import Outline

SHAPES = {"matrix": (3, 4), "vector": (5,), "late": (2, 3)}
V, T = 11, 8  # of the GPT-2 that is trained
Run = Callable[[Any], dict[str, Any]]  # from the student's file, or the references, to named results


def same(run: Run) -> Check:
    """Return a check that a run gives the same results with the student's file as with torch and transformers."""
    return agrees(run, lambda: run(references), describe_difference, pairs=True)


def parameters(*names: str) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(floats(*SHAPES[name], seed=1)) for name in names}


def gradient(name: str, step: int, spread: float = 1.0) -> Tensor:
    return floats(*SHAPES[name], spread=spread, seed=100 * step + len(name))


def adam(
    case: str,
    *,
    n_steps: int = 4,
    without: Sequence[tuple[str, int]] = (),
    lrs: Sequence[float] = (),
    spread: float = 1.0,
    **settings: Any,
) -> Run:
    """Return a run of AdamW on fixed gradients. `without`: (name, step) at which a parameter has none."""
    names = tuple(SHAPES) if without else ("matrix",)

    def run(my: Any) -> dict[str, Any]:
        made, results = parameters(*names), dict[str, Any]()
        optimizer = my.AdamW(made.values(), **settings)
        for step in range(1, n_steps + 1):
            for name, parameter in made.items():
                parameter.grad = None if (name, step) in without else gradient(name, step, spread)
            if lrs:
                optimizer.lr = lrs[step - 1]
            optimizer.step()
            for name, parameter in made.items():
                label = f"`{name}` after step {step} {case}"
                results[label] = parameter.detach().clone()
                if parameter.grad is not None:
                    results[f"the gradient of {label} (it is to stay as it was)"] = parameter.grad
        return results

    return run


def on_a_generator(my: Any) -> dict[str, Any]:
    """Run AdamW on the generator `model.parameters()`, and record the gradients that zero_grad leaves."""
    model, results = small_network(), dict[str, Any]()
    optimizer = my.AdamW(model.parameters(), lr=0.05)
    for step in (1, 2, 3):
        optimizer.zero_grad()
        label = f"after zero_grad and before step {step}"
        results[f"with AdamW(model.parameters()), what .grad is {label}"] = [
            kind(p.grad) for p in model.parameters()
        ]
        model(floats(6, 3)).square().mean().backward()
        optimizer.step()
        results[f"the first weight after step {step} of AdamW(model.parameters())"] = weights(model)[
            "`0.weight`"
        ]
    return results


def kind(grad: Tensor | None) -> str:
    return "None" if grad is None else "zeros" if not grad.any() else "a gradient"


def small_network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def clip(case: str, max_norm: float, spread: float = 1.0, without: Sequence[str] = ()) -> Run:
    """Return a run that clips three gradients, some of them missing, with the parameters as a generator."""

    def run(my: Any) -> dict[str, Any]:
        made = parameters(*SHAPES)
        for name, parameter in made.items():
            parameter.grad = None if name in without else gradient(name, 1, spread)
        norm = my.clip_gradients((parameter for parameter in made.values()), max_norm)
        results = {f"the norm that is returned {case}": norm}
        for name, parameter in made.items():
            if name not in without:
                results[f"the gradient of `{name}` {case}"] = parameter.grad
        return results

    return run


def rates(case: str, n_steps: int, **settings: Any) -> Run:
    """Return a run of the learning rate at every step, and four steps beyond the last."""

    def run(my: Any) -> dict[str, Any]:
        found = [my.learning_rate(step, n_steps, 0.5, **settings) for step in range(n_steps + 4)]
        as_tensors = {
            f"the learning rate at step {step} {case}": as_number(rate) for step, rate in enumerate(found)
        }
        return {f"what is returned {case}": type(found[0]).__name__} | as_tensors

    return run


def as_number(rate: Any) -> Tensor:
    return torch.as_tensor(rate, dtype=torch.float64)


GPT2 = load_module(Outline("gpt2").solution)


def gpt2() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """Return a tiny GPT-2, always with the same weights, and its loss function."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2.GPT2(V, T, 12, 1, 2).double()
    return model, lambda model, ids: GPT2.next_token_loss(model(ids), ids)


def texts(n: int) -> list[Tensor]:
    return [integers(V, 4, T, seed=i) for i in range(n)]


def trained(case: str, n_batches: int = 6, by_heart: bool = False, **settings: Any) -> Run:
    """Return a run of `train`: losses and final weights, for a model that had gradients before."""

    def run(my: Any) -> dict[str, Any]:
        model, loss_of = gpt2()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        batches = texts(1) * n_batches if by_heart else texts(n_batches)
        losses = my.train(model, batches, loss_of, **settings)
        if not isinstance(losses, list) or not all(isinstance(loss, float) for loss in losses):
            raise Wrong(
                "train should return a list of floats, the loss of every step: `loss.item()` makes a float."
            )
        results: dict[str, Any] = {f"the number of losses {case}": len(losses)}
        results |= {
            f"the loss of step {i} (counted from 0) {case}": as_number(a) for i, a in enumerate(losses)
        }
        return results | {f"{name} after training {case}": value for name, value in weights(model).items()}

    return run


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {f"`{name}`": parameter.detach().clone() for name, parameter in model.named_parameters()}


class Modes(nn.Module):
    """Model that notes the mode of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.training)
        return self.weight * x


def modes(my: Any) -> dict[str, Any]:
    results = dict[str, Any]()
    for before in ("evaluation", "training"):
        model = Modes().train(before == "training")
        my.train(model, [torch.ones(2)] * 2, lambda model, x: model(x).sum())
        came = f"for a model that came in {before} mode"
        results[f"training mode at each call, {came}"] = model.seen
        results[f"training mode afterwards, {came}"] = model.training
    return results


def learns_by_heart(case: Case) -> None:
    """Raise Wrong if 80 steps on one batch do not overfit it."""
    model, loss_of = gpt2()
    losses = case.mine.train(model, texts(1) * 80, loss_of, lr=0.03, n_warmup=5, weight_decay=0.0)
    known = 0.2  # not much less is possible: the second token cannot be known from the first
    if losses[-1] > known:
        raise Wrong(
            f"80 steps on one batch bring the loss from {losses[0]:.2f} to {losses[-1]:.2f}, not below {known}."
        )


LATE = [("late", 1), ("late", 2), ("vector", 3), ("matrix", 4), ("matrix", 5)]
ADAM = (
    adam("(weight_decay=0)", lr=0.1, weight_decay=0.0),
    adam("(eps=0.5, weight_decay=0)", lr=0.1, eps=0.5, weight_decay=0.0),
    adam("(gradients around 1e-8, weight_decay=0)", lr=0.1, spread=1e-8, weight_decay=0.0),
    adam("(weight_decay=0.5)", lr=0.1, weight_decay=0.5),
    adam("(betas=(0.5, 0.8))", lr=0.1, betas=(0.5, 0.8)),
    adam(
        "(gradients missing now and then, weight_decay=0.5)",
        lr=0.1,
        weight_decay=0.5,
        n_steps=7,
        without=LATE,
    ),
    adam(
        "(lr 0.1, 0.2, 0, 0.05, set between the steps)",
        lr=0.1,
        weight_decay=0.5,
        lrs=(0.1, 0.2, 0.0, 0.05),
    ),
    on_a_generator,
)
CLIP = (
    clip("(norm above max_norm)", 1.0),
    clip("(norm below max_norm)", 100.0),
    clip("(one gradient missing)", 1.0, without=("vector",)),
    clip("(norm and max_norm around 1e-6)", 1e-6, spread=1e-6),
    clip("(no gradients)", 1.0, without=tuple(SHAPES)),
)
RATES = (
    rates("(of 10, no warm-up)", 10),
    rates("(of 10, n_warmup=4)", 10, n_warmup=4),
    rates("(of 10, n_warmup=4, min_lr=0.1)", 10, n_warmup=4, min_lr=0.1),
    rates("(of 6, n_warmup=5, min_lr=0.1)", 6, n_warmup=5, min_lr=0.1),
)
TRAINED = (
    trained("(lr=0.01, max_norm=1e9)", lr=0.01, max_norm=1e9),
    trained("(lr=0.01, max_norm=0.3)", lr=0.01, max_norm=0.3),
    trained(
        "(n_warmup=3, min_lr=0.002, weight_decay=0.3)", lr=0.01, n_warmup=3, min_lr=0.002, weight_decay=0.3
    ),
    trained("(12 batches, n_accumulate=3)", 12, lr=0.01, n_warmup=1, max_norm=1.2, n_accumulate=3),
    trained("(12 batches, n_accumulate=3, max_norm=0.3)", 12, lr=0.01, max_norm=0.3, n_accumulate=3),
)

PARTS = {
    "AdamW": Part(
        lambda my: my.AdamW(parameters("matrix").values()),
        checks=(*EVERY, has(lr=float), *map(same, ADAM), *map(by_hand_in, ADAM)),
    ),
    "clip_gradients": Part(
        lambda my: my.clip_gradients, checks=(*EVERY, *map(same, CLIP), *map(by_hand_in, CLIP))
    ),
    "learning_rate": Part(
        lambda my: my.learning_rate, checks=(*EVERY, *map(same, RATES), *map(by_hand_in, RATES))
    ),
    "train": Part(
        lambda my: my.train,
        checks=(*EVERY, *map(same, TRAINED), same(modes), learns_by_heart, *map(by_hand_in, TRAINED)),
    ),
}

OUTLINE = Outline("training")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes))
