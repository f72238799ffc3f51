"""The Grid section: what it expands to, what its expressions may do, and what every mistake is answered with."""

import itertools
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.grid.expand import GridError, Run, read_grid
from train.grid.expressions import Expression
from train.grid.params import SECTION_OF
from train.launch.problems import grid_problems

ROOT = Path(__file__).resolve().parents[3]
AXES = "TrainParams\nlr = [1e-3, 1e-2]\nModelParams\ndim = [64, 128, 256]\nn_heads = [1, 2, 4]\n"
TOGETHER = 'Grid\ntogether = [("dim", "n_heads")]\n'
VARIANTS = (
    "Grid\nvariants = {\n"
    '  "gru": {"layer_architecture": "torch-gru", "norm": ["layernorm", "rmsnorm"]},\n'
    '  "plain": {},\n}\n'
)


@pytest.fixture
def expand(tmp_path):
    """Writes a config and reads it, with options as the command line has them."""

    def read(text: str, *options: str, name: str = "t", **others) -> list[Run]:
        return read_grid([write(tmp_path, text, name)], {f"--set {o}": o for o in options}, **others)

    return read


def write(tmp_path: Path, text: str, name: str = "t") -> Path:
    path = tmp_path / "configs" / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def points(runs: list[Run], *names: str) -> list[tuple]:
    return [tuple(run.params.flat()[name] for name in names) for run in runs]


def answers(expand, text: str, *options: str) -> list[str]:
    with pytest.raises(GridError) as caught:
        expand(text, *options)
    return caught.value.errors


def test_axes_in_together_advance_together_where_the_first_of_them_stands(expand):
    runs = expand(TOGETHER + AXES + "n_layers = [1, 2]\n")
    expected = itertools.product((1e-3, 1e-2), ((64, 1), (128, 2), (256, 4)), (1, 2))
    assert points(runs, "lr", "dim", "n_heads", "n_layers") == [(a, *b, c) for a, b, c in expected]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4))
def test_the_number_of_points_is_that_of_an_independent_count(tmp_path_factory, lengths):
    """Axes of given lengths, some of which have a partner; a condition on two of them."""
    fields = ["n_layers", "batch_size", "random_seed", "warmup_steps"]
    partners = ["conv_width", "lr_cycle_steps", "lr_plateau_patience", "accumulate_grad_batches"]
    section: dict[str, list[str]] = {"ModelParams": [], "TrainParams": []}
    pairs = []
    for (n, paired), field, partner in zip(lengths, fields, partners, strict=False):
        for name in (field, partner) if paired else (field,):
            section[SECTION_OF[name]].append(f"{name} = {list(range(1, n + 1))}")
        pairs += [(field, partner)] if paired else []
    text = "\n".join(line for header, lines in section.items() for line in (header, *lines))
    condition = f"{fields[0]} + {fields[len(lengths) - 1]} > 4"
    path = write(
        tmp_path_factory.mktemp("grid"), f"{text}\nGrid\ntogether = {pairs}\nskip = [{condition!r}]\n"
    )
    axes = [range(1, n + 1) for n, _ in lengths]
    left = [point for point in itertools.product(*axes) if not point[0] + point[-1] > 4]
    runs = read_grid([path])
    assert sorted(points(runs, *fields[: len(lengths)])) == sorted(left)
    for field, partner in pairs:
        assert all(a == b for a, b in points(runs, field, partner))


def test_skip_leaves_points_out_before_they_can_be_wrong(expand):
    text = "ModelParams\ndim = [64, 96]\nn_heads = [2, 3]\n"
    assert points(expand(text + "Grid\nskip = ['dim % n_heads != 0']\n"), "dim", "n_heads") == [
        (64, 2),
        (96, 2),
        (96, 3),
    ]
    with pytest.raises(GridError, match="n_heads=3 must divide dim=64"):
        expand(text)


def test_any_of_several_conditions_leaves_a_point_out(expand):
    runs = expand(AXES + "Grid\nskip = ['dim == 64 and lr > 5e-3',\n 'n_heads != 2']\n")
    assert points(runs, "lr", "dim") == [(1e-3, 64), (1e-3, 128), (1e-3, 256), (1e-2, 128), (1e-2, 256)]


