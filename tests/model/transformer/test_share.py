"""Shared weights: a model computes what one with copies of them does, and has, trains and saves them once."""

import copy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from explore.scaling.fold import fold_residual
from model.lm import LM, n_params
from model.shapes import build_on_meta, size_of
from tests.model.tiny import CharTokenizer, batch_of, random_ids, tiny_lm, tiny_params
from train.launch.match import params_without_embeddings
from train.launch.problems import reuse_problems
from train.saving.weights import load_lm, unshared_state, write_weights

IDS = random_ids(2, 9)


def plain_twin(lm: LM) -> LM:
    """A model without shared weights, with copies of those of `lm`."""
    twin = tiny_lm(**{**vars(lm.model_params), "share": None})
    for ours, theirs in zip(lm.decoder.layers, twin.decoder.layers, strict=True):
        state = ours.state_dict()
        maps = {name: value for name, value in state.items() if name.startswith("mixer.qkv.maps.")}
        if maps:
            of = ours.mixer.qkv.map_of
            for kind in ("weight", "bias"):
                parts = [maps[f"mixer.qkv.maps.{of[name]}.{kind}"] for name in "qkv"]
                state[f"mixer.qkv.{kind}"] = torch.cat(parts)
        state["mixer.out.weight"] = ours.mixer.out.weight
        state["linear2.weight"] = ours.linear2.weight
        theirs.load_state_dict({name: value for name, value in state.items() if name not in maps})
    others = {name: w for name, w in lm.state_dict().items() if not name.startswith("decoder.layers.")}
    twin.load_state_dict(others, strict=False)
    return twin


SHARED = {  # and the number of parameters that are saved of a layer with dim 16 and 2 layers
    "k=v": 2 * (16 * 16 + 16),
    "q=v, k=v": 4 * (16 * 16 + 16),
    "o=q.T": 2 * 16 * 16,
    "q=k,o=q.T": 2 * (2 * 16 * 16 + 16),
    "down=up.T": 2 * 16 * 64,
    "norms": 4 * 16,
    "attention": 4 * (16 * 16 + 16),
    "ff, k=v": 16 * 64 + 64 + 64 * 16 + 16 + 2 * (16 * 16 + 16),
}


@pytest.mark.parametrize("share", SHARED)
def test_a_model_with_shared_weights_equals_one_with_copies_of_them(share):
    lm = tiny_lm(share=share)
    twin = plain_twin(lm)
    assert_close(lm(IDS), twin(IDS), rtol=1e-12, atol=1e-12)
    assert n_params(twin) - n_params(lm) == SHARED[share]
    assert (
        size_of(lm.model_params, 30).n_params
        == n_params(lm)
        == sum(p.numel() for p in unshared_state(lm).values())
    )
    # The gradient of a shared weight is the sum over its places, and so its derivative along a shared change.
    change = {name: torch.randn_like(p) for name, p in lm.named_parameters()}
    lm.get_losses(batch_of(IDS), None)[0]["main"].backward()
    slope = sum((p.grad * change[name]).sum() for name, p in lm.named_parameters())
    losses = []
    for step in (1e-6, -1e-6):
        moved = copy.deepcopy(lm)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.add_(step * change[name])
            losses.append(plain_twin(moved).get_losses(batch_of(IDS), None)[0]["main"].item())
    assert slope.item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5)


def test_shared_weights_are_saved_once_and_stay_shared(tmp_path: Path):
    params = tiny_params(share="attention,ff,norms,o=k.T", n_layers=60, init="unit")
    lm = LM(params, CharTokenizer()).eval()
    write_weights(tmp_path / "model.safetensors", unshared_state(lm))
    loaded = load_lm(tmp_path / "model.safetensors", params, CharTokenizer())
    assert torch.equal(loaded(IDS), lm(IDS))
    for model in (loaded, copy.deepcopy(lm), copy.deepcopy(lm).double()):
        assert n_params(model) == n_params(lm)
        with torch.no_grad():
            first, last = model.decoder.layers[0], model.decoder.layers[-1]
            first.mixer.qkv.maps["k"].weight.zero_()
            first.norm2.before.weight.fill_(3.0)
        assert not last.mixer.out.weight.any()
        assert last.norm2.before.weight.eq(3.0).all()


@pytest.mark.parametrize("share", ["norms", "attention,ff,norms", "k=v"])
def test_sizes_of_deep_models_count_shared_weights_once(share):
    params = tiny_params(share=share, n_layers=140)
    lm = build_on_meta(params, 30)
    assert size_of(params, 30).n_params == n_params(lm)
    outside = sum(p.numel() for name, p in lm.named_parameters() if not name.startswith("decoder."))
    assert params_without_embeddings(params, 30) == n_params(lm) - outside


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": "k=w"}, "'k=w' does not exist; did you mean 'k=v'"),
        ({"share": ""}, "'' does not exist; there are: q=k"),
        ({"share": "k=v,k=q"}, "may be shared only once"),
        ({"share": "norms,norms"}, "may be shared only once"),
        ({"share": "k=v,v=q,q=k"}, "q = k = v = q leaves no map"),
        ({"share": "q=k", "n_kv_heads": 1}, "does not go with n_kv_heads=1, as there are more queries"),
        ({"share": "o=v.T", "n_kv_heads": 1}, "does not go with n_kv_heads=1"),
        ({"share": "k=v", "separate_heads": True}, "does not go with separate_heads=True"),
        ({"share": "norms", "lora_rank": 2}, "does not go with lora_rank=2"),
        ({"share": "o=q.T", "query_zero_init": True}, "does not go with query_zero_init=True"),
        ({"share": "o=q.T", "out_zero_init": True}, "does not go with out_zero_init=True"),
        ({"share": "down=up.T", "gated": True}, "does not go with gated=True"),
        ({"share": "down=up.T", "dim_ff": 0}, "does not go with dim_ff=0"),
        ({"share": "k=v", "residual": "deepnet", "norm_position": "post"}, "does not go with residual='deepnet'"),
        ({"share": "k=v", "layer_architecture": "gla"}, "does not work with layer_architecture='gla'"),
        ({"share": "norms", "layer_architecture": "torch-transformer"}, "does not work with"),
        ({"share": "norms", "layer_architecture": "torch-gru"}, "no two layers have weights of 'norms'"),
        ({"share": "ff", "dim_ff": (8, 12)}, r"linear1.weight is \[8, 16\] in one layer and \[12, 16\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_lm(**fields)


def test_mixers_share_their_parts_and_folding_and_fsdp_are_refused():
    kinds = ("gla", "custom-transformer")
    lm = tiny_lm(share="ff,norms", layer_architecture=kinds, n_layers=4)
    assert lm.decoder.layers[0].linear1.weight is lm.decoder.layers[3].linear1.weight
    with pytest.raises(ValueError, match="share='k=v': folding would change a shared map"):
        fold_residual(tiny_lm(share="k=v", norm_position="post", residual="admin"))
    [problem] = reuse_problems(tiny_params(share="k=v"), "fsdp")
    assert problem == "strategy='fsdp' does not support share='k=v'; use strategy='ddp'"
