"""Sampling from a masked diffusion model: begin with mask tokens, and replace some of them at each step.

Sources: MDLM (Sahoo et al. 2024, arXiv:2406.07524) replaces random ones, LLaDA (arXiv:2502.09992) the most certain ones.

Shape suffixes:  B row  T position  V vocabulary  N place to fill
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from model.generation.decoding import LanguageModel, usable_logits
from model.generation.sampling import Continuation, TokenSampler, eval_mode, generate_rows
from model.masking import mask_id
from model.perplexity import pad_ids


def continue_rows(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    sampler: TokenSampler,
    *,
    n_steps: int | None = None,
    stop: Sequence[int] = (),
    attn_requests: object = None,
    **options: Any,
) -> list[Continuation]:
    """Continue each prompt by the objective of `lm`: token by token, or by unmasking. `options` are of generate_rows."""
    if lm.model_params.objective != "diffusion":
        if n_steps is not None:
            raise ValueError(
                f"n_steps={n_steps!r} needs objective='diffusion', not {lm.model_params.objective!r}"
            )
        return generate_rows(lm, prompts, lengths, sampler, stop=stop, attn_requests=attn_requests, **options)
    if options.get("return_logprobs"):
        raise ValueError(
            "objective='diffusion' has no log-probabilities of a sample; use return_logprobs=False"
        )
    if n_steps is not None and n_steps < 1:
        raise ValueError(f"n_steps={n_steps!r} must be at least 1")
    ends = {*lm.tokenizer.stops, *stop}
    with eval_mode(lm):
        filled = unmask_rows(lm, prompts, lengths, sampler, n_steps, attn_requests)
    return [
        Continuation(up_to_end(ids, len(prompt), ends), [])
        for ids, prompt in zip(filled, prompts, strict=True)
    ]


@torch.no_grad()
def unmask_rows(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    sampler: TokenSampler,
    n_steps: int | None = None,
    attn_requests: object = None,
) -> list[list[int]]:
    """Return each prompt, continued up to its length. Mask tokens of a prompt are filled, too.

    The places are filled in `n_steps` forward passes, equally many in each; None: as many as the longest row has places.
    A sampler with temperature 0 fills the places with the highest probabilities first, others fill random ones.
    """
    mask, longest = mask_id(lm.tokenizer), lm.model_params.max_seq_len
    ends = [max(len(prompt), min(n, longest)) for prompt, n in zip(prompts, lengths, strict=True)]
    rows = [[*prompt, *[mask] * (end - len(prompt))] for prompt, end in zip(prompts, ends, strict=True)]
    ids_BT = pad_ids(rows, lm.tokenizer.pad).to(lm.device)
    real_BT = torch.arange(ids_BT.shape[1]) < torch.tensor(ends)[:, None]
    open_BT = ids_BT.cpu() == mask
    n_open_B = open_BT.sum(dim=1)
    n_steps = n_steps or int(n_open_B.max())
    for step in range(n_steps):
        z_BTV = lm(ids_BT, attn_requests=attn_requests, mask=real_BT).cpu()
        z_BTV[..., mask] = -math.inf  # the mask token stands for no token
        n_B = open_BT.sum(dim=1) - n_open_B * (n_steps - 1 - step) // n_steps
        fill_BT = open_BT & (places_in_order(certainty(z_BTV, open_BT, sampler)) < n_B[:, None])
        row_N, at_N = fill_BT.nonzero(as_tuple=True)
        if len(row_N):
            z_NV = usable_logits(z_BTV[row_N, at_N])
            ids_BT[row_N, at_N] = sampler(z_NV, ids_BT.cpu()[row_N]).to(ids_BT)
        open_BT &= ~fill_BT
    return [ids[:end] for ids, end in zip(ids_BT.tolist(), ends, strict=True)]


def certainty(z_BTV: Tensor, open_BT: Tensor, sampler: TokenSampler) -> Tensor:
    """Return a number for every place, [B, T]; places with higher ones are filled first, and those not open last."""
    if sampler.temperature == 0:
        found_BT = z_BTV.float().softmax(dim=-1).amax(dim=-1)
    else:
        found_BT = torch.rand(open_BT.shape, generator=sampler.generator)
    return found_BT.masked_fill(~open_BT, -1.0)


def places_in_order(x_BT: Tensor) -> Tensor:
    """Return the place of each number in the order of its row, from 0 for the highest one."""
    return x_BT.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def up_to_end(ids: list[int], start: int, ends: Collection[int]) -> list[int]:
    """Return the ids up to the first of `ends` at or after `start`."""
    first = next((i for i in range(start, len(ids)) if ids[i] in ends), len(ids))
    return ids[: first + 1]
