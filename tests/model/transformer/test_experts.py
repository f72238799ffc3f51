"""Mixtures of experts equal a loop over tokens and the blocks of transformers; loads, balance and counts are right."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from model.context import Context
from model.lm import LM, n_params
from model.model_params import ModelParams
from model.mup.parametrization import Role
from model.shapes import roles_of, size_of
from model.transformer.experts import Experts, n_active_params
from tests.model.hf.hf_models import all_in_float64
from tests.model.tiny import (
    CharTokenizer,
    batch_of,
    default_dtype,
    perturb,
    random_ids,
    tiny_lm,
    tiny_params,
)
from train.flops import flops_per_row

MOE = {"n_experts": 4, "dim_ff": 24}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def experts_of(activation=F.silu, **fields) -> Experts:
    """Experts in float64 with all parameters and biases perturbed."""
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        experts = Experts(tiny_params(**MOE | fields), activation)
    perturb(experts)
    if experts.bias_E is not None:
        experts.bias_E += 0.3 * torch.randn(len(experts.bias_E), dtype=torch.float64)
    return experts


def experts_by_hand(experts: Experts, x_TD: Tensor) -> Tensor:
    """One token after another, and one of its experts after another."""
    p = experts.model_params
    shrunk = 1.0 if p.parametrization == "standard" else p.mup_base_dim / p.dim

    def map_of(name: str, e: int, x_D: Tensor) -> Tensor:
        linear = getattr(experts, name)
        y_D = linear.weight[e] @ x_D
        return y_D if linear.bias is None else y_D + linear.bias.chunk(p.n_experts)[e]

    def gated(h_F: Tensor, up_F: Tensor) -> Tensor:
        return h_F * (up_F.clamp(-7, 7) + 1 if p.gated == "clamped" else up_F)

    def expert(e: int, x_D: Tensor) -> Tensor:
        h_F = experts.activation(map_of("linear1", e, x_D))
        return map_of("linear2", e, gated(h_F, map_of("linear_up", e, x_D)) if p.gated else h_F)

    def shared(x_D: Tensor) -> Tensor:
        h_F = experts.activation(experts.shared.linear1(x_D))
        return experts.shared.linear2(gated(h_F, experts.shared.linear_up(x_D)) if p.gated else h_F)

    rows = []
    for x_D in x_TD:
        scores = experts.router.map(x_D * shrunk).exp()
        scores = scores / scores.sum()
        ranks = scores if experts.bias_E is None else scores + experts.bias_E
        chosen = sorted(range(p.n_experts), key=lambda e: -ranks[e].item())[: p.experts_per_token]
        total = sum(scores[e] for e in chosen) if len(chosen) > 1 else 1.0
        row = sum(scores[e] / total * expert(e, x_D) for e in chosen)
        rows.append(row + shared(x_D) if p.n_shared_experts else row)
    return torch.stack(rows)


@pytest.mark.parametrize(
    "fields",
    [
        {"gated": True, "bias": False},
        {"experts_per_token": 1, "balance": None},
        {"experts_per_token": 3, "n_shared_experts": 2, "gated": True, "balance": "bias"},
        {"n_shared_experts": 1, "gated": "clamped", "router_bias": True},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_a_loop_over_tokens(fields):
    experts = experts_of(**fields)
    x_BTD = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    weights = [x_BTD, *experts.parameters()]
    found, expected = (
        [y, *torch.autograd.grad(y.square().sum(), weights)]
        for y in (
            experts(x_BTD, Context(random_ids(2, 7))),
            torch.stack([experts_by_hand(experts, x_TD) for x_TD in x_BTD]),
        )
    )
    assert_close(found, expected, **EXACT)


def test_gradients_of_experts_without_a_token_are_zero():
    experts = experts_of(experts_per_token=1, balance="bias")
    experts.bias_E.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    experts(torch.randn(2, 7, 16, dtype=torch.float64), Context(random_ids(2, 7))).sum().backward()
    gradient = experts.linear1.weight.grad.abs().amax(dim=(1, 2))
    assert gradient[1] > 0
    assert not gradient[[0, 2, 3]].any()


@pytest.mark.parametrize("C", [2, 3])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_equal_to_the_blocks_of_transformers(family, C):
    sizes = {"hidden_size": 16, "num_experts_per_tok": C}
    with all_in_float64():
        if family == "mixtral":
            block = MixtralSparseMoeBlock(MixtralConfig(**sizes, intermediate_size=24, num_local_experts=4))
        else:
            config = Qwen3MoeConfig(**sizes, moe_intermediate_size=24, num_experts=4, norm_topk_prob=True)
            block = Qwen3MoeSparseMoeBlock(config)
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
        experts, x_BTD = experts_of(experts_per_token=C, gated=True, bias=False), torch.randn(2, 7, 16)
        gate, up = block.experts.gate_up_proj.chunk(2, dim=1)
        with torch.no_grad():
            experts.router.map.weight.copy_(block.gate.weight)
            for name, weight in (("linear1", gate), ("linear_up", up), ("linear2", block.experts.down_proj)):
                getattr(experts, name).weight.copy_(weight)
            ctx = Context(random_ids(2, 7), layer=0)
            assert_close(experts(x_BTD, ctx), block(x_BTD), **EXACT)
            # Theirs adds up over the chosen experts, where ours is a mean.
            logits, *_ = block.gate(x_BTD.flatten(0, 1))
            balance = load_balancing_loss_func((logits,), 4, C) / C
        assert_close(ctx.losses["balance"], 0.01 * balance, **EXACT)


def test_the_loss_of_balance_is_its_rate_at_balance_and_larger_otherwise():
    experts = experts_of(balance_rate=0.5, experts_per_token=1)
    with torch.no_grad():
        experts.router.map.weight.copy_(50 * torch.eye(4, 16))
    losses = []
    for ids in ([0, 1, 2, 3], [0, 0, 0, 0]):
        ctx = Context(torch.tensor([ids]), layer=0)
        experts(torch.eye(16, dtype=torch.float64)[None, ids], ctx)
        losses.append(ctx.losses["balance"].item())
    assert losses == pytest.approx([0.5, 4 * 0.5])


def test_padding_counts_neither_as_load_nor_in_the_loss():
    lm = tiny_lm(**MOE)
    ids = random_ids(3, 10)
    short = batch_of(ids[:, :6])
    real = (torch.arange(10) < 6).expand(3, 10)
    found = []
    for batch in (short, {"x_indices": ids, "mask": real, "target_mask": real}):
        losses, _ = lm.get_losses(batch, None)
        found.append((losses["balance"], lm.added_losses.expert_loads))
    # The sixth token predicts nothing. In the longer rows it is an input, and does not count either.
    assert_close(found[0], found[1])
    assert {i: load.sum().item() for i, load in found[1][1].items()} == {0: 3 * 5 * 2, 1: 3 * 5 * 2}


def test_biases_move_by_the_sign_of_the_load_error():
    experts = experts_of(balance="bias", balance_rate=0.25)
    before = experts.bias_E.clone()
    experts.move_bias(torch.tensor([2.0, 7.0, 4.0, 3.0], dtype=torch.float64))
    assert_close(experts.bias_E - before, torch.tensor([0.25, -0.25, 0, 0.25], dtype=torch.float64))
    assert "bias_E" in experts.state_dict()
    assert "bias_E" not in experts_of().state_dict()


def test_scores_and_not_biases_weigh_the_experts():
    biased, plain = experts_of(balance="bias"), experts_of(balance=None)
    plain.load_state_dict({k: v for k, v in biased.state_dict().items() if k != "bias_E"})
    x_BTD, ctx = torch.randn(2, 7, 16, dtype=torch.float64), Context(random_ids(2, 7))
    biased.bias_E.fill_(5.0)  # the same for all: the choice stays as it is
    assert_close(biased(x_BTD, ctx), plain(x_BTD, Context(ctx.ids_BT)))


def test_dense_layers_and_mixtures_take_turns():
    lm = tiny_lm(n_layers=4, n_experts=(0, 4), dim_ff=(40, 24), experts_per_token=(1, 3))
    assert [hasattr(layer, "experts") for layer in lm.decoder.layers] == [False, True] * 2
    assert lm.decoder.layers[0].linear1.weight.shape == (40, 16)
    assert lm.decoder.layers[1].experts.linear1.weight.shape == (4, 24, 16)
    lm.get_losses(batch_of(random_ids(2, 9)), None)
    assert {i: load.sum().item() for i, load in lm.added_losses.expert_loads.items()} == {1: 48, 3: 48}


def test_a_copy_of_one_dense_block_as_every_expert_is_the_dense_block():
    dense = tiny_lm(n_layers=1, dim_ff=24, gated=True)
    mixed = tiny_lm(n_layers=1, gated=True, **MOE)
    mixed.load_state_dict(dense.state_dict(), strict=False)
    block, experts = dense.decoder.layers[0], mixed.decoder.layers[0].experts
    with torch.no_grad():
        for name in ("linear1", "linear_up", "linear2"):
            ours, theirs = getattr(experts, name), getattr(block, name)
            ours.weight.copy_(theirs.weight.expand_as(ours.weight))
            ours.bias.copy_(theirs.bias.repeat(4))
    assert_close(mixed(random_ids(2, 9)), dense(random_ids(2, 9)))


def test_only_active_experts_count_as_flops_and_active_parameters():
    D, F_, T, E, C, L, V = 16, 24, 11, 8, 3, 2, 30
    fields = {"dim_ff": F_, "experts_per_token": C, "gated": True, "bias": False, "n_shared_experts": 1}
    fields |= {"balance": None, "positions": "none"}
    lm = LM(tiny_params(n_experts=E, **fields), CharTokenizer(V))
    layer = T * (4 * D * D + D * E + 3 * (C + 1) * D * F_) + 2 * T * T * D
    assert flops_per_row(lm, T) == 3 * 2 * (L * layer + T * D * V)
    active = L * (4 * D * D + D * E + 3 * (C + 1) * D * F_ + 2 * D) + V * D + D
    assert n_active_params(lm) == active
    assert n_params(lm) == active + L * 3 * (E - C) * D * F_
    for n_layers in (2, 300):  # the sizes of a deep model follow from those of fewer layers
        size = size_of(tiny_params(n_experts=(0, E), **fields | {"n_layers": n_layers}), V)
        assert size.n_params - size.n_active == n_layers // 2 * 3 * (E - C) * D * F_


def test_autocast_computes_experts_in_half_precision():
    lm = tiny_lm(dtype=torch.float32, **MOE)
    plain = lm(random_ids(2, 9))
    with torch.autocast("cpu", torch.bfloat16), lm.record("router", "mlp_out") as seen:
        half = lm(random_ids(2, 9))
        half.sum().backward()
    assert seen["layers.0.mlp_out"].dtype == torch.bfloat16
    assert seen["layers.0.router"].dtype == torch.float32
    assert lm.decoder.layers[0].experts.linear1.weight.grad.dtype == torch.float32
    assert_close(half.float(), plain, rtol=0.1, atol=0.1)


def test_the_router_can_be_patched():
    lm = tiny_lm(n_layers=1, **MOE)
    to_first = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64).expand(2, 9, 4)
    with lm.patch({"router": to_first}):
        lm.get_losses(batch_of(random_ids(2, 10)), None)
    assert lm.added_losses.expert_loads[0].tolist() == [18, 18, 0, 0]


def test_roles_of_muP_are_those_of_a_dense_block():
    params = ModelParams(
        dim=64, n_layers=1, n_heads=4, parametrization="mup", mup_base_dim=16, mup_base_heads=1, n_experts=4
    )
    found = roles_of(LM(params, CharTokenizer()))
    prefix = "decoder.layers.0.experts."
    assert found[f"{prefix}linear1.weight"] == found[f"{prefix}linear2.weight"] == Role("hidden", 4, 4)
    assert found[f"{prefix}linear1.bias"] == Role("vector", m_out=4)
    assert found[f"{prefix}router.map.weight"] == Role("readout", m_in=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_experts": 1, "experts_per_token": 1}, "n_experts=1 leaves the router no choice"),
        ({"n_experts": 2, "experts_per_token": 3}, "experts_per_token=3 is more than n_experts=2"),
        ({"n_experts": (0, 2), "experts_per_token": 3}, "layer 1: experts_per_token=3"),
        ({"n_experts": 2, "dim_ff": 0}, "n_experts=2 with dim_ff=0"),
        ({"n_experts": 2, "lora_rank": 4}, "n_experts=2 with lora_rank=4"),
        ({"n_experts": 2, "residual": "deepnet", "norm_position": "post"}, "use residual='admin'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_params(**fields)


def test_outputs_begin_at_zero_where_asked_to_and_are_small_otherwise():
    zero = LM(tiny_params(out_zero_init=True, n_shared_experts=1, **MOE), CharTokenizer()).decoder.layers[0]
    assert not zero.experts.linear2.weight.any()
    assert not zero.experts.shared.linear2.weight.any()
    wide = LM(tiny_params(n_experts=4, dim=64, n_layers=3), CharTokenizer()).decoder.layers[0].experts
    assert wide.linear1.weight.std().item() == pytest.approx(0.5 / 8, rel=0.02)
    assert wide.linear2.weight.std().item() == pytest.approx(0.5 / 16 / math.sqrt(6), rel=0.02)
