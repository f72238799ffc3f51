"""Sampling: the edges of top_k, nucleus and min_p, frequencies, and what `sample` takes and gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.generation.decoding import NoNextToken
from model.generation.sampling import TokenSampler, draw, generate, next_token_probs, penalized
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
    # 8 * 0.1 is 0.7999999999999999 when summed.
    assert len(kept(next_token_probs(torch.zeros(1, 10), nucleus=0.8))) == 8
    assert len(kept(next_token_probs(torch.zeros(1, 10), nucleus=0.3))) == 3


def test_nucleus_follows_temperature():
    assert kept(next_token_probs(logits_of(0.6, 0.4), nucleus=0.6)) == [0]
    assert kept(next_token_probs(logits_of(0.6, 0.4), temperature=10.0, nucleus=0.6)) == [0, 1]


def test_nucleus_and_top_k_go_row_by_row():
    logits = torch.cat([logits_of(0.7, 0.2, 0.1), logits_of(0.1, 0.2, 0.7)])
    assert_close(next_token_probs(logits, nucleus=0.5), torch.eye(3, dtype=torch.float64)[[0, 2]])
    assert_close(next_token_probs(logits, top_k=1), torch.eye(3, dtype=torch.float64)[[0, 2]])


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 100])
def test_top_k_keeps_all_ties_at_the_edge_as_huggingface_does(top_k):
    assert len(kept(next_token_probs(torch.zeros(1, 5), top_k=top_k))) == 5
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0], [2.0, 2.0, 2.0, 1.0, 3.0]])
    expected = TopKLogitsWarper(top_k)(None, logits).softmax(dim=-1)
    assert_close(next_token_probs(logits, top_k=top_k), expected)
    probs = next_token_probs(logits_of(0.1, 0.4, 0.3, 0.2), top_k=top_k)
    assert kept(probs) == sorted([1, 2, 3, 0][:top_k])
    assert_close(
        probs[0, 1] / probs[0, 0 if top_k >= 4 else 1],
        logits_of(0.4 / (0.1 if top_k >= 4 else 0.4)).exp()[0, 0],
    )


def test_equal_probabilities_of_different_logits_are_no_tie():
    """Logits so near each other that their probabilities are rounded alike: the largest is kept alone."""
    logits = torch.tensor([[0.0, 1e-9, 0.0]])
    assert kept(next_token_probs(logits, top_k=1)) == [1]


@pytest.mark.parametrize(
    "bad", [[math.nan] * 3, [1.0, 5.0, math.nan], [-math.inf] * 3, [math.nan, math.inf, 0.0]]
)
def test_a_row_of_nan_or_minus_infinity_is_an_error_that_names_it(bad):
    logits = torch.tensor([[1.0, 5.0, 2.0], bad])
    for temperature in (0.0, 1.0):
        with pytest.raises(
            NoNextToken, match=r"row 1: no next token, (some logits are NaN|all logits are -inf)$"
        ):
            next_token_probs(logits, temperature)
        with pytest.raises(NoNextToken, match="row 1"):
            TokenSampler(temperature)(logits, torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 2}, {"nucleus": 0.9}, {"min_p": 0.1}, {"temperature": 0.0}]
)
def test_an_infinite_logit_affects_its_own_row_only(settings):
    logits = torch.tensor([[1.0, math.inf, 0.0], [1.0, 5.0, 2.0], [-math.inf, 0.0, -math.inf]])
    probs = next_token_probs(logits, **settings)
    assert probs[0].tolist() == [0.0, 1.0, 0.0]
    assert_close(probs[1:2], next_token_probs(logits[1:2], **settings))
    assert probs[2].tolist() == [0.0, 1.0, 0.0]
    two = next_token_probs(torch.tensor([[math.inf, 1.0, math.inf]]))
    assert two.tolist() == [[0.5, 0.0, 0.5]]


def with_logits(lm, change):
    """`lm` with `change(ids_BT, logits_BTV)` in place of its logits."""
    plain = lm.unembed.forward
    lm.unembed.forward = lambda x: change(plain(x))
    return lm


def test_logits_of_a_row_do_not_depend_on_other_rows():
    lm = tiny_lm(tied_embeddings=False)
    lm.embed.tokens.weight.data[7] = math.nan
    with pytest.raises(NoNextToken, match="row 1, step 0: no next token, some logits are NaN"):
        lm.sample([[5, 6], [7, 6]], max_seq_len=10)
    # NaN where the prompt's own token follows is not looked at, only what comes after the prompt.
    lm = tiny_lm(positions="none", n_layers=0, tied_embeddings=False)
    lm.embed.tokens.weight.data[7] = math.nan
    greedy = {"max_seq_len": 6, "as_str": False, "temperature": 0}
    short, long = lm.sample([[5], [7, 6, 5]], **greedy)
    assert short == lm.sample([5], **greedy)
    assert long[3:] == lm.sample([5], **greedy)[1:4]


def test_float16_that_overflows_is_an_error_that_says_so():
    lm = tiny_lm(dtype=torch.float32, tied_embeddings=False)
    lm.unembed.weight.data *= 1e6
    with pytest.raises(NoNextToken, match="float16 overflows above 65,504"):
        lm.half().sample([5, 6], max_seq_len=8)


def test_an_infinite_logit_in_beams_fill_and_log_probabilities():
    def infinite(logits):
        logits[..., 9] = math.inf
        return logits

    lm = with_logits(tiny_lm(), infinite)
    assert lm.sample([5], 4, as_str=False, return_logprobs=True) == ([5, 9, 9, 9], [0.0, 0.0, 0.0])
    [best] = lm.beam_search([5], 4, as_str=False, n_beams=2)
    assert best.sample == [5, 9, 9, 9]
    assert best.score == 0.0
    masked = with_logits(tiny_lm(objective="masked", causal=False), infinite)
    ids, probs = masked.fill([5, 3, 6], as_str=False, return_probs=True)
    assert (ids, probs) == ([5, 9, 6], [1.0])


def test_not_a_number_in_beams_and_gaps_is_an_error_that_names_the_place():
    lm = with_logits(tiny_lm(), lambda logits: logits * math.nan)
    with pytest.raises(NoNextToken, match="beam 0, step 0"):
        lm.beam_search([5], 4)
    masked = with_logits(tiny_lm(objective="masked", causal=False), lambda logits: logits * math.nan)
    with pytest.raises(NoNextToken, match="mask token 0"):
        masked.fill([5, 3, 6])


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
        ({"min_p": -0.1}, "min_p=-0.1 must be from 0 to 1"),
        ({"min_p": 1.1}, "min_p=1.1 must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a finite number above 0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty=inf"),
        ({"n_samples": 0}, "n_samples=0 must be at least 1"),
        ({"stop": "ab"}, "stop='ab' is not one token"),
        ({"stop": ["a", ""]}, "stop='' is not one token"),
        ({"stop": [30]}, "stop=30, but the model knows ids from 0 to 29"),
    ],
)
def test_meaningless_settings_are_refused(settings, message):
    lm = tiny_lm()
    for max_seq_len in (100, 1):  # also when there is nothing to sample
        with pytest.raises(ValueError, match=message):
            lm.sample("ab", max_seq_len, **settings)


LOGITS = st.lists(st.floats(-8, 8), min_size=6, max_size=6)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(LOGITS, min_size=1, max_size=3),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([None, {"top_k": 2}, {"top_k": 9}, {"nucleus": 0.4}, {"nucleus": 0.93}]),
    st.sampled_from([None, 0.05, 0.5, 1.0]),
    st.sampled_from([1.0, 1.3, 0.7]),
)
def test_equal_to_the_processors_of_huggingface(rows, temperature, kept_too, min_p, penalty):
    logits = torch.tensor(rows, dtype=torch.float64)
    logits += torch.linspace(0, 1e-3, logits.numel()).view_as(logits)  # no equals at an edge
    ids = torch.tensor([[0, 3, 3]] * len(rows))
    settings = (kept_too or {}) | ({"min_p": min_p} if min_p else {})
    processors = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
    )
    if "top_k" in settings:
        processors.append(TopKLogitsWarper(settings["top_k"]))
    if "nucleus" in settings:
        processors.append(TopPLogitsWarper(settings["nucleus"]))
    if "min_p" in settings:
        processors.append(MinPLogitsWarper(min_p))
    expected = processors(ids, logits).softmax(dim=-1)
    assert_close(next_token_probs(penalized(logits, ids, penalty), temperature, **settings), expected)


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    expected = counts.sum() * probs
    return float(((counts - expected) ** 2 / expected).sum())


MOST = 24.3  # 0.1 % of true samples have a larger chi-square at 7 degrees of freedom


@pytest.mark.parametrize("use_cache", [True, False])
def test_sampled_frequencies_match_the_softmax(use_cache):
    """Compare the first new token, and the second given each first. The prompts differ in length."""
    lm = tiny_lm(n_tokens=8, seed=3)
    lm.tokenizer.stops = ()
    n, generator = 4000, torch.Generator().manual_seed(0)
    prompts = [[1, 5], [1, 6, 3]] * n
    rows = generate(lm, prompts, 2, temperature=2.0, generator=generator, use_cache=use_cache)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    for prompt in prompts[:2]:
        first, second = torch.tensor([row[-2:] for row in rows if row[: len(prompt)] == prompt]).T
        with torch.no_grad():
            probs = (lm(prompt)[0, -1] / 2).softmax(dim=-1)
            after = (lm([[*prompt, token] for token in range(8)])[:, -1] / 2).softmax(dim=-1)
        for tokens, expected in ((first, probs), (second, probs @ after)):
            counts = torch.bincount(tokens, minlength=8)
            assert chi_square(counts, expected) < MOST < chi_square(counts, uniform)
    assert lm.cache_check.reason is None


def test_drawing_follows_the_probabilities_and_never_takes_what_has_none():
    probs = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    drawn = draw(probs.repeat(5000, 1), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn[::2], minlength=6)
    assert chi_square(counts[[1, 3, 4]], probs[0, [1, 3, 4]]) < 13.8  # 0.1 % at 2 degrees of freedom
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    assert set(drawn[1::2].tolist()) == {5}


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
    with pytest.raises(ValueError, match="a prompt of 17 tokens is longer than max_seq_len=16"):
        generate(tiny_lm(), [[1], [1] * 17], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_takes_the_most_probable_token_at_each_end(kind):
    lm = tiny_lm(layer_architecture=kind, seed=2)
    prompts = [[1], [1, 4, 5, 6, 7, 8], [1, 9, 10], [1] + [11] * 15, [1, 3]]
    rows = generate(lm, prompts, 12, temperature=0)
    assert rows == [greedy_by_hand(lm, prompt, 12) for prompt in prompts]
    assert prompts[0] == [1]
    assert len(rows[3]) <= 17  # the longest input, and what the model says after it


def test_generation_stops_at_eos_row_by_row():
    lm = tiny_lm(n_tokens=6, seed=1)
    generator = torch.Generator().manual_seed(1)
    # An eos inside the prompt does not end it.
    rows = generate(lm, [[1, 2, 4]] * 30, 10, temperature=4.0, generator=generator)
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
        with pytest.raises(ValueError, match=r"pref of \d+ tokens leaves no room for new ones: max_seq_len="):
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


def test_a_list_of_prompts_gives_a_list_of_samples():
    lm = tiny_lm()
    alone = [lm.sample(pref, 12, temperature=0) for pref in ("hello", "", [1, 9, 4])]
    assert lm.sample(["hello", "", [1, 9, 4]], 12, temperature=0) == alone
    assert lm.sample(["hello"], 12, temperature=0) == alone[:1]
    assert lm.sample([[1, 9, 4]], 12, temperature=0) == alone[2:]
    assert lm.sample(torch.tensor([1.0, 9.0, 4.0]), 12, temperature=0) == alone[2]
    assert lm.sample(torch.tensor([[1, 9, 4]]), 12, temperature=0) == alone[2:]
    lengths = [len(ids) for ids in lm.sample(["hello", ""], 12, as_str=False, temperature=0)]
    assert max(lengths) <= 12


def test_a_prompt_of_unknown_ids_is_refused():
    for pref in ([1, 30], [[1], [1, -1]]):
        with pytest.raises(ValueError, match="the model knows 0 to 29"):
            tiny_lm().sample(pref)
    with pytest.raises(ValueError, match="pref of 13 tokens leaves no room"):
        tiny_lm().sample(["a", "hellohellohe"], 13)


def test_several_samples_of_each_prompt():
    lm = tiny_lm()
    one = lm.sample("ab", 12, n_samples=5, generator=torch.Generator().manual_seed(0))
    assert len(one) == 5
    assert len(set(one)) > 1
    assert all(text.startswith("ab") for text in one)
    two = lm.sample(["ab", "cde"], 12, n_samples=3)
    assert [len(samples) for samples in two] == [3, 3]
    assert all(
        text.startswith(pref) for pref, samples in zip(["ab", "cde"], two, strict=True) for text in samples
    )


def test_stop_tokens_end_a_sample_as_eos_does():
    lm = tiny_lm()
    for seed in range(20):
        free = lm.sample("ab", 16, as_str=False, generator=torch.Generator().manual_seed(seed))
        ends = [i for i, token in enumerate(free) if i > 2 and token in (6, 7, 8)]
        cut = free[: ends[0] + 1] if ends else free
        for stop in (["c", "d", 8], [6, 7, 8]):
            settings = {"stop": stop, "generator": torch.Generator().manual_seed(seed)}
            assert lm.sample("ab", 16, as_str=False, **settings) == cut
    assert lm.sample("abc", 16, as_str=False, stop="c", generator=torch.Generator().manual_seed(0))[4:]


@pytest.mark.parametrize("use_cache", [True, False])
def test_log_probabilities_are_those_of_the_plain_softmax(use_cache):
    lm = tiny_lm()
    settings = {"temperature": 0.5, "top_k": 5, "repetition_penalty": 1.5, "use_cache": use_cache}
    samples = lm.sample(["hello", "a"], 12, as_str=False, n_samples=2, return_logprobs=True, **settings)
    for prompt, of_prompt in zip(("hello", "a"), samples, strict=True):
        for ids, logprobs in of_prompt:
            n_prompt = len(prompt) + 1
            log_probs_TV = lm(ids)[0].detach().log_softmax(dim=-1)
            expected = [float(log_probs_TV[i - 1, ids[i]]) for i in range(n_prompt, len(ids))]
            assert_close(logprobs, expected)
    text, logprobs = lm.sample("hello", 12, return_logprobs=True, temperature=0)
    assert text == lm.sample("hello", 12, temperature=0)
    assert len(logprobs) == len(lm.sample("hello", 12, as_str=False, temperature=0)) - 6


def test_the_penalty_counts_prompt_and_generated_tokens():
    lm = tiny_lm(seed=5)
    plain = lm.sample("ab", 16, as_str=False, temperature=0)
    penalized_row = lm.sample("ab", 16, as_str=False, temperature=0, repetition_penalty=1e6)
    rewarded = lm.sample("ab", 16, as_str=False, temperature=0, repetition_penalty=1e-6)
    assert len(set(penalized_row)) == len(penalized_row) > len(set(plain))
    assert set(rewarded) <= {1, 4, 5}
    assert len(set(lm.sample("ab", 16, as_str=False, min_p=1.0, n_samples=3)[0])) == len(set(plain))
