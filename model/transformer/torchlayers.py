"""torch's own layers as layers of our stack, for comparison.

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from model.context import Context, Layer, all_except, layer_kind
from model.model_params import ModelParams
from model.transformer.embeddings import acts_in_attention
from model.transformer.linear import draw_weights
from model.transformer.scaling import depth_mult, temperature, width_mult  # muP
from model.transformer.transformerencoderlayer import activations


@layer_kind("torch-transformer")
class TorchTransformer(Layer):
    """torch.nn.TransformerEncoderLayer, causal unless causal=False.

    Unlike our layer it also has a dropout inside the feed-forward block.
    """

    refuses = {
        "positions": acts_in_attention,
        "n_kv_heads": all_except(None),
        "head_dim": all_except(None),
        "sliding_window": all_except(None),
        "qk_norm": all_except(False),
        "norm_gain": {False},
        "out_zero_init": {True},
        "value_residual": {True},
        "value_embeddings": {True},
        "canon": all_except(None),
        "share": all_except(None),
        **dict.fromkeys(("attn_softcap", "attn_sink", "attn_gate"), all_except(None)),
        "separate_heads": {True},
        "mup_attn_mult": all_except(1.0),  # muP
        "dim_ff": {0},
        "gated": {True, "clamped"},
        "parallel_blocks": all_except(False),
        "norm": all_except("layernorm"),
        "norm_position": all_except("pre", "post"),
        "residual": all_except("plain"),
        **dict.fromkeys(("bias_qkv", "bias_out", "bias_ff", "bias_norm"), all_except(None)),
    }

    computes_past_again = True

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.check_mup(model_params)  # muP
        self.causal = model_params.causal
        self.block = nn.TransformerEncoderLayer(
            model_params.dim,
            model_params.n_heads,
            model_params.ff_width,
            dropout,
            activations[model_params.activation],
            batch_first=True,
            norm_first=model_params.norm_position == "pre",
            layer_norm_eps=model_params.norm_eps,
            bias=model_params.bias,
        )
        self.init_as_ours(model_params)

    def check_mup(self, model_params: ModelParams) -> None:  # muP
        """Raise ValueError for sizes that need a factor on scores or sums, which torch's layer does not have."""
        p = model_params
        if temperature(p) != 1:
            raise ValueError(
                f"parametrization={p.parametrization!r} with layer_architecture='torch-transformer' needs heads as wide "
                f"as in the base, as torch divides scores by sqrt(head_dim): scale n_heads={p.n_heads} with dim={p.dim}, "
                "and set mup_base_heads"
            )
        if depth_mult(p) != 1:
            raise ValueError(
                f"parametrization={p.parametrization!r} scales residual sums at n_layers={p.depth}, which "
                f"layer_architecture='torch-transformer' cannot do; use parametrization='mup'"
            )

    def init_as_ours(self, model_params: ModelParams) -> None:
        attention = self.block.self_attn
        draw_weights(attention.in_proj_weight, model_params, sizes=[model_params.dim] * 3)
        draw_weights(self.block.linear1.weight, model_params)
        for weight in (attention.out_proj.weight, self.block.linear2.weight):
            draw_weights(weight, model_params, into_stream=True)
        if model_params.query_zero_init:  # muP
            nn.init.zeros_(attention.in_proj_weight[: model_params.dim])  # muP
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
        nn.init.ones_(self.block.norm1.weight)
        nn.init.ones_(self.block.norm2.weight)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        if self.causal and ctx.padding_B is not None:  # a padding query would see only masked keys: NaN
            raise ValueError(
                "mask has padding at the left of rows, but torch-transformer supports it on the right only"
            )
        T = x_BTD.shape[1]
        x_BSD = ctx.with_past("x", x_BTD, dim=1)  # torch's layer cannot continue from a cache
        S = x_BSD.shape[1]
        future_SS = torch.ones(S, S, dtype=torch.bool, device=x_BTD.device).triu(1) if self.causal else None
        padding_BS = None if ctx.real_BT is None else ~ctx.real_BT
        if ctx.wants("pattern"):
            pattern_BHTS = self.pattern(x_BSD, future_SS, padding_BS)[:, :, S - T :]
            if ctx.tap("pattern", pattern_BHTS) is not pattern_BHTS:
                raise ValueError("the pattern of torch-transformer can be recorded, but not patched")
        out_BSD = self.block(
            x_BSD, src_mask=future_SS, src_key_padding_mask=padding_BS, is_causal=self.causal
        )
        return out_BSD[:, S - T :]

    def state_size(self, T: int) -> int:
        return T * self.block.self_attn.embed_dim

    def pattern(self, x_BSD: Tensor, future_SS: Tensor | None, padding_BS: Tensor | None) -> Tensor:
        """Return the attention pattern before dropout. torch's layer does not return it, so it is computed again."""
        x_BSD = self.block.norm1(x_BSD) if self.block.norm_first else x_BSD
        attention = self.block.self_attn
        training = attention.training
        attention.eval()
        _, pattern_BHSS = attention(
            x_BSD,
            x_BSD,
            x_BSD,
            key_padding_mask=padding_BS,
            attn_mask=future_SS,
            average_attn_weights=False,
        )
        attention.train(training)
        return pattern_BHSS


