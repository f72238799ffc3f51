"""Analysis of the parts of a model: logit lens, direct logit attribution, activation patching, ablation.

All functions run the model in evaluation mode.

Shape suffixes:  B batch  T position  D model dim  H head  K dim of a head  V vocabulary  P part of the residual stream
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from explore.inspection.patterns import visible, visible_tokens
from model.generation.sampling import eval_mode
from model.inputs import Input, ids_of
from model.lm import LM
from model.perplexity import NOT_SCORED
from model.recording import Reached, Recording, StopAt, at, tapping
from model.transformer.attention import Attention
from model.transformer.transformerencoderlayer import TransformerEncoderLayer

Samples = Sequence[str] | Sequence[Sequence[int]] | DataLoader  # the input types of LM.perplexities
STREAM_ACTIVATIONS = ("embed", "resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")


@contextmanager
def eval_no_grad(lm: LM) -> Iterator[None]:
    """Put `lm` into evaluation mode and disable gradients inside the `with` block."""
    with torch.no_grad(), eval_mode(lm):
        yield


def run_until(lm: LM, sample: Input, name: str) -> Tensor:
    """Run a model up to one activation and return it. Nothing after it is computed.

    "layers.3.resid_pre" stops before layer 3. Recordings and patches around the call apply. The model runs in evaluation
    mode, and gradients flow if they are enabled. Raise ValueError for an unknown name.
    """
    with eval_mode(lm), tapping(lm, lm.taps, StopAt([name])):
        try:
            lm(sample)
        except Reached as reached:
            return reached.x
    raise AssertionError("tapping raises if no activation has the name")


def logit_lens(lm: LM, sample: Input) -> Tensor:
    """Return logits [B, n_layers, T, V] read from the residual stream after each layer (nostalgebraist 2020).

    Each layer's stream is patched in place of the last layer's, so the model's own final norm and unembedding compute
    the logits. The logits of the last layer equal the model's. The call takes n_layers + 1 forward passes.
    """
    ids_BT = ids_of(sample, lm.tokenizer, lm.device)
    end = f"layers.{lm.decoder.passes()[-1][0]}.resid_post"
    logits = []
    with eval_no_grad(lm):
        with lm.record("resid_post") as seen:
            lm(ids_BT)
        for stream_BTD in seen.values():
            with lm.patch({end: stream_BTD}):
                logits.append(lm(ids_BT))
    return torch.stack(logits, dim=1)


def direct_logit_attribution(
    lm: LM, sample: Input, position: int = -1, token: int | None = None
) -> pd.Series:
    """Return the contribution of each part to the logit of `token` at one position of one sequence.

    The contributions sum to the logit. `token` is an id; None takes the most likely one. The parts are "embed",
    "layers.0.head_out.3" for each head, "layers.0.attn_bias" (attention less its heads: biases), "layers.0.mlp_out", and
    "final_norm" (the bias of the final norm). A layer that records no such parts is one part, "layers.0": its change
    of the residual stream. Norms are linearized with the scale of the full stream (Elhage et al. 2021). To explain the
    difference of two logits, subtract their attributions.

    Raise ValueError for a batch, for a model whose logits are not a sum of parts, and for an unknown token or position.
    """
    if lm.model_params.norm_position == "post":
        raise ValueError(
            "norm_position='post' rescales the residual stream after every addition, so the logits are not a sum of "
            "parts; attribution supports norm_position='pre', 'sandwich' and 'none'"
        )
    if lm.model_params.readout_transform:
        raise ValueError(
            "readout_transform=True is not linear, so the logits are not a sum of parts; attribution needs False"
        )
    ids_BT = ids_of(sample, lm.tokenizer, lm.device)
    B, T = ids_BT.shape
    if B != 1 or not -T <= position < T:
        raise ValueError(
            f"position={position}: the input has shape {[B, T]}; give one sequence and a position from {-T} to {T - 1}"
        )
    with eval_no_grad(lm):
        names = [name for name in lm.activation_names() if name.endswith(STREAM_ACTIVATIONS)]
        with lm.record(*names) as seen:
            logits_V = lm(ids_BT)[0, position]
        parts = parts_of_stream(lm, seen, position)
        contributions_PV = logit_contributions(lm, torch.stack(list(parts.values())))
    check_sum(contributions_PV, logits_V)
    token = int(logits_V.argmax()) if token is None else token
    if token not in range(lm.n_tokens):
        raise ValueError(f"token={token!r}: token ids go from 0 to {lm.n_tokens - 1}")
    name = lm.tokenizer.tokens([token])[0]
    series = pd.Series(contributions_PV[:, token].tolist(), [*parts, "final_norm"], name=name)
    series.attrs["title"] = f"contributions to the logit of {visible(name)}"
    return series


def parts_of_stream(lm: LM, seen: Recording, position: int) -> dict[str, Tensor]:
    """Return the parts of the residual stream at a position, [D] each. Their sum is the stream after the last layer."""
    parts = {"embed": seen["embed"][0, position]}
    for i, layer in lm.decoder.passes():
        prefix = f"layers.{i}."
        x = {name.removeprefix(prefix): seen[name][0] for name in seen if name.startswith(prefix)}
        if "attn_out" not in x:
            parts[f"layers.{i}"] = (x["resid_post"] - x["resid_pre"])[position]
            continue
        attn_D = x["attn_out"][position]
        if "head_out" in x:
            heads_HD = x["head_out"][:, position]
            added_HD = heads_to_stream(layer, heads_HD)(heads_HD)
            parts |= {f"{prefix}head_out.{h}": head_D for h, head_D in enumerate(added_HD)}
            parts[f"{prefix}attn_bias"] = attn_D - added_HD.sum(dim=0)
        else:
            parts[f"{prefix}attn_out"] = attn_D
        if "mlp_out" in x:
            parts[f"{prefix}mlp_out"] = x["mlp_out"][position]
    return parts


def heads_to_stream(layer: nn.Module, heads_HD: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the linear map from the outputs of heads to the residual stream.

    It consists of the inner norm of norm_position="sandwich" and the residual factor of muP and CompleteP.
    """
    if not (isinstance(layer, TransformerEncoderLayer) and isinstance(layer.mixer, Attention)):
        return nn.Identity()
    bias_D = layer.mixer.out.bias
    sum_D = heads_HD.sum(dim=0)
    inside = freeze_norm_scale(layer.norm1.inside, sum_D if bias_D is None else sum_D + bias_D)
    return lambda part_D: layer.residual_sa.branch(inside(part_D))  # muP


