"""Foundations of the generation checks: cuts, a model with known probabilities, counts of draws, references that agree."""

import itertools

import pytest
import torch

from learn.checking.checks import agrees
from learn.checking.course import Wrong, get_course
from learn.courses.generation import references, tokens
from learn.courses.generation.cache import all_cuts, computed_once
from learn.courses.generation.models import KnownModel, as_function, small_attention, small_gpt2, solution

COURSE = get_course("generation")
SOLUTION = solution("generation")


def test_all_cuts_lists_every_composition_once():
    cuts = all_cuts(5)
    assert len({*cuts}) == len(cuts) == 2**4
    assert all(sum(sizes) == 5 for sizes in cuts)


def test_old_positions_may_not_be_computed_again():
    attention, x = small_attention(), torch.zeros(2, 3, 12, dtype=torch.float64)
    with computed_once(attention, x):
        attention(x)
    with pytest.raises(Wrong, match="ran on 6 positions where 2 are new"), computed_once(attention, x[:, :1]):
        attention(x)


def test_the_known_model_gives_the_same_with_its_cache():
    model, ids = KnownModel(), torch.tensor([[1, 2, 3], [0, 4, 4]])
    whole, _ = model(ids)
    first, cache = model(ids[:, :1])
    rest, cache = model(ids[:, 1:], cache)
    assert torch.equal(torch.cat([first, rest], dim=1), whole)
    with pytest.raises(Wrong, match="ids of 1 rows and a cache of 2"):
        model(ids[:1], cache)


def test_probabilities_of_all_continuations_sum_to_1():
    known = KnownModel()
    chances = references.chances(lambda ids: known(ids)[0], [1, 4], 3, {})
    assert len(chances) == 5**3
    assert sum(chances.values()) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(20))
def test_right_frequencies_pass_the_check(seed, monkeypatch):
    """Far from the threshold at any seed; a hundredth of other probabilities is too little to see."""
    generator = torch.Generator().manual_seed(seed)
    out = SOLUTION.generate(KnownModel(), [[1]] * tokens.OFTEN, 2, generator=generator, **tokens.CHANCES)
    assert tokens.wrong_frequencies(out) is None


def test_wrong_frequencies_fail_the_check():
    settings = tokens.CHANCES | {"temperature": 1.1}
    out = SOLUTION.generate(KnownModel(), [[1]] * tokens.OFTEN, 2, **settings, generator=torch.Generator())
    assert "expected some" in tokens.wrong_frequencies(out)


@pytest.mark.parametrize("penalty", [0.0, 0.9])
def test_a_prompt_in_a_batch_gets_what_it_gets_alone(penalty):
    model = as_function(small_gpt2())
    settings = {"temperature": 0, "frequency_penalty": penalty}
    together = SOLUTION.generate(model, tokens.PROMPTS, 6, **settings)
    alone = [SOLUTION.generate(model, [prompt], 6, **settings)[0] for prompt in tokens.PROMPTS]
    assert torch.equal(together, torch.stack(alone))


def test_one_beam_is_greedy():
    gpt2 = small_gpt2()
    for prompt in tokens.PROMPTS:
        found, _ = SOLUTION.beam_search(as_function(gpt2), prompt, 6, 1)
        assert found == references.greedy(gpt2, prompt, 6, None)


@pytest.mark.slow
@pytest.mark.parametrize("n_beams", [2, 3, 5])
def test_beams_equal_huggingfaces_for_many_settings(n_beams):
    gpt2 = small_gpt2()
    model = as_function(gpt2)
    grid = itertools.product(
        [[3, 5, 1], [7], [2, 2, 9, 4]], [-1.0, 0.0, 0.7, 2.0], [None, 5, 12], [False, True]
    )
    for prompt, penalty, end, early in grid:
        settings = {"length_penalty": penalty, "end": end, "early_stopping": early}
        mine = SOLUTION.beam_search(model, prompt, 6, n_beams, **settings)
        right = references.beams(gpt2, prompt, 6, n_beams, settings)
        assert tokens.beams_differ({"": mine}, {"": right}) is None, (prompt, settings)


def test_a_known_mistake_is_recognized_by_its_exception():
    """A cache that grows along the heads stops with the same words whoever wrote it."""
    case = COURSE.case("cached_attention", SOLUTION, SOLUTION)

    def compute(module):
        if module is SOLUTION:
            torch.cat([torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 4, 3)], dim=1)
        return [part.shape for part in module.cached_attention(*grown())[1]]

    def grown():
        x = torch.zeros(1, 4, 12, dtype=torch.float64)
        old = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
        return small_attention(), x, (old, old)

    with pytest.raises(Wrong, match="grows along the heads"):
        agrees(compute, lambda: None, lambda a, b: None)(case)