class TorchRNN(Layer):
    """Recurrent layer without residual connection. A stack of n such layers equals torch's own n-layer module."""

    kind: type[nn.LSTM] | type[nn.GRU]
    has_attention = False
    refuses = {"causal": {False}}

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        if depth_mult(model_params) != 1:  # muP
            raise ValueError(
                f"parametrization={model_params.parametrization!r} scales residual branches, which recurrent layers do "
                "not have; use parametrization='mup'"
            )
        self.rnn = self.kind(model_params.dim, model_params.dim, bias=model_params.bias, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        for name, parameter in self.rnn.named_parameters():
            if name.startswith("bias"):  # torch draws it from +- 1 / sqrt(dim)
                parameter.data.mul_(math.sqrt(width_mult(model_params)))  # muP

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        x_BTD, state = self.rnn(x_BTD, self.past(ctx))
        self.keep(state, ctx)
        return self.dropout(x_BTD)

    def state_size(self, T: int) -> int:
        return self.rnn.hidden_size * (2 if isinstance(self.rnn, nn.LSTM) else 1)

    def past(self, ctx: Context) -> Tensor | tuple[Tensor, Tensor] | None:
        """Return the state that torch's module takes, or None at the start."""
        raise NotImplementedError

    def keep(self, state: Any, ctx: Context) -> None:
        raise NotImplementedError


@layer_kind("torch-gru")
class TorchGRU(TorchRNN):
    """torch.nn.GRU, without a residual connection."""

    kind = nn.GRU

    def past(self, ctx: Context) -> Tensor | None:
        return recalled("h", ctx)

    def keep(self, state: Tensor, ctx: Context) -> None:
        ctx.keep("h", state.transpose(0, 1))


@layer_kind("torch-lstm")
class TorchLSTM(TorchRNN):
    """torch.nn.LSTM, without a residual connection."""

    kind = nn.LSTM

    def past(self, ctx: Context) -> tuple[Tensor, Tensor] | None:
        h, c = recalled("h", ctx), recalled("c", ctx)
        return None if h is None or c is None else (h, c)

    def keep(self, state: tuple[Tensor, Tensor], ctx: Context) -> None:
        h, c = state
        ctx.keep("h", h.transpose(0, 1))
        ctx.keep("c", c.transpose(0, 1))


def recalled(name: str, ctx: Context) -> Tensor | None:
    """Return a state in torch's layout, [1, B, D]; a cache has the batch first."""
    kept = ctx.recall(name)
    return None if kept is None else kept.transpose(0, 1).contiguous()
