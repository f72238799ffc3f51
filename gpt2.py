"""GPT-2 as an LM of ours: HuggingFace's weights poured into the model that everything else here edits and inspects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from data.hub import hub_answers
from data.tokenizer import pretrained_tokenizer
from model.inputs import Tokenizer
from model.lm import LM
from model.model_params import ModelParams

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel

ACTIVATIONS = {  # HuggingFace's names and ours
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
OUTSIDE_THE_LAYERS = {
    "transformer.wte.": "embed.tokens.",
    "transformer.wpe.": "embed.positions.table.",
    "transformer.ln_f.": "decoder.norm.",
    "lm_head.": "unembed.",
}
IN_A_LAYER = {
    "ln_1.": "norm1.",
    "attn.c_attn.": "attention.qkv.",
    "attn.c_proj.": "attention.out.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "linear1.",
    "mlp.c_proj.": "linear2.",
}


def get_gpt2() -> LM:
    """GPT-2 small with its trained weights and its tokenizer, from the HuggingFace hub; ValueError without a network."""
    return from_hf(download("gpt2"), pretrained_tokenizer("gpt2"))


def download(name: str) -> GPT2LMHeadModel:
    """HuggingFace's model: what was downloaded earlier, else from the hub."""
    from transformers import GPT2LMHeadModel

    try:
        return GPT2LMHeadModel.from_pretrained(name, use_safetensors=True, local_files_only=True)
    except OSError:
        if not hub_answers():
            raise ValueError(
                f"the weights of {name!r} are not on this machine and the hub cannot be reached: run once with a network, "
                "or pour a GPT2LMHeadModel that you have with gpt2.from_hf"
            ) from None
    return GPT2LMHeadModel.from_pretrained(name, use_safetensors=True)


def from_hf(hf_model: GPT2LMHeadModel, tokenizer: Tokenizer | None = None) -> LM:
    """An LM with the weights of `hf_model`, in its precision, in eval mode. Without a tokenizer it takes ids only.

    ValueError for a model that is not GPT-2 or a configuration that our layers cannot represent.
    """
    from transformers import GPT2LMHeadModel

    if not isinstance(hf_model, GPT2LMHeadModel):
        raise ValueError(f"from_hf pours a GPT2LMHeadModel, not a {type(hf_model).__name__}")
    model_params = params_of(hf_model.config)
    known: Tokenizer = tokenizer or IdsOnly(hf_model.config)
    if known.n_tokens != hf_model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {known.n_tokens} tokens, but the model's vocab_size is {hf_model.config.vocab_size}"
        )
    lm = LM(model_params, known).to(hf_model.dtype)
    weights = dict(renamed(name, weight) for name, weight in hf_model.named_parameters())
    if model_params.tied_embeddings:
        weights["unembed.weight"] = weights["embed.tokens.weight"]
    lm.load_state_dict(weights)
    return lm.eval()


def params_of(config: GPT2Config) -> ModelParams:
    """The ModelParams of the same architecture; ValueError if there are none."""
    for what, value, representable in (
        ("activation_function", config.activation_function, tuple(ACTIVATIONS)),
        ("layer_norm_epsilon", config.layer_norm_epsilon, (1e-5,)),
        ("scale_attn_weights", config.scale_attn_weights, (True,)),
        ("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx, (False,)),
        ("add_cross_attention", config.add_cross_attention, (False,)),
    ):
        if value not in representable:
            allowed = ", ".join(map(repr, representable))
            raise ValueError(
                f"our layers have no equal of {what}={value!r} in this GPT-2 configuration; allowed: {allowed}"
            )
    return ModelParams(
        dim=config.n_embd,
        n_layers=config.n_layer,
        n_heads=config.n_head,
        dim_ff=config.n_inner,
        max_seq_len=config.n_positions,
        activation=ACTIVATIONS[config.activation_function],
        tied_embeddings=config.tie_word_embeddings,
        tokenizer_source_name="gpt2",
    )


def renamed(name: str, weight: Tensor) -> tuple[str, Tensor]:
    """HuggingFace's parameter under our name and in our orientation: its Conv1D holds a Linear's matrix transposed."""
    for theirs, ours in OUTSIDE_THE_LAYERS.items():
        if name.startswith(theirs):
            return name.replace(theirs, ours), weight
    _, _, layer, rest = name.split(".", 3)  # transformer.h.0.attn.c_attn.weight
    [(theirs, ours)] = [pair for pair in IN_A_LAYER.items() if rest.startswith(pair[0])]
    transposed = weight.dim() == 2
    return f"decoder.layers.{layer}.{rest.replace(theirs, ours)}", weight.T if transposed else weight


class IdsOnly:
    """Stands in for a tokenizer that nobody gave: every id is its own text."""

    def __init__(self, config: GPT2Config) -> None:
        self.n_tokens = config.vocab_size
        self.bos, self.eos = (
            i if isinstance(i, int) else -1 for i in (config.bos_token_id, config.eos_token_id)
        )
        self.pad = 0

    def __call__(self, text: str) -> list[int]:
        raise ValueError(
            "this model came without a tokenizer, so it takes ids: gpt2.from_hf(hf_model, tokenizer) takes one"
        )

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.tokens(ids))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(int(i)) for i in ids]
