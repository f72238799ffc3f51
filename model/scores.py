"""Attention scores of any nn.Module, such as a model of transformers: how they are scaled, and how muP scales them.

Shape suffixes:  B batch  T position  F features of a projection
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MARK = "mup_scores_mult"  # an attribute of attention modules whose scores are scaled: the factor
LOSES_FACTORS = ("save_pretrained", "resize_token_embeddings")
ATTRIBUTES = {"BloomAttention": "inv_norm_factor", "MptAttention": "softmax_scale"}  # for all others: scaling
SEPARATE = ("q_proj", "query", "query_proj", "q", "q_lin")  # names of maps to queries alone
THIRDS = ("Wqkv", "c_attn")  # of maps to queries, keys and values, one after the other


class Queries(NamedTuple):
    """A map to queries, and where they lie in its output: `n_queries` first parts of `n_parts` in each of `n_groups`."""

    projection: nn.Module
    n_groups: int = 1
    n_queries: int = 1
    n_parts: int = 1

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and all else, [B, T, n_groups, parts, size of a part]."""
        parts = output.unflatten(-1, (self.n_groups, self.n_parts, -1))
        queries, others = parts.split([self.n_queries, self.n_parts - self.n_queries], dim=-2)
        return queries, others


class ScaledMultiheadAttention(nn.MultiheadAttention):
    """torch's attention with its queries multiplied by a factor; parameters are the same tensors with the same names."""

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        return self.with_scaled_queries("in_proj_weight")

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        return self.with_scaled_queries("in_proj_bias")

    @property
    def q_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        return self.with_scaled_queries("q_proj_weight")

    def with_scaled_queries(self, name: str) -> Tensor | None:
        """Return a parameter whose first rows are those of the queries, with these rows multiplied by the factor."""
        parameter = self._parameters[name]
        if parameter is None:
            return None
        queries, others = parameter[: self.embed_dim], parameter[self.embed_dim :]
        return torch.cat([queries * getattr(self, MARK), others])


class Attention(NamedTuple):
    """An attention module, and what its scores can be scaled by."""

    module: nn.Module
    attribute: str | None  # a number of the module that multiplies scores
    queries: list[Queries]  # where there is no such number

    @property
    def mult(self) -> float | None:
        """The factor that `scale_scores` has given it, if it has."""
        return vars(self.module).get(MARK)


def scale_scores(model: nn.Module, mult: float) -> None:
    """Multiply the attention scores of a model, by 1 / sqrt(head size / that of the base) in muP. To be called once.

    The factor acts in the forward pass: on the number that scores are multiplied by, else on the queries, by a hook.
    ValueError if attention is scaled already, if there is none, or by name for attention of which neither is known.
    """
    found = attentions(model)
    if any(attention.mult is not None for attention in found):
        raise ValueError("scale_scores has scaled the attention of this model before: build the model anew")
    for module, attribute, queries in found:
        if attribute is not None:
            setattr(module, attribute, getattr(module, attribute) * mult)
        for place in queries:
            place.projection.register_forward_hook(
                partial(scale_queries, place._replace(projection=None), mult)
            )
        if type(module) is nn.MultiheadAttention:
            module.__class__ = ScaledMultiheadAttention
        setattr(module, MARK, mult)
    if mult != 1:
        keep_factors(model)


def scale_queries(queries: Queries, mult: float, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Multiply the queries in the output of a projection; a forward hook."""
    scaled, others = queries.split(output)
    return torch.cat([scaled * mult, others], dim=-2).flatten(-3)


def attentions(model: nn.Module) -> list[Attention]:
    """Return the attention modules of a model; ValueError if there is none, or for one that cannot be scaled."""
    found, known = [], set()
    named = dict(model.named_modules())
    for name, module in named.items():
        attention = attention_of(module)
        if attention is not None:
            found.append(attention)
            known |= {name, *(name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)), ""}
    inside = tuple(f"{name}." for name, module in named.items() if attention_of(module) is not None)
    for name, module in named.items():
        is_attention = "attention" in type(module).__name__.lower() and any(True for _ in module.parameters())
        if is_attention and name not in known and not name.startswith(inside):
            raise ValueError(
                f"the scores of {name or 'the model'}, a {type(module).__name__}, cannot be scaled: give it a number "
                "`scaling` that it multiplies scores by, or a linear map `q_proj` to its queries"
            )
    if not found:
        raise ValueError(f"no attention whose scores can be scaled in this {type(model).__name__}")
    return found


def attention_of(module: nn.Module) -> Attention | None:
    """Return a module as attention that can be scaled, None if it is not known to be any."""
    kind = type(module).__name__
    attribute = ATTRIBUTES.get(kind, "scaling")
    if isinstance(vars(module).get(attribute), float):
        return Attention(module, attribute, [])
    if type(module) in (nn.MultiheadAttention, ScaledMultiheadAttention):
        return Attention(module, None, [])
    queries = queries_of(module) if "attention" in kind.lower() else []
    return Attention(module, None, queries) if queries else None


def queries_of(attention: nn.Module) -> list[Queries]:
    """Return the maps to queries of an attention module of transformers; empty if none is known."""
    maps = dict(attention.named_children())
    separate = [Queries(maps[name]) for name in SEPARATE if isinstance(maps.get(name), nn.Linear)]
    if separate and isinstance(
        maps.get("pos_query_proj"), nn.Linear
    ):  # DeBERTa: queries of relative positions
        separate.append(Queries(maps["pos_query_proj"]))
    if separate:
        return separate
    fused = [Queries(maps[name], n_parts=3) for name in THIRDS if name in maps and is_square(maps[name])]
    if fused or "query_key_value" not in maps:
        return fused
    return [in_groups(attention, maps["query_key_value"])]


def is_square(projection: nn.Module) -> bool:
    """Whether a projection has three outputs for each input: queries, keys and values of all heads."""
    return sorted(projection.get_parameter("weight").shape)[1] == 3 * min(
        projection.get_parameter("weight").shape
    )


def in_groups(attention: Any, projection: nn.Module) -> Queries:
    """Return where queries lie in a projection by heads, as in GPT-NeoX, BLOOM and Falcon."""
    n_heads = attention.num_heads if hasattr(attention, "num_heads") else attention.config.num_attention_heads
    if getattr(attention, "new_decoder_architecture", False):
        n_groups = attention.num_kv_heads
        return Queries(projection, n_groups, n_heads // n_groups, n_heads // n_groups + 2)
    if getattr(attention, "multi_query", False):
        return Queries(projection, 1, n_heads, n_heads + 2)
    return Queries(projection, n_heads, 1, 3)


def keep_factors(model: nn.Module) -> None:
    """Make the methods of transformers that would lose muP's factors say so."""
    for module in model.modules():
        for method in LOSES_FACTORS:
            if hasattr(type(module), method):
                setattr(module, method, partial(refuse, method))


def refuse(method: str, *args: Any, **kwargs: Any) -> None:
    """Raise ValueError, in place of a method of transformers."""
    raise ValueError(
        f"{method} would lose the factors that muP gives this model: save its state_dict() and build it anew, "
        "and change the vocabulary before make_readouts"
    )
