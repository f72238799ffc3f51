"""From params to the data and the size of a run: what the harness and the explorer both need."""

import math
from pathlib import Path
from types import SimpleNamespace

import torch

from data.data_params import DataParams
from data.dataloader import LMDataModule
from data.tokenizer import Tokenizer, TokenizerSpec
from model.lm import LM
from model.model_params import ModelParams
from train.train_params import TrainParams


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


def parameter_shapes(model: ModelParams, n_tokens: int) -> dict[str, torch.Size]:
    """Names and shapes of a model's parameters, without allocating them where its code allows that."""
    tokenizer = SimpleNamespace(n_tokens=n_tokens)
    try:
        with torch.device("meta"):
            lm = LM(model, tokenizer)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"dim={model.dim} and n_layers={model.n_layers} cannot be built: {reason}"
            ) from error
        lm = LM(model, tokenizer)  # an edit that computes with numbers while the model is built
    return {name: parameter.shape for name, parameter in lm.named_parameters()}
