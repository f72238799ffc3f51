"""muP for any module: roles, learning rates against those of the package mup, initial weights, base-shape files."""

import copy
import math

import pytest
import torch
from torch import nn

from model.mup.base_shapes import load_base_shapes, make_base_shapes, save_base_shapes
from model.mup.parametrization import Role, init_, make_readouts, param_groups, roles, scale_scores
from model.transformer.scaling import Readout


class Net(nn.Module):
    """Every kind of parameter; the inner width grows otherwise than the outer one."""

    def __init__(self, width: int, inner: int, readout: type[nn.Linear] = Readout) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.pos = nn.Embedding(7, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.head = readout(width, 11)


BASE = make_base_shapes(Net(16, 32), Net(32, 64))

# What mup 1.0.0 makes of Net(64, 192) with the base Net(16, 32): lr=1.0, weight_decay=0.1 of MuAdamW and of MuSGD.
GOLDEN = {
    "embed.weight": ((1.0, 0.1), (4.0, 0.025)),
    "pos.weight": ((1.0, 0.1), (4.0, 0.025)),
    "norm.weight": ((1.0, 0.1), (4.0, 0.025)),
    "norm.bias": ((1.0, 0.1), (4.0, 0.025)),
    "qkv.weight": ((0.25, 0.4), (1.0, 0.1)),
    "qkv.bias": ((1.0, 0.1), (4.0, 0.025)),
    "out.weight": ((0.25, 0.4), (1.0, 0.1)),
    "up.weight": ((0.25, 0.4), (1.5, 0.06666666666666667)),
    "up.bias": ((1.0, 0.1), (6.0, 0.016666666666666666)),
    "down.weight": ((0.16666666666666666, 0.6), (0.6666666666666666, 0.15)),
    "down.bias": ((1.0, 0.1), (4.0, 0.025)),
    "head.weight": ((1.0, 0.1), (4.0, 0.025)),
    "head.bias": ((1.0, 0.1), (1.0, 0.1)),
}
GOLDEN_FILE = """\
# This is a base shape file encoded in yaml
# - `null` indicates a dimension is "finite", i.e. a non-"width" dimension
# - a number indicates the base dimension of an "infinite" dimension, i.e. some notion of "width"
down.bias:
- 16
down.weight:
- 16
- 32
embed.weight:
- null
- 16
head.bias:
- null
head.weight:
- null
- 16
norm.bias:
- 16
norm.weight:
- 16
out.weight:
- 16
- 16
pos.weight:
- null
- 16
qkv.bias:
- 48
qkv.weight:
- 48
- 16
up.bias:
- 32
up.weight:
- 32
- 16
"""


def settings(model: nn.Module, groups: list[dict], *keys: str) -> dict[str, tuple]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: tuple(group[key] for key in keys) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(names)
    return found


@pytest.mark.parametrize(("column", "rule"), [(0, "adam"), (1, "sgd")])
def test_learning_rates_and_decays_are_those_of_mup(column, rule):
    net = Net(64, 192)
    groups = param_groups(
        net, roles(net, BASE), lr=1.0, rule=rule, weight_decay=0.1, decays=lambda parameter: True
    )
    found = settings(net, groups, "lr", "weight_decay")
    assert found.keys() == GOLDEN.keys()
    for name, golden in GOLDEN.items():
        assert found[name] == pytest.approx(golden[column]), name


@pytest.mark.parametrize("rule", ["adam", "sgd", "match_rms_adamw", "original"])
@pytest.mark.parametrize("scaling", ["mup", "sqrt", "none"])
def test_lr_times_decay_is_independent_of_width_if_requested(rule, scaling):
    def products(width: int) -> dict:
        net = Net(width, 3 * width)
        groups = param_groups(
            net, roles(net, BASE), lr=0.5, rule=rule, weight_decay=0.1, weight_decay_scaling=scaling
        )
        return {name: lr * wd for name, (lr, wd) in settings(net, groups, "lr", "weight_decay").items()}

    small, large = products(16), products(256)
    assert sum(product > 0 for product in small.values()) == 7
    for name, product in small.items():
        if scaling == "mup":
            assert large[name] == pytest.approx(product), name
    if scaling == "none" and rule == "adam":
        assert large["qkv.weight"] == pytest.approx(small["qkv.weight"] / 16)
    if scaling == "sqrt" and rule == "adam":
        assert large["qkv.weight"] == pytest.approx(small["qkv.weight"] / 4)


def test_a_parameter_group_is_named_by_role_and_multipliers():
    net = Net(64, 128)
    groups = param_groups(
        net, roles(net, BASE), 1.0, weight_decay=0.1, lr_mults={"hidden": 2.0, "vector": 3.0}
    )
    lrs = {group["name"]: group["lr"] for group in groups}
    vectors = {"vector x3 eps 2.5e-09": 3.0, "vector x3 eps 1e-08": 3.0}
    assert lrs == {"embedding": 1.0, "hidden x0.5": 0.5, "readout": 1.0} | vectors
    assert settings(net, groups, "weight_decay")["qkv.weight"] == (0.4,), "multipliers of lr are no widths"


def test_epsilon_falls_as_gradients_do():
    net = Net(64, 192)
    found = settings(net, param_groups(net, roles(net, BASE), 1.0, eps=1e-6), "eps")
    expected = {
        "embed.weight": 4,
        "norm.bias": 4,
        "out.weight": 4,
        "up.weight": 6,
        "head.weight": 4,
        "head.bias": 1,
    }
    assert {name: found[name][0] for name in expected} == pytest.approx(
        {name: 1e-6 / m for name, m in expected.items()}
    )
    fixed = settings(net, param_groups(net, roles(net, BASE), 1.0, eps=1e-6, scale_eps=False), "eps")
    assert set(fixed.values()) == {(1e-6,)}


def test_gradients_fall_with_width_as_roles_say():
    """By an experiment: the ratio of mean absolute gradients at two widths, against the roles'."""
    sizes = {}
    for width in (64, 1024):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(10, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            Readout(width, 4, mult=64 / width),
        )
        base = make_base_shapes(mlp(64), mlp(128))
        role = roles(net, base)
        init_(net, role, drawn="fan_in")
        generator = torch.Generator().manual_seed(1)
        x, pull = (torch.randn(200, n, generator=generator) for n in (10, 4))
        (net(x) * pull).mean().backward()
        sizes[width] = {name: p.grad.abs().mean().item() for name, p in net.named_parameters()}
    for name, size in sizes[64].items():
        ratio = size / sizes[1024][name] / role[name].gradient_mult
        assert 0.5 < ratio < 2, name  # roles say 1 or 16


def mlp(width: int, readout: type[nn.Linear] = Readout) -> nn.Sequential:
    """Two hidden layers, as a user writes them."""
    return nn.Sequential(
        nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), readout(width, 4)
    )


