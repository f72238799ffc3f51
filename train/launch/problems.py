"""Find errors in the params of a grid before anything is built."""

import functools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from common.text import OWN_NAME, did_you_mean, first_line
from data.eval_sets import eval_set_problems
from data.problems import data_problems
from model.context import layer_kinds
from model.inputs import stand_in_tokenizer
from model.lm import LM
from model.model_params import ModelParams
from model.observe import turns_read_outside
from model.problems import model_problems
from model.shapes import build_on_meta, parameter_shapes, roles_of, size_of, with_fewer_layers
from train.data import tokenizer_spec
from train.grid.expand import Place, Run
from train.grid.params import Texts
from train.metrics import Condition, metric_and_sign
from train.optimizers import (
    OF_LIBRARY,
    SCALED_AS_ADAM,
    by_role,
    freeze,
    frozen_names,
    is_of_library,
    make_groups,
    optimizer_problems,
    optimizers,
)
from train.pretrained import source_problems
from train.probe import recompute_flaw
from train.schedules import schedules
from train.sharding import FSDP
from train.train_params import TrainParams

LAYER_BYTES = 50_000  # of a layer's Python objects, besides its numbers; 65 kB were measured
MIN_DEVICES = 16  # processes allowed on any machine, however few cores it has


def grid_problems(runs: list[Run], root: Path) -> Iterator[tuple[str, dict[str, Place]]]:
    """Yield (message, places of the settings) for each error in the params of these runs, before anything is built.

    `root` is the folder of all outputs, which contains the saved runs.
    """
    seen: set[tuple[Any, ...]] = set()
    text = Texts()
    for run in runs:
        said: set[str] = set()
        data, train, model = run.params
        if missing := missing_course(model):
            yield missing, run.places
            continue
        spec, has_weights = tokenizer_spec(model), model.from_saved is not None
        checks: list[tuple[Any, ...]] = [
            (model_problems, model),
            (source_problems, model, root),
            (data_problems, data, spec, model.max_seq_len, has_weights),
            (eval_set_problems, data, model.max_seq_len),
            (train_problems, train),
            (turn_problems, model),
            (size_problems, model, bool(train.freeze), train.precision),
            (norm_problems, model),
            (freeze_problems, model, train.freeze),
            (group_problems, model, train),
            (role_problems, model, by_role(model, train)),  # muP
            (sharding_problems, train, by_role(model, train)),  # muP
            (reuse_problems, model, train.strategy),
            (recompute_problems, model, train.recompute, train.dropout),
        ]
        for check, first, *rest in checks:
            if (key := (check, text(first), *rest)) not in seen:
                seen.add(key)
                # Several checks report a model that cannot be built.
                new = [message for message in check(first, *rest) if message not in said]
                said.update(new)
                yield from ((message, run.places) for message in new)


def missing_course(model: ModelParams) -> str:
    """Return an error message for the layer of the courses where there are none, as in the wheel, else ""."""
    try:
        for kind in model.values_of("layer_architecture"):
            layer_kinds.get(kind)
    except ModuleNotFoundError as error:
        if not f"{error.name}".endswith("learn"):
            raise
        return f"layer_architecture={kind!r} is the layer that you build in the courses, which only a clone of the repository has"
    return ""


def train_problems(train: TrainParams) -> Iterator[str]:
    """Yield an error message for each setting that is not registered or that this machine does not support."""
    if train.lr_schedule not in schedules:
        hint = did_you_mean(train.lr_schedule, schedules, list_all=True)
        yield f"lr_schedule={train.lr_schedule!r} is not registered; {hint}{OWN_NAME}"
    yield from optimizer_problems(train)
    for name, check in (("stop_when", Condition), ("patience_metric", metric_and_sign)):
        try:
            if (text := getattr(train, name)) is not None:
                check(text)
        except ValueError as error:
            yield f"{name}={text!r}: {error}"
    if train.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        yield "compile=True needs a C++ compiler (g++ or clang++), but none is on the PATH: install one, or set compile=False"
    bare = TrainParams(precision=train.precision, strategy=train.strategy, devices=train.devices)
    if problem := hardware_problem(bare):
        yield problem


def turn_problems(model: ModelParams) -> Iterator[str]:
    """Yield an error message for a field that differs by layer, but that code outside the layers reads."""
    if not any(model_problems(model)):
        yield from turns_read_outside(model)


def size_problems(model: ModelParams, is_frozen: bool, precision: str) -> Iterator[str]:
    """Yield an error message for a model that cannot be built, or whose weights and gradients exceed the memory."""
    if any(model_problems(model)):
        return
    try:
        n_params, n_bytes, *_ = size_of(model, n_tokens=2)
    except ValueError as error:
        yield str(error)
        return
    n_bytes *= 2 if precision == "64-true" else 1
    needed = (1 if is_frozen or model.lora_rank else 2) * n_bytes + model.n_layers * LAYER_BYTES
    if needed > (there := memory_of_machine()):
        yield (
            f"dim={model.dim} and n_layers={model.n_layers} make {n_params:,} parameters, whose weights and gradients take "
            f"at least {in_gigabytes(needed)}: this machine has {in_gigabytes(there)}"
        )


