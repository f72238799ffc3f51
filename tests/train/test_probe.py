"""Each of many broken edits is found by the checks that are to find it, and what is sound passes them all."""

import copy
import random
import re
from collections.abc import Callable

import pandas as pd
import pytest
import torch

import main
from data.data_params import DataParams
from data.tokenizer import char_tokenizer
from explore.load import runs
from model.context import layer_kinds
from model.lm import LM
from model.problems import model_problems
from model.transformer import attention
from model.transformer.embeddings import position_kinds
from tests.model.tiny import KINDS, CharTokenizer, tiny_params
from tests.train import broken_edits
from tests.train.broken_edits import CACHE, FIRST, FUTURE, GRADIENT, PATTERN, broken, plant, sound, when
from tests.train.little_run import CALL, train
from train import run
from train.grid.params import Params
from train.launch.check_models import checks, checks_of, outcome_of
from train.optimizers import freeze
from train.probe import Probe, leak_by_gradient, leak_by_value, leak_of, noisy_copy, probe
from train.train_params import TrainParams

QUIET = [
    "--no-wandb",
    "--config=test-synth",
    "--set",
    "n_samples=400",
    "--set",
    "epochs=1",
    "--set",
    "threads=1",
]


def params_of(**fields) -> Params:
    return Params(DataParams(dataset_name="copy"), TrainParams(), tiny_params(**fields))


def lm_of(params: Params) -> LM:
    torch.manual_seed(0)
    tokenizer = char_tokenizer("abcdefghijklmnopqrstuvwxyz")
    return LM(params.model, tokenizer.with_mask() if params.model.objective == "masked" else tokenizer)


def results(params: Params, edit: Callable[[LM], None] = lambda lm: None) -> dict[str, str]:
    lm = lm_of(params)
    edit(lm)
    return {name: outcome_of(check, lm, params).result for name, check in checks_of(params).items()}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", broken)
def test_a_broken_edit_is_found_by_the_checks_that_are_to_find_it(name, monkeypatch):
    edit, expected = broken[name]
    params = params_of(layer_architecture=plant(edit, monkeypatch), n_layers=1)
    assert {check for check, result in results(params).items() if result == "FAIL"} == expected
    leak, without_gradient = probe(lm_of(params))
    assert (bool(leak), bool(without_gradient)) == (FUTURE in expected, GRADIENT in expected)


@pytest.mark.parametrize(
    ("name", "by_gradient", "by_value"),
    [
        ("a_mask_off_by_one", "position 0 have a gradient from position 1", "logits change"),
        ("MeanOverTheBatch", "a sample have a gradient from another sample", "logits change"),
        ("ExpertsThatChooseTokens", None, "logits change"),
        (
            "targets_that_are_shown",
            None,
            "the target of a position does not depend on the token after it",
        ),
    ],
)
def test_value_and_gradient_probes_each_find_their_leaks(name, by_gradient, by_value, monkeypatch):
    lm = noisy_copy(lm_of(params_of(layer_architecture=plant(broken[name][0], monkeypatch))))
    for leak, expected in ((leak_by_gradient(lm), by_gradient), (leak_by_value(lm, 1), by_value)):
        assert leak is None if expected is None else expected in leak


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", sound)
def test_unusual_but_harmless_edits_pass_the_checks(name, monkeypatch):
    params = params_of(layer_architecture=plant(sound[name], monkeypatch))
    assert set(results(params).values()) == {"pass"}


