"""Copy the weights of HuggingFace's language models into our LM, and back.

Our LM has no table of token types. The first row of BERT's table, which a single text uses throughout, is added to
the positions. This is exact for a single text. BERT's pooler and next-sentence head are not copied: a masked
language model does not use them.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from common.text import first_line
from model.generation.sampling import eval_mode
from model.hf.configs import config_settings, families, params_from_config
from model.hf.families import Family
from model.inputs import Tokenizer
from model.lm import LM
from model.model_params import ModelParams
from model.transformer.embeddings import POSITION_TABLE
from model.transformer.lora import merge_lora
from model.transformer.scaling import Readout
from model.transformer.transformerencoderlayer import TransformerEncoderLayer

if TYPE_CHECKING:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

T = TypeVar("T")
MAX_PADDING = 0.01  # share of vocabulary rows that may lack a token, if their number is not round
# Positions at which logits are compared: more than a sliding window, up to a limit.
MIN_COMPARED, MAX_COMPARED = 64, 512
HARMLESS = re.compile(  # tensors that our layers compute or that no language model uses
    r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias|position_ids|pooler\..*|cls\.seq_relationship\..*)$"
)


def pretrained_params(
    name: str, revision: str | None = None, hub_answers: Callable[[], bool] = lambda: True
) -> ModelParams:
    """Return ModelParams with the architecture and the tokenizer name of a HuggingFace model.

    Only its config is read. The arguments are those of `load_hf`. Raise ValueError if the config cannot be loaded.
    """
    from transformers import AutoConfig

    config = load_local_or_hub(AutoConfig.from_pretrained, name, revision, hub_answers)
    source = name if revision is None else f"{name}@{revision}"
    return replace(params_from_config(config), tokenizer_source_name=source)


def load_hf(
    name: str, revision: str | None = None, hub_answers: Callable[[], bool] = lambda: True
) -> PreTrainedModel:
    """Load a model in float32 from a folder, from the local cache of earlier downloads, or from the hub.

    `revision` is a branch, tag or commit. `hub_answers` is called before any request to the hub: offline, the hub's
    client would wait half a minute. Raise ValueError if the model cannot be loaded or its weights do not match
    its config.
    """
    from transformers import AutoConfig

    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    config = load_local_or_hub(AutoConfig.from_pretrained, name, revision, hub_answers)
    params_from_config(config)  # refuse an architecture before its weights are read
    if (Path(name) / "adapter_config.json").is_file():
        raise ValueError(
            f"pretrained model {name!r} has an adapter beside its weights: merge and save it first"
        )
    load: Callable[..., Any] = auto_class(config.model_type).from_pretrained
    hf_model, info = load_local_or_hub(load, name, revision, hub_answers, **options)
    if missing := sorted(info["missing_keys"]):  # transformers would leave them random
        raise ValueError(f"pretrained model {name!r} has no weights for {missing[0]}")
    if extra := sorted(key for key in info["unexpected_keys"] if not HARMLESS.search(key)):
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise ValueError(
            f"pretrained model {name!r} has {extra[0]}{more} in its files, which the {config.model_type} of its config "
            "does not have: merge adapters, or correct config.json if it describes another model"
        )
    return hf_model


def auto_class(model_type: str) -> type[AutoModelForCausalLM] | type[AutoModelForMaskedLM]:
    """Return the transformers class that builds a language model of this type."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    family = families.get(model_type)
    return AutoModelForMaskedLM if family and family.masked else AutoModelForCausalLM


def load_local_or_hub(
    load: Callable[..., T],
    name: str,
    revision: str | None,
    hub_answers: Callable[[], bool],
    **options: object,
) -> T:
    """Call `load` on local files, and on the hub if they are missing. Raise ValueError if both fail."""
    options |= {"revision": revision or "main", "trust_remote_code": False}
    try:
        try:
            return load(name, local_files_only=True, **options)
        except OSError:
            if Path(name).is_dir() or not hub_answers():
                raise
        return load(name, **options)
    except Exception as error:  # files from elsewhere can make a library raise anything
        where = repr(name) if revision is None else f"{name!r} at revision={revision!r}"
        raise ValueError(
            f"pretrained model {where} cannot be loaded ({first_line(error).rstrip('.')}): it must be a folder with config.json and "
            "model.safetensors, or a model of the hub with safetensors, which needs a network the first time"
        ) from None


