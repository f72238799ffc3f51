"""A tuple for a field gives each layer its own value, in the model and in everything that reads the params."""

import json
import re
from dataclasses import asdict, fields, replace
from math import lcm

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from model.hf.configs import config_settings
from model.lm import LM, n_params
from model.model_params import ModelParams
from model.observe import run_observed, turns_read_outside
from model.problems import model_problems
from model.shapes import base_shapes, build_on_meta, size_of
from tests.model.tiny import CharTokenizer, perturbed_lm, random_ids, tiny_lm, tiny_params
from train.flops import row_flops
from train.launch.match import params_without_embeddings, solve
from train.saving.run_folder import as_tuples


@dataclass(frozen=True, config=ModelParams.__pydantic_config__)
class OwnParams(ModelParams):
    """ModelParams with fields that a user adds."""

    slope: float = 1.0
    shape: tuple[int, ...] = ()  # a tuple is one value


VALUES = {
    "slope": st.floats(0, 2),
    "sliding_window": st.none() | st.integers(1, 5),
    "dim_ff": st.none() | st.integers(0, 9),
    "n_heads": st.sampled_from([1, 2, 4]),
    "positions": st.sampled_from(["rotary", "none"]),
    "gated": st.booleans(),
}
TURNS = st.fixed_dictionaries(
    {}, optional={name: st.lists(of, min_size=1, max_size=4).map(tuple) for name, of in VALUES.items()}
)


@settings(deadline=None, max_examples=60)
@given(TURNS, st.integers(0, 9))
def test_each_layer_has_the_params_of_a_model_with_its_values_alone(turns, n_layers):
    params = OwnParams(dim=16, n_layers=n_layers, shape=(1, 2), **turns)
    for i in range(10):
        alone = {name: values[i % len(values)] for name, values in turns.items()}
        assert params.at(i) == OwnParams(dim=16, n_layers=n_layers, shape=(1, 2), **alone)
        assert not params.at(i).turns
        assert (params.at(i).layer_index, params.at(i).depth, params.at(i, 7).depth) == (i, n_layers, 7)
    assert all(params.at(i) == params.at(i + params.period) for i in range(5))
    assert params.period <= lcm(*map(len, turns.values()))
    assert replace(params) == params == OwnParams(**as_tuples(json.loads(json.dumps(asdict(params)))))


def test_values_that_repeat_are_written_as_short_as_they_can_be():
    assert tiny_params(sliding_window=(4, None, 4, None)) == tiny_params(sliding_window=(4, None))
    assert tiny_params(gated=(True, True)) == tiny_params(gated=True)
    assert tiny_params(sliding_window=(4, None, 4)).sliding_window == (4, None, 4)
    assert tiny_params(rotary_base=(1, 1.0)).rotary_base == 1.0


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ({"sliding_window": (4, 4, 0)}, "layer 2: Input should be greater than 0"),
        ({"activation": ("relu", 1)}, "layer 1: Input should be a valid string"),
        ({"n_kv_heads": (2, 3), "n_heads": 4}, "layer 1: n_kv_heads=3 must divide n_heads=4"),
        ({"n_kv_heads": (2, 1, 1), "n_heads": (2, 3), "n_layers": 6}, "layer 1: n_heads=3 must divide dim=16"),
        ({"n_kv_heads": (2, 2, 1), "n_heads": (2, 1), "n_layers": 4}, "layer 1: n_kv_heads=2 must divide n_heads=1"),
        ({"positions": ("none", "rotary"), "head_dim": 3}, "layer 1: positions='rotary' rotates pairs"),
        ({"gated": (True, False), "dim": -1}, "  Input should be greater than 0"),  # it is that of no layer
    ],
)  # fmt: skip
def test_an_error_names_the_layer(turns, message):
    with pytest.raises(ValidationError) as error:
        tiny_params(**turns)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"activation": ("relu", "gleu")},
            "activation=('relu', 'gleu'): 'gleu' does not exist; did you mean",
        ),
        (
            {"layer_architecture": ("custom-transformer", "torch-transformer"), "sliding_window": (None, 4)},
            "layer 1: sliding_window=4 does not work with layer_architecture='torch-transformer'",
        ),
        (
            {"layer_architecture": ("custom-transformer", "gated-conv"), "positions": ("none", "rotary")},
            "layer 1: positions='rotary' needs attention, but layer_architecture='gated-conv' has none",
        ),
        ({"positions": ("rotary", "learned")}, "'learned' is added to the embeddings, before all layers"),
        ({"activation": ("relu", "silu"), "readout_transform": True}, "has one activation"),
    ],
)
def test_checks_look_at_every_layer(fields, message):
    params = tiny_params(**fields)
    [problem] = model_problems(params)
    assert message in problem
    with pytest.raises(ValueError, match=re.escape(message)):
        LM(params, CharTokenizer())
    allowed = {"layer_architecture": ("torch-transformer", "custom-transformer"), "sliding_window": (None, 4)}
    assert not list(model_problems(tiny_params(**allowed)))


@pytest.mark.parametrize("name", sorted(ModelParams.of_whole_model))
def test_fields_of_the_whole_model_refuse_tuples(name):
    value = getattr(ModelParams, name)
    with pytest.raises(ValidationError) as error:
        tiny_params(**{name: (value, value)})
    assert [one["loc"] for one in error.value.errors()] == [(name,)]


