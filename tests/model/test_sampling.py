"""Sampling: the edges of top_k and nucleus, frequencies, prompts of unequal length."""

import math

import pytest
import torch
from torch.testing import assert_close

from model.sampling import generate, next_token_probs
from tests.model.tiny import KINDS, tiny_lm


def logits_of(*probs: float) -> torch.Tensor:
    return torch.tensor([probs], dtype=torch.float64).log()


def kept(probs: torch.Tensor) -> list[int]:
    return probs[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("nucleus", "expected"),
    [
        (1e-9, [1]),
        (0.49, [1]),
        (0.5, [1]),  # 0.5 alone is >= 0.5: one more would not be minimal
        (0.501, [1, 2]),
        (0.75, [1, 2]),
        (0.76, [0, 1, 2]),
        (0.875, [0, 1, 2]),
        (0.8751, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_nucleus_is_the_smallest_set_that_reaches_it(nucleus, expected):
    probs = next_token_probs(logits_of(0.125, 0.5, 0.25, 0.125), nucleus=nucleus)
    assert kept(probs) == expected
    assert_close(probs.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert_close(probs[0, 1] / probs[0, expected].sum(), probs[0, 1])


def test_nucleus_is_not_misled_by_rounding():
    assert (
        len(kept(next_token_probs(torch.zeros(1, 10), nucleus=0.8))) == 8
    )  # 8 * 0.1 is 0.7999999999999999 when summed
    assert len(kept(next_token_probs(torch.zeros(1, 10), nucleus=0.3))) == 3


def test_nucleus_follows_temperature():
    assert kept(next_token_probs(logits_of(0.6, 0.4), nucleus=0.6)) == [0]
    assert kept(next_token_probs(logits_of(0.6, 0.4), temperature=10.0, nucleus=0.6)) == [0, 1]


def test_nucleus_and_top_k_go_row_by_row():
    logits = torch.cat([logits_of(0.7, 0.2, 0.1), logits_of(0.1, 0.2, 0.7)])
    assert_close(next_token_probs(logits, nucleus=0.5), torch.eye(3, dtype=torch.float64)[[0, 2]])
    assert_close(next_token_probs(logits, top_k=1), torch.eye(3, dtype=torch.float64)[[0, 2]])


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 100])
def test_top_k_keeps_exactly_so_many_also_of_equals(top_k):
    assert len(kept(next_token_probs(torch.zeros(1, 5), top_k=top_k))) == min(top_k, 5)
    probs = next_token_probs(logits_of(0.1, 0.4, 0.3, 0.2), top_k=top_k)
    assert kept(probs) == sorted([1, 2, 3, 0][:top_k])
    assert_close(
        probs[0, 1] / probs[0, 0 if top_k >= 4 else 1],
        logits_of(0.4 / (0.1 if top_k >= 4 else 0.4)).exp()[0, 0],
    )


def test_temperature_divides_the_logits():
    logits = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    assert_close(next_token_probs(logits, temperature=0.5), (2 * logits).softmax(dim=-1))
    assert_close(next_token_probs(logits), logits.softmax(dim=-1))
    assert next_token_probs(logits, temperature=0).tolist() == [[0.0, 0.0, 1.0]]
    assert next_token_probs(logits, temperature=1e-320).tolist() == [[0.0, 0.0, 1.0]]
    assert next_token_probs(torch.tensor([[1e30, -1e30]]), temperature=1e-3).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 2, "nucleus": 0.5}, "top_k=2 and nucleus=0.5 exclude each other"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"nucleus": 0.0}, "nucleus=0.0"),
        ({"nucleus": 1.1}, "nucleus=1.1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
    ],
)
def test_meaningless_settings_are_refused(settings, message):
    lm = tiny_lm()
    for max_seq_len in (100, 1):  # also when there is nothing to sample
        with pytest.raises(ValueError, match=message):
            lm.sample("ab", max_seq_len, **settings)


