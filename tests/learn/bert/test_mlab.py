"""What MLAB Transformers From Scratch tests of a student's BERT, asked of our solution under our names.

Its suite (mlab_tfs/tests/test_bert.py) has 23 tests in 7 classes. Here are 22, written anew, with the same tolerances:
torch's and transformers' own layers in place of its reference, random weights and ids in place of downloaded ones, and
smaller sizes where its are those of the real model. The one left out is its `test_bert_block_with_dropout`, which it
expects to fail itself: our blocks have no dropout.
"""

from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import (
    BertAttention,
    BertEmbeddings,
    BertIntermediate,
    BertLayer,
    BertOutput,
)

from learn.checking.hub import fill
from learn.courses.bert import references
from learn.solution import bert
from learn.solution.gpt2 import LayerNorm, LayerNormOverDims

DIM, HEADS = 768, 12
SMALL = (101, 32, 48, 2, 4)  # tokens, positions, width, layers, heads
F = "torch.nn.functional"


def same(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)


def seeded(make, *args):
    torch.manual_seed(0)
    return make(*args).eval()


def config(n_heads=HEADS, **fields):
    sizes = {"hidden_size": DIM, "num_attention_heads": n_heads, "intermediate_size": 4 * DIM}
    found = BertConfig(**sizes | {"vocab_size": 101, "max_position_embeddings": 32} | fields)
    found._attn_implementation = "eager"
    return found


def ids(*shape, n=101):
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(1))


def floats(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


# ---- layer normalization


@patch(f"{F}.layer_norm")
def test_layer_norm_does_not_call_torchs(theirs):
    LayerNorm(2)(floats(10, 2))
    theirs.assert_not_called()


@pytest.mark.parametrize("shape", [(20, 10), (20, 32, 768)], ids=["2d", "transformer"])
def test_layer_norm_is_torchs(shape):
    x = floats(*shape)
    same(LayerNorm(shape[-1])(x), nn.LayerNorm(shape[-1])(x))


def test_layer_norm_over_two_dimensions_is_torchs():
    x = floats(20, 10, 5)
    same(LayerNormOverDims((10, 5))(x), nn.LayerNorm((10, 5))(x))


def test_layer_norm_uses_its_weight_and_bias():
    ours, theirs = LayerNorm(10), nn.LayerNorm(10)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(theirs, name).copy_(getattr(ours, name).copy_(floats(10)))
    same(ours(floats(20, 10)), theirs(floats(20, 10)))


# ---- embedding


@patch(f"{F}.layer_norm")
@patch("torch.nn.Embedding.forward")
def test_embedding_does_not_call_torchs(embedding, layer_norm):
    bert.Embedding(10, 5, 8)(ids(2, 3, n=10))
    embedding.assert_not_called()
    layer_norm.assert_not_called()


def test_embedding_has_its_attributes():
    made = bert.Embedding(101, 32, DIM)
    assert all(isinstance(one, nn.Parameter) for one in (made.tokens, made.positions, made.types))
    assert isinstance(made.norm, LayerNorm)


def test_embedding_looks_tokens_up_as_torchs():
    made = bert.Embedding(10, 5, 8)
    with torch.no_grad():
        made.positions.zero_()
        made.types.zero_()
    looked_up = nn.Embedding.from_pretrained(made.tokens)(ids(2, 3, n=10))
    same(made(ids(2, 3, n=10)), nn.LayerNorm(8, eps=1e-12)(looked_up))


def test_embedding_is_that_of_transformers():
    ours, theirs = bert.Embedding(101, 32, DIM).eval(), BertEmbeddings(config()).eval()
    fill(dict(theirs.named_parameters()), references.embedding_weights(ours))
    types = ids(2, 3, n=2)
    same(ours(ids(2, 3), types), theirs(input_ids=ids(2, 3), token_type_ids=types))


# ---- attention


@patch("torch.nn.MultiheadAttention.forward")
def test_attention_does_not_call_torchs(theirs):
    bert.SelfAttention(DIM, HEADS)(floats(2, 3, DIM))
    theirs.assert_not_called()


@pytest.mark.parametrize("n_heads", [1, HEADS])
def test_attention_is_that_of_transformers_by_the_same_seed(n_heads):
    ours = seeded(bert.SelfAttention, DIM, n_heads)
    theirs = seeded(BertAttention, config(n_heads))
    x = floats(2, 3, DIM)
    same(ours(x), theirs.output.dense(theirs.self(x)[0]))


# ---- GELU and MLP


@patch(f"{F}.gelu")
def test_gelu_does_not_call_torchs(theirs):
    bert.gelu(floats(2, 3))
    theirs.assert_not_called()


def test_gelu_is_torchs():
    same(bert.gelu(floats(20, 30)), nn.GELU()(floats(20, 30)))


def test_mlp_calls_the_students_gelu():
    with patch.object(bert, "gelu", return_value=floats(2, 3, 4 * DIM)) as gelu:
        bert.MLP(DIM)(floats(2, 3, DIM))
    gelu.assert_called()


def test_mlp_is_that_of_transformers_by_the_same_seed():
    ours = seeded(bert.MLP, DIM)
    up, down = seeded(lambda: nn.ModuleList([BertIntermediate(config()), BertOutput(config())]))
    same(ours(floats(2, 3, DIM)), down.dense(up(floats(2, 3, DIM))))


# ---- block


@patch(f"{F}.layer_norm")
@patch("torch.nn.MultiheadAttention.forward")
def test_block_does_not_call_torchs(attention, layer_norm):
    bert.Block(DIM, HEADS)(floats(2, 3, DIM))
    attention.assert_not_called()
    layer_norm.assert_not_called()


def test_block_has_its_attributes():
    made = bert.Block(DIM, HEADS)
    assert isinstance(made.attention, bert.SelfAttention)
    assert isinstance(made.mlp, bert.MLP)
    assert isinstance(made.norm1, LayerNorm)
    assert isinstance(made.norm2, LayerNorm)


def test_block_is_that_of_transformers_by_the_same_seed():
    ours, theirs = seeded(bert.Block, DIM, HEADS), seeded(BertLayer, config())
    out = theirs(floats(2, 3, DIM))
    same(ours(floats(2, 3, DIM)), out[0] if isinstance(out, tuple) else out)


# ---- whole models


def perturbed(model):
    """Random weights that are nowhere 0 or 1, so that each of them counts."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def test_logits_are_those_of_transformers():
    ours = perturbed(bert.BertForMaskedLM(*SMALL))
    same(ours(ids(10, 20)), references.bert_for_masked_lm(ours, ids(10, 20)))


def test_both_heads_are_those_of_transformers():
    ours = perturbed(bert.BertForPretraining(*SMALL))
    for mine, theirs in zip(
        ours(ids(10, 20)), references.bert_for_pretraining(ours, ids(10, 20)), strict=True
    ):
        same(mine, theirs)


def test_weights_of_transformers_give_its_logits():
    """Weights are mapped by name, as those of a downloaded model would be."""
    theirs = perturbed(references.masked_lm_model(*SMALL))
    ours = bert.BertForMaskedLM(*SMALL).eval()
    fill(references.masked_lm_weights(ours), theirs.state_dict())
    same(ours(ids(10, 20)), theirs(ids(10, 20)).logits, atol=1e-4)
