"""Leak probe: check that no logit depends on later tokens or other rows, and that every parameter gets a gradient.

Shape suffixes:  B batch  T position  D model dim  V vocabulary  N token of a set
"""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from common.text import first_line
from data.batch import mycollate
from model.lm import LM, XYZ
from model.perplexity import NOT_SCORED

PROBE_LENGTH = 16  # tokens of a probe
NOISE = 0.02  # standard deviation of the noise added to all weights, so that no zero hides a leak
MAX_BATCHES = 16  # batches of random rows in which a parameter may get its gradient
MIN_ROWS, MAX_ROWS = 5, 64  # of one forward pass
MAX_LOGITS = 2**21  # of one forward pass, unless MIN_ROWS rows have more
# Relative differences up to these are rounding.
PROBE_ROUNDING = {torch.float64: 1e-11, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
UNCHECKED = "cannot be checked"


class NotFinite(ValueError):
    """Raised if a check cannot compare numbers because they are NaN."""


class Probe(NamedTuple):
    """Faults of a model that is to be trained."""

    leak: str | None  # how a prediction depends on later tokens or other samples
    without_gradient: list[str]  # trainable parameters that no gradient reaches


def probe(lm: LM, train_params: object = None) -> Probe:
    """Probe a copy of `lm`. Its weights, gradients and buffers, and the random state of the run, stay unchanged.

    `train_params` are passed to its losses. A model that cannot be probed counts as leaking, with the reason.
    """
    leak = leak_of(lm)
    try:
        with own_randomness(), torch.enable_grad():
            return Probe(leak, without_gradient(lm, train_params))
    except Exception as error:  # it is the user's own code
        return Probe(leak or f"{UNCHECKED}: {in_one_line(error)}", [])


def leak_of(lm: LM, max_passes: int = 1) -> str | None:
    """Return how a prediction of a copy of `lm` depends on later tokens or other samples, or None if it does not.

    A probe that fails counts as a leak, with the reason. At most `max_passes` forward passes are spent on trying
    tokens of a large vocabulary as later ones.
    """
    try:
        with own_randomness(), torch.enable_grad():
            noisy = noisy_copy(lm)
            leak = leak_by_gradient(noisy)
            if lm.model_params.causal:
                leak = leak or leak_by_value(noisy, max_passes)
    except Exception as error:  # it is the user's own code
        return f"{UNCHECKED}: {in_one_line(error)}"
    return leak


@contextmanager
def own_randomness() -> Iterator[None]:
    """Fix the random seed inside the block and restore the state afterwards, on the CPU, where runs are built."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[]):
        reseed()
        try:
            yield
        finally:
            random.setstate(before)


def reseed() -> None:
    torch.default_generator.manual_seed(0)
    random.seed(0)


def copy_of(lm: LM) -> LM:
    """Return a copy of the model that may be changed. All its parameters are trainable."""
    return copy.deepcopy(lm, {id(lm.tokenizer): lm.tokenizer}).requires_grad_()


@torch.no_grad()
def noisy_copy(lm: LM, spread: float = 0.0) -> LM:
    """Return a copy with noise added, so that no weight is exactly 0 or 1.

    The deviation of the noise is NOISE plus `spread` times that of each parameter.
    """
    noisy = copy_of(lm)
    for parameter in noisy.parameters():
        scale = NOISE + spread * parameter.std(correction=0) if spread else NOISE
        parameter.add_(scale * torch.randn_like(parameter))
    return noisy


def without_gradient(lm: LM, train_params: object) -> list[str]:
    """Return the trainable parameters of `lm` that get no gradient from the losses of random rows.

    All losses are those of noisy copies in training mode. A parameter counts if it has no gradient in any of
    `MAX_BATCHES` batches. A single batch is not enough: the router of a mixture may send no token to an expert.
    From the second batch on, noise as large as the weights gives every expert its turn.
    """
    dead = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    # One more id than inputs: the last is only predicted. A masked model gets all of them.
    T = min(PROBE_LENGTH, lm.model_params.max_seq_len) + 1
    for i in range(MAX_BATCHES):
        noisy = noisy_copy(lm, spread=1.0 if i else 0.0).train()
        ids_BT = torch.randint(lm.n_tokens, (rows_in_a_pass(lm, T), T))
        losses, _ = noisy.get_losses(mycollate(ids_BT.tolist()), train_params)
        total = sum(losses.values(), torch.tensor(0.0))
        check_numbers("the loss", total)
        total.backward()
        gradients = {name: parameter.grad for name, parameter in noisy.named_parameters()}
        dead = {name for name in dead if (gradient := gradients[name]) is None or not gradient.any()}
        if not dead:
            break
    return [name for name, _ in lm.named_parameters() if name in dead]


def recompute_flaw(lm: LM, train_params: object = None) -> str | None:
    """Return why layers of `lm` cannot be computed again in the backward pass, or None if gradients are bitwise the same.

    The losses are those of random rows. A layer that draws numbers outside torch, or that changes its state in a
    forward pass, computes something else the second time. `lm` itself is used, and keeps its gradients.
    """
    T = min(PROBE_LENGTH, lm.model_params.max_seq_len) + 1
    found: list[dict[str, Tensor]] = []
    buffers = {name: buffer.clone() for name, buffer in lm.named_buffers()}
    try:
        for lm.decoder.recompute in (False, True):
            for name, buffer in lm.named_buffers():
                buffer.copy_(buffers[name])
            lm.zero_grad()
            with own_randomness(), torch.enable_grad():
                batch = mycollate(torch.randint(lm.n_tokens, (2, T)).tolist())
                losses, _ = lm.train().get_losses(batch, train_params)
                torch.as_tensor(sum(losses.values())).backward()
            gradients = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
            found.append(gradients | {name: buffer.clone() for name, buffer in lm.named_buffers()})
    except Exception as error:  # it is the user's own code
        return in_one_line(error) if lm.decoder.recompute else None
    stored, recomputed = found
    different = [name for name, x in stored.items() if not same_numbers(x, recomputed.get(name))]
    return f"{different[0]} would differ" if different else None


def same_numbers(x: Tensor, y: Tensor | None) -> bool:
    return y is not None and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


def in_one_line(error: Exception) -> str:
    return first_line(f"{type(error).__name__}: {error}")


def leak_by_gradient(lm: LM) -> str | None:
    """Return how logits have a gradient from later positions or other samples in training mode, or None.

    With causal=False later positions are allowed.
    """
    T = min(PROBE_LENGTH, lm.model_params.max_seq_len)
    at_B = torch.linspace(0, T - 1, min(T, rows_in_a_pass(lm, T))).round().long()
    gradient_BT = gradient_sizes(lm.train(), at_B, T)
    least = PROBE_ROUNDING[gradient_BT.dtype] * gradient_BT.max()
    if gradient_BT[0].max() > least:
        return "in training, logits of a sample have a gradient from another sample"
    later_BT = torch.arange(T) > (at_B[:, None] if lm.model_params.causal else T)
    if not (leaks := later_BT & (gradient_BT[1:] > least)).any():
        return None
    row, t = leaks.nonzero()[0].tolist()
    return f"in training, logits at position {at_B[row]} have a gradient from position {t}"


def gradient_sizes(lm: LM, at_B: Tensor, T: int) -> Tensor:
    """Return the gradient size of each position, [1 + B, T], for the logits of row 1 + b at position at_B[b].

    Row 0 adds nothing to the sum, so its gradients reveal a leak between rows.
    """
    ids_BT = torch.randint(lm.n_tokens, (1 + len(at_B), T), device=lm.device)
    embeddings: list[Tensor] = []

    def keep(embed_BTD: Tensor) -> Tensor:
        embed_BTD.retain_grad()
        embeddings.append(embed_BTD)
        return embed_BTD.clone()  # layers may write into the copy

    with lm.patch({"embed": keep}):
        logits_BV = lm(ids_BT)[1 + torch.arange(len(at_B)), at_B]
    check_numbers("a logit", logits_BV)
    (logits_BV * torch.randn_like(logits_BV)).sum().backward()
    [embed_BTD] = embeddings
    gradient_BTD = torch.zeros_like(embed_BTD) if embed_BTD.grad is None else embed_BTD.grad
    check_numbers("a gradient", gradient_BTD)
    return gradient_BTD.abs().amax(dim=-1).cpu()


def rows_in_a_pass(lm: LM, T: int) -> int:
    return max(MIN_ROWS, min(MAX_ROWS, MAX_LOGITS // (T * lm.n_tokens)))


def leak_by_value(lm: LM, max_passes: int) -> str | None:
    """Return how logits change with later tokens or with tokens of other samples, or None if they never do.

    At first, earlier tokens are the first few of the vocabulary, and all tokens are tried as later ones. This reveals
    dependence on the presence of a token. Then the last few are the earlier tokens, and the first few the later ones.
    """
    T, V = min(PROBE_LENGTH, lm.model_params.max_seq_len), lm.n_tokens
    if T < 2 or V < 2:
        return None
    n_rows = rows_in_a_pass(lm, T)
    few_N, others_N = torch.arange(min(4, V // 2)), torch.arange(V - min(4, V // 2), V)
    tried_N = tokens_to_try(lm, n_rows * T // 2 * max_passes)
    for later_N in tried_N.split(n_rows * T // 2):  # half of all tokens are later ones
        if change := change_with(lm.eval(), few_N, later_N, (n_rows, T)):
            return change
    change = change_with(lm, others_N, few_N, (MIN_ROWS, T))
    return change or change_with(lm.train(), few_N, tried_N, (MIN_ROWS, T))


def tokens_to_try(lm: LM, n: int) -> Tensor:
    """Return at most `n` tokens: special ones, the first ones, which are often frequent, and random others."""
    specials = (lm.tokenizer.pad, lm.tokenizer.bos, lm.tokenizer.eos)
    special_N = torch.tensor([i for i in specials if i is not None])
    first_N, others_N = torch.arange(lm.n_tokens).tensor_split([n // 2])
    return torch.cat([special_N, first_N, others_N[torch.randperm(len(others_N))]])[:n]


@torch.no_grad()
def change_with(lm: LM, early_N: Tensor, later_N: Tensor, shape: tuple[int, int]) -> str | None:
    """Return how logits or targets change if tokens of `later_N` follow tokens of `early_N`, or None.

    The comparison is with rows where tokens of `early_N` follow. `shape` is [B, T].
    """
    B, T = shape
    from_B = torch.linspace(1, T - 1, B).round().long()  # where later tokens begin
    later_BT = torch.arange(T) >= from_B[:, None]
    # Number the positions of all rows, so that the last positions of the rows come first.
    nth_BT = later_BT.flip(1).T.flatten().cumsum(0).view(T, B).T.flip(1) - 1
    ids_BT = early_N[torch.randint(len(early_N), (B, T))]
    others_BT = torch.where(later_BT, later_N[nth_BT % len(later_N)], ids_BT)
    before, after = predictions(lm, ids_BT), predictions(lm, others_BT)
    early = ~later_BT.to(lm.device)
    change = largest_difference(before.z[early], after.z[early])
    # A model that is not deterministic differs on equal rows too: that is no leak.
    if change and torch.equal(before.z, predictions(lm, ids_BT).z):
        mode = "training" if lm.training else "evaluation"
        return f"in {mode}, logits change by {change:.2g} with later tokens or other samples"
    rows_B, at_B = torch.arange(B), from_B - 1
    changed_B = (ids_BT != others_BT)[rows_B, from_B]
    same_B = ((before.y == after.y) & (before.y != NOT_SCORED)).cpu()[rows_B, at_B]
    if (changed_B & same_B).any():
        return "the target of a position does not depend on the token after it"
    return None


def predictions(lm: LM, ids_BT: Tensor) -> XYZ:
    """Return the predictions of `lm` for rows, with the same random numbers each time.

    The last token of a row is repeated as the target of the last position. A masked model gets the rows unchanged:
    which tokens it hides depends on all of them.
    """
    reseed()
    if lm.model_params.hides_tokens:
        return XYZ(ids_BT, torch.full_like(ids_BT, NOT_SCORED), lm(ids_BT.to(lm.device)))
    return lm.get_batch_xyz(mycollate(torch.cat([ids_BT, ids_BT[:, -1:]], dim=1).tolist()))


def largest_difference(a: Tensor, b: Tensor, slack: float = 1.0) -> float:
    """Return the largest difference, or 0 if it is only rounding relative to the largest finite number.

    Raise NotFinite for NaN.
    """
    if torch.equal(a, b):
        return 0.0
    check_numbers("a logit", a, b)
    difference = (a - b).abs().where(a != b, 0.0).max().item()
    return difference if difference > slack * PROBE_ROUNDING[a.dtype] * largest_finite(a) else 0.0


def largest_finite(x: Tensor) -> float:
    return x.where(x.isfinite(), 0.0).abs().max().item()


def check_numbers(what: str, *tensors: Tensor) -> None:
    """Raise NotFinite if one of the tensors has a NaN, as NaNs cannot be compared."""
    if any(bool(tensor.isnan().any()) for tensor in tensors):
        raise NotFinite(f"{what} is NaN, so no comparison is possible")
