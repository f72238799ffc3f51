"""Batch.cut, and what a batch stays on its way to training_step."""

import copy

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from data.batch import Batch, mycollate, parts


def rows():
    return mycollate([[1, 5, 6, 7, 2], [1, 8, 2]], pad=9)


def test_cut_keeps_the_first_predicted_tokens_and_what_stands_before_them():
    batch = rows()
    batch["weight"] = torch.ones(2)
    batch["extra"] = torch.arange(10).reshape(2, 5)
    short = batch.cut(2)
    assert type(short) is Batch
    assert short["x_indices"].tolist() == [[1, 5, 6], [1, 8, 2]]
    assert short["mask"].tolist() == [[True] * 3] * 2
    assert short["target_mask"].tolist() == [[False, True, True]] * 2
    assert short["extra"].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert torch.equal(short["weight"], batch["weight"])
    assert batch["x_indices"].shape == (2, 5)


def test_rows_that_are_not_longer_stay_as_they_are():
    for n in (4, 9):
        assert all(torch.equal(tensor, rows()[name]) for name, tensor in rows().cut(n).items())


@pytest.mark.parametrize("n", [0, -1])
def test_nothing_to_predict_is_refused(n):
    with pytest.raises(ValueError, match=f"n={n} must be at least 1"):
        rows().cut(n)


def test_a_batch_keeps_its_type_wherever_it_goes():
    batch = rows()
    ways = [
        move_data_to_device(batch, torch.device("cpu")),
        copy.deepcopy(batch),
        copy.copy(batch),
        *parts(batch, 1),
        *parts(batch, 1, rank=1, world=3),
    ]
    assert {type(way) for way in ways} == {Batch}


def test_pinned_memory_keeps_the_type(monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self.clone())  # needs a GPU
    assert type(pin_memory(rows())) is Batch
