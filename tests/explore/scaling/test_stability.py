"""Output change against depth: what is measured, how it grows with each residual connection, and the verdicts."""

import copy
import math
from functools import partial

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from torch import nn

from explore.scaling.stability import changes, expected_growth, output_change, stability, stability_report
from model.lm import LM
from model.transformer.residual import as_module
from tests.model.tiny import CharTokenizer, random_ids, tiny_lm, tiny_params

mpl.use("Agg")
RESIDUALS = {
    "plain": ({}, "O(n)"),
    "O(logn)": ({"residual": "admin"}, "O(logn)"),
    "O(1)": ({"residual": "admin", "residual_change": "O(1)"}, "O(1)"),
}


def deep(depth: int, seed: int, **fields) -> LM:
    sizes = {"dim": 64, "n_heads": 4, "max_seq_len": 32, "init": "unit", "tied_embeddings": False}
    params = tiny_params(**sizes, norm_position="post", activation="relu", n_layers=depth, **fields)
    return LM(params, CharTokenizer(64))


@pytest.mark.parametrize("delta", [1e-4, 1e-3])
def test_output_change_measures_the_output_and_restores_the_weights(delta):
    torch.manual_seed(0)
    net, x = nn.Linear(5, 3).double(), torch.randn(7, 5).double()
    moved = copy.deepcopy(net)
    noise = torch.randn(net.weight.shape, generator=torch.Generator().manual_seed(2))
    moved.weight.data -= delta * noise.sign()
    before = copy.deepcopy(net.state_dict())
    change = output_change(net, x, delta, torch.Generator().manual_seed(2))
    assert change == pytest.approx((moved(x) - net(x)).square().mean().item(), rel=1e-6)
    assert change == pytest.approx(5 * delta**2, rel=1)
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())


def test_embeddings_norms_biases_and_omegas_do_not_move():
    lm = tiny_lm(norm_position="post", residual="admin", residual_trainable=True, tied_embeddings=False)
    ids = random_ids(2, 9)
    for name, parameter in lm.named_parameters():
        if parameter.ndim > 1 and name.startswith("decoder"):
            parameter.data.zero_()
    assert output_change(lm, ids, delta=0.0) == 0
    assert output_change(tiny_lm(n_layers=0), ids) == 0, "there are only embeddings, a norm and the readout"
    kept = [p.clone() for p in lm.parameters()]
    assert output_change(lm, ids) > 0
    assert all(torch.equal(p, old) for p, old in zip(lm.parameters(), kept, strict=True))


@pytest.mark.slow
@pytest.mark.ci
def test_changes_of_deep_post_norm_stacks_grow_as_theory_says():
    """6 and 48 layers: about 8 times for a plain stack, log 97 / log 13 times or not at all with Admin."""
    kinds = {name: partial(deep, **fields) for name, (fields, _) in RESIDUALS.items()}
    expected = {name: growth for name, (_, growth) in RESIDUALS.items()}
    found = stability(kinds, random_ids(4, 32, 64), [6, 48], seeds=(0, 1, 2), expected=expected)
    assert found.verdict == "pass", found
    ratios = found.table["ratio"].to_list()
    assert 5 <= ratios[0] <= 13
    assert 1.4 <= ratios[1] <= 2.2
    assert 0.8 <= ratios[2] <= 1.3
    assert found.table["nearest"].to_list() == ["O(n)", "O(logn)", "O(1)"]


class Stack(nn.Module):
    """A user's own: maps with residual connections and norms."""

    def __init__(self, depth: int, seed: int, change: str) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(32, 32, bias=False) for _ in range(depth)])
        self.residual = as_module(depth, change)
        self.norm = nn.LayerNorm(32)
        for one in self.maps:
            nn.init.normal_(one.weight, std=32**-0.5)

    def forward(self, x):
        for one in self.maps:
            x = self.norm(self.residual(x, one(x)))
        return x


def test_stability_works_for_any_module():
    x, kinds = torch.randn(16, 32), {change: partial(Stack, change=change) for change in ("O(n)", "O(1)")}
    found = stability(kinds, x, [8, 32], expected={"O(n)": "O(n)", "O(1)": "O(1)"}, sub_layers=1)
    assert found.verdict == "pass", found
    wrong = stability(kinds, x, [8, 32], expected={"O(n)": "O(1)", "O(1)": "O(1)"}, sub_layers=1)
    assert wrong.verdict.startswith("fail: O(n): ")
    alone = stability(partial(Stack, change="O(1)"), x, [8, 16], seeds=(0,))
    assert alone.passed
    assert "no expected growth" in alone.sentences[0]
    assert "verdict" not in alone._repr_html_()
    assert str(alone).endswith("pass")


def table(**changes_of) -> pd.DataFrame:
    """Changes at 6, 12 and 48 layers."""
    rows = [
        {"variant": name, "layers": depth, "seed": 0, "change": f(2 * depth)}
        for name, f in changes_of.items()
        for depth in (6, 12, 48)
    ]
    return pd.DataFrame(rows)


def test_verdicts_on_known_changes():
    known = table(plain=lambda n: 1e-4 * n, admin=lambda n: 2e-4 * math.log(n + 1))
    expected = {"plain": "O(n)", "admin": "O(logn)"}
    right = stability_report(known, expected)
    assert right.verdict == "pass"
    assert right.table["exponent"][0] == pytest.approx(1)
    assert right.table["ratio"][0] == pytest.approx(8)
    swapped = stability_report(known, {"plain": "O(logn)", "admin": "O(n)"})
    assert len(swapped.problems) == 3
    assert swapped.problems[0] == "plain: 8 times from 6 to 48 layers, but O(logn) is 1.39 to 2.21"
    near = stability_report(table(plain=lambda n: 1e-4 * n, admin=lambda n: 1e-3 * math.log(n + 1)), expected)
    assert near.verdict.startswith("fail: at 48 layers plain changes only 2.1 times as much as admin")
    dead = stability_report(table(plain=lambda n: 0.0), {"plain": "O(n)"})
    assert dead.verdict == "fail: plain: the output does not change, or is NaN"


def test_expected_growth_by_architecture():
    growth = {
        name: expected_growth(deep(1, 0, **fields).model_params) for name, (fields, _) in RESIDUALS.items()
    }
    assert growth == {name: growth for name, (_, growth) in RESIDUALS.items()}
    assert expected_growth(tiny_params()) == ""
    assert expected_growth(tiny_params(norm_position="post", residual="deepnet")) == "O(1)"


def test_seeds_and_depths_each_have_a_row():
    rows = changes("a", partial(Stack, change="O(1)"), torch.randn(2, 32), [1, 2], [0, 5])
    assert rows[["layers", "seed"]].to_numpy().tolist() == [[1, 0], [1, 5], [2, 0], [2, 5]]
    assert rows["change"].nunique() == 4
