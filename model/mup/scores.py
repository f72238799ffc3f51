"""Scale the attention scores of any nn.Module, such as a model of transformers, as muP needs.

Shape suffixes:  B batch  T position  F features of a projection
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MARK = "mup_scores_mult"  # attribute of scaled attention modules that holds their factor
LOSES_FACTORS = ("save_pretrained", "resize_token_embeddings")
ATTRIBUTES = {"BloomAttention": "inv_norm_factor", "MptAttention": "softmax_scale"}  # for all others: scaling
SEPARATE = ("q_proj", "query", "query_proj", "q", "q_lin")  # names of projections to queries only
THIRDS = ("Wqkv", "c_attn")  # of projections to queries, keys and values, in this order


class Queries(NamedTuple):
    """A projection, and where queries lie in its output.

    The output has `n_groups` groups of `n_parts` parts; the first `n_queries` parts of a group are queries.
    """

    projection: Any  # a module
    n_groups: int = 1
    n_queries: int = 1
    n_parts: int = 1

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and everything else, each [B, T, n_groups, parts, size of a part]."""
        parts = output.unflatten(-1, (self.n_groups, self.n_parts, -1))
        queries, others = parts.split([self.n_queries, self.n_parts - self.n_queries], dim=-2)
        return queries, others


class ScaledMultiheadAttention(nn.MultiheadAttention):
    """torch's attention with its queries multiplied by a factor. Parameter tensors and names stay the same."""

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
        """Return a parameter with its first rows, those of the queries, multiplied by the factor."""
        parameter = self._parameters[name]
        if parameter is None:
            return None
        queries, others = parameter[: self.embed_dim], parameter[self.embed_dim :]
        return torch.cat([queries * getattr(self, MARK), others])


class ScalableAttention(NamedTuple):
    """An attention module, and the places where its scores can be scaled."""

    module: nn.Module
    attribute: str | None  # a number of the module that multiplies scores
    queries: list[Queries]  # where there is no such number

    @property
    def mult(self) -> float | None:
        """Factor set by `scale_scores`, or None."""
        return vars(self.module).get(MARK)


def scale_scores(model: nn.Module, mult: float) -> None:
    """Multiply the attention scores of a model by `mult`. In muP this is 1 / sqrt(head size / head size of the base).

    The factor acts in the forward pass: on the number that multiplies scores, or else, by a hook, on the queries.
    Call this once. Raise ValueError if attention is scaled already, if there is none, or if it cannot be scaled.
    """
    found = scalable_attentions(model)
    if any(attention.mult is not None for attention in found):
        raise ValueError("scale_scores has already scaled the attention of this model: build the model again")
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


