"""Tiny models and a stand-in tokenizer: model/ must work with any object of that interface."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from model.context import layer_kinds
from model.lm import LM
from model.model_params import ModelParams
from model.problems import is_refused, model_problems
from model.transformer.linear import initial_weights
from model.transformer.share import share_problems

ATTENTIVE = ["custom-transformer", "torch-transformer"]
MIXERS = ["gated-conv", "linear-attention", "deltanet", "gated-delta", "gla", "mamba2", "mlstm", "based"]
KINDS = [*ATTENTIVE, "mla", "torch-lstm", "torch-gru", *MIXERS]
BY_SHAPE = ["xavier", "kaiming", "orthogonal"]
SHARES = ["norms", "attention, ff", "k=v", "q=k, o=v.T", "o=q.T,norms", "down=up.T"]
POSITIONS = ["none", "learned", "sin", "rotary", "alibi", "hard-alibi", "t5"]
COMBINATIONS = [
    *(("custom-transformer", positions) for positions in POSITIONS),
    ("mla", "rotary"),
    *((kind, positions) for kind in KINDS[1:] for positions in ("none", "learned")),
]


class CharTokenizer:
    """Letters a to z and so on, after four special ids. The mask token is _, as there is nothing unknown."""

    pad, bos, eos, mask = 0, 1, 2, 3
    stops = (eos,)
    special_ids = MappingProxyType({"<": 2})

    def __init__(self, n_tokens: int = 30) -> None:
        self.n_tokens = n_tokens

    def __call__(self, text):
        if isinstance(text, list):
            return [self(one) for one in text]
        return [self.bos, *(4 + (ord(c) - ord("a")) % (self.n_tokens - 4) for c in text)]

    def with_gaps(self, text: str) -> list[int]:
        return [self.bos, *(self.mask if c == "_" else self(c)[1] for c in text), self.eos]

    def tokens(self, ids) -> list[str]:
        return ["<_"[int(i) == self.mask] if i < 4 else self.decode([i]) for i in ids]

    def decode(self, ids) -> str:
        return "".join(chr(ord("a") + int(i) - 4) for i in ids if i >= 4)


def tiny_params(**fields) -> ModelParams:
    return ModelParams(**({"dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 16} | fields))


def tiny_lm(*, seed: int = 0, n_tokens: int = 30, dropout: float = 0.0, dtype=torch.float64, **fields) -> LM:
    """An LM with every parameter perturbed, so that no zero or one hides a mistake; in eval mode."""
    return perturbed_lm(tiny_params(**fields), seed=seed, n_tokens=n_tokens, dropout=dropout, dtype=dtype)


def perturbed_lm(
    params: ModelParams, *, seed: int = 0, n_tokens: int = 30, dropout: float = 0.0, dtype=torch.float64
) -> LM:
    torch.manual_seed(seed)
    with default_dtype(dtype):
        lm = LM(params, CharTokenizer(n_tokens), dropout)
    # Without norms, larger weights would saturate softmaxes and gates.
    perturb(lm, 0.1 if params.norm_position == "none" else 0.3)
    return lm.eval()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, models are built in `dtype`, tables of positions included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def perturb(module: nn.Module, size: float = 0.3) -> None:
    for parameter in module.parameters():
        parameter.add_(size * torch.randn_like(parameter))


def random_ids(B: int, T: int, n_tokens: int = 30, seed: int = 0) -> Tensor:
    return torch.randint(n_tokens, (B, T), generator=torch.Generator().manual_seed(seed))


def batch_of(ids: Tensor, scored: Tensor | None = None) -> dict:
    """A batch as the data loaders make them; all but the first token scored unless said otherwise."""
    scored = torch.ones_like(ids, dtype=torch.bool) if scored is None else scored
    real = torch.ones_like(ids, dtype=torch.bool)
    return {"x_indices": ids, "mask": real, "target_mask": scored}


BIAS = st.sampled_from([None, None, False, True])
FIELDS = {  # of the architecture, but for the sizes below; what excludes each other is sorted out there
    "layer_architecture": st.sampled_from(KINDS),
    "causal": st.sampled_from([True, True, False]),
    "objective": st.sampled_from(["next-token", "next-token", "masked", "diffusion"]),
    "n_layers": st.integers(1, 3),
    "dim_ff": st.sampled_from([None, 0, 20]),
    "positions": st.sampled_from(POSITIONS),
    "rotary_base": st.sampled_from([100.0, 10_000.0]),
    "rotary_scaling": st.sampled_from([None, None, "linear, factor=2"]),
    "rotary_frac": st.sampled_from([0.5, 1.0]),
    "sliding_window": st.sampled_from([None, 2, 5]),
    "norm": st.sampled_from(["layernorm", "rmsnorm"]),
    "norm_eps": st.sampled_from([1e-6, 1e-5]),
    "norm_position": st.sampled_from(["pre", "post", "sandwich", "inside", "none"]),
    "embedding_norm": st.booleans(),
    "readout_transform": st.booleans(),
    "readout_bias": st.booleans(),
    "qk_norm": st.sampled_from([False, True, "all-heads"]),
    "norm_gain": st.sampled_from([True, True, False]),
    "attn_softcap": st.sampled_from([None, None, 2.0]),
    "attn_sink": st.sampled_from([None, None, "learned", "off-by-one"]),
    "attn_gate": st.sampled_from([None, None, "head", "element"]),
    "diff_attention": st.sampled_from([False, False, True]),
    "value_residual": st.sampled_from([False, False, True]),
    "value_embeddings": st.sampled_from([False, False, True]),
    "canon": st.sampled_from([None, None, None, "abcd", "ac", "b"]),
    "n_loops": st.sampled_from([1, 1, 1, 2]),
    "share": st.sampled_from([None, None, None, *SHARES]),
    "stream_lambdas": st.sampled_from([False, False, True]),
    "logit_softcap": st.sampled_from([None, None, 5.0]),
    "out_zero_init": st.sampled_from([False, False, True]),
    "parallel_blocks": st.sampled_from([False, False, True, "one-norm"]),
    "n_experts": st.sampled_from([0, 0, 2, 5]),
    "experts_per_token": st.sampled_from([1, 2]),
    "n_shared_experts": st.sampled_from([0, 1]),
    "router_bias": st.booleans(),
    "balance": st.sampled_from([None, "loss", "bias"]),
    "balance_rate": st.sampled_from([None, 0.1]),
    "activation": st.sampled_from(["relu", "gelu", "gelu_tanh", "silu", "relu2", "quick_gelu"]),
    "gated": st.sampled_from([False, True, "clamped"]),
    "bias": st.booleans(),
    "bias_qkv": BIAS,
    "bias_out": BIAS,
    "bias_ff": BIAS,
    "bias_norm": BIAS,
    "tied_embeddings": st.booleans(),
    "separate_heads": st.booleans(),
    "attention": st.sampled_from(["explicit", "fused"]),
    "kv_rank": st.sampled_from([None, None, 3]),
    "q_rank": st.sampled_from([None, None, 5]),
    "conv_width": st.integers(1, 5),
    "state_dim": st.sampled_from([None, None, 3]),
    "negative_eigenvalues": st.booleans(),
    "fixed_decay": st.booleans(),
    "lora_rank": st.sampled_from([0, 0, 2]),
    "init": st.sampled_from(["small", "unit", *initial_weights]),
    "residual": st.sampled_from(["admin", "deepnet", "plain", "rezero", "layerscale"]),
    "residual_change": st.sampled_from(["O(logn)", "O(1)", "O(n)"]),
    "residual_trainable": st.booleans(),
    "parametrization": st.sampled_from(["standard", "mup", "completep"]),
    "mup_input_mult": st.sampled_from([1.0, 2.0]),
    "mup_output_mult": st.sampled_from([1.0, 0.5]),
    "mup_attn_mult": st.sampled_from([1.0, 2.0]),
    "query_zero_init": st.booleans(),
    "readout_zero_init": st.booleans(),
}


MAY_DIFFER = sorted(FIELDS.keys() - ModelParams.of_whole_model)  # by layer
ACTING_IN_LAYERS = st.sampled_from(
    ["none", "rotary", "alibi", "hard-alibi", "t5"]
)  # positions that may differ by layer


@st.composite
def any_fields(draw) -> dict:
    """A value for each of FIELDS, of which up to three differ by layer."""
    fields = {name: draw(values) for name, values in FIELDS.items()}
    for name in draw(st.sets(st.sampled_from(MAY_DIFFER), max_size=3)):
        values = ACTING_IN_LAYERS if name == "positions" else FIELDS[name]
        fields[name] = tuple(draw(st.lists(values, min_size=2, max_size=3)))
    return fields


def possible_together(fields: dict) -> dict:
    """Reset fields that others exclude."""
    f = dict(fields)
    if f["norm_position"] == "post":
        f["parallel_blocks"] = False
    elif f["residual"] in ("admin", "deepnet"):
        f["residual"] = "plain"
    if f["objective"] == "next-token":
        f["causal"] = True
    if "fused" in str(f["attention"]):
        f |= {"attn_softcap": None, "attn_sink": None, "diff_attention": False}
    if not f["causal"] or "0" in str(f["dim_ff"]).replace("20", ""):
        f["canon"] = None
    if isinstance(f["activation"], tuple):
        f["readout_transform"] = False
    if f["norm_position"] == "none":
        f |= without_overflow(f)
    f["norm_gain"] |= f["norm_position"] in ("sandwich", "inside")
    f["out_zero_init"] = f["out_zero_init"] if f["residual"] not in ("deepnet", "rezero") else False
    f["value_residual"] &= not isinstance(f.get("head_dim"), tuple)
    f["readout_zero_init"] &= not f["tied_embeddings"]
    for reset in (of_parametrization, of_experts, of_blocks):
        f |= reset(f)
    return f


def without_overflow(f: dict) -> dict:
    """Fields of a model without norms, in which squares and large weights would overflow."""
    squares = "relu2" in str(f["activation"])
    return {
        "n_loops": 1,
        "init": "small" if f["init"] in BY_SHAPE else f["init"],
        "activation": "relu" if squares else f["activation"],
    }


def of_parametrization(f: dict) -> dict:
    """Fields that the parametrization, or the residual connections, exclude."""
    reset: dict = {}
    if f["parametrization"] != "standard":
        reset |= {"state_dim": None, "kv_rank": None, "q_rank": None}
    if f["parametrization"] != "standard" or f["residual"] == "deepnet":
        reset["init"] = "unit" if f["init"] == "unit" else "small"
    return reset


def of_experts(f: dict) -> dict:
    """Experts where they are possible, and what excludes them."""
    without_ff = f["dim_ff"] == 0 or (isinstance(f["dim_ff"], tuple) and 0 in f["dim_ff"])
    if f["lora_rank"] or f["residual"] == "deepnet" or without_ff:
        return {"n_experts": 0}
    return {"canon": None} if f["n_experts"] and "d" in str(f["canon"]) else {}


def of_blocks(f: dict) -> dict:
    return (
        {"parallel_blocks": False}
        if f["norm_position"] != "pre" and "one" in str(f["parallel_blocks"])
        else {}
    )


@st.composite
def architectures(draw, **fixed) -> ModelParams:
    """Any valid ModelParams of a tiny model, with every field that shapes it; `fixed` fields have these values."""
    fields = draw(any_fields()) | fixed
    n_heads, n_kv_heads = draw(st.sampled_from([(1, 1), (2, None), (2, 1), (3, None), (4, 2), (6, 3)]))
    # In a model of width 4 or 8, a norm would leave only the signs of latents of a quarter of that.
    head_dim = draw(st.sampled_from([4, 8] if n_heads > 2 else [8 if n_heads > 1 else 12]))
    if n_heads % 2 or (n_kv_heads or n_heads) % 2:
        fields["diff_attention"] = False
    fields = possible_together(fields)
    if fields["residual"] != "plain" or "torch" in str(fields["layer_architecture"]):
        fields["parametrization"] = "standard"
    if fields["parametrization"] == "standard":
        fields["head_dim"] = draw(st.sampled_from([None, None, 12, (4, 12)]))
    fields = possible_together(fields)
    if n_heads == 1 and "hard-alibi" in str(fields["positions"]):
        fields["positions"] = "alibi"
    base = {"mup_base_dim": n_heads * 2, "mup_base_layers": 1}
    params = ModelParams(
        dim=n_heads * head_dim, n_heads=n_heads, n_kv_heads=n_kv_heads, max_seq_len=16, **fields, **base
    )
    return without_refused_fields(params)


def without_refused_fields(params: ModelParams) -> ModelParams:
    """The params with the defaults of fields that layer kinds refuse, or with which activations would overflow."""
    for own in params.each_layer():
        for name, refused in getattr(layer_kinds[own.layer_architecture], "refuses", {}).items():
            if is_refused(getattr(own, name), refused):
                params = replace(params, **{name: getattr(ModelParams, name)})
    may_share = params.kinds == ("custom-transformer",) and not params.turns and params.n_layers > 1
    may_share = may_share and params.ff_width > 0
    if not may_share or any(share_problems(params)) or not params.norm_gain or params.norm_position == "none":
        params = replace(params, share=None)
    if params.norm_position == "none" and "based" in params.kinds:
        params = replace(params, norm_position="pre")  # its fourth powers of activations would overflow
    if params.norm_position == "none" and "gated-conv" in params.kinds:
        # Without norms its products of activations would overflow.
        params = replace(params, init="small")
    return replace(params, positions="learned") if any(model_problems(params)) else params
