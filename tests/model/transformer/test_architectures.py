"""Any combination of fields is a sound model, and any module may be a layer of it."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._device import _device_constructors
from transformers.initialization import meta_device_safe_creation_ops

from model.context import Layer, layer_kind, layer_kinds
from model.lm import LM, n_params
from model.model_params import ModelParams
from model.observe import ignored_fields
from model.transformer.attention import Attention
from model.transformer.mixers import GatedConvLayer
from model.transformer.norms import norms
from model.transformer.torchlayers import TorchLSTM
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import (
    FIELDS,
    KINDS,
    CharTokenizer,
    architectures,
    batch_of,
    perturbed_lm,
    random_ids,
    tiny_lm,
    tiny_params,
)
from train.launch.check_models import NEAR

ANY_LENGTH = st.integers(2, 16)
NOT_SHAPING = {
    "tokenizer_source_name",
    "tokenizer_vocab_size",
    "tokenizer_crop",
    "from_pretrained",
    "from_saved",
    "residual_profile",
    "n_predict",  # adds layers that only the losses use
    "predict_weight",
}


def check_first_loss(params: ModelParams, n_tokens: int) -> None:
    torch.manual_seed(0)
    lm = LM(replace(params, init="small"), CharTokenizer(n_tokens)).eval()  # "unit" begins with larger logits
    with torch.no_grad():
        loss = lm.get_losses(batch_of(random_ids(32, 17, n_tokens)), None)[0]["main"].item()
    assert loss == pytest.approx(math.log(n_tokens), rel=NEAR)


def check_counted_without_memory(lm: LM) -> None:
    with torch.device("meta"):
        twin = LM(lm.model_params, lm.tokenizer)
    assert all(tensor.is_meta for tensor in [*twin.parameters(), *twin.buffers()])
    assert n_params(twin) == n_params(lm)


def test_counted_without_memory_where_transformers_asked_for_meta_tensors_first():
    """While it loads a model, transformers replaces torch.linspace, and torch remembers the first list of what makes tensors."""
    _device_constructors.cache_clear()
    try:
        with meta_device_safe_creation_ops(), torch.device("meta"):
            torch.empty(1)
        check_counted_without_memory(tiny_lm(layer_architecture="mamba2"))
    finally:
        _device_constructors.cache_clear()


def check_causal_by_value(lm: LM, T: int) -> None:
    cut = T // 2
    a, b = random_ids(2, T, seed=1), random_ids(2, T, seed=2)
    b[:, :cut] = a[:, :cut]
    b[:, cut] = (a[:, cut] + 1) % 30
    with torch.no_grad():
        z_a, z_b = lm(a), lm(b)
    assert z_a.isfinite().all()
    if not lm.model_params.causal:
        before = max(cut - 1, 0)  # the nearest position, which a sliding window shows, too
        assert not torch.isclose(z_a[0, before], z_b[0, before]).all()
        return
    assert_close(z_a[:, :cut], z_b[:, :cut])
    assert not torch.allclose(z_a[:, cut], z_b[:, cut])


def check_every_parameter_gets_a_gradient(lm: LM) -> None:
    lm.train().get_losses(batch_of(random_ids(8, 17)), None)[0]["main"].backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        if not re.search(
            r"\.k\.\d\.bias$|maps\.k\.bias$|k_norm\.bias$", name
        ):  # the softmax does not see what is added to all keys
            assert parameter.grad.abs().max() > 0, name


def check_saved_and_loaded(lm: LM) -> None:
    other = perturbed_lm(lm.model_params, seed=7)
    with TemporaryDirectory() as folder:
        save_model(lm, str(Path(folder) / "model.safetensors"))
        load_model(other, str(Path(folder) / "model.safetensors"))
    ids = random_ids(2, 9)
    assert torch.equal(other.eval()(ids), lm.eval()(ids))


def check_all(params: ModelParams, n_tokens: int, T: int) -> None:
    check_first_loss(params, n_tokens)
    lm = perturbed_lm(params)
    check_counted_without_memory(lm)
    check_causal_by_value(lm, T)
    check_every_parameter_gets_a_gradient(lm)
    check_saved_and_loaded(lm)


@settings(deadline=None, max_examples=20)
@given(architectures(), st.sampled_from([30, 1000]), ANY_LENGTH)
def test_any_architecture_is_sound(params, n_tokens, T):
    check_all(params, n_tokens, T)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(architectures(), st.sampled_from([30, 1000]), ANY_LENGTH)
def test_many_architectures_are_sound(params, n_tokens, T):
    check_all(params, n_tokens, T)


def test_no_field_and_no_kind_is_left_out_above():
    sizes = {
        "dim",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "max_seq_len",
        "mup_base_dim",
        "mup_base_heads",
        "mup_base_layers",
    }
    assert {field.name for field in fields(ModelParams)} == set(FIELDS) | sizes | NOT_SHAPING
    assert set(KINDS) <= set(layer_kinds)


def test_kinds_take_turns_over_the_depth():
    lm = tiny_lm(layer_architecture=("custom-transformer", "gated-conv", "torch-lstm"), n_layers=5)
    kinds = [TransformerEncoderLayer, GatedConvLayer, TorchLSTM, TransformerEncoderLayer, GatedConvLayer]
    assert [type(layer) for layer in lm.decoder.layers] == kinds
    assert isinstance(lm.decoder.layers[0].mixer, Attention)
    assert lm("abc", get_attns=True)["attns"].shape == (1, 2, 2, 4, 4)
    assert lm("abc", get_embeddings=True)["embeddings"].shape == (1, 5, 4, 16)


@pytest.fixture
def a_name():
    """A name that no layer kind has, free again afterwards."""
    yield "mine"
    del layer_kinds["mine"]


def test_a_function_that_makes_any_module_is_a_layer_kind(a_name):
    @layer_kind(a_name)
    def mine(model_params: ModelParams, dropout: float) -> nn.Module:
        return nn.Sequential(nn.Linear(model_params.dim, model_params.dim), nn.Tanh(), nn.Dropout(dropout))

    lm = tiny_lm(layer_architecture=(a_name, "custom-transformer"), n_layers=3, dropout=0.5)
    with lm.record() as seen:
        lm("abc")
    assert_close(seen["layers.2.resid_post"], lm.decoder.layers[2](seen["layers.1.resid_post"]))
    assert lm.decoder.layers[0][2].p == 0.5
    assert ignored_fields(tiny_params(layer_architecture=a_name, qk_norm=True)) == [
        "n_heads=2",
        "qk_norm=True",
    ]


def test_sandwich_blocks_initially_add_values_as_small_as_the_embeddings():
    torch.manual_seed(0)
    lm = LM(tiny_params(norm_position="sandwich", dim=64, positions="none"), CharTokenizer())
    with torch.no_grad(), lm.record("embed", "attn_out", "mlp_out") as seen:
        lm(random_ids(4, 16))
    sizes = [x.square().mean().sqrt().item() for x in seen.values()]
    assert sizes == pytest.approx([sizes[0]] * 5, rel=0.2)


@pytest.mark.parametrize("base", [Layer, nn.Module])
def test_a_class_is_a_layer_kind(base, a_name):
    @layer_kind(a_name)
    class Mine(base):
        def __init__(self, model_params: ModelParams, dropout: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(model_params.dim))

        def forward(self, x_BTD: Tensor, *ctx) -> Tensor:
            assert bool(ctx) == (base is Layer)
            return x_BTD * (ctx[0].ids_BT[..., None] % 2 if ctx else self.scale)

    lm = tiny_lm(layer_architecture=a_name, n_layers=1)
    with lm.record() as seen:
        lm([1, 2, 3])
    factor = torch.tensor([[[1.0], [0.0], [1.0]]]) if base is Layer else lm.decoder.layers[0].scale
    assert_close(seen["layers.0.resid_post"], seen["embed"] * factor)


def test_a_registered_function_that_makes_a_norm_is_used():
    @norms.register
    def l1norm(width: int, model_params: ModelParams) -> nn.Module:
        return nn.Softsign()

    try:
        lm = tiny_lm(norm="l1norm")
        assert isinstance(lm.decoder.layers[0].norm1.before, nn.Softsign)
        assert isinstance(lm.decoder.norm, nn.Softsign)
    finally:
        del norms["l1norm"]
