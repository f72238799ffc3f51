"""Checks of BERT's masking: the same draws as transformers', and shares within chance."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from learn.checking.course import Case, Wrong
from learn.checking.samples import integers
from learn.courses.bert import references

V, SPECIAL, MASK_ID = 50, 3, 3  # ids below 3 are special; the mask's own does not occur before
SHARES = {"hidden": 0.8, "another token": 0.1, "as they were": 0.1}
BOUND = 4.5  # standard deviations; chance exceeds them once in 150,000 times

Draws = list[tuple[Tensor, Tensor]]


def batch(seed: int, n_rows: int = 60) -> tuple[Tensor, Tensor]:
    """Return ids and a mask of special ones: at the beginning, somewhere inside, and at the end as padding."""
    ids = integers(V - MASK_ID - 1, n_rows, 100, seed=seed) + MASK_ID + 1
    special = (integers(10, n_rows, 100, seed=seed + 1) == 0) | (torch.arange(100) > 90)
    special[:, 0] = True
    return ids.masked_fill(special, 1), special


def drawn(my: Any) -> Draws:
    """Mask two batches, one after the other, with one generator."""
    return draw(my.mask_tokens)


def right_draws() -> Draws:
    return draw(references.mask_tokens)


def draw(masking: Callable[..., Any]) -> Draws:
    generator = torch.Generator().manual_seed(0)
    results = []
    for seed in (0, 2):
        ids, special = batch(seed)
        given = ids.clone(), special.clone()
        result = masking(*given, MASK_ID, V, generator)
        if not torch.equal(given[0], ids) or not torch.equal(given[1], special):
            raise Wrong("mask_tokens changes its input: the loss needs the original ids.")
        results.append(result)
    return results


def differ(mine: Draws, right: Draws) -> str | None:
    """Describe how the draws differ: in type, in their shares, or only in the order of random numbers."""
    for i, (a, b) in enumerate(zip(mine, right, strict=True)):
        says = kind(a) or (None if all(map(torch.equal, a, b)) else shares(*batch(2 * i), *a))
        if says:
            return says
        if not all(map(torch.equal, a, b)):
            return (
                "the shares are right, but other tokens are chosen, hidden or put in than expected: make the docstring's "
                "draws, in its order, from `generator`"
            )
    return None


def kind(result: Any) -> str | None:
    if not isinstance(result, tuple) or len(result) != 2:
        return f"the result is {type(result).__name__}, expected a tuple of two tensors"
    hidden, chosen = result
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool:
        what = chosen.dtype if isinstance(chosen, Tensor) else type(chosen).__name__
        return f"the second tensor is {str(what).removeprefix('torch.')}, expected bool"
    if not isinstance(hidden, Tensor) or hidden.dtype != torch.long or hidden.shape != chosen.shape:
        return "the first tensor should be torch.long and have the shape of the second"
    return None


def shares(ids: Tensor, special: Tensor, hidden: Tensor, chosen: Tensor) -> str | None:
    """Describe a token that must not change, or a share that is beyond chance. Return None if there is none."""
    if (chosen & special).any():
        return f"{int((chosen & special).sum())} special tokens are chosen; they should never be"
    if (where := (hidden != ids) & ~chosen).any():
        sample, position = where.nonzero()[0].tolist()
        return f"a token that is not chosen is changed, at sample {sample}, position {position}"
    n = int((~special).sum())
    if far(share := int(chosen.sum()) / n, 0.15, n):
        return f"{share:.1%} of the tokens are chosen, expected 15 %"
    n = int(chosen.sum())
    found = {
        "hidden": int((hidden[chosen] == MASK_ID).sum()) / n,
        "as they were": int((hidden[chosen] == ids[chosen]).sum()) / n,
    }
    found["another token"] = 1 - sum(found.values())
    if any(far(found[what], expected, n) for what, expected in SHARES.items()):
        told = ", ".join(f"{found[what]:.0%} {what}" for what in SHARES)
        return f"of the chosen tokens there are {told}; expected 80, 10 and 10 %"
    return None


def far(share: float, expected: float, n: int) -> bool:
    return abs(share - expected) > BOUND * math.sqrt(expected * (1 - expected) / n)


def shares_are_right(case: Case) -> None:
    """Raise Wrong if shares are beyond chance in a larger batch with another seed."""
    ids, special = batch(4, n_rows=400)
    result = case.part.make(case.mine)(ids, special, MASK_ID, V, torch.Generator().manual_seed(5))
    if says := shares(ids, special, *result):
        raise Wrong(f"{says}.")


def specials_as_numbers(case: Case) -> None:
    """Raise Wrong unless `special` may be 0 and 1 as well as False and True."""
    (ids, special), masking = batch(0), case.part.make(case.mine)
    a, b = (masking(ids, s, MASK_ID, V, torch.Generator().manual_seed(6)) for s in (special, special.long()))
    if not all(map(torch.equal, a, b)):
        raise Wrong(
            "`special` with 0 and 1 gives another result than with False and True: `~` of 1 is -2. `== 0` and "
            "`.bool()` work for both."
        )


def calls() -> list[tuple]:
    return [(*batch(0), MASK_ID, V, torch.Generator().manual_seed(0))]
