"""Find params fields that have no effect on a run."""

import ast
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin

import torch
from torch import nn

from common.registry import Registry
from common.repository import REPOSITORY
from data.data_params import DataParams
from data.syntheticdata import tasks
from data.tokenizer import TokenizerSpec
from model.model_params import ModelParams
from model.observe import is_use, observed, run_observed, unread
from model.problems import MODEL_REGISTRIES as REGISTRIES_OF_MODEL
from train.data import tokenizer_spec
from train.grid.params import Params
from train.optimizers import make_optimizer, optimizers
from train.schedules import Schedule, schedules
from train.train_params import TrainParams

N_STEPS = 8  # steps for which a schedule is evaluated to record its reads
ALL_REGISTRIES: dict[str, Mapping[str, Any]] = {
    **REGISTRIES_OF_MODEL,
    "optimizer": optimizers,
    "lr_schedule": schedules,
}
# Files that run while a run is observed, or that only check and compare. Fields read in other files have an effect.
OBSERVED_FILES = {
    "optimizers.py",
    "library.py",
    "library_optimizers.py",
    "metrics.py",
    "schedules.py",
    "problems.py",
    "plan.py",
    "observe.py",
    "estimate.py",
    "earlier_runs.py",
}


class Unused(NamedTuple):
    """A field without effect on a run."""

    setting: str  # "momentum=0.5"
    reason: str  # "optimizer='sgd' or optimizer='muon' would use it", or ""

    def __str__(self) -> str:
        return f"{self.setting} has no effect: {self.reason}"


def unused_fields(model: ModelParams, train: TrainParams, also: Collection[str] = ()) -> list[Unused]:
    """Return the fields that are set, or are in `also`, and that nothing in the run reads.

    Return none for a model that cannot run on the meta device.
    """
    reads = reads_of(model, train, also)
    if reads is None:
        return []
    elsewhere, found = names_read_elsewhere(), []
    for params in (model, train):
        for name, value in unread(params, reads | (elsewhere if params is train else set()), also).items():
            users = users_of(name, model, train, also)
            if users or name not in elsewhere:
                found.append(Unused(f"{name}={value!r}", reason_unused(users, model)))
    return found


def reason_unused(users: list[str], model: ModelParams) -> str:
    """Return why a field has no effect. `users` are choices with which it would; the layer kind is named if it is one."""
    nobody = "nothing in this run uses it"
    if any(user.startswith("layer_architecture=") for user in users):
        nobody = f"no layer uses it with layer_architecture={model.layer_architecture!r}"
    return f"{nobody}; {' or '.join(users)} would" if users else nobody


# The fields that a run with this signature reads.
reads_by_signature: dict[tuple[object, ...], frozenset[str] | None] = {}


def reads_of(model: ModelParams, train: TrainParams, also: Collection[str]) -> frozenset[str] | None:
    """Return the names of fields that a model, its losses, optimizer and schedule read; None if they cannot run."""
    key = signature(model), signature(train), frozenset(also)
    if key not in reads_by_signature:
        reads_by_signature[key] = run_once(model, train, also)
    return reads_by_signature[key]


def signature(params: ModelParams | TrainParams) -> tuple[object, ...]:
    """Return a key that is equal for params that run the same code.

    It consists of names and switches. Of a number it only says whether it is 0 and whether it is at its default.
    """
    values = [(getattr(params, field.name), field.default) for field in fields(params)]
    is_number = [isinstance(value, int | float) and not isinstance(value, bool) for value, _ in values]
    return tuple(
        (value == default, bool(value)) if number else value
        for (value, default), number in zip(values, is_number, strict=True)
    )


def run_once(model: ModelParams, train: TrainParams, also: Collection[str]) -> frozenset[str] | None:
    """Run model, losses and schedule once. Make the optimizer only if fields are still unread.

    The first optimizer of a process takes seconds to import.
    """
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
    """Replace meta parameters by zeros that take no memory, as fused optimizers refuse them. Tied ones stay tied."""
    twins: dict[int, nn.Parameter] = {}
    for module in lm.modules():
        for name, old in module.named_parameters(recurse=False, remove_duplicate=False):
            zeros = torch.zeros((), dtype=old.dtype).expand(old.shape)
            setattr(module, name, twins.setdefault(id(old), nn.Parameter(zeros, old.requires_grad)))


def read_schedule(train: TrainParams) -> None:
    """Evaluate the schedule at the first and the last steps of a run, with and without validations that do not improve."""
    warmup = train.warmup_steps
    n_steps = warmup + N_STEPS if isinstance(warmup, int) else math.ceil(N_STEPS / (1 - warmup)) + 1
    schedule = Schedule(train, n_steps)
    steps = [0, *range(n_steps - N_STEPS, n_steps)]
    shares = [schedule(step) for step in steps]
    schedule.reductions = 1
    if [schedule(step) for step in steps] != shares:  # it depends on validations
        schedule.add_val_loss(1.0)
        schedule.add_val_loss(1.0)


known_users: dict[tuple[object, ...], list[str]] = {}  # cached results of users_of


def users_of(name: str, model: ModelParams, train: TrainParams, also: Collection[str]) -> list[str]:
    """Return other choices, such as "optimizer='sgd'", with which this run would read the field."""
    key = name, signature(model), signature(train), frozenset(also)
    if key not in known_users:
        known_users[key] = find_users(name, model, train, also)
    return known_users[key]


