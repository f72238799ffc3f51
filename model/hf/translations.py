"""Settings of HuggingFace configs that are not one of our fields each: lists by layer, rotary scalings, factors.

A translation reads some settings as our fields, and writes them back. It need not check what it writes: an export reads
every config that it writes, and refuses a field that comes back changed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from model.transformer.rotary_scaling import full_text, parsed

Fields = Any  # an object with our fields; one that differs by layer is a tuple with a value for each layer
Settings = Mapping[str, Any]  # those of a config, with rotary ones at the top level
UNUSED_WINDOW = 4096  # of a config without a layer that has one; some families need a number


class Translation(NamedTuple):
    """Two functions that are inverse to each other where both have a meaning."""

    read: Callable[[Settings], Mapping[str, Any]]  # the result is some of our fields
    write: Callable[[Fields], Settings]


def in_layers(value: Any, n_layers: int) -> list[Any]:
    """Return the value of each layer."""
    return list(value) if isinstance(value, tuple) else [value] * n_layers


def turns(values: Sequence[Any]) -> Any:
    """Return the values of all layers as a field: one value if they are equal, else a tuple."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def first_set(value: Any) -> Any:
    """Return the first value over the layers that is neither None nor 0."""
    values = value if isinstance(value, tuple) else [value]
    return next((one for one in values if one), None)


def width_of_heads(fields: Fields) -> int:
    return first_set(fields.head_dim) or fields.dim // first_set(fields.n_heads)


def read_head_dim(settings: Settings) -> dict[str, Any]:
    width, n_heads = settings.get("head_dim"), settings["num_attention_heads"]
    return {"head_dim": None if width is None or width * n_heads == settings["hidden_size"] else width}


def write_head_dim(fields: Fields) -> Settings:
    return {"head_dim": width_of_heads(fields)}


head_dim = Translation(read_head_dim, write_head_dim)

YARN = {
    "factor": "factor",
    "original": "original_max_position_embeddings",
    "slow": "beta_slow",
    "fast": "beta_fast",
}
# Settings of a rotary scaling in a config, by ours.
ROTARY_SCALINGS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original": "original_max_position_embeddings",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
    },
    "yarn": YARN,
    "yarn_unrounded": YARN,
}

ROPE_TYPES = [name for name in ROTARY_SCALINGS if name != "yarn_unrounded"]  # where truncate is a setting


def scaling_of(settings: Settings) -> str | None:
    """Return the rotary scaling of a config. Raise ValueError for one that we do not have."""
    name = settings.get("rope_type", "default")
    if name == "default":
        return None
    if name not in ROPE_TYPES:
        raise ValueError(f"rope_type={name!r}; allowed: {', '.join(map(repr, ('default', *ROPE_TYPES)))}")
    for other in ("attention_factor", "mscale", "mscale_all_dim"):
        if settings.get(other) is not None:
            raise ValueError(f"{other}={settings[other]!r} beside rope_type={name!r}; allowed: None")
    if name == "yarn" and not settings.get("truncate", True):
        name = "yarn_unrounded"
    defaults = {"original_max_position_embeddings": settings.get("max_position_embeddings")}
    own = {ours: settings.get(theirs, defaults.get(theirs)) for ours, theirs in ROTARY_SCALINGS[name].items()}
    numbers = (f"{key}={value}" for key, value in own.items() if value is not None)
    return full_text(", ".join([name, *numbers]))


def settings_of_scaling(scaling: str | None) -> Settings:
    """Return the settings of a rotary scaling, or those of none if transformers does not have it."""
    name, own = parsed(scaling or "linear, factor=1")
    if scaling is None or name not in ROTARY_SCALINGS:
        return {"rope_type": "default"}
    settings: dict[str, Any] = {
        theirs: own[ours] for ours, theirs in ROTARY_SCALINGS[name].items() if ours in own
    }
    if (original := settings.get("original_max_position_embeddings")) is not None:
        settings["original_max_position_embeddings"] = int(original)
    if name == "yarn_unrounded":
        name, settings["truncate"] = "yarn", False
    return {"rope_type": name, **settings}


rotary_scaling = Translation(
    lambda settings: {"rotary_scaling": scaling_of(settings)},
    lambda fields: settings_of_scaling(first_set(fields.rotary_scaling)),
)


def read_windows(settings: Settings) -> dict[str, Any]:
    kinds = settings["layer_types"][: settings["num_hidden_layers"]]
    if others := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"layer_types of {others[0]!r}; allowed: 'full_attention', 'sliding_attention'")
    window = settings.get("sliding_window")
    return {"sliding_window": turns([window if kind.startswith("sliding") else None for kind in kinds])}


def write_windows(fields: Fields) -> Settings:
    windows = in_layers(fields.sliding_window, fields.n_layers)
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    window = first_set(fields.sliding_window) or UNUSED_WINDOW
    return {"sliding_window": window, "layer_types": kinds}


