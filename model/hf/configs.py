"""Configs of HuggingFace models, read as our fields and written from them.

A family is data that is read in both directions: config settings to our fields, and module names to ours. Its tables are
in `decoders.py` and `encoders.py`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, Protocol

from pydantic import ValidationError

from model.hf import decoders
from model.hf.encoders import bert, roberta
from model.hf.families import Family
from model.hf.translations import ROTARY_SCALINGS, turns
from model.model_params import ModelParams
from model.transformer.rotary_scaling import full_text

HF_ACTIVATIONS = {  # their names and ours; a config is written with the first of several names for a function
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
    "swish": "silu",
}
NEEDED = {  # the only value that our layers support, for settings that not every config has
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
ROPE = {  # settings in the rope_parameters of a config; Gemma 3 has two sets of them
    *("rope_type", "rope_theta", "partial_rotary_factor", "truncate"),
    *(theirs for scaling in ROTARY_SCALINGS.values() for theirs in scaling.values()),
    *("full_attention", "sliding_attention"),
}
REFUSED = {  # families that are almost ours, and why they are refused
    "modernbert": "whose first layer has no norm before attention, and whose head has a bias in one of two maps",
}
HF_MAX_POSITIONS = "max_position_embeddings"
families = {
    "gpt2": decoders.gpt2,
    "gpt_neox": decoders.gpt_neox,
    "gptj": decoders.gptj,
    "gpt_neo": decoders.gpt_neo,
    "opt": decoders.opt,
    "llama": decoders.llama,
    "qwen2": decoders.qwen2,
    "mistral": decoders.mistral,
    "qwen3": decoders.qwen3,
    "qwen3_moe": decoders.qwen3_moe,
    "mixtral": decoders.mixtral,
    "gpt_oss": decoders.gpt_oss,
    "gemma": decoders.gemma,
    "gemma2": decoders.gemma2,
    "gemma3_text": decoders.gemma3_text,
    "olmo2": decoders.olmo2,
    "smollm3": decoders.smollm3,
    "starcoder2": decoders.starcoder2,
    "falcon": decoders.falcon,
    "bert": bert,
    "roberta": roberta,
}


class HFConfig(Protocol):
    """The part of a transformers config that is read here."""

    @property
    def model_type(self) -> str: ...
    def to_dict(self) -> dict[str, object]: ...


def params_from_config(config: HFConfig) -> ModelParams:
    """Return the architecture that a transformers config describes.

    Raise ValueError for an architecture that our layers cannot represent.
    """
    if config.model_type not in families:
        kind = REFUSED.get(config.model_type, "")
        if getattr(config, "is_encoder_decoder", False):
            kind = "an encoder-decoder"
        raise ValueError(
            f"our layers do not support model_type={config.model_type!r}{kind and ', ' + kind}; "
            f"they support: {', '.join(families)}"
        )
    family, settings = families[config.model_type], flat_settings(config)
    for problem in settings_problems(family, settings):
        raise ValueError(f"our layers do not support a {config.model_type} with {problem}")
    try:
        fields: dict[str, Any] = fields_in(family, settings)
    except ValueError as error:
        raise ValueError(f"our layers do not support a {config.model_type} with {error}") from None
    try:
        p = ModelParams(**fields)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"our layers do not support this {config.model_type}: {reason}") from None
    if (own := settings.get("head_dim")) not in (None, p.head_width):
        raise ValueError(
            f"our layers do not support a {config.model_type} with head_dim={own}; allowed: {p.head_width}"
        )
    return p


def flat_settings(config: HFConfig) -> dict[str, Any]:
    """Return a config's settings by name, with rotary settings moved to the top level.

    The number of positions excludes positions without tokens.
    """
    settings: dict[str, Any] = config.to_dict()
    family = families[config.model_type]
    if family.counts_rows:
        settings[HF_MAX_POSITIONS] -= family.first_position
    return settings | (settings.pop("rope_parameters", None) or {})


def settings_problems(family: Family, settings: Mapping[str, Any]) -> Iterator[str]:
    activation = settings[family.activation]
    if activation not in HF_ACTIVATIONS:
        yield f"{family.activation}={activation!r}; allowed: {', '.join(map(repr, HF_ACTIVATIONS))}"
    for name, needed in (NEEDED | family.needed).items():
        allowed = needed if isinstance(needed, tuple) else (needed,)
        if (value := settings.get(name, allowed[0])) not in allowed:
            yield f"{name}={value!r}; allowed: {', '.join(map(repr, allowed))}"


def fields_in(family: Family, settings: Mapping[str, object]) -> dict[str, object]:
    """Return our fields for the settings of a config. Raise ValueError for settings that cannot be translated."""
    fields = family.fixed | {ours: settings[theirs] for ours, theirs in family.settings.items()}
    fields |= {"activation": HF_ACTIVATIONS[str(settings[family.activation])]}
    for translation in family.translations:
        fields |= translation.read(settings)
    return fields


def config_settings(model_params: ModelParams) -> dict[str, object]:
    """Return the settings, `model_type` first, of a transformers config with this architecture.

    Raise ValueError if no family has it.
    """
    ours = explicit_fields(model_params)
    differences: dict[str, list[str]] = {}
    for model_type, family in families.items():
        settings = settings_in(family, ours)
        try:
            theirs = fields_in(family, settings)
        except ValueError:  # it has no settings that come close
            continue
        differing = [
            f"{name}={ours[name]!r}" for name, value in theirs.items() if not same(ours[name], value)
        ]
        if not differing:
            return {"model_type": model_type, **nested_settings(settings)}
        differences[model_type] = differing
    nearest = min(differences, key=lambda model_type: len(differences[model_type]))
    raise ValueError(
        f"no model type of transformers has this architecture: {nearest}, the nearest, does not support "
        f"{', '.join(differences[nearest])}"
    )


def same(ours: object, theirs: object) -> bool:
    """Return True for equal values; a float that is the result of a formula may differ by rounding."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return ours == theirs


