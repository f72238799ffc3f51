"""Initial weights: maps that keep a sensible size at any width and depth, and logits near 0.

Measured on characters of speeches (widths 64 to 256, 4 layers, 150 to 400 steps): pre-norm layers learn faster from
half of 1 / sqrt(n_in), which is GPT-2's 0.02 at its width of 768, than from all of it or from 0.02 at every width;
post-norm layers learn faster from all of it, and hardly from 0.02.
"""

import math

from torch import nn

from model.lora import LoRALinear
from model.model_params import ModelParams
from model.scaling import Readout, base_dim, base_layers, width_mult  # muP

LOGIT_STD = 0.2  # at the start: the first loss is then within 2 % of log(vocabulary)


def linear(
    n_in: int, n_out: int, model_params: ModelParams, bias: bool | None = None, into_stream: bool = False
) -> nn.Linear:
    """nn.Linear inside a layer; into_stream if its output is added to the residual stream. Its bias starts at 0.

    `bias` is the params' own field for this part, such as bias_qkv. With lora_rank it is a LoRALinear.
    """
    rank, has_bias = model_params.lora_rank, model_params.has_bias(bias)
    layer = LoRALinear(n_in, n_out, has_bias, rank) if rank else nn.Linear(n_in, n_out, has_bias)
    nn.init.normal_(layer.weight, std=weight_std(n_in, model_params, into_stream))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def weight_std(n_in: int, model_params: ModelParams, into_stream: bool = False) -> float:
    """Smaller by sqrt(2 * depth) for what is added to the stream: the sum of all of it keeps its size (as in GPT-2)."""
    if model_params.init == "unit":
        return 1 / math.sqrt(n_in)
    gain = 1.0 if model_params.norm_position == "post" else 0.5
    n_added = 2 * base_layers(model_params) if into_stream else 1  # muP: CompleteP divides in forward
    return gain / math.sqrt(n_in * n_added)


def embedding(n_rows: int, model_params: ModelParams) -> nn.Embedding:
    """nn.Embedding whose rows start as small as those of `readout`, so that the two can be tied."""
    table = nn.Embedding(n_rows, model_params.dim)
    nn.init.normal_(table.weight, std=embedding_std(model_params))
    return table


def readout(model_params: ModelParams, n_tokens: int) -> Readout:
    """From the normalised stream to logits that all start near 0. Its bias starts at 0."""
    p = model_params
    layer = Readout(p.dim, n_tokens, bias=p.readout_bias, mult=p.mup_output_mult / width_mult(p))  # muP
    nn.init.normal_(layer.weight, std=readout_std(p))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if p.readout_zero_init:  # muP
        nn.init.zeros_(layer.weight)  # muP
    return layer


def head_readout(model_params: ModelParams) -> nn.Linear:  # muP
    """From 1 / width_mult of the stream to one number for each head, inside a layer."""
    p = model_params
    if p.lora_rank:
        return linear(p.dim, p.n_heads, p, bias=True)
    layer = Readout(p.dim, p.n_heads)  # muP
    nn.init.normal_(layer.weight, std=weight_std(base_dim(p), p))  # muP
    nn.init.zeros_(layer.bias)
    return layer


def embedding_std(model_params: ModelParams) -> float:
    is_unit = model_params.init == "unit" and not model_params.tied_embeddings
    return 1.0 if is_unit else readout_std(model_params)


def readout_std(model_params: ModelParams) -> float:
    """Gives logits of standard deviation LOGIT_STD, and makes no exception of the input token's own."""
    dim = base_dim(model_params)  # muP
    if model_params.init == "unit":
        return 1 / math.sqrt(dim)
    std = LOGIT_STD / math.sqrt(dim)
    if model_params.tied_embeddings and model_params.norm_position == "post":
        # The stream is then a normalised copy of the token's embedding e, whose own logit is |e| * sqrt(dim).
        return min(std, 1 / dim)  # muP
    return std
