"""Parametrizations of an LM in training: equal to standard at the base, right off it; groups of optimizers; resume."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from data.data_params import DataParams
from model.context import Context, Layer, layer_kind, layer_kinds
from model.lm import LM
from model.model_params import ModelParams
from model.mup.parametrization import Role
from model.shapes import roles_of
from model.transformer.residual import omegas_by_residual
from tests.model.tiny import KINDS, CharTokenizer, batch_of, random_ids, tiny_params
from tests.train.little_run import CALL, fit
from train.grid.params import Params
from train.launch.problems import role_problems
from train.optimizers import group_settings, make_optimizer
from train.pretrained import source_problems
from train.schedules import Schedule
from train.train_params import TrainParams


def fresh(params: ModelParams, seed: int = 0) -> LM:
    torch.manual_seed(seed)
    return LM(params, CharTokenizer())


def mup(dim: int = 64, **fields) -> ModelParams:
    """Heads grow in number, as wide as they are in the base of width 16."""
    sizes = {"dim": dim, "n_heads": dim // 8, "mup_base_heads": 2, "mup_base_dim": 16}
    return tiny_params(**sizes | {"parametrization": "mup"} | fields)


def losses(params: ModelParams, n_steps: int = 20, accumulate: int = 1, **train_fields) -> list[float]:
    lm, seen = fresh(params), []
    train = TrainParams(**{"lr": 1e-2} | train_fields)
    optimizer, ids = make_optimizer(lm, train), random_ids(8, 12)
    schedule = LambdaLR(optimizer, Schedule(train, n_steps))
    for _ in range(n_steps):
        optimizer.zero_grad()
        for part in ids.chunk(accumulate):
            loss = lm.get_losses(batch_of(part), None)[0]["main"]
            (loss / accumulate).backward()
            seen.append(loss.item())
        optimizer.step()
        schedule.step()
    return seen


ARCHITECTURES = [
    {},
    *({"layer_architecture": kind} for kind in KINDS[1:]),
    {"layer_architecture": ("mamba2", "custom-transformer"), "positions": "sin"},
    {"norm_position": "post", "residual": "admin", "residual_trainable": True},
    {"norm_position": "sandwich", "n_kv_heads": 1, "gated": True, "positions": "rotary"},
    {"parallel_blocks": True, "separate_heads": True, "tied_embeddings": False, "positions": "alibi"},
    {"dim": 24, "n_heads": 2, "attention": "fused", "qk_norm": True, "norm": "rmsnorm"},
    {
        "value_embeddings": (True, False),
        "n_kv_heads": 1,
        "canon": "abcd",
        "residual": "layerscale",
        "positions": "t5",
    },
    {"lora_rank": 2, "dim_ff": 20, "mup_output_mult": 2.0, "mup_attn_mult": 3.0, "mup_input_mult": 0.5},
]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("fields", ARCHITECTURES, ids=str)
def test_at_the_base_mup_is_bitwise_equal_to_standard(fields):
    standard = tiny_params(**fields)
    train = {"optimizer": "sgd"} if "gated" in fields else {}
    expected = losses(standard, **train)
    assert len(set(expected)) == 20
    p = replace(standard, parametrization="mup", mup_base_dim=standard.dim, mup_base_heads=standard.n_heads)
    assert losses(p, **train) == expected
    assert losses(replace(standard, parametrization="mup"), **train) == expected, "0 is the size at hand"
    if "residual" not in fields:
        assert losses(replace(standard, parametrization="completep"), **train) == expected


@pytest.mark.parametrize(
    "train", [{"optimizer": "sgd"}, {"optimizer": "muon"}, {"lr_hidden_mult": 0.5}], ids=str
)
def test_at_the_base_every_optimizer_equals_standard(train):
    standard = tiny_params(tied_embeddings=False)
    expected = losses(standard, **train)
    assert losses(replace(standard, parametrization="completep"), **train) == expected
    assert losses(standard) != expected


def test_off_the_base_mup_differs_from_standard():
    assert losses(mup(), n_steps=3) != losses(replace(mup(), parametrization="standard"), n_steps=3)


# Roles


@pytest.mark.parametrize("fields", ARCHITECTURES, ids=str)
def test_every_parameter_has_one_role(fields):
    params = tiny_params(**fields)
    base = {"mup_base_dim": params.dim // 2, "mup_base_heads": params.n_heads // 2}
    lm = fresh(replace(params, parametrization="mup", **base))
    roles = roles_of(lm)
    assert roles.keys() == dict(lm.named_parameters()).keys()
    for name, parameter in lm.named_parameters():
        role, last = roles[name], name.split(".")[-1]
        if name.startswith("embed.") or ".value_embedding." in name:
            assert role == Role("embedding", m_out=2.0)
        elif name == "unembed.weight" or ".map.weight" in name:
            assert role == Role("readout", m_in=2.0)
        elif name.endswith("decay.out.weight"):  # from GLA's rank to the channels
            assert (role.kind, role.m_in) == ("embedding", 1.0)
        elif parameter.ndim == 1 or last in ("weight_WC", "bias_NH"):
            assert role in (Role("vector", m_out=2.0), Role("vector")), name
        else:
            assert (role.kind, role.m_in) == ("hidden", 1.0 if last == "lora_b" else 2.0), name
            assert role.m_out == (1.0 if last == "lora_a" else 2.0), name
    groups = make_optimizer(lm, TrainParams()).param_groups
    assert sum(len(group["params"]) for group in groups) == len(roles)


@pytest.fixture
def inserted():
    """Registers a user's layer as "mine"."""

    def insert(make):
        layer_kind("mine")(make)

    yield insert
    layer_kinds.pop("mine", None)


