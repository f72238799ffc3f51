"""Mixers that keep a matrix as their past: each equals the recurrence of its paper, step by step, in float64."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from model.context import Cache, Context
from model.shapes import MAX_BUILT_LAYERS, build_on_meta, size_of, state_size_of
from model.transformer import linear_attention
from model.transformer.based import TaylorAttention
from model.transformer.decay import GatedLinearAttention, Mamba2
from model.transformer.delta import DeltaNet, GatedDeltaNet
from model.transformer.linear_attention import MIN_LOG_DECAY, mix
from model.transformer.mlstm import MLSTM
from tests.model.tiny import KINDS, MIXERS, default_dtype, perturb, random_ids, tiny_lm, tiny_params
from train.flops import UNCOUNTED

EXACT = {"rtol": 1e-10, "atol": 1e-10}
GRADIENT = {"rtol": 1e-8, "atol": 1e-10}


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def convolved(weight_WC: Tensor, x_TC: Tensor) -> Tensor:
    """The last row meets the newest input, the row before it the one before, and so on."""
    W = len(weight_WC)
    rows = [sum(weight_WC[W - 1 - i] * x_TC[t - i] for i in range(min(W, t + 1))) for t in range(len(x_TC))]
    return torch.stack(rows)


def delta_by_hand(mixer: DeltaNet, x_TD: Tensor, negative_eigenvalues=False, **_) -> Tensor:
    """S_t = a_t (I - beta_t k_t k_t') S_(t-1) + beta_t k_t v_t': equation 10 of the paper on Gated DeltaNet."""
    H, (keys, _, D) = mixer.n_heads, mixer.sizes
    q_TC, k_TC, v_TD = silu(convolved(mixer.conv.weight_WC, mixer.qkv(x_TD))).split([keys, keys, D], dim=1)
    beta_TH = (2 if negative_eigenvalues else 1) * sigmoid(mixer.beta(x_TD))
    a_TH = torch.ones_like(beta_TH)
    if isinstance(mixer, GatedDeltaNet):
        a_TH = torch.exp(-torch.exp(mixer.decay.log_a_H) * softplus(mixer.decay.dt(x_TD)))
    out = []
    states = [x_TD.new_zeros(keys // H, D // H) for _ in range(H)]
    for t in range(len(x_TD)):
        heads = []
        for h in range(H):
            q, k, v = q_TC[t].chunk(H)[h], k_TC[t].chunk(H)[h], v_TD[t].chunk(H)[h]
            q, k = (x / torch.sqrt((x * x).sum() + 1e-6) for x in (q, k))
            erased = torch.eye(len(k), dtype=k.dtype) - beta_TH[t, h] * torch.outer(k, k)
            states[h] = a_TH[t, h] * erased @ states[h] + beta_TH[t, h] * torch.outer(k, v)
            y = mixer.norm(q @ states[h])
            if isinstance(mixer, GatedDeltaNet):
                y = y * silu(mixer.gate(x_TD[t]).chunk(H)[h])
            heads.append(y)
        out.append(mixer.out(torch.cat(heads)))
    return torch.stack(out)


def gla_by_hand(mixer: GatedLinearAttention, x_TD: Tensor, fixed_decay=False, **_) -> Tensor:
    """S_t = diag(a_t) S_(t-1) + k_t v_t', y_t = q_t S_t / sqrt(K): equation 3 of the paper, and section 4.4."""
    H, (keys, _, D) = mixer.n_heads, mixer.sizes
    q_TC, k_TC, v_TD = mixer.qkv(x_TD).split([keys, keys, D], dim=1)
    if fixed_decay:
        a_TC = (1 - 2.0 ** (-5 - torch.arange(H).double())).repeat_interleave(keys // H).expand(len(x_TD), -1)
    else:
        a_TC = sigmoid(mixer.decay.out(mixer.decay.narrow(x_TD))) ** (1 / 16)
        a_TC = a_TC.clamp_min(math.exp(-5))
    out, states = [], [x_TD.new_zeros(keys // H, D // H) for _ in range(H)]
    for t in range(len(x_TD)):
        heads = []
        for h in range(H):
            q, k, a, v = (x[t].chunk(H)[h] for x in (q_TC, k_TC, a_TC, v_TD))
            states[h] = a[:, None] * states[h] + torch.outer(k, v)
            y = mixer.norm(q / math.sqrt(len(q)) @ states[h])
            heads.append(y * silu(mixer.gate(x_TD[t]).chunk(H)[h]))
        out.append(mixer.out(torch.cat(heads)))
    return torch.stack(out)


def mamba2_by_hand(mixer: Mamba2, x_TD: Tensor, **_) -> Tensor:
    """h = exp(-dt a) h + dt b x', y = c h + d x, then the norm of y times the gate."""
    H, (N, _, D) = mixer.n_heads, mixer.sizes
    c_TN, b_TN, v_TD = silu(convolved(mixer.conv.weight_WC, mixer.cbx(x_TD))).split([N, N, D], dim=1)
    dt_TH = softplus(mixer.decay.dt(x_TD))
    out, states = [], [x_TD.new_zeros(N, D // H) for _ in range(H)]
    for t in range(len(x_TD)):
        heads = []
        for h in range(H):
            v, dt = v_TD[t].chunk(H)[h], dt_TH[t, h]
            states[h] = torch.exp(-dt * torch.exp(mixer.decay.log_a_H[h])) * states[h] + dt * torch.outer(
                b_TN[t], v
            )
            heads.append(c_TN[t] @ states[h] + mixer.d_H[h] * v)
        out.append(mixer.out(mixer.norm(torch.cat(heads) * silu(mixer.gate(x_TD[t])))))
    return torch.stack(out)


def mlstm_by_hand(mixer: MLSTM, x_TD: Tensor, **_) -> Tensor:
    """Equations 19 to 27 of the paper, without its stabilizer; then the norm and the gate of xLSTM-7B."""
    H, (keys, _, D) = mixer.n_heads, mixer.sizes
    q_TC, k_TC, v_TD = mixer.qkv(x_TD).split([keys, keys, D], dim=1)
    f_TH, i_TH = sigmoid(mixer.forget_gate(x_TD)), torch.exp(mixer.input_gate(x_TD))
    out = []
    states, sums = [x_TD.new_zeros(keys // H, D // H)] * H, [x_TD.new_zeros(keys // H)] * H
    for t in range(len(x_TD)):
        heads = []
        for h in range(H):
            q, k, v = (x[t].chunk(H)[h] for x in (q_TC, k_TC, v_TD))
            k = k / math.sqrt(len(k))
            states[h] = f_TH[t, h] * states[h] + i_TH[t, h] * torch.outer(k, v)
            sums[h] = f_TH[t, h] * sums[h] + i_TH[t, h] * k
            y = mixer.norm(q @ states[h] / (q @ sums[h]).abs().clamp_min(1))
            heads.append(y * sigmoid(mixer.gate(x_TD[t]).chunk(H)[h]))
        out.append(mixer.out(torch.cat(heads)))
    return torch.stack(out)


def based_by_hand(mixer: TaylorAttention, x_TD: Tensor, **_) -> Tensor:
    """Equation 3 of the paper: the softmax with exp(a) replaced by 1 + a + a^2 / 2, over all earlier positions."""
    H, (keys, _, D) = mixer.n_heads, mixer.sizes
    q_TC, k_TC, v_TD = mixer.qkv(x_TD).split([keys, keys, D], dim=1)
    out = []
    for t in range(len(x_TD)):
        heads = []
        for h in range(H):
            q, k, v = q_TC[t].chunk(H)[h], k_TC[: t + 1].chunk(H, dim=1)[h], v_TD[: t + 1].chunk(H, dim=1)[h]
            a = k @ q / math.sqrt(len(q))
            weights = 1 + a + a**2 / 2
            heads.append(weights @ v / weights.sum())
        out.append(mixer.out(torch.cat(heads)))
    return torch.stack(out)


BY_HAND = {
    DeltaNet: delta_by_hand,
    GatedDeltaNet: delta_by_hand,
    GatedLinearAttention: gla_by_hand,
    Mamba2: mamba2_by_hand,
    MLSTM: mlstm_by_hand,
    TaylorAttention: based_by_hand,
}


def perturbed_mixer(make, **fields) -> nn.Module:
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        mixer = make(tiny_params(**fields), 0.0)
    perturb(mixer)
    return mixer


@pytest.mark.parametrize("T", [1, 10])
@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (DeltaNet, {}),
        (DeltaNet, {"negative_eigenvalues": True, "bias": False, "n_heads": 4}),
        (GatedDeltaNet, {"state_dim": 3, "conv_width": 3}),
        (GatedDeltaNet, {"negative_eigenvalues": True, "norm": "rmsnorm"}),
        (GatedLinearAttention, {"state_dim": 3}),
        (GatedLinearAttention, {"fixed_decay": True, "norm": "rmsnorm"}),
        (Mamba2, {"n_heads": 4, "bias_qkv": False}),
        (Mamba2, {"state_dim": 5, "norm": "rmsnorm", "conv_width": 1}),
        (MLSTM, {"n_heads": 4, "bias_qkv": False}),
        (TaylorAttention, {"n_heads": 4, "bias_qkv": False}),
        (TaylorAttention, {"state_dim": 5}),
        (MLSTM, {"state_dim": 5, "norm": "rmsnorm"}),
    ],
    ids=str,
)
def test_a_mixer_is_the_recurrence_of_its_paper(make, fields, T, monkeypatch):
    """In chunks of up to 4 positions: 10 are three of 4, the last one filled up by zeros."""
    monkeypatch.setattr(linear_attention.HeadDecay, "chunk", 4)
    monkeypatch.setattr(linear_attention.ChannelDecay, "chunk", 4)
    mixer = perturbed_mixer(make, **fields)
    x_BTD = torch.randn(2, T, 16, dtype=torch.float64, requires_grad=True)
    y_BTD = mixer(x_BTD, Context(random_ids(2, T)))
    expected = torch.stack([BY_HAND[make](mixer, x_TD, **fields) for x_TD in x_BTD])
    assert_close(y_BTD, expected, **EXACT)
    direction, inputs = torch.randn_like(y_BTD), [x_BTD, *mixer.parameters()]
    for name, a, b in zip(
        ["x", *dict(mixer.named_parameters())],
        torch.autograd.grad((y_BTD * direction).sum(), inputs, materialize_grads=True),
        torch.autograd.grad((expected * direction).sum(), inputs, materialize_grads=True),
        strict=True,
    ):
        assert_close(a, b, **GRADIENT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("chunk", [1, 64])
def test_chunks_of_any_length_give_the_same(chunk, monkeypatch):
    """The default lengths make several chunks here, the last one filled up. A cache carries the state over a pause."""
    monkeypatch.setattr(linear_attention.HeadDecay, "chunk", chunk)
    monkeypatch.setattr(linear_attention.ChannelDecay, "chunk", min(chunk, linear_attention.CHANNEL_CHUNK))
    torch.manual_seed(0)
    T, options = 150, {"dtype": torch.float64}
    q, k, v = (torch.randn(1, 2, T, 4, **options) for _ in range(3))
    k, beta = k / k.norm(dim=-1, keepdim=True), torch.rand(1, 2, T, **options) * 2
    for log_decay, own_beta in (
        (-torch.rand(1, 2, T, **options), None),
        (-torch.rand(1, 2, T, **options), beta),
        (-torch.rand(1, 2, T, 4, **options), None),
        (torch.full((1, 2, T, 4), MIN_LOG_DECAY, **options), None),
        (torch.full((1, 2, T), -200.0, **options), beta),
    ):
        cache, parts = Cache(T), []
        for part in (slice(0, 70), slice(70, 71), slice(71, T)):
            betas = None if own_beta is None else own_beta[:, :, part]
            inputs = [x[:, :, part] for x in (q, k, v, log_decay)]
            parts.append(mix(*inputs, Context(random_ids(1, T), cache=cache), betas))
        S, expected = torch.zeros(2, 4, 4, **options), []
        for t in range(T):
            decay = log_decay[0, :, t].exp()
            S = decay.reshape(2, -1, 1) * S
            u = v[0, :, t]
            if own_beta is not None:
                u = beta[0, :, t, None] * (u - torch.einsum("hk,hkm->hm", k[0, :, t], S))
            S = S + torch.einsum("hk,hm->hkm", k[0, :, t], u)
            expected.append(torch.einsum("hk,hkm->hm", q[0, :, t], S))
        assert_close(torch.cat(parts, dim=2)[0], torch.stack(expected, dim=1), **EXACT)
        assert_close(cache.kept["state"][0], S, **EXACT)


def test_an_output_has_no_gradient_of_rounding_with_respect_to_later_inputs():
    """The leak probe would take it for a leak."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 16, 4) for _ in range(3))
    for shape, beta in (((1, 2, 16), None), ((1, 2, 16), torch.rand(1, 2, 16)), ((1, 2, 16, 4), None)):
        inputs = [x.requires_grad_() for x in (q, k, v, -torch.rand(shape))]
        y = mix(*inputs, Context(random_ids(1, 16)), beta)
        for gradient in torch.autograd.grad(y[:, :, 3].sum(), inputs):
            assert gradient[:, :, :4].any()
            assert not gradient[:, :, 4:].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"state_dim": 3, "n_kv_heads": 1}], ids=str)
def test_the_state_size_is_what_the_cache_holds(kind, fields):
    if kind in ("torch-transformer", "mla"):
        fields = {}
    if kind == "custom-transformer" and fields:
        fields = fields | {"head_dim": 12}
    lm = tiny_lm(layer_architecture=kind, n_heads=4, **fields)
    cache = Cache(16)
    lm(random_ids(3, 16), cache=cache)
    assert state_size_of(lm) == sum(kept[0].numel() for kept in cache.kept.values())
    assert size_of(lm.model_params, 30).state_size == state_size_of(lm)


def test_a_window_bounds_the_state_of_attention():
    layer = tiny_lm(sliding_window=5).decoder.layers[0]
    assert [layer.state_size(T) for T in (2, 4, 100)] == [2 * 16 * 2, 2 * 16 * 4, 2 * 16 * 4]


def test_the_state_of_a_stack_is_that_of_its_layers_and_unknown_if_one_is_unknown():
    kinds = ("gla", "custom-transformer", "mamba2")
    one_by_one = [state_size_of(tiny_lm(layer_architecture=kind, n_layers=1)) for kind in kinds]
    assert state_size_of(tiny_lm(layer_architecture=kinds, n_layers=3)) == sum(one_by_one)
    deep = tiny_params(layer_architecture=kinds, n_layers=3 * MAX_BUILT_LAYERS)
    assert size_of(deep, 30).state_size == MAX_BUILT_LAYERS * sum(one_by_one)
    lm = tiny_lm(layer_architecture=kinds, n_layers=3)
    lm.decoder.layers[1] = nn.Identity()
    assert state_size_of(lm) is None


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if kind != "gated-conv"])
def test_operations_grow_linearly_with_the_length_of_a_row(kind):
    """Four times the length, in whole chunks, is four times the work, where that of attention grows faster."""

    def growth(kind: str) -> float:
        lm = build_on_meta(tiny_params(layer_architecture=kind, max_seq_len=512), 30)
        return flops_of(lm, 512) / flops_of(lm, 128)

    def flops_of(lm, T):
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            lm.decoder(torch.zeros(1, T, 16, device="meta"), Context(torch.zeros(1, T, device="meta")))
        return counter.get_total_flops()

    assert growth(kind) == 4
    assert growth("custom-transformer") > 6


def test_triangular_equations_are_counted():
    matrices, right = torch.eye(6, device="meta").expand(2, 6, 6), torch.ones(2, 6, 5, device="meta")
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        torch.linalg.solve_triangular(matrices, right, upper=False)
    # Each of 5 columns takes 0 + 1 + ... + 5 multiply-adds and 6 divisions: 36 operations.
    assert counter.get_total_flops() == 2 * 5 * 36


@pytest.mark.parametrize("kind", ["deltanet", "gated-delta", "gla", "mamba2", "mlstm", "based"])
def test_a_state_of_fixed_width_has_no_rule_in_mup(kind):
    with pytest.raises(ValueError, match="state_dim=4 does not grow with the width"):
        tiny_lm(layer_architecture=kind, state_dim=4, parametrization="mup", mup_base_dim=8)


@pytest.mark.parametrize("make", [Mamba2, GatedDeltaNet])
def test_decays_begin_between_those_of_mamba2(make):
    decay = make(tiny_params(n_heads=4), 0.0).decay
    assert_close(decay.log_a_H.exp(), torch.tensor([1.0, 6.0, 11.0, 16.0]))
    assert_close(softplus(decay.dt.map.bias).log10(), torch.tensor([-3.0, -7 / 3, -5 / 3, -1.0]))


def test_a_decay_of_gla_has_a_floor_below_which_gradients_vanish():
    mixer = perturbed_mixer(GatedLinearAttention)
    with torch.no_grad():
        mixer.decay.out.bias.fill_(-1_000.0)
    x_BTD = torch.randn(1, 40, 16, dtype=torch.float64)
    y_BTD = mixer(x_BTD, Context(random_ids(1, 40)))
    assert_close(y_BTD[0], gla_by_hand(mixer, x_BTD[0]), **EXACT)
    assert_close(
        mixer.float()(x_BTD.float(), Context(random_ids(1, 40))).double(), y_BTD, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("log_input", "log_forget"), [(300.0, 5.0), (-300.0, 5.0), (0.0, -50.0)])
def test_gates_of_mlstm_are_exact_where_their_exponentials_overflow(log_input, log_forget):
    """In float32, against the equations in float64, whose numbers reach e^300."""
    mixer = perturbed_mixer(MLSTM)
    with torch.no_grad():
        mixer.input_gate.map.bias.fill_(log_input)
        mixer.forget_gate.map.bias.fill_(log_forget)
    x_BTD = torch.randn(1, 70, 16, dtype=torch.float64)
    expected = mlstm_by_hand(mixer, x_BTD[0])
    x_BTD = x_BTD.float().requires_grad_()
    y_BTD = mixer.float()(x_BTD, Context(random_ids(1, 70)))
    y_BTD.sum().backward()
    assert_close(y_BTD[0].double(), expected, rtol=1e-3, atol=1e-4)
    assert x_BTD.grad.isfinite().all()
