"""Inputs of an LM: text, ids and tensors, all turned into one batch of ids.

Shape suffixes:  B batch  T position
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Protocol, cast

import torch
from torch import Tensor


class Tokenizer(Protocol):
    """Interface of the tokenizers that an LM works with."""

    n_tokens: int
    bos: int | None  # begins every text, if there is one
    eos: int | None  # ends every text that is trained on
    stops: tuple[int, ...]  # ids that end a sample, eos among them
    pad: int
    mask: int | None  # stands for a token to predict, in masked models

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Return the ids of special tokens by their text."""
        ...

    def __call__(self, text: str, *, parse_special: bool = False) -> list[int]: ...

    def with_gaps(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def tokens(self, ids: Sequence[int]) -> list[str]: ...


def stand_in_tokenizer(n_tokens: int) -> Tokenizer:
    """Return a tokenizer that only knows its size and special tokens, for models that are given ids."""
    return cast(Tokenizer, SimpleNamespace(n_tokens=n_tokens, pad=0, bos=1, eos=2, mask=3))


Input = str | Sequence[int] | Sequence[Sequence[int]] | Tensor


def ids_of(x: Input, tokenizer: Tokenizer, device: torch.device) -> Tensor:
    """Return int64 ids [B, T] on `device`. Raise ValueError if empty, not whole numbers, or outside the vocabulary.

    A tensor that already has this form is returned unchecked: no device synchronization.
    """
    if isinstance(x, Tensor) and x.dtype == torch.int64 and x.device == device and x.dim() == 2:
        return x
    ids = as_tensor(tokenizer(x) if isinstance(x, str) else x)
    if ids.dim() == 1:
        ids = ids[None]
    if ids.dim() != 2 or ids.numel() == 0:
        raise ValueError(
            f"input of shape {tuple(ids.shape)}: an LM takes ids [T] or [B, T], and at least one id"
        )
    if ids.is_floating_point() and not torch.equal(ids, ids.round()):
        raise ValueError(
            f"input of {ids.dtype} with fractions: an LM takes token ids, which are whole numbers"
        )
    ids_BT = ids.to(device, torch.int64)
    low, high = int(ids_BT.min()), int(ids_BT.max())
    if low < 0 or high >= tokenizer.n_tokens:
        raise ValueError(f"input ids from {low} to {high}, but the model knows 0 to {tokenizer.n_tokens - 1}")
    return ids_BT


def too_long(n_tokens: int, max_seq_len: int) -> ValueError:
    return ValueError(f"input of {n_tokens} tokens is longer than max_seq_len={max_seq_len!r}")


def real_tokens(mask: Tensor | None, ids_BT: Tensor) -> Tensor | None:
    """Return a [B, T] bool mask for `ids_BT`, False at padding, or None for no mask.

    On the CPU a mask without padding also gives None. Compiled code and other devices do not check this: it would split
    the graph, or synchronize.
    """
    if mask is None:
        return None
    mask_BT = torch.as_tensor(mask)
    if mask_BT.shape != ids_BT.shape:
        raise ValueError(
            f"mask of shape {tuple(mask_BT.shape)} for an input of shape {tuple(ids_BT.shape)}: both must be equal"
        )
    mask_BT = mask_BT.to(ids_BT.device, torch.bool)
    return None if may_look(mask_BT) and mask_BT.all() else mask_BT


def left_padding(real_BT: Tensor | None, causal: bool) -> Tensor | None:
    """Return the number of padding positions at the start of each row, [B].

    Return None if no row has any. Where `may_look` is False only causal models check this: they get no mask in training.
    """
    if real_BT is None:
        return None
    padding_B = (real_BT.cumsum(dim=1) == 0).sum(dim=1)
    return None if (causal or may_look(padding_B)) and not padding_B.any() else padding_B


def may_look(x: Tensor) -> bool:
    """Return True if reading a value of `x` neither synchronizes a device nor splits a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def as_tensor(x: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> Tensor:
    try:
        return torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"input of {type(x).__name__}: an LM takes a string, a list of ids, lists of one length, or a tensor "
            "(data.dataloader.mycollate pads lists of different lengths)"
        ) from error
