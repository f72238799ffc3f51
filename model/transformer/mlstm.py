"""mLSTM, the matrix memory of xLSTM: linear attention with an exponential input gate (Beck et al. 2024, arXiv:2405.04517).

    C_t = f_t C_(t-1) + i_t k_t v_t'        f_t = sigmoid(w_f x_t),  i_t = exp(w_i x_t)
    n_t = f_t n_(t-1) + i_t k_t
    y_t = q_t C_t / max(|q_t n_t|, 1)

The exponential would overflow. A stabilizer m_t keeps C_t e^(-m_t) and n_t e^(-m_t) in place of C_t and n_t:

    m_t = max(log f_t + m_(t-1), log i_t)

Shape suffixes:  B batch  T position  D model dim  H head  K dim of a head's queries and keys  M of its values
                 L one more than M
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from model.context import Context, layer_kind
from model.model_params import ModelParams
from model.transformer.decay import StateLayer, StateMixer
from model.transformer.linear import NarrowMap, linear
from model.transformer.linear_attention import at_least_float32, mix, without_autocast
from model.transformer.mixers import split_heads
from model.transformer.norms import make_norm
from model.transformer.scaling import temperature  # muP


class MLSTM(StateMixer):
    """mLSTM with a norm for each head and a sigmoid gate of the output, as in xLSTM-7B (arXiv:2503.13427).

    As there, no convolution precedes queries and keys. Forget gates begin between sigmoid(3) and sigmoid(6).
    """

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__(model_params)
        p, D = model_params, model_params.dim
        self.input_gate = NarrowMap(self.n_heads, p)
        self.forget_gate = NarrowMap(self.n_heads, p)
        self.forget_gate.map.bias.data.copy_(3 + 3 * torch.arange(self.n_heads) / max(self.n_heads - 1, 1))
        self.temperature = temperature(p)  # muP
        self.norm = make_norm(p, D // self.n_heads)
        self.gate = linear(D, D, p, p.bias_qkv)
        self.out = linear(D, D, p, p.bias_out, into_stream=True)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        qkv = self.qkv(x_BTD).split(self.sizes, dim=-1)
        q_BHTK, k_BHTK, v_BHTM, gate_BHTM = (split_heads(x, self.n_heads) for x in (*qkv, self.gate(x_BTD)))
        q_BHTK, k_BHTK, v_BHTM = ctx.tap("q", q_BHTK), ctx.tap("k", k_BHTK), ctx.tap("v", v_BHTM)
        k_BHTK = k_BHTK / (math.sqrt(k_BHTK.shape[-1]) * self.temperature)  # muP: 1 in the base
        with without_autocast(x_BTD):
            log_f_BHT = ctx.tap("log_decay", F.logsigmoid(at_least_float32(self.forget_gate(x_BTD).mT)))
            log_i_BHT = ctx.tap("log_input", at_least_float32(self.input_gate(x_BTD).mT))
            y_BHTM = self.remember(q_BHTK, k_BHTK, at_least_float32(v_BHTM), log_f_BHT, log_i_BHT, ctx)
        z_BHTM = ctx.tap("z", self.norm(y_BHTM.to(v_BHTM.dtype)) * gate_BHTM.sigmoid())
        return self.out(z_BHTM.transpose(1, 2).flatten(2))

    def remember(
        self, q: Tensor, k: Tensor, v_BHTM: Tensor, log_f_BHT: Tensor, log_i_BHT: Tensor, ctx: Context
    ) -> Tensor:
        """Return y_BHTM. A column of ones beside the values makes n_t a column of C_t."""
        before_BHT, m_BHT = stabilizers(log_f_BHT, log_i_BHT, ctx)
        v1_BHTL = torch.cat([v_BHTM, torch.ones_like(v_BHTM[..., :1])], dim=-1)
        i_BHT1 = (log_i_BHT - m_BHT).exp()[..., None]
        y1_BHTL = mix(q, k, i_BHT1 * v1_BHTL, log_f_BHT + before_BHT - m_BHT, ctx)
        return y1_BHTL[..., :-1] / torch.maximum(y1_BHTL[..., -1:].abs(), (-m_BHT).exp()[..., None])

    def state_size(self, T: int) -> int:
        keys, _, D = self.sizes
        return keys * (D // self.n_heads + 1) + self.n_heads


@torch.no_grad()
def stabilizers(log_f_BHT: Tensor, log_i_BHT: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
    """Return m_(t-1) and m_t for every position, from m = 0 before the first token.

    They cancel in y_t, so they get no gradient, and rounding in their sums does no harm.
    """
    past_BH = ctx.recall("stabilizer")
    past_BH1 = torch.zeros_like(log_f_BHT[..., :1]) if past_BH is None else past_BH[..., None]
    # m_t is the largest of past + F_t and log i_s + F_t - F_s, where F_t is the sum of log f up to t.
    sum_BHT = log_f_BHT.cumsum(dim=-1)
    m_BHT = sum_BHT + torch.maximum((log_i_BHT - sum_BHT).cummax(dim=-1).values, past_BH1)
    ctx.keep("stabilizer", m_BHT[..., -1])
    return torch.cat([past_BH1, m_BHT[..., :-1]], dim=-1), m_BHT


@layer_kind("mlstm")
class MLSTMLayer(StateLayer):
    """Our layer with the matrix memory of xLSTM (arXiv:2405.04517): decays, and an exponential input gate."""

    make_mixer = MLSTM
