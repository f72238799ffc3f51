"""Fold residual weights away: turn a model trained with Admin or DeepNet into a plain post-norm transformer.

Its sub-layers then compute norm(x + f(x)) in place of norm(x * omega + f(x)).
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from model.generation.sampling import eval_mode
from model.lm import LM
from model.model_params import ModelParams
from model.transformer.embeddings import Learned, Sinusoidal
from model.transformer.lora import LoRALinear
from model.transformer.residual import Residual, omegas_by_residual
from model.transformer.transformerencoderlayer import TransformerEncoderLayer

LOGIT_TOLERANCE = 1_000  # in units of eps of the largest logit


class SubLayer(NamedTuple):
    """A residual connection: norm(x * omega + f(x))."""

    residual: Residual
    readers: list[nn.Linear]  # the linear maps in f whose input is x
    norm: nn.Module


@torch.no_grad()
def fold_residual(lm: LM) -> LM:
    """Return a plain post-norm LM in evaluation mode with the same logits as `lm`, but without omega.

    With x' = x * omega, norm(x * omega + f(x)) equals norm(x' + f(x' / omega)). The preceding norm computes x' if its gain
    and bias are multiplied by omega. The maps in f divide x' by omega in the columns of their weights. No epsilon changes.

    The first omega multiplies the embeddings. A scalar omega becomes part of mup_input_mult. A vector becomes part of the
    embedding tables; they are then not tied to the unembedding, and sinusoidal positions become learned ones.

    Raise ValueError if there is no omega, if an omega is 0, or if the logits would change because of an edited layer.
    """
    check_foldable(lm)
    twin, p = copy.deepcopy(lm).double(), plain_residual(lm.model_params)
    # The norm that computes x. None: x is the sum of the embeddings.
    norm: nn.Module | None = twin.embed.norm if p.embedding_norm else None
    for sub_layer in sub_layers(twin):
        omega = cast(Tensor, sub_layer.residual.omega)
        if not omega.abs().gt(1e-6).all():
            raise ValueError("an omega is 0: weights cannot be divided by it")
        if norm is None:
            p = fold_into_embeddings(twin, omega, p)
        else:
            for parameter in norm.parameters():
                parameter.mul_(omega)
        for reader in sub_layer.readers:
            reader.weight.div_(omega)
            if isinstance(reader, LoRALinear):
                reader.lora_a.div_(omega)
        norm = sub_layer.norm
    folded = LM(p, lm.tokenizer).to(lm.unembed.weight)
    folded.load_state_dict({n: w for n, w in twin.state_dict().items() if not n.endswith(".omega")})
    tables = dict(twin.named_buffers())  # tables of positions are not part of the state dict
    for name, table in folded.named_buffers():
        table.copy_(tables[name])
    check_logits(lm, folded.eval())
    return folded


def check_foldable(lm: LM) -> None:
    """Raise ValueError if a model has no omega, or one that cannot be moved elsewhere."""
    if not omegas_by_residual(lm):
        raise ValueError(
            f"residual={lm.model_params.residual!r} has no omega to fold; 'admin' and 'deepnet' have one"
        )
    if len(lm.decoder.passes()) > len(lm.decoder.layers):
        raise ValueError(
            "a layer that runs several times in a forward pass gets its input from several norms: its omega cannot be folded"
        )
    if lm.model_params.share is not None:
        raise ValueError(
            f"share={lm.model_params.share!r}: folding would change a shared map in only one place"
        )


def plain_residual(model_params: ModelParams) -> ModelParams:
    return replace(
        model_params,
        residual="plain",
        residual_change=ModelParams.residual_change,
        residual_trainable=False,
        residual_profile=False,
    )


def sub_layers(lm: LM) -> Iterator[SubLayer]:
    for i, layer in enumerate(lm.decoder.layers):
        if not isinstance(layer, TransformerEncoderLayer):
            raise ValueError(
                f"layer {i} is a {type(layer).__name__}; only a TransformerEncoderLayer can be folded"
            )
        if layer.model_params.n_experts:
            raise ValueError(f"layer {i} has experts, whose weights folding does not rescale")
        maps = [(name, m) for name, m in layer.mixer.named_modules() if isinstance(m, nn.Linear)]
        # A map named "out", here or inside a part, does not read the stream.
        inside = [m for name, m in maps if name.rpartition(".")[2] != "out"]
        yield SubLayer(layer.residual_sa, inside, layer.norm1.after)
        if layer.model_params.ff_width:
            readers = [layer.linear1, *([] if layer.linear_up is None else [layer.linear_up])]
            yield SubLayer(layer.residual_ff, readers, layer.norm2.after)


def fold_into_embeddings(lm: LM, omega: Tensor, p: ModelParams) -> ModelParams:
    """Multiply the embeddings by omega. Return `p` with the changes that such embeddings need."""
    if omega.ndim == 0:
        return replace(p, mup_input_mult=p.mup_input_mult * omega.item())
    lm.unembed.weight = nn.Parameter(lm.unembed.weight.clone())
    if isinstance(positions := lm.embed.positions, Sinusoidal):
        p = replace(p, positions="learned")
        lm.embed.positions = Learned(p).to(omega)
        lm.embed.positions.table.weight.copy_(positions.table_TD)
    for parameter in lm.embed.parameters():
        parameter.mul_(omega)
    return replace(p, tied_embeddings=False)


def check_logits(lm: LM, folded: LM) -> None:
    """Raise ValueError if the logits differ, as an edited layer may read x in other maps than the built-in one."""
    ids = torch.arange(min(lm.n_tokens, lm.model_params.max_seq_len), device=lm.device)[None]
    with eval_mode(lm):
        expected = cast(Tensor, lm(ids))
    difference = (cast(Tensor, folded(ids)) - expected).abs().max().item()
    if difference > LOGIT_TOLERANCE * torch.finfo(expected.dtype).eps * (1 + expected.abs().max().item()):
        raise ValueError(
            f"folding would change logits by {difference:.2g}: a layer uses x outside the maps that folding rescales"
        )
