"""README: its commands run, and its edits, applied to a copy of the repository, have their effect."""

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import main
from tests.marks import all_slow_but
from tests.train.killed import forked
from train.grid.config_text import GRID_KEYS
from train.grid.expand import read_grid
from train.grid.params import SECTION_OF

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EDITS = dict(
    re.findall(r"^### (\d)\. [^\n]*\n(?:(?!^### ).)*?```diff\n(.*?)```", README, re.MULTILINE | re.DOTALL)
)
CODE = ["main.py", "common", "data", "model", "train", "explore", "learn", "model_explorer.py", "configs"]

SMALL = '"--config=test-synth", "--no-wandb", "--save", "--set", "n_samples=2000", "--set", "early_stop_nsamples=640"'
PRELUDE = f"""
import glob, sys, torch
import main, model_explorer

assert main.__file__ == f"{{sys.path[0]}}/main.py", "the edited copy"
from data.dataloader import mycollate

torch.set_num_threads(1)

def train(*options):
    before = set(glob.glob(f"{{sys.argv[1]}}/saved-models/*/*/*"))
    code = main.main([{SMALL}, "--out", sys.argv[1], *[part for option in options for part in ("--set", option)]])
    assert code == 0, code
    [new] = set(glob.glob(f"{{sys.argv[1]}}/saved-models/*/*/*")) - before
    return model_explorer.get_model_by_timestamp(new.rsplit("/", 1)[1], out=sys.argv[1])

def patterns_and_scores(lm, ids):
    from model.context import Context
    ctx = Context(ids_BT=ids, wanted=("pattern", "scores"), attn_requests=True if 10 in ids else None)
    with torch.no_grad():
        lm.decoder(lm.embed(ids), ctx)
    return ctx.of_all_layers("pattern"), ctx.of_all_layers("scores")
"""

EFFECTS = {
    "1": """
lm, *_ = train("inject_relu=True")
states = lm(list(range(1, 20)), get_embeddings=True)["embeddings"]
assert len(lm.decoder.layers) == 3 and isinstance(lm.decoder.layers[1], torch.nn.ReLU)
assert torch.equal(states[:, 1], states[:, 0].relu()) and (states[:, 0] < 0).any()
lm, *_ = train("inject_relu=False")
assert len(lm.decoder.layers) == 2
""",
    "2": """
from model.context import Context
lm, *_ = train("square_ff=True")
ids = torch.arange(1, 20)[None]
x, ctx, layer = torch.randn(1, 19, 64), Context(ids_BT=ids), lm.decoder.layers[0]
squared = layer._ff_block(x, ctx)
plain = layer.linear2(layer.activation(layer.linear1(x)))
assert torch.allclose(squared, plain**2) and (plain < 0).any()
""",
    "3": """
import math
from model.transformer import attention
lm, *_ = train("attn_scalar=3.0")
ids = torch.arange(1, 20)[None]
edited = lm(ids, get_attns=True)["attns"]
for layer in lm.decoder.layers:
    object.__setattr__(layer.mixer, "model_params", lm.model_params.__class__(attn_scalar=1.0, dim=64))
plain = lm(ids, get_attns=True)["attns"]
first = plain[:, 0].log() * 3
assert torch.allclose(edited[:, 0], first.softmax(dim=-1), atol=1e-5)
assert not torch.allclose(edited, plain, atol=1e-3)
""",
    "4": """
lm, *_ = train("n_layers=1")
def first_row_pattern(last):
    return lm(torch.tensor([[5, 6, 7, 8, last]]), get_attns=True)["attns"][0, 0, :, :4, :4]
without, with_10 = first_row_pattern(9), first_row_pattern(10)
assert torch.allclose(with_10, (without.log() * 3).softmax(dim=-1), atol=1e-5)
assert not torch.allclose(with_10, without, atol=1e-3)
""",
    "5": """
lm, dataset, stats, params = train("freeze_random_layers=True", "hyperparams_log_freq=1")
steps = {s.s for s in stats["stat/grad_norm:embed.tokens"]}
trained = [{s.s for s in stats[f"stat/grad_norm:decoder.layers.{i}"]} for i in range(2)]
assert len(steps) == 10 and all(0 < len(t) < 10 for t in trained) and trained[0] != trained[1]
""",
    "6": """
first = {}
for frac in (0.0, 0.9):
    *_, stats, params = train(f"corruption_frac={frac}", "lr=1e-12", "warmup_steps=0")
    first[frac] = stats["stat/train_loss:main"][0].v, stats["stat/val_loss:main"][-1].v
assert first[0.0][0] != first[0.9][0], "training inputs are corrupted"
assert abs(first[0.0][1] - first[0.9][1]) < 1e-6, "those of validation are not"
""",
    "7": """
lm, dataset, stats, params = train("track_max=True", "hyperparams_log_freq=2", "lr=1e-12", "warmup_steps=0")
values = stats["stat/max_param_val"]
assert [value.s for value in values] == [0, 2, 4, 6, 8]
assert abs(values[-1].v - max(p.max().item() for p in lm.parameters())) < 1e-5
assert "stat/max_param_val" not in train("track_max=False")[2]
""",
    "8": """
lm, dataset, stats, params = train("dataset_name=twice", "task_args={'length': 5}")
assert params["data"].dataset_name == "twice"
word, answer = lm.tokenizer.decode(next(iter(dataset.val_dataloader(1)))["x_indices"][0]).split("::")
assert len(word) == 5 and answer == "".join(letter * 2 for letter in word)
""",
}


def run(arguments: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False, **options)