def from_hf(
    hf_model: PreTrainedModel, tokenizer: Tokenizer | None = None, *, check_logits: bool = True
) -> LM:
    """Return an LM in eval mode with the weights and precision of a causal or masked transformers model.

    Without a tokenizer the LM takes ids only. Samples end with the tokenizer's eos and with every end token of the
    model's config and generation config. Raise ValueError if our layers cannot represent the model, or if logits differ
    on random ids. Pass check_logits=False to load weights into layers of ours that you have edited.
    """
    params = architecture_of(hf_model)
    if hf_model.config.name_or_path:
        params = replace(params, tokenizer_source_name=hf_model.config.name_or_path)
    tokenizer = with_stops(tokenizer or IdsOnly(hf_model.config), end_tokens(hf_model))
    lm = LM(params, tokenizer).to(hf_model.device, hf_model.dtype)
    lm.name = hf_model.config.name_or_path or ""
    copy_weights(hf_model, lm)
    if check_logits and (difference := logit_difference(hf_model, lm)) is not None:
        raise ValueError(
            f"logits of this {type(hf_model).__name__} and of an LM with its weights differ by {difference:.2g}: "
            "the model does not do what its config says, or a layer of ours was edited; if so, pass check_logits=False"
        )
    return lm.eval()


def architecture_of(hf_model: PreTrainedModel) -> ModelParams:
    """Return the architecture of a model.

    Tied embeddings and muP factors are read from its modules, everything else from its config.
    """
    params = params_from_config(hf_model.config)
    readout, embedding = hf_model.get_output_embeddings(), hf_model.get_input_embeddings()
    if not isinstance(readout, nn.Linear):
        return params
    is_same = readout.weight is embedding.weight
    is_equal = params.tied_embeddings and torch.equal(readout.weight, embedding.get_parameter("weight"))
    params = replace(params, tied_embeddings=is_same or is_equal)
    if isinstance(readout, Readout) and readout.mult != 1:
        params = replace(params, mup_output_mult=readout.mult)
    scalings = {
        own["scaling"] for own in map(vars, hf_model.modules()) if isinstance(own.get("scaling"), float)
    }
    if len(scalings) == 1:
        attn_mult = scalings.pop() * math.sqrt(params.head_width)
        if not math.isclose(attn_mult, params.mup_attn_mult) and attn_mult > 0:
            params = replace(params, mup_attn_mult=attn_mult)
    return params


def copy_weights(hf_model: PreTrainedModel, lm: LM) -> None:
    """Copy all weights of a language model of transformers into an LM. Raise ValueError for a weight that does not fit.

    Only the first rows of the tables of tokens and learned positions are copied, as many as the LM has. Every parameter
    that the model's config describes is written. Others, such as those of inserted layers, keep their values. Logits
    are not compared, so an LM may compute something else: see `logit_difference`.
    """
    check_fit(hf_model, lm)
    found = list(weight_pairs(hf_model, lm))
    check_written(hf_model, lm, found)
    for pair in found:
        pair.ours[pair.rows] = pair.theirs.to(pair.ours) + pair.offset
    if (types := token_types(hf_model)) is not None:
        positions = lm.get_parameter(POSITION_TABLE).detach()
        positions += types[0].to(positions)


def check_written(hf_model: PreTrainedModel, lm: LM, found: Sequence[WeightPair]) -> None:
    """Raise ValueError for a parameter that would keep its random values, or get two different weights."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        described = LM(architecture_of(hf_model), IdsOnly(hf_model.config))
    layers, written = layer_indices(lm), {pair.name for pair in found}
    names = dict(lm.named_parameters(remove_duplicate=False))
    for name, _ in described.named_parameters():
        name = re.sub(r"(?<=^decoder\.layers\.)\d+", lambda number: str(layers[int(number[0])]), name)
        if name in names and name not in written:
            raise ValueError(
                f"this {type(hf_model).__name__} has no weights for {name}, which its config describes"
            )
    values: dict[tuple[int, str], WeightPair] = {}
    for pair in found:
        first = values.setdefault((pair.ours.data_ptr(), str(pair.rows)), pair)
        if not torch.equal(first.theirs, pair.theirs):
            raise ValueError(
                f"{pair.name} would get two different weights of this {type(hf_model).__name__}: "
                f"its own and that of {first.name}, with which it is tied"
            )


def token_types(hf_model: PreTrainedModel) -> Tensor | None:
    """Return the model's table of token types, or None if its family has none."""
    name = families[hf_model.config.model_type].token_types
    return hf_model.get_parameter(f"{name}.weight").detach() if name else None


