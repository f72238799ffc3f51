"""Analyses against another way to the same number: models cut short, matrices without a head's columns, planted heads."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader

from explore.inspection.analysis import ablate, activation_patching, direct_logit_attribution, logit_lens
from explore.inspection.scores import head_scores, loss_by_position, loss_by_token, over_checkpoints
from model.context import Layer
from tests.model.tiny import CharTokenizer, architectures, batch_of, perturbed_lm, random_ids, tiny_lm

SAMPLES = ["abcabc", "hello", "attention", "zz"]


class Tokenizer(CharTokenizer):
    def tokens(self, ids):
        return [f"<{i}>" for i in ids]


def lm_of(**fields):
    lm = tiny_lm(**fields)
    lm.tokenizer = Tokenizer()
    return lm


LINEAR_IN_THE_PARTS = {"readout_transform": False, "logit_softcap": None, "stream_lambdas": False}
# Otherwise layers also see the embeddings, or the values of the first layer.
STREAM_ONLY = {"stream_lambdas": False, "value_residual": False, "value_embeddings": False}


@settings(max_examples=25, deadline=None)
@given(architectures(n_loops=1))
def test_logit_lens_equals_the_model_truncated_after_each_layer(params):
    lm = perturbed_lm(params)
    ids = random_ids(2, 8)
    lens = logit_lens(lm, ids)
    assert lens.shape == (2, params.n_layers, 8, 30)
    assert not lens.requires_grad
    for n in range(params.n_layers, 0, -1):
        del lm.decoder.layers[n:]
        assert_close(lens[:, n - 1], lm(ids))


@settings(max_examples=40, deadline=None)
@given(architectures(**LINEAR_IN_THE_PARTS), st.integers(0, 7), st.integers(0, 29))
def test_attributions_add_up_to_the_logit(params, position, token):
    assume(params.norm_position != "post")
    lm = perturbed_lm(params)
    lm.tokenizer = Tokenizer()
    ids = random_ids(1, 8)
    parts = direct_logit_attribution(lm, ids, position, token)
    assert parts.name == f"<{token}>"
    assert parts.sum() == pytest.approx(lm(ids)[0, position, token].item(), rel=1e-9, abs=1e-8)


class Held(nn.Module):
    """A norm whose scale is that of the first thing it saw."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.spread = norm, None

    def forward(self, x):
        norm = self.norm
        if isinstance(norm, nn.LayerNorm):
            x = x - x.mean(dim=-1, keepdim=True)
        if self.spread is None:
            self.spread = (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt().detach()
        return x / self.spread * norm.weight + (norm.bias if isinstance(norm, nn.LayerNorm) else 0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_kv_heads": 1, "norm": "rmsnorm"},
        {"parallel_blocks": True},
        {"norm_position": "sandwich"},
        {"norm_position": "sandwich", "norm": "rmsnorm", "bias": False},
        {"layer_architecture": ("custom-transformer", "gated-conv")},
    ],
    ids=str,
)
def test_an_attribution_is_the_change_of_the_logit_without_that_part(fields):
    """With all norms held, and every other addition as it was, no part changes another."""
    lm, ids = lm_of(**fields), random_ids(1, 6)
    parts = direct_logit_attribution(lm, ids, position=4, token=9)
    lm.decoder.norm = Held(lm.decoder.norm)
    for layer in lm.decoder.layers:
        if fields.get("norm_position") == "sandwich":
            layer.norm1.inside = Held(layer.norm1.inside)
    with torch.no_grad(), lm.record("embed", "attn_out", "mlp_out") as added:
        logit = lm(ids)[0, 4, 9]
    n_heads = {i: 2 for i, layer in enumerate(lm.decoder.layers) if "Attention" in type(layer.mixer).__name__}
    names = [f"layers.{i}.head_out.{h}" for i, n in n_heads.items() for h in range(n)]
    names += [
        name for name in added if not (name.endswith("attn_out") and int(name.split(".")[1]) in n_heads)
    ]
    assert set(parts.index) - set(names) == {"final_norm", *(f"layers.{i}.attn_bias" for i in n_heads)}
    for name in names:
        other = {
            key: x for key, x in added.items() if key not in (name, name.replace("head_out", "attn_out")[:17])
        }
        without = {name: 0}
        if "head_out" in name:
            activation, _, head = name.rpartition(".")
            without = {activation: lambda x, head=int(head): x.index_fill(1, torch.tensor(head), 0)}
        with torch.no_grad(), lm.patch(other | without):
            assert parts[name] == pytest.approx(float(logit - lm(ids)[0, 4, 9]), abs=1e-9), name


