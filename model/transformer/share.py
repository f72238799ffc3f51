"""Shared weights: matrices of a layer that are one, and parts that all layers have in common.

The field says which, as in `share = "k=v, o=q.T, norms"`:

- `k=v`: keys are values, by one map. So for any two of q, k and v.
- `o=q.T`: the map from heads to the stream is the transpose of that of the queries. So for k and v.
- `down=up.T`: the same for the two maps of the feed-forward block.
- `attention`, `ff`, `norms`: all layers have the same weights there.

Shape suffixes:  B batch  T position  D model dim  C outputs of a map
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.text import did_you_mean
from model.model_params import ModelParams
from model.transformer.linear import linear

# Parts of a layer that all layers may share, with the names of their modules.
SHARED_PARTS = {
    "attention": ("mixer",),
    "ff": ("linear1", "linear_up", "linear2", "experts"),
    "norms": ("norm1", "norm2"),
}
EQUALITIES = [f"{a}={b}" for a, b in permutations("qkv", 2)] + ["o=q.T", "o=k.T", "o=v.T", "down=up.T"]


class Sharing(NamedTuple):
    """The meaning of a value of `share`."""

    map_of: dict[str, str]  # by q, k and v: the one of them whose map it has
    out_of: str | None = None  # the one whose transposed map is that from heads to the stream
    down_is_up: bool = False
    parts: tuple[str, ...] = ()  # keys of SHARED_PARTS

    @property
    def of_heads(self) -> bool:
        """True if some of the maps of attention are one."""
        return self.out_of is not None or any(a != b for a, b in self.map_of.items())


@lru_cache
def sharing_of(share: str | None) -> Sharing:
    """Return the meaning of a value of `share`. Raise ValueError if it has none."""
    items = [] if share is None else [item.strip() for item in share.split(",")]
    for item in items:
        if item not in [*EQUALITIES, *SHARED_PARTS]:
            hint = did_you_mean(item, [*EQUALITIES, *SHARED_PARTS], list_all=True)
            raise ValueError(f"share={share!r}: {item!r} does not exist; {hint}")
    pairs = [item.removesuffix(".T").split("=") for item in items if "=" in item]
    same: dict[str, str] = dict(pairs)
    if len(same) < len(pairs) or len(set(items)) < len(items):
        raise ValueError(f"share={share!r}: each of them may be shared only once")

    def source(name: str) -> str:
        seen = [name]
        while seen[-1] in same:
            seen.append(same[seen[-1]])
            if seen[-1] in seen[:-1]:
                raise ValueError(f"share={share!r}: {' = '.join(seen)} leaves no map to share")
        return seen[-1]

    map_of = {name: source(name) for name in "qkv"}
    out_of = source("o") if "o" in same else None
    return Sharing(map_of, out_of, "down" in same, tuple(item for item in items if "=" not in item))


class SharedHeads(nn.Module):
    """The map from the stream to queries, keys and values, some of which are one."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        p, self.map_of = model_params, sharing_of(model_params.share).map_of
        n_heads = {"q": p.n_heads, "k": p.kv_heads, "v": p.kv_heads}
        self.maps = nn.ModuleDict(
            {
                name: linear(p.dim, n_heads[name] * p.head_width, p, p.bias_qkv)
                for name in dict.fromkeys(self.map_of.values())
            }
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        found = {name: map(x_BTD) for name, map in self.maps.items()}
        return torch.cat([found[self.map_of[name]] for name in "qkv"], dim=-1)

    def weights(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        q_weight, k_weight, v_weight = (self.maps[self.map_of[x]].get_parameter("weight") for x in "qkv")
        return [q_weight], [k_weight], [v_weight]


class TransposedMap(nn.Module):
    """A linear map whose matrix is the transpose of that of another map. Its bias is its own."""

    bias: Tensor | None

    def __init__(self, source: nn.Linear, bias: bool) -> None:
        super().__init__()
        # In a tuple it is not a submodule, so that its matrix has one name and is saved once.
        self.source = (source,)
        self.register_parameter("bias", nn.Parameter(torch.zeros(source.in_features)) if bias else None)

    @property
    def weight(self) -> Tensor:
        return self.source[0].weight.T

    def forward(self, x_BTC: Tensor) -> Tensor:
        return F.linear(x_BTC, self.weight, self.bias)


def map_of_heads(model_params: ModelParams, qkv: nn.Module) -> nn.Linear | TransposedMap:
    """Return the map from heads to the stream. `qkv` is that from the stream to queries, keys and values."""
    p = model_params
    if (name := sharing_of(p.share).out_of) is not None:
        source = qkv.get_submodule(f"maps.{name}")
        assert isinstance(source, nn.Linear)
        return TransposedMap(source, p.has_bias(p.bias_out))
    return linear(p.n_heads * p.head_width, p.dim, p, p.bias_out, into_stream=True)


def down_map(model_params: ModelParams, up: nn.Linear) -> nn.Linear | TransposedMap:
    """Return the second map of the feed-forward block. `up` is the first."""
    p = model_params
    if sharing_of(p.share).down_is_up:
        return TransposedMap(up, p.has_bias(p.bias_ff))
    return linear(p.ff_width, p.dim, p, p.bias_ff, into_stream=True)


def share_between(layers: nn.ModuleList, model_params: ModelParams) -> None:
    """Give all layers the weights of the first one that has them, in the parts that `share` names.

    Raise ValueError if these weights differ in shape, or if no two layers have any.
    """
    share = model_params.share
    for part in sharing_of(share).parts:
        first: dict[str, nn.Parameter] = {}
        n_shared = 0
        for layer in layers:
            modules = [(name, getattr(layer, name, None)) for name in SHARED_PARTS[part]]
            for name, parameter in [
                pair for prefix, m in modules if m is not None for pair in m.named_parameters(prefix)
            ]:
                shared = first.setdefault(name, parameter)
                if shared.shape != parameter.shape:
                    shapes = f"{list(shared.shape)} in one layer and {list(parameter.shape)} in another"
                    raise ValueError(f"share={share!r}: {name} is {shapes}; all layers need equal shapes")
                if shared is not parameter:
                    path, _, own = name.rpartition(".")
                    setattr(layer.get_submodule(path), own, shared)
                    n_shared += 1
        if not n_shared and len(layers) > 1:
            raise ValueError(f"share={share!r}: no two layers have weights of {part!r} that they could share")


def share_problems(p: ModelParams) -> Iterator[str]:
    """Yield an error message for a value of `share` without meaning, and for each field that it does not go with."""
    try:
        found = sharing_of(p.share)
    except ValueError as error:
        yield str(error)
        return
    grouped = any(own.kv_heads != own.n_heads for own in p.each_layer())
    q_is_another = any((found.map_of[name] == found.map_of["q"]) for name in "kv")
    no_ff = any(not own.ff_width for own in p.each_layer())
    obstacles = {
        "lora_rank": (p.share is not None and p.lora_rank, "whose products belong to one map each"),
        "separate_heads": (found.of_heads and any(p.values_of("separate_heads")), "which splits these maps"),
        "n_kv_heads": (
            grouped and (q_is_another or (found.out_of and found.map_of["q"] != found.out_of)),
            "as there are more queries than keys",
        ),
        "query_zero_init": (found.of_heads and p.query_zero_init, "which would set a shared map to 0"),
        "out_zero_init": (
            (found.out_of or found.down_is_up) and any(p.values_of("out_zero_init")),
            "which would set a shared map to 0",
        ),
        "residual": (
            (found.of_heads or found.down_is_up) and p.residual == "deepnet",
            "which draws the weights of each map by its role",
        ),
        "gated": (found.down_is_up and any(p.values_of("gated")), "where two maps lead up"),
        "n_experts": (
            found.down_is_up and any(p.values_of("n_experts")),
            "each of which has maps of its own",
        ),
        "dim_ff": (found.down_is_up and no_ff, "which leaves out the feed-forward block"),
    }
    for name, (is_one, why) in obstacles.items():
        if is_one:
            yield f"share={p.share!r} does not go with {name}={getattr(p, name)!r}, {why}"
