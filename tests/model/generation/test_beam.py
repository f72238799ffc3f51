"""Beam search and greedy decoding equal HuggingFace's `generate` on the same weights; wide enough, it finds the best of all."""

import itertools
import random

import pytest
import torch
from torch.testing import assert_close

import gpt2
from tests.model.hf.hf_models import FAMILIES, N_SEEDS, all_in_float64, make_hf, random_settings
from tests.model.tiny import KINDS, tiny_lm

LENGTH = 14
N_MODELS = 50


def random_case(seed: int):
    """A model with few tokens, so that eos comes up, and a prompt for it."""
    family = FAMILIES[seed % len(FAMILIES)]
    fields = random_settings(family, seed // len(FAMILIES) % N_SEEDS)
    hf = make_hf(family, size=0.3, seed=seed, **fields | {"vocab_size": 24, "tie_word_embeddings": False})
    rng = random.Random(seed)
    prompt = [1, *(rng.randrange(24) for _ in range(rng.randrange(6)))]
    return hf, gpt2.from_hf(hf), prompt, rng


def theirs(hf, prompt, ends=(2,), **settings) -> tuple[list[list[int]], list[float]]:
    """Samples without padding, and their scores."""
    ids = torch.tensor([prompt])
    out = hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_length=LENGTH,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=3,
        return_dict_in_generate=True,
        use_cache=False,  # theirs gives other logits at sliding_window=1
        output_scores=True,
        **settings,
    )
    rows = [row[len(prompt) :].tolist() for row in out.sequences]
    first_ends = [min([i + 1 for i, token in enumerate(row) if token in ends], default=None) for row in rows]
    scores = out.sequences_scores.tolist() if settings.get("num_beams", 1) > 1 else []
    return [prompt + row[:end] for row, end in zip(rows, first_ends, strict=True)], scores


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("seed", range(N_MODELS))
def test_equal_to_huggingface(seed):
    with all_in_float64():
        hf, lm, prompt, rng = random_case(seed)
        greedy = lm.sample(prompt, LENGTH, as_str=False, temperature=0)
        assert [greedy] == theirs(hf, prompt)[0]
        n_beams = rng.choice([2, 3, 4, 7])
        settings = {
            "length_penalty": rng.choice([1.0, 1.0, 0.0, 2.0, -0.7]),
            "early_stopping": rng.choice([False, True, "never"]),
        }
        n_best = rng.randint(1, n_beams)
        beams = lm.beam_search(prompt, LENGTH, as_str=False, n_beams=n_beams, n_best=n_best, **settings)
        samples, scores = theirs(hf, prompt, num_beams=n_beams, num_return_sequences=n_best, **settings)
        assert [list(ids) for ids, _ in beams] == samples
        assert_close([score for _, score in beams], scores, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.ci
def test_the_models_of_the_comparison_with_huggingface_end_early_and_differ_from_greedy():
    """Some samples end early and some do not, and beams find others than greedy."""
    ended, better = 0, 0
    for seed in range(0, N_MODELS, 3):
        _, lm, prompt, _ = random_case(seed)
        [(ids, _)] = lm.beam_search(prompt, LENGTH, as_str=False)
        ended += ids[-1] == 2
        better += ids != lm.sample(prompt, LENGTH, as_str=False, temperature=0)
    assert 3 <= ended <= 14
    assert better >= 3


@pytest.mark.parametrize("seed", range(4))
def test_stop_tokens_are_ends_like_eos(seed):
    with all_in_float64():
        hf, lm, prompt, _ = random_case(seed)
        for stop in ([5], [5, 9, 11]):
            samples, scores = theirs(hf, prompt, ends=(2, *stop), num_beams=3, num_return_sequences=3)
            beams = lm.beam_search(prompt, LENGTH, as_str=False, n_beams=3, n_best=3, stop=stop)
            assert [ids for ids, _ in beams] == samples
            assert_close([score for _, score in beams], scores, rtol=0, atol=1e-9)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
def test_enough_beams_find_the_best_of_all_continuations(length_penalty):
    """Against every continuation there is, scored one by one."""
    lm, prompt, n_new = tiny_lm(n_tokens=5, seed=4), [1, 3], 4
    every = []
    for n in range(1, n_new + 1):
        news = [
            [*new, last]
            for new in itertools.product([0, 1, 3, 4], repeat=n - 1)
            for last in ([2] if n < n_new else range(5))
        ]
        log_probs = lm([[*prompt, *new] for new in news])[:, 1:-1].log_softmax(dim=-1)
        totals = log_probs.gather(2, torch.tensor(news)[:, :, None]).sum(dim=(1, 2)).tolist()
        every += [
            (total / n**length_penalty, [*prompt, *new]) for total, new in zip(totals, news, strict=True)
        ]
    every.sort(reverse=True)
    settings = {"n_beams": len(every), "n_best": 10, "length_penalty": length_penalty}
    beams = lm.beam_search(prompt, len(prompt) + n_new, as_str=False, early_stopping="never", **settings)
    assert [ids for ids, _ in beams] == [ids for _, ids in every[:10]]
    assert_close([score for _, score in beams], [score for score, _ in every[:10]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_does_not_change_beams(kind):
    lm = tiny_lm(layer_architecture=kind, seed=3)
    settings = {"n_beams": 4, "n_best": 4}
    cached, plain = (lm.beam_search("ab", 16, **settings, use_cache=use_cache) for use_cache in (True, False))
    assert lm.cache_check.reason is None
    assert [text for text, _ in cached] == [text for text, _ in plain]
    assert_close([score for _, score in cached], [score for _, score in plain])


def test_texts_or_ids_and_the_best_first():
    lm = tiny_lm(dropout=0.9).train()
    beams = lm.beam_search("ab", 9, n_best=4)
    assert lm.training
    assert beams == lm.beam_search(lm.tokenizer("ab"), 9, n_best=4)
    assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
    ids = [beam.sample for beam in lm.beam_search("ab", 9, n_best=4, as_str=False)]
    assert [lm.tokenizer.decode(row) for row in ids] == [beam.sample for beam in beams]
    assert all(row[:3] == lm.tokenizer("ab") and len(row) <= 9 for row in ids)


def test_a_vocabulary_of_fewer_tokens_than_beams():
    lm = tiny_lm(n_tokens=5)
    assert len(lm.beam_search([1], 4, n_beams=20, n_best=20, as_str=False)) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_beams": 0}, "n_beams=0 must be at least 1"),
        ({"n_best": 0}, "n_best=0 must be from 1 to n_beams=4"),
        ({"n_best": 5}, "n_best=5 must be from 1 to n_beams=4"),
        ({"early_stopping": "maybe"}, "early_stopping='maybe' must be True, False or 'never'"),
        ({"pref": []}, r"pref=\[\] gives the model nothing"),
        ({"max_seq_len": 3}, "pref of 3 tokens leaves no room for new ones"),
    ],
)
def test_meaningless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_lm().beam_search(**{"pref": "ab"} | settings)
