"""The notebooks run from beginning to end as real ones, without a network."""

import jupytext
import nbformat
import pytest

from common.repository import REPOSITORY
from docs.notebooks import KEPT, SOURCES, run_notebook

slow = pytest.mark.slow
NAMES = sorted(source.stem for source in SOURCES.glob("*.py"))


def executed(name: str) -> list:
    """The code cells, with what they put out. The notebook runs in a folder below that of the repository."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")
        environment.delenv("MPLBACKEND", raising=False)
        notebook = run_notebook(SOURCES / name, folder=REPOSITORY / "tests" / "explore")
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def cells():
    return executed("explore.py")


@pytest.fixture(scope="module")
def mup_cells():
    return executed("parametrization.py")


def outputs(cells, code: str) -> list:
    """Return the outputs of the only cell with this code."""
    [cell] = [cell for cell in cells if code in cell.source]
    return cell.outputs


def text(cells, code: str) -> str:
    return "".join(output.get("text", "") for output in outputs(cells, code))


def figures(cells, code: str) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(cells, code))


@slow
@pytest.mark.ci
def test_each_figure_is_shown_once(cells):
    for code in (
        "plot_metrics(",
        "plot_metric(",
        'show_lm_attns(lm, "hello',
        'show_lm_attns(lm_gpt2, "as',
        'folder_name="demo"',
        "head_film(",
    ):
        assert figures(cells, code) == 1, code


@slow
@pytest.mark.parametrize("name", [pytest.param("cells", marks=pytest.mark.ci), "mup_cells"])
def test_notebooks_write_nothing_of_ours_to_stderr(name, request):
    cells = request.getfixturevalue(name)
    said = [output["text"] for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    # Libraries may say what they like, also from an environment that lies inside the repository.
    ours = [
        line for line in "".join(said).splitlines() if str(REPOSITORY) in line and "site-packages" not in line
    ]
    assert not ours


@slow
@pytest.mark.ci
def test_the_table_of_runs_and_the_samples_are_there(cells):
    assert text(cells, "verify_stable_load").count(": ok") == 3
    [table] = outputs(cells, "table = model_explorer.runs()")
    assert "finished" in table["data"]["text/html"]
    assert text(cells, "dataset.show_sample(1)").count("«") == 2


@slow
@pytest.mark.ci
def test_the_notebook_shows_pages_and_tables_of_activations(cells):
    pages = [
        "attention_film(",
        "attention_html(lm_gpt2",
        "attention_pair(",
        "heatmap(lens",
        "heatmap(attribution",
    ]
    pages += ["ablate(", "activation_patching(", "composition_scores("]
    for code in pages:
        page = outputs(cells, code)[-1]
        assert page["data"]["text/html"].startswith("<iframe"), code
    for code in ("over_checkpoints(", "loss_by_position("):
        [table] = outputs(cells, code)
        assert "<table" in table["data"]["text/html"], code


@slow
def test_models_of_transformers_keep_their_sizes_in_mup_and_only_there(mup_cells):
    said = text(mup_cells, "model_explorer.coord_check(")
    for kind in ("GPT-2", "BERT", "RoBERTa"):
        assert f"{kind}: pass" in said
        assert figures(mup_cells, f'checks["{kind}"]') == 1
    assert said.count("standard: fails, as expected") == said.count("mup: passes") == 3


@slow
def test_a_large_model_of_transformers_has_the_readout_and_the_groups_of_mup(mup_cells):
    said = text(mup_cells, "optimizer.param_groups").splitlines()
    assert said[0] == "['lm_head'] 0.25"
    assert "hidden x0.25 eps 2.5e-09: 4 tensors, lr 0.00025" in said
    assert "hidden x0.0625: 2 tensors, lr 6.25e-05" in said, "from n_inner, which grows 16 times, out"


@slow
def test_the_learning_rate_of_a_users_own_network_transfers_in_mup_and_only_there(mup_cells):
    standard, mup, verdict = text(mup_cells, "model_explorer.transfer_report(").splitlines()
    assert standard.startswith("parametrization=standard: shifts over dim")
    assert mup.startswith("parametrization=mup: transfers over dim")
    assert verdict == "pass"
    assert figures(mup_cells, "transfer.figure") == 1


@pytest.mark.parametrize("name", NAMES)
def test_kept_notebooks_have_the_code_of_today_and_what_it_shows(name):
    kept = nbformat.read(KEPT / f"{name}.ipynb", as_version=4)
    source = jupytext.read(SOURCES / f"{name}.py")
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ], "python3 -m docs.notebooks"
    outputs = [output for cell in kept.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [output for output in outputs if output.output_type == "error"]


def test_each_notebook_is_kept():
    assert sorted(kept.stem for kept in KEPT.glob("*.ipynb")) == NAMES
