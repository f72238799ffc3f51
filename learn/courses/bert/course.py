"""Parts of the BERT course: small sizes, inputs and checks for each."""

from typing import Any

import torch
from torch import Tensor, nn

from learn.checking.checks import EVERY, FUNCTION, MODULE, agrees, by_hand, has, seeded
from learn.checking.course import Case, Check, Course, Part, Wrong
from learn.checking.explain import difference
from learn.checking.hub import real_weights
from learn.checking.mistakes import read_mistakes
from learn.checking.parity import SPREAD, cast, check_gradients, ready, recognize, same_outputs
from learn.checking.samples import floats, integers
from learn.courses.bert import references
from learn.courses.bert.masking import (
    calls,
    differ,
    drawn,
    right_draws,
    shares_are_right,
    specials_as_numbers,
)
from learn.outline import Outline

V, T, D, H, LAYERS, TYPES, CLASSES = 13, 9, 12, 3, 2, 4, 5  # all different, so that no mix-up fits
SIZES = (V, T, D, LAYERS, H)
STREAM = ("sample", "position", "feature")
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1, 1], [1, 1, 0, 1, 0, 1, 0]])
FIRST_IS_REAL = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
CHOSEN = torch.tensor([[0, 0, 1, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1]]) == 1


def ids(*shape: int) -> Tensor:
    return integers(V, *shape)


def types(*shape: int) -> Tensor:
    return integers(TYPES, *shape, seed=1)


def streams() -> list[tuple]:
    return [(floats(3, 7, D),), (floats(3, 7, D), MASK), (floats(3, 7, D), FIRST_IS_REAL), (floats(1, 1, D),)]


def texts(mask: Tensor) -> list[tuple]:
    """Return inputs with and without padding, with and without types."""
    plain, padded = (ids(2, T),), (ids(3, 7), mask)
    return [plain, padded, (*plain, None, types(2, T)), (*padded, types(3, 7)), (ids(1, 1),)]


def real(out: Any, x: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Any:
    """Set an output to zero at padded positions, where any value is allowed."""
    if mask is None or not isinstance(out, Tensor) or out.shape[:2] != mask.shape or out.dim() != 3:
        return out
    return out.masked_fill(mask[:, :, None] == 0, 0.0)


def finite(case: Case) -> None:
    """Raise Wrong unless outputs are finite at padded positions, too. Comparisons ignore these."""
    made = ready(case, 0.0, torch.float32)
    for args in case.part.inputs():
        if not torch.isfinite(made(*cast(args, torch.float32))).all():
            raise Wrong(
                "right at tokens, but not finite at padding, where NaN would spoil every gradient: softmax of a row of "
                "minus infinity is NaN. Mask the keys, not the queries."
            )


def padding_does_not_matter(case: Case) -> None:
    """Raise Wrong if the tokens at padded positions change other positions."""
    made, (x, mask, *more) = padded_call(case)
    other = x.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)) == 1, x.flip(0, 1))
    changed = differing(case, made(x, mask, *more), made(other, mask, *more), (x, mask, *more))
    if changed is not None:
        raise Wrong(f"sample {changed} changes when only its padding does: padded keys get no weight at all.")


def company_does_not_matter(case: Case) -> None:
    """A sample by itself, without its padding at the end, is what it is in a batch."""
    made, args = padded_call(case)
    out = made(*args)
    for sample, mask in enumerate(args[1]):
        length = int(mask.nonzero().max()) + 1
        alone = tuple(a[sample : sample + 1, :length] for a in args)
        ours = out[sample : sample + 1, :length] if out.dim() == 3 else out[sample : sample + 1]
        if differing(case, made(*alone), ours, alone) is not None:
            raise Wrong(
                f"sample {sample} gives another result alone than in a batch: samples must not see each other."
            )


def looks_both_ways(case: Case) -> None:
    """Raise Wrong if the first position does not depend on the last one."""
    made, (x, *_) = padded_call(case)
    other = torch.cat([x[:, :-1], x[:, -1:].roll(1, 0)], dim=1)
    if (made(x)[:, 0] == made(other)[:, 0]).all():
        raise Wrong("position 0 does not see the last one: BERT looks both ways, without a causal mask.")


def padded_call(case: Case) -> tuple[Any, tuple]:
    """Return the student's part and arguments with a mask, and with types if it takes them."""
    masked = [args for args in case.part.inputs() if len(args) > 1 and args[1] is not None]
    return ready(case, SPREAD, torch.float64), cast(max(masked, key=len), torch.float64)


