"""Fields of a run that are set and have no effect, found out by running its parts once, and what would use them."""

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import torch
from torch import nn

from model.context import layer_kinds
from model.embeddings import position_kinds
from model.model_params import ModelParams
from model.norms import norms
from model.observe import observed, run_observed, unread
from model.transformer.transformerencoderlayer import activations
from train.optimizers import make_optimizer, optimizers
from train.schedules import Schedule, schedules
from train.train_params import TrainParams

ROOT = Path(__file__).resolve().parents[1]
N_STEPS = 8  # of a schedule that is only looked at
REGISTRIES: dict[str, Mapping[str, Any]] = {
    "layer_architecture": layer_kinds,
    "positions": position_kinds,
    "norm": norms,
    "activation": activations,
    "optimizer": optimizers,
    "lr_schedule": schedules,
}
# Files whose code runs while a run is observed, or only looks at values. What others read has an effect.
OBSERVED_FILES = {"optimizers.py", "schedules.py", "train_params.py", "check.py", "plan.py", "observe.py"}


class Unused(NamedTuple):
    """A field without effect on a run."""

    setting: str  # "momentum=0.5"
    reason: str  # "optimizer='sgd' or optimizer='muon' would use it", or ""

    def __str__(self) -> str:
        return f"{self.setting} has no effect: {self.reason}"


def unused_fields(model: ModelParams, train: TrainParams, also: Collection[str] = ()) -> list[Unused]:
    """Return the fields that are set, or are in `also`, and that nothing in the run reads.

    Nothing is said of a model that cannot run without numbers.
    """
    reads = reads_of(model, train, also)
    if reads is None:
        return []
    elsewhere, found = names_read_elsewhere(), []
    for params in (model, train):
        for name, value in unread(params, reads | (elsewhere if params is train else set()), also).items():
            users = users_of(name, model, train, also)
            if users or name not in elsewhere:
                found.append(Unused(f"{name}={value!r}", reason(users, name, model)))
    return found


def reason(users: list[str], name: str, model: ModelParams) -> str:
    is_of_model = any(field.name == name for field in fields(ModelParams))
    nobody = f"no layer uses it with layer_architecture={model.layer_architecture!r}"
    nobody = nobody if is_of_model else "nothing in this run uses it"
    return f"{nobody}; {' or '.join(users)} would" if users else nobody


known: dict[tuple[Any, ...], frozenset[str] | None] = {}  # what runs of a signature read


def reads_of(model: ModelParams, train: TrainParams, also: Collection[str]) -> frozenset[str] | None:
    """Return the names of fields that a model, its losses, optimizer and schedule read; None if they cannot run."""
    key = signature(model), signature(train), frozenset(also)
    if key not in known:
        known[key] = run_once(model, train, also)
    return known[key]


def signature(params: Any) -> tuple[Any, ...]:
    """Return what decides which code runs: names and switches, and of a number whether it is 0 or at its default."""
    values = [(getattr(params, field.name), field.default) for field in fields(params)]
    is_number = [isinstance(value, int | float) and not isinstance(value, bool) for value, _ in values]
    return tuple(
        (value == default, bool(value)) if number else value
        for (value, default), number in zip(values, is_number, strict=True)
    )


def run_once(model: ModelParams, train: TrainParams, also: Collection[str]) -> frozenset[str] | None:
    """Run the parts once; the optimizer, whose first one takes seconds to import, only for fields that are still unread."""
    reads: set[str] = set()
    params = observed(train, reads)
    lm = run_observed(model, reads, params)
    try:
        read_schedule(params)
        if lm is not None and unread(train, reads | names_read_elsewhere(), also):
            give_numbers(lm)
            make_optimizer(lm, params)
    except Exception:  # it may be the user's own code
        return None
    return None if lm is None else frozenset(reads)


def give_numbers(lm: nn.Module) -> None:
    """Put zeros that take no memory in the place of meta parameters, tied ones together: fused optimizers refuse those."""
    twins: dict[int, nn.Parameter] = {}
    for module in lm.modules():
        for name, old in module.named_parameters(recurse=False, remove_duplicate=False):
            zeros = torch.zeros((), dtype=old.dtype).expand(old.shape)
            setattr(module, name, twins.setdefault(id(old), nn.Parameter(zeros, old.requires_grad)))


def read_schedule(train: TrainParams) -> None:
    """Evaluate the schedule over a whole run, with and without validations that stand still."""
    schedule = Schedule(train, max(N_STEPS, train.warmup_steps + N_STEPS))
    shares = [schedule(step) for step in range(schedule.n_steps)]
    schedule.reductions = 1
    if [schedule(step) for step in range(schedule.n_steps)] != shares:  # it looks at validations
        schedule.see(1.0)
        schedule.see(1.0)


def users_of(name: str, model: ModelParams, train: TrainParams, also: Collection[str]) -> list[str]:
    """Return the other choices, such as "optimizer='sgd'", with which this run would read the field."""
    users = []
    for params in (model, train):
        for other, value in alternatives(params):
            try:
                changed = replace(params, **{other: value})
            except ValueError:  # the combination is impossible
                continue
            pair = (changed, train) if isinstance(changed, ModelParams) else (model, changed)
            reads = reads_of(*pair, also)
            if reads and name in reads:
                users.append(f"{other}={value!r}")
    return users


def alternatives(params: Any) -> Iterator[tuple[str, Any]]:
    """Every other value of the fields that choose between a few: registered names and literals."""
    for field in fields(params):
        values = REGISTRIES.get(field.name) or literals(field.type)
        for value in values:
            if value != getattr(params, field.name):
                yield field.name, value


def literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


@cache
def names_read_elsewhere() -> frozenset[str]:
    """Return every attribute name in the code that takes part in a run and that observing it does not run."""
    files = [ROOT / "main.py", *(ROOT / "train").rglob("*.py"), *(ROOT / "data").rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files if path.name not in OBSERVED_FILES]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute))