windows = Translation(read_windows, write_windows)


def write_used_windows(fields: Fields) -> Settings:
    settings = write_windows(fields)
    return {**settings, "use_sliding_window": "sliding_attention" in settings["layer_types"]}


# For families that ignore their window unless they are told to use it.
used_windows = Translation(read_windows, write_used_windows)


def read_local_layers(settings: Settings) -> dict[str, Any]:
    window = settings["window_size"]
    values = [window if kind == "local" else None for kind in settings["attention_layers"]]
    return {"sliding_window": turns(values)}


def write_local_layers(fields: Fields) -> Settings:
    windows = in_layers(fields.sliding_window, fields.n_layers)
    kinds = ["global" if window is None else "local" for window in windows]
    window = first_set(fields.sliding_window) or UNUSED_WINDOW
    return {"attention_types": [[kinds, 1]], "attention_layers": kinds, "window_size": window}


local_layers = Translation(read_local_layers, write_local_layers)  # of GPT-Neo


def read_rope_layers(settings: Settings) -> dict[str, Any]:
    has_rope = settings["no_rope_layers"][: settings["num_hidden_layers"]]
    return {"positions": turns(["rotary" if one else "none" for one in has_rope])}


def write_rope_layers(fields: Fields) -> Settings:
    positions = in_layers(fields.positions, fields.n_layers)
    return {"no_rope_layers": [int(one == "rotary") for one in positions]}


rope_layers = Translation(read_rope_layers, write_rope_layers)  # of SmolLM3, where 1 means with positions


def read_ropes(settings: Settings) -> dict[str, Any]:
    kinds = settings["layer_types"][: settings["num_hidden_layers"]]
    ropes = [settings[kind] for kind in kinds]
    scalings = [scaling_of({**settings, **rope}) for rope in ropes]
    if any(scaling and scaling.startswith("yarn_unrounded") for scaling in scalings):
        # transformers looks for `truncate` elsewhere.
        raise ValueError("truncate=False beside rope_type='yarn' of some layers; allowed: True")
    return {"rotary_base": turns([rope["rope_theta"] for rope in ropes]), "rotary_scaling": turns(scalings)}


def write_ropes(fields: Fields) -> Settings:
    n, found = fields.n_layers, dict[str, Settings]()
    by_layer = (fields.rotary_base, fields.rotary_scaling, fields.sliding_window)
    for base, scaling, window in zip(*(in_layers(values, n) for values in by_layer), strict=True):
        kind = "full_attention" if window is None else "sliding_attention"
        found.setdefault(kind, {"rope_theta": base, **settings_of_scaling(scaling)})
    unused = {"rope_type": "default", "rope_theta": 10_000.0}
    return {kind: found.get(kind, unused) for kind in ("full_attention", "sliding_attention")}


ropes = Translation(read_ropes, write_ropes)  # of Gemma 3: one for layers with a window, one for the others

