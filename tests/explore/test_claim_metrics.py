"""Final metrics for claims: each against a model whose value is known, or computed again in another way."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from data.batch import mycollate
from data.data_params import DataParams
from data.syntheticdata import read_marks
from docs.generate import parts
from explore.inspection.scores import head_scores
from explore.scaling.stability import output_change
from model.lm import LM
from model.model_params import ModelParams
from tests.model.tiny import perturb
from train.data import make_data
from train.final_metrics import final_metrics, values_of_metrics

TASKS = {
    "markov_chain": {"length": 16},
    "bigram_backcopy": {"length": 16, "vocab_size": 8},
    "modular_addition": {"p": 17},
    "linear_regression": {"dims": 2, "n_points": 4, "n_bins": 8, "n_tasks": 3},
    "copy": {},
}


def made(tmp_path, task="markov_chain", n_samples=200, packed=False, **fields):
    """A perturbed tiny model and the data of a task."""
    model = ModelParams(**{"dim": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 64} | fields)
    data_params = DataParams(
        dataset_name=task,
        task_args=TASKS[task],
        n_samples=n_samples,
        val_pct=25,
        test_pct=0.5,
        packed=packed,
    )
    data = make_data(data_params, model, tmp_path)
    torch.manual_seed(1)
    lm = LM(model, tokenizer=data.tokenizer).eval()
    perturb(lm)
    return lm, data


def value(name, lm, data):
    return final_metrics[name](lm, data)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def val_batches(data):
    rows = data.rows("val")
    return [mycollate([rows[i]], pad=data.tokenizer.pad) for i in range(len(rows))]


def embed_numbers(lm, data, table):
    ids = data.tokenizer.ids_of([str(i) for i in range(len(table))])
    lm.embed.tokens.weight[ids] = torch.as_tensor(table, dtype=torch.float32)


def energies(table):
    """Energy by frequency, from scalar products with cosines and sines."""
    p = len(table)
    angles = 2 * np.pi * np.outer(np.arange(1, p // 2 + 1), np.arange(p)) / p
    waves = [np.cos(angles), np.sin(angles)]
    norms = [(wave**2).sum(axis=1) for wave in waves]
    parts = [
        ((wave @ table) ** 2).sum(axis=1) / np.maximum(n, 1e-9) for wave, n in zip(waves, norms, strict=True)
    ]
    return parts[0] + np.where(norms[1] > 1e-9, parts[1], 0)


@pytest.mark.parametrize("p", [17, 18])
def test_fourier_share_is_one_for_a_few_waves_and_else_what_scalar_products_give(tmp_path, monkeypatch, p):
    monkeypatch.setitem(TASKS, "modular_addition", {"p": p})
    lm, data = made(tmp_path, "modular_addition", n_samples=2_000)
    dice = np.random.default_rng(0)
    numbers = np.arange(p)[:, None]
    waves = sum(
        dice.normal(size=16) * np.cos(2 * np.pi * k * numbers / p + dice.normal(size=16))
        for k in (1, 2, 3, 5, 7, 8)
    )
    embed_numbers(lm, data, waves + dice.normal(size=16))
    assert value("fourier_share", lm, data) == pytest.approx(1, abs=1e-6)
    embed_numbers(lm, data, waves + 2 * np.cos(2 * np.pi * 4 * numbers / p))
    assert value("fourier_share", lm, data) < 0.95
    table = dice.normal(size=(p, 16))
    embed_numbers(lm, data, table + 9)
    expected = energies(table)
    share = np.sort(expected)[-6:].sum() / expected.sum()
    assert value("fourier_share", lm, data) == pytest.approx(share, rel=1e-5)


def test_fourier_share_needs_more_than_six_frequencies_and_its_task(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="needs dataset_name='modular_addition', not 'copy'"):
        value("fourier_share", *made(tmp_path, "copy"))
    monkeypatch.setitem(TASKS, "modular_addition", {"p": 13})
    with pytest.raises(ValueError, match="p=13 has only 6 frequencies"):
        value("fourier_share", *made(tmp_path, "modular_addition"))


ATTENTIVE = [
    {},
    {"attention": "fused"},
    {"layer_architecture": "torch-transformer"},
    {"attn_sink": "off-by-one"},
]


@pytest.mark.parametrize("fields", ATTENTIVE)
@pytest.mark.parametrize("task", ["bigram_backcopy", "copy"])
def test_sink_share_is_the_mean_over_patterns_one_query_at_a_time(tmp_path, fields, task):
    lm, data = made(tmp_path, task, **fields)
    shares = []
    for batch in val_batches(data):
        ids = batch["x_indices"][0, :-1]
        attns_LHTS = lm(ids, get_attns=True)["attns"][0]
        shares += [
            attns_LHTS[:, :, i, 0].flatten()
            for i, text in enumerate(lm.tokenizer.tokens(ids.tolist()))
            if i >= 3 and not (task == "bigram_backcopy" and text.startswith("t"))
        ]
    by_head = torch.stack(shares).mean(dim=0)
    assert value("sink_share", lm, data) == pytest.approx(float(by_head.mean()), rel=1e-4)
    assert value("largest_sink_share", lm, data) == pytest.approx(float(by_head.max()), rel=1e-4)


def test_triggers_are_queries_that_do_not_count(tmp_path):
    lm, data = made(tmp_path, "bigram_backcopy")
    triggers = data.tokenizer.ids_of(["t0", "t1", "t2"])

    def pattern_by_token(pattern_BHTS):
        ids_BT = patched_ids[0]
        new = torch.zeros_like(pattern_BHTS)
        new[..., 0] = 1
        new[torch.isin(ids_BT, torch.tensor(triggers))[:, None].expand(new.shape[:3])] = 0
        return new

    patched_ids = []
    lm.embed.register_forward_pre_hook(lambda _, args: patched_ids.__setitem__(slice(None), [args[0]]))
    with lm.patch({"pattern": pattern_by_token}):
        assert value("sink_share", lm, data) == pytest.approx(1)


def test_induction_score_is_the_largest_of_the_head_scores(tmp_path):
    lm, data = made(tmp_path, "copy")
    assert value("induction_score", lm, data) == head_scores(lm)["induction"].max()


def test_induction_score_of_a_head_that_attends_so_is_one(tmp_path):
    lm, data = made(tmp_path, "copy")
    n = (lm(list(range(4)))).shape[-1]
    length = min(50, (64 - 1) // 2, n - 3)

    def back(pattern_BHTS):
        new = torch.zeros_like(pattern_BHTS)
        for t in range(new.shape[2]):
            new[:, :, t, max(0, t - length + 1)] = 1
        return new

    with lm.patch({"layers.1.pattern": back}):
        assert value("induction_score", lm, data) == pytest.approx(1)


@pytest.mark.parametrize(
    "fields", [{}, {"attention": "fused"}, {"positions": "alibi"}, {"causal": False, "objective": "masked"}]
)
def test_largest_attention_score_is_that_of_each_row_alone(tmp_path, fields):
    """Rows differ in length, so padding would show."""
    lm, data = made(tmp_path, "copy", **fields)
    found = []
    for batch in val_batches(data):
        with lm.record("scores") as seen:
            lm.get_batch_xyz(batch)
        found += [float(scores.max()) for scores in seen.values()]
    assert value("largest_attention_score", lm, data) == pytest.approx(max(found), rel=1e-5)


def test_mean_log_z_is_known_for_constant_logits_and_rises_with_them(tmp_path):
    lm, data = made(tmp_path, "copy")
    with lm.patch({"logits": 3.0}):
        assert value("mean_log_z", lm, data) == pytest.approx(3 + math.log(lm.n_tokens), rel=1e-6)
    found = []
    for batch in val_batches(data):
        z_TV = lm(batch["x_indices"][:, :-1])[0]
        found += np.log(np.exp(z_TV[batch["target_mask"][0, 1:]].double().numpy()).sum(axis=1)).tolist()
    assert value("mean_log_z", lm, data) == pytest.approx(np.mean(found), rel=1e-5)


def test_output_change_is_that_of_the_stability_check_and_leaves_the_weights(tmp_path):
    lm, data = made(tmp_path, "copy", norm_position="post")
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    x_BT = next(iter(data.train_dataloader(16)))["x_indices"][:, :-1]
    expected = output_change(lm, x_BT, 1e-4, torch.Generator().manual_seed(0))
    assert value("output_change", lm, data) == expected > 0
    assert all(torch.equal(before[name], weight) for name, weight in lm.state_dict().items())


def test_output_change_restores_the_weights_of_a_model_that_fails(tmp_path):
    lm, data = made(tmp_path, "copy")
    before, calls = lm.decoder.layers[0].mixer.out.weight.clone(), []

    def second_call_fails(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    lm.decoder.register_forward_pre_hook(second_call_fails)
    assert values_of_metrics(["output_change"], lm, data) == {"output_change": None}
    assert torch.equal(before, lm.decoder.layers[0].mixer.out.weight)


def brute_force_loss(data, after_same_token):
    """Mean nats of scored tokens, counted one by one in the text of each sample."""
    samples = [read_marks(sample) for sample in data.data.split("val")]
    end = [([*s.tokens, "<end>"], [*s.scored, s.end_scored]) for s in samples]
    known = {
        token for tokens, scored in end for token, is_scored in zip(tokens, scored, strict=True) if is_scored
    }
    nats = []
    for tokens, scored in end:
        counts = {}
        for i, (token, is_scored) in enumerate(zip(tokens, scored, strict=True)):
            before = tokens[i - 1] if after_same_token and i else None
            own = counts.setdefault(before, Counter())
            if is_scored:
                nats.append(-math.log((own[token] + 1) / (own.total() + len(known))))
            if token in known:
                own[token] += 1
    return np.mean(nats)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("task", ["markov_chain", "copy", "bigram_backcopy"])
def test_losses_by_counts_are_those_of_counting_one_by_one(tmp_path, task, packed):
    lm, data = made(tmp_path, task, packed=packed)
    assert value("unigram_loss", lm, data) == pytest.approx(brute_force_loss(data, False))
    assert value("bigram_loss", lm, data) == pytest.approx(brute_force_loss(data, True))


def test_the_bigram_loss_of_markov_chains_is_that_of_their_best_predictor(tmp_path):
    lm, data = made(tmp_path, n_samples=1000)
    assert value("bigram_loss", lm, data) == pytest.approx(data.reference_loss)
    assert value("unigram_loss", lm, data) > data.reference_loss + 0.05
    assert value("token_entropy", lm, data) == pytest.approx(math.log(3), abs=0.03)


def test_token_entropy_of_text_is_that_of_its_characters(tmp_path):
    model = ModelParams(dim=16, n_heads=2, n_layers=1, max_seq_len=64)
    data = make_data(DataParams(dataset_name="sotu", val_pct=0.2, test_pct=0.2), model, tmp_path)
    counts = Counter(
        i for batch in val_batches(data) for i in batch["x_indices"][batch["target_mask"]].tolist()
    )
    shares = np.array([*counts.values()]) / counts.total()
    lm = LM(model, tokenizer=data.tokenizer)
    assert value("token_entropy", lm, data) == pytest.approx(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("sink_share", {"layer_architecture": "torch-gru", "positions": "none"}, "no layer records attention pattern"),
        ("induction_score", {"layer_architecture": "mamba2", "positions": "none"}, "no activation is named"),
        ("largest_attention_score", {"layer_architecture": "torch-transformer"}, "no layer records attention scores"),
        ("unigram_loss", {"causal": False, "objective": "masked"}, "predicts hidden tokens"),
        ("regression_error", {}, "needs dataset_name='linear_regression', not 'copy'"),
    ],
)  # fmt: skip
def test_a_model_that_a_metric_does_not_fit_has_no_value_and_a_warning(
    tmp_path, caplog, name, fields, message
):
    lm, data = made(tmp_path, "copy", **fields)
    assert values_of_metrics([name], lm, data) == {name: None}
    assert message in caplog.text


SHIPPED = sorted(name for name, one in final_metrics.items() if one.__module__.startswith("explore."))
FITTING = {
    "fourier_share": "modular_addition",
    "sink_share": "bigram_backcopy",
} | {name: "linear_regression" for name in SHIPPED if final_metrics[name].__module__.endswith("regression_metrics")}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_a_metric_changes_neither_random_numbers_nor_the_model(tmp_path, name):
    lm, data = made(tmp_path, FITTING.get(name, "markov_chain"))
    lm.train()
    before = {key: weight.clone() for key, weight in lm.state_dict().items()}
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 -- the state that a metric might disturb
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert math.isfinite(values_of_metrics([name], lm, data)[name])
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002
    assert lm.training
    assert not lm.taps
    assert all(torch.equal(before[key], weight) for key, weight in lm.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", SHIPPED)
def test_a_metric_has_the_same_value_on_a_gpu(tmp_path, name):
    lm, data = made(tmp_path, FITTING.get(name, "markov_chain"))
    on_cpu = value(name, lm, data)
    assert value(name, lm.cuda(), data) == pytest.approx(on_cpu, rel=0.01)


def test_the_page_of_claims_lists_every_metric_with_its_source():
    table = parts["metrics"]()
    for name in SHIPPED:
        [line] = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
        assert name == "token_entropy" or " 20" in line, "the year of its source"