def test_there_are_eight_edits_each_in_at_most_two_places():
    assert sorted(EDITS) == list("12345678")
    for number, diff in EDITS.items():
        assert len(re.findall(r"^@@", diff, re.MULTILINE)) <= (1 if number == "8" else 2)


@pytest.mark.parametrize("number", all_slow_but("1", "12345678"))
def test_an_edit_of_the_readme_has_its_effect(number, tmp_path):
    copy = apply_to_copy(EDITS[number], tmp_path)
    assert forked(lambda: in_copy(PRELUDE + EFFECTS[number], copy, tmp_path / "out")) == 0


def apply_to_copy(diff: str, tmp_path: Path, more: list[str] | None = None) -> Path:
    """Copy the code, and `more`, into a folder of `tmp_path` and apply the diff there."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in [*CODE, *(more or [])]:
        source = ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
    (tmp_path / "edit.diff").write_text(diff.lstrip(), encoding="utf-8")
    applied = run(["git", "apply", "-v", "--unidiff-zero", str(tmp_path / "edit.diff")], cwd=copy)
    assert applied.returncode == 0, applied.stderr
    return copy


def in_copy(code: str, copy: Path, out: Path) -> None:
    """Runs with the modules of `copy` in place of ours; libraries are there already, which saves seconds."""
    ours = {Path(name).stem for name in CODE} | {"tests"}
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.argv = ["main.py", str(out)]
    exec(compile(code, "effect", "exec"), {})  # noqa: S102


def test_the_set_up_commands_are_the_promised_two():
    assert (
        "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && "
        ".venv/bin/python main.py --config=test --no-wandb\n"
    ) in README
    assert (
        "python3 -m venv .venv && .venv/bin/pip install -r requirements-dev.txt && .venv/bin/python -m pytest -n auto\n"
        in README
    )


COMMANDS = sorted(set(re.findall(r"^python3 (main\.py --config[^\n#]*)", README, re.MULTILINE)))
TAKES_LONG = re.compile("--resume|--jobs|--config=bert|--coord-check|--transfer|--stability")


@pytest.mark.parametrize(
    "command", all_slow_but([command for command in COMMANDS if not TAKES_LONG.search(command)], COMMANDS)
)
def test_a_command_of_the_readme_is_understood(command, out, tmp_path, monkeypatch, capsys):
    """Every option and config exists and the grid is sound; from a folder that is not the repository's."""
    if "--ray" in command and find_spec("ray") is None:
        pytest.skip("no ray: pip install -r requirements-ray.txt")
    monkeypatch.chdir(tmp_path)
    assert main.main([*shlex.split(command)[1:], "--dry-run", "--out", str(out)]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Output folder for all commands, so that texts are tokenized once."""
    return tmp_path_factory.mktemp("out")


GRIDS = re.findall(r"^```\n(Grid\n.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_each_part_of_the_grid_section_has_an_example():
    for key in GRID_KEYS:
        assert sum(bool(re.search(rf"^{key} = ", block, re.MULTILINE)) for block in GRIDS), key


@pytest.mark.parametrize("block", GRIDS, ids=range(len(GRIDS)))
def test_an_example_of_the_grid_section_has_as_many_runs_as_it_says(block, tmp_path):
    path = tmp_path / "example.txt"
    path.write_text(block, encoding="utf-8")
    product, number = re.search(r"# (.*) = (\d+) runs", block).groups()
    runs = read_grid([path])
    assert len(runs) == int(number)
    terms = re.findall(r"([+-]?) ?(\d+(?: x \d+)*)", product)
    assert sum((-1) ** (sign == "-") * math.prod(map(int, term.split(" x "))) for sign, term in terms) == len(
        runs
    )


def test_the_block_on_models_of_transformers_is_that_of_the_notebook():
    notebook = ROOT.joinpath("notebooks", "parametrization.py").read_text(encoding="utf-8")
    [block] = [one for one in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "make_readouts" in one]
    assert set(block.splitlines()) <= set(notebook.replace('folder / "gpt2', '"gpt2').splitlines())


def test_every_option_is_in_the_readme():
    shown = run([sys.executable, str(ROOT / "main.py"), "--help"]).stdout
    for option in set(re.findall(r"--[a-z-]+", shown)) - {"--help"}:
        assert f"`{option}" in README or f"{option}=" in README or f" {option}" in README, option


def test_the_error_messages_shown_are_the_real_ones(tmp_path):
    """The example of three mistakes, made on the same lines."""
    lines = [""] * 20
    lines[0] = "ModelParams"
    lines[11], lines[12], lines[13] = "dimm = 3", "dim = 32", "n_heads = 5"
    lines[15], lines[16] = "TrainParams", "lr = '3e-4'"
    shown = re.findall(r"^configs/test\.txt:\d+.*$", README, re.MULTILINE)
    assert len(shown) == 3
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "test.txt").write_text("\n".join(lines))
    code = (
        "from pathlib import Path; from train.grid import *\n"
        "try: read_grid([Path('configs/test.txt')])\nexcept GridError as e: print(e)"
    )
    result = run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert set(result.stdout.splitlines()) >= {line for line in shown if "n_heads" not in line}, result.stdout
    (folder / "test.txt").write_text("\n".join(lines).replace("dimm = 3", "").replace("'3e-4'", "3e-4"))
    result = run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert result.stdout.splitlines() == [line for line in shown if "n_heads" in line]


def test_fields_the_readme_names_exist():
    config = re.search(r"```\nDataParams\n(.*?)```", README, re.DOTALL)[1]
    for key in re.findall(r"^(\w+) =", config, re.MULTILINE):
        assert key in SECTION_OF
