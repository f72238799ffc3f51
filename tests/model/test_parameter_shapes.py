"""The size of a run, known without building it."""

from types import SimpleNamespace

import pytest
import torch

from model.lm import LM
from model.model_params import ModelParams
from model.shapes import parameter_shapes


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layer_architecture": ("torch-lstm", "torch-transformer", "torch-gru", "gated-conv", "gla")},
        {"lora_rank": 3, "tied_embeddings": False, "norm": "rmsnorm", "gated": True},
    ],
)
def test_shapes_are_those_of_the_real_model_and_cost_no_random_numbers(fields):
    params = ModelParams(dim=32, n_layers=5, **fields)
    before = torch.get_rng_state()
    shapes = parameter_shapes(params, n_tokens=50)
    assert torch.equal(before, torch.get_rng_state())
    lm = LM(params, SimpleNamespace(n_tokens=50))
    assert shapes == {name: parameter.shape for name, parameter in lm.named_parameters()}
    assert (lm.embed.tokens.weight != 0).all(), "a real one is initialized"


def test_an_impossible_model_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"^dim=1000000000000 and n_layers=4 cannot be built: "):
        parameter_shapes(ModelParams(dim=10**12, n_heads=1), n_tokens=50)
