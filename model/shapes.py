"""Parameter names, shapes, sizes and muP roles of an LM, found without memory for its weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.text import first_line
from model.context import Layer
from model.inputs import stand_in_tokenizer
from model.lm import LM
from model.model_params import ModelParams
from model.mup.base_shapes import Shapes, make_base_shapes  # muP
from model.mup.parametrization import Role, roles  # muP
from model.transformer.experts import n_active_params
from model.transformer.scaling import base_dim, depth_mult  # muP

MAX_BUILT_LAYERS = 128  # layers that a check builds; the layers of deeper models repeat these
RANDOM = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}


class WithoutInit(TorchFunctionMode):
    """Torch function mode that skips random initialization of meta tensors, which would only take time."""

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        tensor: Any = args[0] if args else kwargs.get("tensor")
        return tensor if function in RANDOM and tensor.is_meta else function(*args, **kwargs)


def build_on_meta(model: ModelParams, n_tokens: int) -> LM:
    """Build a model on the meta device, without memory, where the code of its layers allows that.

    Raise ValueError for sizes that cannot be built.
    """
    tokenizer = stand_in_tokenizer(n_tokens)
    try:
        with torch.device("meta"), WithoutInit():
            return LM(model, tokenizer)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        # torch raises TypeError for a size beyond 64 bits. Any other TypeError is a bug in the code of a layer.
        if isinstance(error, TypeError) and "Overflow" not in str(error):
            raise
        if "meta" not in str(error):
            reason = first_line(error)
            if "overflow" in reason.lower():
                reason = "a tensor would have more numbers or bytes than 64 bits can count"
            raise ValueError(
                f"dim={model.dim} and n_layers={model.n_layers} cannot be built: {reason}"
            ) from error
        return LM(model, tokenizer)  # an edit reads numbers, which meta tensors lack


def parameter_shapes(model: ModelParams, n_tokens: int) -> dict[str, torch.Size]:
    """Return the names and shapes of a model's parameters."""
    return {name: parameter.shape for name, parameter in build_on_meta(model, n_tokens).named_parameters()}


def with_fewer_layers(model: ModelParams) -> ModelParams:
    """Return params of a model with the same layer kinds but fewer layers, for checks of very deep models."""
    surplus = max(0, model.n_layers - max(MAX_BUILT_LAYERS, model.period))
    return replace(model, n_layers=model.n_layers - surplus // model.period * model.period)


class ModelSize(NamedTuple):
    """The size of a model."""

    n_params: int
    n_bytes: int  # of its parameters and buffers
    state_size: int | None  # see `state_size_of`
    n_active: int  # parameters that a token passes: fewer with experts


def size_of(model: ModelParams, n_tokens: int) -> ModelSize:
    """Return the size of a model without building all its layers. Raise ValueError if it cannot be built."""
    lm = build_on_meta(with_fewer_layers(model), n_tokens)
    n_repeated = model.n_layers - lm.model_params.n_layers
    layers, n_turns = lm.decoder.layers, n_repeated // model.period
    turn = list(layers)[: model.period]
    # Without the last turn, so that weights that all layers share do not count.
    whole, all_layers, fewer = map(size_of_module, (lm, layers, layers[: len(layers) - model.period]))
    state, more_state = state_size_of(lm), sum_of_states(turn, model.max_seq_len)
    return ModelSize(
        whole.n_params + n_turns * (all_layers.n_params - fewer.n_params),
        whole.n_bytes + n_turns * (all_layers.n_bytes - fewer.n_bytes),
        None if state is None or more_state is None else state + n_turns * model.n_loops * more_state,
        whole.n_active + n_turns * (all_layers.n_active - fewer.n_active),
    )


def size_of_module(module: nn.Module) -> ModelSize:
    parameters, buffers = list(module.parameters()), list(module.buffers())
    n_bytes = sum(t.nbytes for t in [*parameters, *buffers])
    return ModelSize(sum(p.numel() for p in parameters), n_bytes, None, n_active_params(module))


def state_size_of(lm: LM) -> int | None:
    """Return how many numbers generation keeps of a row at its last token, in all layers; None if one does not say."""
    return sum_of_states([layer for _, layer in lm.decoder.passes()], lm.model_params.max_seq_len)


def sum_of_states(layers: Sequence[nn.Module], T: int) -> int | None:
    sizes = [layer.state_size(T) if isinstance(layer, Layer) else None for layer in layers]
    return None if None in sizes else sum(size or 0 for size in sizes)


def base_shapes(lm: LM) -> Shapes:  # muP
    """Return the muP base shapes of `lm`: the sizes of its parameters at the base's dim.

    A dimension grows with width if it is larger in a model twice as wide with as many heads.
    """
    p = lm.model_params
    wider = build_on_meta(twice_as_wide(p), lm.n_tokens)
    both = make_base_shapes(lm, wider)
    others = {name: parameter.shape for name, parameter in wider.named_parameters()}
    # The base is smaller by this share of the growth from this width to twice this width.
    smaller = 1 - base_dim(p) / p.dim

    def at_base(n: int | None, n_wider: int) -> int | None:
        return None if n is None else max(1, round(n - (n_wider - n) * smaller))

    return {
        name: tuple(at_base(n, m) for n, m in zip(shape, others[name], strict=True))
        for name, shape in both.items()
    }


def twice_as_wide(p: ModelParams) -> ModelParams:  # muP
    """Return params of a model with twice the widths. Heads of a width that is set become twice as many."""
    doubled = {"dim_ff": doubled_values(p, "dim_ff")}
    if set(p.values_of("head_dim")) != {None}:
        doubled |= {name: doubled_values(p, name) for name in ("n_heads", "n_kv_heads")}
    return replace(p, parametrization="standard", dim=2 * p.dim, **doubled)


def doubled_values(p: ModelParams, name: str) -> Any:  # muP
    return tuple(value and 2 * value for value in p.values_of(name))


def roles_of(lm: LM) -> dict[str, Role]:  # muP
    """Return the muP role of every parameter, with CompleteP's depth. Raise ValueError for one without a role."""
    depth = depth_mult(lm.model_params.at(0, lm.decoder.depth))
    found = roles(lm, base_shapes(lm), check=lm.model_params.parametrization != "standard")
    return {
        name: role._replace(depth=depth) if name.startswith("decoder.layers.") else role
        for name, role in found.items()
    }
