"""Sampling: from logits to the next token, and from prompts to whole samples.

Shape suffixes:  B batch  T position  V vocabulary
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.generation.decoding import GrowingRows, LanguageModel, usable_logits
from model.inputs import Tokenizer, ids_of

LOCK = threading.Lock()
# Models inside `eval_mode`: the number of open blocks, and the modules to set back to training mode.
IN_EVAL_MODE: dict[Any, tuple[int, list[nn.Module]]] = {}
# A sum of probabilities reaches `nucleus` if it misses it by no more than this share.
NUCLEUS_ROUNDING = 1e-6

Prompt = str | Sequence[int]  # a text, or ids
Stop = int | str | Sequence[int | str]  # ids, or texts of one token


class Continuation(NamedTuple):
    """A prompt with its continuation."""

    ids: list[int]  # the prompt's and the new ones
    logprobs: list[float]  # of the new ones, if asked for


@dataclass(frozen=True)
class TokenSampler:
    """Settings by which the next token is chosen. Raise ValueError if a setting is out of range."""

    temperature: float = 1.0
    top_k: int | None = None
    nucleus: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        temperature, top_k, nucleus, min_p = self.temperature, self.top_k, self.nucleus, self.min_p
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
        if min_p is not None and not 0 <= min_p <= 1:
            raise ValueError(f"min_p={min_p!r} must be from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty!r} must be a finite number above 0 (1: no penalty)"
            )

    def __call__(self, logits_BV: Tensor, ids_BT: Tensor) -> Tensor:
        """Return the next token of each row, [B]. `ids_BT` are the ids so far. Raise NoNextToken for a row with NaN."""
        if self.repetition_penalty != 1:
            logits_BV = penalized(usable_logits(logits_BV), ids_BT, self.repetition_penalty)
        if self.temperature == 0:
            return usable_logits(logits_BV).argmax(dim=-1)
        probs_BV = next_token_probs(logits_BV, self.temperature, self.top_k, self.nucleus, self.min_p)
        return draw(probs_BV, self.generator)


def penalized(logits_BV: Tensor, ids_BT: Tensor, penalty: float) -> Tensor:
    """Return logits with every token of `ids_BT` made less likely (Keskar et al. 2019, CTRL, section 4.1)."""
    seen_BT = logits_BV.gather(1, ids_BT)
    return logits_BV.scatter(1, ids_BT, torch.where(seen_BT < 0, seen_BT * penalty, seen_BT / penalty))


def next_token_probs(
    logits_BV: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    nucleus: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Return the distribution of the next token, [B, V] on the CPU. At temperature 0 the argmax has all of it.

    Logits of +inf share all of the probability. Raise NoNextToken for a row with NaN, or with only -inf.
    """
    logits_BV = usable_logits(logits_BV.cpu())
    if temperature == 0:
        return nn.functional.one_hot(logits_BV.argmax(dim=-1), logits_BV.shape[-1]).to(logits_BV)
    if temperature != 1:
        # The largest logit becomes 0 first, so that no temperature, however small, overflows.
        logits_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)
        logits_BV = logits_BV / max(temperature, torch.finfo(logits_BV.dtype).tiny)
    if top_k is not None:
        logits_BV = keep_top_k(logits_BV, top_k)
    probs_BV = logits_BV.softmax(dim=-1)
    if nucleus is not None:
        probs_BV = keep_nucleus(probs_BV, nucleus)
    if min_p is not None:
        probs_BV = keep_min_p(probs_BV, min_p)
    if nucleus is min_p is None:
        return probs_BV
    return probs_BV / probs_BV.sum(dim=-1, keepdim=True)


def keep_top_k(logits_BV: Tensor, top_k: int) -> Tensor:
    """Set all but the `top_k` largest logits to -inf. Ties at the edge are all kept, as in HuggingFace."""
    smallest_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1]), dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < smallest_B1, -math.inf)


