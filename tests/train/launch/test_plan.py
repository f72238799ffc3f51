"""Measurements of a run's data before it starts."""

import pytest

from data.data_params import DataParams
from model.model_params import ModelParams
from tests.train.little_run import CALL
from train.grid.expand import GridError, Run
from train.grid.params import Params
from train.launch.plan import list_of_numbers, prepare
from train.train_params import TrainParams

DATA = DataParams("pydoc", debug_crop=6, val_pct=20.0)


def run_of(**model):
    sizes = {"dim": 8, "n_layers": 1, "n_heads": 1, "max_seq_len": 8}
    return Run(Params(DATA, TrainParams(), ModelParams(**sizes | model)), {}, "tiny", None)


def test_runs_of_one_text_and_two_objectives_have_data_of_their_own(tmp_path):
    runs = [
        run_of(objective=objective, causal=causal)
        for objective, causal in (("next-token", True), ("masked", False))
    ]
    plain, masked = prepare(runs, CALL._replace(out=tmp_path))
    assert plain.identity != masked.identity
    # The masked one has a token to hide others with: one more row of the embedding, whose width is 8.
    assert masked.size.n_params - plain.size.n_params == 8


def test_the_initial_weights_of_every_model_are_tried(tmp_path, monkeypatch):
    """Any field, also one that a user adds, may decide whether the weights can be loaded."""
    monkeypatch.setattr(
        "train.launch.plan.weights_problems",
        lambda model, *_: ["cannot be loaded"] if model.activation == "silu" else [],
    )
    runs = [run_of(activation=activation) for activation in ("relu", "gelu", "silu")]
    with pytest.raises(GridError, match=r"^defaults: cannot be loaded$"):
        prepare(runs, CALL._replace(out=tmp_path))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([1, 2, 3], "1, 2, 3"),
        ([1, 2, 3, 4, 7, 8], "1 to 4, 7, 8"),
        (range(1, 301), "1 to 300"),
        ([*range(1, 90, 2), 200, 201], f"{', '.join(map(str, range(1, 80, 2)))} and 7 more"),
    ],
)
def test_numbers_of_runs_in_a_row_are_a_range(numbers, text):
    assert list_of_numbers([str(number) for number in numbers]) == text
