"""A model that computes no numbers passes no check, and the first activation that is not finite has a name."""

import math
import pathlib

import pytest
import torch
from torch import nn

from data.batch import mycollate
from data.data_params import DataParams
from model.context import Layer, layer_kinds
from model.lm import LM
from model.recording import first_nonfinite
from tests.model.tiny import KINDS, CharTokenizer, random_ids, tiny_lm, tiny_params
from train.grid.params import Params
from train.launch.check_models import checks_of, flaw_of, outcome_of
from train.train_params import TrainParams


def params_of(lm) -> Params:
    return Params(DataParams(dataset_name="copy"), TrainParams(), lm.model_params)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("weight", "name"),
    [
        ("embed.tokens.weight", "embed"),
        ("decoder.layers.0.mixer.qkv.weight", "layers.0.q"),
        ("decoder.layers.1.mixer.out.weight", "layers.1.head_out"),
        ("decoder.layers.1.linear2.weight", "layers.1.mlp_out"),
        ("decoder.norm.weight", "final_norm"),
        ("unembed.weight", "logits"),
    ],
)
def test_the_first_activation_that_is_not_finite_is_named(weight, name, number):
    lm = tiny_lm(tied_embeddings=False)
    lm.get_parameter(weight).data.fill_(number)
    state = torch.get_rng_state()
    for batch in (random_ids(2, 5), mycollate(random_ids(2, 6).tolist())):
        assert first_nonfinite(lm, batch) == name
    assert not lm.taps
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", [*KINDS, "fused"])
def test_a_sound_model_has_none(kind):
    fields = {"attention": "fused"} if kind == "fused" else {"layer_architecture": kind}
    assert first_nonfinite(tiny_lm(**fields), random_ids(2, 5)) is None
    bert = tiny_lm(objective="masked", causal=False).train()
    assert first_nonfinite(bert, mycollate([[1, 5, 6, 7], [1, 5]])) is None, "-inf in scores is the mask"


def test_nan_logits_pass_no_check():
    lm = LM(tiny_params(tied_embeddings=False), CharTokenizer())
    lm.unembed.weight.data.fill_(math.nan)
    params = params_of(lm)
    outcomes = {name: outcome_of(check, lm, params) for name, check in checks_of(params).items()}
    passed = {name for name, outcome in outcomes.items() if outcome.result != "FAIL"}
    assert passed == {"recorded patterns times values give z"}, "which does not look at logits"
    assert flaw_of(lm, params) == "logits is the first activation that is not finite"


class Wrong(Layer):
    def __init__(self, model_params, dropout):
        super().__init__()
        self.map = nn.Linear(model_params.dim, 3)

    def forward(self, x_BTD, ctx):
        return self.helper(x_BTD)

    def helper(self, x_BTD):
        return x_BTD + self.map(x_BTD)  # the mistake


def test_a_programming_error_is_reported_with_file_line_and_layer(monkeypatch):
    monkeypatch.setitem(layer_kinds, "wrong", Wrong)
    lm = LM(tiny_params(layer_architecture=("custom-transformer", "wrong")), CharTokenizer())
    with pathlib.Path(__file__).open(encoding="utf-8") as file:
        [line] = [i for i, text in enumerate(file, 1) if text.endswith("# the mistake\n")]
    says = flaw_of(lm, params_of(lm))
    assert says.startswith(
        f"tests/train/test_nonfinite.py:{line}, layer 1: RuntimeError: The size of tensor a"
    )


def test_a_loss_that_is_not_finite_is_named(monkeypatch):
    lm = LM(tiny_params(), CharTokenizer())
    monkeypatch.setattr(
        LM, "get_losses", lambda self, *_: ({"main": self.unembed.weight.sum() * math.nan}, 1)
    )
    assert flaw_of(lm, params_of(lm)) == "all activations are finite, but the loss 'main' is not"


def test_a_sound_model_has_no_flaw():
    lm = LM(tiny_params(), CharTokenizer())
    assert flaw_of(lm, params_of(lm)) is None
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_check_reports_one_error_once(monkeypatch, tmp_path, capsys):
    import main

    monkeypatch.setitem(layer_kinds, "wrong", Wrong)
    options = [
        "--no-wandb",
        "--config=test-synth",
        "--set",
        "n_samples=400",
        "--set",
        "layer_architecture='wrong'",
    ]
    assert main.main([*options, "--check", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.count("RuntimeError") == 1
    assert said.count("  FAIL  ") == 1
    assert ", layer 0: RuntimeError" in said
