"""Results of inspection as panels of a heat map, with layers, heads and tokens named.

Shape suffixes:  R row of a panel  C column of a panel  L layer  T position  V vocabulary
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from explore.inspection.patterns import visible_tokens
from explore.inspection.scores import as_table
from model.inputs import Input, ids_of
from model.lm import LM

HEADS = ["layer", "head"]  # index levels of a table with a row for each head
PART = re.compile(r"layers\.(\d+)(?:\.(\w+?)(?:\.(\d+))?)?$")  # of the stream: layers.0.head_out.3
PARTS_OF_LAYER = {"attn_bias": "attention bias", "attn_out": "attention", "mlp_out": "MLP", None: "layer"}


class HeatPanel(NamedTuple):
    """A table of numbers to draw as colors."""

    title: str
    rows: list[str]
    columns: list[str]
    values_RC: np.ndarray  # NaN: no value
    texts: list[list[str]] | None = None  # shown in the cells


def is_one_sided(panels: Iterable[HeatPanel], center: float) -> bool:
    """Return whether every panel has values, and none below the center: its half of the color scale is not needed."""
    return all(np.nanmin(panel.values_RC) >= center for panel in panels)


def heat_panels(result: pd.DataFrame | pd.Series | Tensor | np.ndarray) -> list[HeatPanel]:
    """Return a result of inspection as panels.

    A table by (layer, head) becomes a panel for each of its columns, with a row for each layer. Raise ValueError for a
    result without numbers, and TypeError for another type.
    """
    if isinstance(result, Tensor | np.ndarray):
        result = as_table(torch.as_tensor(result))
    if isinstance(result, pd.Series):
        return [panel_of_series(result)]
    if not isinstance(result, pd.DataFrame):
        raise TypeError(
            f"heatmap: the result must be a table, a Series or a tensor, not {type(result).__name__}"
        )
    tokens = result.attrs.get("tokens")
    table = result.select_dtypes("number")
    if not table.size:
        raise ValueError("heatmap: the result has no numbers")
    if list(table.index.names) == HEADS and set(map(type, table.columns)) == {str}:
        return [panel_of_series(table[name].rename(str(name))) for name in table]
    if table.index.name == "position":
        table = table.drop(columns="count", errors="ignore").T
    title = str(result.attrs.get("title", ""))
    return [HeatPanel(title, labels(table.index), labels(table.columns, tokens), table.to_numpy(dtype=float))]


def panel_of_series(series: pd.Series) -> HeatPanel:
    """Return a Series as a panel with a row for each layer. Attributions have a column for each part of a layer."""
    title = str(series.attrs.get("title", "" if series.name is None else series.name))
    if list(series.index.names) == HEADS:
        table = series.unstack("head")
        return HeatPanel(
            title, labels(table.index), [f"head {h}" for h in table.columns], table.to_numpy(dtype=float)
        )
    if any(PART.match(str(name)) for name in series.index):
        table = parts_table(series)
        return HeatPanel(title, list(table.index), list(table.columns), table.to_numpy(dtype=float))
    return HeatPanel(title, labels(series.index), [""], series.to_numpy(dtype=float)[:, None])


def parts_table(series: pd.Series) -> pd.DataFrame:
    """Return the parts of the residual stream by layer: "layers.0.head_out.3" is in row "layer 0", column "head 3"."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in series.items():
        if match := PART.match(str(name)):
            layer, kind, head = match.groups()
            column = f"head {head}" if head is not None else PARTS_OF_LAYER[kind]
            rows.setdefault(f"layer {layer}", {})[column] = value
        else:
            rows[str(name).replace("_", " ")] = {"all": value}
    table = pd.DataFrame.from_dict(rows, orient="index")
    heads = sorted((name for name in table if name.startswith("head ")), key=lambda name: int(name[5:]))
    others = [name for name in (*PARTS_OF_LAYER.values(), "all") if name in table]
    return table[[*heads, *others]]


def logit_lens_panel(logits_BLTV: Tensor, lm: LM, tokens: Sequence[str]) -> HeatPanel:
    """Return the most likely next token of each layer at each position, and its probability.

    Raise ValueError unless the logits are those of one sequence with these tokens.
    """
    B, L, T, _ = logits_BLTV.shape
    if B != 1 or len(tokens) != T:
        raise ValueError(
            f"heatmap: logits of shape {tuple(logits_BLTV.shape)} need one sequence, and a sample of {T} tokens"
        )
    probs_LT, ids_LT = logits_BLTV[0].softmax(dim=-1).max(dim=-1)
    texts = [visible_tokens(lm, ids_T) for ids_T in ids_LT]
    rows = [f"layer {layer}" for layer in range(L)]
    return HeatPanel(
        "probability of the most likely next token", rows, list(tokens), probs_LT.cpu().numpy(), texts
    )


def tokens_of(lm: LM, sample: Input) -> list[str]:
    """Return the tokens of one sequence as readable text."""
    [ids_T] = ids_of(sample, lm.tokenizer, lm.device)
    return visible_tokens(lm, ids_T)


def labels(index: pd.Index, tokens: Sequence[str] | None = None) -> list[str]:
    """Return readable names of rows or columns: "layer 0, head 3", tokens at positions, or the values themselves."""
    if index.name == "position" and tokens is not None:
        return list(tokens)
    names = [name if name in HEADS or name == "step" else "" for name in index.names]
    entries: Iterable[tuple] = index if isinstance(index, pd.MultiIndex) else ((value,) for value in index)
    return [
        ", ".join(f"{name} {value}".strip() for name, value in zip(names, entry, strict=True))
        for entry in entries
    ]