class Bottleneck(Layer):
    def __init__(self, params: ModelParams, dropout: float, middle: int | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(params.dim, middle or params.dim // 2)
        self.up = nn.Linear(middle or params.dim // 2, params.dim)
        self.scale = nn.Parameter(torch.ones(params.dim))

    def forward(self, x, ctx):
        return x + self.up(self.down(x).relu()) * self.scale


def test_a_users_layer_is_classified_by_itself(inserted):
    inserted(Bottleneck)
    lm = fresh(mup(layer_architecture=("custom-transformer", "mine")))
    roles = {name.removeprefix("decoder.layers.1."): role for name, role in roles_of(lm).items()}
    assert roles["down.weight"] == roles["up.weight"] == Role("hidden", 4.0, 4.0)
    assert roles["scale"] == roles["up.bias"] == Role("vector", m_out=4.0)


def test_a_map_to_a_fixed_size_is_refused_by_name_with_the_grid(inserted):
    inserted(lambda params, dropout: Bottleneck(params, dropout, middle=10))
    params = mup(layer_architecture=("custom-transformer", "mine"))
    [problem] = role_problems(params, True)
    assert problem.startswith("decoder.layers.1.down is a linear map from a width (64) to a fixed size (10)")
    with pytest.raises(ValueError, match=r"layers\.1\.down"):
        make_optimizer(fresh(params), TrainParams())
    assert not [*role_problems(replace(params, parametrization="standard"), False)]
    standard = replace(params, parametrization="standard")
    assert not [*role_problems(standard, True)], "Muon wants roles, but no readouts"
    make_optimizer(fresh(standard), TrainParams(optimizer="muon"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"layer_architecture": "torch-transformer", "mup_base_heads": 0}, "scale n_heads"),
        (
            {"layer_architecture": "torch-transformer", "mup_attn_mult": 2.0},
            "mup_attn_mult=2.0 does not work with",
        ),
        (
            {"layer_architecture": "torch-transformer", "parametrization": "completep", "mup_base_layers": 1},
            "sums",
        ),
        (
            {"layer_architecture": "torch-gru", "parametrization": "completep", "mup_base_layers": 1},
            "recurrent",
        ),
        ({"mup_base_dim": 20, "mup_base_heads": 0}, "set mup_base_heads"),
        ({"readout_zero_init": True}, "token embedding to 0"),
    ],
    ids=str,
)
def test_unsupported_combinations_with_mup_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        fresh(mup(**fields))


# Initial weights


@pytest.mark.parametrize("norm_position", ["pre", "post", "sandwich"])
def test_a_shared_embedding_keeps_its_deviation_at_every_width(norm_position):
    def std(dim: int, **fields) -> float:
        return fresh(mup(dim, norm_position=norm_position, **fields)).embed.tokens.weight.std().item()

    for tied in (True, False):
        assert std(256, tied_embeddings=tied) == pytest.approx(std(16, tied_embeddings=tied), rel=0.1)
    assert std(256, parametrization="standard") < std(16, parametrization="standard") / 2
    lm = fresh(mup(256, norm_position=norm_position))
    assert lm.unembed.weight is lm.embed.tokens.weight
    assert lm.unembed.mult == 1 / 16


def test_hidden_deviations_fall_with_the_root_of_the_width_and_others_stay():
    small, large = (fresh(mup(dim, tied_embeddings=False)) for dim in (16, 256))
    for name, parameter in large.named_parameters():
        before, after = small.get_parameter(name).std().item(), parameter.std().item()
        if name in ("embed.tokens.weight", "embed.positions.table.weight", "unembed.weight"):
            assert after / before == pytest.approx(1, rel=0.15), name
        elif parameter.ndim == 2:
            assert after / before == pytest.approx(1 / 4, rel=0.15), name


def test_zero_inits_are_options():
    lm = fresh(mup(tied_embeddings=False, readout_zero_init=True, query_zero_init=True, n_kv_heads=1))
    assert not lm.unembed.weight.any()
    assert lm.embed.tokens.weight.all()
    q, k, v = lm.decoder.layers[1].mixer.qkv.weight.split([64, 8, 8])
    assert not q.any()
    assert k.all()
    assert v.all()
    assert (
        not fresh(mup(separate_heads=True, query_zero_init=True))
        .decoder.layers[0]
        .mixer.qkv.q[3]
        .weight.any()
    )
    torchs = fresh(mup(layer_architecture="torch-transformer", query_zero_init=True)).decoder.layers[0]
    assert not torchs.block.self_attn.in_proj_weight[:64].any()
    assert torchs.block.self_attn.in_proj_weight[64:].all()
    plain = fresh(tiny_params(query_zero_init=True))
    assert not plain.decoder.layers[0].mixer.qkv.weight[:16].any()


def test_biases_of_recurrent_layers_have_one_deviation_and_their_matrices_do_not():
    small, large = (
        fresh(mup(dim, layer_architecture="torch-lstm", n_heads=1)).decoder.layers[0].rnn for dim in (16, 256)
    )
    small, large = small.requires_grad_(False), large.requires_grad_(False)
    assert large.bias_hh_l0.std() / small.bias_hh_l0.std() == pytest.approx(1, rel=0.25)
    assert large.weight_hh_l0.std() / small.weight_hh_l0.std() == pytest.approx(1 / 4, rel=0.1)


def test_multipliers_multiply_embeddings_scores_and_logits():
    fields = {"mup_input_mult": 3.0, "mup_attn_mult": 2.0, "mup_output_mult": 5.0, "norm_position": "none"}
    for params in (mup(n_layers=1), tiny_params(n_layers=1)):
        plain, more = (
            fresh(replace(params, **given)).double() for given in ({"norm_position": "none"}, fields)
        )
        ids = random_ids(2, 9)
        with plain.record() as before, more.record() as after:
            plain(ids), more(ids)
        torch.testing.assert_close(after["embed"], 3 * before["embed"])
        past = before["layers.0.scores"].isfinite()
        q_and_k = 3 * 3
        expected = 2 * q_and_k * before["layers.0.scores"][past]
        torch.testing.assert_close(after["layers.0.scores"][past], expected)
        stream = after["layers.0.resid_post"]
        readout = more.unembed.weight * (5.0 * 16 / 64 if params.dim == 64 else 5.0)
        torch.testing.assert_close(after["logits"], stream @ readout.T)


# CompleteP


def completep(n_layers: int, **fields) -> ModelParams:
    return mup(16, parametrization="completep", mup_base_layers=2, n_layers=n_layers, **fields)


def test_completep_divides_what_blocks_add_and_not_their_initial_weights():
    deep, base = fresh(completep(8)), fresh(completep(2))
    ids = random_ids(3, 9)
    with deep.record() as seen:
        deep(ids)
    layer, x, ctx = deep.decoder.layers[3], seen["layers.3.resid_pre"], Context(ids)
    mid = x + layer._sa_block(layer.norm1.before(x), ctx) / 4
    torch.testing.assert_close(seen["layers.3.resid_mid"], mid)
    out = mid + layer._ff_block(layer.norm2.before(mid), ctx) / 4
    torch.testing.assert_close(seen["layers.3.resid_post"], out)
    torch.testing.assert_close(x + seen["layers.3.attn_out"] + seen["layers.3.mlp_out"], out)
    for part in ("mixer.out", "linear2", "mixer.qkv"):
        stds = [lm.decoder.layers[1].get_parameter(f"{part}.weight").std().item() for lm in (deep, base)]
        assert stds[0] == pytest.approx(stds[1], rel=0.15), part
    only_width = fresh(replace(completep(8), parametrization="mup"))
    assert only_width.decoder.layers[1].residual_sa.branch_mult == 1
    assert (
        only_width.decoder.layers[1].linear2.weight.std() < 0.6 * base.decoder.layers[1].linear2.weight.std()
    )


def test_completep_makes_epsilon_smaller_in_layers_only():
    lm = fresh(replace(completep(8), dim=32, n_heads=4))
    names = {parameter: name for name, parameter in lm.named_parameters()}
    for group in make_optimizer(lm, TrainParams(adam_eps=1e-6)).param_groups:
        for parameter in group["params"]:
            factor = 2 * (4 if names[parameter].startswith("decoder.layers.") else 1)
            assert group["eps"] == pytest.approx(1e-6 / factor), names[parameter]


# What widths do to activations


def activations(lm: LM, n_steps: int, lr: float, optimizer: str = "adamw") -> dict[str, float]:
    """Mean sizes after some steps on one batch, of all there is to see."""
    adam = make_optimizer(lm, TrainParams(lr=lr, weight_decay=0.0, optimizer=optimizer))
    ids = random_ids(4, 16)
    for _ in range(n_steps):
        adam.zero_grad()
        lm.get_losses(batch_of(ids), None)[0]["main"].backward()
        adam.step()
    with torch.no_grad(), lm.record() as seen:
        lm(ids)
    shown = ("resid_post", "attn_out", "mlp_out", "logits")
    return {name: value.abs().mean().item() for name, value in seen.items() if name.endswith(shown)}


def slopes(
    params: ModelParams, times=(1, 2, 4), seeds=(0, 1), wider_heads=False, **train_fields
) -> dict[str, float]:
    """Return the slopes of log size against log width, by name. Heads become more or, with `wider_heads`, wider."""
    means = []
    for n in times:
        p = replace(params, dim=n * params.dim, n_heads=params.n_heads * (1 if wider_heads else n))
        found = [activations(fresh(p, seed), n_steps=4, **train_fields) for seed in seeds]
        means.append({name: sum(one[name] for one in found) / len(found) for name in found[0]})
    x = torch.tensor(times).log2()
    x = x - x.mean()
    logs = {name: torch.tensor([one[name] for one in means]).log2() for name in means[0]}
    return {name: ((x * y).sum() / (x * x).sum()).item() for name, y in logs.items()}


WIDE = tiny_params(dim=64, n_heads=4, parametrization="mup", mup_base_dim=64, mup_base_heads=4)
NARROW = replace(WIDE, dim=16, n_heads=2, mup_base_dim=16, mup_base_heads=2)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("params", "lr", "optimizer"),
    [
        (WIDE, 2**-8, "adamw"),
        (replace(WIDE, tied_embeddings=False, init="unit"), 2**-6, "adamw"),
        (replace(WIDE, norm_position="post", residual="admin", residual_trainable=True), 2**-7, "adamw"),
        (replace(WIDE, tied_embeddings=False, init="unit"), 1.0, "sgd"),
        (replace(NARROW, init="unit"), 2**-5, "muon"),
        (replace(WIDE, tied_embeddings=False, init="unit"), 2**-7, "lion"),
    ],
    ids=["tied", "unit", "admin", "sgd", "muon", "lion"],
)
def test_activations_keep_their_size_at_every_width_as_they_do_not_in_standard(params, lr, optimizer):
    train = {"lr": lr, "optimizer": optimizer}
    found = slopes(params, **train)
    assert -0.6 <= min(found.values()) <= max(found.values()) <= 0.2, found
    assert max(abs(slope) for name, slope in found.items() if "resid" in name) <= 0.2, found
    standard = slopes(replace(params, parametrization="standard"), **train)
    assert max(standard.values()) >= (0.3 if optimizer == "muon" else 0.8), standard


