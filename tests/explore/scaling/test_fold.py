"""Folding omegas away: the same logits from a plain transformer, which saves and loads as any."""

import pytest
import torch
from torch import nn

from explore.scaling.fold import fold_residual
from model.lm import LM
from model.transformer.residual import omegas_by_residual
from tests.model.tiny import MIXERS, CharTokenizer, batch_of, random_ids, tiny_lm, tiny_params
from train.optimizers import make_optimizer
from train.saving.weights import load_lm, unshared_state, write_weights
from train.train_params import TrainParams


def trained(n_steps: int = 20, **fields) -> LM:
    """In float32, after some steps of training."""
    torch.manual_seed(0)
    sizes = {"norm_position": "post", "residual": "admin", "dim": 32, "n_layers": 3}
    lm = LM(tiny_params(**sizes | fields), CharTokenizer())
    optimizer, batch = make_optimizer(lm, TrainParams(lr=1e-2)), batch_of(random_ids(8, 14))
    for _ in range(n_steps):
        optimizer.zero_grad()
        lm.get_losses(batch, None)[0]["main"].backward()
        optimizer.step()
    return lm


@pytest.mark.parametrize("trainable", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_trained_model_keeps_its_logits_without_omega(trainable, tied):
    lm = trained(residual_trainable=trainable, tied_embeddings=tied, n_layers=6)
    omegas = [omega.detach().clone() for omega in omegas_by_residual(lm).values()]
    assert not trainable or all(omega.std() > 1e-3 for omega in omegas), "they trained"
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    folded = fold_residual(lm)
    ids = random_ids(8, 16, seed=1)
    assert (folded(ids) - lm.eval()(ids)).abs().max() <= 1e-5
    assert folded.model_params.residual == "plain"
    assert folded.model_params.norm_eps == lm.model_params.norm_eps
    assert not [name for name in folded.state_dict() if "omega" in name]
    assert all(torch.equal(weight, before[name]) for name, weight in lm.state_dict().items())


@pytest.mark.parametrize(
    "fields",
    [
        {"positions": "sin", "residual_trainable": True, "gated": True, "bias_norm": False},
        {"positions": "rotary", "separate_heads": True, "norm": "rmsnorm", "residual": "deepnet"},
        {"positions": "none", "dim_ff": 0, "residual_trainable": True, "n_kv_heads": 1, "qk_norm": True},
        {"lora_rank": 2, "residual_trainable": True, "mup_input_mult": 2.0},
        {"layer_architecture": tuple(MIXERS), "n_layers": len(MIXERS)},
        {
            "causal": False,
            "objective": "masked",
            "embedding_norm": True,
            "readout_transform": True,
            "residual_trainable": True,
        },
        {"parametrization": "mup", "mup_base_dim": 8, "init": "unit", "residual_trainable": True},
    ],
    ids=str,
)
def test_every_kind_of_layer_keeps_its_logits_without_omega(fields):
    lm = tiny_lm(**{"norm_position": "post", "residual": "admin"} | fields)
    assert len(omegas_by_residual(lm)) == lm.model_params.n_layers * (1 if lm.model_params.dim_ff == 0 else 2)
    ids = random_ids(3, 16)
    torch.testing.assert_close(fold_residual(lm)(ids), lm(ids), rtol=0, atol=1e-10)


def test_a_folded_model_is_saved_and_loaded_like_any_other(tmp_path):
    folded = fold_residual(trained(residual_trainable=True))
    write_weights(tmp_path / "model.safetensors", unshared_state(folded))
    again = load_lm(tmp_path / "model.safetensors", folded.model_params, CharTokenizer())
    assert torch.equal(again(random_ids(2, 9)), folded(random_ids(2, 9)))


def test_models_that_cannot_be_folded_are_refused():
    with pytest.raises(ValueError, match="no omega"):
        fold_residual(tiny_lm())
    lm = tiny_lm(norm_position="post", residual="admin")
    lm.decoder.layers.insert(1, nn.ReLU())
    with pytest.raises(ValueError, match="layer 1 is a ReLU"):
        fold_residual(lm)
    edited = tiny_lm(norm_position="post", residual="admin")
    edited.decoder.layers[0].linear1.register_forward_pre_hook(lambda module, x: (x[0] + 1,))
    with pytest.raises(ValueError, match="folding would change logits"):
        fold_residual(edited)
    zero = tiny_lm(norm_position="post", residual="admin", residual_trainable=True)
    zero.decoder.layers[1].residual_ff.omega.data[3] = 0
    with pytest.raises(ValueError, match="omega is 0"):
        fold_residual(zero)
