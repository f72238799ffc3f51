"""muP in models of transformers: sizes stay as they get wider, and each planted bug is seen."""

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

import explore.scaling.coordinates as coordinates
import model.mup.parametrization as parametrization
from explore.scaling.report import ScalingReport, slope
from model.mup.base_shapes import Shapes, load_base_shapes, make_base_shapes
from model.mup.parametrization import init_, make_readouts, param_groups, roles, scale_scores

KINDS = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "bert": (BertConfig, BertForMaskedLM),
    "roberta": (RobertaConfig, RobertaForMaskedLM),
}
WIDTHS, BASE, BASE_HEADS = (64, 256), 64, 4
LR = 1e-3
IDS_BT = torch.randint(3, 100, (4, 32), generator=torch.Generator().manual_seed(0))
Make = Callable[[int], nn.Module]


class Logits(nn.Module):
    """A model whose output is a tensor; without dropout, which is another one at every width."""

    def __init__(self, kind: str, width: int, n_heads: int = BASE_HEADS, inner: int | None = None) -> None:
        super().__init__()
        config, model = KINDS[kind]
        inner_name = "n_inner" if kind == "gpt2" else "intermediate_size"
        sizes = {"hidden_size": width, "num_attention_heads": n_heads, inner_name: inner or 4 * width}
        ids = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 2}
        self.model = model(config(num_hidden_layers=2, **sizes, **ids))
        self.eval()

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.model(ids_BT).logits


@cache
def base_shapes(kind: str) -> Shapes:
    with torch.device("meta"):
        return make_base_shapes(Logits(kind, BASE), Logits(kind, 2 * BASE))


def in_mup(kind: str, width: int, n_heads: int = BASE_HEADS, inner: int | None = None) -> Logits:
    model = Logits(kind, width, n_heads, inner)
    make_readouts(model, base_shapes(kind))
    init_(model, roles(model, base_shapes(kind)))
    scale_scores(model, ((width / n_heads) / (BASE / BASE_HEADS)) ** -0.5)
    return model


def adamw(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(param_groups(model, roles(model, base_shapes(kind)), lr=LR))


def loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    return F.cross_entropy(model(ids_BT)[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())


def check(kind: str, make: Make, optimizer=None, **options) -> ScalingReport:
    models = {width: partial(make, width) for width in WIDTHS}
    return coordinates.coord_check(models, [IDS_BT], optimizer or partial(adamw, kind), loss=loss, **options)


def slopes(found: ScalingReport, module: str) -> list[float]:
    """Return the slopes of a module's output size against width, one for each step."""
    table = found.table[(found.table["module"] == module) & (found.table["of"] == "size")]
    [row] = table.filter(like="t=").to_numpy().tolist()
    return row


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch):
    """Skip figures, which take half of the time of a check. tests/test_notebook.py draws them."""
    monkeypatch.setattr(coordinates, "draw_panels", lambda *panels, **options: None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_stay_as_heads_get_wider(kind):
    found = check(kind, partial(in_mup, kind), seeds=(0, 1))
    assert found.passed, found


@pytest.mark.slow
@pytest.mark.ci
def test_sizes_stay_as_heads_get_more():
    found = check("bert", lambda width: in_mup("bert", width, n_heads=width // 16), seeds=(0, 1))
    assert found.passed, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_without_mup_activations_grow_with_width(kind):
    def adamw_of_all(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=LR)

    found = check(kind, partial(Logits, kind), adamw_of_all, n_steps=2)
    assert found.table["t=2"].max() >= 0.8, found


# Planted bugs


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_output_multiplier_is_seen(kind):
    def without(width: int) -> nn.Module:
        model = in_mup(kind, width)
        model.model.get_output_embeddings().mult = 1.0
        return model

    found = check(kind, without, n_steps=2)
    assert "output grows" in found.verdict
    assert slopes(found, "output")[0] >= 0.4


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_learning_rate_that_is_not_divided_is_seen(kind, monkeypatch):
    monkeypatch.setattr(parametrization, "lr_factor", lambda role, rule: 1.0)
    found = check(kind, partial(in_mup, kind), n_steps=2)
    assert found.table["t=1"].max() <= coordinates.HIGH, "it begins as it should"
    assert found.table["t=2"].max() >= 0.4
    assert not found.passed


def test_hidden_weights_that_are_drawn_too_large_are_seen(monkeypatch):
    monkeypatch.setitem(globals(), "init_", lambda model, roles: None)
    found = check("gpt2", partial(in_mup, "gpt2"), n_steps=1)
    assert slopes(found, "model.transformer.h.1.mlp")[0] >= 0.8


@pytest.mark.slow
def test_conv1d_has_its_input_first_where_inner_layers_grow_faster(monkeypatch):
    """The inner size grows as width^2, so it matters by which of its sizes a matrix is scaled."""

    def with_wide_inner(width: int) -> nn.Module:
        return in_mup("gpt2", width, inner=width**2 // 16)

    right = check("gpt2", with_wide_inner)
    assert right.passed, right
    assert slopes(right, "model.transformer.h.0.mlp.c_fc")[0] == pytest.approx(0, abs=0.1)
    monkeypatch.setattr(parametrization, "fan_dimensions", wrong_way_round)
    wrong = check("gpt2", with_wide_inner, n_steps=1)
    assert slopes(wrong, "model.transformer.h.0.mlp.c_fc")[0] == pytest.approx(-0.5, abs=0.1)


fan_dimensions = parametrization.fan_dimensions


def wrong_way_round(module: nn.Module, grown: list[int]) -> tuple[int, int]:
    i_in, i_out = fan_dimensions(module, grown)
    return (i_out, i_in) if len(grown) == 2 else (i_in, i_out)


# What the coordinate check does not see: scores that are divided by sqrt(K)


@torch.no_grad()
def aligned_score(model: Logits) -> float:
    """The mean score of a position with itself if keys were queries; of attention as transformers calls it."""
    scores = []

    def note(module, q_BHTK, k_BHSK, v_BHSK, mask, *, scaling, **rest):
        scores.append((q_BHTK * q_BHTK).sum(-1).mean().item() * scaling)
        return v_BHSK.transpose(1, 2), None

    AttentionInterface.register("note", note)
    model.model.set_attn_implementation("note")
    model(IDS_BT)
    assert len(scores) == 2
    return sum(scores)


def aligned_slope(make: Make) -> float:
    torch.manual_seed(0)
    return slope(WIDTHS, [aligned_score(make(width)) for width in WIDTHS])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_aligned_queries_and_keys_stay_as_heads_get_wider(kind, monkeypatch):
    assert abs(aligned_slope(partial(in_mup, kind))) <= coordinates.MAX_ALIGNED_SLOPE
    assert (
        abs(aligned_slope(lambda width: in_mup(kind, width, n_heads=width // 16)))
        <= coordinates.MAX_ALIGNED_SLOPE
    )
    monkeypatch.setitem(globals(), "scale_scores", lambda model, mult: None)
    assert aligned_slope(partial(in_mup, kind)) >= 0.4


# Files


@pytest.mark.parametrize("kind", KINDS)
def test_base_shapes_from_a_file_are_those_that_were_saved(kind, tmp_path):
    with torch.device("meta"):
        made = make_base_shapes(Logits(kind, BASE), Logits(kind, 2 * BASE), savefile=tmp_path / "base.bsh")
    assert load_base_shapes(tmp_path / "base.bsh") == made == base_shapes(kind)
    sizes = {n for shape in made.values() for n in shape}
    assert sizes == {None, BASE, 3 * BASE, 4 * BASE} if kind == "gpt2" else {None, BASE, 4 * BASE}