def norm_problems(model: ModelParams) -> Iterator[str]:
    """Yield an error message for the first norm of vectors so short that it leaves at most the signs of their numbers."""
    if any(model_problems(model)):
        return
    try:
        lm = build_on_meta(with_fewer_layers(model), n_tokens=2)
    except ValueError:
        return  # `size_problems` reports it
    for name, module in lm.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            # A layernorm turns one number into 0 and two numbers into -1 and 1.
            least = 3 if isinstance(module, nn.LayerNorm) else 2
            if (width := math.prod(module.normalized_shape)) < least:
                yield (
                    f"dim={model.dim} and n_heads={model.n_heads!r}: the norm {name} has vectors of length {width}, of "
                    f"which it leaves at most the signs; it needs {least} or more: use a larger dim, head_dim or rank, or "
                    "fewer heads"
                )
                return


def memory_of_machine() -> int:
    """Return the bytes of memory for training: of all GPUs together, or without a GPU of the CPU."""
    gpus = range(torch.cuda.device_count())
    return (
        sum(torch.cuda.get_device_properties(i).total_memory for i in gpus) or psutil.virtual_memory().total
    )


def in_gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB"


def freeze_problems(model: ModelParams, freeze: tuple[str, ...]) -> Iterator[str]:
    """Yield an error message for a `freeze` pattern that matches no parameter."""
    # The checks build only some layers of a very deep model. Its patterns are matched when training starts.
    if with_fewer_layers(model) != model:
        return
    if (freeze or model.lora_rank) and not any(model_problems(model)):
        try:
            frozen_names(parameter_shapes(model, n_tokens=2), freeze, model.lora_rank)
        except ValueError as error:
            yield str(error)


def group_problems(model: ModelParams, train: TrainParams) -> Iterator[str]:
    """Yield an error message for an optimizer without rules of muP, and for a pattern of `param_groups` without effect."""
    if any(optimizer_problems(train)):
        return
    has_rule = not is_of_library(train.optimizer) or train.optimizer in SCALED_AS_ADAM  # muP
    if not has_rule and model.parametrization != "standard":  # muP
        rules = ", ".join(sorted({*optimizers} - OF_LIBRARY | SCALED_AS_ADAM))
        yield f"parametrization={model.parametrization!r} has no rule for optimizer={train.optimizer!r}; use one of: {rules}"
    if train.optimizer == "muon" and any(own.n_experts for own in model.each_layer()):
        yield (
            f"optimizer='muon' updates single matrices, but those of n_experts={model.n_experts!r} are stacked; use another "
            "optimizer"
        )
    asked = train.param_groups and with_fewer_layers(model) == model
    if asked and not any(model_problems(model)):
        try:
            lm = build_on_meta(model, n_tokens=2)
            freeze(lm, train)
            make_groups(lm, train)
        except ValueError as error:
            yield str(error)


def role_problems(model: ModelParams, asked: bool) -> Iterator[str]:  # muP
    """Yield an error message for a parameter without a muP role, if the optimizer needs roles."""
    if asked and not any(model_problems(model)):
        try:
            roles_of(build_on_meta(with_fewer_layers(model), n_tokens=2))
        except ValueError as error:
            yield str(error)


def sharding_problems(train: TrainParams, asks_roles: bool) -> Iterator[str]:  # muP
    """Yield an error message if strategy='fsdp' is combined with roles, which need the full shape of a parameter."""
    if train.strategy == FSDP and asks_roles:
        yield (
            "strategy='fsdp' supports neither muP nor optimizer='muon' nor factors such as lr_hidden_mult; "
            "use strategy='ddp'"
        )


def reuse_problems(model: ModelParams, strategy: str) -> Iterator[str]:
    """Yield an error message for strategy='fsdp' with weights that act in several places, as it gathers each layer once."""
    for name, value in (("n_loops", model.n_loops), ("share", model.share)):
        if strategy == FSDP and value not in (1, None):
            yield f"strategy='fsdp' does not support {name}={value!r}; use strategy='ddp'"


def recompute_problems(model: ModelParams, recompute: str, dropout: float) -> Iterator[str]:
    """Yield an error message for a model whose layers do not compute the same a second time."""
    if recompute == "none" or any(model_problems(model)):
        return
    try:
        lm = LM(with_fewer_layers(model), stand_in_tokenizer(8), dropout)
    except (ValueError, RuntimeError):
        return  # `size_problems` reports it
    if flaw := recompute_flaw(lm):
        yield (
            f"recompute={recompute!r} does not work with this model: {flaw.rstrip('.')}. A layer must compute the same when it runs a "
            "second time; use recompute='none'"
        )


@functools.cache
def hardware_problem(bare: TrainParams) -> str | None:
    """Return why this machine does not support the precision, strategy and devices of `bare` params, or None."""
    if bare.precision == "16-mixed" and not torch.cuda.is_available():
        return "precision='16-mixed' needs a GPU; on a CPU use '32-true' or 'bf16-mixed'"
    if not torch.cuda.is_available() and bare.devices > max(MIN_DEVICES, psutil.cpu_count() or 1):
        return f"devices={bare.devices} processes on a CPU, but this machine has {psutil.cpu_count()} cores"
    if torch.cuda.is_available() and bare.devices > torch.cuda.device_count():
        return f"devices={bare.devices}, but this machine has {torch.cuda.device_count()} GPUs"
    if bare.strategy == TrainParams.strategy and bare.devices == 1:
        return None
    try:
        from train.run import lightning_trainer  # imports Lightning, which is slow

        lightning_trainer(bare, n_steps=1, gpu_id=None)
    except Exception as error:  # Lightning raises many kinds
        reason = first_line(error)
        return f"strategy={bare.strategy!r} with devices={bare.devices} is not available: {reason}"
    return None
