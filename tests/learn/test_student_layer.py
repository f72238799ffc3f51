"""The student's Block in the harness: it trains, generates, is looked at, checked and opened again like other layers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
import model_explorer
from learn.checking.course import load_module
from learn.outline import Outline
from model.context import Cache, Context
from model.lm import LM
from tests.model.tiny import CharTokenizer, perturb, random_ids, tiny_params
from train.launch.check_models import checks

GPT2 = Outline("gpt2")
ROOT = Path(main.__file__).parent
QUICK = ["--set", "early_stop_nsamples=64", "--set", "debug_crop=30", "--set", "val_every=None"]
SMALL = [*QUICK, "--set", "val_pct=4.0", "--set", "test_pct=4.0", "--set", "n_layers=1", "--set", "threads=1"]


@pytest.fixture
def built(monkeypatch):
    """Lets a text stand in for learn/gpt2_student.py; without one, the solution's."""

    def build(text=None):
        monkeypatch.setitem(sys.modules, "learn.gpt2_student", load_module(GPT2.solution, text))

    return build


def student_lm(**fields):
    torch.manual_seed(0)
    lm = LM(tiny_params(layer_architecture="student", **fields), CharTokenizer()).double()
    perturb(lm)
    return lm.eval()


def edited(right, wrong):
    text = GPT2.solution.read_text(encoding="utf-8")
    assert text.count(right) == 1
    return text.replace(right, wrong)


def ours(lm):
    """The harness's own layers with the student's weights."""
    params = tiny_params(activation="gelu_tanh")
    own = LM(params, CharTokenizer()).double().eval()
    names = {
        "block.norm1": "norm1.before",
        "block.attention": "mixer",
        "block.norm2": "norm2.before",
        "block.mlp.up": "linear1",
        "block.mlp.down": "linear2",
    }
    weights = lm.state_dict()
    for old, new in names.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    own.load_state_dict(weights)
    return own


def test_a_student_that_is_right_equals_our_own_layers(built):
    built()
    lm = student_lm()
    ids = random_ids(3, 9)
    mine, right = (one(ids, get_embeddings=True, get_attns=True) for one in (lm, ours(lm)))
    for what in ("logits", "embeddings", "attns"):
        torch.testing.assert_close(mine[what], right[what], rtol=1e-9, atol=1e-9)


def test_the_students_code_is_the_code_that_runs(built):
    """This holds even if the code is wrong: no part is borrowed, and recording changes nothing."""
    built()
    ids = random_ids(3, 9)
    right = student_lm()(ids)
    built(edited("masked_fill(future_TS, -math.inf)", "masked_fill(future_TS, -1.0)"))
    wrong = student_lm()(ids)
    assert not torch.allclose(right, wrong)
    assert torch.equal(student_lm()(ids, get_attns=True)["logits"], wrong)


def test_patterns_are_recorded_and_patched_also_from_a_cache(built):
    built()
    lm, ids = student_lm(), [5, 6, 7, 8]
    right, zero = ours(lm), {"layers.0.pattern": 0.0}
    with lm.patch(zero), right.patch(zero):
        torch.testing.assert_close(lm(ids), right(ids), rtol=1e-9, atol=1e-9)
    with lm.record("pattern") as whole:
        lm(ids)
    cache = Cache(4)
    lm(ids[:3], cache=cache)
    with lm.record("pattern") as seen:
        lm(ids, cache=cache)
    for name, pattern_BHTS in seen.items():
        assert pattern_BHTS.shape[2:] == (1, 4)
        torch.testing.assert_close(pattern_BHTS, whole[name][:, :, 3:])


def test_a_softmax_by_hand_records_no_pattern_and_gets_an_error(built):
    built(edited(".softmax(dim=-1)\n        z_BHTK", ".exp()\n        z_BHTK"))
    with pytest.raises(ValueError, match="no layer records 'pattern'"):
        student_lm()([1, 2], get_attns=True)


def test_dropout_acts_on_what_a_block_adds(built):
    built()
    lm = LM(tiny_params(layer_architecture="student"), CharTokenizer(), dropout=0.5)
    layer, x = lm.decoder.layers[0], torch.randn(4, 6, 16)
    added = layer.block(x) - x
    dropped = layer.train()(x, no_context()) - x
    share = (dropped.abs() < 1e-7).float().mean()
    assert 0.3 < share < 0.7
    kept = dropped.abs() >= 1e-7
    torch.testing.assert_close(dropped[kept], 2 * added[kept], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.eval()(x, no_context()), layer.block(x))


