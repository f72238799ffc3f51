"""Beam search: find probable continuations by extending a few candidates at every step.

Shape suffixes:  N beam  V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from model.generation.decoding import GrowingRows, LanguageModel, usable_logits
from model.generation.sampling import eval_mode

EarlyStopping = bool | Literal["never"]


class Beam(NamedTuple):
    """A finished continuation, its prompt included."""

    sample: Any  # its ids, or its text
    score: float


@dataclass(frozen=True)
class Search:
    """Settings of a beam search. Raise ValueError if a setting is out of range."""

    n_beams: int = 4
    n_best: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        if self.n_beams < 1:
            raise ValueError(f"n_beams={self.n_beams!r} must be at least 1")
        if not 1 <= self.n_best <= self.n_beams:
            raise ValueError(f"n_best={self.n_best!r} must be from 1 to n_beams={self.n_beams!r}")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping={self.early_stopping!r} must be True, False or 'never'")

    def score(self, log_prob: float, n_new: int) -> float:
        return log_prob / n_new**self.length_penalty

    def is_over(self, finished: list[Beam], best_open: float, n_new: int, max_new: int) -> bool:
        """Return True if the search can end, as no open beam can change the result.

        `finished` is sorted, best first. `best_open` is the log-probability of the best open beam, after `n_new` of at
        most `max_new` tokens.
        """
        if len(finished) < self.n_beams or self.early_stopping is True:
            return len(finished) >= self.n_beams
        at_length = max_new if self.early_stopping == "never" and self.length_penalty > 0 else n_new
        return self.score(best_open, at_length) <= finished[-1].score


class NextToken(NamedTuple):
    """A possible next token of one beam."""

    log_prob: float  # of all new tokens of the beam and this one
    beam: int
    token: int


@torch.no_grad()
def beam_search(
    lm: LanguageModel,
    prompt: Sequence[int],
    length: int,
    search: Search,
    *,
    stop: Sequence[int] = (),
    attn_requests: object = None,
    use_cache: bool = True,
) -> list[Beam]:
    """Return the best continuations of `prompt`, up to `length` tokens in all, best first.

    As in HuggingFace's `generate`, only the `n_beams` most probable of all possible steps may finish. A step finishes
    with a stop token or at full length. The most probable other steps go on.
    """
    ends, finished = {*lm.tokenizer.stops, *stop}, list[Beam]()
    n_candidates = search.n_beams * (1 + len(ends))  # enough for n_beams to go on, even if all others end
    with eval_mode(lm):
        rows = GrowingRows(
            lm,
            [prompt],
            room=length,
            n_rows=search.n_beams,
            attn_requests=attn_requests,
            use_cache=use_cache,
        )
        so_far_N = torch.zeros(1)
        for n_new in range(1, length - len(prompt) + 1):
            logits_NV = usable_logits(rows.logits(), f"beam {{}}, step {n_new - 1}".format)
            log_probs_NV = so_far_N[:, None] + logits_NV.log_softmax(dim=-1).cpu()
            going_on = []
            for rank, step in enumerate(most_probable(log_probs_NV, n_candidates)):
                if step.token not in ends and len(prompt) + n_new < length:
                    going_on.append(step)
                elif rank < search.n_beams:
                    ids = [*rows.ids_BT[step.beam].tolist(), step.token]
                    finished.append(Beam(ids, search.score(step.log_prob, n_new)))
            finished = sorted(finished, key=lambda beam: beam.score, reverse=True)[: search.n_beams]
            going_on = going_on[: search.n_beams]
            if not going_on or search.is_over(finished, going_on[0].log_prob, n_new, length - len(prompt)):
                break
            rows.take([step.beam for step in going_on])
            rows.extend([step.token for step in going_on])
            so_far_N = torch.tensor([step.log_prob for step in going_on])
    return finished[: search.n_best]


def most_probable(log_probs_NV: Tensor, n: int) -> list[NextToken]:
    """Return the `n` most probable steps in that order, or all if there are fewer."""
    n_tokens = log_probs_NV.shape[1]
    top = log_probs_NV.flatten().topk(min(n, log_probs_NV.numel()))
    return [
        NextToken(log_prob, *divmod(index, n_tokens))
        for log_prob, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]
