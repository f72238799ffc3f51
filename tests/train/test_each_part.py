"""Every optional part of a model holds what every model must: --check, recording, operations, generation, export."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.parts import OF_TRAINING, PARTS, Part
from data.data_params import DataParams
from data.tokenizer import char_tokenizer
from model.hf.weights import as_hf
from model.lm import LM
from model.model_params import ModelParams
from tests.model.tiny import perturbed_lm, random_ids, tiny_params
from train.flops import flops_per_row
from train.grid.params import Params
from train.launch.check_models import checks_of, outcome_of
from train.probe import Probe, probe
from train.train_params import TrainParams

LONG = {"save and load are equal", "one batch is learned by heart"}  # checks that train
OF_MODEL = [part for part in PARTS if part.fields.keys() - OF_TRAINING]
every_part = pytest.mark.parametrize("part", OF_MODEL, ids=lambda part: part.name or "none")


def model_with(part: Part) -> ModelParams:
    return tiny_params(n_heads=4, **dict(part.beside) | part.fields)


def failures(part: Part, long: bool) -> dict[str, str]:
    params = Params(DataParams(dataset_name="copy"), TrainParams(), model_with(part))
    torch.manual_seed(0)
    tokenizer = char_tokenizer("abcdefghijklmnopqrstuvwxyz")
    lm = LM(params.model, tokenizer.with_mask() if params.model.hides_tokens else tokenizer, dropout=0.2)
    assert probe(lm) == Probe(None, [])
    chosen = {name: check for name, check in checks_of(params).items() if (name in LONG) == long}
    outcomes = {name: outcome_of(check, lm, params) for name, check in chosen.items()}
    return {name: found for name, (result, found) in outcomes.items() if result == "FAIL"}


@pytest.mark.slow
@pytest.mark.ci
@every_part
def test_it_passes_the_checks_of_check(part):
    assert failures(part, long=False) == {}


@pytest.mark.slow
@every_part
def test_it_passes_the_checks_that_train(part):
    assert failures(part, long=True) == {}


@every_part
@torch.no_grad()
def test_recording_changes_nothing_and_what_is_recorded_can_be_put_back(part):
    lm, ids = perturbed_lm(model_with(part)), random_ids(2, 9)
    plain = lm(ids)
    with lm.record() as seen:
        assert torch.equal(lm(ids), plain)
    with lm.patch(dict(seen)):
        assert torch.equal(lm(ids), plain)
    with lm.patch({"resid_post": 0.0}):
        assert not torch.equal(lm(ids), plain)


@every_part
@torch.no_grad()
def test_it_generates_the_same_without_a_cache(part):
    lm = perturbed_lm(model_with(part))
    if lm.model_params.objective == "next-token":
        found = [
            lm.sample([1, 5, 6], 14, temperature=0, use_cache=use, as_str=False) for use in (True, False)
        ]
        assert found[0] == found[1]
        assert lm.cache_check.reason is None


@pytest.mark.slow
@every_part
def test_its_operations_are_counted(part):
    """At least those of each linear map, forward and for both gradients: 2 for each multiply-add."""
    lm, T = perturbed_lm(model_with(part)), 8
    passes = [layer for _, layer in lm.decoder.passes()] + [*lm.decoder.further]
    maps = [module for layer in passes for module in layer.modules() if isinstance(module, nn.Linear)]
    least = 3 * 2 * T * sum(map_.weight.numel() for map_ in maps)
    assert least < flops_per_row(lm, T) < 40 * least


@every_part
@torch.no_grad()
def test_export_computes_the_same_or_is_refused(part):
    lm, ids = perturbed_lm(model_with(part), dtype=torch.float32), random_ids(2, 9)
    hf_model, refusal = None, ""
    try:
        hf_model = as_hf(lm)
    except ValueError as error:
        refusal = str(error)
    if hf_model is None:
        assert any(name in refusal for name in (*part.fields, *part.beside)), refusal
    else:
        assert_close(hf_model(ids).logits, lm(ids), rtol=1e-5, atol=1e-5)
