"""Generation from scratch: a worked solution of learn/generation_student.py. Look here last.

Shape suffixes:  B batch  T new position  S position attended to  D model dim  H head  K dim of a head
                 V vocabulary  N new token
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def cached_attention(
    attention: Any, x_BTD: Tensor, cache: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Causal attention of new positions, with cached keys and values of earlier ones."""
    B, T, D = x_BTD.shape
    H, K = attention.n_heads, D // attention.n_heads
    q_BTD, k_BTD, v_BTD = attention.qkv(x_BTD).split(D, dim=-1)
    q_BHTK, k_BHSK, v_BHSK = (y_BTD.view(B, T, H, K).transpose(1, 2) for y_BTD in (q_BTD, k_BTD, v_BTD))
    if cache is not None:
        k_BHSK = torch.cat([cache[0], k_BHSK], dim=2)
        v_BHSK = torch.cat([cache[1], v_BHSK], dim=2)
    S = k_BHSK.shape[2]
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-1, -2) / math.sqrt(K)
    future_TS = torch.ones(T, S, device=x_BTD.device).triu(diagonal=1 + S - T).bool()
    pattern_BHTS = scores_BHTS.masked_fill(future_TS, -math.inf).softmax(dim=-1)
    z_BHTK = pattern_BHTS @ v_BHSK
    return attention.out(z_BHTK.transpose(1, 2).reshape(B, T, D)), (k_BHSK, v_BHSK)


def cached_gpt2(
    model: Any, ids_BT: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits of GPT-2 at new positions, from their ids and a cache."""
    T = ids_BT.shape[1]
    n_kept = 0 if cache is None else cache[0][0].shape[2]
    x_BTD = model.embedding.tokens[ids_BT] + model.embedding.positions[n_kept : n_kept + T]
    caches = [None] * len(model.blocks) if cache is None else cache
    grown = []
    for block, kept in zip(model.blocks, caches, strict=True):
        z_BTD, kept = cached_attention(block.attention, block.norm1(x_BTD), kept)
        x_BTD = x_BTD + z_BTD
        x_BTD = x_BTD + block.mlp(block.norm2(x_BTD))
        grown.append(kept)
    return model.final_norm(x_BTD) @ model.embedding.tokens.T, grown


def next_token_probabilities(
    logits_BV: Tensor, temperature: float = 1.0, top_k: int | None = None, nucleus: float | None = None
) -> Tensor:
    """Probabilities a sampler draws from: temperature, top-k, nucleus."""
    if temperature == 0:
        best_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits_BV).scatter(1, best_B1, 1.0)
    logits_BV = logits_BV / temperature
    if top_k is not None:
        smallest_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -math.inf)
    if nucleus is not None:
        sorted_BV, order_BV = logits_BV.softmax(dim=-1).sort(dim=-1, descending=True)
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        outside_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(1, order_BV, before_BV >= nucleus)
        logits_BV = logits_BV.masked_fill(outside_BV, -math.inf)
    return logits_BV.softmax(dim=-1)


def frequency_penalized(logits_BV: Tensor, ids_BT: Tensor, penalty: float) -> Tensor:
    """Logits, lowered for every earlier occurrence of a token."""
    once_BT = torch.ones_like(ids_BT).to(logits_BV.dtype)
    counts_BV = torch.zeros_like(logits_BV).scatter_add(1, ids_BT, once_BT)
    return logits_BV - penalty * counts_BV


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
    """New tokens for prompts of any lengths, all in one batch."""
    rows = [list(prompt) for prompt in prompts]
    given, cache = 0, None  # number of positions that the model has processed, and its cache of them
    for T in range(min(map(len, prompts)), max(map(len, prompts)) + n_new):
        with torch.no_grad():
            logits_BTV, cache = model(torch.tensor([row[given:T] for row in rows]), cache)
        ids_BT = torch.tensor([row[:T] for row in rows])
        logits_BV = frequency_penalized(logits_BTV[:, -1], ids_BT, frequency_penalty)
        probs_BV = next_token_probabilities(logits_BV, temperature, top_k, nucleus)
        drawn_B = torch.multinomial(probs_BV, 1, generator=generator)[:, 0]
        for row, prompt, token in zip(rows, prompts, drawn_B.tolist(), strict=True):
            if len(row) == T:  # else the prompt gives the next token
                row.append(end if end in row[len(prompt) :] else token)
        given = T
    return torch.tensor([row[len(prompt) :][:n_new] for row, prompt in zip(rows, prompts, strict=True)])


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
    """Best continuation of a prompt that a search with several beams finds."""
    running: list[tuple[float, int, list[int]]] = [(0.0, 0, [])]  # sum, the row it continues, new tokens
    finished: list[tuple[float, list[int]]] = []  # score, new tokens
    new_BT, cache = torch.tensor([prompt]), None
    for length in range(1, n_new + 1):
        with torch.no_grad():
            logits_BTV, cache = model(new_BT, cache)
        best = _best_continuations(running, logits_BTV[:, -1], 2 * n_beams)
        running = []
        for rank, (total, parent, tokens) in enumerate(best):
            if tokens[-1] != end and length < n_new:
                running.append((total, parent, tokens))
            elif rank < n_beams:
                finished.append((total / length**length_penalty, tokens))
        running = running[:n_beams]
        finished = sorted(finished, key=lambda one: one[0], reverse=True)[:n_beams]
        if not running:
            break
        if len(finished) == n_beams:
            hoped_for = running[0][0] / length**length_penalty
            if early_stopping or hoped_for <= finished[-1][0]:
                break
        parents_B = torch.tensor([parent for _, parent, _ in running])
        cache = [(keys[parents_B], values[parents_B]) for keys, values in cache]
        new_BT = torch.tensor([tokens[-1:] for _, _, tokens in running])
    score, tokens = finished[0]
    return tokens, score


def _best_continuations(beams: list[tuple], logits_BV: Tensor, n: int) -> list[tuple[float, int, list[int]]]:
    """Return the n most probable continuations of all beams by one token, the best first: sum, parent's row, tokens."""
    sums_B1 = torch.tensor([[total] for total, _, _ in beams], dtype=logits_BV.dtype)
    sums_BV = sums_B1 + logits_BV - logits_BV.logsumexp(dim=-1, keepdim=True)
    best = sums_BV.flatten().topk(min(n, sums_BV.numel()))
    found = []
    for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = divmod(place, logits_BV.shape[1])
        found.append((total, parent, [*beams[parent][2], token]))
    return found