@pytest.mark.parametrize("kind", KINDS[1:])
def test_activations_keep_their_size_in_layers_of_every_kind(kind):
    params = replace(WIDE, layer_architecture=kind, tied_embeddings=False, init="unit")
    found, standard = (
        slopes(replace(params, parametrization=name), seeds=(0,), lr=2**-6) for name in ("mup", "standard")
    )
    stream = [name for name in found if "resid" in name]
    assert max(abs(found[name]) for name in stream) <= 0.2, found
    assert max(standard[name] for name in stream) >= 0.5, standard


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear-attention", "deltanet", "gated-delta", "gla", "mamba2"])
def test_activations_keep_their_size_in_states_of_growing_width(kind):
    params = replace(WIDE, layer_architecture=kind, tied_embeddings=False, init="unit")
    found = slopes(params, wider_heads=True, lr=2**-6)
    assert max(abs(slope) for name, slope in found.items() if "resid" in name) <= 0.2, found


def test_aligned_queries_and_keys_make_scores_of_one_size_in_heads_of_any_width():
    """Training aligns them. Random ones would not distinguish 1 / K from 1 / sqrt(K)."""

    def slope(**fields) -> float:
        sizes = []
        for dim in (64, 128, 256, 512):
            lm = fresh(replace(WIDE, dim=dim, mup_base_heads=0, **fields))
            for layer in lm.decoder.layers:
                q, k, _ = layer.mixer.query_key_value()
                k[0].data.copy_(q[0])
            with torch.no_grad(), lm.record("scores") as seen:
                lm(random_ids(4, 16))
            sizes.append(seen["layers.0.scores"].diagonal(dim1=-2, dim2=-1).mean().log2().item())
        return (sizes[-1] - sizes[0]) / 3

    assert abs(slope()) <= 0.1
    assert abs(slope(attention="fused")) <= 0.1
    assert slope(parametrization="standard") >= 0.4


