"""--with: a user's file registers parts, counts as code of runs, travels to workers, and is never run unasked."""

import re

import pytest
import torch

import main
from common.repository import REPOSITORY
from explore.load import get_model_by_timestamp, runs
from model.context import layer_kinds
from model.transformer.norms import norms
from tests.marks import SLOW
from tests.model.tiny import random_ids, tiny_lm, tiny_params
from tests.train.test_optimizers import fresh, take_steps
from train.grid.run import OwnFile
from train.optimizers import make_optimizer, optimizers
from train.own_parts import load_parts, register_parts, remove_parts
from train.saving.code import Code, own_files
from train.saving.run_folder import find_run
from train.train_params import TrainParams

PARTS = '''
"""Parts of a test."""

import torch
from torch import nn

from data.syntheticdata import registered
from model.context import Layer, layer_kind
from model.transformer.norms import norms
from train.optimizers import optimizers

FACTOR = 0.5


@layer_kind("halving")
class Halving(Layer):
    """Add half of a linear map."""

    def __init__(self, params, dropout):
        super().__init__()
        self.map = nn.Linear(params.dim, params.dim)

    def forward(self, x, ctx):
        return x + FACTOR * self.map(x)


@optimizers.register
def slow_sgd(groups, params):
    """SGD at a tenth of lr."""
    return torch.optim.SGD(groups, lr=params.lr / 10)


@registered
def threes(dice, n=6):
    """abcabd"""
    return "".join(dice.choice("abcdefgh") for _ in range(n))
'''
CONFIG = """
DataParams
dataset_name = "threes"
n_samples = 200
val_pct = 20.0
TrainParams
optimizer = "slow_sgd"
batch_size = 8
threads = 1
ModelParams
layer_architecture = ("halving", "custom-transformer")
dim = 8
n_layers = 2
n_heads = 2
max_seq_len = 16
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_parts.py"
    path.write_text(PARTS)
    yield path
    remove_parts("my_parts.py")
    assert "halving" not in layer_kinds


def hashes(**values: str) -> dict[str, str]:
    found = Code.read(REPOSITORY).hashes(values)
    return {name: value for name, value in found.items() if name.startswith("with/")}


def test_parts_are_registered_and_only_used_ones_count_as_code(file):
    assert load_parts(file) == ["halving", "slow_sgd", "threes"]
    assert load_parts(file) == ["halving", "slow_sgd", "threes"], "loading it again is no second part"
    unused, used = hashes(), hashes(optimizer="slow_sgd")
    assert list(unused) == ["with/my_parts.py"]
    assert list(used) == ["with/my_parts.py", "with/my_parts.py:slow_sgd"]
    file.write_text(PARTS.replace("lr / 10", "lr / 20").replace("Parts of", "The parts of"))
    load_parts(file)
    assert hashes() == unused
    changed = hashes(optimizer="slow_sgd")
    assert [name for name in used if used[name] != changed[name]] == ["with/my_parts.py:slow_sgd"]
    file.write_text(PARTS.replace("FACTOR = 0.5", "FACTOR = 0.4"))
    load_parts(file)
    assert hashes() != unused


def test_a_name_that_is_gone_from_the_file_is_gone(file):
    load_parts(file)
    file.write_text(PARTS.replace("slow_sgd", "slower_sgd"))
    load_parts(file)
    assert "slower_sgd" in optimizers
    assert "slow_sgd" not in optimizers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "from model.transformer.norms import norms\n\nnorms['rmsnorm'] = None\n",
            "the norm 'rmsnorm', which exists",
        ),
        ("1 +\n", ":1: SyntaxError"),
        ("x = 1\nx.y\n", ":2: AttributeError: 'int' object has no attribute 'y'"),
        ("import sys\nsys.exit(0)\n", ":2: SystemExit: 0"),
        ("import not_there\n", ":1: ModuleNotFoundError: No module named 'not_there'"),
        (
            "from train.optimizers import optimizers\n\n@optimizers.register\ndef soap(groups, params):\n    pass\n",
            "the optimizer 'soap', which exists",
        ),
        (
            "from model.transformer.transformerencoderlayer import activations\n\nactivations['relu'] = abs\n",
            "the activation 'relu', which exists",
        ),
    ],
)
def test_a_bad_file_is_refused_and_leaves_nothing(text, said, file):
    rmsnorm = norms["rmsnorm"]
    file.write_text(PARTS + text if "norms[" in text else text)
    with pytest.raises(ValueError, match=r"my_parts\.py") as error:
        load_parts(file)
    assert said in str(error.value)
    assert norms["rmsnorm"] is rmsnorm
    assert "halving" not in layer_kinds
    assert not own_files


def test_a_lazy_entry_that_a_bad_file_loaded_is_still_there(file):
    file.write_text("from learn.layer import StudentLayer\n\nraise ValueError('late')\n")
    with pytest.raises(ValueError, match="late"):
        load_parts(file)
    assert callable(layer_kinds["student"])


def test_activations_and_tokenizers_are_parts(file):
    file.write_text(
        "from data.tokenizer import char_tokenizer, register_tokenizer\n"
        "from model.transformer.transformerencoderlayer import activations\n\n"
        "@activations.register\ndef cube(x):\n    return x**3\n\n"
        "@register_tokenizer\ndef few(texts, spec):\n    return char_tokenizer('ab')\n"
    )
    assert load_parts(file) == ["cube", "few"]
    used = hashes(activation="cube")
    assert list(used) == ["with/my_parts.py", "with/my_parts.py:cube"]
    assert tiny_lm(activation="cube")(random_ids(1, 4)).isfinite().all()


def test_a_file_beside_it_is_given_first_and_has_a_name_to_import(file, tmp_path):
    helper = tmp_path / "factors.py"
    helper.write_text("HALF = 0.5\n")
    file.write_text("import factors\n\n" + PARTS)
    with pytest.raises(ValueError, match=r"give factors\.py first, as a --with of its own") as error:
        load_parts(file)
    name = str(error.value).split()[-1]
    file.write_text(PARTS.replace("FACTOR = 0.5", f"import {name}\nFACTOR = {name}.HALF"))
    try:
        load_parts(helper)
        assert load_parts(file) == ["halving", "slow_sgd", "threes"]
        before = hashes(optimizer="slow_sgd")
        helper.write_text("HALF = 0.25\n")
        load_parts(helper)
        assert list(own_files) == ["factors.py", "my_parts.py"], "workers load them in this order"
        changed = hashes(optimizer="slow_sgd")
        assert [part for part in before if changed[part] != before[part]] == ["with/factors.py"]
    finally:
        remove_parts("factors.py")


def test_a_missing_file_is_refused_by_the_command_line(tmp_path, capsys):
    assert main.main(["--config=test", "--with", str(tmp_path / "none.py"), "--no-wandb"]) == 2
    assert "none.py cannot be read: No such file" in capsys.readouterr().err


def test_a_worker_runs_the_text_that_was_read(file):
    own = OwnFile(str(file), file.read_bytes())
    file.write_text("raise RuntimeError")
    register_parts(own)
    assert "halving" in layer_kinds
    assert layer_kinds["halving"].__module__ == "own_parts_my_parts"


def test_the_example_of_the_docs_registers_what_it_says(file):
    page = (REPOSITORY / "docs" / "edits.md").read_text(encoding="utf-8")
    [example] = re.findall(r"## Parts in a file of your own.*?```python\n(.*?)```", page, re.DOTALL)
    file.write_text(example)
    assert load_parts(file) == ["gated-input", "half-linear", "nesterov"]
    lm = fresh(tiny_params(layer_architecture=("half-linear", "gated-input"))).float()
    assert "layers.1.gate" in lm.activation_names()
    before = lm.embed.tokens.weight.clone()
    take_steps(lm, make_optimizer(lm, TrainParams(optimizer="nesterov")), 1)
    assert not torch.equal(before, lm.embed.tokens.weight)


@pytest.fixture
def call(tmp_path, monkeypatch, file):
    (tmp_path / "trial.txt").write_text(CONFIG)
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    out = tmp_path / "out"
    words = ["--config=trial", "--no-wandb", "--save", "--out", str(out), "--with", str(file)]
    return lambda *more: main.main([*words, *more])


def test_a_run_keeps_the_file_which_is_not_run_unasked(call, file, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert call() == 0
    [timestamp] = runs(out, all=True).index
    copy = find_run(timestamp, out) / "parts" / "my_parts.py"
    assert copy.read_text() == PARTS
    before = get_model_by_timestamp(timestamp, out).lm
    remove_parts("my_parts.py")
    with pytest.raises(ValueError, match="a file given by --with: call load_parts"):
        get_model_by_timestamp(timestamp, out)
    assert "halving" not in layer_kinds
    load_parts(copy)
    after = get_model_by_timestamp(timestamp, out).lm
    ids = torch.tensor([[0, 1, 2]])
    assert torch.equal(before(ids), after(ids))
    remove_parts("my_parts.py")


@pytest.mark.parametrize("options", [pytest.param(["--jobs=2", "--seed=[1,2]"], marks=SLOW)], ids=str)
def test_workers_use_the_parts_and_resume_knows_their_code(options, call, file, tmp_path, capsys):
    assert call(*options) == 0
    assert call(*options, "--resume") == 0
    assert len(runs(str(tmp_path / "out"), all=True)) == 2, "nothing is trained again"
    file.write_text(PARTS.replace("lr / 10", "lr / 20"))
    assert call(*options, "--resume") == 0
    assert len(runs(str(tmp_path / "out"), all=True)) == 4
    assert call("--check") == 0
    assert "my_parts.py" in capsys.readouterr().out