def test_attribution_treats_layers_without_parts_as_one_part_and_refuses_nonlinear_models():
    lm, ids = lm_of(layer_architecture="torch-lstm"), random_ids(1, 6)
    lm.decoder.layers.insert(1, nn.ReLU())
    parts = direct_logit_attribution(lm, ids)
    assert list(parts.index) == ["embed", "layers.0", "layers.1", "layers.2", "final_norm"]
    logits = lm(ids)[0, -1]
    assert parts.name == f"<{int(logits.argmax())}>"
    assert parts.sum() == pytest.approx(logits.max().item())
    with pytest.raises(
        ValueError, match="norm_position='post' rescales the residual stream after every addition"
    ):
        direct_logit_attribution(lm_of(norm_position="post"), ids)
    lm = lm_of()
    lm.unembed.register_forward_hook(lambda module, args, logits: logits.tanh())
    with pytest.raises(ValueError, match="the parts do not add up to the logits"):
        direct_logit_attribution(lm, ids)
    lm = lm_of()
    lm.decoder.norm = nn.Tanh()
    with pytest.raises(ValueError, match="layernorm and rmsnorm, not Tanh"):
        direct_logit_attribution(lm, ids)


def test_attribution_refuses_batches_unknown_positions_and_unknown_tokens():
    lm = lm_of()
    with pytest.raises(ValueError, match=r"position=-1: the input has shape \[2, 6\]"):
        direct_logit_attribution(lm, random_ids(2, 6))
    with pytest.raises(ValueError, match=r"position=6: the input has shape \[1, 6\]; .* from -6 to 5"):
        direct_logit_attribution(lm, random_ids(1, 6), position=6)
    with pytest.raises(ValueError, match="token=30: token ids go from 0 to 29"):
        direct_logit_attribution(lm, random_ids(1, 6), token=30)


@settings(max_examples=20, deadline=None)
@given(architectures(**STREAM_ONLY), st.data())
def test_the_clean_stream_at_all_positions_restores_the_clean_run(params, data):
    lm, clean, corrupted = perturbed_lm(params), random_ids(2, 7), random_ids(2, 7, seed=1)
    name = f"layers.{data.draw(st.integers(0, params.n_layers - 1))}.resid_pre"
    with lm.record(name) as seen:
        logits = lm(clean)
    assert not torch.allclose(lm(corrupted), logits)
    with lm.patch(seen):
        assert_close(lm(corrupted), logits)


@pytest.mark.parametrize("kind", ["custom-transformer", "torch-gru", "mamba2"])
def test_patching_the_stream_moves_what_the_changed_token_says(kind):
    lm = lm_of(layer_architecture=kind)
    clean, corrupted = random_ids(2, 6), random_ids(2, 6)
    corrupted[:, 2] = (clean[:, 2] + 1) % 30

    def metric(logits):
        return logits.detach()[:, -1, 3].sum()

    clean_metric, corrupted_metric = float(metric(lm(clean))), float(metric(lm(corrupted)))
    table = activation_patching(lm, clean, corrupted, metric)
    assert table.shape == (2, 6)
    assert (table.index.name, table.columns.name) == ("layer", "position")
    assert table.loc[0, 2] == pytest.approx(clean_metric)
    for position in (0, 1, 3, 4, 5):  # where the two runs do not differ yet
        assert table.loc[0, position] == pytest.approx(corrupted_metric)
    assert table.loc[1, 2] != pytest.approx(clean_metric)
    last = activation_patching(lm, clean, corrupted, metric, "resid_post")
    assert last.loc[1].tolist() == pytest.approx([corrupted_metric] * 5 + [clean_metric])


