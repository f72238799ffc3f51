"""Damaged folders and strangers' folders: each ends in one sentence, runs nothing and asks for no memory."""

import json
import os
import pickle
import signal
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.lm import LM
from tests.train.little_run import TINY, make_lm, save_run
from train.saving import weights
from train.saving.run_folder import load_run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Bomb:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


OURS = [
    "params.json",
    "about.json",
    "model.safetensors",
    "stats.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_ids.json",
]


def refusal(folder: Path) -> str:
    """The one sentence with which `folder` is refused."""
    with pytest.raises(ValueError, match=str(folder)) as caught:
        load_run(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 600 + 2 * len(str(folder))
    return sentence


@pytest.mark.parametrize("name", OURS)
def test_a_pickle_under_our_name_is_refused_and_never_run(tmp_path, name):
    folder = save_run(tmp_path)
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refusal(folder)
    assert not (tmp_path / "exploded").exists()


def test_files_we_do_not_read_are_not_read(tmp_path):
    folder = save_run(tmp_path)
    for name in (
        "diff.patch",
        "log.txt",
        "model.pt",
        "last.ckpt",
        "pytorch_model.bin",
        "tokenizer/tokenizer.pkl",
        "model.py",
    ):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    torch.save(Bomb(tmp_path / "exploded"), folder / "model.pth")
    load_run(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"null", b"[1]", b'{"a": {}}', b'{"a":' * 100_000, b'{"params":' + b"[" * 900 + b"]" * 900 + b"}", b"1" * 10_000],
    ids=["empty", "no utf-8", "null", "list", "foreign", "deep, open", "deep, closed", "long number"],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, name, content):
    folder = save_run(tmp_path)
    (folder / name).write_bytes(content)
    refusal(folder)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", OURS)
def test_a_missing_file_a_folder_or_a_pipe_is_refused_at_once(tmp_path, name):
    folder = save_run(tmp_path)
    signal.alarm(20)
    try:
        (folder / name).unlink()
        refusal(folder)
        (folder / name).mkdir()
        refusal(folder)
        (folder / name).rmdir()
        os.mkfifo(folder / name)
        refusal(folder)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("size", [2**60, 2**62 + 5, 90_000_000, 2**33])
def test_a_huge_header_is_refused(tmp_path, size):
    folder = save_run(tmp_path)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{" * 1000)
    refusal(folder)


def edit_params(folder: Path, section: str, **values: object) -> None:
    params = json.loads((folder / "params.json").read_text())
    params[section] |= values
    (folder / "params.json").write_text(json.dumps(params))


HUGE = [
    {"dim": 2**40},
    {"dim": 2**62, "n_heads": 2**61},
    {"dim": 10**30},
    {"n_layers": 10**9},
    {"dim": 2**40, "n_heads": 2**39, "separate_heads": True},
    {"dim_ff": 2**50},
    {"max_seq_len": 2**50},
    {"positions": "sin", "max_seq_len": 2**36},
    {"positions": "rotary", "max_seq_len": 2**36},
    {"positions": "none", "max_seq_len": 10**30},
    {"layer_architecture": "torch-lstm", "n_layers": 10**9},
]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("values", HUGE, ids=str)
def test_params_of_a_huge_model_are_refused_before_it_is_built(tmp_path, values):
    positions = values.get("positions", "learned")
    folder = save_run(tmp_path, make_lm(replace(TINY, positions=positions)))
    edit_params(folder, "model", **values)
    start = time.process_time()
    if values == {"positions": "none", "max_seq_len": 10**30}:
        load_run(folder)  # a number and nothing more
    else:
        refusal(folder)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("model", {"dim": "8"}, "ModelParams.dim"),
        ("model", {"dim": 8.5}, "ModelParams.dim"),
        ("model", {"n_heads": 3}, "n_heads=3 must divide dim=8"),
        ("model", {"layer_architecture": "os.system"}, "layer_architecture='os.system'"),
        ("train", {"lr": float("nan")}, "TrainParams.lr"),
        ("train", {"betas": [[[]]]}, "TrainParams.betas"),
        ("data", {"dataset_name": ["copy"]}, "DataParams.dataset_name"),
        ("model", {"__init__": 1}, "ModelParams has no field '__init__'"),
        ("train", {"x" * 10_000: 1}, "TrainParams has no field 'xxx"),
    ],
)
def test_params_that_are_none_are_refused_by_name(tmp_path, section, values, told):
    folder = save_run(tmp_path)
    edit_params(folder, section, **values)
    assert told in refusal(folder)


def test_nothing_is_allocated_for_a_model_that_does_not_fit(tmp_path, monkeypatch):
    folder = save_run(tmp_path)
    edit_params(folder, "model", dim=16)
    devices = []

    def spy(*args):
        devices.append(torch.get_default_device().type)
        return LM(*args)

    monkeypatch.setattr(weights, "LM", spy)
    refusal(folder)
    edit_params(folder, "model", dim=8)
    load_run(folder)
    assert devices == ["meta", "meta", "cpu"]


@pytest.mark.slow
@pytest.mark.ci
def test_params_of_any_depth_are_read_or_refused(tmp_path):
    folder, errors = save_run(tmp_path), []
    text = (folder / "params.json").read_text()
    for depth in range(200, 1200, 40):
        deep = '{"a":' * depth + "1" + "}" * depth
        (folder / "params.json").write_text(text.replace('"task_args": {', f'"task_args": {{"deep": {deep},'))
        try:
            load_run(folder)
        except ValueError as error:
            errors.append(str(error))
    assert any("cannot be read" in error for error in errors)  # by json
    assert any("cannot be read" not in error for error in errors)  # by us


@pytest.mark.slow
@pytest.mark.ci
def test_weights_that_do_not_fit_are_named(tmp_path):
    folder = save_run(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "decoder.layers.1.linear1.weight"
    save_file(weights | {name: torch.zeros(3, 8)}, folder / "model.safetensors")
    assert f"'{name}' is (3, 8) in the file, but (32, 8) by params.json" in refusal(folder)
    save_file(weights | {"extra": torch.zeros(1)}, folder / "model.safetensors")
    assert "'extra' is (1,) in the file, but absent by params.json" in refusal(folder)
    del weights[name]
    save_file(weights, folder / "model.safetensors")
    assert f"'{name}' is absent in the file, but (32, 8) by params.json" in refusal(folder)


def test_a_commit_is_printed_only_if_it_is_one(tmp_path):
    folder = save_run(tmp_path)
    edit_params(folder, "model", gone=1)
    about = json.loads((folder / "about.json").read_text())
    for commit, told in [
        (COMMIT, f"saved at commit {COMMIT}"),
        ("\x1b[2J", "an unknown commit"),
        ([], "an unknown commit"),
    ]:
        (folder / "about.json").write_text(json.dumps(about | {"commit": commit}))
        assert told in refusal(folder)
