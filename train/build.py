"""From params to the data and the size of a run: what the harness and the explorer both need."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from data.data_params import DataParams
from data.dataloader import LMDataModule
from data.tokenizer import Tokenizer, TokenizerSpec
from model.lm import LM
from model.model_params import ModelParams
from train.train_params import TrainParams

RANDOM = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}


def tokenizer_spec(model: ModelParams) -> TokenizerSpec:
    return TokenizerSpec(model.tokenizer_source_name, model.tokenizer_vocab_size, model.tokenizer_crop)


def make_data(
    data: DataParams,
    model: ModelParams,
    cache: Path,
    *,
    data_workers: int = 0,
    tokenizer: Tokenizer | None = None,
) -> LMDataModule:
    """The data of a run; with its saved `tokenizer`, if there is one."""
    spec = tokenizer_spec(model)
    return LMDataModule(
        data, spec, model.max_seq_len, cache=cache, data_workers=data_workers, tokenizer=tokenizer
    )


def count_steps(train: TrainParams, n_rows: int) -> int:
    """Optimiser steps of a run over `n_rows` training rows an epoch."""
    rows_per_step = train.batch_size * train.accumulate_grad_batches * train.devices
    steps_per_epoch = math.ceil(n_rows / rows_per_step)  # the last may be a small one
    epochs, rest = divmod(train.early_stop_nsamples or train.epochs * n_rows, n_rows)
    n_steps = epochs * steps_per_epoch + math.ceil(rest / rows_per_step)
    return min(n_steps, train.epochs * steps_per_epoch)


class WithoutInit(TorchFunctionMode):
    """Inside, no random numbers are drawn into tensors: where there is no memory, to do so only takes time."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensor: Any = args[0] if args else kwargs.get("tensor")
        return tensor if function in RANDOM and tensor.is_meta else function(*args, **kwargs)


def parameter_shapes(model: ModelParams, n_tokens: int) -> dict[str, torch.Size]:
    """Names and shapes of a model's parameters, without allocating them where its code allows that."""
    tokenizer = SimpleNamespace(n_tokens=n_tokens)
    try:
        with torch.device("meta"), WithoutInit():
            lm = LM(model, tokenizer)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"dim={model.dim} and n_layers={model.n_layers} cannot be built: {reason}"
            ) from error
        lm = LM(model, tokenizer)  # an edit that computes with numbers while the model is built
    return {name: parameter.shape for name, parameter in lm.named_parameters()}
