"""One layer of the transformer: attention, then a feed-forward block, each added to the residual stream.

Shape suffixes:  B batch  T position  D model dim  F feed-forward width
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from model.context import Context, Layer
from model.init import linear
from model.model_params import ModelParams
from model.transformer.attention import Attention

activations: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "silu": F.silu,
}


class TransformerEncoderLayer(Layer):
    """Equals torch.nn.TransformerEncoderLayer under a causal mask, and is meant to be edited."""

    applies_head_positions = True

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.model_params = model_params
        D, bias = model_params.dim, model_params.bias
        width = model_params.dim_ff or 4 * D
        self.norm1 = nn.LayerNorm(D, bias=bias)
        self.attention = Attention(model_params, dropout)
        self.dropout_sa = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(D, bias=bias)
        self.linear1 = linear(D, width, model_params)
        self.activation = activations[model_params.activation]
        self.linear2 = linear(width, D, model_params, into_stream=True)
        self.dropout_ff = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        if self.model_params.norm_position == "pre":
            x_BTD = x_BTD + self._sa_block(self.norm1(x_BTD), ctx)
            x_BTD = x_BTD + self._ff_block(self.norm2(x_BTD), ctx)
        else:
            x_BTD = self.norm1(x_BTD + self._sa_block(x_BTD, ctx))
            x_BTD = self.norm2(x_BTD + self._ff_block(x_BTD, ctx))
        return x_BTD

    def _sa_block(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        x = ctx.tap("attn_out", self.attention(x_BTD, ctx))
        return self.dropout_sa(x)

    def _ff_block(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        x_BTF = ctx.tap("mlp_post", self.activation(self.linear1(x_BTD)))
        x = ctx.tap("mlp_out", self.linear2(x_BTF))
        return self.dropout_ff(x)
