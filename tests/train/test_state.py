"""Attributes as data: what users add to the trainer survives a kill, and what cannot is named."""

import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import NamedTuple

import numpy as np
import pytest
import torch

from train.state import Attributes, NotData, from_data, to_data
from train.stats import Stats


def through_a_file(data, path):
    torch.save(data, path)
    return torch.load(path, weights_only=True)


VALUES = [
    None,
    True,
    3,
    2**200,
    -math.inf,
    "text",
    [1, [2.5, None]],
    (1, "a", ()),
    {1: "int key", (2, 3): {"nested": [4]}},
    {1, 2},
    frozenset([1, 2]),
    deque([1, 2, 3], maxlen=3),
    OrderedDict(b=1, a=2),
    Counter("abca"),
    defaultdict(int, a=1),
    defaultdict(list, a=[1]),
    np.float64(1.5),
    np.int32(7),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_are_restored_exactly(value, tmp_path):
    again = from_data(through_a_file(to_data(value), tmp_path / "file"))
    assert again == value
    assert type(again) is type(value)
    assert getattr(again, "maxlen", 0) == getattr(value, "maxlen", 0)
    assert getattr(again, "default_factory", 0) == getattr(value, "default_factory", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_tensors_and_arrays_are_restored_bitwise(dtype, tmp_path):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)[:, 1::2]
    again = from_data(through_a_file(to_data({"ema": [tensor]}), tmp_path / "file"))["ema"][0]
    assert again.dtype == dtype
    assert torch.equal(again, tensor)
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    back = from_data(through_a_file(to_data(array), tmp_path / "file"))
    assert back.dtype == array.dtype
    assert (back == array).all()


def test_a_tensor_keeps_its_gradient_flag_and_leaves_the_rest_of_its_storage(tmp_path):
    tensor = torch.zeros(10**6)[:2].requires_grad_()
    again = from_data(through_a_file(to_data(tensor), tmp_path / "file"))
    assert again.requires_grad
    assert (tmp_path / "file").stat().st_size < 10_000


def draw_floats(generator) -> list[float]:
    if isinstance(generator, torch.Generator):
        return torch.rand(3, generator=generator).tolist()
    return [generator.random() for _ in range(3)]


def test_generators_draw_on_where_they_were(tmp_path):
    numpys = [np.random.Generator(kind(3)) for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox)]
    for die in (torch.Generator().manual_seed(3), random.Random(3), *numpys):
        draw_floats(die)
        again = from_data(through_a_file(to_data(die), tmp_path / "file"))
        assert [draw_floats(again), draw_floats(again)] == [draw_floats(die), draw_floats(die)]


class Pair(NamedTuple):
    a: int


@pytest.mark.parametrize("value", [object(), len, Pair(1), [Pair(1)], defaultdict(lambda: 0), {"f": print}])
def test_objects_with_code_are_not_data(value):
    with pytest.raises(NotData):
        to_data(value)


class Tally:
    def __init__(self):
        self.n = 0


class Owner:
    def __init__(self):
        self.constant, self.counter, self.log = 5, 0, [1]
        self.function, self.tally = (lambda: 0), Tally()
        self.stats = Stats()
        self.attributes = Attributes(self)


def test_only_changed_state_is_saved_and_unsavable_state_is_named():
    owner = Owner()
    assert owner.attributes.save()[0].keys() == {"stats"}
    owner.counter += 1
    owner.log.append(2)
    owner.later = deque([1.0], maxlen=4)
    owner.stats.log("a", 1.5, step=0, n_samples=8)
    saved, lost = owner.attributes.save()
    assert lost == []
    assert saved.keys() == {"counter", "log", "later", "stats"}
    other = Owner()
    other.constant = 6  # by other code
    other.attributes.restore(saved)
    assert (other.constant, other.counter, other.log, other.later) == (6, 1, [1, 2], deque([1.0], maxlen=4))
    assert other.stats.train_stats == owner.stats.train_stats
    owner.tally.n += 1
    owner.function = lambda: 1
    owner.another = Tally()
    owner.late_stats = Stats()
    assert sorted(owner.attributes.save()[1]) == ["another", "function", "late_stats", "tally"]
