"""Floating point operations: the number that training takes, and the peak rate of this machine.

Shape suffixes:  B row  T position
"""

import math
import time
from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data.batch import mycollate
from model.inputs import Tokenizer
from model.lm import LM
from model.model_params import ModelParams
from model.shapes import build_on_meta
from model.transformer.grouped import flops_of_product
from train.optimizers import freeze
from train.train_params import TrainParams

SHORT_ROWS = (2, 4, 6)  # row lengths that are counted where longer rows would take too long
MIN_MATRIX, MAX_MATRIX = 256, 8192  # sizes of the matrices whose product is timed
MIN_PRODUCT_SECONDS = 0.02  # a product that takes this long is large enough
MAX_TIMING_SECONDS = 0.1  # for all products but the last one
DTYPES = {"64-true": torch.float64, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def solve_flops(matrix_shape: torch.Size, right_shape: torch.Size, *args: object, **kwargs: object) -> int:
    """Return the operations that solve triangular equations: 2 for each multiply-add, as in torch's own counts."""
    return math.prod(matrix_shape) * right_shape[-1]


UNCOUNTED = {  # operations that torch does not count
    torch.ops.aten.linalg_solve_triangular: solve_flops,
    torch.ops.whatif.grouped_product: flops_of_product,
    torch.ops.whatif.grouped_outer: flops_of_product,
}


def flops_per_row(lm: LM, n_tokens: int, train: TrainParams | None = None) -> int | None:
    """Return the operations of a training step on one row of `n_tokens` predicted tokens, or None if unknown.

    All losses count, including those that layers and edits of `get_losses` add; `train` is passed to `get_losses`.
    Matrix products, convolutions and fused attention count, 2 for each multiply-add. Elementwise operations do not.
    """
    trained = tuple(parameter.requires_grad for parameter in lm.parameters())
    count = partial(count_operations, lm.model_params, train, lm.n_tokens, trained)
    try:
        if not any(isinstance(module, nn.RNNBase) for module in lm.modules()):
            return count(n_tokens)
        # Recurrent layers are counted token by token, which takes long. The counts are quadratic in T.
        parabola = np.polyfit(SHORT_ROWS, [count(n) for n in SHORT_ROWS], deg=2)
        return round(float(np.polyval(parabola, n_tokens)))
    except Exception:  # a user's edit may need the numbers that meta tensors lack
        return None


@cache
def row_flops(model: ModelParams, n_tokens: int, length: int, train: TrainParams | None = None) -> int | None:
    """Return `flops_per_row` for a model that need not be built. `n_tokens` is the size of its vocabulary."""
    lm = build_on_meta(model, n_tokens)
    if train is not None:
        freeze(lm, train)
    return flops_per_row(lm, length, train)


@lru_cache
def count_operations(
    model: ModelParams, train: TrainParams | None, n_tokens: int, trained: tuple[bool, ...], length: int
) -> int:
    """Count the operations of a forward and a backward pass over one row, on a meta-device copy of the model."""
    tokenizer = SimpleNamespace(n_tokens=n_tokens, pad=0, bos=0, eos=0, mask=0)
    with torch.device("meta"):
        lm = LM(model, cast(Tokenizer, tokenizer)).train()
    is_masked = model.objective == "masked"  # else the last token of a row is predicted and not shown
    batch = mycollate([[0] * (length if is_masked else length + 1)])
    for parameter, is_trained in zip(lm.parameters(), trained, strict=True):
        parameter.requires_grad_(is_trained)
    with (
        torch.random.fork_rng(devices=[]),
        FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter,
        torch.enable_grad(),
    ):
        losses, _ = lm.get_losses(batch, train)
        cast(Tensor, sum(losses.values())).backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device, precision: str) -> float:
    """Return the operations per second of a large matrix product, measured once per device, precision and threads."""
    return measured_peak(device, DTYPES.get(precision, torch.float32), torch.get_num_threads())


@lru_cache
def measured_peak(device: torch.device, dtype: torch.dtype, n_threads: int) -> float:
    """Return the best rate of matrix products that grow until one takes long enough to be timed well."""
    best, size, spent = 0.0, MIN_MATRIX, 0.0
    seconds_of_product(torch.ones(size, size, device=device, dtype=dtype))  # set-up is not timed
    while spent < MAX_TIMING_SECONDS:
        seconds = seconds_of_product(torch.ones(size, size, device=device, dtype=dtype))
        best, spent = max(best, 2 * size**3 / seconds), spent + seconds
        if seconds < MIN_PRODUCT_SECONDS and size < MAX_MATRIX:
            size *= 2
    return best


def seconds_of_product(matrix: Tensor) -> float:
    wait_for(matrix.device)
    started = time.perf_counter()
    matrix @ matrix
    wait_for(matrix.device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