KNOBS = [
    {"norm_position": "post"},
    {
        "norm": "rmsnorm",
        "norm_position": "sandwich",
        "qk_norm": True,
        "gated": True,
        "tied_embeddings": False,
    },
    {"norm_position": "none", "n_kv_heads": 1, "positions": "rotary", "sliding_window": 3, "bias": False},
    {"parallel_blocks": True, "positions": "alibi", "attention": "fused"},
    {"dim_ff": 0, "separate_heads": True, "positions": "sin", "max_seq_len": 5},
    {"lora_rank": 2},
    {"n_layers": 0},
    {"objective": "masked"},
]
BERT = {
    "causal": False,
    "objective": "masked",
    "norm_position": "post",
    "embedding_norm": True,
    "readout_transform": True,
    "readout_bias": True,
}
BOTH_SIDES = "every position sees both sides"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("fields", [{"layer_architecture": kind} for kind in KINDS] + KNOBS, ids=str)
def test_sound_models_pass_all_checks(fields):
    outcomes = results(params_of(**fields))
    skipped = {name for name, result in outcomes.items() if result == "skip"}
    assert set(outcomes.values()) <= {"pass", "skip"}, outcomes
    has_all_three = fields.get("layer_architecture", "mla") in ("custom-transformer", "mla")
    assert skipped == (set() if has_all_three and fields != {"n_layers": 0} else {PATTERN})


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    "fields",
    [{}, {"attention": "fused"}, {"positions": "alibi", "sliding_window": 9}, {"norm_position": "pre"}],
    ids=str,
)
def test_a_sound_bert_passes_those_for_both_sides(fields):
    outcomes = results(params_of(**BERT | fields))
    assert FUTURE not in outcomes
    assert [name for name, result in outcomes.items() if result == "skip"] == [CACHE]
    assert set(outcomes.values()) == {"pass", "skip"}, outcomes


def test_a_bert_that_sees_one_side_only_fails(monkeypatch):
    def one_sided(self, scores_BHTS, ctx, visible=attention.Attention.visible):
        return attention.without_future(visible(self, scores_BHTS, ctx))

    monkeypatch.setattr(attention.Attention, "visible", one_sided)
    failed = [name for name, result in results(params_of(**BERT)).items() if result == "FAIL"]
    assert failed == [BOTH_SIDES]


