"""Generation from scratch: replace each `raise NotImplementedError` and run `python3 -m learn check generation`.

What to read first, and how long it takes, is in learn/generation.md. Your functions are given a model: an attention and
a GPT-2 with the attributes that learn/gpt2_student.py lists (the checks bring their own), or, from `generate` on, any
function of ids and a cache to logits and a cache. Nothing of the gpt2 course is imported, and nothing has to be built.

In the comments  B batch  T new positions  S positions so far, the new ones included  D model dim  H head
K = D / H dim of a head  V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def cached_attention(
    attention: Any, x: Tensor, cache: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Causal attention that computes new positions only (Shazeer 2019, Fast Transformer Decoding, section 2.4).

    attention  has n_heads, qkv: nn.Linear(D, 3 D) (all of q, then all of k, then all of v) and out: nn.Linear(D, D),
               as CausalAttention of the gpt2 course; what you compute is what it computes
    x          the new positions, [B, T, D]
    cache      keys and values of all positions before them, a pair of tensors [B, H, S - T, K], or None: there are none
    Returns the output at the new positions [B, T, D], and the cache with them in it, a pair of tensors [B, H, S, K].
    `qkv` runs on the new positions only, and the cache that was given stays as it is: it may be used again.
    Hints:  queries are of the new positions, keys and values of all: scores are [B, H, T, S]. New position t is the
            position S - T + t of the sequence, and sees itself and all before it. Several new positions at once must
            not see each other's future: `torch.ones(T, S).triu(diagonal=...)` is the mask, but with which diagonal?
            What is computed without a cache, T = S, is what the gpt2 course's attention computes.
    """
    raise NotImplementedError


def cached_gpt2(
    model: Any, ids: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """GPT-2 on new positions only: their logits, and the cache with them in it.

    model  has embedding (with tokens [V, D] and positions), blocks (each with norm1, attention, norm2 and mlp) and
           final_norm, as GPT2 of the gpt2 course
    ids    of the new positions, [B, T]
    cache  a list with one pair (keys, values) for each block, in their order, or None: there is none
    Returns logits [B, T, V] and a new list of such pairs. The list that was given stays as it is.
    Hints:  call your `cached_attention`; norms and MLPs see each position by itself and need no cache. Positions of the
            new ids count on from the number of positions that are kept, which the shape of the kept keys tells.
    """
    raise NotImplementedError


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, nucleus: float | None = None
) -> Tensor:
    """The probabilities a sampler draws from: logits [B, V] to probabilities [B, V] (Holtzman et al. 2020, section 3).

    temperature  divides the logits; 0 means greedy: probability 1 for the largest logit
    top_k        only the k most probable tokens stay
    nucleus      only the most probable tokens stay, as few as have `nucleus` probability together (or just more)
    They come in this order, each on what the one before left, its probabilities renormalized to sum to 1; so do those
    that are returned. You need not care for tokens of equal logits.
    """
    raise NotImplementedError


def frequency_penalized(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits of the next token, lowered by `penalty` for every time a token occurs in its row so far.

    logits [B, V], the ids so far [B, S] (S may be 0), to logits [B, V]: logit of token v in row b minus penalty times
    how often v occurs in ids[b]. This is what OpenAI's API calls the frequency penalty; the repetition penalty of CTRL
    (Keskar et al. 2019, section 4.1) is another one, which divides. A negative penalty invites repetition.
    Hint:   `scatter_add` adds at the same place as often as it is named; `counts[row, ids] += 1` adds once.
    """
    raise NotImplementedError


def generate(
    model: Callable,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    nucleus: float | None = None,
    frequency_penalty: float = 0.0,
    end: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`n_new` tokens to follow each prompt, all prompts in one batch, however long each of them is.

    model    `logits, cache = model(ids, cache)`: ids [B, T] of new positions and the cache of those before (None at
             first) to logits [B, T, V] and the new cache, as `functools.partial(cached_gpt2, gpt2)`
    prompts  lists of ids, none of them empty; they stay as they are
    Returns the new tokens, an integer tensor [B, n_new].

    No row is padded, for the model knows no padding: all rows are at the same position at all times. Begin with as much
    of every prompt as the shortest one has. At each step the model's last logits give every row its next token; but a
    row that is still inside its prompt takes the prompt's own. So short prompts are done first; their rows run along
    (their further tokens are not returned) until the longest prompt has its n_new too.
    A step:  1. the model, under torch.no_grad(), given only what its cache does not hold yet
             2. `frequency_penalized` with each row's ids so far, prompt included
             3. `next_token_probabilities` with temperature, top_k and nucleus
             4. one call of torch.multinomial(probabilities [B, V], 1, generator=generator) for all rows, those inside
                their prompt and those that have ended as well: with one seed your draws then equal the solution's
    `end` is the token that ends a row, once it is generated (in a prompt it ends nothing): it is kept, and whatever
    would follow in the row is `end` too. When all rows are done you may stop early.
    """
    raise NotImplementedError


def beam_search(
    model: Callable,
    prompt: Sequence[int],
    n_new: int,
    n_beams: int,
    *,
    length_penalty: float = 1.0,
    end: int | None = None,
    early_stopping: bool = False,
) -> tuple[list[int], float]:
    """The best continuation of one prompt that a search with `n_beams` beams finds, and its score.

    Wu et al. 2016 (Google's Neural Machine Translation System, section 7) is what to read; the rules here are those of
    HuggingFace's `generate`. `model` is as in `generate`. A continuation ends with the token `end`, or with n_new (1 or
    more) tokens. Its score is the sum of its tokens' log-probabilities / (number of its tokens, `end` included, the
    prompt not) ** length_penalty. Returns the new tokens as a list, and the score.

    At first there is one beam: the prompt, with a sum of 0. A step, for all beams together (they are rows of a batch):
    1. Every beam continues with every token: sum of the beam + log-probability of the token. Keep the 2 n_beams best of
       all of these candidates (or all, if they are fewer), the best first.
    2. Those that end (all, at step n_new) and are among the first n_beams are finished, with their score. Those that
       end further down are dropped. Of all finished ones since the beginning the n_beams with the best scores are kept.
    3. The n_beams best candidates that do not end are the beams of the next step.
    4. It is over after step n_new. It is over before if n_beams are finished, and either early_stopping is True, or the
       best beam's sum / (tokens so far) ** length_penalty is no better than the worst score of the finished ones.
    The best of the finished ones is returned. If no candidate is left that does not end, it is over, too. You need not care for candidates with equal sums.
    Hints:  a row of the cache belongs to a beam. Where the beams of the next step come from other rows, or one row has
            two children, the cache has to follow: index each tensor by the rows of the parents. torch.no_grad() and
            the cache are for you to use as in `generate`; `log_softmax` may be used here.
    """
    raise NotImplementedError