def test_mamba2_divides_its_products_by_the_width_of_a_head():
    lm = fresh(mup(layer_architecture="mamba2", n_heads=2))
    plain = fresh(replace(lm.model_params, parametrization="standard"))
    plain.load_state_dict(lm.state_dict())
    seen = []
    for model in (lm, plain):
        with torch.no_grad(), model.record("layers.0.q") as queries:
            model(random_ids(2, 9))
        seen.append(queries["layers.0.q"])
    torch.testing.assert_close(seen[0], seen[1] / 4)


@pytest.mark.parametrize("kind", ["custom-transformer", "mla", "mlstm", "based"])
def test_products_of_queries_and_keys_are_divided_by_the_width_of_a_head(kind):
    """Heads are four times as wide as in the base, so that muP divides by a further factor of two."""
    lm = fresh(mup(layer_architecture=kind, n_heads=2, n_layers=1))
    plain = fresh(replace(lm.model_params, parametrization="standard"))
    plain.load_state_dict(lm.state_dict())
    for weight in plain.decoder.layers[0].mixer.query_key_value()[0]:
        weight.data.div_(2)
    with torch.no_grad(), lm.record("layers.0.*") as seen:
        lm(random_ids(2, 9))
    # Maps to one number for each head are divided, too, but that is not what this test is about.
    gates = {name: value for name, value in seen.items() if name.endswith(("log_input", "log_decay"))}
    with torch.no_grad(), plain.patch(gates), plain.record("layers.0.z") as found:
        plain(random_ids(2, 9))
    torch.testing.assert_close(found["layers.0.z"], seen["layers.0.z"])


