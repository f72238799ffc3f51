"""Optional parts of attention: a cap of its scores, a sink, a gate, and what is added to its values.

Each is a small module of its own. Where a field is off, its function returns a module that changes nothing.

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head  G head of keys and values
                 K dim of a head  C dim of all heads of values together
"""

import torch
from torch import Tensor, nn

from model.context import Context
from model.model_params import ModelParams
from model.transformer.diff_attention import PairNorm, PatternDifference
from model.transformer.linear import NarrowMap, embedding, linear


class FirstInput(nn.Module):
    """Return the first argument: a part that is switched off."""

    def forward(self, x: Tensor, *others: object) -> Tensor:
        return x


class Softcap(nn.Module):
    """Keep numbers between -cap and cap: x -> cap * tanh(x / cap) (Gemma 2, arXiv:2408.00118)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return self.cap * (x / self.cap).tanh()


class Sink(nn.Module):
    """One more score in the softmax, which has no value: a head may attend to nothing.

    The score is 0 ("off-by-one", Miller 2023) or trained, one for each head, from 0 on ("learned", gpt-oss 2025).
    """

    sink_H: Tensor

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        sink_H = torch.zeros(model_params.n_heads)
        if model_params.attn_sink == "learned":
            self.sink_H = nn.Parameter(sink_H)
        else:
            self.register_buffer("sink_H", sink_H, persistent=False)

    def forward(self, pattern_BHTS: Tensor, scores_BHTS: Tensor) -> Tensor:
        """Return exp(scores) / (exp(sink) + sum of exp(scores)). `pattern_BHTS` is the softmax of the scores."""
        all_keys_BHT1 = scores_BHTS.logsumexp(dim=-1, keepdim=True)
        return pattern_BHTS * torch.sigmoid(all_keys_BHT1 - self.sink_H[:, None, None])


class HeadGate(nn.Module):
    """Multiply each head's output by a sigmoid of the layer's input (Qiu et al. 2025, arXiv:2505.06708)."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        self.gate = NarrowMap(model_params.n_heads, model_params)

    def forward(self, z_BHTK: Tensor, x_BTD: Tensor) -> Tensor:
        gate_BTH = torch.sigmoid(self.gate(x_BTD))
        return z_BHTK * gate_BTH.mT[..., None]


class ElementGate(nn.Module):
    """Multiply each number of each head's output by a sigmoid of the layer's input (Qiu et al. 2025)."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        p = model_params
        self.gate = linear(p.dim, p.n_heads * p.head_width, p, p.bias_qkv)

    def forward(self, z_BHTK: Tensor, x_BTD: Tensor) -> Tensor:
        gate_BTHK = torch.sigmoid(self.gate(x_BTD)).unflatten(-1, (z_BHTK.shape[1], -1))
        return z_BHTK * gate_BTHK.transpose(1, 2)


class ValueResidual(nn.Module):
    """Mix the values with those of the first layer: a v + b v1, with trained a and b (Zhou et al. 2024, arXiv:2410.17897)."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        is_first = model_params.layer_index == 0
        self.lambdas = None if is_first else nn.Parameter(torch.full((2,), 0.5))

    def forward(self, v_BGTK: Tensor, ctx: Context) -> Tensor:
        first_BGTK = ctx.shared.setdefault("first_values", v_BGTK)
        if self.lambdas is None:
            return v_BGTK
        own, first = self.lambdas
        return own * v_BGTK + first * first_BGTK


class ValueEmbedding(nn.Module):
    """Add a further embedding of each token to its values: v + e[token], with a table for each layer.

    From speed runs of nanoGPT (Jordan et al. 2024, modded-nanogpt), and in nanochat.
    """

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        p = model_params
        if p.n_tokens is None:
            raise ValueError(
                "value_embeddings=True needs the size of the vocabulary: params.at(i, n_tokens=...)"
            )
        self.table = embedding(p.n_tokens, p, p.kv_heads * p.head_width)

    def forward(self, v_BGTK: Tensor, ctx: Context) -> Tensor:
        e_BTC = self.table(ctx.ids_BT[:, ctx.start :])
        return v_BGTK + e_BTC.unflatten(-1, (v_BGTK.shape[1], -1)).transpose(1, 2)


def attention_sink(model_params: ModelParams) -> nn.Module:
    """Return what acts on the patterns, called with patterns and scores."""
    p = model_params
    sink = FirstInput() if p.attn_sink is None else Sink(p)
    return PatternDifference(p, sink) if p.diff_attention else sink


def attention_gate(model_params: ModelParams) -> nn.Module:
    """Return what acts on the outputs of heads, called with these and the layer's input."""
    p = model_params
    gates = {None: FirstInput, "head": lambda: HeadGate(p), "element": lambda: ElementGate(p)}
    gate = gates[p.attn_gate]()
    return PairNorm(p, gate) if p.diff_attention else gate


def value_embedding(model_params: ModelParams) -> nn.Module:
    return ValueEmbedding(model_params) if model_params.value_embeddings else FirstInput()


def value_residual(model_params: ModelParams) -> nn.Module:
    return ValueResidual(model_params) if model_params.value_residual else FirstInput()