def check_fit(hf_model: PreTrainedModel, lm: LM) -> None:
    """Raise ValueError if model and LM differ in a setting that the shapes of weights do not show."""
    theirs, ours = architecture_of(hf_model), lm.model_params
    for what, of_lm, of_weights in (
        ("n_heads", ours.n_heads, theirs.n_heads),
        ("n_kv_heads", ours.kv_heads, theirs.kv_heads),
    ):
        if of_lm != of_weights:
            raise ValueError(f"the LM has {what}={of_lm}, but the weights are for {what}={of_weights}")
    if ours.tied_embeddings and not theirs.tied_embeddings:
        raise ValueError(
            "tied_embeddings=True, but the weights have a separate readout; use tied_embeddings=False"
        )
    if ours.tokenizer_crop:
        raise ValueError(
            "tokenizer_crop=True renumbers the tokens, but the weights are for the original ids; use tokenizer_crop=False"
        )
    vocabulary = hf_model.config.vocab_size
    if not 0 <= vocabulary - lm.n_tokens <= max_padding(vocabulary):
        raise ValueError(
            f"the tokenizer has {lm.n_tokens} tokens, but the weights are for {vocabulary}: take the model's own tokenizer, "
            "or none: gpt2.from_hf(model)"
        )


def max_padding(vocabulary: int) -> int:
    """Return how many of `vocabulary` rows may lack a token: sizes are rounded up to multiples of a power of two."""
    power_of_two = vocabulary & -vocabulary
    return max(power_of_two - 1, int(vocabulary * MAX_PADDING))


def layer_indices(lm: LM) -> list[int]:
    """Return the indices of our transformer layers, which get the weights. Other modules may stand between them."""
    return [i for i, layer in enumerate(lm.decoder.layers) if isinstance(layer, TransformerEncoderLayer)]


def by_head(p: ModelParams) -> Tensor:
    """Return row indices of our qkv ordered by head of keys: its queries, its key and its value, then the next one's."""
    parts = torch.arange((p.n_heads + 2 * p.kv_heads) * p.head_width).split(
        [n * p.head_width for n in (p.n_heads, p.kv_heads, p.kv_heads)]
    )
    return torch.cat([part.view(p.kv_heads, -1) for part in parts], dim=1).flatten()


def queries(p: ModelParams) -> slice:
    return slice(0, p.n_heads * p.head_width)


def keys(p: ModelParams) -> slice:
    return slice(p.n_heads * p.head_width, (p.n_heads + p.kv_heads) * p.head_width)


def values(p: ModelParams) -> slice:
    return slice((p.n_heads + p.kv_heads) * p.head_width, None)


# The rows of our qkv that a module of theirs holds. Our rows are the queries of all heads, then keys, then values.
ROWS_OF_QKV: dict[str, Callable[[ModelParams], Any]] = {
    "q_proj": queries,
    "k_proj": keys,
    "v_proj": values,
    "query": queries,
    "key": keys,
    "value": values,
    "query_key_value": by_head,
}


