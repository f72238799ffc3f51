"""References for BERT: torch's functions and transformers' BERT, on the student's own weights.

Every function takes the student's part and its arguments. Gradients flow into the student's parameters.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
)

Weights = dict[str, Tensor]


def gelu(made: Any, x: Tensor) -> Tensor:
    return F.gelu(x)


def embedding(made: Any, ids: Tensor, types: Tensor | None = None) -> Tensor:
    n_tokens, dim = made.tokens.shape
    whole = masked_lm_model(n_tokens, len(made.positions), dim, n_types=len(made.types))
    return functional_call(whole.bert.embeddings, embedding_weights(made), (ids, types))


def attention(made: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    x = x.transpose(0, 1)  # this function has positions first
    inside = (made.query, made.key, made.value)
    matrices, biases = torch.cat([one.weight for one in inside]), torch.cat([one.bias for one in inside])
    weights = (matrices, biases, None, None, False, 0.0, made.out.weight, made.out.bias)
    padding = None if mask is None else mask == 0
    out, _ = F.multi_head_attention_forward(
        x, x, x, x.shape[-1], made.n_heads, *weights, key_padding_mask=padding, need_weights=False
    )
    return out.transpose(0, 1)


def mlp(made: Any, x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, made.up.weight, made.up.bias)), made.down.weight, made.down.bias)


def block(made: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    whole = masked_lm_model(1, 1, x.shape[-1], n_heads=made.attention.n_heads)
    if mask is not None:
        smallest = torch.finfo(x.dtype).min
        mask = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(mask == 0, smallest)[:, None, None, :]
    out = functional_call(whole.bert.encoder.layer[0], block_weights(made), (x, mask))
    return out[0] if isinstance(out, tuple) else out


def bert(made: Any, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
    whole = masked_lm_model(*sizes(made)).bert
    out = functional_call(whole, bert_weights(made), (), named(ids, mask, types))
    return out.last_hidden_state


def masked_lm_head(made: Any, x: Tensor, tokens: Tensor) -> Tensor:
    whole = masked_lm_model(*tokens.shape[:1], 1, *tokens.shape[1:])
    return functional_call(whole.cls, head_weights(made, tokens), (x,), tie_weights=False)


def bert_for_masked_lm(
    made: Any, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
) -> Tensor:
    whole = masked_lm_model(*sizes(made.bert))
    return functional_call(whole, masked_lm_weights(made), (), named(ids, mask, types)).logits


def classification_head(made: Any, x: Tensor) -> Tensor:
    pooled = F.linear(x[:, 0], made.pooler.weight, made.pooler.bias).tanh()
    return F.linear(pooled, made.out.weight, made.out.bias)


def bert_for_classification(
    made: Any, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
) -> Tensor:
    whole = classification_model(*sizes(made.bert), n_classes=len(made.head.out.bias))
    return functional_call(whole, classification_weights(made), (), named(ids, mask, types)).logits


def bert_for_pretraining(
    made: Any, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    whole = pretraining_model(*sizes(made.bert))
    out = functional_call(whole, pretraining_weights(made), (), named(ids, mask, types))
    return out.prediction_logits, out.seq_relationship_logits


def masked_lm_loss(made: Any, logits: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
    if not chosen.any():
        return 0 * logits.sum()
    return F.cross_entropy(logits.flatten(0, 1), ids.where(chosen, -100).flatten())


class Vocabulary:
    """The methods of a tokenizer that the collator calls."""

    mask_token = "[MASK]"

    def __init__(self, mask_id: int, n_tokens: int) -> None:
        self.mask_id, self.n_tokens = mask_id, n_tokens

    def __len__(self) -> int:
        return self.n_tokens

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.mask_id


def mask_tokens(
    ids: Tensor, special: Tensor, mask_id: int, n_tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    vocabulary: Any = Vocabulary(mask_id, n_tokens)
    collator = DataCollatorForLanguageModeling(vocabulary, mlm_probability=0.15)
    collator.generator = generator
    hidden, labels = collator.torch_mask_tokens(ids.clone(), special)
    return hidden, labels != -100


def named(ids: Tensor, mask: Tensor | None, types: Tensor | None) -> dict[str, Tensor | None]:
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def sizes(made: Any) -> tuple[int, int, int, int, int, int]:
    """Return the sizes of a Bert, in the order of the arguments of `masked_lm_model`."""
    tokens, blocks = made.embedding.tokens, made.blocks
    of_embedding = (*tokens.shape[:1], len(made.embedding.positions), *tokens.shape[1:])
    return (*of_embedding, len(blocks), blocks[0].attention.n_heads, len(made.embedding.types))


def embedding_weights(made: Any) -> Weights:
    """Return an embedding's weights under HuggingFace's names."""
    return {
        "word_embeddings.weight": made.tokens,
        "position_embeddings.weight": made.positions,
        "token_type_embeddings.weight": made.types,
    } | both("LayerNorm", made.norm)


def block_weights(made: Any) -> Weights:
    inside = {
        "attention.self.query": made.attention.query,
        "attention.self.key": made.attention.key,
        "attention.self.value": made.attention.value,
        "attention.output.dense": made.attention.out,
        "attention.output.LayerNorm": made.norm1,
        "intermediate.dense": made.mlp.up,
        "output.dense": made.mlp.down,
        "output.LayerNorm": made.norm2,
    }
    return {name: weight for prefix, one in inside.items() for name, weight in both(prefix, one).items()}


def bert_weights(made: Any) -> Weights:
    weights = within("embeddings", embedding_weights(made.embedding))
    for i, one in enumerate(made.blocks):
        weights |= within(f"encoder.layer.{i}", block_weights(one))
    return weights


def head_weights(made: Any, tokens: Tensor) -> Weights:
    """Return a masked-LM head's weights. HuggingFace has the bias under two names, and the token vectors here again."""
    return within(
        "predictions",
        both("transform.dense", made.dense)
        | both("transform.LayerNorm", made.norm)
        | {"bias": made.bias, "decoder.bias": made.bias, "decoder.weight": tokens},
    )


