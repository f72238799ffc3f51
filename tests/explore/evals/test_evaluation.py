"""--lm-eval and model_explorer.lm_eval: columns of saved runs, a table in a notebook, and refusals in one sentence."""

import json
import math
import re
import warnings
from importlib.util import find_spec

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import main
import model_explorer
from common.repository import REPOSITORY
from data.data_params import DataParams
from data.tokenizer import char_tokenizer
from explore.evals import evaluation
from explore.evals.evaluation import begins_with_bos, columns_of_results, evaluate_folder, tasks_of_harness
from explore.load import find_run
from model.lm import LM
from model.model_params import ModelParams
from tests.model.tiny import tiny_params
from train.grid.expand import GridError
from train.grid.params import Params
from train.grid.run import Run
from train.launch.options import parse_arguments
from train.saving.run_folder import add_to_summary, read_about
from train.train_params import TrainParams

FIRST, SECOND = "2024-04-22--16-17-00", "2024-04-22--16-17-01"
TASK = """
task: same_letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{[good, bad]}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: acc_norm}}]
"""
needs_lm_eval = [
    pytest.mark.extras,
    pytest.mark.skipif(
        find_spec("lm_eval") is None, reason="no lm_eval: pip install -r requirements-evals.txt"
    ),
]


def with_lm_eval(test):
    for mark in needs_lm_eval:
        test = mark(test)
    return test


@pytest.fixture
def task(tmp_path):
    """The YAML file of a task in the format of `copy`."""
    words = ["abc", "hello", "xyz", "qq", "kind"]
    docs = [{"q": f"{word}::", "good": word, "bad": word[::-1] + "a"} for word in words]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    path = tmp_path / "letters.yaml"
    path.write_text(TASK.format(path=tmp_path / "docs.jsonl"))
    return str(path)


def test_without_the_harness_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(evaluation, "find_spec", lambda name: None)
    lm = LM(tiny_params(), char_tokenizer("abc"))
    sentence = "lm_eval is not installed: pip install -r requirements-evals.txt"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        model_explorer.lm_eval(lm, "blimp")
    with pytest.raises(GridError, match=f"^--lm-eval=blimp,arc_easy: {re.escape(sentence)}$"):
        main.harness_tasks(parse_arguments(["--config=test-synth", "--lm-eval=blimp,arc_easy"]))


@pytest.mark.parametrize("option", ["--check", "--against", "--coord-check"])
def test_an_option_that_trains_nothing_to_evaluate_is_refused(option, capsys):
    assert main.main(["--config=test-synth", "--no-wandb", option, "--lm-eval=minimal_pairs"]) == 2
    assert re.search(
        "in a call of its own|--against and --lm-eval are judged in separate", capsys.readouterr().err
    )


def test_a_masked_model_is_refused_before_training():
    model = ModelParams(causal=False, objective="masked")
    run = Run(Params(DataParams(), TrainParams(), model), {}, "bert", number=2)
    with pytest.raises(GridError, match="objective='next-token'; run 2: objective='masked'"):
        main.harness_tasks(parse_arguments(["--config=bert", "--lm-eval=minimal_pairs"]), [run])


def test_columns_are_those_of_a_task_or_of_the_subtasks_of_a_group_without_its_own():
    results = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "exact_match,strict": 0.25,
        "sample_len": 4,
    }
    kept = {
        "one": {"results": {"one": results}},
        "group": {
            "results": {"group": {"alias": "group"}, "part": {"acc,none": 1.0, "acc_stderr,none": "N/A"}}
        },
    }
    assert columns_of_results(kept) == {"acc[one]": 0.5, "exact_match,strict[one]": 0.25, "acc[part]": 1.0}


def test_a_number_that_a_run_may_not_hold_becomes_infinite(root):
    folder = find_run(FIRST, str(root))
    add_to_summary(folder, {"word_perplexity[x]": 1e200, "acc[x]": 0.5})
    summary = read_about(folder)["summary"]
    assert (summary["word_perplexity[x]"], summary["acc[x]"], summary["steps"]) == (math.inf, 0.5, 5)


def test_texts_begin_with_bos_as_in_training_or_as_in_transformers():
    lm = LM(tiny_params(), char_tokenizer("abc"))
    found = []
    for name in ("", FIRST, f"{FIRST}, step 20", "gpt2"):
        lm.name = name
        found.append(begins_with_bos(lm))
    assert found == [True, True, True, False]
    lm.tokenizer.rust.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert begins_with_bos(lm), "as a tokenizer of Llama adds it"


@with_lm_eval
def test_the_python_of_the_docs_runs(task):
    text = (REPOSITORY / "docs" / "pretrained.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(# with lm_eval installed\n.*?)```", text, re.DOTALL)
    lm = LM(tiny_params(), char_tokenizer("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?"))
    names = {"model_explorer": model_explorer, "lm": lm}
    exec(compile(block, "pretrained.md", "exec"), names)  # noqa: S102 -- it is what users are told to run
    assert 0 < names["table"].loc[("minimal_pairs", "acc"), "value"] < 1


