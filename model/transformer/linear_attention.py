"""Linear attention in chunks: mixers that keep the past in one matrix for each head, in linear time and memory.

    S_t = decay_t S_(t-1) + k_t u_t        the state, [K, M]
    y_t = q_t S_t

The positions of a chunk are computed at once, with scores as in attention. The state goes from chunk to chunk. A chunk
of one position is the recurrence itself: generation takes that step for every token, by the same code.

Shape suffixes:  B batch  H head  T position  N chunk  C position in a chunk  K dim of a key  M dim of a value
                 A batch, or 1 for all rows  G head, or 1 for all heads  R dims of a key and a value together
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from model.context import Context

CHUNK = 64  # positions in a chunk where a head has one decay
CHANNEL_CHUNK = 16  # the same where every channel of its keys has one
MIN_LOG_DECAY = -5.0  # of a channel: factors over half a chunk then stay below e^40, which float32 can hold


def mix(
    q_BGTK: Tensor,
    k_BGTK: Tensor,
    v_BHTM: Tensor,
    log_decay: Tensor,
    ctx: Context,
    beta_BHT: Tensor | None = None,
) -> Tensor:
    """Return y_BHTM, in the dtype of the values. The state is recalled from the cache of `ctx`, and kept there.

    `log_decay` is a number for each head [B, H, T] or for each channel [B, H, T, K]; the latter must not lie below
    MIN_LOG_DECAY. Without `beta_BHT`, u_t is v_t. With it, u_t follows the delta rule:

        u_t = beta_t (v_t - decay_t k_t S_(t-1))

    Queries, keys and decays may be shared by all heads, decays also by all rows. Computes in at least float32, as small
    errors in the state add up.
    """
    with without_autocast(q_BGTK):
        q, k, v = (at_least_float32(x) for x in (q_BGTK, k_BGTK, v_BHTM))
        decay = (HeadDecay if log_decay.ndim == 3 else ChannelDecay)(at_least_float32(log_decay))
        T, past = v.shape[2], ctx.recall("state")
        if past is None:
            past = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1])
        if beta_BHT is None:
            y, state = add_values(decay, q, k, v, past)
        else:
            y, state = delta_rule(decay, q, k, v, at_least_float32(beta_BHT), past)
        ctx.keep("state", state)
        return y[:, :, :T].to(v_BHTM.dtype)


class HeadDecay:
    """Products of decays between the positions of each chunk, where a head has one decay at each position."""

    chunk = CHUNK

    def __init__(self, log_decay_AGT: Tensor) -> None:
        log_AGNC = in_chunks(log_decay_AGT, self.chunk)
        C = log_AGNC.shape[-1]
        # Summed again from each position: a difference of sums from the start would lose small terms after large ones.
        between_AGNCC = log_AGNC[..., None].expand(*log_AGNC.shape, C).tril(-1).cumsum(dim=-2)
        future_CC = log_AGNC.new_full((C, C), -math.inf).triu(1)
        # From position s (the last dimension) to t: 0 where s comes later.
        self.between_AGNCC = (between_AGNCC + future_CC).exp()
        self.from_start_AGNC1 = log_AGNC.cumsum(dim=-1).exp()[..., None]
        self.over_chunk_AGN11 = self.from_start_AGNC1[..., -1:, :]

    def scores(self, q_BGNCK: Tensor, k_BGNCK: Tensor) -> Tensor:
        """Return the products of queries and earlier keys, with the decay between them."""
        return (q_BGNCK @ k_BGNCK.mT) * self.between_AGNCC

    def from_start(self, q_BGNCK: Tensor) -> Tensor:
        """Return the queries that read the state before the chunk."""
        return q_BGNCK * self.from_start_AGNC1

    def to_end(self, k_BGNCK: Tensor) -> Tensor:
        """Return the keys that write the state after the chunk."""
        return k_BGNCK * self.between_AGNCC[..., -1, :, None]

    def over_chunk(self, n: int) -> Tensor:
        """Return the decay of the state over chunk `n`, for each row of the state."""
        return self.over_chunk_AGN11[:, :, n]


class ChannelDecay:
    """The same where every channel of the keys has a decay of its own.

    The decay from s to t is then part of the product over channels: q_t e^(sum to t) times k_s e^(-sum to s). Sums
    start in the middle of the chunk, so that no factor overflows. The start cancels, so it needs no gradient, which would
    reach later positions by rounding.
    """

    chunk = CHANNEL_CHUNK

    def __init__(self, log_decay_BHTK: Tensor) -> None:
        self.sum_BHNCK = in_chunks(log_decay_BHTK, self.chunk).cumsum(dim=-2)
        C = self.sum_BHNCK.shape[-2]
        self.from_middle_BHNCK = self.sum_BHNCK - self.sum_BHNCK[..., C // 2, None, :].detach()
        self.over_chunk_BHNK1 = self.sum_BHNCK[..., -1, :, None].exp()

    def scores(self, q_BGNCK: Tensor, k_BGNCK: Tensor) -> Tensor:
        return (
            (q_BGNCK * self.from_middle_BHNCK.exp()) @ (k_BGNCK * (-self.from_middle_BHNCK).exp()).mT
        ).tril()

    def from_start(self, q_BGNCK: Tensor) -> Tensor:
        return q_BGNCK * self.sum_BHNCK.exp()

    def to_end(self, k_BGNCK: Tensor) -> Tensor:
        return k_BGNCK * (self.sum_BHNCK[..., -1:, :] - self.sum_BHNCK).exp()

    def over_chunk(self, n: int) -> Tensor:
        return self.over_chunk_BHNK1[:, :, n]


Decay = HeadDecay | ChannelDecay


def add_values(
    decay: Decay, q_BGTK: Tensor, k_BGTK: Tensor, v_BHTM: Tensor, state_BHKM: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state of S_t = decay_t S_(t-1) + k_t v_t."""
    q_BGNCK, k_BGNCK, v_BHNCM = (in_chunks(x, decay.chunk) for x in (q_BGTK, k_BGTK, v_BHTM))
    added_BHNKM = decay.to_end(k_BGNCK).mT @ v_BHNCM
    states = []
    for n in range(added_BHNKM.shape[2]):
        states.append(state_BHKM)
        state_BHKM = decay.over_chunk(n) * state_BHKM + added_BHNKM[:, :, n]
    y_BHNCM = decay.scores(q_BGNCK, k_BGNCK) @ v_BHNCM + decay.from_start(q_BGNCK) @ torch.stack(
        states, dim=2
    )
    return y_BHNCM.flatten(2, 3), state_BHKM


