"""Families of HuggingFace models that our layers can represent.

Causal: GPT-2, GPT-NeoX (Pythia), Llama (SmolLM2), Qwen2, Mistral. Masked: BERT, RoBERTa.
A family is data that is read in both directions: config settings to our fields, and module names to ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from pydantic import ValidationError

from model.hf.encoders import bert, roberta
from model.hf.families import EVERYWHERE, Family
from model.model_params import ModelParams

HF_ACTIVATIONS = {  # their names and ours; a config is written with the first of several names for a function
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "relu2": "relu2",
    "swish": "silu",
}
NEEDED = {  # the only value that our layers support, for settings that not every config has
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "rope_type": "default",
}
ROPE = ("rope_type", "rope_theta", "partial_rotary_factor")  # settings in the rope_parameters of a config
HF_MAX_POSITIONS = "max_position_embeddings"
ROTARY = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_kv_heads": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "dim_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "rotary_base": "rope_theta",
    "tied_embeddings": "tie_word_embeddings",
}

gpt2 = Family(
    settings={
        "dim": "n_embd",
        "n_layers": "n_layer",
        "n_kv_heads": "n_head",
        "n_heads": "n_head",
        "dim_ff": "n_inner",
        "max_seq_len": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "tied_embeddings": "tie_word_embeddings",
    },
    fixed=EVERYWHERE
    | {"positions": "learned", "sliding_window": None, "parallel_blocks": False}
    | {"norm": "layernorm", "gated": False}
    | {"bias_qkv": True, "bias_out": True, "bias_ff": True, "bias_norm": True},
    names={
        "transformer.wte": "embed.tokens",
        "transformer.wpe": "embed.positions.table",
        "transformer.h.*.ln_1": "decoder.layers.*.norm1.before",
        "transformer.h.*.attn.c_attn": "decoder.layers.*.mixer.qkv",
        "transformer.h.*.attn.c_proj": "decoder.layers.*.mixer.out",
        "transformer.h.*.ln_2": "decoder.layers.*.norm2.before",
        "transformer.h.*.mlp.c_fc": "decoder.layers.*.linear1",
        "transformer.h.*.mlp.c_proj": "decoder.layers.*.linear2",
        "transformer.ln_f": "decoder.norm",
        "lm_head": "unembed",
    },
    activation="activation_function",
    constants={"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    conv1d=True,
)
gpt_neox = Family(
    settings=ROTARY
    | {"rotary_frac": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
    | {
        "parallel_blocks": "use_parallel_residual",
        "bias_qkv": "attention_bias",
        "bias_out": "attention_bias",
    },
    fixed=EVERYWHERE
    | {"positions": "rotary", "sliding_window": None}
    | {"norm": "layernorm", "gated": False, "bias_ff": True, "bias_norm": True},
    names={
        "gpt_neox.embed_in": "embed.tokens",
        "gpt_neox.layers.*.input_layernorm": "decoder.layers.*.norm1.before",
        "gpt_neox.layers.*.attention.query_key_value": "decoder.layers.*.mixer.qkv",
        "gpt_neox.layers.*.attention.dense": "decoder.layers.*.mixer.out",
        "gpt_neox.layers.*.post_attention_layernorm": "decoder.layers.*.norm2.before",
        "gpt_neox.layers.*.mlp.dense_h_to_4h": "decoder.layers.*.linear1",
        "gpt_neox.layers.*.mlp.dense_4h_to_h": "decoder.layers.*.linear2",
        "gpt_neox.final_layer_norm": "decoder.norm",
        "lm_head": "unembed",
    },
)
llama = Family(
    settings=ROTARY
    | {"n_kv_heads": "num_key_value_heads", "norm_eps": "rms_norm_eps"}
    | {"bias_qkv": "attention_bias", "bias_out": "attention_bias", "bias_ff": "mlp_bias"},
    fixed=EVERYWHERE
    | {"positions": "rotary", "rotary_frac": 1.0, "sliding_window": None, "parallel_blocks": False}
    | {"norm": "rmsnorm", "gated": True},
    names={
        "model.embed_tokens": "embed.tokens",
        "model.layers.*.input_layernorm": "decoder.layers.*.norm1.before",
        "model.layers.*.self_attn.q_proj": "decoder.layers.*.mixer.qkv",
        "model.layers.*.self_attn.k_proj": "decoder.layers.*.mixer.qkv",
        "model.layers.*.self_attn.v_proj": "decoder.layers.*.mixer.qkv",
        "model.layers.*.self_attn.o_proj": "decoder.layers.*.mixer.out",
        "model.layers.*.post_attention_layernorm": "decoder.layers.*.norm2.before",
        "model.layers.*.mlp.gate_proj": "decoder.layers.*.linear1",
        "model.layers.*.mlp.up_proj": "decoder.layers.*.linear_up",
        "model.layers.*.mlp.down_proj": "decoder.layers.*.linear2",
        "model.norm": "decoder.norm",
        "lm_head": "unembed",
    },
)
LLAMA_WITH_WINDOW = {
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "sliding_window": "sliding_window",
}
qwen2 = Family(
    settings=ROTARY | LLAMA_WITH_WINDOW,
    fixed=EVERYWHERE
    | {"positions": "rotary", "rotary_frac": 1.0, "parallel_blocks": False, "norm": "rmsnorm", "gated": True}
    | {"bias_qkv": True, "bias_out": False, "bias_ff": False},
    names=llama.names,
    constants={"use_sliding_window": True, "max_window_layers": 0},  # in every layer, where there is one
)
mistral = Family(
    settings=qwen2.settings,
    fixed=qwen2.fixed | {"bias_qkv": False},
    names=llama.names,
)
families = {"gpt2": gpt2, "gpt_neox": gpt_neox, "llama": llama, "qwen2": qwen2, "mistral": mistral}
families |= {"bert": bert, "roberta": roberta}


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
        kind = ", an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else ""
        raise ValueError(
            f"our layers do not support model_type={config.model_type!r}{kind}; they support: {', '.join(families)}"
        )
    family, settings = families[config.model_type], flat_settings(config)
    for problem in settings_problems(family, settings):
        raise ValueError(f"our layers do not support a {config.model_type} with {problem}")
    fields: dict[str, Any] = fields_in(family, settings)
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

    A sliding window is included only if the model uses it. The number of positions excludes positions without tokens.
    """
    settings: dict[str, Any] = config.to_dict()
    if first_position := families[config.model_type].first_position:
        settings[HF_MAX_POSITIONS] -= first_position
    settings |= settings.pop("rope_parameters", None) or {}
    if "use_sliding_window" not in settings:  # Mistral, which reads sliding_window alone
        settings.pop("layer_types", None)
    elif set(settings.get("layer_types") or ()) == {"full_attention"}:
        settings |= {"sliding_window": None}
    return settings


