"""Generation from scratch: replace each `raise NotImplementedError` and run `python3 -m learn check generation`.

learn/generation.md says what to read first and how long it takes. Your functions get a model as an argument: first an
attention and a GPT-2 with the attributes that learn/gpt2_student.py lists, and from `generate` on any function from ids and
a cache to logits and a cache. The checks bring their own models, so your gpt2 course need not be done.

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
               as CausalAttention of the gpt2 course, which computes the same
    x          the new positions, [B, T, D]
    cache      keys and values of all positions before them, a pair of tensors [B, H, S - T, K], or None: there are none
    Returns the output at the new positions [B, T, D], and the cache with them in it, a pair of tensors [B, H, S, K].
    Run `qkv` on the new positions only. Do not change the given cache: it may be used again.
    Hints:  queries come from the new positions, keys and values from all: scores are [B, H, T, S]. New position t is
            position S - T + t of the sequence, and sees itself and all before it. Several new positions at once must
            not see each other's future: `torch.ones(T, S).triu(diagonal=...)` is the mask, but with which diagonal?
            Without a cache, T = S, the result is that of the gpt2 course's attention.
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
    Returns logits [B, T, V] and a new list of such pairs. Do not change the given list.
    Hints:  call your `cached_attention`. Norms and MLPs see each position by itself and need no cache. Positions of
            the new ids start at the number of cached positions, which is dimension 2 of the cached keys.
    """
    raise NotImplementedError


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, nucleus: float | None = None
) -> Tensor:
    """The probabilities a sampler draws from: logits [B, V] to probabilities [B, V] (Holtzman et al. 2020, section 3).

    temperature  divides the logits; 0 means greedy: probability 1 for the largest logit
    top_k        only the k most probable tokens stay
    nucleus      only the most probable tokens stay: the fewest whose probabilities sum to `nucleus` or more
    Apply them in this order. Each works on the tokens left by the one before, with probabilities renormalized to sum
    to 1. The returned probabilities sum to 1, too. Ties between logits do not matter.
    """
    raise NotImplementedError


def frequency_penalized(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits of the next token, lowered by `penalty` for every time a token occurs in its row so far.

    logits [B, V], the ids so far [B, S] (S may be 0), to logits [B, V]: logit of token v in row b minus penalty times
    how often v occurs in ids[b]. This is what OpenAI's API calls the frequency penalty; the repetition penalty of CTRL
    (Keskar et al. 2019, section 4.1) is another one, which divides. A negative penalty invites repetition.
    Hint:   `scatter_add` adds once for every time an index occurs; `counts[row, ids] += 1` adds only once.
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
    prompts  lists of ids, none of them empty. Do not change them
    Returns the new tokens, an integer tensor [B, n_new].

    The model has no padding, so all rows are always at the same position. Begin with as many tokens of every prompt as
    the shortest one has. At each step the model's last logits give every row its next token. A row that is still inside
    its prompt takes the prompt's next token instead. Rows with short prompts are done first. They run on until the row
    with the longest prompt has its n_new tokens, but only their first n_new new tokens are returned.
    A step:  1. the model, under torch.no_grad(), given only what its cache does not hold yet
             2. `frequency_penalized` with each row's ids so far, prompt included
             3. `next_token_probabilities` with temperature, top_k and nucleus
             4. one call of torch.multinomial(probabilities [B, V], 1, generator=generator) for all rows, those inside
                their prompt and those that have ended as well: with one seed your draws then equal the solution's
    A row ends when it generates the token `end`; an `end` inside a prompt does not count. Keep that token, and fill the
    rest of the row with `end`. When all rows are done you may stop early.
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

    Read Wu et al. 2016 (Google's Neural Machine Translation System, section 7). The rules here are those of
    HuggingFace's `generate`. `model` is as in `generate`. A continuation ends with the token `end`, or with n_new (1 or
    more) tokens. Its score is the sum of its tokens' log-probabilities / (number of its tokens, `end` included, the
    prompt not) ** length_penalty. Returns the new tokens as a list, and the score.

    At first there is one beam: the prompt, with a sum of 0. A step, for all beams together (they are rows of a batch):
    1. Every beam continues with every token: the sum of the beam plus the token's log-probability. Keep the 2 n_beams
       best of all these candidates (or all, if there are fewer), the best first.
    2. Candidates that end (all, at step n_new) are finished if they are among the first n_beams, and get their score.
       Those that end further down are dropped. Of all finished so far, keep the n_beams with the best scores.
    3. The n_beams best candidates that do not end are the beams of the next step.
    4. The search stops after step n_new, or if no candidate is left that does not end. It stops earlier if n_beams are
       finished, and either early_stopping is True, or the best beam's sum / (tokens so far) ** length_penalty is no
       better than the worst score of the finished ones.
    The finished candidate with the best score is returned. Ties between sums do not matter.
    Hints:  each row of the cache belongs to a beam. The next step's beams may come from other rows, or two from the same
            row. So index each tensor of the cache by the rows of the parents. Use torch.no_grad() and the cache as in
            `generate`. `log_softmax` is allowed here.
    """
    raise NotImplementedError
