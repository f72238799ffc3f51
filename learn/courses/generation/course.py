"""Parts of the generation course: inputs and checks for each."""

from collections.abc import Callable

import torch

from learn.checking.checks import FUNCTION, agrees, by_hand, by_hand_in, own
from learn.checking.course import Check, Course, Part
from learn.checking.mistakes import read_mistakes
from learn.checking.parity import same_outputs
from learn.checking.samples import floats, integers
from learn.courses.generation import cache, references, tokens
from learn.courses.generation.models import V
from learn.outline import Outline

ONE = ((cache.TOGETHER,),)
SINGLE = torch.float32


def in_pieces(steps: Callable[..., cache.Steps], right: Callable[..., cache.Steps]) -> tuple[Check, ...]:
    """Return checks of outputs in one piece, of outputs cut in every way, of the caches, and of all that in float32."""
    return (
        agrees(lambda my: steps(my, ONE), lambda: right(ONE), cache.steps_differ),
        agrees(steps, lambda: right(kept=False), cache.steps_differ),
        agrees(steps, right, cache.steps_differ),
        agrees(lambda my: steps(my, dtype=SINGLE), lambda: right(dtype=SINGLE), cache.steps_differ),
    )


PARTS = {
    "cached_attention": Part(
        lambda my: my.cached_attention,
        checks=(
            own,
            *in_pieces(cache.attention_steps, cache.right_attention),
            agrees(cache.gradients_in_pieces, cache.right_gradients, cache.steps_differ),
            by_hand_in(cache.attention_steps),
        ),
    ),
    "cached_gpt2": Part(
        lambda my: my.cached_gpt2,
        checks=(
            own,
            *in_pieces(cache.gpt2_steps, cache.right_gpt2),
            by_hand_in(cache.gpt2_steps),
        ),
    ),
    "next_token_probabilities": Part(
        lambda my: my.next_token_probabilities,
        lambda: [
            (floats(3, V), *settings)
            for settings in (
                (1.0,),
                (0.5,),
                (0,),
                (1.0, 4),
                (1.0, 1),
                (1.0, None, 0.6),
                (2.0, None, 0.8),
                (1.0, 5, 0.8),
                (0.7, 5, 0.8),
            )
        ],
        references.next_token_probabilities,
        ("sample", "token"),
        (own, same_outputs(), same_outputs(dtype=SINGLE), by_hand),
    ),
    "frequency_penalized": Part(
        lambda my: my.frequency_penalized,
        lambda: [
            (floats(3, V), integers(V, 3, 20), 0.6),
            (floats(1, V), integers(V, 1, 1), -0.4),
            (floats(2, V), integers(V, 2, 0), 1.0),
        ],
        references.frequency_penalized,
        ("sample", "token"),
        (own, *FUNCTION),
    ),
    "generate": Part(
        lambda my: my.generate,
        checks=(
            own,
            agrees(tokens.greedy_tokens, tokens.right_greedy, tokens.tokens_differ),
            agrees(tokens.penalized_tokens, tokens.right_penalized, tokens.tokens_differ),
            agrees(tokens.drawn_tokens, tokens.right_draws, tokens.draws_differ),
            tokens.frequencies,
            by_hand_in(tokens.greedy_tokens),
        ),
    ),
    "beam_search": Part(
        lambda my: my.beam_search,
        checks=(
            own,
            agrees(tokens.beam_tokens, tokens.right_beams, tokens.beams_differ),
            agrees(tokens.all_tokens, tokens.right_of_all, tokens.beams_differ),
            by_hand_in(tokens.beam_tokens, allowed=("log_softmax",)),
        ),
    ),
}

OUTLINE = Outline("generation")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes))
