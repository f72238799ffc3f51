"""Reference results for generation, from transformers and torch, or from trying every possibility.

A model is the solution's GPT-2, or a function from ids [B, T] to logits [B, T, V] without a cache.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import (
    DynamicCache,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from learn.courses.gpt2.references import huggingface, twin

Pieces = list[tuple[Tensor, list[tuple[Tensor, Tensor]]]]


def attention_in_pieces(made: Any, x: Tensor, sizes: Sequence[int]) -> Pieces:
    """Return each piece's output and the cache after it, by HuggingFace's attention with DynamicCache."""
    layer: Any = huggingface(1, 1, x.shape[-1], 1, made.n_heads).transformer.h[0]
    weights = {
        f"{name}.{kind}": value
        for name, linear in (("c_attn", made.qkv), ("c_proj", made.out))
        for kind, value in (("weight", linear.weight.T), ("bias", linear.bias))
    }
    cache, found, start = DynamicCache(), Pieces(), 0
    for piece in x.split(list(sizes), dim=1):
        places = torch.arange(start + piece.shape[1])
        future = torch.where(places[None, :] > places[start:, None], -torch.inf, 0.0).to(x.dtype)
        out, _ = functional_call(layer.attn, weights, (piece.contiguous(), cache, future))
        found.append((out, layers_of(cache)))
        start += piece.shape[1]
    return found


def gpt2_in_pieces(made: Any, ids: Tensor, sizes: Sequence[int]) -> Pieces:
    """Return each piece's logits and all layers' caches after it, by GPT2LMHeadModel with use_cache."""
    whole, cache, found = twin(made), DynamicCache(), Pieces()
    for piece in ids.split(list(sizes), dim=1):
        logits = whole(piece, cache, use_cache=True).logits
        found.append((logits, layers_of(cache)))
    return found


def layers_of(cache: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def next_token_probabilities(
    made: Any,
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    nucleus: float | None = None,
) -> Tensor:
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    ids = torch.zeros(len(logits), 1, dtype=torch.long)  # the warpers ask for them and do not look
    logits = TemperatureLogitsWarper(temperature)(ids, logits)
    logits = TopKLogitsWarper(top_k)(ids, logits) if top_k is not None else logits
    logits = TopPLogitsWarper(nucleus)(ids, logits) if nucleus is not None else logits
    return logits.softmax(dim=-1)


def frequency_penalized(made: Any, logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    counts = [torch.bincount(row, minlength=logits.shape[1]) for row in ids]
    return logits - penalty * torch.stack(counts)


def greedy(made: Any, prompt: Sequence[int], n_new: int, end: int | None) -> list[int]:
    """Return HuggingFace's greedy continuation, filled up with `end` to n_new tokens."""
    model: Any = twin(made)
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
    )
    new = out[0, len(prompt) :].tolist()
    return new + [end] * (n_new - len(new))


def step_by_step(
    logits_of: Callable[[Tensor], Tensor], prompt: Sequence[int], n_new: int, penalty: float
) -> list[int]:
    """Return the greedy continuation of one prompt under a frequency penalty, without a cache."""
    ids = list(prompt)
    for _ in range(n_new):
        [logits] = logits_of(torch.tensor([ids]))[:, -1]
        scores = [float(logit) - penalty * ids.count(token) for token, logit in enumerate(logits)]
        ids.append(scores.index(max(scores)))
    return ids[len(prompt) :]


def chances(
    logits_of: Callable[[Tensor], Tensor], prompt: Sequence[int], n_new: int, settings: dict[str, Any]
) -> dict[tuple[int, ...], float]:
    """Return the probability of every continuation of n_new tokens, without an end token."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(n_new):
        longer: dict[tuple[int, ...], float] = {}
        for tokens, chance in found.items():
            logits = logits_of(torch.tensor([[*prompt, *tokens]]))[:, -1]
            [probabilities] = next_token_probabilities(None, logits, **settings)
            longer |= {(*tokens, i): chance * float(p) for i, p in enumerate(probabilities) if p > 0}
        found = longer
    return found


def beams(
    made: Any, prompt: Sequence[int], n_new: int, n_beams: int, settings: dict[str, Any]
) -> tuple[list[int], float]:
    """Return HuggingFace's best continuation by beam search, up to its end token, and its score."""
    end = settings.get("end")
    model: Any = twin(made)
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        max_new_tokens=n_new,
        do_sample=False,
        num_beams=n_beams,
        length_penalty=settings.get("length_penalty", 1.0),
        early_stopping=settings.get("early_stopping", False),
        eos_token_id=end,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = out.sequences[0, len(prompt) :].tolist()
    if end in tokens:
        tokens = tokens[: tokens.index(end) + 1]
    return tokens, float(out.sequences_scores[0])


def best_of_all(
    logits_of: Callable[[Tensor], Tensor], prompt: Sequence[int], n_new: int, end: int | None, penalty: float
) -> tuple[list[int], float]:
    """Return the best of all continuations that end or have n_new tokens, and its score."""
    n_tokens = logits_of(torch.tensor([prompt])).shape[-1]
    best: tuple[list[int], float] = ([], -torch.inf)
    for length in range(1, n_new + 1):
        for tokens in itertools.product(range(n_tokens), repeat=length):
            if end in tokens[:-1] or (length < n_new and tokens[-1] != end):
                continue
            ids = torch.tensor([[*prompt, *tokens]])
            logprobs = logits_of(ids)[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
            score = float(logprobs[range(length), tokens].sum()) / length**penalty
            best = max(best, (list(tokens), score), key=lambda one: one[1])
    return best
