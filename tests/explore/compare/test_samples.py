"""Samples of a report: prompt, expected answer and what the model gave, of runs saved by the program itself."""

import json

import model_explorer
from explore.compare.samples import TaskExample, example_of_run, sample_of
from explore.compare.variants import row_of
from tests.explore.compare.test_report import document_of


def test_a_sample_is_split_at_its_prompt():
    examples = [None, TaskExample("ab::", "ba")]
    assert sample_of(row_of({"sample": "ab::bb"}), examples) == "prompt:   ab::\nexpected: ba\ngot:      bb"
    assert sample_of(row_of({"sample": "other::bb"}), examples) == "other::bb"
    assert sample_of(row_of({"sample": None}), examples) == ""
    assert sample_of(row_of({"sample": "text"}), [TaskExample("", "")]) == "text"


def test_the_page_shows_prompt_and_expected_answer_of_a_saved_run(root):
    """The root has two runs of the task copy, whose answer is the prompt once more."""
    folders = sorted((root / "saved-models" / "little").iterdir())
    example = example_of_run(folders[0])
    assert example is not None
    source, separator, _ = example.prompt.partition("::")
    assert separator
    assert source.replace(" ", "") in example.expected.replace(" ", "")
    for folder in folders:
        about = json.loads((folder / "about.json").read_text())
        about["summary"]["sample"] = f"{example.prompt}<wrong>"
        (folder / "about.json").write_text(json.dumps(about))
    page = model_explorer.report("little", out=str(root))
    assert document_of(page.html)["runs"][0]["sample"].endswith(
        f"expected: {example.expected}\ngot:      <wrong>"
    )
    assert "got:      &lt;wrong&gt;" in page.html


def test_a_run_whose_data_cannot_be_made_anew_shows_its_sample_alone(root):
    for folder in (root / "saved-models" / "little").iterdir():
        (folder / "tokenizer").rename(folder / "gone")
        about = json.loads((folder / "about.json").read_text())
        about["summary"]["sample"] = "a::a"
        (folder / "about.json").write_text(json.dumps(about))
    html = model_explorer.report("little", out=str(root)).html
    assert [run["sample"] for run in document_of(html)["runs"]] == ["a::a", "a::a"]
