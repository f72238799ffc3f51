"""`Grid match`: the widths that it chooses, against trying all of them, and who belongs to a group."""

from dataclasses import replace

import pytest

import main
from model.lm import n_params
from model.model_params import ModelParams
from model.shapes import build_on_meta
from tests.train.little_run import CALL
from train.flops import flops_per_row
from train.grid.expand import GridError, read_grid
from train.launch.match import flops_per_token, params_without_embeddings, solve
from train.launch.plan import prepare

BASE = ModelParams(dim=32, n_layers=2, n_heads=4, max_seq_len=16)
CONFIG = """DataParams
dataset_name = "copy"
n_samples = 100
TrainParams
{train}
ModelParams
n_layers = 2
n_heads = 4
{model}
Grid
{grid}
"""


def params_by_hand(model: ModelParams, n_tokens: int) -> int:
    """Without tables of embeddings, which are the only parameters of a model without layers, but for its last norm."""
    lm, bare = build_on_meta(model, n_tokens), build_on_meta(replace(model, n_layers=0), n_tokens)
    last_norm = sum(p.numel() for p in bare.decoder.parameters())
    return n_params(lm) - n_params(bare) + last_norm


def flops_by_hand(model: ModelParams, n_tokens: int) -> float:
    return flops_per_row(build_on_meta(model, n_tokens), model.max_seq_len) / model.max_seq_len


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tied_embeddings": False, "positions": "rotary"},
        {"layer_architecture": "torch-gru", "positions": "none"},
        {"layer_architecture": ("custom-transformer", "gated-conv"), "n_layers": 131},
    ],
)
def test_parameters_are_counted_without_embeddings(fields):
    model = replace(BASE, **fields)
    assert params_without_embeddings(model, 30) == params_by_hand(model, 30)


@pytest.mark.parametrize(
    ("fields", "field", "widths"),
    [
        ({"gated": True}, "dim_ff", range(60, 140)),
        ({"n_layers": 3}, "dim_ff", range(20, 90)),
        ({"dim": 40}, "dim_ff", range(40, 120)),
        ({"layer_architecture": "torch-gru", "positions": "none"}, "dim", range(20, 90, 4)),
        ({"dim_ff": 0, "positions": "rotary"}, "dim", range(24, 96, 4)),
    ],
    ids=["gated", "deeper", "wider", "gru", "without a feed-forward block"],
)
def test_the_width_is_the_best_of_all_widths(fields, field, widths):
    target, model = params_by_hand(BASE, 30), replace(BASE, **fields)
    sizes = {}
    for width in widths:
        try:
            sizes[width] = params_by_hand(replace(model, **{field: width}), 30)
        except ValueError:  # an odd number of dimensions of a head
            continue
    best = min(sizes, key=lambda width: abs(sizes[width] - target))
    assert best not in (min(sizes), max(sizes))
    found = solve(model, target, lambda m: params_without_embeddings(m, 30))
    if abs(sizes[best] - target) > 0.02 * target:
        nearest = f"{sizes[best]:,.0f}, with {field}={best}"
        assert found.startswith(
            f"comes no nearer to the {target:,.0f} of the first of its group than {nearest}"
        )
    else:
        assert found == replace(model, **{field: best})


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"gated": True}, {"n_layers": 3, "sliding_window": 4}])
def test_no_neighbor_of_the_width_has_nearer_flops(fields):
    target, model = flops_by_hand(BASE, 30), replace(BASE, **fields)
    found = solve(model, target, lambda m: flops_per_token(m, 30)).dim_ff
    distances = {
        width: abs(flops_by_hand(replace(model, dim_ff=width), 30) - target)
        for width in range(found - 2, found + 3)
    }
    assert min(distances, key=distances.__getitem__) == found
    assert distances[found] <= 0.02 * target


def test_a_model_of_the_right_size_stays_as_it_is():
    assert solve(BASE, params_by_hand(BASE, 30), lambda m: params_without_embeddings(m, 30)) is BASE


