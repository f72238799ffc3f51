"""README.md and docs/: their commands run, their edits, applied to a copy of the code, have their effect, their links lead somewhere."""

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import main
from data.tokenizer import recipes
from tests.marks import SLOW, all_slow_but
from tests.project_copy import ProjectCopy
from tests.train.killed import forked
from tests.train.launch.little_slurm import needs_slurm, needs_submitit, slurm_in
from train.grid.config_text import EXPECT_KEYS, GRID_KEYS
from train.grid.expand import read_grid
from train.grid.params import SECTION_OF
from train.launch import advice, estimate, memory

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
}
ALL = "\n".join(PAGES.values())
README, EDIT_PAGE = PAGES["README.md"], PAGES["docs/edits.md"]
EDITS = dict(
    re.findall(r"^### (\d)\. [^\n]*\n(?:(?!^### ).)*?```diff\n(.*?)```", EDIT_PAGE, re.MULTILINE | re.DOTALL)
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
def test_an_edit_has_its_effect(number, tmp_path):
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
    """Run with the modules of `copy` in place of ours. The libraries are imported already, which saves seconds."""
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


class Command(NamedTuple):
    """A line of a fence marked `bash`, without its comment, and the mark in that: slow, gpu, ray, slurm, evals or none."""

    line: str
    mark: str


def commands(fence: str) -> list[Command]:
    """Return the commands of a fence."""
    split = [line.partition("  #") for line in fence.splitlines() if line.strip()]
    marks = [re.match(r" *(slow|gpu|ray|slurm|evals)\b", comment) for _, _, comment in split]
    return [
        Command(line.strip(), mark[1] if mark else "")
        for (line, _, _), mark in zip(split, marks, strict=True)
    ]


FENCES = [
    (name, commands(fence))
    for name, text in PAGES.items()
    for fence in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
COMMANDS = sorted({command for _, fence in FENCES for command in fence})


def test_fewer_than_a_third_of_the_fences_are_too_slow_to_run_by_default():
    marked = [(name, *command) for name, fence in FENCES for command in fence if command.mark]
    listed = "\n".join(f"{name}: {line}  # {mark}" for name, line, mark in marked)
    assert 0 < sum(any(command.mark for command in fence) for _, fence in FENCES) < len(FENCES) / 3, listed


def runnable(command: Command) -> Any:
    """Return the command as a parameter of a test, with the marks of its mark."""
    without_ray = find_spec("ray") is None
    # A grid, which has lists, takes minutes.
    is_short = re.search("--(config|report)=test", command.line) and "[" not in command.line
    marks = {
        "": [],
        "slow": SLOW if is_short else [pytest.mark.slow],
        "gpu": [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
        "slurm": [pytest.mark.slow, needs_submitit, needs_slurm],
        "ray": [
            pytest.mark.slow,
            pytest.mark.skipif(without_ray, reason="no ray: pip install -r requirements-ray.txt"),
        ],
        "evals": [
            pytest.mark.slow,
            pytest.mark.skipif(find_spec("lm_eval") is None, reason="no lm_eval: requirements-evals.txt"),
        ],
    }
    return pytest.param(command.line, marks=marks[command.mark], id=command.line)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of all outputs: texts are tokenized once, and a command finds the runs of earlier ones."""
    return tmp_path_factory.mktemp("out")


@pytest.mark.parametrize("line", [runnable(command) for command in COMMANDS])
def test_a_command_runs(line, out, tmp_path, monkeypatch):
    monkeypatch.setenv("WHATIF_OUT", str(out))
    program, *options = shlex.split(line)
    assert Path(program).name in ("python", "python3")
    if "--slurm" in line:
        with slurm_in(tmp_path, (16819, 16820)):
            done = run([sys.executable, *options], cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
    elif "--against" in options:  # it needs git
        code, said = ProjectCopy(out / "project", out).main(*options[1:])
        assert code == 0, said
    elif options[0] == "main.py" and "--ray" not in options:  # Ray hangs in a forked process
        assert forked(lambda: run_main(options[1:], out)) == 0
    else:
        done = run([sys.executable, *options], cwd=ROOT)
        # A check of a part that nobody has built yet says so, and fails.
        assert done.returncode == 0 or "not built" in done.stdout, done.stdout + done.stderr


def run_main(options: list[str], folder: Path) -> Any:
    """Run main.py from a folder that is not the repository's."""
    os.chdir(folder)
    torch.set_num_threads(1)
    estimate.TIMING_SECONDS = 0.4  # that --dry-run measures
    memory.MAX_MEMORY_SECONDS, advice.MIN_GRID_SECONDS = 0.0, float("inf")
    try:
        return main.main(options)
    except SystemExit as end:  # of --help
        return end.code


def test_options_of_slow_commands_are_understood():
    """Configs and fields of commands that the fast suite does not run exist."""
    for line, mark in COMMANDS:
        options = shlex.split(line)
        if mark and options[1] == "main.py" and "--report" not in line:
            args = main.parse_arguments(options[2:])
            files = main.config_files(args.config, main.CONFIGS)
            assert read_grid(files, main.grid_options(args)), line


LINKS = [
    (name, link)
    for name, text in [
        *PAGES.items(),
        ("CONTRIBUTING.md", ROOT.joinpath("CONTRIBUTING.md").read_text("utf-8")),
    ]
    for link in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    if not re.match(r"https?://", link)
]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(("name", "link"), LINKS, ids=[f"{name}->{link}" for name, link in LINKS])
def test_a_link_leads_somewhere(name, link):
    path, _, fragment = link.partition("#")
    target = (ROOT / name).parent / path if path else ROOT / name
    assert target.exists()
    if fragment:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert fragment in map(anchor, headings)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 220


GRIDS = re.findall(r"^```\n(Grid\n.*?)^```", PAGES["docs/configs.md"], re.MULTILINE | re.DOTALL)


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
    for block in re.findall(r"```python\n(.*?)```", ALL, re.DOTALL):
        if "scale_scores" in block:
            assert set(block.splitlines()) <= set(notebook.replace('folder / "gpt2', '"gpt2').splitlines())


def test_every_option_is_in_the_table():
    shown = run([sys.executable, str(ROOT / "main.py"), "--help"]).stdout
    table = PAGES["docs/running.md"].partition("## Options")[2].partition("## Exit codes")[0]
    for option in set(re.findall(r"--[a-z-]+", shown)) - {"--help"}:
        assert f"`{option}" in table, option


def test_pages_name_all_tokenizers_and_all_keys_of_the_grid():
    assert [name for name in recipes if f'`"{name}"`' not in PAGES["docs/tasks-and-texts.md"]] == []
    assert [key for key in GRID_KEYS if f"**`{key}`**" not in PAGES["docs/configs.md"]] == []


@pytest.mark.parametrize("diff", re.findall(r"^```diff\n(.*?)^```", ALL, re.MULTILINE | re.DOTALL))
def test_a_diff_applies(diff):
    applied = run(["git", "apply", "--check", "--unidiff-zero", "-"], cwd=ROOT, input=diff)
    assert applied.returncode == 0, applied.stderr


def test_the_edit_of_the_readme_is_the_first():
    [diff] = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
    assert diff == EDITS["1"]


def test_the_error_messages_shown_are_the_real_ones(tmp_path):
    """Make the three errors of the example on the same lines."""
    lines = [""] * 20
    lines[0] = "ModelParams"
    lines[11], lines[12], lines[13] = "dimm = 3", "dim = 32", "n_heads = 5"
    lines[15], lines[16] = "TrainParams", "lr = '3e-4'"
    shown = re.findall(r"^configs/test\.txt:\d+.*$", PAGES["docs/configs.md"], re.MULTILINE)
    assert len(shown) == 3
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "test.txt").write_text("\n".join(lines))
    code = (
        "from pathlib import Path; from train.grid.expand import GridError, read_grid\n"
        "try: read_grid([Path('configs/test.txt')])\nexcept GridError as e: print(e)"
    )
    result = run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert set(result.stdout.splitlines()) >= {line for line in shown if "n_heads" not in line}, result.stdout
    (folder / "test.txt").write_text("\n".join(lines).replace("dimm = 3", "").replace("'3e-4'", "3e-4"))
    result = run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert result.stdout.splitlines() == [line for line in shown if "n_heads" in line]


def test_fields_in_examples_exist():
    examples = re.findall(
        r"^```\n((?:Grid|DataParams|TrainParams|ModelParams)\n.*?)^```", ALL, re.MULTILINE | re.DOTALL
    )
    assert len(examples) > 5
    for example in examples:
        for key in re.findall(r"^(\w+) =", example, re.MULTILINE):
            assert key in SECTION_OF or key in GRID_KEYS or key in EXPECT_KEYS