def find_users(name: str, model: ModelParams, train: TrainParams, also: Collection[str]) -> list[str]:
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


def alternatives(params: ModelParams | TrainParams) -> Iterator[tuple[str, Any]]:
    """Yield (field, other value) for every field with a fixed set of values: registered names and literals."""
    for field in fields(params):
        values = ALL_REGISTRIES.get(field.name) or literals(field.type)
        for value in values.loaded() if isinstance(values, Registry) else values:
            if value != getattr(params, field.name):
                yield field.name, value


def literals(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def observed_spec(model: ModelParams, reads: set[str]) -> TokenizerSpec:
    """Return the tokenizer's spec of a run. Reading e.g. `vocab_size` adds `tokenizer_vocab_size` to `reads`."""

    def __getattribute__(self: TokenizerSpec, name: str) -> object:
        if name in TokenizerSpec._fields and is_use(sys._getframe(1)):
            reads.add(field_of_spec(name))
        return tuple.__getattribute__(self, name)

    # Keep the class name: it is part of the repr, and so of the cache's keys.
    kind = type(TokenizerSpec.__name__, (TokenizerSpec,), {"__getattribute__": __getattribute__})
    return cast(TokenizerSpec, kind(*tokenizer_spec(model)))


@cache
def field_of_spec(name: str) -> str:
    """Return the field of ModelParams that gives a TokenizerSpec its field `name`."""
    return next(field.name for field in fields(ModelParams) if field.name.startswith(f"tokenizer_{name}"))


def unused_data_fields(
    params: Params, reads: Collection[str] | None, also: Collection[str] = ()
) -> list[Unused]:
    """Return the fields of the data and its tokenizer that are set, or are in `also`, and that nothing reads.

    `reads` are the names that were read while the data was made. None means unknown; then no field is returned.
    """
    if reads is None:
        return []
    data, train, model = params
    found = unread(data, {*reads, *names_read_elsewhere("train")}, also)
    if model.from_saved is None:  # else the tokenizer is that of the saved run
        of_model = unread(model, {*reads, *(reads_of(model, train, also) or ())}, also)
        of_tokenizer = {field_of_spec(name) for name in TokenizerSpec._fields}
        found |= {name: value for name, value in of_model.items() if name in of_tokenizer}
    return [Unused(f"{name}={value!r}", data_reason(name, params)) for name, value in found.items()]


def data_reason(name: str, params: Params) -> str:
    source = params.model.tokenizer_source_name
    if name.startswith("tokenizer_") and params.data.label not in tasks:
        return f"tokenizer_source_name={source!r} does not use it"
    return f"dataset_name={params.data.dataset_name!r} does not use it"


@cache
def names_read_elsewhere(*packages: str) -> frozenset[str]:
    """Return the attribute names read by code that takes part in a run, but is not run to observe it.

    This is the code of main.py and of `packages`, by default train and data. The object of an attribute is not known.
    So a name counts unless the object surely is no params object.
    """
    folders = [REPOSITORY / package for package in packages or ("train", "data")]
    files = [REPOSITORY / "main.py", *(file for folder in folders for file in folder.rglob("*.py"))]
    files = [file for file in files if file.name not in OBSERVED_FILES]
    found = frozenset(name for file in files for name in names_read_in(ast.parse(file.read_bytes())))
    return found.union(names_read_by_members(DataParams), names_read_by_members(TrainParams))


def names_read_by_members(kind: type) -> Iterator[str]:
    """Yield the names in the code of a params class's properties and methods, except in its checks."""
    checks = vars(kind)["__post_init__"].__code__.co_names if "__post_init__" in vars(kind) else ()
    for name, member in vars(kind).items():
        code = getattr(getattr(member, "fget", member), "__code__", None)
        if code is not None and not name.startswith("__") and name not in checks:
            yield from code.co_names


def names_read_in(tree: ast.Module) -> Iterator[str]:
    """Yield the attributes that a file reads, except called methods and attributes of objects that cannot be params."""
    nodes = list(ast.walk(tree))
    skipped = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    modules = {alias.asname or alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    skipped |= attributes_of({"self", *modules}, nodes)
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            skipped |= attributes_of(names_of_others(node), list(ast.walk(node)))
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in skipped:
            yield node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1:
            yield str(getattr(node.args[1], "value", ""))


def attributes_of(names: Collection[str], nodes: list[ast.AST]) -> set[int]:
    """Return the ids of the nodes that are `name.attribute` with one of these names."""
    attributes = (node for node in nodes if isinstance(node, ast.Attribute))
    return {id(node) for node in attributes if isinstance(node.value, ast.Name) and node.value.id in names}


def names_of_others(function: ast.FunctionDef) -> set[str]:
    """Return the arguments that are never reassigned and whose annotation is not a params class."""
    arguments = [node for node in ast.walk(function) if isinstance(node, ast.arg)]
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    kept = {a.arg for a in arguments if a.annotation and not may_be_params(ast.unparse(a.annotation))}
    kept -= {a.arg for a in arguments if a.annotation is None or may_be_params(ast.unparse(a.annotation))}
    return kept - {name.id for name in names if isinstance(name.ctx, ast.Store)}


def may_be_params(annotation: str) -> bool:
    return "Params" in annotation or annotation.strip("\"'") in {"Any", "object"}