def test_a_derived_field_may_use_axes_defaults_and_earlier_derived_fields(expand):
    derive = (
        "Grid\nderive = {'n_heads': 'dim // 64', 'dim_ff': 'n_heads * 100 + n_layers', 'min_lr': 'lr / 10'}\n"
    )
    runs = expand(derive + "ModelParams\ndim = [64, 192]\n")
    assert points(runs, "n_heads", "dim_ff", "min_lr") == [(1, 104, 1e-4), (3, 304, 1e-4)]
    assert points(expand(derive, "n_layers=2", "dim=128"), "dim_ff") == [(202,)], "options count"
    assert points(expand(derive, "n_heads=8"), "n_heads", "dim_ff") == [(8, 804)], "and win"


def test_skip_may_use_derived_fields_and_other_points_are_skipped_before_deriving(expand):
    derive = "Grid\nderive = {'n_heads': '128 // (dim - 32)'}\nModelParams\ndim = [32, 64, 96]\n"
    runs = expand("Grid\nskip = ['dim == 32', 'n_heads == 2']\n" + derive.replace("Grid\n", ""))
    assert points(runs, "dim", "n_heads") == [(64, 4)]
    [error] = answers(expand, derive)
    assert error == (
        "configs/t.txt:2: derive 'n_heads' = '128 // (dim - 32)': "
        "ZeroDivisionError at dim 32: integer division or modulo by zero"
    )


def test_variants_vary_slowest_and_a_list_in_one_is_an_axis_of_its_own(expand):
    runs = expand(VARIANTS + "ModelParams\ndim = [32, 64]\n")
    own = [(32, "layernorm"), (32, "rmsnorm"), (64, "layernorm"), (64, "rmsnorm")]
    expected = [("gru", "torch-gru", *point) for point in own]
    expected += [("plain", "custom-transformer", dim, "layernorm") for dim in (32, 64)]
    fields = points(runs, "layer_architecture", "dim", "norm")
    assert [(run.variant, *point) for run, point in zip(runs, fields, strict=True)] == expected


def test_variants_can_be_chosen_and_named_in_conditions(expand):
    assert [run.variant for run in expand(VARIANTS, "variant=plain")] == ["plain"]
    assert [run.variant for run in expand(VARIANTS, "variant=['plain','gru']")] == ["plain", "gru", "gru"]
    runs = expand(VARIANTS + "skip = [\"variant == 'gru' and norm == 'rmsnorm'\"]\n")
    assert [run.variant for run in runs] == ["gru", "plain"]


def test_together_holds_within_a_variant_too(expand):
    variants = "variants = {'a': {'dim': [64, 128], 'n_heads': [1, 2]}, 'b': {'n_layers': 1}}\nTrainParams\nlr = [1e-3, 1e-2]"
    runs = expand(TOGETHER + variants)
    assert [run.variant for run in runs] == ["a"] * 4 + ["b"] * 2
    assert points(runs[:4], "lr", "dim", "n_heads") == [
        (1e-3, 64, 1),
        (1e-3, 128, 2),
        (1e-2, 64, 1),
        (1e-2, 128, 2),
    ]


def test_all_four_work_in_each_file_of_a_family_by_its_own_section(tmp_path):
    files = [
        write(tmp_path, TOGETHER + AXES + "Grid\nskip = ['dim == 64']\n", "f"),
        write(tmp_path, AXES, "f-2"),
    ]
    runs = read_grid(files)
    assert [run.config for run in runs] == ["f"] * 4 + ["f-2"] * 18


def test_ablations_of_a_point_belong_to_its_variant(expand):
    runs = expand(VARIANTS, "variant=gru", each=lambda params: [params, params.changed(dim=64)])
    assert [run.variant for run in runs] == ["gru"] * 4


def test_a_field_that_weights_bring_along_is_known_to_expressions(expand):
    runs = expand("Grid\nderive = {'n_heads': 'dim // 32'}\n", defaults=lambda **chosen: {"dim": 96})
    assert points(runs, "dim", "n_heads") == [(96, 3)]


def test_from_pretrained_may_be_derived(expand):
    def defaults(from_pretrained=None, **others):
        return {"dim": int(from_pretrained[4:])} if from_pretrained else {}

    text = "Grid\nderive = {'from_pretrained': \"'size' + ('64' if n_layers == 1 else '96')\"}\nModelParams\nn_layers = [1, 2]\n"
    assert points(expand(text, defaults=defaults), "dim") == [(64,), (96,)]