def keep_nucleus(probs_BV: Tensor, nucleus: float) -> Tensor:
    """Set all but the smallest set of most probable tokens with a sum >= `nucleus` to 0 (Holtzman et al. 2020)."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    # The sum of all that are more probable.
    before_BV = sorted_BV.cumsum(dim=-1, dtype=torch.float64) - sorted_BV
    kept_BV = sorted_BV.masked_fill(before_BV >= nucleus * (1 - NUCLEUS_ROUNDING), 0.0)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, kept_BV)


def keep_min_p(probs_BV: Tensor, min_p: float) -> Tensor:
    """Set tokens below `min_p` times the highest probability to 0 (Nguyen et al. 2024)."""
    return probs_BV.masked_fill(probs_BV < min_p * probs_BV.amax(dim=-1, keepdim=True), 0.0)


def draw(probs_BV: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a token of each row, [B], in proportion to its probability.

    This takes one random number per row; torch.multinomial takes one per token of the vocabulary.
    """
    sums_BV = probs_BV.cumsum(dim=-1, dtype=torch.float64)
    shares_B1 = torch.rand(len(probs_BV), 1, dtype=torch.float64, generator=generator)
    return torch.searchsorted(sums_BV, shares_B1 * sums_BV[:, -1:], right=True)[:, 0]


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    nucleus: float | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """Return each prompt with its continuation, up to eos, `max_new_tokens`, or the longest input the model takes.

    Random numbers come from `generator`, or else from torch's global one. Temperature 0 uses none.
    Raise ValueError for a prompt longer than max_seq_len.
    """
    sampler = TokenSampler(temperature, top_k, nucleus, generator=generator)
    longest = max(map(len, prompts), default=0)
    if longest > lm.model_params.max_seq_len:
        raise ValueError(
            f"a prompt of {longest} tokens is longer than max_seq_len={lm.model_params.max_seq_len!r}"
        )
    lengths = [min(len(prompt) + max_new_tokens, lm.model_params.max_seq_len + 1) for prompt in prompts]
    return [ids for ids, _ in generate_rows(lm, prompts, lengths, sampler, use_cache=use_cache)]


@torch.no_grad()
def generate_rows(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    sampler: TokenSampler,
    *,
    stop: Sequence[int] = (),
    attn_requests: object = None,
    use_cache: bool = True,
    return_logprobs: bool = False,
) -> list[Continuation]:
    """Continue each prompt up to its length, a stop token of the tokenizer or an id of `stop`; the result includes it.

    All rows stay at the same position, so no row needs padding. They start at the length of the shortest prompt.
    A longer prompt first supplies its own tokens. Finished rows leave the batch.
    """
    done = [Continuation(list(prompt), []) for prompt in prompts]
    active = [i for i, prompt in enumerate(prompts) if len(prompt) < lengths[i]]
    if not active:
        return done
    ends, T = {*lm.tokenizer.stops, *stop}, min(len(prompts[i]) for i in active)
    with eval_mode(lm):
        rows = GrowingRows(
            lm,
            [prompts[i][:T] for i in active],
            room=max(lengths),
            n_rows=len(active),
            attn_requests=attn_requests,
            use_cache=use_cache,
        )
        while active:
            # Rows whose next token still comes from their prompt: their logits are not used and may be NaN.
            given = [[len(prompts[i]) > T] for i in active]
            logits_BV = rows.logits()
            if any(map(any, given)):
                logits_BV = logits_BV.masked_fill(torch.tensor(given, device=lm.device), 0.0)
            logits_BV = usable_logits(
                logits_BV,
                lambda row: f"row {active[row]}, step {T - len(prompts[active[row]])}",  # noqa: B023 -- called at once
            )
            with torch.inference_mode():
                next_B = sampler(logits_BV, rows.ids_BT).to(logits_BV.device)
            logprobs = log_probs_of(next_B, logits_BV) if return_logprobs else []
            tokens, kept = next_B.tolist(), []
            for row, i in enumerate(active):
                in_prompt = len(prompts[i]) > T
                if in_prompt:
                    tokens[row] = prompts[i][T]
                else:
                    done[i].ids.append(tokens[row])
                    done[i].logprobs.extend(logprobs[row : row + 1])
                if in_prompt or (tokens[row] not in ends and lengths[i] > T + 1):
                    kept.append(row)
            T += 1
            rows.extend(tokens)
            if len(kept) < len(active):
                rows.take(kept)
                active = [active[row] for row in kept]
    return done


