"""Residual connections: Admin's omegas, DeepNet's weights, what a layer computes with them, and a network of one's own."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.context import Context
from model.lm import LM
from model.model_params import ModelParams
from model.transformer.residual import (
    Residual,
    ScaledResidual,
    as_buffer,
    as_module,
    as_parameter,
    omegas_by_residual,
    profile_omegas,
)
from tests.model.tiny import CharTokenizer, perturbed_lm, random_ids, tiny_lm, tiny_params


def post(**fields) -> ModelParams:
    return tiny_params(**{"norm_position": "post", "residual": "admin"} | fields)


def fresh_lm(params: ModelParams, seed: int = 0) -> LM:
    torch.manual_seed(seed)
    return LM(params, CharTokenizer())


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("n", "o_log_n", "o_1"),
    [(12, 2.017, 3.464), (36, 3.041, 6.0), (48, 3.405, 6.928), (96, 4.495, 9.798), (200, 6.075, 14.14)],
)
def test_omegas_are_those_of_admin_torch(n, o_log_n, o_1):
    assert as_module(n).omega.item() == pytest.approx(o_log_n, abs=6e-4)
    assert as_module(n, "O(1)").omega.item() == pytest.approx(o_1, abs=6e-3)
    assert as_module(n, "O(n)").omega.item() == 1


def test_a_plain_residual_is_one_addition():
    x, f = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    residual = Residual()
    with Ops() as ops:
        result = residual(x, f)
    assert ops.names == ["add"]
    assert torch.equal(result, x + f)
    assert not residual.state_dict()
    assert not any("residual" in name for name in fresh_lm(tiny_params()).state_dict())


class Deep(nn.Module):
    """A user's own network, as the seed's example has it."""

    def __init__(self, n: int, dim: int, **options) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(dim, dim) for _ in range(n)])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(n)])
        self.residuals = nn.ModuleList([as_module(n, **options) for _ in range(n)])

    def forward(self, x):
        for f, norm, residual in zip(self.maps, self.norms, self.residuals, strict=True):
            x = norm(residual(x, f(x)))
        return x


@pytest.mark.parametrize("options", [{}, {"as_parameter": True, "embed_dim": 8}], ids=["number", "vector"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_works_in_a_users_own_network(options, dtype):
    torch.manual_seed(0)
    net = Deep(20, 8, output_change_scale="O(1)", **options).to(dtype)
    x = torch.randn(5, 8, dtype=dtype)
    expected = x
    for f, norm in zip(net.maps, net.norms, strict=True):
        expected = norm(expected * net.residuals[0].omega + f(expected))
    y = net(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected)
    assert net.residuals[3].omega.flatten()[0].item() == pytest.approx(math.sqrt(20), rel=4e-3)
    y.square().sum().backward()
    trained = [name for name, _ in net.named_parameters() if "omega" in name]
    assert len(trained) == (20 if options else 0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    other = Deep(20, 8, **options).to(dtype)
    other.load_state_dict(copy.deepcopy(net).state_dict())
    assert torch.equal(other(x), y)


def test_under_autocast_a_trained_omega_leaves_the_precision_of_its_input():
    residual = as_module(6, as_parameter=True, embed_dim=4)
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    assert residual(x, x).dtype == torch.bfloat16
    assert as_module(6)(x, x).dtype == torch.bfloat16


def test_calls_of_admin_torch_work_as_they_are():
    assert as_module(12, "default").omega.item() == as_module(12, "O(logn)").omega.item()
    number = as_module(12, "O(1)", as_parameter=False, embed_dim=8)
    assert (number.omega.item(), list(number.parameters())) == (pytest.approx(math.sqrt(12)), [])
    network = nn.Linear(3, 3)
    as_buffer(network, "omega_a", 12, "default")
    as_parameter(network, "omega_b", 12, 3, "default")
    assert network.omega_b.tolist() == [network.omega_a.item()] * 3


def test_omegas_can_be_attached_to_any_module():
    network = nn.Linear(3, 3)
    as_buffer(network, "omega_a", 12, "O(1)")
    as_parameter(network, "omega_b", 12, 3)
    assert network.omega_a.item() == pytest.approx(math.sqrt(12))
    assert network.omega_b.tolist() == pytest.approx([2.017] * 3, abs=6e-4)
    assert dict(network.named_parameters()).keys() == {"weight", "bias", "omega_b"}


@pytest.mark.parametrize("arguments", [(0,), (3, "O(n log n)"), (3, "O(1)", True)], ids=str)
def test_invalid_omegas_are_refused(arguments):
    with pytest.raises(ValueError, match=r"O\(logn\)|as_parameter"):
        as_module(*arguments)


@pytest.mark.parametrize(
    ("fields", "n"),
    [
        ({"n_layers": 3}, 6),
        ({"n_layers": 3, "dim_ff": 0}, 3),
        ({"n_layers": 4, "layer_architecture": ("custom-transformer", "torch-gru")}, 4),
        ({"n_layers": 2, "layer_architecture": "gated-conv", "residual_trainable": True}, 4),
    ],
    ids=str,
)
def test_an_lm_counts_its_residual_connections(fields, n):
    found = omegas_by_residual(fresh_lm(post(**fields)))
    assert len(found) == n
    for omega in found.values():
        assert omega.flatten()[0].item() == pytest.approx(math.sqrt((n + 1) / math.log(n + 1) - 1))
        assert omega.shape == ((16,) if "residual_trainable" in fields else ())
    for omega in omegas_by_residual(fresh_lm(post(**fields, residual="deepnet"))).values():
        assert omega.flatten()[0].item() == pytest.approx(n**0.25)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_layer_is_the_norm_of_the_weighted_sum(trainable):
    lm = tiny_lm(norm_position="post", residual="admin", residual_trainable=trainable)
    layer, ids = lm.decoder.layers[0], random_ids(2, 7)
    ctx, x = Context(ids), lm.embed(ids)
    mid = layer.norm1.after(x * layer.residual_sa.omega + layer._sa_block(x, ctx))
    out = layer.norm2.after(mid * layer.residual_ff.omega + layer._ff_block(mid, ctx))
    torch.testing.assert_close(layer(x, Context(ids)), out, rtol=1e-12, atol=1e-12)
    plain = tiny_lm(norm_position="post")
    assert not torch.allclose(plain.decoder.layers[0](plain.embed(ids), Context(ids)), out)


def blocks(weight, n_heads, kv, head_dim):
    return weight.split([n_heads * head_dim, kv * head_dim, kv * head_dim])


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kv", [4, 2])
def test_deepnet_begins_with_xaviers_weights_smaller_where_values_pass(separate, kv):
    p = post(residual="deepnet", dim=128, n_heads=4, n_kv_heads=kv, n_layers=3, separate_heads=separate)
    lm, beta = fresh_lm(p), (8 * 3) ** -0.25
    layer = lm.decoder.layers[2]
    qkv = layer.mixer.qkv
    if separate:
        parts = [torch.cat([head.weight for head in heads]) for heads in (qkv.q, qkv.k, qkv.v)]
    else:
        parts = blocks(qkv.weight, 4, kv, 32)
    expected = [(w, gain) for w, gain in zip(parts, (1, 1, beta), strict=True)]
    expected += [(layer.mixer.out.weight, beta), (layer.linear1.weight, beta), (layer.linear2.weight, beta)]
    for weight, gain in expected:
        assert weight.std().item() == pytest.approx(gain * math.sqrt(2 / sum(weight.shape)), rel=0.03)
    assert lm.embed.tokens.weight.std().item() == pytest.approx(
        fresh_lm(post(dim=128, n_heads=4)).embed.tokens.weight.std().item(), rel=0.1
    )


def test_queries_stay_zero_under_deepnet():
    lm = fresh_lm(post(residual="deepnet", query_zero_init=True))
    q, k, _ = lm.decoder.layers[0].mixer.query_key_value()
    assert not q[0].any()
    assert k[0].all()


@pytest.mark.parametrize("kind", ["rezero", "layerscale"])
@pytest.mark.parametrize("norm_position", ["pre", "post", "none"])
def test_a_trained_gain_scales_what_a_block_adds(kind, norm_position):
    lm = tiny_lm(residual=kind, norm_position=norm_position)
    with torch.no_grad(), lm.record("resid_*", "attn_out", "mlp_out") as seen:
        lm(random_ids(2, 7))
    layer, ctx = lm.decoder.layers[1], Context(random_ids(2, 7))
    x = seen["layers.1.resid_pre"]
    added = layer.residual_sa.gain * layer._sa_block(layer.norm1.before(x), ctx)
    torch.testing.assert_close(seen["layers.1.attn_out"], added)
    mid = layer.norm1.after(x + added)
    torch.testing.assert_close(seen["layers.1.resid_mid"], mid)
    added = layer.residual_ff.gain * layer._ff_block(layer.norm2.before(mid), ctx)
    torch.testing.assert_close(seen["layers.1.resid_post"], layer.norm2.after(mid + added))


def test_layers_begin_as_the_identity_with_rezero_and_nearly_with_layerscale():
    zero = fresh_lm(tiny_params(residual="rezero"))
    with zero.record("embed", "resid_post") as seen:
        zero(random_ids(2, 7))
    assert all(torch.equal(x, seen["embed"]) for x in seen.values())
    for n_layers, gain in ((2, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)):
        residual = (
            fresh_lm(tiny_params(residual="layerscale", n_layers=n_layers)).decoder.layers[0].residual_ff
        )
        assert residual.gain.tolist() == pytest.approx([gain] * 16)
    under_autocast = ScaledResidual(torch.ones(3)).branch(torch.ones(2, 3, dtype=torch.bfloat16))
    assert under_autocast.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"norm_position": "pre"}, "norm_position='post'"),
        ({"norm_position": "none", "residual": "deepnet"}, "norm_position='post'"),
        ({"parametrization": "completep"}, "two rules for depth"),
        ({"residual": "layerscale", "parametrization": "completep"}, "two rules for depth"),
        ({"residual": "rezero", "out_zero_init": True}, "multiplies 0 by 0"),
        ({"layer_architecture": "torch-transformer"}, "does not work"),
        ({"parallel_blocks": True}, "parallel_blocks"),
    ],
    ids=str,
)
def test_residual_weights_need_an_architecture_with_residual_connections(fields, named):
    with pytest.raises(ValueError, match=named):
        fresh_lm(post(**fields))


@pytest.mark.parametrize("trainable", [False, True])
def test_a_profiled_omega_follows_from_the_variances_of_earlier_sub_layers(trainable):
    p = post(n_layers=3, residual_profile=True, residual_trainable=trainable)
    lm, batches = perturbed_lm(p), [random_ids(3, 9, seed=s) for s in (1, 2)]
    twin = copy.deepcopy(lm)
    profile_omegas(lm, batches)
    variances = []  # [batch][connection], with omegas as they come about
    for ids in batches:
        squared, of_batch, x = 1.0, [], twin.embed(ids)
        for layer in twin.decoder.layers:
            for block, norm in ((layer._sa_block, layer.norm1), (layer._ff_block, layer.norm2)):
                f = block(x, Context(ids))
                x = norm.after(x * math.sqrt(squared) + f)
                of_batch.append(f.var(correction=0).item())
                squared += of_batch[-1]
        variances.append(of_batch)
    means = torch.tensor(variances).mean(dim=0)
    expected = (1 + torch.cat([torch.zeros(1), means.cumsum(0)[:-1]])).sqrt()
    found = torch.stack([omega.flatten()[0] for omega in omegas_by_residual(lm).values()]).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found[0] == 1
    assert (found.diff() > 0).all()
    assert not any(module._forward_pre_hooks for module in lm.modules())


def test_residuals_in_bf16_are_close_to_single_precision():
    errors = {}
    for residual in ("plain", "admin"):
        lm = perturbed_lm(post(residual=residual, n_layers=6), dtype=torch.float32)
        ids = random_ids(4, 12)
        exact = lm(ids)
        errors[residual] = ((lm.bfloat16()(ids).float() - exact).std() / exact.std()).item()
    assert max(errors.values()) < 0.03, errors
