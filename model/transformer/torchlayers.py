"""Layers that torch ships, as layers of our stack: to compare with, not to edit.

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head
"""

import torch
from torch import Tensor, nn

from model.context import Context, Layer
from model.init import weight_std
from model.model_params import ModelParams
from model.transformer.transformerencoderlayer import activations


class TorchTransformer(Layer):
    """torch.nn.TransformerEncoderLayer, causal. Unlike ours it has a dropout inside the feed-forward block, too."""

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            model_params.dim,
            model_params.n_heads,
            model_params.dim_ff or 4 * model_params.dim,
            dropout,
            activations[model_params.activation],
            batch_first=True,
            norm_first=model_params.norm_position == "pre",
            bias=model_params.bias,
        )
        self.init_as_ours(model_params)

    def init_as_ours(self, model_params: ModelParams) -> None:
        attention = self.block.self_attn
        for weight in (attention.in_proj_weight, self.block.linear1.weight):
            nn.init.normal_(weight, std=weight_std(weight.shape[1], model_params))
        for weight in (attention.out_proj.weight, self.block.linear2.weight):
            nn.init.normal_(weight, std=weight_std(weight.shape[1], model_params, into_stream=True))
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
        nn.init.ones_(self.block.norm1.weight)
        nn.init.ones_(self.block.norm2.weight)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        T = x_BTD.shape[1]
        future_TS = torch.ones(T, T, dtype=torch.bool, device=x_BTD.device).triu(1)
        if ctx.wants("pattern"):
            ctx.tap("pattern", self.pattern(x_BTD, future_TS))
        return self.block(x_BTD, src_mask=future_TS, is_causal=True)

    def pattern(self, x_BTD: Tensor, future_TS: Tensor) -> Tensor:
        """The attention pattern before dropout, computed a second time: torch's layer keeps it to itself."""
        x_BTD = self.block.norm1(x_BTD) if self.block.norm_first else x_BTD
        attention = self.block.self_attn
        training = attention.training
        attention.eval()
        _, pattern_BHTS = attention(x_BTD, x_BTD, x_BTD, attn_mask=future_TS, average_attn_weights=False)
        attention.train(training)
        return pattern_BHTS


class TorchRNN(Layer):
    """One recurrent layer, without residual connection: n of them are torch's own stack of n layers."""

    kind: type[nn.LSTM] | type[nn.GRU]

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.rnn = self.kind(model_params.dim, model_params.dim, bias=model_params.bias, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        x_BTD, _ = self.rnn(x_BTD)
        return self.dropout(x_BTD)


class TorchLSTM(TorchRNN):
    kind = nn.LSTM


class TorchGRU(TorchRNN):
    kind = nn.GRU
