"""Cases for `generate` and `beam_search`, with the student's and the reference's tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from learn.checking.course import Case, Wrong
from learn.courses.generation import references
from learn.courses.generation.models import KnownModel, as_function, small_gpt2, solution

Tokens = dict[str, Tensor]  # [B, n_new] by the case

PROMPTS = [[3, 5, 1], [7, 8], [2, 2, 9, 4, 0, 6]]
GREEDY = {"with no end token": None, "with end=3": 3}  # which are in prompts, too
N_NEW = 7

SHORT = [[1, 3], [0, 2, 2], [4, 4], [3, 0, 1, 1]] * 4  # prompts for the known model; 2 is the end token
DRAWS: dict[str, dict[str, Any]] = {
    "with temperature 1": {},
    "with temperature=0.4": {"temperature": 0.4},
    "with top_k=2": {"top_k": 2},
    "with nucleus=0.6": {"nucleus": 0.6},
    "with frequency_penalty=1.5 and temperature=0.5": {"frequency_penalty": 1.5, "temperature": 0.5},
    "with end=2": {"end": 2},
}
OFTEN = 1500  # draws of two tokens each, to count
CHANCES = {"temperature": 0.8, "top_k": 4, "nucleus": 0.9}
FREQUENCIES = f"{OFTEN} rows of prompt [1]"


def greedy_tokens(my: Any) -> Tokens:
    model = as_function(small_gpt2())
    return {
        name: seeded(partial(my.generate, model, copies(PROMPTS), N_NEW, temperature=0, end=end))
        for name, end in GREEDY.items()
    }


def copies(prompts: list[list[int]]) -> list[list[int]]:
    return [[*prompt] for prompt in prompts]


def seeded(run: Callable[[], Tensor]) -> Tensor:
    """Run with torch's global generator in a fixed state."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return run()


def right_greedy() -> Tokens:
    gpt2 = small_gpt2()
    return {
        name: torch.tensor([references.greedy(gpt2, prompt, N_NEW, end) for prompt in PROMPTS])
        for name, end in GREEDY.items()
    }


def penalized_tokens(my: Any) -> Tokens:
    model = as_function(small_gpt2())
    out = seeded(lambda: my.generate(model, copies(PROMPTS), N_NEW, temperature=0, frequency_penalty=0.9))
    return {"with temperature=0, frequency_penalty=0.9": out}


def right_penalized() -> Tokens:
    gpt2 = small_gpt2()
    rows = [references.step_by_step(gpt2, prompt, N_NEW, 0.9) for prompt in PROMPTS]
    return {"with temperature=0, frequency_penalty=0.9": torch.tensor(rows)}


def drawn_tokens(my: Any) -> Tokens:
    """Return draws with a seeded generator from a model whose probabilities are known."""
    drawn = {name: draw(my, SHORT, 5, settings) for name, settings in DRAWS.items()}
    return drawn | {FREQUENCIES: draw(my, [[1]] * OFTEN, 2, CHANCES)}


def right_draws() -> Tokens:
    return drawn_tokens(solution("generation"))


def draw(my: Any, prompts: list[list[int]], n_new: int, settings: dict[str, Any]) -> Tensor:
    model, generator = KnownModel(), torch.Generator().manual_seed(7)
    given = copies(prompts)
    out = seeded(partial(my.generate, model, given, n_new, generator=generator, **settings))
    if given != prompts:
        raise Wrong("generate changes the prompts it was given: continue copies of them.")
    given_once(model, max(map(len, prompts)) + n_new)
    return out


def given_once(model: KnownModel, length: int) -> None:
    if sum(model.given) > length:
        calls = f"{len(model.given)} calls, {model.without_cache} of them without a cache"
        raise Wrong(
            f"the model was given {sum(model.given)} positions in {calls}, for sequences of {length}: give it the cache, and "
            "only the positions that the cache does not hold yet."
        )
    if model.with_gradients:
        raise Wrong("the model ran with gradients on, which keeps every step in memory: use torch.no_grad().")


def tokens_differ(mine: Tokens, right: Tokens) -> str | None:
    for name, value in right.items():
        if says := one_differs(mine[name], value):
            return f"{name}, {says}"
    return None


def one_differs(mine: object, right: Tensor) -> str | None:
    if not isinstance(mine, Tensor):
        return f"the result is {type(mine).__name__}, not a tensor"
    if mine.shape != right.shape:
        return f"the shape is {list(mine.shape)}, expected {list(right.shape)} (prompts, new tokens)"
    if mine.dtype != right.dtype:
        return f"the tokens are {mine.dtype}, expected {right.dtype}"
    if torch.equal(mine, right):
        return None
    row, place = (mine != right).nonzero()[0].tolist()
    return f"the new tokens of prompt {row} are {mine[row].tolist()}, expected {right[row].tolist()}: they differ at {place}"


def draws_differ(mine: Tokens, right: Tokens) -> str | None:
    says = tokens_differ(mine, right)
    if says is None or not all(isinstance(value, Tensor) for value in mine.values()):
        return says
    return wrong_frequencies(mine[FREQUENCIES]) or (
        f"{says}. Frequencies are right, so random numbers are not drawn in the docstring's way"
    )