@pytest.mark.parametrize("name", ["z", "head_out"])
def test_patching_heads(name):
    lm, clean, corrupted = lm_of(n_heads=4, attention="fused"), random_ids(1, 5), random_ids(1, 5, seed=1)
    table = activation_patching(lm, clean, corrupted, lambda logits: logits[0, -1, 3], name)
    assert table.index.names == ["layer", "head"]
    assert table.shape == (8, 5)
    with lm.record(name) as theirs:
        lm(clean)
    with lm.record(name) as ours:
        lm(corrupted)
    for layer, head, position in [(0, 2, 3), (1, 0, 4), (1, 3, 1)]:
        mixed = ours[f"layers.{layer}.{name}"].clone()
        mixed[:, head, position] = theirs[f"layers.{layer}.{name}"][:, head, position]
        with lm.patch({f"layers.{layer}.{name}": mixed}):
            expected = lm(corrupted)[0, -1, 3].item()
        assert table.loc[(layer, head), position] == pytest.approx(expected)


def test_patching_refuses_different_shapes_and_unknown_activations():
    with pytest.raises(ValueError, match=r"differ in shape: \(1, 5\) and \(1, 6\)"):
        activation_patching(lm_of(), random_ids(1, 5), random_ids(1, 6), torch.sum)
    with pytest.raises(
        ValueError, match=r"no activation is named 'layers\.\*\.z'; there are: embed, layers\.\*\.resid_pre"
    ):
        activation_patching(
            lm_of(layer_architecture="torch-lstm"), random_ids(1, 5), random_ids(1, 5), torch.sum, "z"
        )


def mean_loss(lm, samples=SAMPLES):
    """Sample by sample, without padding."""
    losses = []
    for sample in samples:
        ids = torch.tensor(lm.tokenizer(sample))
        losses.append(F.cross_entropy(lm(ids[None])[0, :-1], ids[1:], reduction="none"))
    return torch.cat(losses).mean().item()


def test_ablating_a_head_equals_zeroing_its_columns_of_the_output_matrix():
    lm = lm_of(n_heads=4)
    before = mean_loss(lm)
    table = ablate(lm, SAMPLES)
    assert table.index.names == ["layer", "head"]
    assert len(table) == 8
    for layer, head in [(0, 0), (0, 3), (1, 2)]:
        out = lm.decoder.layers[layer].mixer.out
        weight = out.weight.detach().clone()
        with torch.no_grad():
            out.weight[:, 4 * head : 4 * head + 4] = 0
        assert table[layer, head] == pytest.approx(mean_loss(lm) - before, abs=1e-6)
        out.weight.data = weight


@pytest.mark.parametrize("name", ["z", "mlp_out"])
def test_mean_ablation_replaces_by_the_mean_over_scored_positions(name):
    lm = lm_of()
    before, of_samples = mean_loss(lm), []
    for sample in SAMPLES:
        with lm.record(name) as seen:
            lm(lm.tokenizer(sample)[:-1])  # each position that predicts something
        of_samples.append(seen[f"layers.1.{name}"][0])
    table = ablate(lm, SAMPLES, name, by="mean")
    if name == "mlp_out":
        assert table.index.name == "layer"
        edit, key = torch.cat(of_samples).mean(dim=0), 1
    else:
        mean = torch.cat(of_samples, dim=1).mean(dim=1)
        edit, key = lambda z: torch.cat([z[:, :1], mean[None, 1:, None].expand_as(z[:, 1:])], dim=1), (1, 1)
    with lm.patch({f"layers.1.{name}": edit}):
        assert table[key] == pytest.approx(mean_loss(lm) - before, abs=1e-6)


def test_ablation_of_layers_with_and_without_heads():
    lm = lm_of(layer_architecture=("custom-transformer", "gated-conv"))
    table = ablate(lm, SAMPLES)
    assert table.index.droplevel("head").tolist() == [0, 0, 1]
    before = mean_loss(lm)
    with lm.patch({"layers.1.z": 0}):
        assert table.iloc[2] == pytest.approx(mean_loss(lm) - before, abs=1e-6)


