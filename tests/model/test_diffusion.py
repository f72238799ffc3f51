"""Masked diffusion: its loss is the bound of the papers, exactly, and samples follow from its predictions."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from data.batch import mycollate
from model.masking import diffuse, diffusion_sum, unmasked_batch
from model.perplexity import NOT_SCORED
from tests.model.tiny import CharTokenizer, batch_of, random_ids, tiny_lm
from train.evaluation import diffusion_bound

MASK = CharTokenizer.mask
FIELDS = {"objective": "diffusion", "causal": False}


def hidden_losses(lm, ids_T, hidden) -> float:
    """The sum of cross entropies of the tokens at the places `hidden`, if these are masked."""
    x_T = ids_T.clone()
    x_T[list(hidden)] = MASK
    z_TV = lm(x_T)[0]
    return sum(F.cross_entropy(z_TV[t], ids_T[t]).item() for t in hidden)


@torch.no_grad()
def test_the_expected_loss_is_the_papers_integral():
    """Of E over t in (0, 1) of 1 / t times the cross entropies, if each token is hidden with probability t."""
    lm, ids_T, places = tiny_lm(**FIELDS), random_ids(1, 6)[0] + 0, (1, 2, 3, 5)
    scored_BT = torch.zeros(1, 6, dtype=torch.bool)
    scored_BT[0, list(places)] = True
    n = len(places)
    t_N, weight_N = np.polynomial.legendre.leggauss(8)
    t_N, weight_N = (t_N + 1) / 2, weight_N / 2
    integral = ours = 0.0
    for k in range(1, n + 1):
        for hidden in combinations(places, k):
            loss = hidden_losses(lm, ids_T, hidden)
            integral += loss * float((weight_N * t_N ** (k - 1) * (1 - t_N) ** (n - k)).sum())
            y_BT = torch.full((1, 6), NOT_SCORED)
            y_BT[0, list(hidden)] = ids_T[list(hidden)]
            z_BTV = lm(ids_T.where(y_BT[0] == NOT_SCORED, MASK))
            ours += diffusion_sum(scored_BT, y_BT, z_BTV).item() / n / math.comb(n, k)
    assert ours == pytest.approx(integral, rel=1e-9)


def test_every_number_of_hidden_tokens_is_as_likely_and_evaluation_repeats_its_draw():
    lm = tiny_lm(**FIELDS).train()
    scored = torch.ones(4000, 6, dtype=torch.bool)
    scored[:, 3] = False
    rows = unmasked_batch(batch_of(random_ids(1, 6).expand(4000, 6), scored), lm)
    torch.manual_seed(0)
    x_BT, y_BT = diffuse(rows, lm)
    hidden_BT = y_BT != NOT_SCORED
    assert torch.equal(x_BT, rows.ids.masked_fill(hidden_BT, MASK))
    counts = hidden_BT.sum(dim=1).bincount(minlength=5)
    assert counts[0] == 0
    assert ((counts[1:] / 1000 - 1).abs() < 0.1).all()  # 1 to 4 of the 4 that may be hidden
    assert (hidden_BT.sum(dim=0)[[0, 3]] == 0).all()
    assert ((hidden_BT.sum(dim=0)[[1, 2, 4, 5]] / 2500 - 1).abs() < 0.05).all()
    again = [diffuse(unmasked_batch(batch_of(random_ids(3, 6)), lm.eval()), lm).x for _ in range(2)]
    assert torch.equal(*again)


def test_the_loss_is_the_mean_bound_over_all_tokens_that_may_be_hidden():
    lm = tiny_lm(**FIELDS)
    scored = torch.ones(3, 9, dtype=torch.bool)
    scored[0, :5], scored[1] = False, False  # the second row has nothing to hide
    batch = batch_of(random_ids(3, 9), scored)
    xyz = lm.get_batch_xyz(batch)
    losses, n_rows = lm.get_losses(batch, None, xyz=xyz)
    total = 0.0
    for row, n in ((0, 4), (2, 8)):
        hidden = (xyz.y[row] != NOT_SCORED).nonzero()[:, 0].tolist()
        total += n / len(hidden) * hidden_losses(lm, batch["x_indices"][row], hidden)
    assert losses["main"].item() == pytest.approx(total / 12)
    assert (n_rows, lm.n_scored) == (3, 12)
    bound, weight = diffusion_bound(xyz, batch["target_mask"])
    assert_close(bound, losses["main"])
    assert weight == 12


@torch.no_grad()
def test_sampling_fills_the_most_certain_place_first_at_temperature_0():
    lm = tiny_lm(**FIELDS)
    ids = lm.sample([1, 7, 8], max_seq_len=8, as_str=False, temperature=0, stop=())
    expected = torch.tensor([1, 7, 8] + [MASK] * 5)
    while (expected == MASK).any():
        z_TV = lm(expected)[0]
        z_TV[:, MASK] = -math.inf
        best = z_TV.softmax(dim=-1).max(dim=-1)
        at = best.values.where(expected == MASK, -1.0).argmax()
        expected[at] = best.indices[at]
    expected = expected.tolist()
    ends = [i for i, token in enumerate(expected) if token == CharTokenizer.eos and i >= 3]
    assert ids == expected[: ends[0] + 1 if ends else None]
    at_once = lm.sample([1, 7, 8], max_seq_len=8, as_str=False, temperature=0, n_steps=1)
    z_TV = lm([1, 7, 8] + [MASK] * 5)[0]
    z_TV[:, MASK] = -math.inf
    assert at_once == [1, 7, 8, *z_TV[3:].argmax(dim=-1).tolist()][: len(at_once)]


@torch.no_grad()
def test_samples_of_two_places_follow_the_mean_of_both_orders():
    lm = tiny_lm(**FIELDS, n_tokens=6)
    lm.tokenizer.stops = ()
    torch.manual_seed(0)
    found = torch.tensor(lm.sample([[1, 4]] * 6000, max_seq_len=4, as_str=False))
    assert not (found[:, 2:] == MASK).any()

    def probs(ids):
        z_TV = lm(ids)[0]
        z_TV[:, MASK] = -math.inf
        return z_TV.softmax(dim=-1)

    both = probs([1, 4, MASK, MASK])
    for a in range(6):
        for b in range(6):
            first = both[2, a] * probs([1, 4, a, MASK])[3, b]
            last = both[3, b] * probs([1, 4, MASK, b])[2, a]
            share = ((found[:, 2] == a) & (found[:, 3] == b)).double().mean()
            assert share.item() == pytest.approx(((first + last) / 2).item(), abs=0.025)


def test_rows_of_different_lengths_do_not_see_each_other():
    lm = tiny_lm(**FIELDS)
    prompts = [[1, 5], [1, 6, 7, 8, 9]]
    both = lm.sample(prompts, max_seq_len=9, as_str=False, temperature=0)
    assert both[1] == lm.sample(prompts[1], max_seq_len=9, as_str=False, temperature=0, n_steps=7)


def test_what_diffusion_cannot_do_is_refused():
    lm = tiny_lm(**FIELDS)
    with pytest.raises(ValueError, match="no log-probabilities of a sample"):
        lm.sample("abc", return_logprobs=True)
    with pytest.raises(ValueError, match="n_steps=0 must be at least 1"):
        lm.sample("abc", n_steps=0)
    with pytest.raises(ValueError, match="cannot continue a text"):
        lm.beam_search("abc")
    with pytest.raises(ValueError, match="n_steps=3 needs objective='diffusion'"):
        tiny_lm().sample("abc", n_steps=3)
    assert len(lm.perplexities([mycollate([[1, 4, 5, 6]])["x_indices"][0].tolist()])) == 5
