"""Problems of an architecture are known before it is built, and no field is silently without effect."""

import re
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from common.registry import Lazy
from common.repository import REPOSITORY
from data.data_params import DataParams
from model.context import Layer, all_except, layer_kind, layer_kinds
from model.lm import LM
from model.model_params import ModelParams
from model.observe import ignored_fields
from model.problems import model_problems
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import KINDS, MIXERS, CharTokenizer, architectures, perturbed_lm, tiny_params
from tests.train.little_run import CALL
from train.grid.params import Params
from train.grid.run import Run, RunSize
from train.launch.plan import announce
from train.launch.problems import grid_problems
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
def test_configurations_that_torchs_layer_lacks_are_refused(kind, field):
    params = tiny_params(layer_architecture=kind, **{field: LACKING[field]})
    [problem] = model_problems(params)
    assert problem.startswith(
        f"{field}={LACKING[field]!r} does not work with layer_architecture='torch-transformer'; use "
    )
    with pytest.raises(ValueError, match=re.escape(problem)):
        LM(params, CharTokenizer())


def test_configurations_that_torchs_layer_supports_are_accepted():
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
    "kv_rank": 3,
    "q_rank": 3,
    "conv_width": 3,
    "state_dim": 3,
    "negative_eigenvalues": True,
    "fixed_decay": True,
}
OF_LATENTS = {"kv_rank", "q_rank"}
OF_STATES = {"state_dim", "negative_eigenvalues", "fixed_decay"}
OF_ATTENTION = {"n_kv_heads", "sliding_window", "qk_norm", "separate_heads", "attention"}
OF_FEED_FORWARD = {"dim_ff", "activation", "gated", "bias_ff", "parallel_blocks"}


@pytest.mark.parametrize(
    ("kind", "ignored"),
    [
        ("custom-transformer", OF_STATES | {"bias", "rotary_base", "conv_width"}),
        ("gated-conv", OF_ATTENTION | OF_STATES | {"bias", "rotary_base", "n_heads"}),
        ("linear-attention", OF_ATTENTION | OF_STATES | {"bias", "rotary_base", "conv_width"}),
        ("deltanet", OF_ATTENTION | {"bias", "rotary_base", "fixed_decay"}),
        ("gated-delta", OF_ATTENTION | {"bias", "rotary_base", "fixed_decay"}),
        ("gla", OF_ATTENTION | {"bias", "rotary_base", "conv_width", "negative_eigenvalues"}),
        ("mamba2", OF_ATTENTION | {"bias", "rotary_base", "negative_eigenvalues", "fixed_decay"}),
        (
            "based",
            OF_ATTENTION | {"bias", "rotary_base", "conv_width", "negative_eigenvalues", "fixed_decay"},
        ),
        (
            "mlstm",
            OF_ATTENTION | {"bias", "rotary_base", "conv_width", "negative_eigenvalues", "fixed_decay"},
        ),
        *(
            (
                kind,
                OF_ATTENTION
                | OF_STATES
                | OF_FEED_FORWARD
                | {"rotary_base", "n_heads", "conv_width", "bias_qkv", "bias_out"},
            )
            for kind in ("torch-lstm", "torch-gru")
        ),
        (("custom-transformer", "gated-conv"), OF_STATES | {"bias", "rotary_base"}),
        (("torch-lstm", "gated-conv"), OF_ATTENTION | OF_STATES | {"rotary_base", "n_heads"}),
    ],
    ids=lambda value: "fields" if isinstance(value, set) else str(value),  # a set has no order
)
def test_fields_that_no_layer_uses_are_reported(kind, ignored):
    params = tiny_params(layer_architecture=kind, **EVERYTHING)
    # RMSNorm has no bias; `bias` is of no use where each part has a field of its own.
    ignored = ignored | {"bias_norm"} | OF_LATENTS
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
    grid = [Params(DataParams(), TrainParams(), model) for model in models]
    announce([Run(params, {}, "test", size=RunSize(n_steps=10**9)) for params in grid], CALL)
    for number, kind in ((1, "torch-gru"), (3, "gated-conv")):
        [note] = [note for note in notes if note.startswith(f"run {number}: ")]
        assert note.startswith(
            f"run {number}: n_heads=2 has no effect: no layer uses it with layer_architecture={kind!r}; "
        )
        assert "layer_architecture='custom-transformer'" in note
    assert len(notes) == 3  # that torch-gru is torch's is the other


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_never_reported_as_ignored(kind):
    assert ignored_fields(ModelParams(layer_architecture=kind)) == []


