"""Perplexities against a computation of their own, one sample at a time."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from tests.model.tiny import batch_of, random_ids, tiny_lm

SAMPLES = ["hello", "hi", "", *("abcdefghij"[: 1 + i % 9] for i in range(40))]  # more than go through at once


def losses_one_by_one(lm, samples) -> list[list[float]]:
    table = []
    for sample in samples:
        ids = lm.tokenizer(sample)
        log_probs = lm(ids)[0].log_softmax(dim=-1)
        table.append([-log_probs[t, ids[t + 1]].item() for t in range(len(ids) - 1)])
    return table


def test_perplexities_of_strings():
    lm = tiny_lm(dropout=0.5).train()
    mean, high, low, total, nothing = lm.perplexities(SAMPLES)
    table = losses_one_by_one(lm.eval(), SAMPLES)
    flat = [loss for losses in table for loss in losses]
    assert total == len(flat) == sum(map(len, SAMPLES))
    assert nothing == []
    assert mean == pytest.approx(math.exp(sum(flat) / len(flat)))
    assert high == pytest.approx(math.exp(max(flat)))
    assert low == pytest.approx(math.exp(min(flat)))


@pytest.mark.parametrize("before_exp", [True, False])
def test_per_token_table(before_exp):
    lm = tiny_lm()
    mean, high, low, total, table = lm.perplexities(
        SAMPLES, per_token=True, before_exp=before_exp, dummy_res=-7
    )
    assert table.shape == (len(SAMPLES), 9)
    for row, losses in zip(table.tolist(), losses_one_by_one(lm, SAMPLES), strict=True):
        expected = losses if before_exp else [math.exp(loss) for loss in losses]
        assert row == pytest.approx(expected + [-7] * (9 - len(expected)), rel=1e-5)
    real = table[table != -7]
    assert len(real) == total
    assert high == pytest.approx(real.max().item(), rel=1e-5)
    assert low == pytest.approx(real.min().item(), rel=1e-5)
    losses = real if before_exp else real.log()
    assert (math.log(mean) if not before_exp else mean) == pytest.approx(losses.mean().item(), rel=1e-5)


def test_a_loader_is_weighted_by_scored_tokens():
    lm = tiny_lm()
    batches = []
    for i, T in enumerate((4, 12)):
        scored = torch.rand(3, T, generator=torch.Generator().manual_seed(i)) < 0.5
        batches.append(batch_of(random_ids(3, T, seed=i), scored))
    mean, _, _, total, table = lm.perplexities(
        DataLoader(batches, batch_size=None), per_token=True, before_exp=True
    )
    parts = [(lm.get_losses(batch, None)[0]["main"].item(), int(lm.n_scored)) for batch in batches]
    assert total == sum(n for _, n in parts)
    assert mean == pytest.approx(sum(loss * n for loss, n in parts) / total)
    assert table.shape == (6, 11)
    assert ((table[:3, :3] >= 0) == batches[0]["target_mask"][:, 1:]).all()


def test_perplexities_accept_texts_and_ids():
    lm = tiny_lm()
    assert lm.perplexities("hello") == lm.perplexities(["hello"]) == lm.perplexities([lm.tokenizer("hello")])


def test_nothing_to_score_is_refused():
    for nothing in ([], [""]):
        with pytest.raises(ValueError, match="no token is scored"):
            tiny_lm().perplexities(nothing)


@torch.no_grad()
def test_nan_losses_are_not_reported_as_nothing_to_score():
    lm = tiny_lm()
    lm.embed.tokens.weight[6] = math.nan
    mean, _, _, total, table = lm.perplexities(["abcd"], per_token=True)
    assert math.isnan(mean)
    assert total == 4
    assert table.isnan().any()