def test_sampled_frequencies_match_the_softmax():
    lm = tiny_lm(n_tokens=8, seed=3)
    expected = (lm([1, 5])[0, -1] / 2).softmax(dim=-1)
    n = 4000
    generator = torch.Generator().manual_seed(0)
    rows = generate(lm, [[1, 5]] * n, 1, temperature=2.0, generator=generator)
    counts = torch.bincount(torch.tensor([row[2] for row in rows]), minlength=8)
    chi_square = ((counts - n * expected) ** 2 / (n * expected)).sum()
    assert chi_square < 24.3  # 0.1 % of true samples exceed it at 7 degrees of freedom
    uniform = torch.full((8,), n / 8)
    assert ((counts - uniform) ** 2 / uniform).sum() > 24.3


def greedy_by_hand(lm, prompt: list[int], n: int) -> list[int]:
    row = list(prompt)
    for _ in range(n):
        if len(row) > lm.model_params.max_seq_len:
            break
        row.append(int(lm(row)[0, -1].argmax()))
        if row[-1] == lm.tokenizer.eos:
            break
    return row


def test_a_prompt_that_the_model_cannot_take_is_refused():
    with pytest.raises(ValueError, match="a prompt of 17 tokens, but max_seq_len=16"):
        generate(tiny_lm(), [[1], [1] * 17], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_unequal_length_are_continued_as_if_alone(kind):
    lm = tiny_lm(layer_architecture=kind, seed=2)
    prompts = [[1], [1, 4, 5, 6, 7, 8], [1, 9, 10], [1] + [11] * 15, [1, 3]]
    rows = generate(lm, prompts, 12, temperature=0)
    assert rows == [greedy_by_hand(lm, prompt, 12) for prompt in prompts]
    assert prompts[0] == [1]
    assert len(rows[3]) <= 17  # the longest input, and what the model says after it


def test_generation_stops_at_eos_row_by_row():
    lm = tiny_lm(n_tokens=6, seed=1)
    generator = torch.Generator().manual_seed(1)
    rows = generate(
        lm, [[1, 2, 4]] * 30, 10, temperature=4.0, generator=generator
    )  # an eos in the prompt is no end
    ends = [row[3:].index(2) for row in rows if 2 in row[3:]]
    assert len(set(ends)) > 2
    for row in rows:
        assert (row[3:].index(2) == len(row) - 4) if 2 in row[3:] else len(row) == 13


def test_sample_continues_its_prefix():
    lm = tiny_lm()
    text = lm.sample("hello", 12, temperature=0)
    ids = lm.sample(lm.tokenizer("hello"), 12, as_str=False, temperature=0)
    assert text.startswith("hello")
    assert lm.tokenizer.decode(ids) == text
    assert lm.sample(as_str=False)[0] == lm.tokenizer.bos
    assert len(lm.sample("hello", 8, as_str=False)) <= 8
    for too_little in ({"max_seq_len": 3}, {"pref": "hello" * 9}):
        with pytest.raises(ValueError, match=r"pref of \d+ tokens leaves nothing to sample: max_seq_len="):
            lm.sample(**{"pref": "hello"} | too_little)
    assert (
        max(
            len(lm.sample([1], 100, as_str=False, generator=torch.Generator().manual_seed(i)))
            for i in range(9)
        )
        == 16
    )


def test_sample_refuses_a_prefix_of_nothing():
    with pytest.raises(ValueError, match=r"pref=\[\]"):
        tiny_lm().sample([])


def test_the_same_generator_gives_the_same_sample_and_leaves_the_global_one():
    lm = tiny_lm()
    before = torch.get_rng_state()
    a, b = (lm.sample("a", generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert a == b
    assert torch.equal(torch.get_rng_state(), before)
    assert len({lm.sample("a", generator=torch.Generator().manual_seed(i)) for i in range(5)}) > 1


def test_dropout_is_off_while_sampling():
    lm = tiny_lm(dropout=0.9).train()
    assert len({lm.sample("ab", temperature=0) for _ in range(5)}) == 1
