"""What the parts of a model do: logit lens, attribution to heads, activation patching, ablation. In evaluation mode.

Shape suffixes:  B batch  T position  D model dim  H head  K dim of a head  V vocabulary  P part of the stream
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from model.inputs import Input, ids_of
from model.lm import LM
from model.perplexity import NOT_SCORED
from model.recording import Recording, at
from model.sampling import eval_mode
from model.transformer.attention import Attention
from model.transformer.transformerencoderlayer import TransformerEncoderLayer

Samples = Sequence[str] | Sequence[Sequence[int]] | DataLoader  # what LM.perplexities takes
OF_THE_STREAM = ("embed", "resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")


@contextmanager
def looking(lm: LM) -> Iterator[None]:
    """Evaluation mode, without gradients."""
    with torch.no_grad(), eval_mode(lm):
        yield


def logit_lens(lm: LM, sample: Input) -> Tensor:
    """[B, n_layers, T, V]: the logits if each layer were the last (nostalgebraist 2020); those of the last are the model's.

    The stream after each layer is put behind the last one, in a forward pass of its own: it is read out as the model does
    it, whatever was edited there.
    """
    ids_BT = ids_of(sample, lm.tokenizer, lm.device)
    end = f"layers.{lm.decoder.passes()[-1][0]}.resid_post"
    logits = []
    with looking(lm):
        with lm.record("resid_post") as seen:
            lm(ids_BT)
        for stream_BTD in seen.values():
            with lm.patch({end: stream_BTD}):
                logits.append(lm(ids_BT))
    return torch.stack(logits, dim=1)


def direct_logit_attribution(
    lm: LM, sample: Input, position: int = -1, token: int | None = None
) -> pd.Series:
    """What each part adds to the logit of `token` (None: the likeliest) at a position of one sequence. The sum is the logit.

    Parts are "embed"; "layers.0.head_out.3" for each head, "layers.0.attn_bias" (what attention adds beside its heads),
    "layers.0.mlp_out"; "layers.0" for a layer without such parts, which counts for what it changes; and "final_norm", the
    bias there. Norms keep the scale that they have for the whole stream (Elhage et al. 2021). The difference of two
    attributions is that of two tokens.
    """
    if lm.model_params.norm_position == "post":
        raise ValueError(
            "norm_position='post' rescales the whole stream after every addition: the logits are no sum of what was added"
        )
    if lm.model_params.readout_transform:
        raise ValueError("readout_transform=True: the logits are no sum of what was added to the stream")
    ids_BT = ids_of(sample, lm.tokenizer, lm.device)
    B, T = ids_BT.shape
    if B != 1 or not -T <= position < T:
        raise ValueError(
            f"position={position} of an input of {B} x {T} tokens: one sequence is taken, and a place in it"
        )
    with looking(lm):
        names = [name for name in lm.activation_names() if name.endswith(OF_THE_STREAM)]
        with lm.record(*names) as seen:
            logits_V = lm(ids_BT)[0, position]
        parts = parts_of_stream(lm, seen, position)
        read_PV = read_out(lm, torch.stack(list(parts.values())))
    check_sum(read_PV, logits_V)
    token = int(logits_V.argmax()) if token is None else token
    if token not in range(lm.n_tokens):
        raise ValueError(f"token={token!r}: there are ids from 0 to {lm.n_tokens - 1}")
    return pd.Series(read_PV[:, token].tolist(), [*parts, "final_norm"], name=lm.tokenizer.tokens([token])[0])


def parts_of_stream(lm: LM, seen: Recording, position: int) -> dict[str, Tensor]:
    """All that was added to the stream at a position, [D] each: their sum is the stream after the last layer."""
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
            added_HD = held_inside(layer, heads_HD)(heads_HD)
            parts |= {f"{prefix}head_out.{h}": head_D for h, head_D in enumerate(added_HD)}
            parts[f"{prefix}attn_bias"] = attn_D - added_HD.sum(dim=0)
        else:
            parts[f"{prefix}attn_out"] = attn_D
        if "mlp_out" in x:
            parts[f"{prefix}mlp_out"] = x["mlp_out"][position]
    return parts


def held_inside(layer: nn.Module, heads_HD: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm that a layer of norm_position='sandwich' has between its heads and the stream, and CompleteP's factor."""
    if not (isinstance(layer, TransformerEncoderLayer) and isinstance(layer.mixer, Attention)):
        return nn.Identity()
    bias_D = layer.mixer.out.bias
    sum_D = heads_HD.sum(dim=0)
    inside = held(layer.norm1.inside, sum_D if bias_D is None else sum_D + bias_D)
    return lambda part_D: layer.residual_sa.branch(inside(part_D))  # muP


def held(norm: nn.Module, x_D: Tensor) -> Callable[[Tensor], Tensor]:
    """The linear map that `norm` is, bias left out, while its scale is held where `x_D` has it."""
    if isinstance(norm, nn.Identity):
        return norm
    if isinstance(norm, nn.LayerNorm):
        scale_D = norm.weight / (x_D.var(correction=0) + norm.eps).sqrt()
        return lambda part_D: (part_D - part_D.mean(dim=-1, keepdim=True)) * scale_D
    if isinstance(norm, nn.RMSNorm):
        scale_D = norm.weight / (x_D.square().mean() + (norm.eps or torch.finfo(x_D.dtype).eps)).sqrt()
        return lambda part_D: part_D * scale_D
    raise ValueError(
        f"attribution holds the scale of layernorm or rmsnorm, and knows none of {type(norm).__name__}"
    )