def log_probs_of(next_B: Tensor, logits_BV: Tensor) -> list[float]:
    return log_probs(logits_BV).gather(1, next_B[:, None])[:, 0].tolist()


def log_probs(logits_BV: Tensor) -> Tensor:
    """Return log-probabilities under the plain softmax: no temperature, no filtering, no penalty."""
    return usable_logits(logits_BV).log_softmax(dim=-1)


def is_prompt(pref: Prompt | Sequence[Prompt]) -> bool:
    """Return True for a single text or the ids of one, False for a list of prompts."""
    if isinstance(pref, Tensor):
        return pref.dim() == 1
    return isinstance(pref, str) or not any(isinstance(part, (str, Sequence)) for part in pref)


def prompt_ids(prompt: Prompt, lm: LanguageModel, max_seq_len: int, parse_special: bool = False) -> list[int]:
    """Return the ids of a prompt. Raise ValueError if it is empty, has an unknown id, or leaves no room for a token."""
    options = {"parse_special": True} if parse_special else {}
    given = lm.tokenizer(prompt, **options) if isinstance(prompt, str) else prompt
    if not len(given):
        has_bos = lm.tokenizer.bos is not None
        hint = (
            "the tokenizer's bos, as pref='' does"
            if has_bos
            else "a text or ids, as its tokenizer has no bos"
        )
        raise ValueError(f"pref={prompt!r} gives the model nothing to continue: begin with {hint}")
    [ids] = ids_of(given, lm.tokenizer, torch.device("cpu")).tolist()
    if len(ids) >= min(max_seq_len, lm.model_params.max_seq_len):
        raise ValueError(
            f"pref of {len(ids)} tokens leaves no room for new ones: max_seq_len={max_seq_len!r}, "
            f"and the model's own is {lm.model_params.max_seq_len!r}"
        )
    return ids


def stop_ids(stop: Stop, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of stop tokens. Raise ValueError for an unknown id or a text that is not one token.

    The text of a special token, such as "<|im_end|>", is that token.
    """
    stops = [stop] if isinstance(stop, (int, str)) else stop
    return [stop_id(one, tokenizer) for one in stops]


def stop_id(stop: int | str, tokenizer: Tokenizer) -> int:
    if isinstance(stop, int):
        if not 0 <= stop < tokenizer.n_tokens:
            raise ValueError(f"stop={stop!r}, but the model knows ids from 0 to {tokenizer.n_tokens - 1}")
        return stop
    if stop in tokenizer.special_ids:
        return tokenizer.special_ids[stop]
    ids = tokenizer(stop)[tokenizer.bos is not None :]  # without bos
    if len(ids) != 1 or tokenizer.decode(ids) != stop:
        raise ValueError(
            f"stop={stop!r} is not one token of this tokenizer: give the text of one token, or an id"
        )
    return ids[0]


@contextmanager
def eval_mode(model: LanguageModel | nn.Module) -> Iterator[None]:
    """Switch to evaluation mode inside the block, and restore the mode of every module afterwards.

    If several threads are in such a block, the last one to leave restores it.
    """
    with LOCK:
        n_inside, trained = IN_EVAL_MODE.get(model, (0, []))
        trained = trained + [module for module in model.modules() if module.training]
        IN_EVAL_MODE[model] = n_inside + 1, trained
        model.eval()
    try:
        yield
    finally:
        with LOCK:
            n_inside, trained = IN_EVAL_MODE.pop(model)
            if n_inside > 1:
                IN_EVAL_MODE[model] = n_inside - 1, trained
            else:
                for module in trained:
                    module.training = True
