"""A fast copy of a model for one generation call. It computes the same logits up to rounding; the model stays as it is.

On a CPU a token's time goes to reading the weights and to the overhead of many small calls. torch's own choice for
linear maps, MKL, is made for large products. Measured on two cores of an EPYC, an unembedding of 50,257 x 384: one row
takes 7.2 ms with nn.Linear and 2.7 ms with packed weights, 16 rows take 24 ms and 8 ms. The linear maps of 6 layers of
384 take 116 to 130 ms for 1,000 tokens, and 96 ms with packed weights, also in pieces of 125 tokens.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.transformer.embeddings import NoPositions

# Classes whose forward has a faster equivalent, and this forward.
FAST_KINDS = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, nn.Sequential, NoPositions)
FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {kind: kind.forward for kind in FAST_KINDS}
MIN_PROMPT_ROWS = 64  # weights packed for one row are packed for a prompt, too, if it has as many tokens
# Of weights. Their packed form is in memory, too, and a second one after a long prompt of one row.
MAX_PACKED_BYTES = 2**31
MAX_KEPT_BYTES = 2**28  # of weights whose packed form is kept for the next call

M = TypeVar("M", bound=Any)  # LM, which imports this file


def fast_copy(model: M, n_rows: int) -> M:
    """Return a copy of a model in evaluation mode that generates faster on a CPU, for calls without gradients.

    The copy shares parameters, buffers and attribute values with the model, and its methods are those of the model's
    classes. An attribute that a method sets is set in the model, too. Make a new copy for each generation call: a copy
    does not follow later changes. `n_rows` is the number of rows that the model gets, mostly with one token each.

    Dropout, Identity and the like return their input. Linear maps in float32 use packed weights.
    A module with hooks, and all inside it, is no copy but the module itself.
    """
    if any_global_hook():
        return model
    maps = [module for module in model.modules() if may_pack(module)]
    n_bytes = sum(map.weight.nbytes for map in maps)
    n_packed = n_rows if has_fast_product(n_rows) and n_bytes <= MAX_PACKED_BYTES else 0
    copier: Any = Copier(n_packed, keep=n_bytes <= MAX_KEPT_BYTES)
    return copier.copy(model)


class Copier:
    """Copies each module of a model once. `n_packed` is the number of rows that weights are packed for; 0: none are."""

    def __init__(self, n_packed: int, keep: bool) -> None:
        self.n_packed, self.keep = n_packed, keep
        self.copies: dict[nn.Module, nn.Module] = {}

    def copy(self, module: nn.Module) -> nn.Module:
        if module not in self.copies:
            self.copies[module] = self.new_copy(module) if may_copy(module) else module
        return self.copies[module]

    def new_copy(self, module: nn.Module) -> nn.Module:
        children = {name: self.copy(child) for name, child in module._modules.items() if child is not None}
        fast: Any = object.__new__(class_of_copy(module, self.n_packed > 0))
        if isinstance(fast, FastLinear):
            vars(fast)["packed_weight"] = pack_weight(cast(nn.Linear, module), self.n_packed, self.keep)
        # Python looks for attributes in this dictionary first, and only then asks nn.Module for a child.
        vars(fast).update({**vars(module), **children, "copied_from": module})
        vars(fast)["_modules"] = {**module._modules, **children}
        return fast


class Copy(nn.Module):
    """Base class of copies. Sets attributes in the copied module, too, so that nothing an edit stores is lost."""

    copied_from: nn.Module

    def __setattr__(self, name: str, value: object) -> None:
        source = vars(self)["copied_from"]
        setattr(source, name, vars(value)["copied_from"] if isinstance(value, Copy) else value)
        vars(self).pop(name, None)
        if name in vars(source):
            vars(self)[name] = value
        elif name in source._modules:
            vars(self)["_modules"][name] = value

    def __delattr__(self, name: str) -> None:
        delattr(vars(self)["copied_from"], name)
        vars(self).pop(name, None)
        vars(self)["_modules"].pop(name, None)


class FastLayerNorm(Copy, nn.LayerNorm):
    """Copy of an nn.LayerNorm."""

    def __call__(self, x: Tensor) -> Tensor:
        own = self._parameters
        return torch.layer_norm(x, self.normalized_shape, own.get("weight"), own.get("bias"), self.eps)


class FastLinear(nn.Linear):
    """Base class of copies of linear maps: multiplies by the packed weight.

    It stands between a subclass of nn.Linear and nn.Linear, so that `super().forward(x)` in the subclass comes here.
    """

    packed_weight: "PackedWeight"

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed_weight
        # oneDNN's product has no gradients, which an edit may want.
        if x.dtype == torch.float32 and not x.requires_grad and packed.is_current(self):
            return packed.product(x, self._parameters.get("bias"))
        return super().forward(x)


def class_of_copy(module: nn.Module, may_use_packed: bool) -> type[nn.Module]:
    kind: Any = type(module)
    if "forward" in vars(module):
        return subclass(call_forward, kind)
    if may_use_packed and may_pack(module):
        return (
            subclass(FastLinear.forward, FastLinear)
            if kind is nn.Linear
            else subclass(kind.forward, kind, FastLinear)
        )
    if is_as_shipped(module) and kind is nn.LayerNorm:
        return FastLayerNorm
    return subclass(return_input if is_idle(module) else kind.forward, kind)


@lru_cache
def subclass(call: Callable[..., object], kind: type, *fast: type) -> type[nn.Module]:
    """Return a subclass of `kind` for copies of its modules, whose calls are calls of `call`."""
    return type(kind.__name__, (Copy, kind, *fast), {"__module__": kind.__module__, "__call__": call})


def call_forward(module: nn.Module, *args: object, **kwargs: object) -> object:
    return module.forward(*args, **kwargs)


def return_input(module: nn.Module, x: Tensor, *_: object) -> Tensor:
    return x


def is_idle(module: nn.Module) -> bool:
    """Return True for a module that returns its input in evaluation mode."""
    has_weights = isinstance(module, (nn.Linear, nn.LayerNorm))
    return is_as_shipped(module) and not (has_weights or module.training or module._modules)


def is_as_shipped(module: nn.Module) -> bool:
    """Return True for a module of a class in FORWARDS whose forward nobody has replaced."""
    forward = FORWARDS.get(type(module))
    return forward is type(module).forward and "forward" not in vars(module)


def may_copy(module: nn.Module) -> bool:
    """Return False for a module with hooks, and for one that handles calls or attributes in a way of its own."""
    m, kind = module, type(module)
    hooks = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    names = ("__call__", "__getattr__", "__setattr__", "__delattr__")
    is_plain = all(getattr(kind, name) is getattr(nn.Module, name) for name in names)
    is_plain = is_plain and kind.__getattribute__ is object.__getattribute__
    return is_plain and not any(hooks) and m._compiled_call_impl is None


def any_global_hook() -> bool:
    """Return True if a hook for all modules is registered, as profilers do."""
    return bool(nn.modules.module._has_any_global_hook())


def may_pack(module: nn.Module) -> bool:
    """Return True for an nn.Linear, or a subclass, in float32 on the CPU."""
    if not isinstance(module, nn.Linear) or "forward" in vars(module):
        return False
    if nn.Linear.forward is not FORWARDS[nn.Linear]:
        return False
    weight = module._parameters.get("weight")
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32


def has_fast_product(n_rows: int) -> bool:
    return n_rows == 1 or torch.backends.mkldnn.is_available()


Product = Callable[[Tensor, Tensor | None], Tensor]  # (x, bias) -> a linear map of x


class PackedWeight(NamedTuple):
    """The weight of a linear map in a layout for few rows."""

    product: Product
    n_rows: int  # number of rows that the layout is for
    weight: Tensor
    version: int  # number of in-place changes of the weight before it was packed
    checksum: Tensor  # see `checksum_of`
    bias: Tensor | None
    bias_ptr: int | None  # address of the bias

    def is_current(self, map: nn.Linear) -> bool:
        """Return False if the map has another parameter now, or one that was changed in place."""
        return map._parameters.get("weight") is self.weight and self.weight._version == self.version


# The packed weights of earlier calls.
packed_weights: WeakKeyDictionary[nn.Module, PackedWeight] = WeakKeyDictionary()


def pack_weight(map: nn.Linear, n_rows: int, keep: bool) -> PackedWeight:
    """Return the packed weight of a map. It comes from an earlier call, unless the weight has changed since."""
    weight, checksum = map.weight, checksum_of(map.weight)
    packed = packed_weights.pop(map, None)
    bias = map.bias
    bias_ptr = None if bias is None else bias.data_ptr()
    if packed is not None:
        is_same = packed.n_rows == n_rows and packed.bias is bias and packed.bias_ptr == bias_ptr
        is_same = is_same and packed.is_current(map) and torch.equal(packed.checksum, checksum)
    if packed is None or not is_same:
        product = row_or_prompt(weight, bias) if n_rows == 1 else many_rows(weight, n_rows)
        packed = PackedWeight(product, n_rows, weight, weight._version, checksum, bias, bias_ptr)
    if keep:
        packed_weights[map] = packed
    return packed


def checksum_of(weight: Tensor) -> Tensor:
    """Return the product with a fixed random vector. Unlike `_version` it also shows changes through `weight.data`."""
    return torch.mv(weight.detach(), random_vector(weight.shape[1], weight.dtype))


@cache
def random_vector(n: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=dtype)


def row_or_prompt(weight: Tensor, bias: Tensor | None) -> Product:
    """Return a product for one row, which packs the weight once more for the first prompt of MIN_PROMPT_ROWS tokens."""
    product_of_row = one_row(weight, bias)
    product_of_prompt = cache(lambda: many_rows(weight, MIN_PROMPT_ROWS))

    def product(x: Tensor, bias_now: Tensor | None) -> Tensor:
        if x.numel() == weight.shape[1]:
            return product_of_row(x, bias_now)
        if x.numel() < MIN_PROMPT_ROWS * weight.shape[1] or not torch.backends.mkldnn.is_available():
            return F.linear(x, weight, bias_now)
        return product_of_prompt()(x, bias_now)

    return product


def one_row(weight: Tensor, bias: Tensor | None) -> Product:
    """Return a product that gives each thread a share of the outputs, as MKL does not divide a product with one row."""
    n, n_out = torch.get_num_threads(), len(weight)
    padded = F.pad(weight.detach(), (0, 0, 0, -n_out % n))
    shares = torch.stack([share.t() for share in padded.chunk(n)])
    # A view, so that changes of the bias in place count.
    bias_shares = None if bias is None or n_out % n else bias.detach().view(n, 1, -1)

    def product(x: Tensor, bias_now: Tensor | None) -> Tensor:
        rows = (x if x.dim() <= 3 else x.reshape(1, -1)).expand(n, 1, -1)
        if bias_shares is not None and bias_now is bias:
            return torch.baddbmm(bias_shares, rows, shares).view(*x.shape[:-1], n_out)
        out = torch.bmm(rows, shares).view(*x.shape[:-1], -1)
        if out.shape[-1] > n_out:
            out = out[..., :n_out]
        return out if bias_now is None else out + bias_now

    return product


def many_rows(weight: Tensor, n_rows: int) -> Product:
    """Return oneDNN's product, packed for `n_rows`. With other numbers of rows it is about as fast."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), n_rows)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x, bias: product(x, packed, bias, "none", [], "")