def masked_lm_weights(made: Any) -> Weights:
    head = head_weights(made.head, made.bert.embedding.tokens)
    return within("bert", bert_weights(made.bert)) | within("cls", head)


def classification_weights(made: Any) -> Weights:
    pooler = both("bert.pooler.dense", made.head.pooler)
    return within("bert", bert_weights(made.bert)) | pooler | both("classifier", made.head.out)


def pretraining_weights(made: Any) -> Weights:
    """Return the weights of a model with both heads. Its second head has two classes, as HuggingFace's."""
    heads = within("cls", head_weights(made.tokens_head, made.bert.embedding.tokens))
    text_head = both("bert.pooler.dense", made.text_head.pooler) | both(
        "cls.seq_relationship", made.text_head.out
    )
    return within("bert", bert_weights(made.bert)) | heads | text_head


def both(name: str, made: Any) -> Weights:
    """Return weight and bias of a linear layer or a norm."""
    return {f"{name}.weight": made.weight, f"{name}.bias": made.bias}


def within(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}.{name}": weight for name, weight in weights.items()}


@lru_cache(maxsize=8)
def masked_lm_model(
    n_tokens: int, max_seq_len: int, dim: int, n_layers: int = 1, n_heads: int = 1, n_types: int = 2
) -> BertForMaskedLM:
    config = BertConfig(**config_of(n_tokens, max_seq_len, dim, n_layers, n_heads, n_types))
    return untrained(BertForMaskedLM, config)


@lru_cache(maxsize=8)
def classification_model(*sizes: int, n_classes: int) -> BertForSequenceClassification:
    return untrained(
        BertForSequenceClassification, BertConfig(**config_of(*sizes) | {"num_labels": n_classes})
    )


@lru_cache(maxsize=8)
def pretraining_model(*sizes: int) -> BertForPreTraining:
    return untrained(BertForPreTraining, BertConfig(**config_of(*sizes)))


def config_of(
    n_tokens: int, max_seq_len: int, dim: int, n_layers: int, n_heads: int, n_types: int
) -> dict[str, Any]:
    return {
        "vocab_size": n_tokens,
        "max_position_embeddings": max_seq_len,
        "hidden_size": dim,
        "intermediate_size": 4 * dim,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "type_vocab_size": n_types,
        "pad_token_id": None,
    }


def untrained(kind: Any, config: BertConfig) -> Any:
    """Make a model from a config, without a network. Its weights do not matter. Keeps torch's random state."""
    with torch.random.fork_rng():
        model = kind(config).eval()
    model.set_attn_implementation("eager")
    return model


def pretrained_masked_lm(folder: Path) -> BertForMaskedLM:
    return BertForMaskedLM.from_pretrained(folder, attn_implementation="eager")


def pretrained_classification(folder: Path) -> BertForSequenceClassification:
    """Load a classifier. Its last layer is random if the folder has none."""
    return BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