# Gemma multiplies embeddings by the root of their width, and has its own number in place of the width of a head.
embedding_scale = Translation(
    lambda settings: {"mup_input_mult": settings["hidden_size"] ** 0.5},  # muP
    lambda fields: {},
)
query_scale = Translation(
    lambda settings: {
        "mup_attn_mult": math.sqrt(settings.get("head_dim") / settings["query_pre_attn_scalar"])  # muP
    },
    lambda fields: {
        "query_pre_attn_scalar": round(width_of_heads(fields) / first_set(fields.mup_attn_mult) ** 2)  # muP
    },
)
# GPT-Neo does not divide scores by the root of the width of a head.
unscaled_scores = Translation(
    lambda settings: {"mup_attn_mult": math.sqrt(settings["hidden_size"] // settings["num_heads"])},  # muP
    lambda fields: {},
)


def read_rotary_dim(settings: Settings) -> dict[str, Any]:
    n, width = settings["rotary_dim"], settings["n_embd"] // settings["n_head"]
    if n is None:
        raise ValueError("rotary_dim=None; allowed: a number")
    share = n / width
    return {"rotary_frac": share if int(share * width) == n else math.nextafter(share, 1.0)}


rotary_dim = Translation(  # of GPT-J
    read_rotary_dim,
    lambda fields: {
        "rotary_dim": int(fields.dim // first_set(fields.n_heads) * first_set(fields.rotary_frac))
    },
)

parallel_blocks = Translation(  # of GPT-NeoX
    lambda settings: {"parallel_blocks": settings["use_parallel_residual"]},
    lambda fields: {"use_parallel_residual": fields.parallel_blocks is True},
)


def read_norm_place(settings: Settings) -> dict[str, Any]:
    if settings["word_embed_proj_dim"] != settings["hidden_size"]:
        raise ValueError(
            f"word_embed_proj_dim={settings['word_embed_proj_dim']}; allowed: hidden_size={settings['hidden_size']}"
        )
    return {"norm_position": "pre" if settings["do_layer_norm_before"] else "post"}


norm_place = Translation(  # of OPT
    read_norm_place,
    lambda fields: {
        "do_layer_norm_before": fields.norm_position == "pre",
        "word_embed_proj_dim": fields.dim,
    },
)


def read_experts(settings: Settings) -> dict[str, Any]:
    if settings["num_experts_per_tok"] < 2 or not settings["norm_topk_prob"]:
        raise ValueError(
            f"norm_topk_prob={settings['norm_topk_prob']} and num_experts_per_tok={settings['num_experts_per_tok']}; "
            "allowed: True, with 2 or more experts"
        )
    every, n = settings["decoder_sparse_step"], settings["num_hidden_layers"]
    has_experts = [i not in settings["mlp_only_layers"] and (i + 1) % every == 0 for i in range(n)]
    widths = settings["intermediate_size"], settings["moe_intermediate_size"]
    return {
        "n_experts": turns([settings["num_local_experts"] * one for one in has_experts]),
        "dim_ff": turns([widths[one] for one in has_experts]),
        "experts_per_token": settings["num_experts_per_tok"] if any(has_experts) else 2,
    }


def write_experts(fields: Fields) -> Settings:
    n = fields.n_layers
    both = list(zip(in_layers(fields.n_experts, n), in_layers(fields.dim_ff, n), strict=True))
    return {
        "num_local_experts": first_set(fields.n_experts) or 0,
        "num_experts_per_tok": first_set(fields.experts_per_token),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, (n_experts, _) in enumerate(both) if not n_experts],
        "moe_intermediate_size": next((width for n_experts, width in both if n_experts), 1),
        "intermediate_size": next((width for n_experts, width in both if not n_experts), 1),
    }


experts = Translation(read_experts, write_experts)  # of Qwen3-MoE


def read_expert_counts(settings: Settings) -> dict[str, Any]:
    if settings["num_experts_per_tok"] < 2:
        raise ValueError(f"num_experts_per_tok={settings['num_experts_per_tok']}; allowed: 2 or more")
    return {
        "n_experts": settings["num_local_experts"],
        "experts_per_token": settings["num_experts_per_tok"],
    }


expert_counts = Translation(  # of families whose layers all have experts
    read_expert_counts,
    lambda fields: {
        "num_local_experts": first_set(fields.n_experts) or 0,
        "num_experts_per_tok": first_set(fields.experts_per_token),
    },
)
# gpt-oss always has this activation, whatever its config says.
fixed_quick_gelu = Translation(
    lambda settings: {"activation": "quick_gelu"}, lambda fields: {"hidden_act": "silu"}
)
# Gemma reads gelu as its tanh form.
legacy_gelu = Translation(
    lambda settings: {"activation": "gelu_tanh"} if settings["hidden_act"] == "gelu" else {},
    lambda fields: {},
)


def read_falcon_blocks(settings: Settings) -> dict[str, Any]:
    is_new, is_parallel = settings["new_decoder_architecture"], settings["parallel_attn"]
    n_norms, n_heads = settings["num_ln_in_parallel_attn"], settings["num_attention_heads"]
    n_kv_heads = settings["num_kv_heads"]
    if is_new and not is_parallel:
        raise ValueError(
            f"parallel_attn={is_parallel} beside new_decoder_architecture={is_new}; allowed: True"
        )
    if not is_new:
        n_kv_heads = 1 if settings["multi_query"] else n_heads
    allowed = (None, 1, 2) if is_new else (None, 1)
    if is_parallel and n_norms not in allowed:
        raise ValueError(
            f"num_ln_in_parallel_attn={n_norms} beside new_decoder_architecture={is_new}; allowed: {allowed}"
        )
    two_norms = is_new and n_norms != 1
    return {
        "n_kv_heads": n_kv_heads,
        "parallel_blocks": False if not is_parallel else True if two_norms else "one-norm",
    }


def write_falcon_blocks(fields: Fields) -> Settings:
    n_kv_heads, n_heads = first_set(fields.n_kv_heads), first_set(fields.n_heads)
    is_parallel = fields.parallel_blocks in (True, "one-norm")
    is_new = is_parallel and (fields.parallel_blocks is True or n_kv_heads not in (1, n_heads))
    return {
        "new_decoder_architecture": is_new,
        "parallel_attn": is_parallel,
        "num_ln_in_parallel_attn": None if not is_new else 2 if fields.parallel_blocks is True else 1,
        "multi_query": n_kv_heads == 1,
        "num_kv_heads": n_kv_heads if is_new else n_heads,
    }


falcon_blocks = Translation(read_falcon_blocks, write_falcon_blocks)
