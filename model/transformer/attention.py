"""Self-attention, causal unless causal=False, written as in the paper (Vaswani et al. 2017, section 3.2).

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head  G head of keys and values
                 K dim of a head  N head of queries, keys or values  C dim of all of these together
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.context import Context
from model.model_params import ModelParams
from model.transformer.attention_parts import attention_gate, attention_sink, value_embedding, value_residual
from model.transformer.convolution import canon
from model.transformer.embeddings import on_scores, position_kinds
from model.transformer.linear import linear
from model.transformer.lora import merged_weight
from model.transformer.norms import head_norm
from model.transformer.scaling import temperature  # muP
from model.transformer.share import SharedHeads, map_of_heads, sharing_of


class Attention(nn.Module):
    """Multi-head attention. Each position mixes the values of itself and earlier ones, or of all with causal=False."""

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        self.model_params = p = model_params
        self.qkv = heads_of_stream(p)
        self.canon_b = canon("b", p, (p.n_heads + 2 * p.kv_heads) * p.head_width)
        self.q_norm, self.k_norm = head_norm(p, p.n_heads), head_norm(p, p.kv_heads)
        self.positions = position_kinds[p.positions].on_heads(p)
        self.on_scores = on_scores(p)
        self.sink = attention_sink(p)
        self.dropout = nn.Dropout(dropout)
        self.value_embedding = value_embedding(p)
        self.value_residual = value_residual(p)
        self.gate = attention_gate(p)
        self.temperature = temperature(p)  # muP
        self.out = map_of_heads(p, self.qkv)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        B, T, _ = x_BTD.shape
        H, G = self.model_params.n_heads, self.model_params.kv_heads
        qkv_BTC = self.canon_b(self.qkv(x_BTD), ctx)
        qkv_BNTK = qkv_BTC.view(B, T, H + 2 * G, self.model_params.head_width).transpose(1, 2)
        q_BHTK, k_BGTK, v_BGTK = qkv_BNTK.split([H, G, G], dim=1)
        q_BHTK = self.positions(ctx.tap("q", self.q_norm(q_BHTK)), ctx.start)
        k_BGTK = self.positions(ctx.tap("k", self.k_norm(k_BGTK)), ctx.start)
        v_BGTK = self.value_embedding(v_BGTK, ctx)
        v_BGTK = ctx.tap("v", self.value_residual(v_BGTK, ctx))
        k_BHSK = self.shared(ctx.with_past("k", k_BGTK, dim=2))
        v_BHSK = self.shared(ctx.with_past("v", v_BGTK, dim=2))
        attend = self.attend_fused if self.may_fuse(ctx) else self.attend
        z_BHTK = ctx.tap("z", attend(q_BHTK, k_BHSK, v_BHSK, ctx))
        return self.out_of_heads(self.gate(z_BHTK, x_BTD), ctx)

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        """Return softmax(q k / sqrt(K)) v over the visible positions. This code runs unless attention="fused"."""
        K = q_BHTK.shape[-1]
        scores_BHTS = (q_BHTK / (math.sqrt(K) * self.temperature)) @ k_BHSK.mT  # muP: 1 in the base
        # Edit scores_BHTS here, for example by self.model_params and ctx.attn_requests.
        scores_BHTS = ctx.tap("scores", self.visible(self.on_scores(scores_BHTS), ctx))
        pattern_BHTS = ctx.tap("pattern", self.sink(scores_BHTS.softmax(dim=-1), scores_BHTS))
        return self.dropout(pattern_BHTS) @ v_BHSK

    def attend_fused(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        """Compute the same as `attend` with torch's kernel, which does not store scores or pattern."""
        dropout = self.dropout.p if self.training else 0.0
        T, S = q_BHTK.shape[2], k_BHSK.shape[2]
        scale = 1 / (math.sqrt(q_BHTK.shape[3]) * self.temperature)  # muP
        if T in (1, S) and not len(self.on_scores) and ctx.real_BT is None:
            return F.scaled_dot_product_attention(
                q_BHTK,
                k_BHSK,
                v_BHSK,
                dropout_p=dropout,
                is_causal=T == S and self.model_params.causal,
                scale=scale,  # muP
            )
        no_scores = q_BHTK.new_zeros(1, q_BHTK.shape[1], T, S)
        mask = self.visible(self.on_scores(no_scores), ctx)
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, mask, dropout, scale=scale)  # muP

    def visible(self, scores_BHTS: Tensor, ctx: Context) -> Tensor:
        """Set scores to -inf at later positions (unless causal=False), and at padding if the query is a real token."""
        if self.model_params.causal:
            scores_BHTS = without_future(scores_BHTS)
        if ctx.real_BT is None:
            return scores_BHTS
        T = scores_BHTS.shape[2]
        # Padding queries stay unmasked: softmax over a fully masked row is NaN and would contaminate the gradients.
        hidden_BTS = ctx.real_BT[:, -T:, None] & ~ctx.real_BT[:, None]
        return scores_BHTS.masked_fill(hidden_BTS[:, None], -math.inf)

    def may_fuse(self, ctx: Context) -> bool:
        """Return False if scores or pattern are recorded or patched, or attn_requests is set: the kernel ignores all that."""
        if self.model_params.attention != "fused" or ctx.attn_requests is not None:
            return False
        return not (ctx.wants("scores") or ctx.wants("pattern"))

    def shared(self, x_BGSK: Tensor) -> Tensor:
        """Repeat each head of keys or values for the query heads that share it."""
        n = self.model_params.n_heads // x_BGSK.shape[1]
        return x_BGSK if n == 1 else x_BGSK.repeat_interleave(n, dim=1)

    def out_of_heads(self, z_BHTK: Tensor, ctx: Context) -> Tensor:
        """Return the output of attention: a linear map of all heads together, which is a sum over heads."""
        out_BTD = self.out(z_BHTK.transpose(1, 2).flatten(2))
        if not ctx.wants("head_out"):
            return out_BTD
        w_HKD = merged_weight(self.out).T.unflatten(0, (z_BHTK.shape[1], -1))
        heads_BHTD = z_BHTK @ w_HKD
        tapped_BHTD = ctx.tap("head_out", heads_BHTD)
        sum_BTD = tapped_BHTD.sum(dim=1) if self.out.bias is None else tapped_BHTD.sum(dim=1) + self.out.bias
        # Recording must not change the output by a bit: its value comes from the map, its gradient through the heads.
        unchanged = tapped_BHTD is heads_BHTD
        return out_BTD.detach() + (sum_BTD - sum_BTD.detach()) if unchanged else sum_BTD

    def state_size(self, T: int) -> int:
        """Return the size of the keys and values of `T` tokens, or of those that a sliding window still shows."""
        p = self.model_params
        n_visible = T if p.sliding_window is None else min(T, p.sliding_window - 1)
        return 2 * p.kv_heads * p.head_width * n_visible

    def query_key_value(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the weights of queries, keys and values, as views of the parameters."""
        if isinstance(self.qkv, SeparateHeads | SharedHeads):
            return self.qkv.weights()
        p = self.model_params
        n_rows = [n * p.head_width for n in (p.n_heads, p.kv_heads, p.kv_heads)]
        q_weight, k_weight, v_weight = self.qkv.weight.split(n_rows)
        return [q_weight], [k_weight], [v_weight]


@torch.no_grad()
def zero_queries(layers: nn.Module) -> None:  # muP
    """Set the weights of queries to 0, so that attention begins as a mean of all values."""
    for module in layers.modules():
        if isinstance(module, Attention):
            for weight in module.query_key_value()[0]:
                weight.zero_()


def without_future(scores_BHTS: Tensor) -> Tensor:
    """Set scores to -inf where a key comes after its query. A single query belongs to the last key: nothing is masked."""
    return scores_BHTS if scores_BHTS.shape[-2] == 1 else scores_BHTS + future(scores_BHTS)


def future(scores_BHTS: Tensor) -> Tensor:
    """Return a mask [T, S]: -inf where a key comes after the query, else 0. Last query and last key share a position."""
    T, S = scores_BHTS.shape[-2:]
    return scores_BHTS.new_full((T, S), -math.inf).triu(1 + S - T)


def fused_heads(model_params: ModelParams) -> nn.Linear:
    """Return this map as a single matrix."""
    p = model_params
    return linear(p.dim, [n * p.head_width for n in (p.n_heads, p.kv_heads, p.kv_heads)], p, p.bias_qkv)


class SeparateHeads(nn.Module):
    """The map of `fused_heads`, with separate parameters for the queries, keys and values of each head."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        p = model_params

        def head() -> nn.Linear:
            return linear(p.dim, p.head_width, p, p.bias_qkv)

        self.q = nn.ModuleList([head() for _ in range(p.n_heads)])
        self.k = nn.ModuleList([head() for _ in range(p.kv_heads)])
        self.v = nn.ModuleList([head() for _ in range(p.kv_heads)])

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.cat([head(x_BTD) for head in (*self.q, *self.k, *self.v)], dim=-1)

    def weights(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        q_weights, k_weights, v_weights = (
            [head.get_parameter("weight") for head in heads] for heads in (self.q, self.k, self.v)
        )
        return q_weights, k_weights, v_weights


def heads_of_stream(model_params: ModelParams) -> nn.Linear | SharedHeads | SeparateHeads:
    """Return the map from the stream to the queries of all heads, then their keys, then their values."""
    if sharing_of(model_params.share).of_heads:
        return SharedHeads(model_params)
    return SeparateHeads(model_params) if model_params.separate_heads else fused_heads(model_params)