@pytest.mark.parametrize("fields", [{}, {"mup_attn_mult": 2.0}], ids=str)
def test_the_fused_kernel_divides_scores_as_the_explicit_attention_does(fields):
    lm = fresh(replace(WIDE, dim=128, mup_base_heads=0, **fields)).double()
    fused = LM(replace(lm.model_params, attention="fused"), CharTokenizer()).double()
    fused.load_state_dict(lm.state_dict())
    torch.testing.assert_close(fused(random_ids(2, 9)), lm(random_ids(2, 9)))
    alibi = LM(replace(fused.model_params, positions="alibi"), CharTokenizer()).double()
    explicit = LM(replace(lm.model_params, positions="alibi"), CharTokenizer()).double()
    explicit.load_state_dict(alibi.state_dict())
    torch.testing.assert_close(alibi(random_ids(2, 9)), explicit(random_ids(2, 9)))


# Optimizers


def test_parameter_groups_of_an_lm():
    lm = fresh(mup(tied_embeddings=False))
    train = TrainParams(lr=1e-2, weight_decay=0.1, lr_readout_mult=3.0, adam_eps=1e-6)
    found = {g.name: g[1:] for g in group_settings(make_optimizer(lm, train))}
    assert found == {
        "embedding": (1e-2, 0.1, 2.5e-7),
        "vector": (1e-2, 0.0, 2.5e-7),
        "hidden x0.25": (0.0025, 0.4, 2.5e-7),
        "readout x3": (0.03, 0.1, 2.5e-7),
    }
    none = group_settings(
        make_optimizer(lm, replace(train, weight_decay_scaling="none", scale_adam_eps=False))
    )
    assert {g.name: g[1:] for g in none}["hidden x0.25"] == (0.0025, 0.1, 1e-6)


