"""From x * omega + f(x) back to x + f(x): a model trained with Admin or DeepNet as a plain post-norm transformer."""

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

LOGIT_TOLERANCE = 1_000  # in units of the last digit of the largest logit


class SubLayer(NamedTuple):
    """norm(x * omega + f(x))"""

    residual: Residual
    readers: list[nn.Linear]  # the maps in f that x goes into
    norm: nn.Module


@torch.no_grad()
def fold_residual(lm: LM) -> LM:
    """A plain post-norm LM with the logits of `lm`, in eval mode; there is no omega in it any more.

    norm(x * omega + f(x)) is norm(x' + f(x' / omega)) of x' = x * omega: the norm before makes x', by its gain and bias,
    and the maps in f divide by omega, in their columns. No epsilon changes. What the first omega multiplies are the
    embeddings: a number becomes part of mup_input_mult; a vector becomes part of the tables, which are untied for it
    and learned if they were sinusoidal.
    """
    if not omegas_by_residual(lm):
        raise ValueError(f"residual={lm.model_params.residual!r}: there is no omega to fold")
    twin, p = copy.deepcopy(lm).double(), plain_residual(lm.model_params)
    # The norm whose output x is; None: x are embeddings.
    norm: nn.Module | None = twin.embed.norm if p.embedding_norm else None
    for sub_layer in sub_layers(twin):
        omega = cast(Tensor, sub_layer.residual.omega)
        if not omega.abs().gt(1e-6).all():
            raise ValueError("an omega is 0, by which nothing can be divided")
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
    tables = dict(twin.named_buffers())  # of positions: computed, and no part of a state dict
    for name, table in folded.named_buffers():
        table.copy_(tables[name])
    check_logits(lm, folded.eval())
    return folded


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
            raise ValueError(f"layer {i} is a {type(layer).__name__}, of which it is not known what reads x")
        inside = [m for name, m in layer.mixer.named_modules() if name != "out" and isinstance(m, nn.Linear)]
        yield SubLayer(layer.residual_sa, inside, layer.norm1.after)
        if layer.model_params.ff_width:
            readers = [layer.linear1, *([] if layer.linear_up is None else [layer.linear_up])]
            yield SubLayer(layer.residual_ff, readers, layer.norm2.after)


def fold_into_embeddings(lm: LM, omega: Tensor, p: ModelParams) -> ModelParams:
    """Multiplies them by omega; gives the params of a model that has such embeddings."""
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
    """ValueError if they differ: an edited layer may read x where nobody knows of it."""
    ids = torch.arange(min(lm.n_tokens, lm.model_params.max_seq_len), device=lm.device)[None]
    with eval_mode(lm):
        expected = cast(Tensor, lm(ids))
    difference = (cast(Tensor, folded(ids)) - expected).abs().max().item()
    if difference > LOGIT_TOLERANCE * torch.finfo(expected.dtype).eps * (1 + expected.abs().max().item()):
        raise ValueError(
            f"logits would change by {difference:.2g}: a layer reads x in a way that is not known here"
        )