def test_ablation_of_a_data_loader_uses_scored_positions_only():
    lm, ids = lm_of(), random_ids(4, 9)
    scored = torch.zeros_like(ids, dtype=torch.bool)
    scored[:, 5:7] = True
    loader = DataLoader([batch_of(ids[:3], scored[:3]), batch_of(ids[3:], scored[3:])], batch_size=None)
    table = ablate(lm, loader, "attn_out", by="mean")
    with lm.record("attn_out") as seen:
        logits = lm(ids)

    def loss(logits):
        return F.cross_entropy(logits[:, 4:6].flatten(0, 1), ids[:, 5:7].flatten()).item()

    with lm.patch({"layers.0.attn_out": seen["layers.0.attn_out"][:, 4:6].mean(dim=(0, 1))}):
        assert table[0] == pytest.approx(loss(lm(ids)) - loss(logits), abs=1e-6)
    with pytest.raises(ValueError, match="by='noise' must be 'zero' or 'mean'"):
        ablate(lm, loader, by="noise")


class Planted(Layer):
    """Attends, by brute force over the tokens, in five ways: before, to the same, to what came next, to all, to itself."""

    def forward(self, x_BTD, ctx):
        B, T = ctx.ids_BT.shape
        pattern = torch.zeros(B, 5, T, T, dtype=x_BTD.dtype)
        for b, ids in enumerate(ctx.ids_BT.tolist()):
            for t, token in enumerate(ids):
                earlier = [s for s in range(t) if ids[s] == token]
                same = earlier[0] if earlier else t
                to = [max(t - 1, 0), same, same + 1 if earlier else 0]
                pattern[b, [0, 1, 2], t, to] = 1
                pattern[b, 3, t, : t + 1] = 1 / (t + 1)
                pattern[b, 4, t, t] = 1
        ctx.tap("pattern", pattern)
        return x_BTD


@pytest.mark.parametrize("length", [None, 2, 13])
def test_planted_heads_are_found(length):
    lm = lm_of(layer_architecture="torch-gru", max_seq_len=40)
    lm.decoder.layers.insert(1, Planted())
    lm.train()
    table = head_scores(lm, n_samples=3, length=length)
    assert lm.training
    assert table.index.names == ["layer", "head"]
    assert table.index.tolist() == [(1, head) for head in range(5)]
    assert list(table.columns) == ["previous_token", "duplicate_token", "induction"]
    found = table.to_numpy()
    before_is_next = length == 2  # of two tokens the one before is the one that came after
    assert found[:3].tolist() == [[1, 0, before_is_next], [0, 1, 0], [before_is_next, 0, 1]]
    n = length or 19
    uniform = sum(1 / (t + 1) for t in range(n + 1, 2 * n + 1)) / n
    assert found[3].tolist() == pytest.approx([uniform] * 3)
    assert found[4].tolist() == [0, 0, 0]


def test_an_induction_circuit_of_two_layers_is_found_in_its_weights():
    """Layer 0 copies the token before into a free part of the stream; layer 1 looks for its own token there."""
    lm = lm_of(
        dim=80, n_heads=1, max_seq_len=20, dim_ff=0, norm_position="none", bias=False, tied_embeddings=False
    )
    tokens, positions, before = slice(0, 30), slice(30, 50), slice(50, 80)
    sharp, big = torch.eye(80, dtype=torch.float64), 1e3
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.zero_()
        lm.embed.tokens.weight[:, tokens] = sharp[:30, :30]
        lm.embed.positions.table.weight[:, positions] = sharp[:20, :20]
        for layer, query, key in ((0, positions, positions), (1, tokens, before)):
            mixer = lm.decoder.layers[layer].mixer
            q, k, v = mixer.qkv.weight.split(80)
            n = query.stop - query.start
            q[:n, query] = big * (sharp[:n, :n].roll(-1, dims=0) if layer == 0 else sharp[:n, :n])
            k[:n, key] = sharp[:n, :n]
            v[before, tokens] = sharp[:30, :30]
            mixer.out.weight.copy_((1 - layer) * sharp)
    table = head_scores(lm, length=9).round(3)
    assert table.loc[0, 0].tolist() == [1, 0, 0]
    assert table.loc[1, 0].tolist() == [0, 0, 1]


