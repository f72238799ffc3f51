"""Decoding token by token, with a cache if a test shows that it gives the same logits.

Shape suffixes:  B batch  T position  V vocabulary
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from model.context import Cache, Layer, Tap, Uncacheable
from model.generation.fast_cpu import fast_copy
from model.inputs import Tokenizer
from model.model_params import ModelParams

COMPARED_STEPS = 3  # steps of one token after which logits with and without a cache are compared
MAX_PIECE = 256  # tokens of a prompt that pass the model at once, with a cache on a CPU


class LanguageModel(Protocol):
    """Interface of the models that decoding works with; LM implements it."""

    tokenizer: Tokenizer
    model_params: ModelParams
    cache_check: "CacheCheck"
    training: bool

    @property
    def taps(self) -> Sequence[Tap]: ...
    @property
    def device(self) -> torch.device: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def eval(self) -> object: ...
    def __call__(
        self,
        x: Tensor,
        *,
        attn_requests: object = None,
        cache: Cache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor: ...


class GrowingRows:
    """A batch of ids, all rows of one length, that grows token by token.

    `room` is the largest number of tokens in a row, and `n_rows` the largest number of rows. Patches need all positions
    at every step, so the cache is then off. The model must be in evaluation mode.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rows: Sequence[Sequence[int]],
        *,
        room: int,
        n_rows: int,
        attn_requests: object,
        use_cache: bool,
    ) -> None:
        if lm.model_params.hides_tokens:
            raise ValueError(
                f"a model with objective={lm.model_params.objective!r} cannot continue a text; use lm.fill(text) to fill "
                "its gaps"
            )
        self.lm = fast_copy(lm, n_rows)
        self.attn_requests = attn_requests
        self.ids_BT = torch.tensor(rows, dtype=torch.int64, device=lm.device)
        self.cache = Cache(room, n_logits=1) if use_cache and not lm.taps else None
        if self.cache is not None and attn_requests is None:
            reason = lm.cache_check.reason_to_skip(lm, self.lm, self.ids_BT, room)
            if reason is not None:
                self.give_up_cache(reason)

    def logits(self) -> Tensor:
        """Return the logits after the last token of every row, [B, V]."""
        try:
            return last_logits(self.lm, self.ids_BT, self.cache, self.attn_requests)
        except Uncacheable as error:  # not always at the first step: an edit may set attn_requests later
            self.give_up_cache(str(error))
            return self.logits()

    def give_up_cache(self, reason: str) -> None:
        self.cache = None
        self.lm.cache_check.warn(reason)

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


def last_logits(
    lm: LanguageModel, ids_BT: Tensor, cache: Cache | None = None, attn_requests: object = None
) -> Tensor:
    """Return the logits after the last token of every row, [B, V]. A long prompt passes the model in pieces."""
    length = ids_BT.shape[1]
    for end in ends_of_pieces(lm, length, cache):
        if cache is not None:
            cache.n_logits = int(end == length)
        logits = lm(ids_BT[:, :end], attn_requests=attn_requests, cache=cache)
    return logits[:, -1]


def ends_of_pieces(lm: LanguageModel, length: int, cache: Cache | None) -> list[int]:
    """Return the lengths up to which a prompt passes the model, piece after piece; the last one is `length`.

    The tokens of a piece attend to the keys so far, so scores of later keys are not computed. This saves up to half of
    the work of attention, and memory. Other devices than a CPU get a prompt at once: small products do not fill them.
    """
    n_new = length if cache is None else length - cache.seen
    if cache is None or n_new <= MAX_PIECE or lm.device.type != "cpu":
        return [length]
    if any(isinstance(module, Layer) and module.computes_past_again for module in lm.modules()):
        return [length]
    n_pieces = math.ceil(n_new / MAX_PIECE)
    return [cache.seen + n_new * i // n_pieces for i in range(1, n_pieces + 1)]


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


class CacheCheck:
    """Result of testing whether a model gives the same logits with a cache.

    The test is repeated for longer rows, and after a change of modules, methods, hooks or weights. A copy of a model
    starts without a result.
    """

    def __init__(self) -> None:
        self.tested: list[object] = []  # fingerprint of the model when it was tested
        self.room = 0  # row length in tokens up to which `reason` holds
        self.reason: str | None = None  # why the model must not use a cache
        self.warned: set[str] = set()

    def __reduce__(self) -> tuple:
        return CacheCheck, ()

    def reason_to_skip(self, lm: LanguageModel, fast: LanguageModel, ids_BT: Tensor, room: int) -> str | None:
        """Return why the model must not use a cache, or None if it may. The test starts with `ids_BT`.

        `fast` computes the logits of `lm`.
        """
        model = model_fingerprint(lm)
        if model != self.tested or room > self.room:
            near = reason_against_cache(fast, ids_BT[:4], ids_BT.shape[1] + COMPARED_STEPS)
            # Test the full length too: a layer may read distant positions.
            self.reason = near or reason_against_cache(fast, ids_BT[:1], room)
            self.tested, self.room = model, room
        return self.reason

    def warn(self, reason: str) -> None:
        """Warn once per model and reason that generation runs without a cache."""
        if reason not in self.warned:
            self.warned.add(reason)
            warnings.warn(f"generation continues without a cache, which takes longer: {reason}", stacklevel=3)


def model_fingerprint(lm: LanguageModel) -> list[object]:
    """Return a list that compares unequal after a change of modules, of their methods or hooks, or of weights."""
    modules = list(lm.modules())
    kinds = {
        kind
        for module in modules
        for kind in type(module).__mro__
        if kind.__module__ != "torch.nn.modules.module"
    }
    methods = [value for kind in kinds for value in vars(kind).values() if callable(value)]
    own = [value for module in modules for value in vars(module).values() if callable(value)]
    hooks = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    version = sum(parameter._version for parameter in lm.parameters())
    return [*modules, *methods, *own, *hooks, version]


def reason_against_cache(lm: LanguageModel, ids_BT: Tensor, length: int) -> str | None:
    """Return why logits with a cache differ from those without, or None if they agree.

    The first tokens are `ids_BT`, random ones follow. Only the last few of `length` positions are compared.
    """
    length = min(length, lm.model_params.max_seq_len)
    # Random ids: a model's own repetitive text would hide what an edit does to earlier tokens.
    shape, dice = (len(ids_BT), length), torch.Generator().manual_seed(0)
    more = torch.randint(lm.tokenizer.n_tokens, shape, generator=dice).to(ids_BT)
    ids_BT = torch.cat([ids_BT, more], dim=1)[:, :length]
    cache = Cache(length, n_logits=1)
    for end in range(max(1, length - COMPARED_STEPS), length + 1):
        plain_BV = last_logits(lm, ids_BT[:, :end])
        try:
            cached_BV = last_logits(lm, ids_BT[:, :end], cache)
        except Uncacheable as error:
            return str(error)
        except Exception as error:  # a user's layer may raise anything for a single position
            return f"with a cache a layer raises {error!r}"
        if not logits_agree(cached_BV, plain_BV):
            return "with a cache the logits differ, as a layer reads other positions without caching them"
    return None


def logits_agree(cached_BV: Tensor, plain_BV: Tensor) -> bool:
    """Return True if logits are equal up to rounding: 3e-4 of the largest logit in float32."""
    rounding = math.sqrt(torch.finfo(plain_BV.dtype).eps)
    largest = plain_BV.where(plain_BV.isfinite(), 0.0).abs().max().item()
    return torch.allclose(cached_BV, plain_BV, rtol=0, atol=rounding * largest, equal_nan=True)
