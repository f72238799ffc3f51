"""References for GPT-2: torch's functions and transformers' GPT-2, on the student's own weights.

Every function takes the student's part and its arguments. Gradients flow into the student's parameters.
"""

import copy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

if TYPE_CHECKING:  # it takes seconds to import, and most parts are checked without it
    from transformers import GPT2LMHeadModel


def layer_norm(made: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], made.weight, made.bias, made.eps)


def layer_norm_over_dims(made: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, made.weight.shape, made.weight, made.bias, made.eps)


def gelu(made: Any, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def embedding(made: Any, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1]).expand_as(ids)
    return F.embedding(ids, made.tokens) + F.embedding(places, made.positions)


def attention(made: Any, x: Tensor) -> Tensor:
    T, D = x.shape[1:]
    weights = (made.qkv.weight, made.qkv.bias, None, None, False, 0.0, made.out.weight, made.out.bias)
    future = nn.Transformer.generate_square_subsequent_mask(T, dtype=x.dtype)
    x = x.transpose(0, 1)  # this function has positions first
    out, _ = F.multi_head_attention_forward(
        x, x, x, D, made.n_heads, *weights, need_weights=False, attn_mask=future
    )
    return out.transpose(0, 1)


def mlp(made: Any, x: Tensor) -> Tensor:
    return F.linear(gelu(None, F.linear(x, made.up.weight, made.up.bias)), made.down.weight, made.down.bias)


def block(made: Any, x: Tensor) -> Tensor:
    whole = huggingface(1, 1, x.shape[-1], 1, made.attention.n_heads)
    future = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
    out = functional_call(whole.transformer.h[0], block_weights(made), (x,), {"attention_mask": future})
    return out[0] if isinstance(out, tuple) else out


def gpt2(made: Any, ids: Tensor) -> Tensor:
    whole, weights = of_the_same_sizes(made), gpt2_weights(made)
    return functional_call(whole, weights, (ids,), {"use_cache": False}, tie_weights=True).logits


def gpt2_weights(made: Any) -> dict[str, Tensor]:
    """Return a model's weights under HuggingFace's names. All are views, so copying into them changes the model."""
    weights = {
        "transformer.wte.weight": made.embedding.tokens,
        "transformer.wpe.weight": made.embedding.positions,
        "transformer.ln_f.weight": made.final_norm.weight,
        "transformer.ln_f.bias": made.final_norm.bias,
    }
    for i, one in enumerate(made.blocks):
        weights |= {f"transformer.h.{i}.{name}": value for name, value in block_weights(one).items()}
    return weights


def block_weights(made: Any) -> dict[str, Tensor]:
    """Return a block's weights under HuggingFace's names. Matrices are transposed, as its Conv1D holds them."""
    matrices = {
        "attn.c_attn": made.attention.qkv,
        "attn.c_proj": made.attention.out,
        "mlp.c_fc": made.mlp.up,
        "mlp.c_proj": made.mlp.down,
    }
    norms = {"ln_1": made.norm1, "ln_2": made.norm2}
    return (
        {f"{name}.weight": linear.weight.T for name, linear in matrices.items()}
        | {f"{name}.weight": norm.weight for name, norm in norms.items()}
        | {f"{name}.bias": made.bias for name, made in (matrices | norms).items()}
    )


def of_the_same_sizes(made: Any) -> "GPT2LMHeadModel":
    (n_tokens, dim), n_heads = made.embedding.tokens.shape, made.blocks[0].attention.n_heads
    return huggingface(n_tokens, len(made.embedding.positions), dim, len(made.blocks), n_heads)


def twin(made: Any) -> "GPT2LMHeadModel":
    """Return a HuggingFace model with copies of the weights, without dropout."""
    model = copy.deepcopy(of_the_same_sizes(made)).to(made.embedding.tokens.dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for name, weight in gpt2_weights(made).items():
            model.get_parameter(name).copy_(weight)
    model.loss_type = "ForCausalLM"  # else it warns that it has to guess
    return model


@lru_cache(maxsize=8)
def huggingface(n_tokens: int, max_seq_len: int, dim: int, n_layers: int, n_heads: int) -> "GPT2LMHeadModel":
    """Make a GPT-2 from a config, without a network. Its weights do not matter. Keeps torch's random state."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=n_tokens,
        n_positions=max_seq_len,
        n_embd=dim,
        n_layer=n_layers,
        n_head=n_heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        model = GPT2LMHeadModel(config).eval()
    model.set_attn_implementation("eager")
    return model


def pretrained(folder: Path) -> "GPT2LMHeadModel":
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")


def next_token_loss(made: Any, logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
