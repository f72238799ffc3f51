"""Finding, listing and opening saved runs."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

import model_explorer
from explore.load import find_run

FIRST, SECOND = "2024-04-22--16-17-00", "2024-04-22--16-17-01"


def folder_of(root: Path, timestamp: str = FIRST) -> Path:
    return root / "saved-models" / "little" / timestamp


def edit_json(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_opens_as_four_values(root):
    results = model_explorer.get_model_by_timestamp(FIRST, out=str(root))
    lm, dataset, train_stats, params = results
    assert set(params) == {"data", "train", "model"}
    assert (params["model"].dim, params["train"].batch_size, params["data"].n_samples) == (8, 8, 200)
    assert [tuple(stat) for stat in train_stats["stat/val_loss:main"]][1] == (1, 8, 2, 4.0 - 1 / 8)
    batch = next(iter(dataset.val_dataloader(4)))
    assert dataset.tokenizer is lm.tokenizer
    assert lm(batch["x_indices"][:, :-1]).shape == (4, batch["x_indices"].shape[1] - 1, lm.n_tokens)
    assert len(next(iter(dataset.test_dataloader(4)))["x_indices"]) == 4


def test_the_environment_names_the_root_too(root, monkeypatch):
    monkeypatch.setenv("WHATIF_OUT", str(root))
    assert model_explorer.get_model_by_timestamp(SECOND).params["model"].dim == 16
    assert len(model_explorer.runs(all=True)) == 2


@pytest.mark.parametrize(
    "wrong", ["2024-04-22--16-17-02", "2024-4-22", "../../../etc/passwd", "../" + FIRST, "", 5]
)
def test_a_wrong_timestamp_lists_the_nearest(root, wrong):
    with pytest.raises(ValueError, match=f"no run .* nearest: .*{SECOND}"):
        model_explorer.get_model_by_timestamp(wrong, out=str(root))


def test_a_wrong_timestamp_among_many_names_the_nearest(root):
    for day in range(1, 28):
        shutil.copytree(folder_of(root), folder_of(root, f"2023-05-{day:02}--10-00-00"))
    with pytest.raises(ValueError, match="nearest: 2023-05-14--10-00-00, "):
        find_run("2023-05-14--10-00-99", str(root))


def test_an_incomplete_run_is_named_as_such(root):
    folder_of(root).rename(folder_of(root, f"{FIRST}.partial"))
    with pytest.raises(ValueError, match=f"the run {FIRST} is incomplete"):
        model_explorer.get_model_by_timestamp(FIRST, out=str(root))
    assert model_explorer.runs(str(root), all=True).status[FIRST].startswith("incomplete")
    assert list(model_explorer.load_all(str(root))) == [SECOND]


def test_two_runs_of_one_timestamp_are_named(root):
    shutil.copytree(folder_of(root), root / "saved-models" / "copied" / FIRST)
    with pytest.raises(ValueError, match=r"2 runs .*copied.*little"):
        find_run(FIRST, str(root))


def test_runs_is_a_table_of_params_and_final_numbers(root):
    table = model_explorer.runs(str(root), all=True)
    assert list(table.index) == [FIRST, SECOND]
    assert list(table.status) == ["complete", "complete"]
    assert list(table.dim) == [8, 16]
    assert table.task_args[FIRST] == {"min_length": 2, "max_length": 5}
    about = json.loads((folder_of(root) / "about.json").read_text())
    assert table.val_loss[FIRST] == about["summary"]["val_loss"]
    assert Path(table.folder[FIRST]) == folder_of(root)


@pytest.mark.parametrize(("n_active", "is_shown"), [(40, True), (100, False)])
def test_active_parameters_are_shown_where_there_are_experts(root, n_active, is_shown):
    for name, value in (("n_params", 100), ("n_active_params", n_active)):
        edit_json(folder_of(root) / "about.json", "summary", name, value=value)
    assert ("n_active_params" in repr(model_explorer.runs(str(root)))) == is_shown
    assert model_explorer.runs(str(root)).n_active_params[FIRST] == n_active


def test_runs_are_filtered_by_params(root):
    def dims(**filters):
        return list(model_explorer.runs(str(root), all=True, **filters).dim)

    assert dims(dim=8) == [8]
    assert dims(dim=[8, 16]) == [8, 16]
    assert dims(dim=8, dataset_name="copy") == [8]
    assert dims(dim=8, dataset_name="sort") == []
    assert dims(task_args={"min_length": 2, "max_length": 5}, betas=(0.9, 0.95)) == [8, 16]
    with pytest.raises(ValueError, match=r"no filter 'dimm'.*; did you mean 'dim'"):
        dims(dimm=8)


def test_runs_saved_before_a_field_existed_have_its_default(root):
    params = json.loads((folder_of(root) / "params.json").read_text())
    del params["model"]["positions"]
    (folder_of(root) / "params.json").write_text(json.dumps(params))
    assert list(model_explorer.runs(str(root), positions="learned", all=True).dim) == [8, 16]


def test_runs_lists_unreadable_runs_with_the_reason(root):
    edit_json(folder_of(root) / "params.json", "model", "gone", value=1)
    (folder_of(root, SECOND) / "about.json").write_text("{")
    table = model_explorer.runs(str(root), all=True)
    assert table.status[FIRST].startswith("unreadable")
    assert "ModelParams has no field 'gone'" in table.status[FIRST]
    assert "about.json cannot be read" in table.status[SECOND]
    assert len(model_explorer.runs(str(root), dim=[8, 16], all=True)) == 0


def test_no_runs_are_an_empty_table(tmp_path):
    table = model_explorer.runs(str(tmp_path), dim=8, all=True)
    assert len(table) == 0
    assert "dim" in table.columns
    with pytest.raises(ValueError, match="nearest: none at all"):
        find_run(FIRST, str(tmp_path))


@pytest.mark.slow
@pytest.mark.ci
def test_a_thousand_runs_are_listed_quickly(root):
    for i in range(1000):
        folder = folder_of(root, f"2023-01-01--{i // 3600:02}-{i // 60 % 60:02}-{i % 60:02}")
        folder.mkdir()
        for name in ("params.json", "about.json"):  # and nothing else, as nothing else is read
            shutil.copy(folder_of(root) / name, folder)
    start = time.perf_counter()
    assert len(model_explorer.runs(str(root), dim=8, all=True)) == 1001
    assert time.perf_counter() - start < 5


def test_load_all_opens_the_runs_that_match(root):
    opened = model_explorer.load_all(str(root), dim=16)
    assert list(opened) == [SECOND]
    assert opened[SECOND].lm.model_params.dim == 16
    assert not opened[SECOND].lm.training


def test_load_all_skips_damaged_runs(root, capsys):
    (folder_of(root) / "model.safetensors").write_bytes(b"nonsense")
    assert list(model_explorer.load_all(str(root))) == [SECOND]
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{FIRST} is left out: ")
    assert "model.safetensors" in line


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    "change",
    [
        {"n_samples": 10**8},
        {"task_args": {"min_length": 10**8, "max_length": 10**8}},
        {"dataset_name": "tinystories", "task_args": {}},
    ],
)
def test_opening_a_run_neither_draws_nor_downloads(root, monkeypatch, change):
    def no_data(*_):
        raise AssertionError("asked for the data")

    monkeypatch.setattr("data.dataloader.get_data", no_data)
    for field, value in change.items():
        edit_json(folder_of(root) / "params.json", "data", field, value=value)
    lm, dataset, *_ = model_explorer.get_model_by_timestamp(FIRST, out=str(root))
    assert dataset.tokenizer is lm.tokenizer
    with pytest.raises(AssertionError, match="asked for the data"):
        dataset.n_rows("train")


def test_a_task_that_has_changed_is_one_sentence(root):
    edit_json(folder_of(root) / "params.json", "data", "task_args", value={"min_len": 2})
    dataset = model_explorer.get_model_by_timestamp(FIRST, out=str(root)).dataset
    with pytest.raises(ValueError, match=r"dataset_name='copy' has no 'min_len'; did you mean 'min_length'"):
        dataset.n_rows("train")


@pytest.mark.parametrize("name", ["no-such-text", "../../../../etc", "/etc"])
def test_a_run_whose_data_is_gone_still_opens(root, name):
    edit_json(folder_of(root) / "params.json", "data", "dataset_name", value=name)
    lm, dataset, *_ = model_explorer.get_model_by_timestamp(FIRST, out=str(root))
    assert torch.isfinite(lm("ab")).all()
    with pytest.raises(ValueError, match=f"dataset_name='{name}' is not a corpus"):
        dataset.val_dataloader(1)
    with pytest.raises(ValueError, match="dataset_name="):
        model_explorer.verify_stable_load(FIRST, out=str(root))


def test_runs_shows_what_varies_and_the_best_first(root):
    for timestamp, loss in ((FIRST, 3.0), (SECOND, 2.0)):
        edit_json(folder_of(root, timestamp) / "about.json", "summary", "val_loss", value=loss)
    table = model_explorer.runs(str(root))
    assert list(table.index) == [SECOND, FIRST]
    shown = str(table)
    for word in ("config", "dataset_name", "dim", "code", "val_loss", "ended"):
        assert re.search(rf"\b{word}\b", shown), word
    for word in ("random_seed", "threads", "folder"):
        assert word not in shown
    assert "runs(all=True) shows all" in shown
    assert "runs(all=True) shows all" in table._repr_html_()
    assert list(table.config) == ["little"] * 2
    assert list(table.random_seed) == [0, 0], "hidden columns can be used"
    assert "random_seed" in table[["random_seed"]].to_string()
    assert list(model_explorer.runs(str(root), all=True).index) == [FIRST, SECOND]


def test_runs_without_a_result_come_last(root):
    edit_json(folder_of(root, SECOND) / "about.json", "summary", "stopped", value="diverged: loss 99")
    folder_of(root).rename(folder_of(root, f"{FIRST}.partial"))
    shutil.copytree(folder_of(root, SECOND), folder_of(root, "2024-04-22--16-17-09"))
    edit_json(folder_of(root, "2024-04-22--16-17-09") / "about.json", "summary", "stopped", value="finished")
    table = model_explorer.runs(str(root))
    assert table.index[0] == "2024-04-22--16-17-09"
    assert table.ended[SECOND] == "diverged: loss 99"
    assert table.ended[FIRST].startswith("incomplete")


def test_latest_is_the_last_complete_run(root):
    assert find_run("latest", str(root)) == folder_of(root, SECOND)
    assert model_explorer.get_model_by_timestamp("latest", out=str(root)).params["model"].dim == 16
    assert model_explorer.diff(FIRST, "latest", str(root)).fields["dim"] == (8, 16)
    folder_of(root, SECOND).rename(folder_of(root, f"{SECOND}.partial"))
    assert find_run("latest", str(root)) == folder_of(root)


def test_latest_without_any_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no run 'latest' .* nearest: none at all"):
        find_run("latest", str(tmp_path))