def differing(case: Case, a: Tensor, b: Tensor, args: tuple) -> int | None:
    """Return the first sample that differs at real positions, or None."""
    same = torch.isclose(case.part.counts(a, *args), case.part.counts(b, *args)).flatten(1).all(dim=1)
    return None if same.all() else int((~same).nonzero()[0])


def tied(case: Case) -> None:
    """Raise Wrong if there is a second matrix of the vocabulary's size."""
    made: Any = case.part.make(case.mine)
    for name, parameter in made.named_parameters():
        if parameter.dim() == 2 and V in parameter.shape and parameter is not made.bert.embedding.tokens:
            raise Wrong(
                f"it looks like `{name}` makes the logits; BERT computes them with bert.embedding.tokens (tied weights)."
            )


def joined(out: Any, x: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
    """Return both outputs of a model as the rows of one matrix, with zeros at padded positions."""
    if not (isinstance(out, tuple) and [type(one) for one in out] == [Tensor, Tensor]):
        raise Wrong(
            f"the result should be two tensors, (logits of tokens, logits of classes); it is {type(out).__name__}."
        )
    tokens, classes = out
    if tokens.dim() != 3 or classes.dim() != 2:
        shapes = f"{list(tokens.shape)} and {list(classes.shape)}"
        raise Wrong(
            f"the shapes are {shapes}; tokens' logits [B, T, V] come first, then those of classes [B, C]."
        )
    return torch.cat([real(tokens, x, mask).flatten(1), classes], dim=1)


def each_head(case: Case) -> None:
    """Raise Wrong if the output of one head differs, and say of which."""
    made = ready(case, SPREAD, torch.float64)
    for args in case.part.inputs():
        with torch.no_grad():
            out, right = made(*args), case.part.reference(made, *args)
        pair = joined(out, *args), joined(right, *args)
        of_tokens = difference(real(out[0], *args), real(right[0], *args), ("sample", "position", "token"))
        of_classes = difference(out[1], right[1], ("sample", "class"))
        if found := of_tokens or of_classes:
            if mistake := recognize(case, made, args, *pair):
                raise Wrong(f"it looks like {mistake}.")
            raise Wrong(f"the logits of {'tokens' if of_tokens else 'classes'}: {found}.")


def nothing_chosen(case: Case) -> None:
    logits, chosen = floats(2, 4, V).requires_grad_(), torch.zeros(2, 4, dtype=torch.bool)
    loss = case.part.make(case.mine)(logits, ids(2, 4), chosen)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise Wrong(
            f"if no position is chosen, the result is {type(loss).__name__} without a gradient: a training loop "
            "calls `backward` on it as on any other loss."
        )
    if loss != 0:
        raise Wrong(f"if no position is chosen, the loss is {float(loss):g}, expected 0.")


def large_model(name: str, theirs: Any, mine: Any, weights: Any) -> Check:
    """Return the check on pretrained weights: a model of the hub, or a folder."""
    return real_weights(
        name,
        theirs,
        mine,
        weights,
        lambda n_tokens: {
            "input_ids": integers(n_tokens, 3, 7),
            "attention_mask": FIRST_IS_REAL,
            "token_type_ids": integers(2, 3, 7),
        },
    )


def real_masked_lm(name: str) -> Check:
    return large_model(
        name,
        references.pretrained_masked_lm,
        lambda my, *sizes: my.BertForMaskedLM(*sizes),
        references.masked_lm_weights,
    )


def real_classification(name: str) -> Check:
    return large_model(
        name,
        references.pretrained_classification,
        lambda my, *sizes: my.BertForClassification(*sizes, n_classes=2),
        references.classification_weights,
    )


PADDED = (
    seeded,
    same_outputs(),
    same_outputs(SPREAD),
    finite,
    same_outputs(SPREAD, torch.float32),
    check_gradients,
    by_hand,
    padding_does_not_matter,
    company_does_not_matter,
)
BASE = "bert-base-uncased"

PARTS = {
    "gelu": Part(
        lambda my: my.gelu,
        lambda: [(floats(4, 5, spread=2.0),), (floats(3),)],
        references.gelu,
        ("row", "column"),
        (*EVERY, *FUNCTION),
    ),
    "Embedding": Part(
        lambda my: my.Embedding(V, T, D, TYPES),
        lambda: [(ids(2, 7), types(2, 7)), (ids(3, 1),), (ids(1, T),)],
        references.embedding,
        STREAM,
        (*EVERY, has(tokens=[V, D], positions=[T, D], types=[TYPES, D], norm="LayerNorm"), *MODULE),
    ),
    "SelfAttention": Part(
        lambda my: my.SelfAttention(D, H),
        streams,
        references.attention,
        STREAM,
        (
            *EVERY,
            has(n_heads=int, query=nn.Linear, key=nn.Linear, value=nn.Linear, out=nn.Linear),
            *PADDED,
            looks_both_ways,
        ),
        counts=real,
    ),
    "MLP": Part(
        lambda my: my.MLP(D),
        lambda: [(floats(2, 7, D),), (floats(1, 1, D),)],
        references.mlp,
        STREAM,
        (*EVERY, has(up=nn.Linear, down=nn.Linear), *MODULE),
    ),
    "Block": Part(
        lambda my: my.Block(D, H),
        # Small numbers too, so that eps matters.
        lambda: [*streams(), (floats(2, 7, D, spread=0.01),)],
        references.block,
        STREAM,
        (
            *EVERY,
            has(attention="SelfAttention", norm1="LayerNorm", mlp="MLP", norm2="LayerNorm"),
            *PADDED,
            looks_both_ways,
        ),
        counts=real,
    ),
    "Bert": Part(
        lambda my: my.Bert(*SIZES, n_types=TYPES),
        lambda: texts(MASK),
        references.bert,
        STREAM,
        (*EVERY, has(embedding="Embedding", blocks=nn.ModuleList), *PADDED, looks_both_ways),
        counts=real,
    ),
    "MaskedLMHead": Part(
        lambda my: my.MaskedLMHead(V, D),
        lambda: [(floats(2, 7, D), floats(V, D)), (floats(1, 1, D, spread=0.01), floats(V, D))],
        references.masked_lm_head,
        ("sample", "position", "token"),
        (*EVERY, has(dense=nn.Linear, norm="LayerNorm", bias=[V]), *MODULE),
    ),
    "BertForMaskedLM": Part(
        lambda my: my.BertForMaskedLM(*SIZES, n_types=TYPES),
        lambda: texts(MASK),
        references.bert_for_masked_lm,
        ("sample", "position", "token"),
        (*EVERY, has(bert="Bert", head="MaskedLMHead"), tied, *PADDED, looks_both_ways, real_masked_lm(BASE)),
        counts=real,
    ),
    "ClassificationHead": Part(
        lambda my: my.ClassificationHead(D, CLASSES),
        lambda: [(floats(2, 7, D),), (floats(1, 1, D),)],
        references.classification_head,
        ("sample", "class"),
        (*EVERY, has(pooler=nn.Linear, out=nn.Linear), *MODULE),
    ),
    "BertForClassification": Part(
        lambda my: my.BertForClassification(*SIZES, n_classes=CLASSES, n_types=TYPES),
        lambda: texts(FIRST_IS_REAL),
        references.bert_for_classification,
        ("sample", "class"),
        (*EVERY, has(bert="Bert", head="ClassificationHead"), *PADDED, real_classification(BASE)),
    ),
    "BertForPretraining": Part(
        lambda my: my.BertForPretraining(*SIZES, n_types=TYPES),
        lambda: texts(FIRST_IS_REAL),
        references.bert_for_pretraining,
        ("sample", "logit"),
        (
            *EVERY,
            has(bert="Bert", tokens_head="MaskedLMHead", text_head="ClassificationHead"),
            tied,
            seeded,
            each_head,
            same_outputs(),
            same_outputs(SPREAD, torch.float32),
            check_gradients,
            by_hand,
            padding_does_not_matter,
        ),
        counts=joined,
    ),
    "mask_tokens": Part(
        lambda my: my.mask_tokens,
        calls,
        checks=(*EVERY, agrees(drawn, right_draws, differ), shares_are_right, specials_as_numbers, by_hand),
    ),
    "masked_lm_loss": Part(
        lambda my: my.masked_lm_loss,
        lambda: [
            (floats(3, 7, V), ids(3, 7), CHOSEN),
            (floats(3, 7, V, spread=1000.0), ids(3, 7), ~CHOSEN),
        ],
        references.masked_lm_loss,
        (),
        (*EVERY, *FUNCTION, nothing_chosen),
    ),
}

OUTLINE = Outline("bert")
COURSE = Course(OUTLINE, PARTS, read_mistakes(OUTLINE.mistakes), uses=(("gpt2", "LayerNorm"),))