def freeze_norm_scale(norm: nn.Module, x_D: Tensor) -> Callable[[Tensor], Tensor]:
    """Return `norm` as a linear map without its bias, with its scale fixed to that for `x_D`."""
    if isinstance(norm, nn.Identity):
        return norm
    if isinstance(norm, nn.LayerNorm):
        scale_D = gain_of(norm) / (x_D.var(correction=0) + norm.eps).sqrt()
        return lambda part_D: (part_D - part_D.mean(dim=-1, keepdim=True)) * scale_D
    if isinstance(norm, nn.RMSNorm):
        scale_D = gain_of(norm) / (x_D.square().mean() + (norm.eps or torch.finfo(x_D.dtype).eps)).sqrt()
        return lambda part_D: part_D * scale_D
    raise ValueError(f"attribution can linearize layernorm and rmsnorm, not {type(norm).__name__}")


def gain_of(norm: nn.LayerNorm | nn.RMSNorm) -> Tensor | float:
    return norm.weight if norm.elementwise_affine else 1.0


def logit_contributions(lm: LM, parts_PD: Tensor) -> Tensor:
    """Return the contribution of each part to the logits, and that of the biases last: [P + 1, V]."""
    stream_D = parts_PD.sum(dim=0)
    scaled_PD = freeze_norm_scale(lm.decoder.norm, stream_D)(parts_PD)
    bias_D = lm.decoder.norm(stream_D) - scaled_PD.sum(dim=0)
    bias_V = lm.unembed(torch.zeros_like(stream_D))  # 0, unless an edit gave the unembedding a bias
    return torch.cat([lm.unembed(scaled_PD) - bias_V, lm.unembed(bias_D)[None]])


def check_sum(contributions_PV: Tensor, logits_V: Tensor) -> None:
    """Raise ValueError unless the contributions sum to the logits, within sqrt(eps) of the dtype."""
    tolerance = torch.finfo(logits_V.dtype).eps ** 0.5
    if (contributions_PV.sum(dim=0) - logits_V).abs().max() > tolerance * logits_V.abs().max():
        raise ValueError(
            "the parts do not add up to the logits: a layer or the unembedding is not linear in the parts, or "
            f"{logits_V.dtype} is too coarse"
        )


class ActivationPlace(NamedTuple):
    """An activation to patch, of a layer or of one of its heads."""

    name: str
    head: int | None

    @property
    def layer(self) -> int:
        return int(self.name.split(".")[1])


def activation_places(seen: Recording) -> list[ActivationPlace]:
    """Return every recorded activation, split into heads if it has a head dimension."""
    heads = {name: range(x.shape[1]) if x.dim() == 4 else [None] for name, x in seen.items()}
    return [ActivationPlace(name, head) for name in seen for head in heads[name]]


