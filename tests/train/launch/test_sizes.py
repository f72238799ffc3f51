"""Checks of very large models: answered at once and in little memory, in one sentence that gives the bytes."""

import time
from dataclasses import fields, replace

import pytest

from data.data_params import DataParams
from model.model_params import ModelParams
from model.shapes import parameter_shapes, size_of
from train.grid.expand import Run
from train.grid.params import Params
from train.launch.problems import MIN_DEVICES, grid_problems
from train.train_params import TrainParams

TINY = Params(
    DataParams(dataset_name="copy"), TrainParams(threads=1), ModelParams(dim=8, n_heads=1, n_layers=1)
)
MAX_SECONDS = 5.0


def found(params, tmp_path):
    return [message for message, _ in grid_problems([Run(params, {}, "x", None)], tmp_path)]


def with_value(field, value):
    """TINY with one field changed, whichever of its parts has it; None if the value is no valid one."""
    parts = [replace_or_none(part, field, value) if hasattr(part, field) else part for part in TINY]
    return None if None in parts else Params(*parts)


def replace_or_none(part, field, value):
    try:
        return replace(part, **{field: value})
    except ValueError:
        return None


FIELDS = [field.name for part in TINY for field in fields(part)]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("value", [10**6, 2**63])
@pytest.mark.parametrize("field", FIELDS)
def test_the_check_of_params_answers_for_numbers_of_any_size(tmp_path, field, value):
    params = with_value(field, value)
    if params is None:  # the class itself refuses it
        return
    start = time.perf_counter()
    messages = found(params, tmp_path)
    assert time.perf_counter() - start < MAX_SECONDS
    assert all("\n" not in message and len(message) < 500 for message in messages)


@pytest.mark.parametrize(
    ("fields_of_model", "told"),
    [
        ({"n_layers": 10**6}, "n_layers=1000000 make 872,001,056 parameters"),
        ({"n_layers": 10**9}, "GB: this machine has"),
        (
            {"dim": 10**6},
            "12,000,145,000,000 parameters, whose weights and gradients take at least 96,001.2 GB",
        ),
        ({"dim": 2**63}, "dim=9223372036854775808 and n_layers=1 cannot be built"),
        ({"dim_ff": 10**9}, "at least 136.0 GB"),
        ({"max_seq_len": 10**9}, "at least 64.0 GB"),
        ({"positions": "sin", "max_seq_len": 2**40}, "GB: this machine has"),
    ],
    ids=str,
)
def test_sizes_beyond_memory_are_reported_in_bytes(tmp_path, fields_of_model, told):
    [message] = found(TINY._replace(model=replace(TINY.model, **fields_of_model)), tmp_path)
    assert told in message


@pytest.mark.parametrize(
    ("fields_of_model", "width", "norm"),
    [
        ({"dim": 1}, 1, "decoder.layers.0.norm1.before"),
        ({"layer_architecture": "mla", "dim": 4}, 1, "decoder.layers.0.mixer.kv_norm"),
        ({"layer_architecture": "mla"}, 2, "decoder.layers.0.mixer.kv_norm"),
        (
            {"layer_architecture": "mla", "q_rank": 1, "norm": "rmsnorm"},
            1,
            "decoder.layers.0.mixer.queries.1",
        ),
        ({"qk_norm": True, "head_dim": (8, 1), "n_layers": 2}, 1, "decoder.layers.1.mixer.q_norm"),
        ({"layer_architecture": "deltanet", "n_heads": 4}, 2, "decoder.layers.0.mixer.norm"),
    ],
    ids=str,
)
def test_norms_that_leave_only_signs_are_refused(tmp_path, fields_of_model, width, norm):
    model = replace(TINY.model, **fields_of_model)
    [message] = found(TINY._replace(model=model), tmp_path)
    expected = f"={model.n_heads}: the norm {norm} has vectors of length {width}, of which it leaves at most the signs"
    assert expected in message


def test_norms_that_leave_more_are_not_refused(tmp_path):
    two_numbers = {"layer_architecture": ("mla", "deltanet"), "n_layers": 2, "n_heads": 4, "norm": "rmsnorm"}
    three_numbers = {"layer_architecture": ("mla", "deltanet"), "n_layers": 2, "n_heads": 4, "dim": 12}
    for fields_of_model in (two_numbers, three_numbers):
        assert found(TINY._replace(model=replace(TINY.model, **fields_of_model)), tmp_path) == []


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("kinds", ["custom-transformer", ("torch-gru", "custom-transformer", "gated-conv")])
@pytest.mark.parametrize("n_layers", [1, 127, 128, 129, 131, 200])
def test_layers_that_are_not_built_are_counted(kinds, n_layers):
    model = ModelParams(dim=8, n_heads=1, n_layers=n_layers, layer_architecture=kinds, positions="none")
    shapes = parameter_shapes(model, n_tokens=11)
    assert size_of(model, n_tokens=11).n_params == sum(shape.numel() for shape in shapes.values())


def test_a_machine_has_a_number_of_cores(tmp_path):
    params = TINY._replace(train=TrainParams(devices=MIN_DEVICES * 10**6))
    assert any("cores" in message for message in found(params, tmp_path))
