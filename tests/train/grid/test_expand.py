"""Config text to runs: what is expanded, and what every mistake is answered with."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.data_params import DataParams
from model.model_params import ModelParams
from train.grid.config_text import Errors, read_options
from train.grid.expand import MAX_ERRORS, GridError, axes, config_files, read_grid
from train.grid.params import FOREIGN_NAMES, SECTION_OF, Params, field_hint
from train.train_params import TrainParams

ROOT = Path(__file__).resolve().parents[3]


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
        ("\ndim = 32", "configs/trial.txt:2: 'dim' stands before any section (DataParams, TrainParams, ModelParams, Grid, Expect)"),
        ("ModelParams\nlr = 1e-3", "configs/trial.txt:2: ModelParams has no 'lr'; it belongs under TrainParams"),
        ("TrainParams\nlr = '3e-4'", "configs/trial.txt:2: TrainParams cannot have lr = '3e-4': it should be a valid number"),
        ("ModelParams\ndim = 32.5", "configs/trial.txt:2: ModelParams cannot have dim = 32.5: it should be a valid integer"),
        ("ModelParams\ndim = True", "configs/trial.txt:2: ModelParams cannot have dim = True: it should be a valid integer"),
        ("TrainParams\nbetas = [0.9]", "cannot have betas = 0.9: it should be a valid tuple; a list is an axis: write a single value as a tuple"),
        ("ModelParams\nbias = 1", "configs/trial.txt:2: ModelParams cannot have bias = 1: it should be True or False"),
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
    assert len(found) == MAX_ERRORS + 1
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
        "import sys; from pathlib import Path; from train.grid.expand import *;"
        "read_grid(config_files('test', Path('configs')));"
        "assert not {'torch', 'matplotlib', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# What is meant by values and names of other languages and projects


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("TrainParams\nlr = 2**-6", "lr", [0.015625]),
        ("TrainParams\nlr = [2**-6, 3 * 1e-3, 1 / 4 + 0.5, -(-1)]", "lr", [2**-6, 3e-3, 0.75, 1]),
        ("TrainParams\nbatch_size = 8 * 2**2 - 1", "batch_size", [31]),
        ("TrainParams\nbetas = (1 - 0.1, 0.95)", "betas", [(0.9, 0.95)]),
        ("DataParams\ntask_args = {'max_length': 2**3}", "task_args", [{"max_length": 8}]),
    ],
)
def test_arithmetic_of_numbers_is_allowed_in_values(config, text, field, values):
    assert [run.params.flat()[field] for run in read_grid([config(text)])] == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lr = 9**9**9", "lr = 9 ** 9 ** 9 has no value: 9 ** 387420489 is too large"),
        ("lr = 10.0**400", "10.0 ** 400 is too large"),
        ("lr = 10**400", "10 ** 400 is too large"),
        ("lr = " + " * ".join(["9" * 300] * 30), "... has no value: a number in it is too large"),
        ("lr = 1 / 0", "lr = 1 / 0 has no value: division by zero"),
        ("lr = (-8)**0.5", "is not a real number"),
        ("lr = 'a' * 10**9", "arithmetic is for numbers, not 'a'"),
        ("lr = [] + [1]", "arithmetic is for numbers, not []"),
        ("epochs = True * 3", "arithmetic is for numbers, not True"),
        ("lr = 7 % 2", "Mod is not allowed"),
        ("lr = 1 << 99", "LShift is not allowed"),
        ("lr = lr * 2", "lr = lr * 2 is no Python literal"),
        ("compile = true", "compile = true is no Python literal; did you mean True?"),
        ("compile = 'false'", "did you mean False?"),
        ("patience = none", "patience = none is no Python literal; did you mean None?"),
        ("lr = 1e-2, 1e-3", "for an axis write a list, [0.01, 0.001]"),
        ("gradient_clip_val = 0", "None switches it off"),
        ("patience = 0", "None switches it off"),
        ("learning_rate = 1", "TrainParams has no 'learning_rate'; did you mean 'lr'?"),
        ("max_iters = 10", "did you mean 'max_steps'?"),
        (
            "warmup_steps = 1.0",
            "it should be an int, which counts optimizer steps, or a float below 1, a share of the run",
        ),
        ("val_every = 0.0", "it should be greater than 0"),
        ("n_embd = 10", "TrainParams has no 'n_embd'; did you mean 'dim', a field of ModelParams?"),
    ],
)
def test_likely_mistakes_in_a_config_get_a_hint(config, text, reason):
    [line] = errors_of(config(f"TrainParams\n{text}"))
    assert reason in line
    assert len(line) < 300


def test_options_take_arithmetic_and_text_stays_text():
    def option(text: str) -> list:
        errors = Errors()
        setting = read_options({"--set": text}, errors)
        return [*errors.lines] or next(iter(setting.values())).values

    assert option("lr=2**-6") == [2**-6]
    assert option("lr=[2**-6, 2**-7]") == [2**-6, 2**-7]
    assert option("from_saved=2024-10-22--16-17-10") == ["2024-10-22--16-17-10"], "a timestamp is no sum"
    assert option("dataset_name=10-2") == ["10-2"]
    assert option("batch_size=9**9**9") == [
        "--set: batch_size = 9 ** 9 ** 9 has no value: 9 ** 387420489 is too large"
    ]
    assert "did you mean True?" in option("compile=true")[0]


@pytest.mark.parametrize("name", sorted(FOREIGN_NAMES))
def test_every_foreign_name_leads_to_a_field_and_is_none_itself(name):
    ours, _ = FOREIGN_NAMES[name]
    assert ours in SECTION_OF
    assert name not in SECTION_OF
    assert f"did you mean {ours!r}" in field_hint(name, SECTION_OF)
    with pytest.raises(ValueError, match=f"did you mean {ours!r}"):
        Params(DataParams(), TrainParams(), ModelParams()).changed(**{name: 1})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("pos_encoding", "positions"),
        ("norm_first", "norm_position"),
        ("tie_embed_deembed", "tied_embeddings"),
        ("custom_tokenizer_ntokens", "tokenizer_vocab_size"),
        ("scheduler_type", "lr_schedule"),
        ("val_check_epoch_frac", "val_every"),
        ("max_iters", "max_steps"),
        ("learning_rate", "lr"),
        ("n_embd", "dim"),
        ("d_model", "dim"),
        ("hidden_size", "dim"),
        ("block_size", "max_seq_len"),
        ("n_layer", "n_layers"),
        ("num_hidden_layers", "n_layers"),
        ("n_head", "n_heads"),
    ],
)
def test_names_of_other_projects_lead_to_the_field_of_the_same_meaning(theirs, ours):
    assert field_hint(theirs, SECTION_OF).startswith(f"did you mean {ours!r}")


def test_fields_that_mean_something_else_elsewhere_are_noted(config, caplog):
    read_grid([config("TrainParams\npatience = 3\nlr_schedule = 'plateau'\n")])
    [note] = [record.message for record in caplog.records]
    assert note.startswith("configs/trial.txt:2: patience stops training")
    assert "lr_plateau_patience" in note
    caplog.clear()
    read_grid([config("TrainParams\nlr_cycle_steps = 30\n")])
    [note] = [record.message for record in caplog.records]
    assert note.startswith("configs/trial.txt:2: lr_cycle_steps has no effect on lr_schedule='cosine'")
    caplog.clear()
    read_grid([config("TrainParams\npatience = 3\nlr_cycle_steps = 30\nlr_schedule = 'cyclic'\n")])
    assert not caplog.records


# Files that are no text


def test_an_empty_config_is_mentioned(config, caplog):
    assert len(read_grid([config("# nothing yet\nTrainParams\n")])) == 1
    assert [record.message for record in caplog.records] == [
        "configs/trial.txt sets nothing: every field has its default"
    ]


def test_a_byte_order_mark_is_no_part_of_a_config(config):
    path = config("")
    path.write_bytes(b"\xef\xbb\xbfTrainParams\nlr = 0.5\n")
    assert read_grid([path])[0].params.train.lr == 0.5


def test_a_config_that_is_no_text_is_one_sentence(config):
    path = config("")
    path.write_bytes("TrainParams\nlr = 0.5".encode("utf-16"))
    assert errors_of(path) == ["configs/trial.txt: not UTF-8 text: byte 0 is 0xff"]
    path.unlink()
    path.mkdir()
    assert errors_of(path) == ["configs/trial.txt: cannot be read: Is a directory"]