def delta_rule(
    decay: Decay, q_BGTK: Tensor, k_BGTK: Tensor, v_BHTM: Tensor, beta_BHT: Tensor, state_BHKM: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state of S_t = decay_t S_(t-1) + k_t u_t, for u_t see `mix`.

    In a chunk with the state S before it, all u are the solution of triangular equations (Yang et al. 2024,
    arXiv:2406.06484 and 2412.06464), with a sum over the earlier positions s:

        u_t + sum beta_t (k_t k_s) decay_st u_s = beta_t (v_t - decay_0t k_t S)
    """
    q_BGNCK, k_BGNCK, v_BHNCM = (in_chunks(x, decay.chunk) for x in (q_BGTK, k_BGTK, v_BHTM))
    beta_BHNC1 = in_chunks(beta_BHT, decay.chunk)[..., None]
    # The diagonal is not read: it counts as 1.
    overlap_BHNCC = beta_BHNC1 * decay.scores(k_BGNCK, k_BGNCK)
    right_BHNCR = beta_BHNC1 * torch.cat([v_BHNCM, decay.from_start(k_BGNCK)], dim=-1)
    solved_BHNCR = torch.linalg.solve_triangular(overlap_BHNCC, right_BHNCR, upper=False, unitriangular=True)
    new_BHNCM, erased_BHNCK = solved_BHNCR.split([v_BHNCM.shape[-1], k_BGNCK.shape[-1]], dim=-1)
    written_BHNCK = decay.to_end(k_BGNCK)
    states, values = [], []
    for n in range(k_BGNCK.shape[2]):
        states.append(state_BHKM)
        values.append(new_BHNCM[:, :, n] - erased_BHNCK[:, :, n] @ state_BHKM)
        state_BHKM = decay.over_chunk(n) * state_BHKM + written_BHNCK[:, :, n].mT @ values[-1]
    u_BHNCM, before_BHNKM = torch.stack(values, dim=2), torch.stack(states, dim=2)
    y_BHNCM = decay.scores(q_BGNCK, k_BGNCK) @ u_BHNCM + decay.from_start(q_BGNCK) @ before_BHNKM
    return y_BHNCM.flatten(2, 3), state_BHKM


def in_chunks(x: Tensor, size: int) -> Tensor:
    """Split dimension 2, the position, into chunks of equal length, at most `size`. Zeros fill up the last one.

    Positions of zeros leave the state unchanged: their log decay, keys and beta are 0.
    """
    T = x.shape[2]
    n_chunks = math.ceil(T / size)
    length = math.ceil(T / n_chunks)
    if n_missing := n_chunks * length - T:
        x = F.pad(x, [0, 0] * (x.ndim - 3) + [0, n_missing])
    return x.unflatten(2, (n_chunks, length))


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the device of `x`. The meta device knows no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
