"""Attention patterns of one sequence by layer, and its tokens as readable text.

Shape suffixes:  B batch  H head  T position  S position attended to
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from model.generation.sampling import eval_mode
from model.inputs import Input, ids_of
from model.lm import LM


class Patterns(NamedTuple):
    """The attention patterns of one model on one sequence."""

    tokens: list[str]  # readable: invisible characters are escaped
    of_layer: dict[int, np.ndarray]  # [H, T, S] of each layer with patterns, by layer number
    n_layers: int  # all layers of the stack, with or without patterns
    causal: bool = True  # if True, a weight on a later token is an error
    # [H, S]: the norms of each head's values, by layer number; missing where a layer records none
    value_norms: Mapping[int, np.ndarray] = MappingProxyType({})
    model: str = ""  # name and architecture of the model

    @property
    def heads(self) -> dict[int, int]:
        """Number of heads by layer number."""
        return {layer: len(pattern_HTS) for layer, pattern_HTS in self.of_layer.items()}


@torch.no_grad()
def attention_patterns(lm: LM, sample: Input) -> Patterns:
    """Return the patterns of all heads for one sequence. Raise ValueError for a batch, or if no layer has patterns."""
    ids_BT = ids_of(sample, lm.tokenizer, lm.device)
    if len(ids_BT) != 1:
        raise ValueError(f"attention patterns need one sequence, but the input is a batch of {len(ids_BT)}")
    names = [name for name in lm.activation_names() if name.endswith((".pattern", ".v"))]
    if not any(name.endswith(".pattern") for name in names):
        kind, n = lm.model_params.layer_architecture, lm.model_params.n_layers
        raise ValueError(f"no layer has attention patterns: layer_architecture={kind!r}, n_layers={n!r}")
    with eval_mode(lm), lm.record(*names) as seen:
        lm(ids_BT)
    of_layer = {}
    patterns = {name: x for name, x in seen.items() if name.endswith(".pattern")}
    for name, pattern_BHTS in patterns.items():
        if pattern_BHTS.dim() != 4 or pattern_BHTS.shape[2:] != (ids_BT.shape[1],) * 2:
            raise ValueError(
                f"{name} has shape {tuple(pattern_BHTS.shape)}, expected (1, n_heads, {ids_BT.shape[1]}, {ids_BT.shape[1]})"
            )
        of_layer[int(name.split(".")[1])] = pattern_BHTS[0].float().cpu().numpy()
    tokens = visible_tokens(lm, ids_BT[0])
    norms = {
        layer: value_norms(seen[name], len(of_layer[layer]))
        for layer in of_layer
        if (name := f"layers.{layer}.v") in seen
    }
    p = lm.model_params
    kind = " and ".join(dict.fromkeys(p.values_of("layer_architecture")))
    model = ": ".join(filter(None, (lm.name, f"{kind}, {len(lm.decoder.passes())} layers of dim {p.dim}")))
    return Patterns(tokens, of_layer, len(lm.decoder.passes()), p.causal, norms, model)


def value_norms(v_BGSK: torch.Tensor, n_heads: int) -> np.ndarray:
    """Return the norms of the values of each head [H, S]. Heads that share values have the same."""
    norms_GS = v_BGSK[0].float().norm(dim=-1).cpu().numpy()
    return norms_GS.repeat(n_heads // len(norms_GS), axis=0)


def film_of(checkpoints: Iterable[tuple[int, LM]], sample: Input) -> Iterator[tuple[int, Patterns]]:
    """Yield (step, patterns) for each checkpoint.

    Raise ValueError if there are no checkpoints, or if their models differ in tokens, layers or heads.
    """
    first = None
    for step, lm in checkpoints:
        patterns = attention_patterns(lm, sample)
        first = first or patterns
        if patterns.heads != first.heads or patterns.tokens != first.tokens:
            raise ValueError(f"step {step} has other tokens, layers or heads than the first step")
        yield step, patterns
    if first is None:
        raise ValueError("there are no checkpoints to show")


def visible_tokens(lm: LM, ids_T: torch.Tensor) -> list[str]:
    """Return the tokens of one sequence as readable text."""
    return [visible(token) for token in lm.tokenizer.tokens(ids_T.tolist())]


def visible(token: str) -> str:
    """Return `token` with a dot for each space, and escapes for invisible and combining characters."""
    shown = "".join(shown_character(character) for character in token)
    alone = unicodedata.category(shown[0]).startswith("M") if shown else False
    return f"◌{shown}" if alone else shown  # a combining character needs a base character


def shown_character(character: str) -> str:
    if character == " ":
        return "·"
    return character if character.isprintable() else character.encode("unicode_escape").decode()
