"""Decoding token by token, with a cache wherever it is known to give the same logits.

Shape suffixes:  B batch  T position  V vocabulary
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.context import Cache, Tap, Uncacheable
from model.inputs import Tokenizer
from model.model_params import ModelParams

STEPS = 3  # tokens, one by one, on which logits with and without a cache are compared


class LanguageModel(Protocol):
    """Interface of the models that decoding works with; LM implements it."""

    tokenizer: Tokenizer
    model_params: ModelParams
    trust: "Trust"
    training: bool

    @property
    def taps(self) -> Sequence[Tap]: ...
    @property
    def device(self) -> torch.device: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def eval(self) -> Any: ...
    def __call__(
        self, x: Tensor, *, attn_requests: Any = None, cache: Cache | None = None, mask: Tensor | None = None
    ) -> Tensor: ...


class Rows:
    """A batch of ids, all rows of one length, that grows token by token.

    `room` is the largest number of tokens in a row. Recording and patching need all positions at every step, so the
    cache is then off.
    """

    def __init__(
        self, lm: LanguageModel, rows: Sequence[Sequence[int]], room: int, attn_requests: Any, use_cache: bool
    ) -> None:
        if lm.model_params.objective == "masked":
            raise ValueError(
                "a model of objective='masked' continues no text: it fills gaps in one, as lm.fill(text) does"
            )
        self.lm = lm
        self.attn_requests = attn_requests
        self.ids_BT = torch.tensor(rows, dtype=torch.int64, device=lm.device)
        self.cache = Cache(room) if use_cache and not lm.taps else None
        if self.cache is not None and attn_requests is None:
            doubt = lm.trust.doubt_about(lm, self.ids_BT, room)
            if doubt is not None:
                self.give_up_cache(doubt)

    def logits(self) -> Tensor:
        """Return the logits after the last token of every row, [B, V]."""
        try:
            with torch.inference_mode(self.cache is not None and self.lm.trust.leaves_nothing):
                return self.lm(self.ids_BT, attn_requests=self.attn_requests, cache=self.cache)[:, -1]
        except Uncacheable as error:  # not always at the first step: an edit may set attn_requests later
            self.give_up_cache(str(error))
            return self.logits()

    def give_up_cache(self, doubt: str) -> None:
        self.cache = None
        self.lm.trust.say(doubt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append one token to every row."""
        next_B = torch.tensor(tokens, dtype=torch.int64, device=self.ids_BT.device)
        self.ids_BT = torch.cat([self.ids_BT, next_B[:, None]], dim=1)

    def take(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        rows_B = torch.tensor(rows, dtype=torch.int64, device=self.ids_BT.device)
        self.ids_BT = self.ids_BT[rows_B]
        if self.cache is not None:
            self.cache.take(rows_B)


class NoNextToken(ValueError):
    """Raised if logits do not define a next token: one is NaN, or all of them are -inf."""


def usable_logits(logits_BV: Tensor, name: Callable[[int], str] = "row {}".format) -> Tensor:
    """Return the logits in float32 or wider.

    A row with +inf becomes 0 there and -inf elsewhere, the limit of its softmax. Raise NoNextToken for a row that has
    NaN or only -inf; the message calls it `name(row)`.
    """
    dtype = logits_BV.dtype
    logits_BV = logits_BV.to(torch.promote_types(dtype, torch.float32))
    max_B = logits_BV.amax(dim=-1)  # NaN if one of them is
    if max_B.isfinite().all():
        return logits_BV
    for row, largest in enumerate(max_B.tolist()):
        if math.isnan(largest) or largest == -math.inf:
            what = "some logits are NaN" if math.isnan(largest) else "all logits are -inf"
            hint = ": float16 overflows above 65,504, float32 and bfloat16 do not" * (dtype == torch.float16)
            raise NoNextToken(f"{name(row)}: no next token, {what}{hint}")
    limit_BV = torch.zeros_like(logits_BV).masked_fill(logits_BV != math.inf, -math.inf)
    return torch.where(max_B[:, None] == math.inf, limit_BV, logits_BV)


class Trust:
    """Result of testing whether a model gives the same logits with a cache.

    The test is repeated after a change of modules or weights, and for longer rows.
    """

    def __init__(self) -> None:
        self.model: list[Any] = []  # modules and the version of the weights that `doubt` is about
        self.room = 0  # row length in tokens up to which `doubt` holds
        self.doubt: str | None = None
        self.leaves_nothing = False  # whether it may run in inference mode: see Watch
        self.said: set[str] = set()

    def doubt_about(self, lm: LanguageModel, ids_BT: Tensor, room: int) -> str | None:
        """Return why the model must not use a cache, or None if it may. The test starts with `ids_BT`."""
        model = [*lm.modules(), sum(parameter._version for parameter in lm.parameters())]
        if model != self.model or room > self.room:
            with Watch() as watch:
                near = doubt_about_cache(lm, ids_BT[:4], ids_BT.shape[1] + STEPS)
                # Test the full length too: a layer may read distant positions.
                self.doubt = near or doubt_about_cache(lm, ids_BT[:1], room)
            self.leaves_nothing = not (watch.gradients or watch.left())
            self.model, self.room = model, room
        return self.doubt

    def say(self, doubt: str) -> None:
        """Warn once per model and reason that generation runs without a cache."""
        if doubt not in self.said:
            self.said.add(doubt)
            warnings.warn(f"generation continues without a cache, which takes longer: {doubt}", stacklevel=3)


class Watch(TorchDispatchMode):
    """Dispatch mode that detects operations which torch's inference mode would break.

    Inference mode saves at least a tenth of the time per token, but its tensors cannot be used in training. An edit
    may create a mask once and keep it, or need gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gradients = False
        self.made: list[StorageWeakRef] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.gradients |= torch.is_grad_enabled()
        given = {ref.cdata for ref in map(StorageWeakRef, storages((args, kwargs)))}
        self.made += [ref for ref in map(StorageWeakRef, storages(result)) if ref.cdata not in given]
        return result

    def left(self) -> bool:
        """Return True if a tensor that was created inside still exists."""
        return not all(ref.expired() for ref in self.made)


def storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of the strided tensors in a tree; oneDNN tensors have none."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return (tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided)


def doubt_about_cache(lm: LanguageModel, ids_BT: Tensor, length: int) -> str | None:
    """Return why logits with a cache differ from those without, or None if they agree.

    The first tokens are `ids_BT`, random ones follow. Only the last few of `length` positions are compared.
    """
    length = min(length, lm.model_params.max_seq_len)
    # Random ids: a model's own repetitive text would hide what an edit does to earlier tokens.
    shape, dice = (len(ids_BT), length), torch.Generator().manual_seed(0)
    more = torch.randint(lm.tokenizer.n_tokens, shape, generator=dice).to(ids_BT)
    ids_BT = torch.cat([ids_BT, more], dim=1)[:, :length]
    cache = Cache(length)
    for end in range(max(1, length - STEPS), length + 1):
        plain_BV = lm(ids_BT[:, :end])[:, -1]
        try:
            cached_BV = lm(ids_BT[:, :end], cache=cache)[:, -1]
        except Uncacheable as error:
            return str(error)
        except Exception as error:  # a user's layer may raise anything for a single position
            return f"with one a layer raises {error!r}"
        if not close(cached_BV, plain_BV):
            return "with one the logits differ, as a layer reads other positions without caching them"
    return None


def close(cached_BV: Tensor, plain_BV: Tensor) -> bool:
    """Return True if logits are equal up to rounding: 3e-4 of the largest logit in float32."""
    rounding = math.sqrt(torch.finfo(plain_BV.dtype).eps)
    largest = plain_BV.where(plain_BV.isfinite(), 0.0).abs().max().item()
    return torch.allclose(cached_BV, plain_BV, rtol=0, atol=rounding * largest, equal_nan=True)
