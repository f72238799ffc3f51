"""What is wrong with an architecture is known before it is built, and no field is silently without effect."""

import re
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings

from data.data_params import DataParams
from model.lm import LM
from model.model_params import ModelParams
from model.observe import ignored_fields
from model.problems import model_problems
from tests.model.tiny import KINDS, MIXERS, CharTokenizer, architectures, perturbed_lm, tiny_params
from tests.train.little_run import CALL
from train.grid.params import Params
from train.launch.plan import Measured, Plan, announce
from train.train_params import TrainParams

LACKING = {
    "n_kv_heads": 1,
    "dim_ff": 0,
    "positions": "alibi",
    "sliding_window": 4,
    "norm": "rmsnorm",
    "norm_position": "sandwich",
    "qk_norm": True,
    "parallel_blocks": True,
    "gated": True,
    "separate_heads": True,
    "bias_qkv": False,
    "bias_out": False,
    "bias_ff": False,
    "bias_norm": False,
}


@pytest.mark.parametrize("field", LACKING)
@pytest.mark.parametrize("kind", ["torch-transformer", ("custom-transformer", "torch-transformer")], ids=str)
def test_what_torchs_layer_cannot_be_is_refused(kind, field):
    params = tiny_params(layer_architecture=kind, **{field: LACKING[field]})
    [problem] = model_problems(params)
    assert problem.startswith(
        f"{field}={LACKING[field]!r} cannot be had with layer_architecture='torch-transformer'"
    )
    with pytest.raises(ValueError, match=re.escape(problem)):
        LM(params, CharTokenizer())


def test_what_it_can_be_is_not():
    params = tiny_params(
        layer_architecture="torch-transformer",
        dim_ff=20,
        positions="sin",
        norm_position="post",
        norm_eps=1e-3,
        activation="silu",
        bias=False,
        attention="fused",
    )
    assert not list(model_problems(params))
    assert ignored_fields(params) == ["attention='fused'"]


EVERYTHING = {  # set to other than its default
    "n_heads": 2,
    "n_kv_heads": 1,
    "dim_ff": 20,
    "sliding_window": 4,
    "rotary_base": 100.0,
    "norm": "rmsnorm",
    "norm_eps": 1e-3,
    "qk_norm": True,
    "parallel_blocks": True,
    "activation": "silu",
    "gated": True,
    "bias": False,
    "bias_qkv": True,
    "bias_out": True,
    "bias_ff": True,
    "bias_norm": True,
    "tied_embeddings": False,
    "separate_heads": True,
    "attention": "fused",
    "conv_width": 3,
}
OF_ATTENTION = {"n_kv_heads", "sliding_window", "qk_norm", "separate_heads", "attention"}
OF_FEED_FORWARD = {"dim_ff", "activation", "gated", "bias_ff", "parallel_blocks"}


@pytest.mark.parametrize(
    ("kind", "ignored"),
    [
        ("custom-transformer", {"bias", "rotary_base", "conv_width"}),
        ("gated-conv", OF_ATTENTION | {"bias", "rotary_base", "n_heads"}),
        ("linear-attention", OF_ATTENTION | {"bias", "rotary_base", "conv_width"}),
        ("state-space", OF_ATTENTION | {"bias", "rotary_base"}),
        *(
            (
                kind,
                OF_ATTENTION
                | OF_FEED_FORWARD
                | {"rotary_base", "n_heads", "conv_width", "bias_qkv", "bias_out"},
            )
            for kind in ("torch-lstm", "torch-gru")
        ),
        (("custom-transformer", "gated-conv"), {"bias", "rotary_base"}),
        (("torch-lstm", "gated-conv"), OF_ATTENTION | {"rotary_base", "n_heads"}),
    ],
    ids=lambda value: "fields" if isinstance(value, set) else str(value),  # a set has no order
)
def test_what_no_layer_has_a_use_for_is_known(kind, ignored):
    params = tiny_params(layer_architecture=kind, **EVERYTHING)
    ignored = ignored | {
        "bias_norm"
    }  # rmsnorm has none; `bias` is of no use where each part has a field of its own
    expected = [f"{name}={value!r}" for name, value in EVERYTHING.items() if name in ignored]
    assert sorted(ignored_fields(params)) == sorted(expected)


def test_without_a_feed_forward_block_its_fields_are_ignored():
    params = ModelParams(dim_ff=0, gated=True, bias_ff=False, activation="relu", parallel_blocks=True)
    assert len(ignored_fields(params)) == 4


def test_a_grid_says_which_runs_have_fields_without_effect(notes):
    models = [
        ModelParams(layer_architecture=kind, n_heads=2)
        for kind in ("torch-gru", "custom-transformer", "gated-conv")
    ]
    runs = [Params(DataParams(), TrainParams(), model) for model in models]
    data = Measured(tokenizer=None, n_rows=0, n_val_rows=0, row_length=0.0, content="")
    announce([Plan("test", run, 0, 10**9, 0, identity="", measured=data) for run in runs], CALL)
    for number, kind in ((1, "torch-gru"), (3, "gated-conv")):
        [note] = [note for note in notes if note.startswith(f"run {number}: ")]
        assert note.startswith(
            f"run {number}: n_heads=2 has no effect: no layer uses it with layer_architecture={kind!r}; "
        )
        assert "layer_architecture='custom-transformer'" in note
    assert len(notes) == 3  # that torch-gru is torch's is the other


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_never_said_to_be_ignored(kind):
    assert ignored_fields(ModelParams(layer_architecture=kind)) == []


@pytest.mark.parametrize("kind", ["torch-lstm", "torch-gru", *MIXERS])
@pytest.mark.parametrize(
    "fields", [{"positions": "rotary", "rotary_frac": 0.67}, {"positions": "alibi"}], ids=str
)
def test_positions_inside_attention_want_attention_somewhere(kind, fields):
    alone = tiny_params(layer_architecture=kind, dim=9, n_heads=3, **fields)
    [problem] = model_problems(alone)
    assert f"positions='{fields['positions']}' acts inside attention" in problem
    mixed = tiny_params(layer_architecture=(kind, "custom-transformer"), dim=9, n_heads=3, **fields)
    assert not list(model_problems(mixed))
    assert ignored_fields(mixed) == []


@settings(deadline=None, max_examples=20)
@given(architectures())
def test_an_ignored_field_changes_nothing(params):
    """Set back to their defaults, the same seed gives the same logits."""
    ignored = ignored_fields(params)
    names = {setting.partition("=")[0] for setting in ignored} - {"n_heads"}  # its default may not divide dim
    plain = ModelParams(**{f.name: getattr(params, f.name) for f in fields(params) if f.name not in names})
    assert torch.equal(perturbed_lm(plain)("abc"), perturbed_lm(params)("abc"))
