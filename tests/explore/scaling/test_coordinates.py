"""The coordinate check: muP passes, standard does not, each planted bug is seen, and any module can be checked."""

import math
import re
from dataclasses import replace
from functools import partial

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

import explore.scaling.coordinates as coordinates
import model.mup.parametrization as parametrization
from benchmarks import parts
from explore.plots import RED
from explore.scaling.coordinates import (
    FINITE,
    HIGH,
    LOW,
    aligned_probe,
    coord_check,
    coordinate_report,
    fit_slope,
    measure_kind,
    measure_sizes,
    named_activations,
    size,
)
from explore.scaling.report import beyond
from model.lm import LM
from model.model_params import ModelParams
from model.mup.base_shapes import make_base_shapes
from model.mup.parametrization import init_, make_readouts, param_groups, roles
from tests.model.tiny import CharTokenizer, batch_of, random_ids, tiny_params
from train.logs import log_to_console
from train.optimizers import make_optimizer
from train.train_params import TrainParams

mpl.use("Agg")
WIDTHS = (64, 128, 256)
MUP = tiny_params(
    dim=64,
    n_heads=4,
    init="unit",
    tied_embeddings=False,
    activation="relu",
    parametrization="mup",
    mup_base_dim=64,
    mup_base_heads=4,
    max_seq_len=32,
)
BATCH = batch_of(random_ids(4, 33))
optimizer = partial(make_optimizer, params=TrainParams(lr=2**-7, weight_decay=0.0))


def make(params: ModelParams, width: int, heads_grow: bool = True, edit=None) -> LM:
    heads = width // 16 if heads_grow else 4
    lm = LM(replace(params, dim=width, n_heads=heads), CharTokenizer())
    if edit is not None:
        edit(lm)
    return lm


def models(params: ModelParams = MUP, widths=WIDTHS, **options) -> dict:
    return {width: partial(make, params, width, **options) for width in widths}


STANDARD = replace(MUP, parametrization="standard")


@pytest.mark.slow
@pytest.mark.ci
def test_mup_passes_and_the_standard_control_fails():
    kinds = {"standard": models(STANDARD), "mup": models()}
    found = coord_check(kinds, [BATCH], optimizer, controls=["standard"])
    assert found.verdict == "pass", found
    alone = coord_check(models(STANDARD), [BATCH], optimizer)
    assert alone.verdict.startswith("fail: ")
    worst = float(alone.table.filter(like="t=").max(axis=None))
    assert worst >= 0.8
    assert f"grows as width^{worst:.2f}" in alone.verdict
    own = found.table[found.table["variant"] == "mup"].set_index(["module", "of"])
    assert own.loc[("logits", "size"), "t=1"] == pytest.approx(-0.5, abs=0.15)
    assert math.isnan(own.loc[("logits", "update"), "t=1"]), "nothing has changed before the first step"
    assert {"layers.1.scores", "embed", "layers.0.mlp_out", "final_norm"} <= set(
        own.index.get_level_values(0)
    )


PARTS = [
    {"value_embeddings": True, "tied_embeddings": True},
    {"canon": "abcd"},
    {"residual": "rezero"},
    {"residual": "layerscale"},
    {"positions": "t5"},
    {"positions": "hard-alibi"},
    {"n_loops": 2},
    {"share": "k=v, o=q.T, norms"},
    {"share": "attention, down=up.T"},
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", PARTS, ids=str)
def test_mup_is_right_for_parts_of_the_block(fields):
    found = coord_check(models(replace(MUP, **fields)), [BATCH], optimizer)
    assert found.passed, found


@pytest.mark.slow
@pytest.mark.parametrize("part", [part for part in parts.PARTS if part.fields], ids=lambda part: part.name)
def test_mup_is_right_for_every_part_or_refuses_it(part):
    """The figures of docs/parts.md."""
    assert re.fullmatch(r"-?\d\.\d\d to -?\d\.\d\d|refused: .*", parts.slopes_over_widths(part))


@pytest.mark.slow
@pytest.mark.ci
def test_a_control_that_passes_fails_the_check():
    found = coord_check({"a": models(), "b": models()}, [BATCH], optimizer, n_steps=2, controls=["a"])
    assert found.verdict.startswith("fail: a was expected to fail, but passes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"n_experts": 4, "n_shared_experts": 1, "gated": True},
        {"n_experts": 4, "router_bias": True, "gated": "clamped"},
        {"n_experts": 4, "experts_per_token": 1, "balance": "bias"},
        {"norm_position": "inside", "qk_norm": "all-heads"},
        {"parallel_blocks": "one-norm"},
    ],
    ids=str,
)
def test_mup_passes_with_parts_of_the_block(fields):
    found = coord_check(models(replace(MUP, **fields)), [BATCH], optimizer, seeds=(0, 1))
    assert found.passed, found


