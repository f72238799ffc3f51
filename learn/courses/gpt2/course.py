"""Parts of the GPT-2 course: small sizes, inputs and checks for each."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.checks import EVERY, FUNCTION, MODULE, by_hand, has
from learn.checking.course import Case, Check, Course, Part, Wrong
from learn.checking.hub import real_weights
from learn.checking.mistakes import read_mistakes
from learn.checking.parity import looks_back_only, recognize
from learn.checking.samples import floats, integers
from learn.checking.spy import Spy
from learn.courses.gpt2 import references
from learn.outline import Outline

V, T, D, H, LAYERS = 13, 9, 12, 3, 2  # tokens, positions, width, heads; all different, so that no mix-up fits
STREAM = ("sample", "position", "feature")
ROOT, CUBE = math.sqrt(2 / math.pi), 0.044715  # the constants of gelu
SLIPS = {  # of the root, and how each is written
    math.sqrt(2) / math.pi: "sqrt(2) / pi",
    math.sqrt(2 * math.pi): "sqrt(2 pi)",
    math.sqrt(math.pi / 2): "sqrt(pi / 2)",
    math.sqrt(math.pi) / 2: "sqrt(pi) / 2",
    2 / math.sqrt(math.pi): "2 / sqrt(pi)",
    1 / math.sqrt(2 * math.pi): "1 / sqrt(2 pi)",
    math.sqrt(1 / math.pi): "sqrt(1 / pi)",
    1 / math.sqrt(2): "1 / sqrt(2)",
    math.sqrt(2): "sqrt(2)",
}


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


def constants(case: Case) -> None:
    """Raise Wrong if gelu has the right form with a wrong constant: its two constants follow from its outputs."""
    made, x = case.part.make(case.mine), torch.linspace(0.2, 1.4, 7, dtype=torch.float64)
    out, right = made(x), case.part.reference(made, x)
    if not isinstance(out, Tensor) or out.shape != x.shape or torch.allclose(out, right, 1e-6):
        return
    inside, terms = torch.atanh(2 * out / x - 1), torch.stack([x, x**3], dim=1)
    if not inside.isfinite().all():
        return
    root, cubic = torch.linalg.lstsq(terms, inside[:, None]).solution.flatten()
    if not torch.allclose(terms @ torch.stack([root, cubic]), inside, 1e-6):
        return  # another form
    if mistake := recognize(case, made, (x,), out, right):
        raise Wrong(f"it looks like {mistake}.")
    raise Wrong(f"gelu: {wrong_constant(float(root), float(cubic / root))}.")


def wrong_constant(root: float, cube: float) -> str:
    """Describe the constants of a gelu of the right form, of which one or both are wrong."""
    said = []
    if not math.isclose(root, ROOT, rel_tol=1e-6):
        slip = next((f", which is {name}" for value, name in SLIPS.items() if math.isclose(root, value)), "")
        said.append(f"the factor inside tanh is {root:.6g}{slip}; it should be sqrt(2 / pi) = {ROOT:.6g}")
    if not math.isclose(cube, CUBE, rel_tol=1e-6):
        zeros = math.log10(abs(cube) / CUBE) if cube else 0.5
        point = ": is the decimal point misplaced?" if math.isclose(zeros, round(zeros), abs_tol=1e-6) else ""
        said.append(f"the factor of x^3 is {cube:.6g}; it should be {CUBE}{point}")
    return ", and ".join(said)


def drops(case: Case) -> None:
    """Raise Wrong unless dropout keeps, scales and draws as it should, in training and in evaluation."""
    make, x = type(case.part.make(case.mine)), floats(200, 300).double() + 5  # no zeros
    for p in (0.25, 0.6, 0.0, 1.0):
        made = make(p)
        if not torch.equal(made.eval()(x), x):
            raise Wrong(
                "in evaluation the input changes; it should come back as it is (`self.training` is False)."
            )
        out = made.train()(x.clone())
        if not isinstance(out, Tensor) or out.shape != x.shape:
            raise Wrong(f"the result should be a tensor of shape {list(x.shape)}, as the input.")
        if not out.isfinite().all():
            raise Wrong(f"with p = {p:g} some numbers are not finite.")
        kept = out != 0
        is_dropped(p, kept)
        if kept.any() and not torch.allclose(out[kept], x[kept] / (1 - p)):
            scale = float((out[kept] / x[kept]).mean())
            raise Wrong(
                f"with p = {p:g} the numbers that stay are multiplied by {scale:.4g}, expected 1 / (1 - p) = {1 / (1 - p):.4g}."
            )
    made = make(0.5).train()
    if torch.equal(made(x) == 0, made(x) == 0):
        raise Wrong("two calls drop the same numbers: draw anew in every call.")


def drops_by_hand(case: Case) -> None:
    """Raise Wrong if a ready-made dropout did the work."""
    made = case.part.make(case.mine)
    with Spy() as spy:
        made(floats(4, 5))
    if any("dropout" in operator for operator in spy.seen):
        raise Wrong("right, but a ready-made dropout ran: write that yourself here.")


def is_dropped(p: float, kept: Tensor) -> None:
    """Raise Wrong unless a share `p` of the numbers is dropped, independently in rows and columns."""
    share = 1 - float(kept.double().mean())
    if abs(share - p) > 0.02:
        other = ": is p the share that stays?" if abs(share - (1 - p)) < 0.02 else ""
        raise Wrong(f"with p = {p:g}, {share:.1%} of the numbers become 0, expected {p:.0%}{other}.")
    # A share of 300 numbers varies by less than 0.03. Whole rows or columns give 0 or 1.
    for dim, what in ((1, "rows"), (0, "columns")):
        spread = float(kept.double().mean(dim=dim).std())
        if spread > 0.1:
            raise Wrong(f"{what} are dropped as a whole: draw for each number by itself.")


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
        (*EVERY, constants, *FUNCTION),
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
    "LayerNormOverDims": Part(
        lambda my: my.LayerNormOverDims((4, D)),
        lambda: [(floats(3, 4, D, spread=0.01) + 0.03,), (floats(2, 5, 4, D),)],
        references.layer_norm_over_dims,
        ("sample", "row", "column"),
        (*EVERY, has(weight=[4, D], bias=[4, D], eps=float), *MODULE),
    ),
    "Dropout": Part(
        lambda my: my.Dropout(0.25),
        lambda: [(floats(4, 5),)],
        checks=(*EVERY, has(p=float), drops, by_hand, drops_by_hand),
    ),
}

OUTLINE = Outline("gpt2")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes))
