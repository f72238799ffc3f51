"""LMDataModule, its loaders and mycollate."""

import time

import numpy as np
import pytest
import torch

from data.cache import cached, code_digest
from data.dataloader import DataParams, LMDataModule, TokenizerSpec, get_data, mycollate
from data.syntheticdata import tasks

CHAR = TokenizerSpec("char")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def copies(cache):
    return LMDataModule(DataParams(dataset_name="copy", n_samples=500), CHAR, 64, cache=cache)


@pytest.fixture
def speeches(cache):
    return LMDataModule(DataParams(debug_crop=12), CHAR, 64, cache=cache)


def test_mycollate_pads_lists_of_ids():
    batch = mycollate([[1, 5, 6], [1, 7]], pad=9)
    assert batch["x_indices"].tolist() == [[1, 5, 6], [1, 7, 9]]
    assert batch["x_indices"].dtype == torch.int64
    assert batch["mask"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["target_mask"].tolist() == [[False, True, True], [False, True, False]]
    assert batch.keys() == {"x_indices", "mask", "target_mask"}, (
        "no counts: a batch may be cropped on its way"
    )
    assert mycollate([[1, 0, 0]])["mask"].all()  # a pad id inside a row is a token


def test_mycollate_takes_what_the_datasets_hand_out(copies, speeches):
    for module in (copies, speeches):
        rows = module.rows("val")
        whole, single = mycollate(rows.__getitems__([3, 0, 5])), mycollate([rows[3], rows[0], rows[5]])
        for key in ("x_indices", "mask", "target_mask"):
            assert torch.equal(whole[key], single[key])


def key_of(row):
    return tuple(row.tolist())


def rows_of(loader):
    return [key_of(x[m]) for batch in loader for x, m in zip(batch["x_indices"], batch["mask"], strict=True)]


@pytest.mark.parametrize("kind", ["copies", "speeches"])
def test_an_epoch_is_every_row_once_in_an_order_of_seed_and_epoch(kind, request):
    module = request.getfixturevalue(kind)
    module.data_workers = 0
    loader = module.train_dataloader(7, seed=3)
    first, second = rows_of(loader), rows_of(loader)
    rows = module.rows("train")
    assert sorted(first) == sorted(second) == sorted(tuple(rows[i].ids) for i in range(len(rows)))
    assert first != second
    again = module.train_dataloader(7, seed=3)
    assert rows_of(again) == first
    again.sampler.set_epoch(0)
    assert rows_of(again) == first
    assert rows_of(again) == second
    assert rows_of(module.train_dataloader(7, seed=4)) != first
    assert len(loader) == len(list(loader)) == -(-module.n_rows("train") // 7)


def test_validation_is_in_order_and_the_same_for_all_seeds(copies):
    loader = copies.val_dataloader(10)
    rows = copies.rows("val")
    assert rows_of(loader) == [tuple(rows[i].ids) for i in range(25)]
    assert len(loader) == 3
    assert len(rows_of(copies.test_dataloader(4))) == copies.n_rows("test") == 25


@pytest.mark.parametrize("accumulate", [2, 3, 8])
@pytest.mark.parametrize("kind", ["copies", "speeches"])
def test_accumulated_parts_are_the_rows_of_the_large_batch(kind, accumulate, request):
    module = request.getfixturevalue(kind)
    large = list(module.train_dataloader(6 * accumulate))
    loader = module.train_dataloader(6, accumulate=accumulate)
    parts = list(loader)
    assert len(loader) == len(parts)
    assert [row for batch in large for row in rows_of([batch])] == rows_of(parts)
    position = 0
    for batch in large:
        n_parts = -(-len(batch["x_indices"]) // 6)
        own = parts[position : position + n_parts]
        for name in ("mask", "target_mask"):
            assert sum(part[name].sum() for part in own) == batch[name].sum()
        assert all(part["mask"].any(0).all() for part in own)  # no column of padding only
        position += n_parts


def test_loaders_leave_the_global_generator_alone(copies):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(copies.train_dataloader(4)))
    list(copies.val_dataloader(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_worker_processes_give_the_same_batches(copies):
    alone = rows_of(copies.train_dataloader(16, accumulate=2))
    copies.data_workers = 2
    assert rows_of(copies.train_dataloader(16, accumulate=2)) == alone


def test_attributes_of_a_data_module(copies, speeches):
    assert copies.task is tasks["copy"]
    assert copies.val_bytes is None
    assert 0 < copies.chance < 0.2
    assert speeches.task is None
    assert speeches.val_bytes > 10_000
    assert 0.1 < speeches.chance < 0.25  # the space
    assert len(copies.prompts(3)) == 3


def test_show_sample(copies, speeches, capsys):
    copies.show_sample(1)
    sample = copies.data.samples.sample("train", 1)
    assert capsys.readouterr().out == f"train 1: {sample.replace('«', ' «')}\n"
    speeches.show_sample(0)
    assert capsys.readouterr().out.startswith("train 0: Fellow-Citizens of the Senate")


def test_a_given_tokenizer_is_used(cache, speeches):
    spec = TokenizerSpec("no-such-thing")
    module = LMDataModule(DataParams(debug_crop=12), spec, 64, cache=cache, tokenizer=speeches.tokenizer)
    assert module.tokenizer is speeches.tokenizer
    assert torch.equal(
        next(iter(module.val_dataloader(4)))["x_indices"], next(iter(speeches.val_dataloader(4)))["x_indices"]
    )


def test_get_data_returns_a_data_module(cache):
    data = get_data(DataParams(dataset_name="copy", n_samples=500), CHAR, cache)
    assert data.tokenizer.n_tokens == 31


def test_batches_are_assembled_fast(speeches):
    rows = speeches.rows("train")
    indices = np.random.default_rng(0).integers(0, len(rows), (200, 12)).tolist()
    times = []
    for batch in indices:
        start = time.perf_counter()
        mycollate(rows.__getitems__(batch))
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.0005


def test_a_warm_start_is_fast(cache, speeches):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        LMDataModule(DataParams(debug_crop=12), CHAR, 64, cache=cache)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2


def test_a_cache_folder_is_complete_or_absent(tmp_path):
    def fails(folder):
        (folder / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "thing", (1,), fails)
    assert not list(tmp_path.iterdir())
    folder = cached(tmp_path, "thing", (1,), lambda folder: (folder / "a").write_text("1"))
    assert cached(tmp_path, "thing", (1,), fails) == folder
    assert cached(tmp_path, "thing", (2,), lambda folder: None) != folder

    def overtaken(folder):
        (folder / "a").write_text("mine")
        cached(tmp_path, "thing", (3,), lambda other: (other / "a").write_text("theirs"))

    assert (cached(tmp_path, "thing", (3,), overtaken) / "a").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 3


def test_an_edit_of_a_file_in_data_misses_the_cache(tmp_path, monkeypatch):
    source = tmp_path / "data" / "syntheticdata.py"
    source.parent.mkdir()
    source.write_text("a task")
    monkeypatch.setattr("data.cache.__file__", str(source.parent / "cache.py"))

    def start_again():
        code_digest.cache_clear()
        return cached(tmp_path, "thing", (1,), lambda folder: None)

    first = start_again()
    assert start_again() == first
    source.write_text("an edited task")
    assert start_again() != first
    monkeypatch.undo()
    code_digest.cache_clear()