def index_of(found: Sequence[ActivationPlace]) -> pd.Index:
    """Return the index of a table with a row for each place: the layer, or (layer, head)."""
    if all(place.head is None for place in found):
        return pd.Index([place.layer for place in found], name="layer")
    return pd.MultiIndex.from_tuples([(place.layer, place.head) for place in found], names=["layer", "head"])


def activation_patching(
    lm: LM,
    clean: Input,
    corrupted: Input,
    metric: Callable[[Tensor], float | Tensor],
    name: str = "resid_pre",
) -> pd.DataFrame:
    """Patch clean activations into the corrupted run, one place at a time, and tabulate `metric` (Vig et al. 2020).

    `metric` maps logits [B, T, V] to a number. `name` is the activation to patch. The table has a row for each layer
    and a column for each position. For an activation with heads ("z", "head_out", "pattern" ...), it has a row for each
    (layer, head). Every cell takes a forward pass. Its attrs hold the "tokens" and, as "center", the metric of the
    corrupted run without a patch. Raise ValueError if the two inputs differ in shape.
    """
    clean_BT, corrupted_BT = (ids_of(x, lm.tokenizer, lm.device) for x in (clean, corrupted))
    if clean_BT.shape != corrupted_BT.shape:
        raise ValueError(
            f"clean and corrupted input differ in shape: {tuple(clean_BT.shape)} and {tuple(corrupted_BT.shape)} ids"
        )

    def patched(place: ActivationPlace, position: int) -> float:
        with lm.patch({place.name: at(seen[place.name], heads=place.head, positions=position)}):
            return float(metric(lm(corrupted_BT)))

    with eval_no_grad(lm):
        with lm.record(f"layers.*.{name}") as seen:
            lm(clean_BT)
        positions = pd.RangeIndex(clean_BT.shape[1], name="position")
        found = activation_places(seen)
        rows = [[patched(place, position) for position in positions] for place in found]
        center = float(metric(lm(corrupted_BT)))
    table = pd.DataFrame(rows, index_of(found), positions)
    if len(clean_BT) == 1:
        texts = [visible_tokens(lm, ids_BT[0]) for ids_BT in (clean_BT, corrupted_BT)]
        table.attrs["tokens"] = [a if a == b else f"{a}/{b}" for a, b in zip(*texts, strict=True)]
    table.attrs["center"] = center
    return table


def ablate(lm: LM, samples: Samples, name: str = "z", by: Literal["zero", "mean"] = "zero") -> pd.Series:
    """Return how much the mean loss rises, in nats per token, if one head or layer is ablated, for each in turn.

    `name` is the activation to replace: "z" for heads, or "attn_out" or "mlp_out" for layers. `by` is the replacement:
    "zero", or the activation's "mean" over all scored positions. `samples` may have any type that lm.perplexities
    takes. The Series has an entry for each layer, or each (layer, head). Raise ValueError for another `by`.
    """
    if by not in ("zero", "mean"):
        raise ValueError(f"by={by!r} must be 'zero' or 'mean'")

    def loss() -> float:
        return lm.perplexities(samples, before_exp=True).mean

    with lm.record(f"layers.*.{name}") as seen:
        full_loss = loss()
    found = activation_places(seen)
    values = mean_activations(lm, samples, f"layers.*.{name}") if by == "mean" else dict.fromkeys(seen, 0.0)
    rises = []
    for place in found:
        with lm.patch({place.name: at(values[place.name], heads=place.head)}):
            rises.append(loss() - full_loss)
    return pd.Series(rises, index_of(found), name=f"{by} {name}")


def mean_activations(lm: LM, samples: Samples, pattern: str) -> dict[str, Tensor]:
    """Return the mean of each activation over all scored positions: [1, D], or [H, 1, K] with heads."""
    sums: dict[str, Tensor] = {}
    n = 0
    with eval_no_grad(lm):
        for batch in batches_of(lm, samples):
            with lm.record(pattern) as seen:
                scored_BT = lm.get_batch_xyz(batch).y != NOT_SCORED
            n += int(scored_BT.sum())
            for name, x in seen.items():
                added = x.movedim(-2, 1)[scored_BT].sum(dim=0).unsqueeze(-2)
                sums[name] = sums[name] + added if name in sums else added
    return {name: total / n for name, total in sums.items()}


def batches_of(lm: LM, samples: Samples) -> Iterator[dict]:
    """Return an iterator over the batches of a DataLoader, or over batches of texts or lists of ids."""
    return iter(samples) if isinstance(samples, DataLoader) else lm.batches_of(samples)