def test_head_scores_refuse_lengths_that_do_not_fit_and_models_without_patterns():
    for length in (1, 8):
        with pytest.raises(
            ValueError, match=f"length={length}: the sequence is written twice, so max_seq_len=16 .* 2 to 7"
        ):
            head_scores(lm_of(), length=length)
    with pytest.raises(ValueError, match=r"no activation is named 'layers\.\*\.pattern'"):
        head_scores(lm_of(layer_architecture="torch-lstm"))


def test_losses_by_position_and_by_token():
    lm = lm_of()
    rows = []
    for sample in SAMPLES:
        ids = lm.tokenizer(sample)
        log_probs = lm(ids)[0].log_softmax(dim=-1)
        rows += [(t, ids[t], -log_probs[t - 1, ids[t]].item()) for t in range(1, len(ids))]
    by_position, by_token = loss_by_position(lm, SAMPLES), loss_by_token(lm, SAMPLES)
    assert by_position.index.tolist() == list(range(1, 10))
    for position, row in by_position.iterrows():
        losses = [loss for t, _, loss in rows if t == position]
        assert row["count"] == len(losses)
        assert row.loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert len(by_token) == len({token for _, token, _ in rows})
    for token, row in by_token.iterrows():
        losses = [loss for _, i, loss in rows if i == token]
        assert (row.token, row["count"]) == (f"<{token}>", len(losses))
        assert row.loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert by_token["count"].is_monotonic_decreasing
    with pytest.raises(ValueError, match="no token of the samples is scored"):
        loss_by_position(lm, [""])


def checkpoints():
    """Yield one model that changes from step to step, as the checkpoints of a run do."""
    lm = lm_of(max_seq_len=12, tied_embeddings=False)
    for step in (10, 20, 30):
        with torch.no_grad():
            lm.unembed.weight.mul_(2)
        yield step, lm


def test_over_checkpoints_equals_one_call_per_checkpoint():
    models = [(step, mean_loss(lm)) for step, lm in checkpoints()]
    numbers = over_checkpoints(mean_loss, checkpoints())
    assert numbers.index.name == "step"
    assert list(numbers["value"].items()) == models
    rises = over_checkpoints(lambda lm: ablate(lm, SAMPLES), checkpoints())
    assert rises.shape == (3, 4)
    assert rises.columns.names == ["layer", "head"]
    for step, lm in checkpoints():
        pd.testing.assert_series_equal(rises.loc[step], ablate(lm, SAMPLES), check_names=False)
    scores = over_checkpoints(head_scores, checkpoints())
    assert scores.index.names == ["step", "layer", "head"]
    pd.testing.assert_frame_equal(scores.loc[20], head_scores(lm_of(max_seq_len=12, tied_embeddings=False)))
    with pytest.raises(ValueError, match="there are no checkpoints"):
        over_checkpoints(mean_loss, [])


def test_tensors_over_checkpoints_keep_every_number():
    lens = over_checkpoints(lambda lm: logit_lens(lm, "hello"), checkpoints())
    assert lens.index.names == ["step", "0", "1", "2"]
    for step, lm in checkpoints():
        expected_BLTV = logit_lens(lm, "hello")
        own = lens.loc[step]
        assert own.shape == (expected_BLTV[..., 0].numel(), lm.n_tokens)
        assert own.loc[0, 1, 2].to_list() == expected_BLTV[0, 1, 2].tolist()
    ends = over_checkpoints(lambda lm: lm("hello")[0, -1].bfloat16(), checkpoints())
    assert ends.shape == (3, lm_of(max_seq_len=12).n_tokens)
    arrays = over_checkpoints(lambda lm: np.array([1.0, 2.0]), checkpoints())
    assert arrays.loc[20].to_list() == [1, 2]
    assert over_checkpoints(lambda lm: torch.tensor(3.0), checkpoints())["value"].to_list() == [3, 3, 3]


def test_over_checkpoints_refuses_results_that_fit_no_table():
    with pytest.raises(TypeError, match="a number, Series, DataFrame or tensor, not dict"):
        over_checkpoints(lambda lm: {}, checkpoints())
