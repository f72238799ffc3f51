"""Config text to runs: what is expanded, and what every mistake is answered with."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.grid import MOST_ERRORS, GridError, axes, config_files, read_grid

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    """Writes a config and returns its path."""

    def write(text: str, name: str = "trial") -> Path:
        folder = tmp_path / "configs"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def errors_of(path: Path, **options: str) -> list[str]:
    with pytest.raises(GridError) as caught:
        read_grid([path], {f"--set {k}={v}": f"{k}={v}" for k, v in options.items()})
    return str(caught.value).splitlines()


def test_lists_multiply_in_every_section_and_tuples_do_not(config):
    path = config(
        "DataParams\ntask_args = [{'a': 1}, {'a': 2}]\nTrainParams\nlr = [1e-3, 3e-4]\nbetas = (0.8, 0.9)\n"
        "random_seed = [1, 2, 3]\nModelParams\ndim = [32,\n  64]\n"
    )
    runs = [run.params for run in read_grid([path])]
    assert len(runs) == 2 * 2 * 3 * 2
    assert axes(("", run) for run in runs) == ["task_args", "lr", "random_seed", "dim"]
    combinations = {(r.data.task_args["a"], r.train.lr, r.train.random_seed, r.model.dim) for r in runs}
    assert combinations == set(itertools.product((1, 2), (1e-3, 3e-4), (1, 2, 3), (32, 64)))
    assert {run.train.betas for run in runs} == {(0.8, 0.9)}
    assert [r.model.dim for r in runs[:2]] == [32, 64], "the last axis varies fastest"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_the_number_of_runs_is_the_product_of_the_axes(tmp_path_factory, lengths):
    keys = ["n_layers", "batch_size", "random_seed", "n_samples"]
    sections = ["ModelParams", "TrainParams", "TrainParams", "DataParams"]
    parts = [
        f"{section}\n{key} = {list(range(1, n + 1))}"
        for section, key, n in zip(sections, keys, lengths, strict=False)
    ]
    path = tmp_path_factory.mktemp("grid") / "c.txt"
    path.write_text("\n".join(parts))
    product = 1
    for n in lengths:
        product *= n
    assert len(read_grid([path])) == product


def test_comments_strings_and_lists_over_lines(config):
    path = config(
        "# a comment\nDataParams # here too\ndataset_name = 'a#b=c'  # and = here\n"
        "TrainParams\nlr = [\n1e-3,\n\n# between\n2e-3\n]\npatience=None\nModelParams\nbias = [\nTrue,\nFalse\n]\n"
    )
    runs = [run.params for run in read_grid([path])]
    assert {r.data.dataset_name for r in runs} == {"a#b=c"}
    assert [(r.train.lr, r.model.bias) for r in runs] == [
        (1e-3, True),
        (1e-3, False),
        (2e-3, True),
        (2e-3, False),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ModelParams\ndimm = 3", "configs/trial.txt:2: ModelParams has no 'dimm'; did you mean 'dim'?"),
        ("ModelParms\ndim = 3", "configs/trial.txt:1: there is no section 'ModelParms'; did you mean 'ModelParams'?"),
        ("\ndim = 32", "configs/trial.txt:2: 'dim' stands before any section (DataParams, TrainParams, ModelParams, Grid)"),
        ("ModelParams\nlr = 1e-3", "configs/trial.txt:2: ModelParams has no 'lr'; it belongs under TrainParams"),
        ("TrainParams\nlr = '3e-4'", "configs/trial.txt:2: TrainParams cannot have lr = '3e-4': it should be a valid number"),
        ("ModelParams\ndim = 32.5", "configs/trial.txt:2: ModelParams cannot have dim = 32.5: it should be a valid integer"),
        ("ModelParams\ndim = True", "configs/trial.txt:2: ModelParams cannot have dim = True: it should be a valid integer"),
        ("TrainParams\nbetas = [0.9]", "cannot have betas = 0.9: it should be a valid tuple; a list is an axis, for one value take a tuple"),
        ("ModelParams\nbias = 1", "configs/trial.txt:2: ModelParams cannot have bias = 1: it should be a valid boolean"),
        ("ModelParams\nn_layers = -1", "cannot have n_layers = -1: it should be greater than or equal to 0"),
        ("TrainParams\nlr = 1e999", "configs/trial.txt:2: TrainParams cannot have lr = inf: it should be a finite number"),
        ("ModelParams\nattention = 'fast'", "cannot have attention = 'fast': it should be 'explicit' or 'fused'"),
        ("ModelParams\nn_heads = 5\ndim = 32", "configs/trial.txt:2 and configs/trial.txt:3: n_heads=5 must divide dim=32"),
        ("ModelParams\nn_heads = 5", "configs/trial.txt:2: n_heads=5 must divide dim=128"),
        ("DataParams\nval_pct = 60.\n\ntest_pct = 40.", "configs/trial.txt:2 and configs/trial.txt:4: val_pct=60.0 and test_pct=40.0"),
        ("ModelParams\ndim = 32\ndim = 64", "configs/trial.txt:3: 'dim' is set twice, first at configs/trial.txt:2"),
        ("ModelParams\ndim = [32", "configs/trial.txt:2: syntax error in `dim = [32`: '[' was never closed"),
        ("ModelParams\ndim == 32", "configs/trial.txt:2: expected `key = value` or a section name"),
        ("ModelParams\n  dim = 32", "configs/trial.txt:2: syntax error in `dim = 32`: unexpected indent"),
        ("[ModelParams]", "configs/trial.txt:1: expected `key = value` or a section name"),
        ("DataParams\ndataset_name = copy", "dataset_name = copy is no Python literal (text needs quotes: 'copy')"),
        ("TrainParams\nlr = __import__('os').abort()", "is no Python literal"),
        ("TrainParams\nlr = []", "configs/trial.txt:2: lr = [] is an axis without values"),
        ("TrainParams\nlr = [1e-3, 1e-3]", "configs/trial.txt:2: lr = [0.001, 0.001] has 0.001 twice"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_file_line_and_what_is_allowed(config, text, expected):
    found = errors_of(config(text))
    assert len(found) == 1
    assert expected in found[0]


def test_all_mistakes_are_listed_at_once_and_at_most_twenty(config):
    lines = [f"key{i} = {i}" for i in range(30)]
    found = errors_of(config("ModelParams\n" + "\n".join(lines)))
    assert len(found) == MOST_ERRORS + 1
    assert found[-1] == "... and 10 more"
    mixed = errors_of(
        config("x = 1\nModelParams\ndim = [\nn_heads = 3\nTrainParams\nlr = 'a'\nmin_lr = [1.0,, 2.0]\n")
    )
    assert [line.split(": ")[0] for line in mixed] == [f"configs/trial.txt:{n}" for n in (1, 3, 6, 7)]


def test_a_faulty_field_is_not_blamed_a_second_time_through_its_default(config):
    assert len(errors_of(config("ModelParams\ndim = 'wide'\nn_heads = 5"))) == 1


def test_command_line_options_win_in_every_file_and_may_be_axes(config):
    files = [config("ModelParams\ndim = 32\n", "t"), config("ModelParams\ndim = [48, 64]\n", "t-2")]
    runs = read_grid(files, {"--set dim=[96, 128]": "dim=[96, 128]", "--task=copy": "dataset_name='copy'"})
    assert [run.params.model.dim for run in runs] == [96, 128, 96, 128]
    assert {run.params.data.dataset_name for run in runs} == {"copy"}
    assert read_grid(files[:1], {"--set": "dataset_name=copy"})[0].params.data.dataset_name == "copy"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("dimm=3", "there is no field 'dimm'; did you mean 'dim'?"),
        ("dim", "expected key=value"),
        ("lr=abc", "TrainParams cannot have lr = 'abc': it should be a valid number"),
        ("n_heads=5", "--set: n_heads=5 must divide dim=128"),
    ],
)
def test_a_mistaken_option_is_named(config, option, expected):
    with pytest.raises(GridError, match=r"^--set: ") as caught:
        read_grid([config("")], {"--set": option})
    assert expected in str(caught.value)


def test_config_names(config):
    for name in ("a", "a-2", "a-1", "ab", "b-1"):
        path = config("", name)
    folder = path.parent
    assert [p.stem for p in config_files("a", folder)] == ["a", "a-1", "a-2"]
    assert [p.stem for p in config_files("b", folder)] == ["b-1"]
    for wrong in ("c", "../configs/a", "*", ""):
        with pytest.raises(GridError, match="no such config"):
            config_files(wrong, folder)
    with pytest.raises(GridError, match=r"did you mean 'a-1'"):
        config_files("a_1", folder)


def test_a_variant_made_in_run_all_is_checked_too(config):
    def each(params):
        return [params, params.changed(n_heads=3)]

    with pytest.raises(GridError, match="n_heads=3 must divide dim=128"):
        read_grid([config("")], each=each)
    runs = read_grid([config("")], each=lambda p: [p, p.changed(n_heads=2, lr=0.5)])
    assert [(r.params.model.n_heads, r.params.train.lr) for r in runs] == [(4, 1e-3), (2, 0.5)]


def test_problems_found_later_are_placed_by_the_fields_they_name(config):
    path = config("ModelParams\ndim = 64\n")
    with pytest.raises(GridError, match=r"^configs/trial.txt:2: dim=64 is unlucky$"):
        read_grid([path], problems=lambda runs: [("dim=64 is unlucky", runs[0].places)])


def test_reading_a_config_brings_neither_torch_nor_matplotlib():
    code = (
        "import sys; from pathlib import Path; from train.grid import *;"
        "read_grid(config_files('test', Path('configs')));"
        "assert not {'torch', 'matplotlib', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