@pytest.mark.slow
def test_a_hidden_learning_rate_that_is_not_divided_is_seen(monkeypatch):
    monkeypatch.setattr(parametrization, "lr_factor", lambda role, rule: 1.0)
    assert not coord_check(models(), [BATCH], optimizer).passed


@pytest.mark.slow
def test_a_missing_output_multiplier_is_seen():
    def without(lm: LM) -> None:
        lm.unembed.mult = 1.0

    found = coord_check(models(edit=without), [BATCH], optimizer)
    assert not found.passed
    assert "logits" in found.verdict


@pytest.mark.slow
@pytest.mark.ci
def test_attention_by_the_root_of_the_head_is_seen_by_the_probe():
    def by_root(lm: LM) -> None:
        for layer in lm.decoder.layers:
            layer.mixer.temperature = 1.0

    of_four = replace(MUP, mup_base_heads=0)  # heads, which widen
    right = coord_check(models(of_four, heads_grow=False), [BATCH], optimizer, seeds=(0, 1))
    assert right.passed, right
    wrong = coord_check(models(of_four, heads_grow=False, edit=by_root), [BATCH], optimizer)
    assert "mean score of aligned queries and keys grows as width^0.5" in wrong.verdict
    probe = aligned_probe("", models(STANDARD, heads_grow=False), BATCH)
    assert probe["score"].iloc[-1] / probe["score"].iloc[0] == pytest.approx(2, rel=0.2)


def test_models_without_keys_like_queries_have_no_aligned_probe():
    assert aligned_probe("", models(replace(MUP, n_kv_heads=1), heads_grow=False), BATCH).empty
    assert aligned_probe("", {8: lambda: nn.Linear(2, 2)}, BATCH).empty