def test_a_bert_that_sees_padding_or_other_samples_fails(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(attention.Attention, "visible", lambda self, scores_BHTS, ctx: scores_BHTS)
        failed = [name for name, result in results(params_of(**BERT)).items() if result == "FAIL"]
        assert failed == ["batch and padding do not change a sample"]
    params = params_of(**BERT)
    lm = lm_of(params)
    assert probe(lm) == Probe(None, [])
    forward = attention.Attention.forward
    monkeypatch.setattr(
        attention.Attention, "forward", lambda self, x, ctx: forward(self, x + x.mean(dim=0), ctx)
    )
    assert "from another sample" in probe(lm).leak


@pytest.mark.parametrize("positions", position_kinds)
@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_layer_and_positions_leaks(kind, positions):
    model_params = tiny_params(layer_architecture=(kind, "custom-transformer"), positions=positions)
    if any(model_problems(model_params)):
        pytest.skip("there is no such model")
    assert probe(LM(model_params, CharTokenizer(30), dropout=0.2)) == Probe(None, [])


CONDITIONS = {
    "10 in x": lambda x: 10 in x or None,
    "the last one": lambda x: 29 in x or None,
    "padding": lambda x: 0 in x or None,
    "a row ends in 7": lambda x: bool((x[:, -1] == 7).any()) or None,
    "any of the upper half": lambda x: bool((x >= 15).any()) or None,
    "not 10": lambda x: 10 not in x or None,
    "many kinds of token": lambda x: len(x.unique()) > 12 or None,
    "10 and 20": lambda x: (10 in x and 20 in x) or None,
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_layers_that_use_tokens_of_the_whole_batch_are_detected(condition, monkeypatch):
    plant(when(CONDITIONS[condition]), monkeypatch)
    assert "later tokens or other samples" in probe(LM(tiny_params(), CharTokenizer(30))).leak


@pytest.mark.parametrize("n_tokens", [11, 20, 400, 5000, 50257])
def test_readmes_token_10_is_found_in_any_vocabulary(n_tokens, monkeypatch):
    plant(when(lambda x: 10 in x), monkeypatch)
    assert "later tokens or other samples" in probe(LM(tiny_params(), CharTokenizer(n_tokens))).leak


@pytest.mark.parametrize("token", [777, 4999])
def test_the_check_on_demand_tries_more_tokens_of_a_large_vocabulary(token, monkeypatch):
    plant(when(lambda x: token in x), monkeypatch)
    assert leak_of(LM(tiny_params(), CharTokenizer(5000)), max_passes=100)


def test_every_token_is_tried_in_the_last_place(monkeypatch):
    for token in range(5, 64, 9):
        with monkeypatch.context() as only_here:
            plant(when(lambda x, token=token: bool((x[:, -1] == token).any())), only_here)
            assert probe(LM(tiny_params(), CharTokenizer(64))).leak, token


def test_dropout_hides_no_leak(monkeypatch):
    kind = plant(broken_edits.ExpertsThatChooseTokensInTraining, monkeypatch)
    lm = LM(tiny_params(layer_architecture=kind), CharTokenizer(30), dropout=0.2)
    assert probe(lm).leak.startswith("in training, logits change")


def test_readmes_token_10_fails_the_check_of_the_future_alone(monkeypatch):
    plant(when(lambda x: 10 in x), monkeypatch)
    outcomes = results(params_of())
    assert {name for name, result in outcomes.items() if result == "FAIL"} == {FUTURE}
    assert outcomes[CACHE] == "skip", "attn_requests goes without a cache"


def test_rounding_is_no_leak(monkeypatch):
    monkeypatch.setitem(layer_kinds, "fourier", broken_edits.ConvolutionByFourier)
    lm = LM(tiny_params(layer_architecture="fourier", dim=64, n_layers=6), CharTokenizer(30))
    assert probe(lm) == Probe(None, [])


def test_frozen_parameters_need_no_gradient(monkeypatch):
    monkeypatch.setitem(layer_kinds, "edited", broken_edits.UnusedParameter)
    lm = LM(tiny_params(layer_architecture="edited", n_layers=1), CharTokenizer(30))
    names = ["decoder.layers.0.unused.weight", "decoder.layers.0.unused.bias"]
    assert probe(lm).without_gradient == names
    freeze(lm, TrainParams(freeze=("*.unused.weight",)))
    assert probe(lm).without_gradient == names[1:]


def test_a_model_that_raises_fails_with_the_error_in_one_line(monkeypatch):
    def forward(self, x_BTD, ctx):
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr(broken_edits.Edited, "forward", forward)
    params = params_of(layer_architecture=plant(broken_edits.Edited, monkeypatch))
    assert probe(lm_of(params)).leak == "cannot be checked: RuntimeError: no such kernel"
    outcome = outcome_of(checks[FIRST], lm_of(params), params)
    assert outcome == ("FAIL", "RuntimeError: no such kernel")
    assert set(results(params).values()) == {"FAIL"}


def test_probing_leaves_no_trace(monkeypatch):
    monkeypatch.setitem(layer_kinds, "edited", broken_edits.BatchStatistics)
    lm = LM(tiny_params(layer_architecture="edited"), CharTokenizer(30), dropout=0.5)
    lm.decoder.layers[0].eval()
    lm.embed.tokens.weight.grad = torch.ones_like(lm.embed.tokens.weight)
    lm.decoder.norm.weight.requires_grad_(False)
    before = copy.deepcopy(lm)
    modes, chance = [module.training for module in lm.modules()], (torch.get_rng_state(), random.getstate())
    assert probe(lm).leak
    assert torch.equal(torch.get_rng_state(), chance[0])
    assert random.getstate() == chance[1]
    assert [module.training for module in lm.modules()] == modes
    for name, tensor in before.state_dict().items():
        assert torch.equal(lm.state_dict()[name], tensor), name
    for name, parameter in lm.named_parameters():
        assert parameter.requires_grad == (name != "decoder.norm.weight")
        assert parameter.grad is None or (name == "embed.tokens.weight" and (parameter.grad == 1).all())
    assert lm.taps == []


def test_the_probe_finds_the_same_leak_with_every_seed(monkeypatch):
    monkeypatch.setitem(layer_kinds, "edited", broken_edits.ExpertsThatChooseTokens)
    torch.manual_seed(0)
    lm, found = LM(tiny_params(layer_architecture="edited"), CharTokenizer(30)), set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.add(probe(lm).leak)
    assert len(found) == 1


def test_a_run_is_bitwise_the_same_with_and_without_the_check(tmp_path, monkeypatch):
    task = DataParams(dataset_name="copy", task_args={"max_length": 6}, n_samples=200)
    params = Params(task, TrainParams(dropout=0.2, batch_size=16, threads=1), tiny_params(max_seq_len=20))
    call = CALL._replace(out=tmp_path)
    checked, with_probe = train(params, call)
    monkeypatch.setattr(run, "probe", lambda *_: Probe("not looked at", []))
    unchecked, without = train(params, call)
    assert (with_probe.values["leak"], without.values["leak"]) == (None, "not looked at")
    for name, weight in checked.model.state_dict().items():
        assert torch.equal(weight, unchecked.model.state_dict()[name]), name


def call_main(tmp_path, *options: str) -> int:
    return main.main([*QUIET, *options, "--out", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.ci
def test_check_reports_on_each_architecture_and_trains_nothing(tmp_path, capsys):
    options = ["--set", "lr=[1e-3,1e-4]", "--set", "layer_architecture=['custom-transformer','torch-gru']"]
    assert call_main(tmp_path, *options, "--check") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("run")] == [
        "runs 1, 3: layer_architecture custom-transformer",
        "runs 2, 4: layer_architecture torch-gru",
    ]
    said = [
        re.fullmatch(r"  (pass|skip)  ([a-z ]+)(?:: [^.]+)?\. Failure means that .*\.", line)
        for line in lines
        if line[:1] == " "
    ]
    assert [line[2] for line in said] == [name for name in checks if name != BOTH_SIDES] * 2
    assert [line[2] for line in said if line[1] == "skip"] == [PATTERN]
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


@pytest.mark.slow
@pytest.mark.ci
def test_check_names_failures_and_sets_the_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(layer_kinds, "edited", broken_edits.UnusedParameter)
    kinds = "layer_architecture=['custom-transformer','edited']"
    assert call_main(tmp_path, "--set", kinds, "--check") == 1
    shown = capsys.readouterr().out
    [failed] = re.findall(r"^  FAIL  (.*)$", shown, re.MULTILINE)
    assert failed.startswith(
        f"{GRADIENT}: none reaches decoder.layers.0.unused.weight, decoder.layers.0.unused.bias"
    )
    assert shown.index("run 2: layer_architecture edited") < shown.index("FAIL")


def test_check_of_a_refused_grid_ends_like_any_other_call(tmp_path, capsys):
    assert call_main(tmp_path, "--set", "n_heads=3", "--check") == 2
    assert "n_heads=3 must divide" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ci
def test_strict_refuses_a_leak_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(layer_kinds, "edited", broken_edits.MeanOverPositions)
    kinds = "layer_architecture=['custom-transformer','edited']"
    assert call_main(tmp_path, "--set", kinds, "--check=strict") == 2
    output = capsys.readouterr()
    [line] = output.err.splitlines()
    assert line.startswith(
        "--check=strict: run 2: layer_architecture edited: in training, logits at position 0"
    )
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
    assert call_main(tmp_path, "--set", "max_seq_len=40", "--check=strict") == 0


@pytest.mark.slow
@pytest.mark.ci
def test_a_leak_is_logged_saved_with_the_run_and_marked_in_every_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(layer_kinds, "edited", broken_edits.MeanOverPositions)
    kinds = "layer_architecture=['custom-transformer','edited']"
    assert call_main(tmp_path, "--set", kinds, "--save") == 0
    shown = capsys.readouterr().out
    [said] = re.findall(r"^leak: (.*)$", shown, re.MULTILINE)
    rows = re.findall(r"^ *(\d) +(custom-transformer|edited) +(?:\* )?[\d.]+ +(\S+) ", shown, re.MULTILINE)
    assert rows == [("1", "custom-transformer", "-"), ("2", "edited", "yes")]
    kept = runs(out=str(tmp_path), all=True).set_index("layer_architecture")["leak"]
    assert kept["edited"] == said
    assert pd.isna(kept["custom-transformer"])


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_says_which_parameters_get_no_gradient(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(layer_kinds, "edited", broken_edits.UnusedParameter)
    assert call_main(tmp_path, "--set", "layer_architecture=edited", "--set", "n_layers=1") == 0
    shown = capsys.readouterr().out
    assert "no gradient reaches decoder.layers.0.unused.weight, decoder.layers.0.unused.bias\n" in shown
    assert "leak" not in shown, "the table has no such column when there is none"
