"""BERT and RoBERTa as families: they differ in names, the activation of the MLM head, and the first position.

An LM of ours with this architecture is exported as a BERT.
"""

from model.hf.families import EVERYWHERE, SHARED_SIZES, Family

BERT_LAYERS = {
    "attention.self.query": "mixer.qkv",
    "attention.self.key": "mixer.qkv",
    "attention.self.value": "mixer.qkv",
    "attention.output.dense": "mixer.out",
    "attention.output.LayerNorm": "norm1.after",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2.after",
}


def bert_names(model: str) -> dict[str, str | tuple[str, ...]]:
    """Map the module names that all BERTs share to ours; `model` is their prefix."""
    embeddings = {"word_embeddings": "tokens", "position_embeddings": "positions.table", "LayerNorm": "norm"}
    return {
        **{f"{model}.embeddings.{theirs}": f"embed.{ours}" for theirs, ours in embeddings.items()},
        **{
            f"{model}.encoder.layer.*.{theirs}": f"decoder.layers.*.{ours}"
            for theirs, ours in BERT_LAYERS.items()
        },
    }


bert = Family(
    settings=SHARED_SIZES | {"norm_eps": "layer_norm_eps"},
    fixed=EVERYWHERE
    | {"causal": False, "objective": "masked", "norm_position": "post", "residual": "plain"}
    | {"embedding_norm": True, "readout_transform": True, "readout_bias": True}
    | {"positions": "learned", "sliding_window": None, "parallel_blocks": False}
    | {"norm": "layernorm", "gated": False}
    | {"bias_qkv": True, "bias_out": True, "bias_ff": True, "bias_norm": True},
    names=bert_names("bert")
    | {
        "cls.predictions.transform.dense": "transform.linear",
        "cls.predictions.transform.LayerNorm": "transform.norm",
        "cls.predictions.decoder": "unembed",
    },
    constants={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "type_vocab_size": 2},
    needed={"is_decoder": False, "position_embedding_type": "absolute"},
    masked=True,
    token_types="bert.embeddings.token_type_embeddings",
    unused="cls.predictions",
)
roberta = Family(
    settings=bert.settings,
    fixed=bert.fixed,
    names=bert_names("roberta")
    | {
        "lm_head.dense": "transform.linear",
        "lm_head.layer_norm": "transform.norm",
        "lm_head.decoder": "unembed",
    },
    constants=bert.constants | {"pad_token_id": 1},
    needed=bert.needed | {"pad_token_id": 1, "hidden_act": "gelu"},
    masked=True,
    token_types="roberta.embeddings.token_type_embeddings",
    unused="lm_head",
    first_position=2,  # row 0 is unused, row 1 is for padding
    counts_rows=True,
)
