"""Mixture of experts in place of the feed-forward block: each token passes a few of many small blocks.

A router gives every expert a score for each token: the softmax of a linear map. The token passes the experts with the
highest scores, and their outputs are weighted by these scores, divided by their sum (Mixtral: Jiang et al. 2024,
arXiv:2401.04088). A single expert is weighted by its score itself, else the router would get no gradient (Switch
Transformers: Fedus et al. 2021, arXiv:2101.03961). Shared experts get every token (DeepSeekMoE: Dai et al. 2024,
arXiv:2401.06066). No token is dropped.

Shape suffixes:  B batch  T position  D model dim  N token: B * T  E expert  C expert chosen by a token
                 M pair of a token and a chosen expert: N * C  F width of an expert  S width of all shared experts
                 I input width  O output width
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.context import Context
from model.model_params import ModelParams
from model.transformer.gated import Activation, factor_of_gate
from model.transformer.grouped import grouped_linear
from model.transformer.linear import NarrowMap, draw_weights, linear

BALANCE_RATES = {"loss": 0.01, "bias": 0.001}  # Switch Transformers; DeepSeek-V3 (arXiv:2412.19437)


class Pairs(NamedTuple):
    """Pairs of a token and an expert that it chose, in the order of the experts."""

    expert_M: Tensor
    ends_E: Tensor  # number of pairs up to the last one of each expert


class Experts(nn.Module):
    """Experts and their router.

    With balance="loss" the layer adds the loss of Switch Transformers, which is `balance_rate` if all experts get as
    many tokens. With balance="bias" a bias is added to the scores only to choose experts, and `move_bias` changes it
    after each step (Wang et al. 2024, arXiv:2408.15664).
    """

    bias_E: Tensor | None

    def __init__(self, model_params: ModelParams, activation: Activation) -> None:
        super().__init__()
        self.model_params = p = model_params
        self.router = NarrowMap(p.n_experts, p, bias=p.router_bias)
        self.linear1 = ExpertLinear(p.dim, p.ff_width, p)
        self.linear_up = ExpertLinear(p.dim, p.ff_width, p) if p.gated else None
        self.factor = factor_of_gate(p)
        self.activation = activation
        self.linear2 = ExpertLinear(p.ff_width, p.dim, p, into_stream=True)
        self.shared = SharedExperts(p, activation) if p.n_shared_experts else None
        self.rate = 0.0 if p.balance is None else p.balance_rate or BALANCE_RATES[p.balance]
        self.register_buffer("bias_E", torch.zeros(p.n_experts) if p.balance == "bias" else None)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        p = self.model_params
        logits_BTE = self.router(x_BTD)
        dtype = torch.promote_types(logits_BTE.dtype, torch.float32)
        scores_NE = ctx.tap("router", logits_BTE.softmax(dim=-1, dtype=dtype)).flatten(0, 1)
        ranked_NE = scores_NE if self.bias_E is None else scores_NE + self.bias_E
        expert_NC = ranked_NE.topk(p.experts_per_token, dim=-1).indices
        weight_NC = scores_NE.gather(1, expert_NC)
        if p.experts_per_token > 1:
            weight_NC = weight_NC / weight_NC.sum(dim=-1, keepdim=True)
        if ctx.cache is None:
            self.count(expert_NC, scores_NE, ctx)
        y_ND = self.mixture(x_BTD.flatten(0, 1), expert_NC, weight_NC)
        y_BTD = y_ND.view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)

    def mixture(self, x_ND: Tensor, expert_NC: Tensor, weight_NC: Tensor) -> Tensor:
        """Return the weighted sum over the chosen experts of each token."""
        n_chosen = expert_NC.shape[1]
        order_M = expert_NC.flatten().argsort(stable=True)
        load_E = load_of(torch.ones_like(expert_NC), expert_NC, self.model_params.n_experts)
        ends_E = load_E.cumsum(0)
        if ends_E.is_cuda:  # all products of the layer and their gradients read it: wait for the GPU once
            ends_E = ends_E.cpu()
        pairs = Pairs(expert_NC.flatten()[order_M], ends_E)
        # Each pair gets a copy of its token, so that the gradients of the copies are added in a fixed order.
        x_MD = x_ND[:, None].expand(-1, n_chosen, -1).flatten(0, 1).index_select(0, order_M)
        x_MF = self.activation(self.linear1(x_MD, pairs))
        if self.linear_up is not None:
            x_MF = x_MF * self.factor(self.linear_up(x_MD, pairs))
        y_MD = self.linear2(x_MF, pairs).index_select(0, order_M.argsort())
        return (y_MD.unflatten(0, (-1, n_chosen)) * weight_NC[..., None].to(y_MD.dtype)).sum(dim=1)

    def count(self, expert_NC: Tensor, scores_NE: Tensor, ctx: Context) -> None:
        """Record how many tokens each expert gets, and add the loss that balances them. Padding does not count."""
        E = self.model_params.n_experts
        counted_N = scores_NE.new_ones(len(scores_NE))
        if ctx.counted_BT is not None:
            counted_N = ctx.counted_BT.flatten().to(counted_N)
        load_E = load_of(counted_N[:, None].expand_as(expert_NC), expert_NC, E)
        ctx.add_expert_load(load_E)
        if self.model_params.balance == "loss":
            share_E = load_E / load_E.sum().clamp(min=1)
            score_E = counted_N @ scores_NE / counted_N.sum().clamp(min=1)
            ctx.add_loss("balance", E * (share_E @ score_E), weight=self.rate)

    @torch.no_grad()
    def move_bias(self, load_E: Tensor) -> None:
        """Raise the biases of experts that got fewer tokens than the mean, and lower the others, by `rate`."""
        if self.bias_E is not None:
            self.bias_E += self.rate * (load_E.mean() - load_E).sign()

    @property
    def n_inactive(self) -> int:
        """Number of parameters that a token does not pass."""
        p, maps = self.model_params, (self.linear1, self.linear_up, self.linear2)
        of_all = sum(parameter.numel() for one in maps if one is not None for parameter in one.parameters())
        return of_all // p.n_experts * (p.n_experts - p.experts_per_token)


def load_of(counted_NC: Tensor, expert_NC: Tensor, n_experts: int) -> Tensor:
    """Return the sum of `counted_NC` over the pairs of each expert."""
    return counted_NC.new_zeros(n_experts).scatter_add(0, expert_NC.flatten(), counted_NC.flatten())


class ExpertLinear(nn.Module):
    """One linear map for each expert, with bias 0 at first."""

    def __init__(self, n_in: int, n_out: int, model_params: ModelParams, into_stream: bool = False) -> None:
        super().__init__()
        p, E = model_params, model_params.n_experts
        self.weight = nn.Parameter(torch.empty(E, n_out, n_in))
        for weight in self.weight:
            draw_weights(weight, p, into_stream)
        if into_stream and p.out_zero_init:
            nn.init.zeros_(self.weight)
        # The biases of all experts in one vector: it does not decay, as a matrix would.
        self.bias = nn.Parameter(torch.zeros(E * n_out)) if p.has_bias(p.bias_ff) else None

    def forward(self, x_MI: Tensor, pairs: Pairs) -> Tensor:
        y_MO = grouped_linear(x_MI, self.weight, pairs.ends_E)
        if self.bias is None:
            return y_MO
        bias_EO = self.bias.view(len(self.weight), -1).to(y_MO.dtype)
        return y_MO + bias_EO.index_select(0, pairs.expert_M)


class SharedExperts(nn.Module):
    """The experts that every token passes: one feed-forward block, as wide as all of them together."""

    def __init__(self, model_params: ModelParams, activation: Activation) -> None:
        super().__init__()
        p, width = model_params, model_params.n_shared_experts * model_params.ff_width
        self.linear1 = linear(p.dim, width, p, p.bias_ff)
        self.linear_up = linear(p.dim, width, p, p.bias_ff) if p.gated else None
        self.factor = factor_of_gate(p)
        self.activation = activation
        self.linear2 = linear(width, p.dim, p, p.bias_ff, into_stream=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTS = self.activation(self.linear1(x_BTD))
        if self.linear_up is not None:
            x_BTS = x_BTS * self.factor(self.linear_up(x_BTD))
        return self.linear2(x_BTS)


def n_active_params(model: nn.Module) -> int:
    """Return the number of parameters that a token passes, shared ones counted once."""
    inactive = sum(module.n_inactive for module in model.modules() if isinstance(module, Experts))
    return sum(parameter.numel() for parameter in model.parameters()) - inactive