def parts_of(kind: str, theirs: Tensor, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Yield the parts of a parameter with our names for them, as views. Only experts have several parts in one.

    `kind` is its name within its module.
    """
    name, suffix = kind.removesuffix("_bias"), "bias" if kind.endswith("_bias") else "weight"
    if name not in ("gate_up_proj", "down_proj"):
        yield ("sink_H" if kind == "sinks" else kind), theirs
        return
    if family.interleaved_experts and suffix == "weight":
        theirs = theirs.mT
    if name == "down_proj":
        yield f"linear2.{suffix}", theirs
        return
    gate, up = (theirs[:, ::2], theirs[:, 1::2]) if family.interleaved_experts else theirs.chunk(2, dim=1)
    yield f"linear1.{suffix}", gate
    yield f"linear_up.{suffix}", up


def halves_from_neighbors(p: ModelParams, rows: slice) -> Tensor:
    """Return the rows of our queries or keys in the order of a model that rotates dimensions 2i and 2i + 1 together."""
    n = p.n_rotated // 2
    own_K = torch.arange(p.head_width)
    own_K[: 2 * n] = torch.stack([own_K[:n], own_K[n : 2 * n]], dim=1).flatten()
    return (torch.arange(rows.start, rows.stop, p.head_width)[:, None] + own_K).flatten()


class WeightPair(NamedTuple):
    """A weight of a transformers model and its place in our LM."""

    name: str  # of ours
    theirs: Tensor
    ours: Tensor
    rows: Any  # index into `ours`: the rows of `theirs`, in their order
    offset: float  # ours less theirs


def weight_pairs(hf_model: PreTrainedModel, lm: LM) -> Iterator[WeightPair]:
    """Yield every weight of the transformers model with its place. Raise ValueError for a weight without one."""
    family, n_layers = families[hf_model.config.model_type], hf_model.config.num_hidden_layers
    layers = layer_indices(lm)
    if len(layers) != n_layers:
        raise ValueError(f"the LM has {len(layers)} transformer layers, but the weights are for {n_layers}")
    parameters = dict(lm.named_parameters(remove_duplicate=False))
    for their_name, parameter in hf_model.named_parameters(remove_duplicate=False):
        module, _, kind = their_name.rpartition(".")
        if module in (family.token_types, family.unused):
            continue
        for own_kind, theirs in parts_of(kind, parameter.detach(), family):
            names = [f"{name}.{own_kind}" for name in our_modules(module, family.names, layers)]
            name = next((name for name in names if name in parameters), names[0])
            if name not in parameters:
                raise ValueError(
                    f"{their_name} of {type(hf_model).__name__} has no place in this LM: it has no {name}"
                )
            yield weight_pair(their_name, theirs, name, parameters[name].detach(), family, lm.model_params)


def weight_pair(
    their_name: str, theirs: Tensor, name: str, ours: Tensor, family: Family, p: ModelParams
) -> WeightPair:
    """Return a weight with its place. Raise ValueError if it does not fit."""
    module, _, kind = their_name.rpartition(".")
    theirs = theirs[family.first_position :] if name == POSITION_TABLE else theirs
    if not name.startswith("decoder.layers."):
        theirs = theirs[: len(ours)]
    elif family.conv1d and theirs.dim() == 2:
        theirs = theirs.T
    rows_of = ROWS_OF_QKV.get(module.rpartition(".")[2])
    rows: Any = rows_of(p) if rows_of else ...
    if name.endswith("bias") and ours.numel() == theirs.numel():
        ours = ours.view(theirs.shape)  # the biases of all experts are one vector of ours
    if family.rotates_neighbors and rows_of in (queries, keys):
        rows = halves_from_neighbors(p, rows)
    if ours[rows].shape != theirs.shape:
        raise ValueError(
            f"{their_name} of {tuple(theirs.shape)} does not fit {name} of {tuple(ours[rows].shape)}"
        )
    is_gain = kind == "weight" and "norm" in name
    return WeightPair(name, theirs, ours, rows, family.gain_offset if is_gain else 0.0)


def our_modules(
    theirs: str, names: Mapping[str, str | tuple[str, ...]], layers: Sequence[int]
) -> Sequence[str]:
    """Return our possible names for one of their modules, or their name if we have none.

    `layers` are our `layer_indices`.
    """
    layer = re.search(r"\.(\d+)\.", theirs)
    if layer is None:
        ours = names.get(theirs, theirs)
        return (ours,) if isinstance(ours, str) else ours
    ours = names.get(theirs.replace(layer[0], ".*."), theirs)
    several = (ours,) if isinstance(ours, str) else ours
    return [one.replace("*", str(layers[int(layer[1])])) for one in several]


@torch.no_grad()
def as_hf(lm: LM) -> PreTrainedModel:
    """Return a transformers model that computes the same as `lm`. Raise ValueError if no family can."""
    from transformers import AutoConfig

    settings: dict[str, Any] = config_settings(lm.model_params) | {"vocab_size": lm.n_tokens}
    first, *others = lm.tokenizer.stops or [None]
    eos = [first, *others] if others else first
    config = AutoConfig.for_model(**settings, bos_token_id=lm.tokenizer.bos, eos_token_id=eos)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, but overwritten
        lm = merge_lora(lm) if lm.model_params.lora_rank else lm
        hf_model = auto_class(config.model_type).from_config(config, dtype=lm.unembed.weight.dtype).eval()
    left = dict(lm.named_parameters())
    for pair in list(weight_pairs(hf_model, lm)):
        pair.theirs.copy_(pair.ours[pair.rows] - pair.offset)
        left.pop(pair.name, None)
    if (types := token_types(hf_model)) is not None:
        types.zero_()
    if left:
        raise ValueError(
            f"{config.model_type} of transformers has no place for {next(iter(left))} of this LM"
        )
    if (difference := logit_difference(hf_model, lm)) is not None:
        raise ValueError(
            f"logits of this LM and of {config.model_type} with its weights differ by {difference:.2g}: "
            "transformers has no equivalent for an edit of the layers, so this LM cannot be exported"
        )
    return hf_model


@torch.no_grad()
def logit_difference(hf_model: PreTrainedModel, lm: LM) -> float | None:
    """Return the largest difference of logits on random ids, or None if it is only rounding.

    Rows of their vocabulary without a token do not count.
    """
    p, generator = lm.model_params, torch.Generator().manual_seed(0)
    window = max(window or 0 for window in p.values_of("sliding_window"))
    n = min(p.max_seq_len, max(MIN_COMPARED, min(window + 8, MAX_COMPARED)))
    ids = torch.randint(lm.n_tokens, (2, n), generator=generator)
    if (pad := hf_model.config.pad_token_id) is not None:  # RoBERTa computes positions from pad tokens
        ids = torch.where(ids == pad, (pad + 1) % lm.n_tokens, ids)
    with eval_mode(lm), eval_mode(hf_model):
        ours = lm(ids).cpu()
        theirs = hf_model(ids.to(hf_model.device)).logits[..., : lm.n_tokens].cpu()
    eps = torch.finfo(ours.dtype).eps
    tolerance = max(1e-3, 10 * eps) * float(ours.abs().max())
    differences = (theirs.double() - ours.double()).abs().flatten(0, 1).amax(dim=1)
    # In half precision, rounding may lead some tokens to other experts.
    may_reroute = eps > 1e-6 and any(p.values_of("n_experts"))
    difference = float(differences.median() if may_reroute else differences.max())
    return None if difference <= tolerance else difference


def end_tokens(hf_model: PreTrainedModel) -> list[int]:
    """Return every id that ends a text generated by a transformers model. A config has none, one or a list."""
    configs = (hf_model.config, getattr(hf_model, "generation_config", None))
    given = [getattr(config, "eos_token_id", None) for config in configs]
    return [i for ids in given for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]


def with_stops(tokenizer: Tokenizer, ids: Sequence[int]) -> Tokenizer:
    """Return the tokenizer with `ids` added to its stop tokens. Ids outside the vocabulary are dropped."""
    new = [i for i in ids if 0 <= i < tokenizer.n_tokens]
    if set(new) <= set(tokenizer.stops):
        return tokenizer
    tokenizer = copy.copy(tokenizer)
    tokenizer.stops = tuple(dict.fromkeys([*tokenizer.stops, *new]))
    return tokenizer


class IdsOnly:
    """Stand-in for a missing tokenizer: every id is its own text."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.n_tokens = config.vocab_size
        eos = config.eos_token_id
        self.bos: int | None = config.bos_token_id
        self.eos: int | None = eos[0] if isinstance(eos, list) else eos
        self.stops: tuple[int, ...] = () if self.eos is None else (self.eos,)
        self.pad = 0
        self.mask: int | None = None
        self.special_ids: dict[str, int] = {}

    def __call__(self, text: str, *, parse_special: bool = False) -> list[int]:
        raise ValueError(
            "this model has no tokenizer, so it takes ids only; pass a tokenizer: gpt2.from_hf(hf_model, tokenizer)"
        )

    def with_gaps(self, text: str) -> list[int]:
        return self(text)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.tokens(ids))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(int(i)) for i in ids]