def scale_queries(queries: Queries, mult: float, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Multiply the queries in the output of a projection. This is a forward hook."""
    scaled, others = queries.split(output)
    return torch.cat([scaled * mult, others], dim=-2).flatten(-3)


@torch.no_grad()
def aligned_score(model: nn.Module, run: Callable[[], object]) -> float | None:
    """Return the mean score of a position with itself while `run` runs `model`, if keys were equal to queries.

    Return None if there is no attention whose queries are the output of a module.
    """
    scores: list[float] = []

    def note(queries: Queries, scale: float, module: nn.Module, inputs: object, output: Tensor) -> None:
        parts, _ = queries.split(output)
        scores.append(scale * parts.float().square().sum(dim=(-1, -2, -3)).mean().item())

    hooks = []
    for attention in attentions_in(model).values():
        for queries in queries_of(attention.module)[:1]:
            scale = score_scale(attention) / n_heads(attention.module)
            hooks.append(
                queries.projection.register_forward_hook(
                    partial(note, queries._replace(projection=None), scale)
                )
            )
    if not hooks:
        return None
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(scores) / len(scores) if scores else None


def score_scale(attention: ScalableAttention) -> float:
    """Return the factor of products of keys with scaled queries.

    Where a hook scales queries, a product of two queries has the factor twice, so one of them is divided out.
    """
    module: Any = attention.module
    if attention.attribute is not None:
        return float(getattr(module, attention.attribute))
    unscaled = type(module).__name__ == "GPTNeoSelfAttention"
    own = 1.0 if unscaled else head_size(module) ** -0.5
    return own / (attention.mult or 1.0)


def head_size(attention: Any) -> int:
    """Return the dimension of a head of an attention module of transformers."""
    names = [name for name in ("head_dim", "attention_head_size") if hasattr(attention, name)]
    return int(getattr(attention, names[0])) if names else attention.split_size // attention.n_head


def n_heads(attention: Any) -> int:
    """Return how many heads of queries an attention module of transformers has."""
    names = [n for n in ("num_heads", "num_attention_heads", "n_heads", "n_head") if hasattr(attention, n)]
    return int(getattr(attention, names[0]) if names else attention.config.num_attention_heads)


def scalable_attentions(model: nn.Module) -> list[ScalableAttention]:
    """Return the attention modules of a model. Raise ValueError if there is none, or for one that cannot be scaled."""
    found = attentions_in(model)
    for name, module in model.named_modules():
        is_attention = "attention" in type(module).__name__.lower() and any(True for _ in module.parameters())
        if is_attention and not any(is_within(name, other) or is_within(other, name) for other in found):
            raise ValueError(
                f"the scores of {name or 'the model'}, a {type(module).__name__}, cannot be scaled: give it a number "
                "`scaling` that it multiplies scores by, or a linear map `q_proj` to its queries"
            )
    if not found:
        raise ValueError(f"this {type(model).__name__} has no attention whose scores can be scaled")
    return list(found.values())


def attentions_in(model: nn.Module) -> dict[str, ScalableAttention]:
    """Return the attention modules of a model that can be scaled, by name."""
    known = ((name, attention_of(module)) for name, module in model.named_modules())
    return {name: attention for name, attention in known if attention is not None}


def is_within(inner: str, outer: str) -> bool:
    """Return True if the module named `inner` is the one named `outer` or lies in it."""
    return outer == "" or inner == outer or inner.startswith(f"{outer}.")


def attention_of(module: nn.Module) -> ScalableAttention | None:
    """Return a module as attention that can be scaled, or None if it is not known as such."""
    kind = type(module).__name__
    attribute = ATTRIBUTES.get(kind, "scaling")
    if isinstance(vars(module).get(attribute), float):
        return ScalableAttention(module, attribute, [])
    if type(module) in (nn.MultiheadAttention, ScaledMultiheadAttention):
        return ScalableAttention(module, None, [])
    queries = queries_of(module) if "attention" in kind.lower() else []
    return ScalableAttention(module, None, queries) if queries else None


def queries_of(attention: nn.Module) -> list[Queries]:
    """Return the projections to queries of an attention module of transformers; empty if none is known."""
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
    """Return True if a projection has three outputs for each input: queries, keys and values of all heads."""
    return sorted(projection.get_parameter("weight").shape)[1] == 3 * min(
        projection.get_parameter("weight").shape
    )


def in_groups(attention: Any, projection: nn.Module) -> Queries:
    """Return where queries lie in a projection that is ordered by heads, as in GPT-NeoX, BLOOM and Falcon."""
    n_heads = attention.num_heads if hasattr(attention, "num_heads") else attention.config.num_attention_heads
    if getattr(attention, "new_decoder_architecture", False):
        n_groups = attention.num_kv_heads
        return Queries(projection, n_groups, n_heads // n_groups, n_heads // n_groups + 2)
    if getattr(attention, "multi_query", False):
        return Queries(projection, 1, n_heads, n_heads + 2)
    return Queries(projection, n_heads, 1, 3)


def keep_factors(model: nn.Module) -> None:
    """Make the methods of transformers that would lose muP's factors raise ValueError."""
    for module in model.modules():
        for method in LOSES_FACTORS:
            if hasattr(type(module), method):
                setattr(module, method, partial(refuse, method))


def refuse(method: str, *args: object, **kwargs: object) -> None:
    """Raise ValueError in place of a method of transformers."""
    raise ValueError(
        f"{method} would lose the factors that muP gives this model: save its state_dict() and build the model again, "
        "or change the vocabulary before make_readouts"
    )