def test_files_of_mup_are_read_and_written(tmp_path):
    (tmp_path / "mup.bsh").write_text(GOLDEN_FILE)
    assert load_base_shapes(tmp_path / "mup.bsh") == BASE
    made = make_base_shapes(Net(16, 32), Net(48, 80), savefile=tmp_path / "ours.bsh")
    assert made == BASE
    save_base_shapes(BASE, tmp_path / "again.bsh")
    for ours in ("ours.bsh", "again.bsh"):
        lines = (tmp_path / ours).read_text().splitlines()
        assert [x for x in lines if x[0] != "#"] == [x for x in GOLDEN_FILE.splitlines() if x[0] != "#"]


@pytest.mark.parametrize(
    "text", ["[1, 2]", "a: 3", "a: [0]", "a: [x]", "a: [true]", "a: [", "!!python/object:os.system {}"]
)
def test_other_files_are_refused_in_one_sentence(text, tmp_path):
    (tmp_path / "wrong.bsh").write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.bsh"):
        load_base_shapes(tmp_path / "wrong.bsh")
    with pytest.raises(ValueError, match=r"absent\.bsh"):
        load_base_shapes(tmp_path / "absent.bsh")


def test_base_and_delta_must_be_of_one_kind():
    with pytest.raises(ValueError, match=r"embed\.weight"):
        make_base_shapes(Net(16, 32), nn.ModuleDict({"head": nn.Linear(3, 3)}))


def test_base_and_delta_of_one_width_are_refused(tmp_path):
    with pytest.raises(ValueError, match="base and delta have the same width"):
        make_base_shapes(Net(16, 32), Net(16, 32), savefile=tmp_path / "no.bsh")
    assert not (tmp_path / "no.bsh").exists()
    with pytest.raises(ValueError, match="base and delta have the same width"):
        make_base_shapes(Odd(3, 3), Odd(3, 3))


