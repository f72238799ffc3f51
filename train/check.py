"""What can be known to be wrong with a grid before anything is built."""

import shutil
from collections.abc import Iterator

import torch

from data.check import check_data
from model.check import check_model
from model.model_params import ModelParams
from train.build import parameter_shapes, tokenizer_spec
from train.grid import Place, Run, did_you_mean
from train.optimizers import frozen_names, optimizers
from train.schedules import schedules
from train.train_params import TrainParams


def problems(runs: list[Run]) -> Iterator[tuple[str, dict[str, Place]]]:
    """What the parts of whatif have against these params, before anything is built: (message, places of its fields)."""
    seen = set()
    for run in runs:
        data, train, model = run.params
        checks = (
            (check_model, model),
            (check_data, data, tokenizer_spec(model), model.max_seq_len),
            (check_train, train, model),
        )
        for check, *arguments in checks:
            if (key := repr((check, arguments))) not in seen:
                seen.add(key)
                try:
                    check(*arguments)
                except ValueError as error:
                    yield str(error), run.places


def check_train(train: TrainParams, model: ModelParams) -> None:
    """ValueError for what this machine or this model cannot do."""
    if train.lr_schedule not in schedules:
        raise ValueError(
            f"lr_schedule={train.lr_schedule!r} is not registered; {did_you_mean(train.lr_schedule, schedules)}"
        )
    if train.optimizer not in optimizers:
        raise ValueError(
            f"optimizer={train.optimizer!r} is not registered; {did_you_mean(train.optimizer, optimizers)}"
        )
    if train.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise ValueError(
            "compile=True needs a C++ compiler (g++ or clang++), and none is on this machine's path"
        )
    if train.precision == "16-mixed" and not torch.cuda.is_available():
        raise ValueError("precision='16-mixed' needs a GPU; on a CPU use '32-true' or 'bf16-mixed'")
    if torch.cuda.is_available() and train.devices > torch.cuda.device_count():
        raise ValueError(f"devices={train.devices}, but this machine has {torch.cuda.device_count()} GPUs")
    if train.freeze:
        frozen_names(parameter_shapes(model, n_tokens=2), train.freeze)
