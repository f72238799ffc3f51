"""Based: linear attention whose weights are the second-order Taylor series of exp (Arora et al. 2024, arXiv:2402.18668).

    weight_ts = 1 + a + a^2 / 2        a = q_t k_s / sqrt(K)

A sum over features of q and of k gives the same weights, so that one matrix represents the past. The weights are
positive: they are at least 1/2.

Shape suffixes:  B batch  T position  D model dim  H head  K dim of a head's queries and keys  M of its values
                 L one more than M  N feature
"""

import math

import torch
from torch import Tensor

from model.context import Context, layer_kind
from model.model_params import ModelParams
from model.transformer.decay import StateLayer, StateMixer
from model.transformer.linear import linear
from model.transformer.linear_attention import mix
from model.transformer.mixers import split_heads
from model.transformer.scaling import temperature  # muP


class TaylorAttention(StateMixer):
    """Linear attention with the features 1, x_i and x_i x_j, normalized like a softmax."""

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__(model_params)
        p, D = model_params, model_params.dim
        self.temperature = temperature(p)  # muP
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        qkv = self.qkv(x_BTD).split(self.sizes, dim=-1)
        q_BHTK, k_BHTK, v_BHTM = (split_heads(x, self.n_heads) for x in qkv)
        q_BHTK, k_BHTK, v_BHTM = ctx.tap("q", q_BHTK), ctx.tap("k", k_BHTK), ctx.tap("v", v_BHTM)
        q_BHTK = q_BHTK / (math.sqrt(q_BHTK.shape[-1]) * self.temperature)  # muP: 1 in the base
        # A column of ones beside the values adds up the weights themselves.
        v1_BHTL = torch.cat([v_BHTM, torch.ones_like(v_BHTM[..., :1])], dim=-1)
        no_decay = x_BTD.new_zeros(1, 1, x_BTD.shape[1])
        z1_BHTL = mix(taylor_features(q_BHTK), taylor_features(k_BHTK), v1_BHTL, no_decay, ctx)
        z_BHTM = ctx.tap("z", z1_BHTL[..., :-1] / z1_BHTL[..., -1:])
        return self.out(z_BHTM.transpose(1, 2).flatten(2))

    def state_size(self, T: int) -> int:
        keys, _, D = self.sizes
        K, M = keys // self.n_heads, D // self.n_heads
        return self.n_heads * (1 + K + K * (K + 1) // 2) * (M + 1)


def taylor_features(x_BHTK: Tensor) -> Tensor:
    """Return features whose products are 1 + a + a^2 / 2, where a is the product of two vectors.

    Each product of two different numbers occurs once, without the factor 1 / sqrt(2) that squares have.
    """
    K = x_BHTK.shape[-1]
    i, j = torch.triu_indices(K, K, device=x_BHTK.device)
    size_N = x_BHTK.new_ones(len(i)).masked_fill(i == j, math.sqrt(0.5))
    pairs_BHTN = x_BHTK[..., i] * x_BHTK[..., j] * size_N
    return torch.cat([torch.ones_like(x_BHTK[..., :1]), x_BHTK, pairs_BHTN], dim=-1)


@layer_kind("based")
class BasedLayer(StateLayer):
    """Our layer with Based's linear attention (arXiv:2402.18668): weights 1 + a + a^2 / 2 in place of exp(a)."""

    make_mixer = TaylorAttention
