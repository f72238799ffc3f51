"""LM: what it takes and gives, its first loss, and that it learns."""

import copy
import math
import re

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional as F
from torch.testing import assert_close

from model.lm import LM, n_params
from model.problems import model_problems
from tests.model.tiny import (
    ATTENTIVE,
    COMBINATIONS,
    KINDS,
    CharTokenizer,
    batch_of,
    random_ids,
    tiny_lm,
    tiny_params,
)


def test_every_form_of_input_gives_the_same_logits():
    lm = tiny_lm()
    ids = lm.tokenizer("hello")
    logits = lm("hello")
    assert logits.shape == (1, 6, 30)
    for form in (
        ids,
        torch.tensor(ids),
        torch.Tensor(ids),
        torch.tensor([ids]),
        [ids],
        torch.tensor(ids).int(),
    ):
        assert torch.equal(lm(form), logits)
    batch = lm(torch.Tensor(lm.tokenizer(["hello", "wells"])))
    assert_close(batch[:1], logits)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1, 30], "ids from 1 to 30, but the model knows 0 to 29"),
        ([-1, 3], "ids from -1 to 3"),
        ([1.5, 2.0], "whole numbers"),
        ([], "at least one"),
        ([[1, 2], [3]], "mycollate"),
        (["a", "b"], "mycollate"),
        (None, "NoneType"),
        (torch.zeros(1, 2, 3), r"shape \(1, 2, 3\)"),
        ([1] * 17, "17 tokens is longer than max_seq_len=16"),
        (torch.zeros(2, 17, dtype=torch.int64), "17 tokens is longer than max_seq_len=16"),
    ],
)
def test_impossible_input_ends_in_one_sentence(x, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_lm()(x)
    assert "\n" not in str(error.value)


def test_calls_of_an_lm_keep_inputs_modes_and_random_state():
    lm = tiny_lm(dropout=0.5).train()
    lm.decoder.layers[1].eval()
    modes = [module.training for module in lm.modules()]
    ids, batch = random_ids(2, 9), batch_of(random_ids(2, 9))
    before, pref = ids.clone(), [1, 5, 6]
    rng = torch.get_rng_state()
    lm.eval()(ids)
    lm.train(), lm.decoder.layers[1].eval()
    lm.sample(pref, temperature=0)
    lm.perplexities(["abc"])
    assert torch.equal(torch.get_rng_state(), rng)
    lm.get_losses(batch, None)
    lm.sample(pref)
    assert torch.equal(ids, before)
    assert torch.equal(batch["x_indices"], before)
    assert pref == [1, 5, 6]
    assert [module.training for module in lm.modules()] == modes


def test_embeddings_are_the_outputs_of_the_layers():
    lm = tiny_lm(n_layers=3)
    result = lm("hello", get_embeddings=True)
    assert result["embeddings"].shape == (1, 3, 6, 16)
    assert "attns" not in result
    assert torch.equal(result["logits"], lm("hello"))
    assert torch.equal(lm.unembed(lm.decoder.norm(result["embeddings"][:, -1])), lm("hello"))


@pytest.mark.parametrize("kind", ["torch-lstm", "torch-gru"])
def test_patterns_of_layers_without_attention_are_refused(kind):
    with pytest.raises(ValueError, match=f"layer_architecture='{kind}'"):
        tiny_lm(layer_architecture=kind)("abc", get_attns=True)


@pytest.mark.parametrize(("kind", "positions"), COMBINATIONS)
@pytest.mark.parametrize(
    "fields", [{}, {"tied_embeddings": False, "norm_position": "post", "bias": False}], ids=str
)
def test_every_parameter_gets_a_gradient(kind, positions, fields):
    lm = tiny_lm(layer_architecture=kind, positions=positions, **fields).train()
    losses, n_samples = lm.get_losses(batch_of(random_ids(20, 17)), None)
    losses["main"].backward()
    assert n_samples == 20
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_separate_heads_get_gradients():
    lm = tiny_lm(separate_heads=True)
    lm.get_losses(batch_of(random_ids(4, 17)), None)[0]["main"].backward()
    assert all(p.grad.abs().max() > 0 for name, p in lm.named_parameters() if not name.endswith("k.0.bias"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_kind_overfits_one_batch(kind):
    torch.manual_seed(0)
    lm = LM(tiny_params(layer_architecture=kind, dim=32), CharTokenizer())
    batch = batch_of(random_ids(4, 9))
    batch["target_mask"][:, :3] = False  # the first two predictions have nothing to go by
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(150):
        loss = lm.get_losses(batch, None)[0]["main"]
        if loss < 0.1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    _, y, z = lm.get_batch_xyz(batch)
    assert (z.argmax(dim=-1) == y)[y >= 0].all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dim", "n_tokens", "fields"),
    [
        (32, 30, {}),
        (256, 30, {"n_layers": 1}),
        (128, 30, {"n_layers": 6}),
        (64, 5000, {}),
        (128, 30, {"norm_position": "post", "positions": "none"}),
        (128, 30, {"norm_position": "post", "n_layers": 4}),
        (128, 30, {"tied_embeddings": False, "norm_position": "post"}),
        (128, 30, {"tied_embeddings": False, "positions": "sin"}),
        (32, 5000, {"positions": "none"}),
    ],
)
def test_the_first_loss_is_that_of_uniform_guessing(kind, dim, n_tokens, fields):
    torch.manual_seed(1)
    fields = {"max_seq_len": 32, "n_layers": 2} | fields
    lm = LM(tiny_params(layer_architecture=kind, dim=dim, **fields), CharTokenizer(n_tokens))
    with torch.no_grad():
        loss = lm.get_losses(batch_of(random_ids(32, 33, n_tokens)), None)[0]["main"].item()
    assert loss == pytest.approx(math.log(n_tokens), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_company_do_not_change_a_samples_loss(kind):
    lm = tiny_lm(layer_architecture=kind)
    rows = [random_ids(1, length, seed=length) for length in (5, 9, 17)]
    alone = [lm.get_losses(batch_of(row), None)[0]["main"] for row in rows]
    ids = torch.full((3, 17), lm.tokenizer.pad)
    scored = torch.zeros(3, 17, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : row.shape[1]] = row
        scored[i, : row.shape[1]] = True
    batch = batch_of(ids, scored)
    _, y, z = lm.get_batch_xyz(batch)
    for i, row in enumerate(rows):
        T = row.shape[1] - 1
        assert_close(F.cross_entropy(z[i, :T], row[0, 1:]), alone[i])
        assert (y[i, T:] == -100).all()
    together = lm.get_losses(batch, None)[0]["main"]
    assert_close(together, sum(loss * n for loss, n in zip(alone, (4, 8, 16), strict=True)) / 28)


def test_only_scored_positions_count():
    lm = tiny_lm()
    ids = random_ids(2, 6)
    scored = torch.zeros(2, 6, dtype=torch.bool)
    scored[0, 2] = scored[1, 5] = scored[1, 0] = True  # the first token of a row is never predicted
    loss = lm.get_losses(batch_of(ids, scored), None)[0]["main"]
    log_probs = lm(ids).log_softmax(dim=-1)
    assert_close(loss, -(log_probs[0, 1, ids[0, 2]] + log_probs[1, 4, ids[1, 5]]) / 2)
    none = lm.get_losses(batch_of(ids, torch.zeros_like(scored)), None)[0]["main"]
    assert none == 0  # and not NaN


def test_given_logits_are_not_computed_again(monkeypatch):
    lm = tiny_lm()
    batch = batch_of(random_ids(2, 6))
    loss = lm.get_losses(batch, None)[0]["main"]
    xyz = lm.get_batch_xyz(batch)
    monkeypatch.setattr(lm, "forward", None)
    assert torch.equal(lm.get_losses(batch, None, xyz=xyz)[0]["main"], loss)


@pytest.mark.parametrize("tied", [True, False])
def test_copies_and_files_keep_the_model(tied, tmp_path):
    lm = tiny_lm(tied_embeddings=tied)
    twin = copy.deepcopy(lm)
    assert torch.equal(twin("abc"), lm("abc"))
    assert (twin.unembed.weight is twin.embed.tokens.weight) == tied
    save_model(lm, str(tmp_path / "model.safetensors"))
    loaded = tiny_lm(tied_embeddings=tied, seed=7)
    load_model(loaded, str(tmp_path / "model.safetensors"))
    assert torch.equal(loaded("abc"), lm("abc"))
    assert (tmp_path / "model.safetensors").stat().st_size < 8 * n_params(lm) + 5000


@pytest.mark.parametrize(("kind", "positions"), COMBINATIONS)
def test_a_model_can_be_counted_without_memory(kind, positions):
    params = tiny_params(layer_architecture=kind, positions=positions)
    with torch.device("meta"):
        lm = LM(params, CharTokenizer())
    assert all(tensor.is_meta for tensor in [*lm.parameters(), *lm.buffers()])
    assert n_params(lm) == n_params(LM(params, CharTokenizer())) > 0
    assert lm(torch.zeros(2, 5, dtype=torch.int64, device="meta")).shape == (2, 5, 30)


def test_number_of_parameters_by_hand():
    block = 16 * 48 + 48 + 16 * 16 + 16 + 16 * 64 + 64 + 64 * 16 + 16 + 4 * 16
    assert n_params(tiny_lm()) == 30 * 16 + 16 * 16 + 2 * block + 2 * 16
    assert n_params(tiny_lm(tied_embeddings=False, positions="rotary")) == 2 * 30 * 16 + 2 * block + 2 * 16
    assert n_params(tiny_lm(dim_ff=10)) == n_params(tiny_lm()) - 2 * (54 * (16 + 16 + 1))


def test_no_layers_at_all_is_a_bigram_model():
    lm = tiny_lm(n_layers=0, positions="none")
    assert_close(lm([1, 5, 6])[0, -1], lm([1, 7, 6])[0, -1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layer_architecture": "torch-lstn"},
            "layer_architecture='torch-lstn' does not exist; did you mean 'torch-lstm'.*; --with FILE adds your own",
        ),
        ({"positions": "rope"}, "positions='rope' does not exist; .*there are: none, learned, sin, rotary"),
        ({"activation": "GELU"}, "activation='GELU' does not exist; .*there are: relu, gelu"),
        *(
            (
                {"layer_architecture": kind, "positions": "rotary"},
                f"positions='rotary' .*layer_architecture='{kind}'",
            )
            for kind in KINDS[1:]
            if kind != "mla"
        ),
        *(
            ({"layer_architecture": "mla", name: value}, f"{name}={value!r} .*layer_architecture='mla'")
            for name, value in {
                "qk_norm": "all-heads",
                "value_residual": True,
                "value_embeddings": True,
                "canon": "ab",
                "share": "k=v",
            }.items()
        ),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    params = tiny_params(**fields)
    assert re.search(message, "\n".join(model_problems(params)))
    with pytest.raises(ValueError, match=message):
        LM(params, CharTokenizer())


@pytest.mark.parametrize(("kind", "positions"), COMBINATIONS)
def test_possible_architectures_are_not_refused(kind, positions):
    assert not list(model_problems(tiny_params(layer_architecture=kind, positions=positions)))


@pytest.mark.parametrize("kind", ATTENTIVE)
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_initial_weights_are_normal_with_zero_biases(kind, norm_position):
    torch.manual_seed(0)
    lm = LM(
        tiny_params(dim=64, layer_architecture=kind, norm_position=norm_position, n_layers=8), CharTokenizer()
    )
    gain = {"pre": 0.5, "post": 1.0}[norm_position]
    for name, parameter in lm.decoder.layers.named_parameters():
        if parameter.dim() == 2:
            into_stream = name.endswith(("linear2.weight", "mixer.out.weight", "out_proj.weight"))
            expected = gain / parameter.shape[1] ** 0.5 / (4 if into_stream else 1)  # 4 = sqrt(2 * 8 layers)
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name
        else:
            assert parameter.unique().tolist() == [1.0 if "norm" in name and "weight" in name else 0.0], name
