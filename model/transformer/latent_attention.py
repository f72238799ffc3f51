"""Multi-head latent attention (MLA): the cache holds one narrow vector of a token, from which keys and values are made.

    c = norm(W_down x)              the latent, which all heads share
    k_h, v_h = K_h c, V_h c
    score = (q_h k_h + q'_h k') / sqrt(K + A)        k' is one key with rotary positions, which all heads share

Source: DeepSeek-V2 (arXiv:2405.04434, section 2.1), also in DeepSeek-V3.

Shape suffixes:  B batch  T position  S position seen  D model dim  H head  R width of the latent
                 K dim of a head's keys and values  A dims of a head that carry rotary positions
"""

import torch
from torch import Tensor, nn

from model.context import Context, all_except, layer_kind
from model.model_params import ModelParams
from model.transformer.attention import Attention
from model.transformer.linear import linear
from model.transformer.mixers import has_place_in_attention, shares_heads, split_heads
from model.transformer.norms import make_norm
from model.transformer.transformerencoderlayer import TransformerEncoderLayer


def latent_width(model_params: ModelParams) -> int:
    """Return the width of the latent of keys and values."""
    return model_params.kv_rank or max(1, model_params.dim // 4)


class LatentAttention(Attention):
    """Attention whose keys and values are linear maps of a latent, and whose rotary positions have dims of their own.

    With positions="rotary" a head's queries and keys are longer by `rotary_frac` of its width. With other positions,
    these dims are missing.
    """

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__(model_params, dropout)
        p, H, K = model_params, model_params.n_heads, model_params.head_width
        self.n_turned = p.n_rotated if p.positions == "rotary" else 0
        self.rank = latent_width(p)
        del self.qkv  # the maps below replace it
        self.queries = map_to_queries(p, H * (K + self.n_turned))
        self.down = linear(p.dim, self.rank + self.n_turned, p, p.bias_qkv)
        self.kv_norm = make_norm(p, self.rank)
        self.up = linear(self.rank, [H * K, H * K], p, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        H, K, A = self.model_params.n_heads, self.model_params.head_width, self.n_turned
        plain_BHTK, turned_BHTA = ctx.tap("q", split_heads(self.queries(x_BTD), H)).split([K, A], dim=-1)
        q_BHTN = torch.cat([plain_BHTK, self.positions(turned_BHTA, ctx.start)], dim=-1)
        c_BTR, k_BTA = self.down(x_BTD).split([self.rank, A], dim=-1)
        c_BSR = ctx.with_past("latent", ctx.tap("latent", self.kv_norm(c_BTR)), dim=1)
        k_B1SA = ctx.with_past("k", self.positions(k_BTA[:, None], ctx.start), dim=2)
        k_BHSK, v_BHSK = (split_heads(x, H) for x in self.up(c_BSR).chunk(2, dim=-1))
        k_BHSK, v_BHSK = ctx.tap("k", k_BHSK), ctx.tap("v", v_BHSK)
        k_BHSN = torch.cat([k_BHSK, k_B1SA.expand(-1, H, -1, -1)], dim=-1)
        attend = self.attend_fused if self.may_fuse(ctx) else self.attend
        z_BHTK = ctx.tap("z", attend(q_BHTN, k_BHSN, v_BHSK, ctx))
        return self.out_of_heads(self.gate(z_BHTK, x_BTD), ctx)

    def state_size(self, T: int) -> int:
        """Return the size of the latents and shared keys of `T` tokens, or of those that a sliding window still shows."""
        window = self.model_params.sliding_window
        return (self.rank + self.n_turned) * (T if window is None else min(T, window - 1))

    def query_key_value(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        k_weight, v_weight = self.up.weight.chunk(2)
        return [self.queries[-1].get_parameter("weight")], [k_weight], [v_weight]


def map_to_queries(model_params: ModelParams, n_out: int) -> nn.Sequential:
    """Return the map from the stream to the queries of all heads; with `q_rank` through a narrow vector and a norm."""
    p = model_params
    if p.q_rank is None:
        return nn.Sequential(linear(p.dim, n_out, p, p.bias_qkv))
    down, norm = linear(p.dim, p.q_rank, p, p.bias_qkv), make_norm(p, p.q_rank)
    return nn.Sequential(down, norm, linear(p.q_rank, n_out, p, bias=False))


@layer_kind("mla")
class LatentAttentionLayer(TransformerEncoderLayer):
    """Our layer with multi-head latent attention (DeepSeek-V2): the cache holds one narrow vector of a token."""

    make_mixer = LatentAttention
    refuses = {
        "n_kv_heads": all_except(None),
        "qk_norm": all_except(False),
        "separate_heads": {True},
        "value_residual": {True},
        "value_embeddings": {True},
        "canon": has_place_in_attention,
        "share": shares_heads,
    }

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        p = model_params
        if p.parametrization != "standard":  # muP
            for name in ("kv_rank", "q_rank", "head_dim"):
                if (value := getattr(p, name)) is not None:
                    raise ValueError(
                        f"{name}={value} with layer_architecture='mla' is a width that does not grow, for which "
                        f"parametrization={p.parametrization!r} has no rule; use {name}=None"
                    )
        super().__init__(p, dropout)
