"""The package pytorch_optimizer: its optimizers by name, and a trial that shows whether a run can use one."""

import io
import pickle
import random
from collections.abc import Callable
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from common.text import first_line
from train.train_params import TrainParams

# Settings of the library's optimizers, and our fields for them.
FIELD_OF_SETTING = {"lr": "lr", "betas": "betas", "eps": "adam_eps", "momentum": "momentum"}
TRIAL_STEPS = 12  # SOAP renews its basis after 10


def from_library(kind: str, groups: list[dict], params: TrainParams) -> Optimizer:
    """Return an optimizer of the library by the name of its class, in any case, with those of our settings that it has.

    Its weight decay is decoupled if the library offers that.
    """
    from pytorch_optimizer import load_optimizer

    make: Any = load_optimizer(kind)
    known = signature(make).parameters
    settings = {
        ours: getattr(params, field)
        for ours, field in FIELD_OF_SETTING.items()
        if ours in known and size_of_setting(known[ours].default) == size_of_setting(getattr(params, field))
    }
    decoupled = {name: True for name in known if name == "weight_decouple"}
    return make(groups, **settings, **decoupled)


def size_of_setting(value: object) -> int:
    """Return the number of numbers in a setting: some optimizers have more betas than two."""
    return len(value) if isinstance(value, tuple) else 1


def library_names() -> list[str]:
    """Return the names of all optimizers of the library: those of its classes, in lower case."""
    from pytorch_optimizer import get_supported_optimizers

    return get_supported_optimizers()


def by_name(name: str) -> Callable[[list[dict], TrainParams], Optimizer] | None:
    """Return the function that makes the library's optimizer `name`, or None if it has none."""
    return partial(from_library, name) if name in library_names() else None


@lru_cache
def trial_fault(params: TrainParams) -> str | None:
    """Return why the trainer cannot use the library's optimizer of these params, or None if it can.

    Steps on a small matrix and a vector show it: some optimizers need the model, a second gradient or more settings.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            return fault_of_steps(params)
    except pickle.UnpicklingError:
        return "its state is more than numbers and tensors, so a resumed run could not load it"
    except Exception as error:  # the library raises many kinds
        return first_line(error)
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def fault_of_steps(params: TrainParams) -> str | None:
    """Return what is wrong with the steps of an optimizer, or with those after its state was saved and loaded."""
    seed_generators(0)
    weights = small_weights()
    before = [weight.clone() for weight in weights]
    optimizer = trial_optimizer(weights, params)
    n_gradients = take_trial_steps(weights, optimizer)
    if n_gradients != TRIAL_STEPS:
        return f"it asks for {n_gradients} gradients in {TRIAL_STEPS} steps"
    if not all(weight.isfinite().all() for weight in weights):
        return "the weights do not stay finite"
    if any(map(torch.equal, weights, before)):
        return "it leaves weights as they are"
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [nn.Parameter(weight.detach().clone()) for weight in weights]
    resumed = trial_optimizer(others, params)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for group, rule in ((weights, optimizer), (others, resumed)):
        seed_generators(1)  # resume checkpoints hold their states
        take_trial_steps(group, rule)
    return None if all(map(torch.equal, weights, others)) else "a resumed run would go on otherwise"


def seed_generators(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- some optimizers draw from it


def small_weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(6, 4) / 2), nn.Parameter(torch.randn(6) / 2)]


def trial_optimizer(weights: list[nn.Parameter], params: TrainParams) -> Optimizer:
    matrix, vector = weights
    groups = [
        {"params": [matrix], "weight_decay": params.weight_decay, "name": "matrices"},
        {"params": [vector], "weight_decay": 0.0, "name": "others"},
    ]
    return from_library(params.optimizer, groups, params)


def take_trial_steps(weights: list[nn.Parameter], optimizer: Optimizer) -> int:
    """Take TRIAL_STEPS steps as Lightning does. Return how often the optimizer asked for gradients."""
    matrix, vector = weights
    asked = 0

    @torch.enable_grad()
    def closure() -> Any:
        nonlocal asked
        asked += 1
        optimizer.zero_grad()
        loss = ((torch.randn(16, 4) @ matrix.T + vector - 1) ** 2).mean()
        loss.backward()
        return loss

    for _ in range(TRIAL_STEPS):
        optimizer.step(closure)
    return asked