def read_out(lm: LM, parts_PD: Tensor) -> Tensor:
    """[P + 1, V]: what each part of the stream adds to the logits, and last what is added without any."""
    stream_D = parts_PD.sum(dim=0)
    scaled_PD = held(lm.decoder.norm, stream_D)(parts_PD)
    bias_D = lm.decoder.norm(stream_D) - scaled_PD.sum(dim=0)
    bias_V = lm.unembed(torch.zeros_like(stream_D))  # an edit may have given it one
    return torch.cat([lm.unembed(scaled_PD) - bias_V, lm.unembed(bias_D)[None]])


def check_sum(read_PV: Tensor, logits_V: Tensor) -> None:
    """ValueError if the parts do not add up to the logits, to half of the digits."""
    tolerance = torch.finfo(logits_V.dtype).eps ** 0.5
    if (read_PV.sum(dim=0) - logits_V).abs().max() > tolerance * logits_V.abs().max():
        raise ValueError(
            "the parts do not add up to the logits: a layer or the readout does more than to add and to map, or "
            f"{logits_V.dtype} is too coarse"
        )


class Place(NamedTuple):
    """An activation of a layer, or one head of it."""

    name: str
    head: int | None

    @property
    def layer(self) -> int:
        return int(self.name.split(".")[1])


def places(seen: Recording) -> list[Place]:
    """What was recorded, by heads where it has them."""
    heads = {name: range(x.shape[1]) if x.dim() == 4 else [None] for name, x in seen.items()}
    return [Place(name, head) for name in seen for head in heads[name]]


def index_of(found: Sequence[Place]) -> pd.Index:
    """Layers, or layers and heads, as the rows of a table."""
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
    """`metric` of the corrupted run's logits [B, T, V], with one place at a time as it is in the clean run (Vig et al. 2020).

    A row for each layer, or each head of it if the activation has heads ("z", "head_out", "pattern" ...), a column for
    each position. The two inputs are of one shape. It takes a forward pass for each cell of the table.
    """
    clean_BT, corrupted_BT = (ids_of(x, lm.tokenizer, lm.device) for x in (clean, corrupted))
    if clean_BT.shape != corrupted_BT.shape:
        raise ValueError(
            f"clean and corrupted input differ in shape: {tuple(clean_BT.shape)} and {tuple(corrupted_BT.shape)}"
        )

    def patched(place: Place, position: int) -> float:
        with lm.patch({place.name: at(seen[place.name], heads=place.head, positions=position)}):
            return float(metric(lm(corrupted_BT)))

    with looking(lm):
        with lm.record(f"layers.*.{name}") as seen:
            lm(clean_BT)
        positions = pd.RangeIndex(clean_BT.shape[1], name="position")
        found = places(seen)
        rows = [[patched(place, position) for position in positions] for place in found]
    return pd.DataFrame(rows, index_of(found), positions)


def ablate(lm: LM, samples: Samples, name: str = "z", by: Literal["zero", "mean"] = "zero") -> pd.Series:
    """How much the mean loss of `samples` rises without each head ("z"), or without each layer's "attn_out", "mlp_out" ...

    by: what stands in its place, "zero" or the "mean" over all scored positions. The samples are those of lm.perplexities.
    """
    if by not in ("zero", "mean"):
        raise ValueError(f"by={by!r} must be 'zero' or 'mean'")

    def loss() -> float:
        return lm.perplexities(samples, before_exp=True).mean

    with lm.record(f"layers.*.{name}") as seen:
        whole = loss()
    found = places(seen)
    instead = mean_activations(lm, samples, f"layers.*.{name}") if by == "mean" else dict.fromkeys(seen, 0.0)
    rises = []
    for place in found:
        with lm.patch({place.name: at(instead[place.name], heads=place.head)}):
            rises.append(loss() - whole)
    return pd.Series(rises, index_of(found), name=f"{by} {name}")


def mean_activations(lm: LM, samples: Samples, pattern: str) -> dict[str, Tensor]:
    """Means over all scored positions, [1, D] each, or [H, 1, K] of what has heads."""
    sums: dict[str, Tensor] = {}
    n = 0
    with looking(lm):
        for batch in batches_of(lm, samples):
            with lm.record(pattern) as seen:
                scored_BT = lm.get_batch_xyz(batch).y != NOT_SCORED
            n += int(scored_BT.sum())
            for name, x in seen.items():
                added = x.movedim(-2, 1)[scored_BT].sum(dim=0).unsqueeze(-2)
                sums[name] = sums[name] + added if name in sums else added
    return {name: total / n for name, total in sums.items()}


def batches_of(lm: LM, samples: Samples) -> Iterator[dict]:
    """Batches of a DataLoader, or of strings or lists of ids."""
    return iter(samples) if isinstance(samples, DataLoader) else lm.batches_of(samples)
