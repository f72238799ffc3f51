"""The card of a model: what it says of a run and its seeds, and its metadata as the hub reads them."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from scipy import stats

import gpt2
import model_explorer
from data.tokenizer import char_tokenizer
from model.lm import LM
from tests.model.tiny import tiny_params
from tests.train.little_run import save_run

LOSSES = [1.25, 1.5, 1.375]


def edit(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """Three runs that differ in the seed, and two that differ in a field or in the code."""
    numbers = {
        "acc[blimp]": 0.5,
        "left_out[long]": 3.0,
        "steps": 40,
        "trained_tokens": 12_000,
        "stopped": "finished",
    }
    folders = [save_run(tmp_path, val_loss=loss, **numbers) for loss in (*LOSSES, 9.0, 9.0)]
    for seed, folder in enumerate(folders, 1):
        edit(folder / "params.json", "train", "random_seed", value=seed)
        edit(folder / "about.json", "commit", value="a" * 40)
    edit(folders[3] / "params.json", "train", "lr", value=0.5)
    edit(folders[4] / "about.json", "code", "model/lm.py", value="other")
    return folders


def card_of(folder: Path, root: Path, name: str | None = None) -> str:
    lm = model_explorer.get_model_by_timestamp(folder.name, str(root)).lm
    lm.name = name or lm.name
    return model_explorer.model_card(lm, str(root))


def test_a_card_has_the_losses_over_seeds_of_the_same_params_and_code(folders, tmp_path):
    card = card_of(folders[0], tmp_path)
    low, high = stats.t.interval(0.95, 2, loc=1.375, scale=stats.sem(LOSSES))
    assert f"| validation loss (nats per token) | 1.2500 | 1.3750 | {low:.4f} to {high:.4f} | 3 |\n" in card
    assert "| acc[blimp] | 0.5000 | 0.5000 | 0.5000 to 0.5000 | 3 |\n" in card
    assert "left_out" not in card
    alone = card_of(folders[3], tmp_path)
    assert "| validation loss (nats per token) | 9.0000 |\n" in alone
    assert "seeds" not in alone


def test_a_card_has_data_fields_and_code(folders, tmp_path):
    card = card_of(folders[0], tmp_path)
    assert "trained on copy with whatif" in card
    assert "40 steps on 12,000 tokens, with `random_seed = 1`." in card
    fields = dict(
        line.strip("| ").split(" | ") for line in card.split("## Fields")[1].splitlines() if "| `" in line
    )
    assert fields == {
        "`dataset_name`": "`'copy'`",
        "`task_args`": "`{'sizes': (1, 2)}`",
        "`random_seed`": "`1`",
        "`betas`": "`(0.5, 0.75)`",
        "`dim`": "`8`",
        "`n_layers`": "`2`",
        "`n_heads`": "`2`",
        "`max_seq_len`": "`16`",
    }
    assert f"Commit `{'a' * 40}`" in card
    assert f"torch {version('torch')}" in card


def test_a_card_of_a_checkpoint_says_that_the_numbers_are_of_the_end(folders, tmp_path):
    card = card_of(folders[0], tmp_path, f"{folders[0].name}, step 20")
    assert "These are the numbers of the run's last step, not those of this model." in card


def test_the_hub_reads_the_metadata_and_the_license_once_it_is_chosen(folders, tmp_path):
    text = card_of(folders[0], tmp_path)
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.license, data.tags) == (
        "transformers",
        "text-generation",
        None,
        ["whatif"],
    )
    [line] = [line for line in text.splitlines() if "# license: " in line]
    assert ModelCard(text.replace(line, "license: mit")).data.license == "mit"


def test_a_model_that_comes_from_no_run_has_a_card_of_its_architecture(tmp_path):
    lm = LM(tiny_params(positions="rotary"), char_tokenizer("abc"))
    gpt2.to_hf(LM(tiny_params(), char_tokenizer("abc")), tmp_path / "folder", out=str(tmp_path))
    assert "# A language model\n" in (tmp_path / "folder" / "README.md").read_text()
    card = model_explorer.model_card(lm, str(tmp_path))
    assert "| `positions` | `'rotary'` |\n" in card
    assert not {"## Results", "## Code", "## Training"} & {*card.splitlines()}


def test_a_card_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    gpt2.to_hf(LM(tiny_params(), char_tokenizer("abc")), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