MISTAKES = [
    # text, options, the start of every answer
    ("Grid\ntogther = []", (), ["configs/t.txt:2: Grid has no 'togther'; did you mean 'together'?"]),
    ("Grid\ndim = 3", (), ["configs/t.txt:2: Grid has no 'dim'; it belongs under ModelParams"]),
    ("ModelParams\nskip = []", (), ["configs/t.txt:2: ModelParams has no 'skip'; it belongs under Grid"]),
    ("Grid\nskip = ['dim == 1']\nskip = []", (), ["configs/t.txt:3: 'skip' is set twice, first at configs/t.txt:2"]),
    ("Gird\nskip = []", (), ["configs/t.txt:1: there is no section 'Gird'; did you mean 'Grid'?"]),
    ("", ("skip=[]",), ["--set skip=[]: there is no field 'skip'; edit skip under Grid in the config"]),
    # together
    ("Grid\ntogether = ('dim', 'n_heads')", (), ["configs/t.txt:2: together takes a list of tuples of fields, as in"]),
    ("Grid\ntogether = ['dim']", (), ["configs/t.txt:2: together takes a list of tuples"]),
    ("Grid\ntogether = [\n('dim',)]", (), ["configs/t.txt:3: together takes a list of tuples"]),
    ("Grid\ntogether = [('dim', 3)]", (), ["configs/t.txt:2: together takes a list of tuples"]),
    (AXES + "Grid\ntogether = [('dimm', 'n_heads')]", (), ["configs/t.txt:7: together names 'dimm', which is no field; did you mean 'dim'?"]),
    (AXES + "Grid\ntogether = [('dim', 'n_heads'), ('dim', 'lr')]", (), ["configs/t.txt:7: 'dim' is in together twice"]),
    (TOGETHER + "ModelParams\ndim = [64, 128]\nn_heads = [1, 2, 4]", (), ["configs/t.txt:2: fields in together need lists of equal length: dim has 2 (configs/t.txt:4), n_heads has 3 (configs/t.txt:5)"]),
    (TOGETHER + "ModelParams\ndim = [64]\nn_heads = 1", (), ["configs/t.txt:5: 'n_heads' is in together (configs/t.txt:2): it needs a list"]),
    (TOGETHER + "ModelParams\ndim = [64, 128]", (), ["configs/t.txt:2: 'n_heads' is in together, but no list is set for it"]),
    (TOGETHER + "derive = {'n_heads': 'dim // 64'}\nModelParams\ndim = [64]", (), ["configs/t.txt:2: 'n_heads' is in together, but derived at configs/t.txt:3"]),
    (TOGETHER + AXES, ("dim=64",), ["configs/t.txt:2: fields in together need lists of equal length: dim has 1 (--set dim=64), n_heads has 3 (configs/t.txt:7)"]),
    (TOGETHER + "ModelParams\ndim = [64, 'x']\nn_heads = [1, 2, 4]", (), ["configs/t.txt:4: ModelParams cannot have dim = 'x'"]),
    # skip
    ("Grid\nskip = 'dim == 1'", (), ["configs/t.txt:2: skip takes a list of conditions, as in"]),
    ("Grid\nskip = [\n'dim == 1',\n3]", (), ["configs/t.txt:4: skip takes a list of conditions"]),
    (AXES + "Grid\nskip = ['dim == 64', 'dim == 64']", (), ["configs/t.txt:7: skip has 'dim == 64' twice"]),
    ("Grid\nskip = ['dimm == 1']", (), ["configs/t.txt:2: skip: 'dimm == 1': there is no field 'dimm'; did you mean 'dim'?"]),
    ("Grid\nskip = ['norm == rmsnorm']", (), ["configs/t.txt:2: skip: 'norm == rmsnorm': there is no field 'rmsnorm'"]),
    ("Grid\nskip = [\"variant == 'a'\"]", (), ["configs/t.txt:2: skip: \"variant == 'a'\": there is no field 'variant'"]),
    ("Grid\nskip = ['dim = 1']", (), ["configs/t.txt:2: skip: 'dim = 1': syntax error: invalid syntax; to compare write =="]),
    ("Grid\nskip = ['']", (), ["configs/t.txt:2: skip: '': syntax error"]),
    (AXES + "Grid\nskip = ['dim + 1']", (), ["configs/t.txt:7: skip 'dim + 1': gives 65 at dim 64, not True or False"]),
    (AXES + "Grid\nskip = ['1 / (dim - 128) > 0']", (), ["configs/t.txt:7: skip '1 / (dim - 128) > 0': ZeroDivisionError at dim 128: division by zero"]),
    (AXES + "Grid\nskip = ['dim > \"a\"']", (), ["configs/t.txt:7: skip 'dim > \"a\"': TypeError at dim 64:"]),
    (AXES + "Grid\nskip = ['dim > 0']", (), ["configs/t.txt:7: skip leaves none of 18 points"]),
    # derive
    ("Grid\nderive = ['dim']", (), ["configs/t.txt:2: derive takes an expression for each field, as in"]),
    ("Grid\nderive = {'n_heads': 4}", (), ["configs/t.txt:2: derive takes an expression for each field"]),
    ("Grid\nderive = {4: 'dim'}", (), ["configs/t.txt:2: derive takes an expression for each field, as in {\"n_heads\": \"dim // 64\"}; 4 is no name"]),
    ("Grid\nderive = {**x}", (), ["configs/t.txt:2: derive takes an expression for each field, as in {\"n_heads\": \"dim // 64\"}; **x is no name"]),
    ("Grid\nderive = {'n_headz': '4'}", (), ["configs/t.txt:2: derive names 'n_headz', which is no field; did you mean 'n_heads'?"]),
    ("Grid\nderive = {'n_heads': '4',\n'n_heads': '2'}", (), ["configs/t.txt:3: derive has 'n_heads' twice"]),
    ("Grid\nderive = {'n_heads': 'dim // 64'}\nModelParams\nn_heads = 2", (), ["configs/t.txt:2: 'n_heads' is derived, but also set at configs/t.txt:4"]),
    ("Grid\nderive = {'n_heads': 'n_heads * 2'}", (), ["configs/t.txt:2: derive 'n_heads' = 'n_heads * 2' needs itself"]),
    ("Grid\nderive = {'n_heads': 'dim_ff // 4',\n 'dim_ff': 'n_heads * 64'}", (), ["configs/t.txt:2: derive 'n_heads' = 'dim_ff // 4' needs 'dim_ff', which is derived after it"]),
    (AXES.replace("n_heads", "n_layers") + "Grid\nderive = {'n_heads': 'dim / 64'}", (), ["configs/t.txt:7: ModelParams cannot have n_heads = 1.0, which 'dim / 64' gives at dim 64: it should be a valid integer; // gives whole numbers"]),
    ("Grid\nderive = {'n_heads': 'dim // 256'}", (), ["configs/t.txt:2: ModelParams cannot have n_heads = 0, which 'dim // 256' gives at dim 128: it should be greater than 0"]),
    ("Grid\nderive = {'n_heads': 'dim // 32 + 1'}\nModelParams\ndim = 64", (), ["configs/t.txt:2 and configs/t.txt:4: n_heads=3 must divide dim=64"]),
    # variants
    ("Grid\nvariants = ['gru']", (), ["configs/t.txt:2: variants takes fields for each name, as in"]),
    ("Grid\nvariants = {}", (), ["configs/t.txt:2: variants = {} is an axis without values"]),
    ("Grid\nvariants = {'gru': 'torch-gru'}", (), ["configs/t.txt:2: variants takes fields for each name"]),
    ("Grid\nvariants = {3: {}}", (), ["configs/t.txt:2: variants takes fields for each name, as in {\"gru\": {\"layer_architecture\": \"torch-gru\"}}; 3 is no name"]),
    ("Grid\nvariants = {'': {}}", (), ["configs/t.txt:2: variants takes fields for each name"]),
    ("Grid\nvariants = {'a': {'dimm': 3}}", (), ["configs/t.txt:2: variant 'a' names 'dimm', which is no field; did you mean 'dim'?"]),
    ("Grid\nvariants = {'a': {\n'dim': 32.5}}", (), ["configs/t.txt:3: ModelParams cannot have dim = 32.5"]),
    ("Grid\nvariants = {'a': {'dim': []}}", (), ["configs/t.txt:2: dim = [] is an axis without values"]),
    ("Grid\nvariants = {'a': {'dim': x}}", (), ["configs/t.txt:2: dim = x is no Python literal"]),
    ("Grid\nvariants = {'a': {'dim': 64}, 'a': {}}", (), ["configs/t.txt:2: variants has 'a' twice"]),
    ("Grid\nvariants = {'a': {'dim': 64, 'dim': 32}}", (), ["configs/t.txt:2: variant 'a' has 'dim' twice"]),
    ("Grid\nvariants = {'a': {'dim': 64}, 'b': {'dim': 64}}", (), ["configs/t.txt:2: the variants 'a' and 'b' set the same"]),
    ("Grid\nvariants = {'a': {'dim': 64}}\nModelParams\ndim = 32", (), ["configs/t.txt:2: 'dim' is set by variant 'a', but also at configs/t.txt:4"]),
    ("Grid\nvariants = {'a': {'dim': 64}}\nderive = {'dim': '64'}", (), ["configs/t.txt:2: 'dim' is set by variant 'a', but also derived at configs/t.txt:3"]),
    ("Grid\nvariants = {'a': {'dim': 64}, 'b': {'dim': 32}}", ("dim=16",), ["--set dim=16: 'dim' is set by the variants at configs/t.txt:2: change it there"]),
    ("Grid\nvariants = {'a': {'dim': 33}, 'b': {}}", (), ["configs/t.txt:2: n_heads=4 must divide dim=33"]),
    (VARIANTS, ("variant=grru",), ["--set variant=grru: there is no variant 'grru'; did you mean 'gru'?"]),
    ("", ("variant=gru",), ["--set variant=gru: there is no variant 'gru'; configs/t.txt has none"]),
    # several at once
    (TOGETHER + "skip = ['x']\nderive = {'y': '1'}\nvariants = {'z': 1}\nModelParams\nfoo = 1", (),
     ["configs/t.txt:2: ", "configs/t.txt:2: ", "configs/t.txt:3: ", "configs/t.txt:4: ", "configs/t.txt:5: ", "configs/t.txt:7: "]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "expected"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_answered_with_file_line_and_what_is_allowed(expand, text, options, expected):
    found = answers(expand, text, *options)
    assert len(found) == len(expected), found
    for line, start in zip(sorted(found), expected, strict=True):
        assert line.startswith(start), line


def test_options_may_replace_the_lists_of_a_group(expand):
    runs = expand(TOGETHER + AXES, "dim=[32,64]", "n_heads=[2,8]")
    assert points(runs[:2], "dim", "n_heads") == [(32, 2), (64, 8)]
    assert points(expand(TOGETHER + AXES, "dim=32", "n_heads=2"), "dim", "n_heads") == [(32, 2)] * 2


def test_conditions_that_skip_nothing_or_everything_are_noted(expand, notes):
    expand(VARIANTS + "skip = ['dim == 521', \"variant == 'gru'\"]\n")
    assert notes == [
        "configs/t.txt: skip leaves no run of variant 'gru'",
        "configs/t.txt:6: skip 'dim == 521' leaves out no point",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dim * 2 - n_layers // 3 + 7 % 4", 258),
        ("-dim ** 2 / 4", -4096.0),
        ("dim ** 0.5 > 11 and not n_layers == 3 or False", True),
        ("32 < dim <= 128", True),
        ("dim in (64, 128) and n_layers not in [1, 2]", True),
        ("'soft' + norm", "softlayernorm"),
        ("min(dim, 64) + max(1, n_layers) + abs(-2) + round(2.6) + int(3.9) + int('4')", 80),
        ("round(lr * 3, 4) == 0.003 and float(dim) == 128.0", True),
        ("64 if patience is None else patience", 64),
        ("task_args['a'] + betas[1]", 3.5),
    ],
)
def test_expressions_have_the_value_that_python_gives_them(text, value):
    values = {
        "dim": 128,
        "n_layers": 4,
        "norm": "layernorm",
        "lr": 1e-3,
        "patience": None,
        "task_args": {"a": 3},
    }
    values["betas"] = (0.9, 0.5)
    expression = Expression(text, values)
    assert expression(values) == value
    assert set(expression.names) == {name for name in values if name in text.replace("'layernorm'", "")}


@pytest.mark.parametrize(
    "text",
    [
        *("dim.real", "().__class__", "norm.format(dim)", "norm.__class__.__mro__", "dim.bit_length()"),
        *("__import__('os')", "open('x')", "eval('1')", "getattr(dim, 'real')", "str(dim)", "len(norm)", "rand()"),
        *("lambda: 1", "[x for x in (1, 2)]", "(x := 1)", "f'{dim}'", "{1: 2}", "{1, 2}", "norm[1:2]", "*dim", "..."),
        *("min(*betas)", "int(x=3)", "(min)(1, 2)(3)", "min", "dim; dim", "import os", "dim << 2", "dim & 1", "~dim"),
        *("dim @ dim", "b'x'", "1j", "await dim", "(yield)", "dim is 128", "dim = 1", "", "\0", "None()", "dim if n_layers"),
        *("(" * 400 + ")" * 400, "dim +" * 300 + "1"),
    ],
)  # fmt: skip
def test_values_that_are_not_arithmetic_are_refused_unevaluated(text):
    with pytest.raises(ValueError, match=r"."):
        Expression(text, ["dim", "n_layers", "norm", "betas"])


@pytest.mark.parametrize(
    "text",
    [
        *("9 ** 9 ** 9", "9 ** 99999999", "4000000 ** 4000000", "(10 ** 300) ** (10 ** 300)", "2.0 ** 99999", "(-8) ** 0.5"),
        *("'a' * 99999999", "99999999 * 'a'", "(1,) * 99999999", "((1,) * 9999,) * 9999", "norm * 9 * 9 * 9 * 9"),
        *("'%99999999999d' % dim", "'%s' % norm", "round(1, -99999999999)", "round(1.5, 10 ** 30)", "int('x')"),
        *("dim // 0", "dim < norm", "task_args['x']", "betas[7]", "dim[0]", "int(1e999)", "min(dim)", "abs(norm)"),
        *("-" * 990 + "dim",),
    ],
)  # fmt: skip
def test_arithmetic_without_a_value_or_with_a_huge_one_is_an_error_at_once(text):
    values = {"dim": 128, "norm": "layernorm", "task_args": {}, "betas": (0.9, 0.5)}
    started = time.process_time()
    with pytest.raises(ValueError, match=r".") as caught:
        Expression(text, values)(values)
    assert len(str(caught.value)) < 300
    assert time.process_time() - started < 0.5


def test_expressions_are_evaluated_once_for_the_values_they_look_at():
    expression = Expression("dim > 64", ["dim", "lr"])
    for dim, lr in itertools.product((32, 64.0, 64, 128), (1, 2, 3)):
        assert expression({"dim": dim, "lr": lr}) is (dim > 64)
    assert len(expression.outcomes) == 4


def test_ten_thousand_points_expand_within_seconds(expand):
    text = (
        "Grid\nvariants = {'a': {}, 'b': {'norm': 'rmsnorm'}}\ntogether = [('dim', 'n_layers')]\n"
        "derive = {'n_heads': 'dim // 32', 'min_lr': 'lr / 10'}\nskip = ['lr > 0.5 and dim == 64', 'min_lr > 0.06']\n"
        f"TrainParams\nlr = {[i / 100 for i in range(1, 101)]}\nrandom_seed = {list(range(10))}\n"
        "ModelParams\ndim = [32, 64, 96, 128, 160]\nn_layers = [1, 2, 3, 4, 5]\n"
    )
    started = time.process_time()
    runs = expand(text)
    assert time.process_time() - started < 5
    assert len(runs) == 2 * 10 * (60 * 4 + 50)


@pytest.mark.slow
@pytest.mark.ci
def test_ten_thousand_points_are_checked_within_seconds(expand):
    lists = f"TrainParams\nlr = {[i / 1000 for i in range(1, 101)]}\nrandom_seed = {list(range(100))}\n"
    started = time.process_time()
    runs = expand("DataParams\ndataset_name = 'copy'\n" + lists, problems=partial(grid_problems, root=ROOT))
    assert len(runs) == 10_000
    assert time.process_time() - started < 10, "2 on an idle machine"


def test_an_absurdly_large_grid_is_refused_at_once(expand):
    lists = "TrainParams\n" + "".join(
        f"{name} = {list(range(1, 101))}\n"
        for name in ("random_seed", "batch_size", "epochs", "warmup_steps")
    )
    [error] = answers(expand, lists)
    assert error == "configs/t.txt: 100,000,000 points are too many; at most 1,000,000 are allowed"


def test_reading_a_grid_section_brings_neither_torch_nor_matplotlib(tmp_path):
    path = write(tmp_path, VARIANTS + "skip = ['dim == 3']\n")
    code = (
        "import sys; from pathlib import Path; from train.grid.expand import *;"
        f"assert len(read_grid([Path({str(path)!r})])) == 3;"
        "assert not {'torch', 'matplotlib', 'lightning', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