# Any module


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(8, width), nn.Linear(width, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        return self.last(self.hidden(self.first(x).relu()).relu())


BASE = make_base_shapes(Net(64), Net(128))


def mup_net(width: int) -> nn.Module:
    net = Net(width)
    make_readouts(net, BASE)
    init_(net, roles(net, BASE), drawn="fan_in")
    return net


def adam(net: nn.Module, by_role: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        param_groups(net, roles(net, BASE), lr=1e-2) if by_role else net.parameters(), lr=1e-2
    )


def test_a_users_own_network_is_checked():
    torch.manual_seed(0)
    loader = [(torch.randn(64, 8), torch.randint(3, (64,)))]
    widths = (64, 256, 1024)
    right = coord_check(
        {w: partial(mup_net, w) for w in widths}, loader, partial(adam, by_role=True), seeds=(0, 1)
    )
    assert right.passed, right
    assert right.table["module"].unique().tolist() == ["first", "hidden", "output"]
    plain = coord_check({w: partial(Net, w) for w in widths}, loader, partial(adam, by_role=False))
    assert not plain.passed


# What is measured


def test_sizes_are_those_of_the_model_before_each_update():
    table = measure_sizes("", models(widths=(64,)), BATCH, optimizer, n_steps=3)
    torch.manual_seed(0)
    lm = make(MUP, 64)
    train, first = optimizer(lm), named_activations(lm, BATCH)
    for t in (1, 2, 3):
        seen = named_activations(lm, BATCH)
        own = table[table["t"] == t].set_index("module")
        assert own["size"]["logits"] == seen["logits"].abs().mean().item()
        if t > 1:
            expected = (seen["layers.1.mlp_out"] - first["layers.1.mlp_out"]).abs().mean().item()
            assert own["update"]["layers.1.mlp_out"] == pytest.approx(expected)
        train.zero_grad()
        lm.get_losses(BATCH, None)[0]["main"].backward()
        train.step()
    assert not {name for name in table["module"] if "resid_pre" in name or "head_out" in name}


def test_an_activation_that_an_edit_names_is_measured():
    lm = make(MUP, 64)
    layer = lm.decoder.layers[0]
    plain = layer._ff_block
    layer._ff_block = lambda x, ctx: plain(ctx.tap("my_gate", x * 3), ctx)
    names = {name.rpartition(".")[2] for name in coordinates.named_activations(lm, BATCH)}
    expected = "embed q k v scores z attn_out my_gate mlp_pre mlp_post mlp_out resid_post final_norm logits"
    assert names == {*expected.split()}


def test_masked_scores_do_not_count_in_a_size():
    assert size(torch.tensor([1.0, -3.0, -math.inf])) == 2
    assert math.isnan(size(torch.tensor([-math.inf])))


def power_law(**powers: float) -> pd.DataFrame:
    """Sizes that are powers of the width, settled from the first step on."""
    rows = [
        ("", width, seed, t, module, width**power, math.nan)
        for module, power in powers.items()
        for width in (64, 128, 256)
        for seed in (0, 1)
        for t in (1, 2, 3, 4)
    ]
    return pd.DataFrame(rows, columns=["variant", "width", "seed", "t", "module", "size", "update"])


NO_PROBE = pd.DataFrame(columns=["variant", "width", "seed", "score"])


@pytest.mark.parametrize(
    ("powers", "verdict"),
    [
        ({"a": 0.15, "b": -0.15, "logits": -0.5, "scores": -0.45}, "pass"),
        ({"a": 0.5, "b": 1.0}, "fail: b grows as width^1.00 at t=1 (at most 0.2)"),
        ({"a": -0.4}, "fail: a shrinks as width^-0.40 at t=4 (at least -0.2)"),
        ({"output": -0.5}, "pass"),
        ({"layer.0.output": -0.4}, "fail: layer.0.output shrinks as width^-0.40 at t=4 (at least -0.2)"),
        ({"logits": -0.9}, "fail: logits shrinks as width^-0.90 at t=1 (at least -0.6)"),
    ],
)
def test_verdicts_on_known_powers(powers, verdict):
    assert coordinate_report(power_law(**powers), NO_PROBE).verdict == verdict


def test_activations_that_are_zero_have_no_slope():
    zero = power_law(a=0.0, logits=0.0)
    zero.loc[zero["module"] == "logits", "size"] = 0.0
    found = coordinate_report(zero, NO_PROBE)
    assert found.passed
    assert found.table.set_index("module").loc["logits", "t=1"].isna().all()


def test_the_verdict_is_logged_even_if_saving_fails(tmp_path, capsys):
    log_to_console()
    (tmp_path / "reports").write_text("in the way")
    assert coordinate_report(power_law(a=1.0), NO_PROBE).say(tmp_path / "reports") == 1
    shown = capsys.readouterr()
    assert "failed to save" in shown.out + shown.err
    assert shown.out.rstrip().splitlines()[-1].startswith("fail: a grows as width^1.00")


def test_a_verdict_is_saved_with_its_table_and_figure(tmp_path):
    found = coordinate_report(power_law(a=0.0), NO_PROBE)
    size = found.figure.get_size_inches().tolist()
    found.save(tmp_path / "reports")
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', (tmp_path / "reports" / "coord-check.svg").read_text())
    assert 200 < float(width[1]) <= 72 * 3.25, "a column of a paper"
    assert found.figure.get_size_inches().tolist() == size
    assert sorted(path.suffix for path in (tmp_path / "reports").iterdir()) == [
        ".csv",
        ".pdf",
        ".png",
        ".svg",
    ]
    assert pd.read_csv(tmp_path / "reports" / "coord-check.csv")["t=4"][0] == pytest.approx(0, abs=1e-9)


def test_the_figure_has_a_panel_for_each_activation_and_the_offender_is_red():
    found = coordinate_report(
        power_law(**{"embed": 0.0, "layers.0.z": 1.0, "layers.0.scores": -0.5}), NO_PROBE
    )
    panels = {ax.get_title(): ax for ax in found.figure.axes if ax.get_title()}
    assert list(panels) == ["embed", "layers.0.z", "layers.0.scores"]
    reds = {
        name: [np.array_equal(line.get_color(), RED) for line in ax.get_lines()]
        for name, ax in panels.items()
    }
    n_lines = 8  # a line and its clipped points for each step
    assert reds == {
        "embed": [False] * n_lines,
        "layers.0.z": [True] * n_lines,
        "layers.0.scores": [False] * n_lines,
    }
    assert {name for name, ax in panels.items() if ax.title.get_color() == RED} == {"layers.0.z"}
    assert panels["layers.0.z"].get_lines()[0].get_ydata() == pytest.approx([1, 2, 4])
    band = panels["layers.0.scores"].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((4**LOW, 4**HIGH))
    assert [len(ax.collections) for ax in panels.values()] == [2, 2, 1]  # scores may go on shrinking
    [legend] = found.figure.legends
    assert [text.get_text() for text in legend.get_texts()][4:] == [
        "not allowed",
        "allowed (-0.6 to 0.2)",
        "allowed at t = 4",
    ]


def noisy_law(power: float, noise: float, widths=(64, 128, 256), seeds=range(4), module="a") -> pd.DataFrame:
    """Sizes that are a power of the width, times noise whose logarithms have that deviation (in octaves)."""
    rng = np.random.default_rng(0)
    rows = [
        ("", width, seed, 4, module, width**power * 2 ** (noise * rng.normal()), math.nan)
        for width in widths
        for seed in seeds
    ]
    return pd.DataFrame(rows, columns=["variant", "width", "seed", "t", "module", "size", "update"])


def test_the_interval_of_a_slope_is_that_of_a_regression():
    table = noisy_law(0.5, 0.3)
    x, y = np.log2(table["width"]), np.log2(table["size"])
    expected = stats.linregress(x, y)
    found = fit_slope(table, "size")
    assert (found.value, found.error, found.dof) == pytest.approx((expected.slope, expected.stderr, 10))
    low, high = found.interval(0.05)
    margin = math.hypot(stats.t.isf(0.025, 10) * expected.stderr, FINITE)
    assert (low, high) == pytest.approx((found.value - margin, found.value + margin))


def test_a_slope_outside_its_band_is_unclear_while_its_interval_is_wide():
    doubtful = coordinate_report(noisy_law(-0.3, 0.35), NO_PROBE)
    assert doubtful.verdict.startswith("cannot tell: a shrinks as width^-0.")
    assert "95 % interval" in doubtful.verdict
    assert "10 seeds (now 4), or a width of 512 beside 256" in doubtful.verdict
    clear = coordinate_report(noisy_law(-0.5, 0.05), NO_PROBE)
    assert "cannot tell" not in clear.verdict
    assert not clear.passed
    assert coordinate_report(noisy_law(-0.23, 0.05), NO_PROBE).passed, "far from every slope of a bug"


def test_one_seed_and_two_widths_cannot_fail_a_model():
    lone = coordinate_report(noisy_law(0.6, 0.0, widths=(64, 128), seeds=[0]), NO_PROBE)
    assert lone.verdict.startswith("cannot tell: a grows as width^0.60")


def test_an_activation_that_is_not_a_number_does_not_pass():
    table = noisy_law(0.0, 0.0)
    table.loc[5, "size"] = math.nan
    assert coordinate_report(table, NO_PROBE).verdict == "fail: a is not finite at t=4, width 128, seed 1"
    assert math.isnan(size(torch.tensor([1.0, math.nan])))


def test_seeds_are_added_only_while_the_verdict_is_unclear(monkeypatch):
    def measure(power: float, noise: float):
        def of(variant, models, batch, optimizer, *, seeds):
            asked.append(list(seeds))
            table = noisy_law(power, noise, seeds=range(16))
            return table[table["seed"].isin(seeds)]

        return of

    monkeypatch.setattr(coordinates, "aligned_probe", lambda *_: NO_PROBE)
    for power, noise, n in ((0.0, 0.05, 4), (1.0, 0.05, 4), (-0.3, 0.9, 16)):
        asked: list[list[int]] = []
        own, _ = measure_kind("", {}, None, None, seeds=range(4), max_seeds=16, measure=measure(power, noise))
        assert sorted(own["seed"].unique()) == list(range(n)) == [seed for part in asked for seed in part]
    asked = []
    measure_kind("", {}, None, None, seeds=(3, 5), max_seeds=2, measure=measure(-0.3, 0.9))
    assert asked == [[3, 5]], "those that are asked for, and no others"


def test_a_value_outside_its_band_is_never_shown_as_equal_to_the_bound():
    assert [beyond(value, -0.2) for value in (-0.4, -0.204, -0.2004)] == ["-0.40", "-0.204", "-0.2004"]