def no_context():
    return Context(ids_BT=torch.zeros(1, 6))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            GPT2.student.read_text(encoding="utf-8"),
            "a part of Block is not built yet; .*learn check gpt2.Block",
        ),
        (
            edited("return x_BTD + self.mlp(self.norm2(x_BTD))", "return x_BTD[:, 0]"),
            "does not keep the shape",
        ),
        (
            edited("return x_BTD + self.mlp(self.norm2(x_BTD))", "return x_BTD + self.mpl(x_BTD)"),
            "stops with AttributeError: .*mpl",
        ),
    ],
    ids=["stub", "shape", "error"],
)
def test_a_students_block_that_cannot_train_is_refused_before_training(built, text, says):
    built(text)
    with pytest.raises(ValueError, match=says):
        student_lm()


@pytest.mark.parametrize(
    "fields", [{"norm_position": "post"}, {"activation": "relu"}, {"positions": "rotary"}]
)
def test_fields_without_effect_on_a_students_block_are_refused(built, fields):
    built()
    with pytest.raises(ValueError, match="does not work with layer_architecture='student'"):
        student_lm(**fields)


def test_the_stubs_are_refused_with_the_configs_line(tmp_path, capsys):
    assert main.main(["--config=student", "--no-wandb", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("configs/student.txt:")
    assert "a part of Block is not built yet" in told
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.ci
def test_the_students_block_passes_the_architecture_check(built, tmp_path, capsys):
    built()
    options = [*SMALL, "--set", "layer_architecture='student'", "--set", "dim=32"]
    assert main.main(["--config=student", "--check", "--out", str(tmp_path), *options]) == 0
    said = capsys.readouterr().out
    assert said.count("  pass  ") + said.count("  skip  ") == len(checks) - 1, "all but that of BERTs"
    assert said.count("  skip  ") <= 1
    assert "FAIL" not in said
    built(edited("masked_fill(future_TS, -math.inf)", "masked_fill(future_TS, 0.0)"))
    assert main.main(["--config=student", "--check", "--out", str(tmp_path), *options]) == 1
    assert "FAIL  no position sees the future" in capsys.readouterr().out


@pytest.mark.slow
def test_the_students_model_trains_opens_and_resumes(built, tmp_path):
    built()
    options = [*SMALL, "--no-wandb", "--out", str(tmp_path), "--save"]
    assert main.main(["--config=student", *options, "--set", "layer_architecture='student'"]) == 0
    [timestamp] = model_explorer.runs(out=str(tmp_path), all=True).index
    results = model_explorer.get_model_by_timestamp(timestamp, out=str(tmp_path))
    assert results.params["model"].layer_architecture == "student"
    assert isinstance(results.lm.sample("we", 8), str)
    model_explorer.verify_stable_load(timestamp, out=str(tmp_path))
    patterns = model_explorer.head_scores(results.lm)
    assert len(patterns) > 0
    again = [f"--set=from_saved='{timestamp}'", "--no-wandb", "--out", str(tmp_path)]
    assert (
        main.main(
            [
                "--config=sotu",
                *again,
                "--set=early_stop_nsamples=32",
                "--set=debug_crop=30",
                "--set=threads=1",
            ]
        )
        == 0
    )


@pytest.mark.slow
def test_workers_train_it_too_and_a_changed_file_is_changed_code(tmp_path):
    """In a copy, as worker processes read the student's file themselves."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (
        "main.py",
        "model_explorer.py",
        "common",
        "data",
        "model",
        "train",
        "explore",
        "learn",
        "configs",
    ):
        source = ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
    file = copy / "learn" / GPT2.student.name
    shutil.copy(GPT2.solution, file)
    command = [
        sys.executable,
        "main.py",
        "--config=student",
        "--no-wandb",
        "--jobs=2",
        "--out",
        str(tmp_path),
    ]

    def run(*options):
        return subprocess.run(
            [*command, *SMALL, *options], cwd=copy, capture_output=True, text=True, timeout=300, check=False
        )

    first = run("--save")
    assert first.returncode == 0, first.stdout + first.stderr
    assert sorted(model_explorer.runs(out=str(tmp_path), all=True).layer_architecture) == [
        "custom-transformer",
        "student",
    ]
    file.write_text(file.read_text(encoding="utf-8").replace("0.044715", "0.04"), encoding="utf-8")
    resumed = run("--resume")
    assert "learn/gpt2_student.py" in resumed.stdout + resumed.stderr
