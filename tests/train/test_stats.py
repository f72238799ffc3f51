"""train/stats.py: what is logged comes back exactly, and logging waits for nobody."""

import math
import time
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.stats import Stat, Stats


class Rows(list):
    """A tracker that only remembers."""

    log = list.append


def exact(train_stats):
    """With values as text, in which NaN equals NaN, and -0.0 is not 0.0."""
    return {name: [(s, n, c, repr(v)) for s, n, c, v in stats] for name, stats in train_stats.items()}


# --- the log


def test_values_are_kept_in_order_with_steps_samples_and_a_counter_over_all_metrics():
    stats = Stats()
    stats.log("val_loss:main", torch.tensor(0.5), step=1, n_samples=4)
    stats.log("lr", 3, step=1, n_samples=4)
    stats.drain()
    stats.drain()
    stats.log("lr", torch.tensor([0.25]), step=2, n_samples=8)
    assert stats.train_stats == {
        "stat/val_loss:main": [Stat(s=1, n=4, c=0, v=0.5)],
        "stat/lr": [Stat(1, 4, 1, 3.0), Stat(2, 8, 2, 0.25)],
    }


def test_every_dtype_comes_back_exactly_and_numbers_stay_in_their_place():
    values = [0.1, torch.tensor(0.1), torch.tensor(2**53 - 1), 7, torch.tensor(0.1, dtype=torch.bfloat16)]
    values += [torch.tensor(True), torch.tensor(2**53 - 3)]
    stats = Stats()
    for value in values:
        stats.log("x", value, step=0, n_samples=0)
    assert [stat.v for stat in stats.train_stats["stat/x"]] == [float(value) for value in values]
    assert all(type(stat.v) is float for stat in stats.train_stats["stat/x"])


def test_a_tensor_that_changes_later_was_logged_as_it_was():
    weight = torch.nn.Parameter(torch.tensor(1.0))
    stats = Stats()
    stats.log("weight", weight, step=0, n_samples=0)
    with torch.no_grad():
        weight += 1
    assert stats.train_stats["stat/weight"][0].v == 1.0


def test_a_pending_value_does_not_keep_the_graph_of_its_step_alive():
    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.probe = probes.pop()
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Probe:
        pass

    probes = [Probe()]
    alive = weakref.ref(probes[0])
    loss = Identity.apply(torch.ones((), requires_grad=True))
    stats = Stats()
    stats.log("loss", loss, step=0, n_samples=0)
    del loss
    assert alive() is None


def test_logging_reads_no_tensor_and_draining_reads_all_of_a_kind_at_once(monkeypatch):
    stats = Stats()
    stats.log("x", torch.tensor(1.0, device="meta"), step=0, n_samples=0)  # has no value: reading it raises
    with pytest.raises((RuntimeError, NotImplementedError)):
        stats.drain()
    stacks = []
    monkeypatch.setattr(
        torch, "stack", lambda tensors, stack=torch.stack: stacks.append(tensors) or stack(tensors)
    )
    monkeypatch.setattr(torch.Tensor, "item", None)
    stats = Stats()
    for i in range(6):
        stats.log("x", torch.tensor(float(i)), step=i, n_samples=i)
    stats.drain()
    assert [len(tensors) for tensors in stacks] == [6]


def test_logging_is_cheap():
    stats = Stats()
    value = torch.tensor(1.0, requires_grad=True) * 2

    def seconds(repeats=300):
        start = time.perf_counter()
        for _ in range(repeats):
            stats.log("x", value, step=0, n_samples=0)
        return (time.perf_counter() - start) / repeats

    assert min(seconds() for _ in range(20)) < 10e-6


def test_a_tensor_of_many_values_is_refused_by_name():
    with pytest.raises(ValueError, match=r"stat/attention is a tensor of shape \(2, 3\)"):
        Stats().log("attention", torch.zeros(2, 3), step=0, n_samples=0)


# --- the file


entries = st.lists(st.tuples(st.integers(0), st.integers(0), st.floats()), max_size=5)


@settings(max_examples=50, deadline=None)
@given(values=st.dictionaries(st.text(max_size=8), entries, max_size=3))
def test_a_saved_log_is_read_back_exactly(values, tmp_path_factory):
    stats = Stats()
    for name, entries in values.items():
        for s, n, v in entries:
            stats.log(name, v, step=s, n_samples=n)
    path = tmp_path_factory.getbasetemp() / "stats.json"
    stats.save(path)
    loaded = Stats.load(path).train_stats
    assert exact(loaded) == exact(stats.train_stats)
    assert all(isinstance(stat, Stat) for entries in loaded.values() for stat in entries)


def test_a_loaded_log_continues_its_counter(tmp_path):
    stats = Stats()
    for name in "aba":
        stats.log(name, 1, step=0, n_samples=0)
    stats.save(tmp_path / "stats.json")
    stats = Stats.load(tmp_path / "stats.json")
    stats.log("b", 1, step=0, n_samples=0)
    assert [stat.c for stat in stats.train_stats["stat/b"]] == [1, 3]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b'{"a": 1}', b"[" * 10**5, b"\x80\x04]q\x00."),
        *(b'{"a": [[1, 2, 3]]}', b'{"a": [[1, 2, 3, 4, 5]]}'),
        *(b'{"a": [[1, 2, 3, "x"]]}', b'{"a": [[1, 2, 3, null]]}', b'{"a": [["1", 2, 3, 4]]}'),
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)
def test_any_other_file_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "stats.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold statistics") as error:
        Stats.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# --- the tracker


def test_the_tracker_gets_the_same_numbers_a_moment_a_row_and_none_overwritten():
    rows = Rows()
    stats = Stats(rows)
    stats.log("loss", torch.tensor(4.0), step=1, n_samples=8)
    stats.log("loss", torch.tensor(3.0), step=1, n_samples=16)  # the other micro-batch of step 1
    stats.log("lr", 0.1, step=1, n_samples=16)
    stats.log("norm", math.inf, step=2, n_samples=16)
    stats.log("norm", 2.0, step=2, n_samples=16)  # the same name at the same moment
    assert rows == []
    stats.drain()
    stats.drain()
    assert rows == [
        {"step": 1, "n_samples": 8, "stat/loss": 4.0},
        {"step": 1, "n_samples": 16, "stat/loss": 3.0, "optim/lr": 0.1},
        {"step": 2, "n_samples": 16, "norms/norm": math.inf},
        {"step": 2, "n_samples": 16, "norms/norm": 2.0},
    ]