def test_standard_keeps_its_two_groups():
    assert [g.name for g in group_settings(make_optimizer(fresh(tiny_params()), TrainParams()))] == [
        "matrices",
        "others",
    ]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "cyclic", "linear"])
def test_schedules_keep_the_ratios_at_every_step(schedule):
    train = TrainParams(lr=1e-2, min_lr=1e-3, lr_schedule=schedule, warmup_steps=3, lr_cycle_steps=7)
    optimizer = make_optimizer(fresh(mup()), train)
    scheduler, seen = LambdaLR(optimizer, Schedule(train, 20)), set()
    for _ in range(20):
        lr = {g.name: g.lr for g in group_settings(optimizer)}
        assert lr["hidden x0.25"] == pytest.approx(lr["embedding"] / 4)
        seen.add(lr["embedding"])
        optimizer.step()
        scheduler.step()
    assert len(seen) > 5


@pytest.mark.parametrize("rule", ["match_rms_adamw", "original"])
def test_muon_is_torchs_on_hidden_matrices_and_adamw_elsewhere(rule):
    lm, twin = (fresh(mup(layer_architecture=("custom-transformer", "gated-conv"))) for _ in range(2))
    train = TrainParams(optimizer="muon", muon_lr=rule, lr=1e-2, momentum=0.95, weight_decay=0.1)
    optimizer = make_optimizer(lm, train)
    hidden = [p for n, p in twin.named_parameters() if roles_of(twin)[n].kind == "hidden"]
    others = [p for n, p in twin.named_parameters() if roles_of(twin)[n].kind != "hidden"]
    assert len(hidden) == 8
    of_adamw = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 2.5e-9, "fused": True}
    factor = {"match_rms_adamw": 0.5, "original": 1.0}[rule]
    parts = [
        torch.optim.Muon(hidden, lr=1e-2 * factor, weight_decay=0.1 / factor, adjust_lr_fn=rule),
        torch.optim.AdamW([p for p in others if p.ndim > 1], weight_decay=0.1, **of_adamw),
        torch.optim.AdamW([p for p in others if p.ndim == 1], weight_decay=0.0, **of_adamw),
    ]
    for _ in range(4):
        for model, optimizers in ((lm, [optimizer]), (twin, parts)):
            model.zero_grad()
            model.get_losses(batch_of(random_ids(4, 12)), None)[0]["main"].backward()
            for one in optimizers:
                one.step()
    for name, parameter in lm.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name)), name


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "lion"])
def test_an_optimizer_goes_on_from_its_state_in_a_model_built_anew(name):
    train, batch = TrainParams(optimizer=name, lr=1e-2), batch_of(random_ids(4, 12))

    def step(lm, optimizer):
        optimizer.zero_grad()
        lm.get_losses(batch, None)[0]["main"].backward()
        optimizer.step()

    lm = fresh(mup())
    optimizer = make_optimizer(lm, train)
    for _ in range(3):
        step(lm, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    again = fresh(mup(), seed=1)
    again.load_state_dict(lm.state_dict())
    other = make_optimizer(again, train)
    other.load_state_dict(state)
    assert group_settings(other) == group_settings(optimizer)
    for _ in range(3):
        step(lm, optimizer)
        step(again, other)
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in lm.named_parameters())


def test_roles_and_groups_survive_a_copy():
    lm = fresh(mup(norm_position="post", residual="admin", residual_trainable=True))
    twin = copy.deepcopy(lm)
    assert roles_of(twin) == roles_of(lm)
    assert group_settings(make_optimizer(twin, TrainParams())) == group_settings(
        make_optimizer(lm, TrainParams())
    )
    assert torch.equal(twin(random_ids(2, 9)), lm(random_ids(2, 9)))
    assert len(omegas_by_residual(twin)) == 4


