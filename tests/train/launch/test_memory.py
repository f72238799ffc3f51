"""The memory that --dry-run estimates: weights, gradients, optimizer and activations, and the batches that fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from data.data_params import DataParams
from model.context import Layer, layer_kinds
from model.lm import LM
from tests.model.tiny import CharTokenizer, batch_of, random_ids, tiny_params
from train.grid.params import Params
from train.grid.run import DataFacts, Run
from train.launch.growth import growth
from train.launch.memory import (
    KEPT_SHARE,
    Memory,
    fitting_batches,
    measured_step,
    memory_of_step,
    spread_over_devices,
    with_kept,
)
from train.optimizers import make_optimizer
from train.train_params import TrainParams

V = 30
MODEL = tiny_params(n_layers=3, dim=32)
TRAIN = TrainParams(batch_size=4)


def real_step(train: TrainParams) -> tuple[int, int, int]:
    """Return the bytes of weights, optimizer state and tensors kept for the backward pass, of a step with numbers."""
    lm, kept = LM(MODEL, CharTokenizer(V)).train(), {}
    lm.decoder.recompute = train.recompute == "layer"
    weights = {p.untyped_storage().data_ptr() for p in lm.parameters()}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        losses, _ = lm.get_losses(batch_of(random_ids(train.batch_size, 17)), train)
    losses["main"].backward()
    optimizer = make_optimizer(lm, train)
    optimizer.step()
    state = [x for of_one in optimizer.state.values() for x in of_one.values() if isinstance(x, torch.Tensor)]
    stored = sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)
    return sum(p.nbytes for p in lm.parameters()), sum(x.nbytes for x in state), stored


@pytest.mark.parametrize("fields", [{}, {"optimizer": "muon"}])
def test_weights_gradients_and_optimizer_state_are_those_of_a_real_step(fields):
    train = replace(TRAIN, **fields)
    weights, state, _ = real_step(train)
    found = memory_of_step(MODEL, train, V)
    assert (found.weights, found.gradients, found.optimizer) == (weights, weights, state)


def test_activations_are_those_that_autograd_keeps_and_little_more():
    train = replace(TRAIN, batch_size=16)
    _, _, stored = real_step(train)
    assert stored <= memory_of_step(MODEL, train, V).activations <= 1.15 * stored


@pytest.mark.slow
@pytest.mark.ci
def test_recomputation_and_half_precision_need_less():
    train = replace(TRAIN, batch_size=64)
    plain, recomputed, half = (
        memory_of_step(MODEL, replace(train, **fields), V).activations
        for fields in ({}, {"recompute": "layer"}, {"precision": "bf16-mixed"})
    )
    assert recomputed < plain / 2, "one layer of three at a time"
    assert half < 0.9 * plain


@pytest.mark.slow
@pytest.mark.ci
def test_layers_that_repeat_need_not_all_be_run():
    found = memory_of_step(MODEL, TRAIN, V)
    whole = spread_over_devices(measured_step(MODEL, TRAIN, V, "cpu"), MODEL, TRAIN, "cpu")
    assert found == pytest.approx(whole, rel=0.01)


def test_only_what_trains_has_gradients_and_state():
    whole = memory_of_step(MODEL, TRAIN, V)
    frozen = memory_of_step(MODEL, replace(TRAIN, freeze=("decoder.*",)), V)
    assert frozen.weights == whole.weights
    assert frozen.gradients < 0.1 * whole.gradients
    assert frozen.optimizer < 0.1 * whole.optimizer


def test_code_that_needs_numbers_has_an_unknown_memory(monkeypatch):
    class Reading(Layer):
        def __init__(self, model_params, dropout):
            super().__init__()

        def forward(self, x_BTD, ctx):
            return x_BTD * float(x_BTD.sum().detach())

    monkeypatch.setitem(layer_kinds, "reading", Reading)
    assert memory_of_step(tiny_params(layer_architecture="reading"), TRAIN, V) is None


@pytest.mark.slow
@pytest.mark.ci
def test_the_largest_batch_that_fits():
    train = replace(TRAIN, batch_size=60, accumulate_grad_batches=2)
    run = Run(Params(DataParams(), train, MODEL), {}, "trial", data=DataFacts(n_tokens=V))

    def needed(size):
        return memory_of_step(MODEL, replace(train, batch_size=size), V).total

    found = fitting_batches(run, needed(37))
    assert 36 <= found.largest <= 37
    assert (found.batch_size, found.accumulate_grad_batches) == (30, 4)
    assert fitting_batches(run, 0.9 * needed(1)) is None


def test_the_growth_of_a_process_is_the_memory_that_it_touches():
    with growth() as measured:
        held = np.ones(50_000_000, np.uint8)
        del held
    assert measured.n_bytes == pytest.approx(50e6, rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the C library does not matter")
def test_what_the_c_library_keeps_is_that_of_the_nearest_run_that_was_measured():
    run = Run(Params(DataParams(), TRAIN, MODEL), {}, "trial")
    small, large = (Memory(1e8, 1e8, 2e8, activations) for activations in (2e8, 9e8))
    memories = [small, large._replace(activations=8e8), None, large]
    found = with_kept([run] * 4, memories, {0: int(7e8), 3: int(22e8)})
    assert [None if one is None else one.total for one in found] == pytest.approx([7e8, 20e8, None, 22e8])
    unmeasured, _ = with_kept([run] * 2, [small, Memory(1, 1, 2, 3)], {1: int(7e8)})
    assert unmeasured.kept == KEPT_SHARE * 2e8, "the growth of a tiny run says nothing"


def test_what_is_kept_leaves_room_for_smaller_batches():
    run = Run(Params(DataParams(), TRAIN, MODEL), {}, "trial", data=DataFacts(n_tokens=V))
    free = 4 * memory_of_step(MODEL, replace(TRAIN, batch_size=8), V).total
    assert fitting_batches(run, free, kept_share=3.0).largest < fitting_batches(run, free).largest