READ_IN_LAYERS_OR_BY_TRAINING = {
    "predict_weight",
    "value_residual",  # all layers mix values with those of the first
    "mup_base_heads",
    "mup_base_layers",
    "residual_trainable",
    "lora_rank",
    "from_pretrained",
    "from_saved",
    "tokenizer_source_name",
    "tokenizer_vocab_size",
    "tokenizer_crop",
}


def test_fields_that_may_differ_are_not_read_outside_the_layers_and_all_others_are():
    outside: dict[str, str] = {}
    masked = {"objective": "masked", "causal": False, "positions": "sin", "query_zero_init": True}
    post = {"norm_position": "post", "residual": "admin", "embedding_norm": True, "readout_transform": True}
    for chosen in ({}, masked, post, {"parametrization": "mup", "mup_base_dim": 8}):
        assert run_observed(tiny_params(**chosen), set(), outside=outside) is not None
    assert outside.keys() - {"activation"} == ModelParams.of_whole_model - READ_IN_LAYERS_OR_BY_TRAINING


def test_a_field_that_code_outside_the_layers_reads_cannot_differ(monkeypatch):
    params = tiny_params(conv_width=(2, 3), layer_architecture="gated-conv")
    assert not list(turns_read_outside(params))
    forward = LM.forward
    monkeypatch.setattr(LM, "forward", lambda lm, x: forward(lm, x) * lm.model_params.conv_width[0])
    [problem] = turns_read_outside(params)
    assert "conv_width=(2, 3) differs by layer, but code outside the layers reads it (tests/model/" in problem


def test_layers_of_a_mixed_model_compute_what_they_do_in_a_model_of_their_own():
    turns = {
        "sliding_window": (3, None),
        "positions": ("rotary", "rotary", "alibi"),
        "dim_ff": (20, 0, 12),
        "n_kv_heads": (1, 2, 4),
        "n_heads": (2, 4, 4),
        "head_dim": (6, None),
        "activation": ("relu", "silu"),
    }
    lm = tiny_lm(n_layers=7, norm_position="none", **turns)
    with lm.record("resid_pre", "resid_post") as seen:
        lm(random_ids(2, 9))
    for i, layer in enumerate(lm.decoder.layers):
        alone = perturbed_lm(lm.model_params.at(i, 7)).decoder.layers[0]
        alone.load_state_dict(layer.state_dict())
        with torch.no_grad():
            lm.decoder.layers[0] = alone
            with (
                lm.record("layers.0.resid_post") as again,
                lm.patch({"layers.0.resid_pre": seen[f"layers.{i}.resid_pre"]}),
            ):
                lm(random_ids(2, 9))
        assert torch.equal(again["layers.0.resid_post"], seen[f"layers.{i}.resid_post"])
    with pytest.raises(ValueError, match="'pattern' differs in shape between layers"):
        lm("abc", get_attns=True)


MIXED = {"dim_ff": (20, 8, 12), "n_kv_heads": (1, 2), "gated": (True, False)}


def test_sizes_and_flops_count_each_layer():
    for n_layers in (5, 140):
        params = tiny_params(n_layers=n_layers, **MIXED)
        assert size_of(params, 30).n_params == n_params(build_on_meta(params, 30))
    params = tiny_params(n_layers=6, **MIXED)
    alone = [row_flops(replace(params.at(i), n_layers=1), 30, 8) for i in range(6)]
    none = row_flops(replace(params, n_layers=0), 30, 8)
    assert row_flops(params, 30, 8) == sum(alone) - 5 * none
    of_layers = [params_without_embeddings(replace(params.at(i), n_layers=1), 30) for i in range(6)]
    assert params_without_embeddings(params, 30) == sum(of_layers) - 5 * 2 * 16  # the final norm counts once


def test_match_keeps_the_widths_of_layers_and_solves_dim():
    params = tiny_params(dim=64, n_layers=6, n_heads=(2, 3, 4), head_dim=16, **(MIXED | {"n_kv_heads": 1}))
    target = 1.5 * params_without_embeddings(params, 30)
    solved = solve(params, target, lambda model: params_without_embeddings(model, 30))
    assert replace(solved, dim=64) == params
    assert params_without_embeddings(solved, 30) == pytest.approx(target, rel=0.02)


def test_base_shapes_are_those_of_a_smaller_model():
    small = tiny_params(dim=16, n_heads=(2, 4), dim_ff=(16, None), head_dim=8)
    mup = {"parametrization": "mup", "mup_base_dim": 16}
    large = replace(small, dim=64, n_heads=(8, 16), dim_ff=(64, None))
    with pytest.raises(
        ValueError, match="head_dim=8 with parametrization='mup' needs n_heads=8 to grow with dim=64"
    ):
        LM(replace(large, **mup), CharTokenizer())
    large = replace(large, n_heads=(8, 8), **mup, mup_base_heads=2)
    shapes = {name: p.shape for name, p in LM(replace(small, n_heads=2), CharTokenizer()).named_parameters()}
    for name, shape in base_shapes(LM(large, CharTokenizer())).items():
        assert all(n is None or n == m for n, m in zip(shape, shapes[name], strict=True)), name


def test_no_family_of_transformers_takes_layers_that_differ():
    with pytest.raises(ValueError, match=r"gpt2, the nearest, does not support n_kv_heads=\(1, 2\)"):
        config_settings(tiny_params(n_kv_heads=(1, 2)))


def test_every_field_of_a_list_below_is_a_field():
    assert {field.name for field in fields(ModelParams)} >= ModelParams.of_whole_model
