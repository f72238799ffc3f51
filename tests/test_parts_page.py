"""docs/parts.md has a row for every part, and none for what does not exist."""

import ast
import re
from dataclasses import fields

from benchmarks.parts import OF_TRAINING, PARTS
from docs.generate import DOCS
from model.model_params import ModelParams
from model.transformer.embeddings import position_kinds
from model.transformer.linear import initial_weights
from model.transformer.rotary_scaling import rotary_scalings
from tests.model.tiny import MIXERS
from train.optimizers import optimizers
from train.train_params import TrainParams

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (DOCS / "parts.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]
# Sizes, the blocks of GPT-2 and BERT, muP, and where weights and tokens come from.
NO_PARTS = {
    *("dim", "n_layers", "n_heads", "dim_ff", "max_seq_len", "rotary_base", "rotary_frac"),
    *("norm_eps", "norm_position", "embedding_norm", "tied_embeddings", "readout_transform", "readout_bias"),
    *("bias", "bias_qkv", "bias_out", "bias_ff", "bias_norm", "attention", "separate_heads", "lora_rank"),
    *("residual_change", "residual_trainable", "residual_profile", "parametrization", "readout_zero_init"),
    *("query_zero_init", "from_pretrained", "from_saved"),
    *(field.name for field in fields(ModelParams) if field.name.startswith(("mup_", "tokenizer_"))),
}


def settings_of(text: str) -> dict[str, object]:
    """Return the fields of "n_experts=8, balance='bias'"."""
    call = ast.parse(f"f({text})", mode="eval").body
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


FOUND = [settings_of(text) for first, *_ in ROWS for text in re.findall("`(.*?)`", first)]


def values_of(name: str) -> set[str]:
    return {str(fields[name]).partition(",")[0] for fields in FOUND if name in fields}


def test_every_part_that_is_measured_has_a_row():
    assert [part.name for part in PARTS if part.fields and part.fields not in FOUND] == []


def test_every_setting_is_one_of_the_params():
    for settings in FOUND:
        of_training = {name: value for name, value in settings.items() if name in OF_TRAINING}
        TrainParams(**of_training)
        ModelParams(**{name: value for name, value in settings.items() if name not in of_training})


def test_every_field_of_a_part_and_every_registered_one_occurs():
    named = {name for settings in FOUND for name in settings}
    assert named - OF_TRAINING == {field.name for field in fields(ModelParams)} - NO_PARTS
    assert values_of("positions") == set(position_kinds) - {"none", "learned", "sin"}
    assert values_of("rotary_scaling") == set(rotary_scalings)
    assert values_of("init") == set(initial_weights) - {"small", "unit"}
    assert values_of("layer_architecture") == {"mla", *MIXERS}
    assert values_of("optimizer") == set(optimizers) - {"adamw", "sgd"}


def test_every_row_is_complete_and_names_a_test():
    for name, lines, reference, *_, mup, step in ROWS:
        assert re.fullmatch(r"\d+|-", lines), name
        assert "](../tests/" in reference, name
        assert re.fullmatch(r"-?\d\.\d\d to -?\d\.\d\d|refused|-", mup), name
        assert re.fullmatch(r"\d+\.\d\d|-", step), name
        assert all((DOCS / link).exists() for link in re.findall(r"\]\((.*?)\)", reference)), name
