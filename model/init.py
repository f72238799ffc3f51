"""Initial weights: linear maps that keep the size of their input, and small logits at the start."""

import math

from torch import nn

from model.model_params import ModelParams

LOGIT_STD = 0.2  # at the start: the first loss is then within 2 % of log(vocabulary)


def linear(n_in: int, n_out: int, bias: bool, gain: float = 1.0) -> nn.Linear:
    """nn.Linear whose output has `gain` times the standard deviation of its input; its bias starts at 0."""
    layer = nn.Linear(n_in, n_out, bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(n_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def residual_gain(model_params: ModelParams) -> float:
    """For maps back into the residual stream: the sum of all 2 * n_layers of them stays of size 1 (as in GPT-2)."""
    return 1 / math.sqrt(2 * model_params.n_layers)


def embedding(n_rows: int, model_params: ModelParams) -> nn.Embedding:
    """nn.Embedding whose rows start as small as those of `readout`, so that the two can be tied."""
    table = nn.Embedding(n_rows, model_params.dim)
    nn.init.normal_(table.weight, std=readout_std(model_params))
    return table


def readout(model_params: ModelParams, n_tokens: int) -> nn.Linear:
    """nn.Linear from the normalised stream to logits that all start near 0."""
    layer = nn.Linear(model_params.dim, n_tokens, bias=False)
    nn.init.normal_(layer.weight, std=readout_std(model_params))
    return layer


def readout_std(model_params: ModelParams) -> float:
    """Gives logits of standard deviation LOGIT_STD, and makes no exception of the input token's own."""
    std = LOGIT_STD / math.sqrt(model_params.dim)
    if model_params.tied_embeddings and model_params.norm_position == "post":
        # The stream is then a normalised copy of the token's embedding e, whose own logit is |e| * sqrt(dim).
        return min(std, 1 / model_params.dim)
    return std