class Odd(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "delta", "role"),
    [
        ((8, 4), (16, 8), Role("hidden", m_in=1.0, m_out=1.0)),
        ((3, 4), (3, 8), Role("vector")),
        ((4, 3), (8, 3), Role("vector")),
        ((2, 8, 4), (2, 16, 8), Role("hidden")),
    ],
    ids=str,
)
def test_a_parameter_of_a_users_own_has_the_role_of_its_shape(shape, delta, role):
    assert roles(Odd(*shape), make_base_shapes(Odd(*shape), Odd(*delta)))["weight"] == role


def test_parameters_without_a_mup_rule_are_refused_by_name():
    with pytest.raises(ValueError, match=r"weight of shape .* grows in 3"):
        roles(Odd(2, 2, 2), make_base_shapes(Odd(2, 2, 2), Odd(4, 4, 4)))
    with pytest.raises(ValueError, match=r"head\.bias"):
        roles(Net(64, 192), {name: shape for name, shape in BASE.items() if name != "head.bias"})
    with pytest.raises(ValueError, match=r"out\.weight"):
        roles(Net(64, 192), {**BASE, "out.weight": (16,)})


def test_a_map_out_of_a_width_must_be_a_readout():
    net = Net(64, 192, readout=nn.Linear)
    with pytest.raises(ValueError, match=r"^head is a linear map from a width \(64\) to a fixed size \(11\)"):
        roles(net, BASE)
    weight = net.head.weight
    assert make_readouts(net, BASE) == ["head"]
    assert net.head.weight is weight
    assert net.head.mult == 0.25
    assert roles(net, BASE)["head.weight"] == Role("readout", m_in=4.0)
    assert make_readouts(net, BASE) == []
    with pytest.raises(ValueError, match="norm"):
        make_readouts(net, BASE, ["norm"])


def test_a_readout_multiplies_its_input():
    readout, x = Readout(8, 3, mult=0.25), torch.randn(5, 8)
    torch.testing.assert_close(readout(x), nn.functional.linear(x, readout.weight) / 4 + readout.bias)
    plain = Readout(8, 3)
    assert torch.equal(plain(x), nn.functional.linear(x, plain.weight, plain.bias))


@pytest.mark.parametrize("drawn", ["constant", "fan_in"])
def test_initial_weights_have_the_deviation_of_the_base_but_hidden_ones(drawn):
    torch.manual_seed(0)
    stds: dict[int, dict[str, float]] = {}
    for width in (64, 1024):
        net = mlp(width)
        if drawn == "constant":
            for parameter in net.parameters():
                nn.init.normal_(parameter, std=0.02)
        init_(net, roles(net, make_base_shapes(mlp(64), mlp(128))), drawn=drawn)
        stds[width] = {name: p.std().item() for name, p in net.named_parameters()}
    for name, std in stds[1024].items():
        expected = stds[64][name] / (4 if name == "2.weight" else 1)
        assert std == pytest.approx(expected, rel=0.5 if name == "4.bias" else 0.25), name
    net = mlp(64)
    before = [p.detach().clone() for p in net.parameters()]
    init_(net, roles(net, make_base_shapes(mlp(64), mlp(128))), drawn=drawn)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)), (
        "at the base nothing changes"
    )


DRAWS = {
    "fan_out": lambda weight: nn.init.kaiming_normal_(weight, mode="fan_out"),
    "xavier": nn.init.xavier_normal_,
}


@pytest.mark.parametrize("inner", [1, 4], ids=["square", "wide"])
@pytest.mark.parametrize("drawn", DRAWS)
def test_weights_drawn_by_fan_out_or_both_fans_become_those_of_mup(drawn, inner):
    """Against the deviation of the base, times 1 / sqrt(growth of the fan-in) for hidden ones, as mup's init does."""

    def net(width: int) -> nn.Sequential:
        torch.manual_seed(0)
        maps = nn.Linear(200, width), nn.Linear(width, inner * width), Readout(inner * width, 200)
        made = nn.Sequential(nn.Embedding(50, 200), *maps)
        for module in maps:
            DRAWS[drawn](module.weight)
        return made

    def stds(model: nn.Sequential) -> list[float]:
        return [parameter.std().item() for parameter in model.parameters()]

    base, model = net(64), net(1024)
    shapes = make_base_shapes(base, net(128))
    init_(model, roles(model, shapes), drawn=drawn)
    factors = [1, 1, 1, 1 / 4, 1, 1, 1]  # embedding; weight and bias of first, hidden, readout
    for std, std_0, factor, name in zip(
        stds(model), stds(base), factors, dict(model.named_parameters()), strict=True
    ):
        rel = 0.15 if name.endswith("weight") else 0.4
        assert std == pytest.approx(std_0 * factor, rel=rel), name