@pytest.mark.slow
@pytest.mark.ci
def test_a_compiled_model_has_the_same_groups_and_losses():
    plain, compiled = fresh(mup()), fresh(mup())
    compiled.compile(backend="eager")
    assert roles_of(compiled) == roles_of(plain)
    batch = batch_of(random_ids(4, 12))
    for lm in (plain, compiled):
        optimizer = make_optimizer(lm, TrainParams())
        lm.get_losses(batch, None)[0]["main"].backward()
        optimizer.step()
    assert all(torch.equal(p, compiled.get_parameter(name)) for name, p in plain.named_parameters())


def test_accumulated_gradients_change_no_update():
    large, parts = losses(mup(), lr=1e-3), losses(mup(), accumulate=2, lr=1e-3)
    means = [sum(pair) / 2 for pair in zip(parts[::2], parts[1::2], strict=True)]
    assert means == pytest.approx(large, rel=1e-3)
    assert math.isclose(large[0], means[0], rel_tol=1e-6)


# Whole runs

SMALL = ModelParams(
    dim=32, n_layers=1, n_heads=4, max_seq_len=24, parametrization="mup", mup_base_dim=8, mup_base_heads=1
)


def run(tmp_path, model: ModelParams, **train_fields):
    """A fitted LMTrainer."""
    data = DataParams(dataset_name="maskedcopy", task_args={"max_length": 8}, n_samples=100)
    train = TrainParams(
        **{"batch_size": 8, "threads": 1, "hyperparams_log_freq": 4, "lr": 1e-2} | train_fields
    )
    call = CALL._replace(out=tmp_path)
    return fit(Params(data, train, model), call)


def test_settings_of_each_group_are_among_the_statistics(tmp_path):
    stats = run(tmp_path, SMALL, weight_decay=0.1, warmup_steps=2, lr_schedule="constant").stats.train_stats
    at_step = {stat.s: stat.v for stat in stats["stat/lr"]}
    lr = [at_step[stat.s] for stat in stats["stat/lr:embedding"]]
    assert lr[-1] == 1e-2
    assert lr[0] < lr[-1]
    assert [stat.v for stat in stats["stat/lr:embedding"]] == lr
    assert [stat.v for stat in stats["stat/lr:hidden x0.25"]] == pytest.approx([v / 4 for v in lr])
    for group in ("embedding", "hidden x0.25"):
        assert [s.v for s in stats[f"stat/tau:{group}"]] == pytest.approx([10 / v for v in lr]), (
            "free of width"
        )
        assert stats[f"stat/eps:{group}"][0].v == 2.5e-9
    assert "stat/tau:vector" not in stats, "it does not decay"


def test_lr_among_the_statistics_is_that_of_no_multiplier(tmp_path):
    stats = run(tmp_path, SMALL, lr_embedding_mult=7.0, lr_schedule="constant").stats.train_stats
    assert stats["stat/lr"][0].v == 1e-2
    assert stats["stat/lr:embedding x7"][0].v == pytest.approx(7e-2)


@pytest.mark.slow
@pytest.mark.ci
def test_a_profile_is_taken_before_training_and_the_same_each_time(tmp_path):
    model = replace(SMALL, norm_position="post", residual="admin", residual_profile=True, n_layers=2)
    found = [run(tmp_path, model, random_seed=seed).model for seed in (0, 0, 1)]
    omegas = [[omega.item() for omega in omegas_by_residual(lm).values()] for lm in found]
    assert omegas[0] == omegas[1] != omegas[2]
    assert omegas[0][0] == 1
    assert sorted(omegas[0]) == omegas[0]
    assert len(set(omegas[0])) == 4
    assert (
        not dict(run(tmp_path, replace(model, residual_profile=False)).model.named_parameters()).keys()
        ^ dict(found[0].named_parameters()).keys()
    )


def test_weights_for_other_factors_are_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=40, n_positions=16)
    ).save_pretrained(tmp_path / "gpt2")
    fields = {
        "from_pretrained": str(tmp_path / "gpt2"),
        "dim": 32,
        "n_heads": 2,
        "n_layers": 1,
        "max_seq_len": 16,
    }
    fields |= {"activation": "gelu_tanh", "parametrization": "mup"}
    [problem] = source_problems(ModelParams(**fields, mup_base_dim=8), tmp_path)
    assert "mup_base_dim=8" in problem
    assert "muP factors of the forward pass differ" in problem
    assert not [*source_problems(ModelParams(**fields), tmp_path)]
