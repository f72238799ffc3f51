"""Tiny random models of transformers, of every family that our layers can be."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.model.tiny import default_dtype, perturb

N_TOKENS, N_POSITIONS, N_SEEDS = 50, 24, 6
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
OPTIONS = {  # by model_type, the settings and their values, all of which turn up
    "gpt2": {
        "n_layer": [1, 2, 3],
        "n_embd": [32, 48],
        "n_head": [1, 2, 4],
        "n_inner": [None, 40],
        "activation_function": ["gelu_new", "gelu", "relu", "silu", "gelu_pytorch_tanh", "swish"],
        "layer_norm_epsilon": [1e-5, 1e-2],
        "tie_word_embeddings": [True, False],
    },
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
    "llama": LLAMA_LIKE | {"attention_bias": [False, True], "mlp_bias": [False, False, True]},
    "qwen2": LLAMA_LIKE
    | {"use_sliding_window": [False, True, True], "sliding_window": [1, 5], "max_window_layers": [0, 0, 9]},
    "mistral": LLAMA_LIKE | {"sliding_window": [None, 1, 3, 8, 23, 40]},
}
FAMILIES = list(OPTIONS)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
EVERY_MODEL = pytest.mark.parametrize(
    ("family", "seed"), [(family, seed) for family in FAMILIES for seed in range(N_SEEDS)]
)


def random_settings(family: str, seed: int) -> dict:
    """The settings number `seed` of a family: over N_SEEDS of them each value comes up as often as the others."""
    rng = random.Random(family)
    columns = {name: (values * N_SEEDS)[:N_SEEDS] for name, values in OPTIONS[family].items()}
    for column in columns.values():
        rng.shuffle(column)
    settings = {name: column[seed] for name, column in columns.items()}
    if "heads" in settings:
        settings["num_attention_heads"], settings["num_key_value_heads"] = settings.pop("heads")
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
        }
        | settings,
    )
    torch.manual_seed(seed)
    hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
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