def test_initial_weights_are_scaled_once():
    net, base = Net(64, 192), BASE
    init_(net, roles(net, base), drawn="fan_in")
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for again in (net, copy.deepcopy(net), nn.Sequential(net)):
        own_base = {f"0.{name}": shape for name, shape in base.items()} | base
        with pytest.raises(ValueError, match="init_ has already scaled the weights of this model"):
            init_(again, roles(again, own_base), drawn="fan_in")
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    with pytest.raises(ValueError, match="drawn='normal'; allowed: constant, fan_in, fan_out, xavier"):
        init_(Net(64, 192), roles(net, base), drawn="normal")


def tiny_hf(kind: str, width: int, n_heads: int = 2):
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        GPT2Config,
        GPT2LMHeadModel,
        RobertaConfig,
        RobertaForMaskedLM,
    )

    shape = {"num_hidden_layers": 2, "hidden_size": width, "num_attention_heads": n_heads, "vocab_size": 40}
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(n_layer=2, n_embd=width, n_head=n_heads, vocab_size=40, n_positions=16)
        )
    classes = {"bert": (BertConfig, BertForMaskedLM), "roberta": (RobertaConfig, RobertaForMaskedLM)}
    config, model = classes[kind]
    return model(config(**shape, intermediate_size=2 * width, max_position_embeddings=20))


@pytest.mark.parametrize(
    ("kind", "head"),
    [("gpt2", "lm_head"), ("bert", "cls.predictions.decoder"), ("roberta", "lm_head.decoder")],
)
def test_models_of_transformers_have_roles_groups_and_init(kind, head, tmp_path):
    file = tmp_path / f"{kind}.bsh"
    make_base_shapes(tiny_hf(kind, 16), tiny_hf(kind, 24), savefile=file)
    base, model = load_base_shapes(file), tiny_hf(kind, 64)
    with pytest.raises(ValueError, match=f"^{head} is a linear map"):
        roles(model, base)
    assert make_readouts(model, base) == [head]
    role = roles(model, base)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    init_(model, role)
    for name, parameter in model.named_parameters():
        kind_of = "embedding" if any(part in name for part in ("wte", "wpe", "_embeddings.")) else "hidden"
        assert role[name].kind == (kind_of if parameter.ndim == 2 else "vector"), name
        factor = 0.5 if role[name].kind == "hidden" else 1.0
        assert torch.equal(parameter, before[name] * factor), name
    optimizer = torch.optim.AdamW(param_groups(model, role, lr=1e-3))
    for group in optimizer.param_groups:
        assert group["lr"] == (1e-3 / 4 if group["name"] == "hidden x0.25" else 1e-3)
    ids = torch.arange(12)[None]
    before = model(ids).logits
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    assert not torch.equal(model(ids).logits, before)
    assert copy.deepcopy(model).get_output_embeddings().mult == 0.25


def test_conv1d_counts_its_input_first():
    """If two widths grow differently, the order of a matrix's sizes matters."""
    from transformers.pytorch_utils import Conv1D

    base = make_base_shapes(Conv1D(32, 16), Conv1D(64, 32))
    assert roles(Conv1D(64, 128), base)["weight"] == Role("hidden", m_in=8.0, m_out=2.0)
    assert roles(nn.Linear(128, 64), make_base_shapes(nn.Linear(16, 32), nn.Linear(32, 64)))[
        "weight"
    ] == Role("hidden", m_in=8.0, m_out=2.0)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_scores_of_transformers_can_be_scaled(kind):
    model = tiny_hf(kind, 64)
    before = [m.scaling for m in model.modules() if isinstance(getattr(m, "scaling", None), float)]
    ids = torch.arange(12)[None]
    model.eval()
    plain = model(ids).logits
    scale_scores(model, 0.5)
    after = [m.scaling for m in model.modules() if isinstance(getattr(m, "scaling", None), float)]
    assert len(before) >= 2
    assert after == [scaling / 2 for scaling in before]
    assert not torch.equal(model(ids).logits, plain)
    assert math.isclose(before[0], 32**-0.5)