def settings_problems(family: Family, settings: Mapping[str, Any]) -> Iterator[str]:
    activation = settings[family.activation]
    if activation not in HF_ACTIVATIONS:
        yield f"{family.activation}={activation!r}; allowed: {', '.join(map(repr, HF_ACTIVATIONS))}"
    for name, needed in (NEEDED | family.needed).items():
        if (value := settings.get(name, needed)) != needed:
            yield f"{name}={value!r}; allowed: {needed!r}"
    if len(kinds := sorted(set(settings.get("layer_types") or ()))) > 1:
        yield f"layer_types={kinds}; allowed: one kind for all layers"


def fields_in(family: Family, settings: Mapping[str, object]) -> dict[str, object]:
    own = {ours: settings[theirs] for ours, theirs in family.settings.items()}
    return family.fixed | own | {"activation": HF_ACTIVATIONS[str(settings[family.activation])]}


def config_settings(model_params: ModelParams) -> dict[str, object]:
    """Return the settings, `model_type` first, of a transformers config with this architecture.

    Raise ValueError if no family has it.
    """
    if turns := model_params.turns:
        shown = ", ".join(f"{name}={values!r}" for name, values in turns.items())
        raise ValueError(
            f"no model type of transformers that we support has values that differ by layer: {shown}"
        )
    ours = explicit_fields(model_params)
    differences: dict[str, list[str]] = {}
    for model_type, family in families.items():
        settings = settings_in(family, ours)
        theirs = fields_in(family, settings)
        differing = [f"{name}={ours[name]!r}" for name, value in theirs.items() if ours[name] != value]
        if not differing:
            return {"model_type": model_type, **nested_settings(settings)}
        differences[model_type] = differing
    nearest = min(differences, key=lambda model_type: len(differences[model_type]))
    raise ValueError(
        f"no model type of transformers has this architecture: {nearest}, the nearest, does not support "
        f"{', '.join(differences[nearest])}"
    )


def settings_in(family: Family, fields: Mapping[str, object]) -> dict[str, object]:
    """Return the config settings of this family that come closest to the fields."""
    settings = {theirs: fields[ours] for ours, theirs in family.settings.items()}
    activations = [theirs for theirs, ours in HF_ACTIVATIONS.items() if ours == fields.get("activation")]
    return family.constants | settings | {family.activation: (activations or ["gelu"])[0]}


def nested_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings with the rotary ones in rope_parameters, as a config has them: the inverse of `flat_settings`."""
    rope = {name: settings[name] for name in ROPE if name in settings}
    others = {name: value for name, value in settings.items() if name not in rope}
    return others | ({"rope_parameters": rope | {"rope_type": "default"}} if rope else {})


def explicit_fields(model_params: ModelParams) -> dict[str, object]:
    """Return the fields by name, with None and other shorthands replaced by the values they stand for."""
    p = model_params
    return asdict(p) | {
        "layer_architecture": p.kinds[0] if len(set(p.kinds)) == 1 else p.kinds,
        "n_kv_heads": p.kv_heads,
        "head_dim": None if p.head_width * p.n_heads == p.dim else p.head_width,
        "dim_ff": 4 * p.dim if p.dim_ff is None else p.dim_ff,
        "bias_qkv": p.has_bias(p.bias_qkv),
        "bias_out": p.has_bias(p.bias_out),
        "bias_ff": p.has_bias(p.bias_ff),
        "bias_norm": p.has_bias(p.bias_norm),
    }
