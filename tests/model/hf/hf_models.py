"""Tiny random models of transformers, of every family that our layers can be."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.model.tiny import default_dtype, perturb

N_TOKENS, N_POSITIONS, N_SEEDS = 50, 24, 6
FURTHER = (pytest.mark.slow, pytest.mark.ci)
SHARED = {
    "num_hidden_layers": [1, 2, 3],
    "hidden_size": [32, 48],
    "intermediate_size": [40, 72],
    "hidden_act": ["silu", "gelu", "gelu_pytorch_tanh"],
    "tie_word_embeddings": [True, False],
}
LLAMA_LIKE = SHARED | {
    "heads": [(4, 4), (4, 2), (8, 2), (2, 1), (4, 1), (2, 2)],
    "rope_theta": [10_000.0, 300.0],
    "rms_norm_eps": [1e-6, 1e-2],
}
SCALINGS: list[dict] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 12,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6, "beta_fast": 8.0},
]
UNROUNDED = SCALINGS[2] | {"truncate": False}
QWEN3 = LLAMA_LIKE | {
    "head_dim": [8, 16],
    "attention_bias": [False, True],
    "use_sliding_window": [False, True, True],
    "sliding_window": [1, 5],
}
GEMMA = {
    **{name: values for name, values in LLAMA_LIKE.items() if name not in ("hidden_act", "rope_theta")},
    "hidden_activation": ["gelu_pytorch_tanh", "silu"],
    "head_dim": [8, 16],
    "query_pre_attn_scalar": [8, 20],
    "sliding_window": [1, 5],
    "attn_logit_softcapping": [None, 2.0],
    "final_logit_softcapping": [None, 3.0],
    "attention_bias": [False, True],
}
GROUPS = {  # settings whose values go together, by the name of the group
    "heads": ("num_attention_heads", "num_key_value_heads"),
    "blocks": (  # of Falcon
        "new_decoder_architecture",
        "parallel_attn",
        "multi_query",
        "num_kv_heads",
        "num_ln_in_parallel_attn",
    ),
}
GPT2_LIKE: dict[str, list] = {
    "n_layer": [1, 2, 3],
    "n_embd": [32, 48],
    "n_head": [1, 2, 4],
    "n_inner": [None, 40],
    "activation_function": ["gelu_new", "gelu", "relu", "silu", "gelu_pytorch_tanh", "swish"],
    "layer_norm_epsilon": [1e-5, 1e-2],
    "tie_word_embeddings": [True, False],
}
OPTIONS = {  # by model_type, the settings and their values, all of which turn up
    "gpt2": GPT2_LIKE,
    "gpt_neox": SHARED
    | {
        "hidden_size": [32, 64],
        "num_attention_heads": [1, 2, 4],
        "hidden_act": ["gelu", "gelu_fast", "relu"],
        "rotary_pct": [0.25, 0.5, 1.0],
        "rotary_emb_base": [10_000, 300],
        "layer_norm_eps": [1e-5, 1e-2],
        "use_parallel_residual": [True, True, False],
        "attention_bias": [True, False],
    },
    "llama": LLAMA_LIKE
    | {"attention_bias": [False, True], "mlp_bias": [False, False, True], "head_dim": [None, 6]}
    | {"rope_scaling": [None, *SCALINGS, UNROUNDED]},
    "qwen2": LLAMA_LIKE
    | {"use_sliding_window": [False, True, True], "sliding_window": [1, 5], "max_window_layers": [0, 1, 9]},
    "mistral": LLAMA_LIKE | {"sliding_window": [None, 1, 3, 8, 23, 40], "head_dim": [None, 6]},
    "qwen3": QWEN3 | {"max_window_layers": [0, 1, 9]},
    "qwen3_moe": QWEN3
    | {"num_experts": [4, 6], "num_experts_per_tok": [2, 3], "moe_intermediate_size": [24, 8]}
    | {"mlp_only_layers": [[], [0]], "decoder_sparse_step": [1, 1, 2], "norm_topk_prob": [True]},
    "mixtral": LLAMA_LIKE
    | {"num_local_experts": [4, 6], "num_experts_per_tok": [2, 3], "sliding_window": [None, 1, 5]}
    | {"head_dim": [None, 6], "router_aux_loss_coef": [0.5, 0.0]},
    "gpt_oss": {
        name: values for name, values in LLAMA_LIKE.items() if name not in ("hidden_act", "rope_theta")
    }
    | {"head_dim": [8, 16], "attention_bias": [True, False], "sliding_window": [1, 5]}
    | {"num_local_experts": [4, 6], "num_experts_per_tok": [2, 3]}
    | {"rope_parameters": [None, *(one | {"rope_theta": 300.0} for one in (*SCALINGS, UNROUNDED))]},
    "gemma": {
        name: values
        for name, values in GEMMA.items()
        if name in LLAMA_LIKE or name in ("head_dim", "attention_bias")
    }
    | {"rope_theta": [10_000.0, 300.0], "hidden_act": ["gelu", "gelu_pytorch_tanh", "silu"]},
    "gemma2": GEMMA | {"rope_theta": [10_000.0, 300.0]},
    "gemma3_text": {name: values for name, values in GEMMA.items() if name != "attn_logit_softcapping"}
    | {
        "sliding_window_pattern": [1, 2, 6],
        "rope_parameters": [
            {"full_attention": {"rope_type": "default", "rope_theta": 300.0}},
            {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        ],
    },
    "olmo2": LLAMA_LIKE | {"attention_bias": [False, True], "rope_scaling": [None, *SCALINGS]},
    "smollm3": LLAMA_LIKE
    | {"attention_bias": [False, True], "mlp_bias": [False, True], "no_rope_layer_interval": [1, 2, 4]}
    | {"use_sliding_window": [False, True], "sliding_window": [3, 5]},
    "starcoder2": {name: values for name, values in LLAMA_LIKE.items() if name != "rms_norm_eps"}
    | {"norm_epsilon": [1e-5, 1e-2], "use_bias": [True, False], "sliding_window": [None, 1, 5]}
    | {"rope_scaling": [None, *SCALINGS]},
    "falcon": {
        name: values for name, values in SHARED.items() if not name.startswith(("inter", "hidden_act"))
    }
    | {
        "blocks": [
            (True, True, True, 2, None),
            (True, True, False, 4, 1),
            (False, True, True, None, None),
            (False, True, False, None, 1),
            (False, False, True, None, None),
            (False, False, False, None, 2),
        ],
        "num_attention_heads": [4, 8],
        "ffn_hidden_size": [None, 40],
        "activation": ["gelu", "relu"],
        "bias": [True, False],
        "layer_norm_epsilon": [1e-5, 1e-2],
        "rope_theta": [10_000.0, 300.0],
    },
    "gptj": GPT2_LIKE | {"n_embd": [32, 64], "rotary_dim": [4, 6, 8]},
    "opt": {
        "num_hidden_layers": [1, 2, 3],
        "hidden_size": [32, 48],
        "ffn_dim": [40, 72],
        "num_attention_heads": [1, 2, 4],
        "activation_function": ["relu", "gelu"],
        "do_layer_norm_before": [True, False],
        "enable_bias": [True, True, False],
        "layer_norm_elementwise_affine": [True, True, False],
        "tie_word_embeddings": [True, False],
    },
    "gpt_neo": {
        "attention_types": [
            [[["global", "local"], 1]],
            [[["local"], 3]],
            [[["global"], 1], [["local"], 2]],
        ],
        "hidden_size": [32, 48],
        "num_heads": [1, 2, 4],
        "intermediate_size": [None, 40],
        "window_size": [1, 5, 40],
        "activation_function": ["gelu_new", "relu"],
        "layer_norm_epsilon": [1e-5, 1e-2],
        "tie_word_embeddings": [True, False],
    },
}
FAMILIES = list(OPTIONS)
FIRST_FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2", "mistral")
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
EVERY_MODEL = pytest.mark.parametrize(
    ("family", "seed"),
    [
        # The everyday tests take two models of each later family.
        pytest.param(family, seed, marks=() if family in FIRST_FAMILIES or seed < 2 else FURTHER)
        for family in FAMILIES
        for seed in range(N_SEEDS)
    ],
)


def random_settings(family: str, seed: int) -> dict:
    """The settings number `seed` of a family: over N_SEEDS of them each value comes up as often as the others."""
    rng = random.Random(family)
    columns = {name: (values * N_SEEDS)[:N_SEEDS] for name, values in OPTIONS[family].items()}
    for column in columns.values():
        rng.shuffle(column)
    # A config changes the dicts that it is given.
    settings = copy.deepcopy({name: column[seed] for name, column in columns.items()})
    for group in GROUPS.keys() & settings.keys():
        settings |= dict(zip(GROUPS[group], settings.pop(group), strict=True))
    if family == "gpt_neo":
        settings["num_layers"] = sum(len(kinds) * n for kinds, n in settings["attention_types"])
    return settings


def make_hf(family: str, *, size: float = 0.1, seed: int = 0, **settings) -> PreTrainedModel:
    """A model with every parameter perturbed, norms and biases too, that shows its attention patterns."""
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": N_TOKENS,
            "max_position_embeddings": N_POSITIONS,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None,  # its embedding would get no gradient
        }
        | settings,
    )
    torch.manual_seed(seed)
    hf_model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    perturb(hf_model, size)
    return hf_model.to(torch.get_default_dtype()).eval()


def random_hf(family: str, seed: int, **settings) -> PreTrainedModel:
    return make_hf(family, seed=seed, **random_settings(family, seed) | settings)


@contextmanager
def all_in_float64() -> Iterator[None]:
    """Inside, float32 means float64: their norms, angles and softmax are in float32 whatever the weights are in."""
    with pytest.MonkeyPatch.context() as patch, default_dtype(torch.float64):
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # it takes none
        yield
