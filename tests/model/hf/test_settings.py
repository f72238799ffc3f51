"""Every setting of a config, changed by itself: our logits follow, or the model is refused. Nothing is silently wrong.

This also covers settings that a newer version of transformers adds to a family.
"""

import pytest
import torch
from torch.testing import assert_close

from model.hf.weights import from_hf
from tests.model.hf.hf_models import (
    FAMILIES,
    N_POSITIONS,
    N_TOKENS,
    SCALINGS,
    UNROUNDED,
    make_hf,
    random_settings,
)
from tests.model.hf.test_encoders import make as make_encoder
from tests.model.tiny import random_ids

IDS = random_ids(2, N_POSITIONS - 4, N_TOKENS - 3) + 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# Names, or what changes the random weights of a model.
IRRELEVANT = {
    "architectures",
    "dtype",
    "initializer_range",
    "id2label",
    "label2id",
    "model_type",
    "vocab_size",
    "pad_token_id",
}
ROPES = [
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    *SCALINGS,
    UNROUNDED,
    UNROUNDED | {"attention_factor": 1.5},
    UNROUNDED | {"beta_slow": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
]
ACTIVATIONS = ["relu", "gelu_10", "quick_gelu", "relu2"]


def other_values(value):
    """Values that a setting may have in place of this one."""
    if isinstance(value, dict):
        ropes = [{"rope_theta": 300.0} | rope for rope in ROPES]
        return (
            [value | dict.fromkeys(("full_attention",), rope) for rope in ropes]
            if "full_attention" in value
            else ropes
        )
    if isinstance(value, list):
        return [value[::-1], value[:1] * len(value), value[-1:] * len(value), [0]]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return ACTIVATIONS
    return [True, 2, 0.5] if value is None else [value + 1, value * 1.5, 1]


def outcome(make, name, value):
    """Compare a model with this setting. Return what happened, for settings with which transformers has a model."""
    try:
        hf_model = make({name: value})
        with torch.no_grad():
            expected = hf_model(IDS).logits
    except Exception:  # whatever transformers raises, there is no model to load
        return None
    try:
        lm = from_hf(hf_model, check_logits=False)
        with torch.no_grad():
            found = lm(IDS)
    except ValueError:
        return "refused"
    assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}={value!r}: {m}")
    return "equal"


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "bert", "roberta"])
def test_no_setting_of_a_config_is_silently_ignored(family):
    def make(changed):
        if family not in FAMILIES:
            return make_encoder(family, **SIZES | changed)
        settings = random_settings(family, 0)
        for older_name in ("rope_scaling", "rope_theta") if "rope_parameters" in changed else ():
            settings.pop(older_name, None)
        return make_hf(family, **settings | changed)

    settings = {name: value for name, value in make({}).config.to_dict().items() if name not in IRRELEVANT}
    outcomes = [outcome(make, name, value) for name in settings for value in other_values(settings[name])]
    assert outcomes.count("equal") > 20
    assert outcomes.count("refused") > 0