def planned(tmp_path, train="lr = 1e-3", model="dim = 32", grid='match = "params"', **options: str) -> list:
    (tmp_path / "trial.txt").write_text(CONFIG.format(train=train, model=model, grid=grid))
    typed = {f"--set {name}={value}": f"{name}={value}" for name, value in options.items()}
    return prepare(read_grid([tmp_path / "trial.txt"], typed), CALL._replace(out=tmp_path))


def sizes(runs) -> list[int]:
    return [params_by_hand(run.params.model, run.data.n_tokens) for run in runs]


def test_every_dim_is_a_group_of_its_own_and_learning_rates_share_one(tmp_path):
    runs = planned(tmp_path, train="lr = [1e-3, 1e-2]", model="dim = [32, 48]\ngated = [False, True]")
    assert [run.params.model.dim for run in runs] == [32, 32, 48, 48] * 2
    assert [run.params.model.dim_ff for run in runs][:2] == [None, runs[1].params.model.dim_ff]
    found = sizes(runs)
    for plain, gated in zip(found[::2], found[1::2], strict=True):
        assert plain != gated
        assert abs(plain - gated) <= 0.02 * plain
    assert found[0] < 0.7 * found[2]
    assert runs[1].identity != runs[3].identity
    assert "dim_ff" in runs[1].name, "the chosen width is one of the values that tell runs apart"


def test_variants_and_what_advances_with_them_are_matched(tmp_path):
    grid = 'match = "params"\nvariants = {"tf": {}, "gru": {"layer_architecture": "torch-gru", "positions": "none", "lr": 1e-2}}'
    runs = planned(tmp_path, train="epochs = 1", model="dim = 256", grid=grid)
    first, second = sizes(runs)
    assert runs[1].params.model.dim != 256
    assert abs(first - second) <= 0.02 * first


@pytest.mark.slow
def test_flops_are_matched_at_max_seq_len(tmp_path):
    runs = planned(
        tmp_path, model="dim = 32\nsliding_window = [None, 4]\nn_kv_heads = [None, 1]", grid='match = "flops"'
    )
    found = [flops_by_hand(run.params.model, run.data.n_tokens) for run in runs]
    assert max(found) <= 1.02 * found[0]
    assert min(found) >= 0.98 * found[0]
    assert [run.params.model.dim_ff is None for run in runs] == [True, False, True, False]


def test_what_match_takes(tmp_path):
    with pytest.raises(GridError) as caught:
        planned(tmp_path, grid="match = 'size'")
    assert caught.value.errors[0].endswith("trial.txt:11: match takes 'params' or 'flops', not 'size'")


def test_a_size_that_cannot_be_reached_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(GridError) as caught:
        planned(tmp_path, model="dim = 32", n_layers="[1,9]")
    [error] = caught.value.errors
    assert (
        "trial.txt:11: match = 'params': run 2 comes no nearer to the 12,768 of the first of its group than "
        in error
    )
    assert ", with dim_ff=1: at most 2 % apart are allowed, in parameters without embeddings" in error


def test_runs_that_a_match_makes_equal_are_refused(tmp_path):
    grid = 'match = "params"\nvariants = {"narrow": {"dim_ff": 64}, "wide": {"dim_ff": 96}}'
    with pytest.raises(
        GridError, match="makes runs 1 and 2 equal: they differ only in the width that it sets"
    ):
        planned(tmp_path, grid=grid)


@pytest.mark.slow
def test_a_dry_run_shows_what_was_chosen(tmp_path, capsys, monkeypatch):
    (tmp_path / "trial.txt").write_text(
        CONFIG.format(train="epochs = 1", model="dim = 32\ngated = [False, True]", grid="match = 'params'")
    )
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    assert main.main(["--config=trial", "--no-wandb", "--dry-run", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert (
        "run 1: match = 'params': dim=32, dim_ff=128 make 25,472 parameters without embeddings (+0.00% from the target)"
        in shown
    )
    assert "run 2: match = 'params': dim=32, dim_ff=85 make " in shown
    assert "dim_ff" in next(line for line in shown.splitlines() if "parameters" in line and "gated" in line)
