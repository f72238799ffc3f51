"""Initial weights: linear maps that keep activations of a similar size at any width and depth, and logits near 0.

`init` also names those of other projects, which are meant for the standard parametrization.

Measured on characters of speeches (widths 64 to 256, 4 layers, 150 to 400 steps). Pre-norm layers learn fastest
from a deviation of half of 1 / sqrt(n_in), which is GPT-2's 0.02 at its width of 768. Post-norm layers learn
fastest from 1 / sqrt(n_in), and hardly at all from 0.02.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from model.model_params import ModelParams
from model.transformer.lora import LoRALinear
from model.transformer.scaling import Readout, base_dim, base_layers, width_mult  # muP

FIXED_STDS = {"gpt2": 0.02, "trunc_normal": 0.02}  # deviations that do not depend on the width
# Values of `init`, with the function that draws a matrix. None: normal numbers, with the deviation of `weight_std`.
# Where there is a function, embeddings and unembedding begin as with "small".
initial_weights: dict[str, Callable[[Tensor], object] | None] = {
    **dict.fromkeys(("small", "unit", *FIXED_STDS)),
    "xavier": nn.init.xavier_uniform_,
    "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
}
LOGIT_STD = 0.2  # at the start: the first loss is then within 2 % of log(vocabulary)


def linear(
    n_in: int,
    n_out: int | Sequence[int],
    model_params: ModelParams,
    bias: bool | None = None,
    into_stream: bool = False,
) -> nn.Linear:
    """Return an nn.Linear of a layer, with bias 0. Set `into_stream` if its output is added to the residual stream.

    Several numbers of outputs stand for several maps of the same input, side by side. `bias` is the params' field for
    this part, such as bias_qkv. With lora_rank the result is a LoRALinear.
    """
    sizes = [n_out] if isinstance(n_out, int) else n_out
    rank, has_bias = model_params.lora_rank, model_params.has_bias(bias)
    layer = LoRALinear(n_in, sum(sizes), has_bias, rank) if rank else nn.Linear(n_in, sum(sizes), has_bias)
    draw_weights(layer.weight, model_params, into_stream, sizes)
    if into_stream and model_params.out_zero_init:
        nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def draw_weights(
    weight: Tensor, model_params: ModelParams, into_stream: bool = False, sizes: Sequence[int] = ()
) -> None:
    """Draw the initial weights of a map [outputs, inputs]. `sizes` are the numbers of outputs of maps side by side."""
    if (draw := initial_weights[model_params.init]) is None:
        draw_normal(weight, weight_std(weight.shape[1], model_params, into_stream), model_params)
        return
    for part in weight.split(sizes or [len(weight)]):
        draw(part)


def draw_normal(weight: Tensor, std: float, model_params: ModelParams) -> None:
    """Draw normal numbers; with init="trunc_normal" again if they are beyond two deviations, as in BERT."""
    if model_params.init == "trunc_normal":
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        nn.init.normal_(weight, std=std)


def weight_std(n_in: int, model_params: ModelParams, into_stream: bool = False) -> float:
    """Return the standard deviation of initial weights.

    It is smaller by sqrt(2 * depth) for maps into the residual stream, so that their sum keeps its size (as in GPT-2).
    """
    p = model_params
    if p.init == "unit":
        return 1 / math.sqrt(n_in)
    if p.init == "trunc_normal":
        return FIXED_STDS[p.init]
    n_added = 2 * base_layers(p) if into_stream else 1  # muP: CompleteP divides in forward
    if p.init in FIXED_STDS:
        return FIXED_STDS[p.init] / math.sqrt(n_added)
    gain = 1.0 if p.norm_position == "post" else 0.5
    return gain / math.sqrt(n_in * n_added)


def embedding(n_rows: int, model_params: ModelParams, width: int | None = None) -> nn.Embedding:
    """Return an nn.Embedding whose rows start as small as those of `readout`, so that the two can be tied.

    `width` is the length of a row, by default dim.
    """
    table = nn.Embedding(n_rows, width or model_params.dim)
    draw_normal(table.weight, embedding_std(model_params), model_params)
    return table


def readout(model_params: ModelParams, n_tokens: int) -> Readout:
    """Return the unembedding, from the normalized stream to logits that all start near 0. Its bias starts at 0."""
    p = model_params
    layer = Readout(p.dim, n_tokens, bias=p.readout_bias, mult=p.mup_output_mult / width_mult(p))  # muP
    draw_normal(layer.weight, readout_std(p), p)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if p.readout_zero_init:  # muP
        nn.init.zeros_(layer.weight)  # muP
    return layer


class NarrowMap(nn.Module):
    """A map inside a layer from the stream to a fixed size, such as one number for each head."""

    def __init__(self, n_out: int, model_params: ModelParams, bias: bool = True) -> None:
        super().__init__()
        p = model_params
        self.width_mult = width_mult(p)  # muP
        self.map: nn.Linear
        if p.lora_rank:
            self.map = linear(p.dim, n_out, p, bias)
            return
        self.map = Readout(p.dim, n_out, bias)  # muP
        draw_normal(self.map.weight, weight_std(base_dim(p), p), p)  # muP
        if bias:
            nn.init.zeros_(self.map.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.map(x_BTD if self.width_mult == 1 else x_BTD / self.width_mult)  # muP


def embedding_std(model_params: ModelParams) -> float:
    is_unit = model_params.init == "unit" and not model_params.tied_embeddings
    return 1.0 if is_unit else readout_std(model_params)


def readout_std(model_params: ModelParams) -> float:
    """Return the deviation of unembedding weights that gives logits a standard deviation of LOGIT_STD.

    This includes the logit of the input token itself.
    """
    dim = base_dim(model_params)  # muP
    if model_params.init == "unit":
        return 1 / math.sqrt(dim)
    if model_params.init in FIXED_STDS:
        return FIXED_STDS[model_params.init]
    std = LOGIT_STD / math.sqrt(dim)
    if model_params.tied_embeddings and model_params.norm_position == "post":
        # The stream is then a normalized copy of the token's embedding e, whose own logit is |e| * sqrt(dim).
        return min(std, 1 / dim)  # muP
    return std
