"""Circuits against their definition: full products of matrices, planted heads, and a model that is cut off."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from data.batch import mycollate
from data.tokenizer import char_tokenizer
from explore.inspection.analysis import run_until
from explore.inspection.circuits import circuit_svd, composition_scores, matrices_by_layer
from explore.inspection.scores import detect_heads, expected_patterns
from model.lm import LM
from model.model_params import ModelParams
from model.recording import at
from tests.model.tiny import random_ids, tiny_lm

FIELDS = [
    {},
    {"n_kv_heads": 1},
    {"separate_heads": True},
    {"share": "k=v,o=q.T"},
    {"lora_rank": 2},
    {"head_dim": 20},  # wider than the stream
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_the_matrices_are_those_that_the_model_applies(fields):
    lm = tiny_lm(positions="rotary", norm_position="none", bias=False, **fields)
    with torch.no_grad(), lm.record("layers.1.*") as seen:
        lm(random_ids(1, 4))
    x, m = seen["layers.1.resid_pre"], matrices_by_layer(lm)[1]
    n_groups = seen["layers.1.k"].shape[1]
    assert_close(x @ m.q_HDK, seen["layers.1.q"][0])
    assert_close((x @ m.k_HDK)[:: 2 // n_groups], seen["layers.1.k"][0])
    assert_close((x @ m.v_HDK)[:: 2 // n_groups], seen["layers.1.v"][0])
    assert_close(seen["layers.1.z"][0] @ m.o_HKD, seen["layers.1.head_out"][0])


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_composition_scores_equal_norms_of_full_products(fields):
    lm = tiny_lm(n_layers=3, **fields)
    layers = matrices_by_layer(lm)
    qk, ov = ({i: torch.matmul(*m.circuit(name)) for i, m in layers.items()} for name in ("QK", "OV"))
    tables = {reads: composition_scores(lm, reads) for reads in "QKV"}
    for (w, i), (r, j) in [((0, 1), (1, 0)), ((0, 0), (2, 1)), ((1, 1), (2, 0))]:
        a = ov[w][i]
        for reads, b in {"Q": qk[r][j], "K": qk[r][j].T, "V": ov[r][j]}.items():
            expected = (a @ b).norm() / a.norm() / b.norm()
            assert tables[reads].loc[(w, i), (r, j)] == pytest.approx(expected.item())
            assert tables[reads].loc[(r, j), (w, i)] == tables[reads].loc[(w, 0), (w, 1)] == 0


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("name", ["QK", "OV"])
def test_singular_vectors_give_the_circuit(fields, name):
    lm = tiny_lm(**fields)
    left, right = matrices_by_layer(lm)[1].circuit(name)
    svd = circuit_svd(lm, name, layer=1, head=1)
    assert_close(svd.left * svd.values @ svd.right.T, left[1] @ right[1])
    assert_close(svd.values, torch.linalg.svdvals(left[1] @ right[1])[: len(svd.values)])
    for vectors in (svd.left, svd.right):
        assert_close(vectors.T @ vectors, torch.eye(len(svd.values), dtype=torch.float64))


def test_unknown_circuits_and_models_without_any_are_refused():
    with pytest.raises(ValueError, match="circuit='KQ' must be 'QK' or 'OV'"):
        circuit_svd(tiny_lm(), "KQ", 0, 0)
    with pytest.raises(
        ValueError, match=r"layer=2, head=0: the numbers of heads by layer are \{0: 2, 1: 2\}"
    ):
        circuit_svd(tiny_lm(), "QK", 2, 0)
    with pytest.raises(ValueError, match="reads='O' must be 'Q', 'K' or 'V'"):
        composition_scores(tiny_lm(), "O")
    for kind in ("mla", "torch-gru"):
        with pytest.raises(ValueError, match=f"no layer has matrices .*: layer_architecture='{kind}'"):
            composition_scores(tiny_lm(layer_architecture=kind, positions="none"), "Q")


def test_a_run_stops_at_an_activation():
    lm, ids = tiny_lm(n_layers=3).train(), random_ids(2, 5)
    with lm.record("layers.1.resid_pre") as whole:
        logits = lm(ids)
    calls = []
    lm.decoder.layers[1].register_forward_hook(lambda *_: calls.append(1))
    with lm.record("layers.0.z") as seen:
        stream = run_until(lm, ids, "layers.1.resid_pre")
    assert_close(stream, whole["layers.1.resid_pre"])
    assert seen["layers.0.z"].shape == (2, 2, 5, 8)
    assert stream.requires_grad
    assert calls == []
    assert lm.training
    assert torch.equal(lm(ids), logits)  # nothing is left behind
    with lm.patch({"layers.0.z": at(0, heads=1)}):
        assert not torch.allclose(run_until(lm, ids, "layers.1.resid_pre"), stream)
    with pytest.raises(ValueError, match=r"no activation is named 'layers\.3\.resid_pre'; did you mean"):
        run_until(lm, ids, "layers.3.resid_pre")


def test_expected_patterns_by_brute_force():
    tokens = list("abacab")
    found = expected_patterns(tokens)
    for t in range(6):
        earlier = [s for s in range(t) if tokens[s] == tokens[t]]
        assert np.flatnonzero(found["previous_token"][t]).tolist() == [t - 1] * (t > 0)
        assert np.flatnonzero(found["duplicate_token"][t]).tolist() == earlier
        assert np.flatnonzero(found["induction"][t]).tolist() == [s + 1 for s in earlier]


def test_heads_of_several_sequences_are_the_mean_without_padding():
    lm = LM(ModelParams(dim=8, n_layers=2, n_heads=2, max_seq_len=20), char_tokenizer("abc"))
    texts = ["abcabc", "ba", "ccab"]
    rows = [lm.tokenizer(text) for text in texts]
    alone = sum(detect_heads(lm, text) for text in texts) / 3
    pad = lm.tokenizer.pad
    padded = torch.nn.utils.rnn.pad_sequence([*map(torch.tensor, rows)], batch_first=True, padding_value=pad)
    batch = mycollate(rows, pad=5)  # an id that is no padding elsewhere
    for samples in (texts, tuple(texts), rows, padded, batch):
        pd.testing.assert_frame_equal(detect_heads(lm, samples), alone, rtol=1e-5)
    ends_with_pad = torch.tensor([[*rows[1], pad]])
    assert not detect_heads(lm, ends_with_pad).equals(detect_heads(lm, texts[1])), "one row has no padding"
    with pytest.raises(ValueError, match="there are no samples"):
        detect_heads(lm, {"x_indices": torch.ones(0, 3), "mask": torch.ones(0, 3)})


def test_heads_are_compared_with_a_pattern_of_ones_own():
    lm, ids = tiny_lm(), random_ids(1, 6)
    patterns = lm(ids, get_attns=True)["attns"][0].detach()
    table = detect_heads(lm, ids, patterns[1, 0], measure="distance")
    assert list(table.columns) == ["pattern"]
    assert table.loc[(1, 0), "pattern"] == pytest.approx(1)
    assert (table["pattern"] < 0.999).sum() == 3
    to_first = torch.zeros(6, 6)
    to_first[:, 0] = 1
    shares = detect_heads(lm, ids, to_first)["pattern"]
    assert shares.tolist() == pytest.approx(patterns[..., 0].mean(dim=-1).flatten().tolist())
    assert detect_heads(lm, ids, to_first, exclude_first=True)["pattern"].tolist() == [0] * 4
    with pytest.raises(ValueError, match=r"pattern has shape \(5, 5\), but the sample needs \(6, 6\)"):
        detect_heads(lm, ids, torch.ones(5, 5))
    with pytest.raises(ValueError, match="measure='mul' must be 'share' or 'distance'"):
        detect_heads(lm, ids, measure="mul")
