"""What is measured of a run's data before it starts."""

from data.data_params import DataParams
from model.model_params import ModelParams
from tests.train.little_run import CALL
from train.grid.expand import Run
from train.grid.params import Params
from train.launch.plan import prepare
from train.train_params import TrainParams


def test_runs_of_one_text_and_two_objectives_have_data_of_their_own(tmp_path):
    runs = [
        Run(
            Params(
                DataParams("pydoc", debug_crop=6, val_pct=20.0),
                TrainParams(),
                ModelParams(dim=8, n_layers=1, n_heads=1, max_seq_len=8, objective=objective, causal=causal),
            ),
            {},
            "tiny",
            None,
        )
        for objective, causal in (("next-token", True), ("masked", False))
    ]
    call = CALL._replace(out=tmp_path)
    plain, masked = prepare(runs, call)
    assert plain.measured.tokenizer.mask is None
    assert masked.measured.tokenizer.mask is not None
    assert masked.measured.tokenizer.n_tokens == plain.measured.tokenizer.n_tokens + 1
