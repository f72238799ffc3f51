"""ModelParams: the architecture and its tokenizer."""

from typing import Literal

from pydantic import ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class ModelParams:
    layer_architecture: str = "custom-transformer"  # a registered kind of layer: the stack is n_layers of it
    dim: PositiveInt = 128  # width of the residual stream
    n_layers: NonNegativeInt = 4
    n_heads: PositiveInt = 4  # per layer; must divide dim
    dim_ff: PositiveInt | None = None  # width inside the feed-forward block; None: 4 * dim
    max_seq_len: PositiveInt = 128  # longest input, in tokens
    positions: str = "learned"  # a registered kind: none, learned, sin, rotary
    rotary_base: PositiveFloat = 10_000.0  # of positions = "rotary"
    norm_position: Literal["pre", "post"] = "pre"  # LayerNorm before each block, or after each addition
    activation: str = "gelu"  # a registered function of the feed-forward block
    bias: bool = True  # in every linear layer and norm of the stack (the readout has none)
    tied_embeddings: bool = True  # the output matrix is the token embedding
    separate_heads: bool = False  # each head's query, key and value matrices are parameters of their own
    attention: Literal["explicit", "fused"] = "explicit"  # fused: torch's kernel, which ignores edits
    tokenizer_source_name: str = "char"  # char, custom (our own BPE), or the name of a pretrained one
    tokenizer_vocab_size: PositiveInt = 4096  # of the custom tokenizer, special tokens included
    tokenizer_crop: bool = False  # keep only the tokens of a pretrained tokenizer that the training text uses

    def __post_init__(self) -> None:
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} must divide dim={self.dim}")
        if self.positions == "rotary" and self.dim // self.n_heads % 2:
            raise ValueError(
                f"positions='rotary' needs an even head size, but dim={self.dim} / n_heads={self.n_heads} is odd"
            )