def settings_in(family: Family, fields: Mapping[str, Any]) -> dict[str, object]:
    """Return the config settings of this family that come closest to the fields."""
    settings: dict[str, object] = {}
    for ours, theirs in family.settings.items():
        value = fields[ours]
        settings[theirs] = value[0] if isinstance(value, tuple) else value
    activations = [theirs for theirs, ours in HF_ACTIVATIONS.items() if ours == fields.get("activation")]
    settings = family.constants | settings | {family.activation: (activations or ["gelu"])[0]}
    for translation in family.translations:
        settings |= translation.write(SimpleNamespace(**fields))
    return settings


def nested_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings with the rotary ones in rope_parameters, as a config has them: the inverse of `flat_settings`."""
    rope = {name: settings[name] for name in settings if name in ROPE}
    others = {name: value for name, value in settings.items() if name not in rope}
    return others | ({"rope_parameters": rope} if rope else {})


def explicit_fields(model_params: ModelParams) -> dict[str, object]:
    """Return the fields by name, with None and other shorthands replaced by the values they stand for.

    A field that differs by layer has a tuple with the value of each layer.
    """
    layers = [fields_of_layer(model_params.at(i)) for i in range(max(1, model_params.n_layers))]
    fields = {name: turns([layer[name] for layer in layers]) for name in layers[0]}
    return fields if any(model_params.values_of("n_experts")) else fields | {"experts_per_token": 2}


def fields_of_layer(p: ModelParams) -> dict[str, object]:
    return asdict(p) | {
        "n_kv_heads": p.kv_heads,
        "head_dim": None if p.head_width * p.n_heads == p.dim else p.head_width,
        "dim_ff": 4 * p.dim if p.dim_ff is None else p.dim_ff,
        "rotary_scaling": None if p.rotary_scaling is None else full_text(p.rotary_scaling),
        "bias_qkv": p.has_bias(p.bias_qkv),
        "bias_out": p.has_bias(p.bias_out),
        "bias_ff": p.has_bias(p.bias_ff),
        "bias_norm": p.has_bias(p.bias_norm),
        "n_shared_experts": p.n_shared_experts if p.n_experts else 0,
        "router_bias": p.router_bias and p.n_experts > 0,
        # Only the bias changes what a model computes.
        "balance": "bias" if p.n_experts and p.balance == "bias" else "loss",
    }
