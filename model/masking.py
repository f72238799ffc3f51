"""The objectives "masked" and "diffusion": choose the tokens of a row to hide and predict, and replace them.

As in BERT (Devlin et al. 2019, section 3.1), `mask_frac` of a row's tokens are hidden. 80 % of them become the mask
token, 10 % become a random token, and 10 % stay. The model predicts all of them.

A masked diffusion model (Sahoo et al. 2024, arXiv:2406.07524; LLaDA, Nie et al. 2025, arXiv:2502.09992) hides a share t of them,
uniform from 0 to 1, all behind the mask token. Its loss is an upper bound of the negative log-likelihood of the n scored tokens
of a row: the cross entropies of hidden tokens with the weight 1 / t, in expectation. Here exactly ceil(t n) tokens are
hidden, with the weight n / ceil(t n). The expectation is the same, with less noise (LLaDA, equation 6).

Shape suffixes:  B batch  T position  V vocabulary  N place to predict
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.generation.decoding import LanguageModel, usable_logits
from model.inputs import Tokenizer
from model.perplexity import NO_LOSS, NOT_SCORED, ROWS_PER_PASS, token_losses

MASK_FRAC = 0.15  # the default of TrainParams.mask_frac
# Thresholds for a random number from 0 to 1: below MASKED a token becomes the mask, below REPLACED a random token.
MASKED, REPLACED = 0.8, 0.9


class UnmaskedBatch(NamedTuple):
    """A batch before masking, [B, T] each."""

    ids: Tensor
    scored: Tensor  # True where a token may be hidden and predicted
    real: Tensor  # False at padding


class MaskedBatch(NamedTuple):
    """Masked inputs and their targets, [B, T] each."""

    x: Tensor
    y: Tensor  # NOT_SCORED where no token is to be predicted


def unmasked_batch(batch: Mapping[str, Tensor], lm: LanguageModel) -> UnmaskedBatch:
    """Return the rows of a batch, cut to max_seq_len tokens.

    In text the next row begins with the last of max_seq_len + 1 tokens, so no token is lost.
    """
    ids_BT, scored_BT, real_BT = (
        batch[name][:, : lm.model_params.max_seq_len].to(lm.device)
        for name in ("x_indices", "target_mask", "mask")
    )
    return UnmaskedBatch(ids_BT, F.pad(scored_BT[:, 1:], (1, 0)), real_BT)


def masked_batch(batch: Mapping[str, Tensor], lm: LanguageModel, train_params: Any = None) -> MaskedBatch:
    """Return inputs and targets of a batch by the objective of `lm`."""
    rows = unmasked_batch(batch, lm)
    if lm.model_params.objective == "diffusion":
        return diffuse(rows, lm)
    return mask_tokens(rows, lm, MASK_FRAC if train_params is None else train_params.mask_frac)


def mask_tokens(rows: UnmaskedBatch, lm: LanguageModel, mask_frac: float = MASK_FRAC) -> MaskedBatch:
    """Hide `mask_frac` of the scored tokens of every row, at least one. In training the choice is random each time."""
    which_BT, how_BT, token_BT = draw_noise(rows, lm.training).unbind(dim=1)
    n_B1 = (rows.scored.sum(dim=1, keepdim=True) * mask_frac).round().clamp(min=1)
    chosen_BT = tokens_to_hide(which_BT, rows.scored, n_B1)
    x_BT = torch.where(how_BT < REPLACED, (token_BT * lm.tokenizer.n_tokens).long(), rows.ids)
    x_BT = x_BT.masked_fill(how_BT < MASKED, mask_id(lm.tokenizer))
    return MaskedBatch(torch.where(chosen_BT, x_BT, rows.ids), torch.where(chosen_BT, rows.ids, NOT_SCORED))


def diffuse(rows: UnmaskedBatch, lm: LanguageModel) -> MaskedBatch:
    """Hide a share of the scored tokens of every row, at least one: uniform from 0 to 1, drawn for each row."""
    which_BT, share_BT, _ = draw_noise(rows, lm.training).unbind(dim=1)
    n_B1 = (rows.scored.sum(dim=1, keepdim=True) * share_BT[:, :1]).ceil().clamp(min=1)
    chosen_BT = tokens_to_hide(which_BT, rows.scored, n_B1)
    x_BT = rows.ids.masked_fill(chosen_BT, mask_id(lm.tokenizer))
    return MaskedBatch(x_BT, torch.where(chosen_BT, rows.ids, NOT_SCORED))


def diffusion_sum(scored_BT: Tensor, y_BT: Tensor, z_BTV: Tensor) -> Tensor:
    """Return the sum over rows of the bound of -log p(scored tokens), in nats.

    `scored_BT` are the tokens that may be hidden, `y_BT` the hidden ones.
    """
    losses_BT = F.cross_entropy(z_BTV.transpose(1, 2), y_BT, ignore_index=NOT_SCORED, reduction="none")
    n_hidden_B = (y_BT != NOT_SCORED).sum(dim=1).clamp(min=1)
    return (losses_BT.sum(dim=1) * scored_BT.sum(dim=1) / n_hidden_B).sum()


def draw_noise(rows: UnmaskedBatch, is_training: bool) -> Tensor:
    """Return numbers from 0 to 1, [B, 3, T]: new ones in training, those of `noise_of` otherwise."""
    B, T = rows.ids.shape
    # Drawn on the device, as a copy to it would wait for the steps before.
    # Drawn in float32, so that the same tokens are hidden at every precision.
    if is_training:
        return torch.rand(B, 3, T, dtype=torch.float32, device=rows.ids.device)
    return noise_of(rows).to(rows.ids.device)


def tokens_to_hide(which_BT: Tensor, scored_BT: Tensor, n_B1: Tensor) -> Tensor:
    """Return a mask of `n_B1` scored tokens of each row: those with the lowest numbers in `which_BT`."""
    rank_BT = which_BT.masked_fill(~scored_BT, 1.0).argsort(dim=1).argsort(dim=1)
    return scored_BT & (rank_BT < n_B1)


def noise_of(rows: UnmaskedBatch) -> Tensor:
    """Return numbers from 0 to 1, [B, 3, T], seeded by each row's tokens.

    Validation thus hides the same tokens of a row in every batch and every run.
    """
    real = zip(rows.ids.cpu(), rows.real.cpu(), strict=True)
    seeds = [zlib.crc32(ids[is_real].numpy().tobytes()) for ids, is_real in real]
    dice = [torch.Generator().manual_seed(seed) for seed in seeds]
    T = rows.ids.shape[1]
    return torch.stack([torch.rand(T, 3, generator=die, dtype=torch.float32, device="cpu").T for die in dice])


def mask_id(tokenizer: Tokenizer) -> int:
    if tokenizer.mask is None:
        raise ValueError(
            "objective='masked' needs a tokenizer with a mask token, but this one has none; use tokenizer.with_mask()"
        )
    return tokenizer.mask


def losses_in_turn(rows: UnmaskedBatch, lm: LanguageModel) -> Tensor:
    """Return the cross entropy [B, T] of every scored token while it alone is hidden, NO_LOSS elsewhere.

    The sum of a row is its negative pseudo-log-likelihood (Salazar et al. 2020). The model gets one row per scored
    token.
    """
    losses_BT = torch.full(rows.ids.shape, NO_LOSS, device=rows.ids.device)
    for row_N, at_N in (place_N2.unbind(dim=1) for place_N2 in rows.scored.nonzero().split(ROWS_PER_PASS)):
        each_N, ids_NT = torch.arange(len(row_N)), rows.ids[row_N]
        y_N = ids_NT[each_N, at_N]
        ids_NT[each_N, at_N] = mask_id(lm.tokenizer)
        z_NV = lm(ids_NT, mask=rows.real[row_N])[each_N, at_N]
        losses_BT[row_N, at_N] = token_losses(y_N[:, None], z_NV[:, None])[:, 0]
    return losses_BT


def fill_masks(ids: Sequence[int], lm: LanguageModel) -> tuple[list[int], list[float]]:
    """Return `ids` with the most probable token in place of each mask token, and the probabilities of these tokens."""
    x_T, mask = torch.as_tensor(ids), mask_id(lm.tokenizer)
    gaps_T = x_T == mask
    if not gaps_T.any():
        raise ValueError(f"the text has no {lm.tokenizer.tokens([mask])[0]} to fill in")
    z_NV = usable_logits(lm(x_T[None].to(lm.device))[0, gaps_T.to(lm.device)], "mask token {}".format)
    best = z_NV.softmax(dim=-1).max(dim=-1)
    x_T[gaps_T] = best.indices.cpu()
    return x_T.tolist(), best.values.tolist()
