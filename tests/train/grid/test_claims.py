"""The Expect section: what claims say, and the place and reason of every error in them."""

import pytest

from train.grid.claims import Pick, read_claim
from train.grid.config_text import Place
from train.grid.expand import GridError, expand_grid

AXES = "TrainParams\nrandom_seed = [1, 2, 3]\nlr = [1e-3, 3e-3]\nModelParams\nn_layers = [1, 2]\ndim = [32, 64]\n"
HERE = Place("t.txt", 1)


@pytest.fixture
def read(tmp_path):
    """Reads a config with the lines of an Expect section; returns its expectations and the errors of its text."""

    def config(section: str, axes: str = AXES):
        file = tmp_path / "configs" / "t.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{axes}Expect\n{section}\n", encoding="utf-8")
        part = expand_grid([file])[-1]
        return part.expectations, list(part.errors.lines)

    return config


def test_a_section_with_source_minutes_and_claims(read):
    expected, errors = read(
        'topic = "algorithms"\nsource = "Weiss et al. 2021"\nminutes = 1.5\n'
        'claims = {"deep": "val_loss(n_layers=2, dim=32) < val_loss(n_layers=1, dim=32) - 0.1"}'
    )
    found = (expected.topic, expected.source, expected.minutes, errors)
    assert found == ("algorithms", "Weiss et al. 2021", 1.5, [])
    [claim] = expected.claims
    assert list(claim.picks.values()) == [
        Pick("val_loss(n_layers=2, dim=32)", ("val_loss",), {"n_layers": 2, "dim": 32}),
        Pick("val_loss(n_layers=1, dim=32)", ("val_loss",), {"n_layers": 1, "dim": 32}),
    ]
    [comparison] = claim.comparisons
    assert comparison.operator == "<"
    assert comparison.right({"pick_1": 3.0}) == pytest.approx(2.9)


def test_what_a_call_stands_for():
    def pick(text: str) -> Pick:
        [only] = read_claim("c", f"{text} > 0", HERE).picks.values()
        return only

    assert pick('val_accuracy("long", dim=64)').columns == ("val_accuracy[long]",)
    assert pick('steps_to("val_loss < 3.3")').columns == ("steps_to: val_loss < 3.3",)
    assert pick('slope("n_params", "val_loss", log=True)') == Pick(
        "slope('n_params', 'val_loss', log=True)", ("n_params", "val_loss"), {}, "slope", True
    )
    assert pick("val_loss(sliding_window=(64,) * 3 + (None,))").fields == {
        "sliding_window": (64, 64, 64, None)
    }
    of_group = pick("val_loss(task_args={'group': 'A5'})")
    assert of_group.takes({"task_args": {"group": "A5", "length": 3}})
    assert not of_group.takes({"task_args": {"group": "S5"}})
    assert pick("abs(val_loss(dim=-1 + 65))").fields == {"dim": 64}


def test_the_same_pick_twice_is_one():
    claim = read_claim("c", "-0.1 < val_loss(dim=64) - val_loss(dim=32) < 0.1 * val_loss(dim=64)", HERE)
    assert len(claim.picks) == 2
    assert [one.operator for one in claim.comparisons] == ["<", "<"]


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("val_loss(n_layers=2)", "is no comparison"),
        ("val_loss(n_layers=2) == 3", "is no comparison"),
        ("1 < 2", "calls no column"),
        ("val_loss < 2", "brackets pick the runs, as in val_loss(n_layers=2) or val_loss()"),
        ("val_loss(n_layer=2) < 3", "there is no field 'n_layer'; did you mean 'n_layers'?"),
        ("val_loss(n_layers=2).real < 3", "is not allowed"),
        ("val_loss(2) < 3", "values need the names of their fields, as in val_loss(n_layers=2)"),
        ("val_loss(**{}) < 3", "is not allowed"),
        ("val_loss('a', 'b') < 3", "at most the name of an evaluation set"),
        ("steps_to('soon', dim=32) < 3", "takes a condition"),
        ("slope('val_loss') < 3", "takes two columns"),
        ("val_loss(n_layers=2, dim=32) < limit", "there is no field 'limit'"),
        ("val_loss(n_layers=3, dim=32) < 3", "picks no run; n_layers is 1, 2 here"),
        ("val_loss(n_layers=2) < 3", "picks runs with several values of dim (32, 64); add dim=32"),
    ],
)
def test_a_wrong_claim_is_refused_at_its_place(read, claim, message):
    try:
        _, errors = read(f'claims = {{"c": {claim!r}}}')
    except GridError as error:
        errors = error.errors
    [line] = errors
    assert line.startswith("configs/t.txt:8: claim 'c': ")
    assert message in line


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("claims = ['a']", "claims takes an expression for each name"),
        ("claims = {'a': 3}", "claims takes an expression for each name"),
        ("minutes = 'three'", "minutes takes a number, not 'three'"),
        ("source = 3", "source takes text, not 3"),
        ("topic = ['a']", "topic takes text, not ['a']"),
        ("claim = {}", "Expect has no 'claim'; did you mean 'claims'?"),
        ("match = 'params'", "it belongs under Grid"),
    ],
)
def test_a_wrong_key_is_refused_at_its_place(read, section, message):
    try:
        _, errors = read(section)
    except GridError as error:
        errors = error.errors
    assert [line for line in errors if message in line and line.startswith("configs/t.txt:8: ")]


def test_a_tuned_learning_rate_and_seeds_need_no_choice(read):
    assert read('claims = {"c": "val_loss(n_layers=2, dim=32) < 3"}')[1] == []
    variants = 'Grid\nvariants = {"a": {"dim": 32}, "b": {"dim": 64, "n_heads": 2}}\n'
    axes = AXES.replace("dim = [32, 64]\n", "") + variants
    assert read('claims = {"c": "val_loss(variant=\'b\', n_layers=1) < 3"}', axes)[1] == []
    [line] = read('claims = {"c": "val_loss(n_layers=1) < 3"}', axes)[1]
    assert "several values of variant ('a', 'b'); add variant='a'" in line