@with_lm_eval
def test_saved_runs_get_columns_once(root, task, capsys, monkeypatch):
    assert main.main(["--report=little", f"--lm-eval={task}", f"--out={root}"]) == 0
    table = model_explorer.runs(str(root), all=True)
    folder = find_run(SECOND, str(root))
    kept = json.loads((folder / "lm_eval.json").read_text())["same_letters"]["results"]["same_letters"]
    assert table.loc[SECOND, "acc[same_letters]"] == kept["acc,none"]
    assert {"acc_stderr,none", "acc_norm,none"} <= kept.keys()
    lm = model_explorer.get_model_by_timestamp(SECOND, str(root)).lm
    in_notebook = model_explorer.lm_eval(lm, task)
    assert in_notebook.loc[("same_letters", "acc"), "value"] == kept["acc,none"]
    assert in_notebook.loc[("same_letters", "acc"), "n"] == 5
    assert "acc_norm[same_letters]" in (root / "reports" / "little" / "results.csv").read_text()

    monkeypatch.setattr(evaluation, "results_of_run", lambda *_: pytest.fail("evaluated twice"))
    assert main.main(["--report=little", f"--lm-eval={task}", f"--out={root}"]) == 0
    shown = "".join(capsys.readouterr())
    assert [shown.count(f"{name}: evaluating on same_letters") for name in (FIRST, SECOND)] == [1, 1]


@with_lm_eval
def test_a_grid_is_trained_saved_and_evaluated(task, tmp_path, capsys):
    short = ["--set=n_samples=400", "--set=early_stop_nsamples=64", "--set=n_layers=[1,2]", "--set=threads=1"]
    arguments = [
        "--config=test-synth",
        "--no-wandb",
        f"--out={tmp_path}",
        f"--lm-eval={task}",
        *short,
        "--json",
    ]
    assert main.main(arguments) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    saved = model_explorer.runs(str(tmp_path), all=True)
    for run in document["runs"]:
        timestamp = run["folder"].rpartition("/")[2]
        assert run["values"]["acc[same_letters]"] == saved.loc[timestamp, "acc[same_letters]"]
    assert err.count("evaluating on same_letters") == 2
    table = err[err.rindex("evaluating on") :]
    assert "[same_letters]" in table
    for run in document["runs"]:
        assert f"{run['values']['acc[same_letters]']:.4f}" in table


@with_lm_eval
def test_claims_are_about_columns_of_the_harness(task, tmp_path, monkeypatch, capsys):
    text = (main.CONFIGS / "test-synth.txt").read_text()
    claim = 'Expect\nclaims = {"it chooses": "0 <= acc(\'same_letters\') <= 1"}\n\n'
    (tmp_path / "claim.txt").write_text(claim + text)
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    short = ["--set=n_samples=400", "--set=early_stop_nsamples=64", "--seed=[1,2]", "--set=threads=1"]
    arguments = ["--config=claim", "--no-wandb", f"--out={tmp_path}", *short, "--json"]
    assert main.main([*arguments, "--dry-run"]) == 2
    assert "there is no column 'acc[same_letters]'" in capsys.readouterr().err
    assert main.main([*arguments, f"--lm-eval={task}"]) == 0
    document = json.loads(capsys.readouterr().out)
    [found] = document["claims"]
    mean = sum(run["values"]["acc[same_letters]"] for run in document["runs"]) / 2
    assert found["seen"] == f"0.0000 <= {mean:.4f} <= 1.0000"
    assert found["n_seeds"] == 2


@with_lm_eval
def test_a_run_whose_tokenizer_does_not_know_the_text_has_no_columns(root, notes):
    tasks = tasks_of_harness(["minimal_pairs"])  # of English with capitals and spaces
    assert evaluate_folder("run 1", find_run(FIRST, str(root)), tasks, "cpu") == {}
    assert "run 1 has no results of lm_eval: the tokenizer does not know" in notes[-1]
    assert not (find_run(FIRST, str(root)) / "lm_eval.json").exists()


@with_lm_eval
def test_minimal_pairs_are_one_line_in_a_notebook():
    torch.manual_seed(0)
    letters = char_tokenizer("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?")
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = model_explorer.lm_eval(LM(tiny_params(max_seq_len=48), letters), "minimal_pairs")
    subtasks = table.drop(("minimal_pairs", "acc"))
    assert table.index[0] == ("minimal_pairs", "acc"), "the group comes first"
    assert len(subtasks) == 6
    assert table.loc[("minimal_pairs", "acc"), "value"] == pytest.approx(subtasks["value"].mean())
    assert table.loc[("minimal_pairs", "acc"), "n"] == subtasks["n"].sum() == 118
    assert 0.1 < table.loc[("minimal_pairs", "acc"), "value"] < 0.9, "untrained"
    with pytest.warns(UserWarning, match=r"does not know \d\d\.\d% of the tokens"):
        limited = model_explorer.lm_eval(
            LM(tiny_params(max_seq_len=48), char_tokenizer("x ")), "minimal_pairs", limit=3
        )
    assert limited["n"].iloc[0] == 18
    assert not torch.equal(state, torch.get_rng_state()), "models were made"


@with_lm_eval
def test_the_state_of_random_numbers_is_left_alone(task):
    lm = LM(tiny_params(), char_tokenizer("abcdefghijklmnopqrstuvwxyz:"))
    state = torch.get_rng_state()
    model_explorer.lm_eval(lm, task)
    assert torch.equal(state, torch.get_rng_state())


@with_lm_eval
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blimpp", r"lm_eval has no task 'blimpp'; did you mean 'blimp'\?"),
        (
            "blimp",
            r"the data of blimp cannot be loaded \(.*\): they need a network the first time; minimal_pairs needs none",
        ),
    ],
)
def test_a_task_that_cannot_be_had_is_one_sentence(name, says):
    with pytest.raises(ValueError, match=f"^{says}$") as error:
        tasks_of_harness([name])
    assert "\n" not in str(error.value)