def frequencies(case: Case) -> None:
    """Raise Wrong if tokens are not drawn as often as their probabilities say."""
    if says := wrong_frequencies(draw(case.mine, [[1]] * OFTEN, 2, CHANCES)):
        raise Wrong(f"{says}.")


def wrong_frequencies(drawn: Tensor) -> str | None:
    """Describe frequencies that fail a chi-square test with a margin of six standard deviations, or return None."""
    known = KnownModel()
    chances = references.chances(lambda ids: known(ids)[0], [1], 2, CHANCES)
    counts = dict.fromkeys(chances, 0)
    for tokens in map(tuple, drawn.tolist()):
        if tokens not in counts:
            return f"of {OFTEN} continuations of two tokens one is {list(tokens)}, which has probability 0"
        counts[tokens] += 1
    off = {tokens: (counts[tokens] - OFTEN * p) ** 2 / (OFTEN * p * (1 - p)) for tokens, p in chances.items()}
    degrees = len(chances) - 1
    if sum(off.values()) < degrees + 6 * (2 * degrees) ** 0.5:
        return None
    worst = max(off, key=lambda tokens: off[tokens])
    return (
        f"of {OFTEN} continuations of [1] {counts[worst]} are {list(worst)}, expected some "
        f"{OFTEN * chances[worst]:.0f} ({', '.join(f'{k}={v}' for k, v in CHANCES.items())})"
    )


Beams = dict[str, tuple[list[int], float]]  # tokens and score, by the case

N_BEAM_TOKENS = 6
BEAMS: list[tuple[list[int], int, dict[str, Any]]] = [  # between them they tell all known mistakes apart
    ([3, 5, 1], 3, {"length_penalty": 1.0}),
    ([2, 2, 9, 4], 3, {"length_penalty": 0.0, "end": 0}),
    ([7], 4, {"length_penalty": -1.0, "end": 3}),
    ([7], 3, {"length_penalty": 2.0, "end": 5}),
    ([3, 5, 1], 3, {"length_penalty": 3.0, "end": 5, "early_stopping": True}),
    ([2, 2, 9, 4], 3, {"length_penalty": 3.0, "end": 12}),
    ([7], 2, {"length_penalty": 3.0, "end": 12}),
    ([6, 12], 3, {"length_penalty": 2.0, "end": 5}),
    ([0, 8], 2, {"length_penalty": 1.0, "end": 1}),
]
ALL: list[
    tuple[list[int], int, dict[str, Any]]
] = [  # as many beams as continuations: the search finds the best
    ([1], 30, {"length_penalty": 0.0, "end": 2}),
    ([2, 0], 30, {"length_penalty": 0.0, "end": 1}),
    ([0, 1], 81, {"length_penalty": 2.0}),
]


def beam_tokens(my: Any) -> Beams:
    model = as_function(small_gpt2())
    return {in_words(*case): beam(my, model, N_BEAM_TOKENS, *case) for case in BEAMS}


def right_beams() -> Beams:
    gpt2 = small_gpt2()
    return {
        in_words(*case): references.beams(gpt2, case[0], N_BEAM_TOKENS, case[1], case[2]) for case in BEAMS
    }


def all_tokens(my: Any) -> Beams:
    found = {}
    for case in ALL:
        model = KnownModel(3)
        found[in_words(*case)] = beam(my, model, 4, *case)
        given_once(model, len(case[0]) + 4)
    return found


def right_of_all() -> Beams:
    known = KnownModel(3)
    return {
        in_words(*case): references.best_of_all(
            lambda ids: known(ids)[0], case[0], 4, case[2].get("end"), case[2]["length_penalty"]
        )
        for case in ALL
    }


def in_words(prompt: list[int], n_beams: int, settings: dict[str, Any]) -> str:
    told = ", ".join(f"{k}={v}" for k, v in settings.items() if v is not None)
    return f"with prompt {prompt}, n_beams={n_beams}, {told}"


def beam(
    my: Any, model: Any, n_new: int, prompt: list[int], n_beams: int, settings: dict[str, Any]
) -> tuple[list[int], float]:
    given = [*prompt]
    returned = my.beam_search(model, given, n_new, n_beams, **settings)
    if given != prompt:
        raise Wrong("beam_search changes the prompt it was given: continue a copy of it.")
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise Wrong(
            f"the result is {type(returned).__name__}; expected two values: the new tokens, the score."
        )
    tokens, score = returned
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise Wrong("the returned tokens should be a list of integers: `.tolist()` makes one.")
    return tokens, float(score)


def beams_differ(mine: Beams, right: Beams) -> str | None:
    for name, (tokens, score) in right.items():
        my_tokens, my_score = mine[name]
        close = abs(my_score - score) < 1e-4 * max(1, abs(score))
        if my_tokens != tokens:
            return (
                f"{name}, the tokens are {my_tokens} (score {my_score:.4f}), expected {tokens} ({score:.4f})"
            )
        if not close:
            return f"{name}, the tokens {tokens} are right, but their score is {my_score:.5g}, expected {score:.5g}"
    return None
