"""A split with nothing to score is refused before training."""

import pytest

from data import text_rows as text
from data.data_params import DataParams
from data.syntheticdata import Task, tasks
from model.model_params import ModelParams
from train.launch.plan import measure_data


def measured(tmp_path, max_seq_len=16, mask=False, **fields):
    objective = {"objective": "masked", "causal": False} if mask else {}
    model = ModelParams(dim=8, n_heads=1, n_layers=1, max_seq_len=max_seq_len, **objective)
    return measure_data(DataParams(**fields), model, tmp_path, None)[1]


def test_a_masked_model_that_is_shown_bos_only_is_refused(tmp_path):
    fields = {"dataset_name": "pydoc", "debug_crop": 3, "val_pct": 50.0, "test_pct": 0.0}
    message = (
        r"dataset_name='pydoc' with max_seq_len=1 and objective='masked': no token of the training split"
    )
    with pytest.raises(ValueError, match=message):
        measured(tmp_path, max_seq_len=1, mask=True, **fields)
    assert measured(tmp_path, max_seq_len=1, **fields).n_val_rows > 0
    assert measured(tmp_path, max_seq_len=2, mask=True, **fields).n_val_rows > 0


@pytest.mark.slow
@pytest.mark.ci
def test_a_task_whose_held_out_samples_score_nothing_is_refused(tmp_path, monkeypatch):
    def draw(rng):
        word = "".join(rng.choices("ab", k=12))
        return f"«{word}»c" if word[0] == "a" else f"{word}«»c"

    monkeypatch.setitem(tasks, "mine", Task("mine", draw, None, None, None))
    assert measured(tmp_path, dataset_name="mine", n_samples=100).n_rows == 90
    monkeypatch.setitem(
        tasks, "mine", Task("mine", lambda rng: f"{rng.randrange(10**6):06}«»c", None, None, None)
    )
    with pytest.raises(
        ValueError, match=r"dataset_name='mine' with max_seq_len=16: no token of the training"
    ):
        measured(tmp_path / "2", dataset_name="mine", n_samples=100)


@pytest.mark.parametrize("packed", [None, False])
def test_text_whose_validation_documents_are_empty_is_refused(packed, tmp_path, monkeypatch):
    documents = {"train": ["abc", "bcd"], "val": ["", ""]}
    monkeypatch.setattr(
        text, "read_corpus", lambda *_: {split: iter(texts) for split, texts in documents.items()}
    )
    fields = {"dataset_name": "pydoc", "test_pct": 0.0, "packed": packed}
    with pytest.raises(ValueError, match="no token of the validation split is scored"):
        measured(tmp_path / "1", **fields)
    documents["val"] = ["", "a"]
    assert measured(tmp_path / "2", **fields).n_val_rows > 0
