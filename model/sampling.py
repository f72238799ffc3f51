"""Sampling: from logits to the next token, and from prompts to whole samples.

Shape suffixes:  B batch  T position  V vocabulary
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.inputs import Tokenizer
from model.model_params import ModelParams

ROUNDING = 1e-9  # a sum of probabilities that misses nucleus by so small a share of it is taken to reach it


class LanguageModel(Protocol):
    """What generation asks of a model: an LM has it."""

    tokenizer: Tokenizer
    model_params: ModelParams

    @property
    def device(self) -> torch.device: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def eval(self) -> Any: ...
    def __call__(self, x: Tensor) -> Tensor: ...


def check_sampling(temperature: float, top_k: int | None, nucleus: float | None) -> None:
    """ValueError for settings that mean nothing."""
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature={temperature!r} must be a finite number, 0 (the most probable token) or above"
        )
    if top_k is not None and nucleus is not None:
        raise ValueError(f"top_k={top_k!r} and nucleus={nucleus!r} exclude each other: give one of them")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k!r} must be at least 1")
    if nucleus is not None and not 0 < nucleus <= 1:
        raise ValueError(f"nucleus={nucleus!r} must be above 0 and at most 1")


def next_token_probs(
    logits_BV: Tensor, temperature: float = 1.0, top_k: int | None = None, nucleus: float | None = None
) -> Tensor:
    """The distribution that the next token is drawn from, [B, V] in float64 on the CPU; at temperature 0 all on the argmax.

    Of a model whose logits are no numbers any more, token 0.
    """
    check_sampling(temperature, top_k, nucleus)
    logits_BV = logits_BV.cpu().double()  # some accelerators know no float64
    if logits_BV.isnan().any():
        logits_BV, temperature = torch.zeros_like(logits_BV), 0
    if temperature == 0:
        return nn.functional.one_hot(logits_BV.argmax(dim=-1), logits_BV.shape[-1]).double()
    # The largest logit becomes 0 first, so that no temperature, however small, overflows.
    logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature
    probs_BV = logits_BV.softmax(dim=-1)
    if top_k is not None:
        probs_BV = keep_top_k(probs_BV, top_k)
    if nucleus is not None:
        probs_BV = keep_nucleus(probs_BV, nucleus)
    return probs_BV / probs_BV.sum(dim=-1, keepdim=True)


def keep_top_k(probs_BV: Tensor, top_k: int) -> Tensor:
    """0 for all but the `top_k` most probable tokens; of equals at the edge, only so many as fit."""
    top = probs_BV.topk(min(top_k, probs_BV.shape[-1]), dim=-1)
    return torch.zeros_like(probs_BV).scatter(-1, top.indices, top.values)


def keep_nucleus(probs_BV: Tensor, nucleus: float) -> Tensor:
    """0 for all but the smallest set of most probable tokens with a sum >= `nucleus` (Holtzman et al. 2020)."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV  # the sum of all that are more probable
    kept_BV = sorted_BV.masked_fill(before_BV >= nucleus * (1 - ROUNDING), 0.0)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, kept_BV)


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    nucleus: float | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Each prompt with its continuation: up to eos, `max_new_tokens`, or the longest input the model takes.

    Prompts may differ in length; each row is continued at its own end. Random numbers come from `generator`, else from
    torch's global one; temperature 0 uses none.
    """
    check_sampling(temperature, top_k, nucleus)
    rows = [list(prompt) for prompt in prompts]
    longest = max(map(len, rows), default=0)
    if longest > lm.model_params.max_seq_len:
        raise ValueError(f"a prompt of {longest} tokens, but max_seq_len={lm.model_params.max_seq_len!r}")
    max_lens = [min(len(row) + max_new_tokens, lm.model_params.max_seq_len + 1) for row in rows]
    active = [i for i, row in enumerate(rows) if len(row) < max_lens[i]]
    with eval_mode(lm):
        while active:
            logits_BV = last_logits(lm, [rows[i] for i in active])
            probs_BV = next_token_probs(logits_BV, temperature, top_k, nucleus)
            if temperature == 0:
                next_B = probs_BV.argmax(dim=-1)
            else:
                next_B = torch.multinomial(probs_BV, 1, generator=generator)[:, 0]
            for i, token in zip(active, next_B.tolist(), strict=True):
                rows[i].append(token)
            active = [i for i in active if rows[i][-1] != lm.tokenizer.eos and len(rows[i]) < max_lens[i]]
    return rows


def last_logits(lm: LanguageModel, rows: list[list[int]]) -> Tensor:
    """The logits after the last token of each row, [B, V]."""
    ids_BT = padded(rows, lm.tokenizer.pad).to(lm.device)
    last_B = torch.tensor([len(row) - 1 for row in rows], device=lm.device)
    logits_BTV = lm(ids_BT)
    return logits_BTV[torch.arange(len(rows), device=lm.device), last_B]


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """[B, T] int64, rows filled up on the right: no real token ever sees the padding."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad)


@contextmanager
def eval_mode(model: LanguageModel) -> Iterator[None]:
    """Evaluation mode inside, every module as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