@pytest.mark.parametrize("kind", ["torch-lstm", "torch-gru", *MIXERS])
@pytest.mark.parametrize(
    "fields", [{"positions": "rotary", "rotary_frac": 0.67}, {"positions": "alibi"}], ids=str
)
def test_positions_inside_attention_want_attention_somewhere(kind, fields):
    alone = tiny_params(layer_architecture=kind, dim=9, n_heads=3, **fields)
    [problem] = model_problems(alone)
    assert problem == (
        f"positions={fields['positions']!r} needs attention, but layer_architecture={kind!r} has none; "
        "use one of: none, learned, sin"
    )
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


@pytest.fixture
def own_kinds():
    """Remove layer kinds that a test registers."""
    before = dict(layer_kinds)
    yield
    layer_kinds.clear()
    layer_kinds.update(before)


@pytest.mark.parametrize(
    ("refuses", "fields", "message"),
    [
        (
            {"norm_position": {"post", "none"}},
            {"norm_position": "none"},
            "norm_position='none' does not work with layer_architecture='mine'; use one of: pre, sandwich",
        ),
        ({"norm": all_except("rmsnorm")}, {}, "norm='layernorm' does not .*; use norm='rmsnorm'"),
        (
            {"separate_heads": {True}},
            {"separate_heads": True},
            "separate_heads=True does not .*; use separate_heads=False",
        ),
        ({"n_heads": {3, 2}}, {"n_heads": 2}, "n_heads=2 does not .*; use another value than 2, 3"),
        ({"n_heads": lambda n: n % 4}, {"n_heads": 2}, "n_heads=2 does not .*; use n_heads=4"),
        ({"bias": {True, False}}, {}, "bias=True does not .*; use another layer kind"),
        ({"nrom": {"rmsnorm"}}, {}, "layer kind 'mine' refuses values of 'nrom', which is not a field"),
    ],
)
def test_a_users_layer_kind_refuses_values_and_lists_the_allowed_ones(own_kinds, refuses, fields, message):
    @layer_kind("mine")
    class Mine(TransformerEncoderLayer):
        pass

    assert not list(model_problems(tiny_params(layer_architecture="mine", **fields)))
    Mine.refuses = refuses
    for kind in ("mine", ("custom-transformer", "mine")):
        [problem] = model_problems(tiny_params(layer_architecture=kind, **fields))
        assert re.match(message, problem)


def test_classes_and_functions_without_refuses_take_everything(own_kinds):
    layer_kind("class")(
        type("Plain", (nn.Identity,), {"__init__": lambda self, p, dropout: nn.Module.__init__(self)})
    )
    layer_kind("function")(lambda model_params, dropout: nn.Identity())
    for kind in ("class", "function"):
        params = tiny_params(layer_architecture=kind, positions="rotary", gated=True, causal=True)
        assert not list(model_problems(params))
        assert LM(params, CharTokenizer())("abc").shape == (1, 4, 30)


def test_the_layer_of_the_courses_needs_a_clone(monkeypatch):
    monkeypatch.setitem(layer_kinds.entries, "student", Lazy("whatif.learn.layer"))  # its name in the wheel
    kinds = ("custom-transformer", "student")
    run = Run(Params(DataParams(), TrainParams(), tiny_params(layer_architecture=kinds)), {}, "test")
    [(problem, _)] = grid_problems([run], REPOSITORY)
    assert problem.startswith(
        "layer_architecture='student' is the layer that you build in the courses, which"
    )


def test_a_value_error_of_a_layers_constructor_is_an_error_of_the_grid(own_kinds):
    @layer_kind("squares")
    class Squares(Layer):
        def __init__(self, model_params, dropout):
            super().__init__()
            if model_params.n_heads**2 != model_params.dim:
                raise ValueError(
                    f"dim={model_params.dim} must be the square of n_heads={model_params.n_heads}"
                )

    models = [tiny_params(layer_architecture="squares", n_heads=n) for n in (4, 8)]
    runs = [Run(Params(DataParams(), TrainParams(), model), {}, "test") for model in models]
    assert [message for message, _ in grid_problems(runs, REPOSITORY)] == [
        "dim=16 must be the square of n_heads=8"
    ]
