"""Parts of the GPT-2 course: small sizes, inputs and checks for each."""

from typing import Any

from torch import Tensor, nn

from learn.checking.checks import EVERY, FUNCTION, MODULE, has
from learn.checking.course import Case, Check, Course, Part, Wrong
from learn.checking.hub import real_weights
from learn.checking.mistakes import read_mistakes
from learn.checking.parity import looks_back_only
from learn.checking.samples import floats, integers
from learn.courses.gpt2 import references
from learn.outline import Outline

V, T, D, H, LAYERS = 13, 9, 12, 3, 2  # tokens, positions, width, heads; all different, so that no mix-up fits
STREAM = ("sample", "position", "feature")


def ids(*shape: int) -> Tensor:
    return integers(V, *shape)


def streams() -> list[tuple]:
    return [(floats(2, 7, D),), (floats(1, 1, D),)]


def tied(case: Case) -> None:
    """Raise Wrong if there is a second matrix of the vocabulary's size."""
    made: Any = case.part.make(case.mine)
    for name, parameter in made.named_parameters():
        if V in parameter.shape and parameter is not made.embedding.tokens:
            raise Wrong(
                f"it looks like `{name}` makes the logits; GPT-2 computes them with embedding.tokens (tied weights)."
            )


def real(name: str) -> Check:
    """Return the check on pretrained weights: a model of the hub, or a folder."""
    return real_weights(
        name,
        references.pretrained,
        lambda my, *sizes: my.GPT2(*sizes),
        references.gpt2_weights,
        lambda n_tokens: {"input_ids": integers(n_tokens, 2, 7)},
    )


PARTS = {
    "LayerNorm": Part(
        lambda my: my.LayerNorm(D),
        # Small numbers, so that eps matters, around a mean that is not 0.
        lambda: [(floats(2, 7, D, spread=0.01) + 0.03,), (floats(5, D),)],
        references.layer_norm,
        STREAM,
        (*EVERY, has(weight=[D], bias=[D], eps=float), *MODULE),
    ),
    "gelu": Part(
        lambda my: my.gelu,
        lambda: [(floats(4, 5, spread=2.0),), (floats(3),)],
        references.gelu,
        ("row", "column"),
        (*EVERY, *FUNCTION),
    ),
    "Embedding": Part(
        lambda my: my.Embedding(V, T, D),
        lambda: [(ids(2, 7),), (ids(3, 1),), (ids(1, T),)],
        references.embedding,
        STREAM,
        (*EVERY, has(tokens=[V, D], positions=[T, D]), *MODULE),
    ),
    "CausalAttention": Part(
        lambda my: my.CausalAttention(D, H),
        streams,
        references.attention,
        STREAM,
        (*EVERY, has(qkv=nn.Linear, out=nn.Linear, n_heads=int), *MODULE, looks_back_only),
    ),
    "MLP": Part(
        lambda my: my.MLP(D),
        streams,
        references.mlp,
        STREAM,
        (*EVERY, has(up=nn.Linear, down=nn.Linear), *MODULE),
    ),
    "Block": Part(
        lambda my: my.Block(D, H),
        streams,
        references.block,
        STREAM,
        (
            *EVERY,
            has(norm1="LayerNorm", attention="CausalAttention", norm2="LayerNorm", mlp="MLP"),
            *MODULE,
            looks_back_only,
        ),
    ),
    "GPT2": Part(
        lambda my: my.GPT2(V, T, D, LAYERS, H),
        lambda: [(ids(2, 7),), (ids(1, 1),), (ids(2, T),)],
        references.gpt2,
        ("sample", "position", "token"),
        (
            *EVERY,
            has(embedding="Embedding", blocks=nn.ModuleList, final_norm="LayerNorm"),
            tied,
            *MODULE,
            looks_back_only,
            real("gpt2"),
        ),
    ),
    "next_token_loss": Part(
        lambda my: my.next_token_loss,
        lambda: [(floats(2, 7, V), ids(2, 7)), (floats(2, 4, V, spread=1000.0), ids(2, 4))],
        references.next_token_loss,
        (),
        (*EVERY, *FUNCTION),
    ),
}

OUTLINE = Outline("gpt2")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes))
