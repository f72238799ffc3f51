"""Names tell shapes: every local of model/ named like x_BTD is a tensor of that rank, with one size to a letter."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import model
from model.context import Cache
from model.generation.sampling import generate, next_token_probs
from model.lm import LM
from model.transformer.attention import Attention
from model.transformer.transformerencoderlayer import TransformerEncoderLayer
from tests.model.tiny import (
    ATTENTIVE,
    COMBINATIONS,
    KINDS,
    MIXERS,
    CharTokenizer,
    batch_of,
    random_ids,
    tiny_params,
)

FOLDER = str(Path(model.__file__).parent)
SHAPED = re.compile(r"_([A-Z]+)$")
FIXED = {"D": 24, "H": 3, "K": 8, "L": 9, "V": 31, "F": 40}  # the sizes that belong to the model below
# Letters with other sizes in some functions: the features of `based` are keys to `mix`.
OPEN: dict[str, dict[str, int | None]] = {"based": {"K": None}}
# With rotary positions, its keys are wider than its values, which `Attention.attend` calls by one letter.
NOT_TOLD = ("mla", "rotary")


class Watch:
    """Inside, checks the locals of every function of model/ as it returns; complaints are in `lies`."""

    def __init__(self, *places: str, **sizes: int | None) -> None:
        self.places = places or (FOLDER,)
        self.sizes = {letter: size for letter, size in (FIXED | sizes).items() if size is not None}
        self.seen: set[str] = set()
        self.lies: list[str] = []

    def __enter__(self) -> "Watch":
        sys.setprofile(self.on_event)
        return self

    def __exit__(self, *_) -> None:
        sys.setprofile(None)

    def on_event(self, frame, event, argument) -> None:
        if event == "return" and frame.f_code.co_filename.startswith(self.places):
            sizes = dict(self.sizes)
            for name, value in frame.f_locals.items():
                if (shaped := SHAPED.search(name)) and isinstance(value, Tensor):
                    self.check(f"{frame.f_code.co_qualname}: {name}", shaped[1], value, sizes)

    def check(self, where: str, letters: str, value: Tensor, sizes: dict[str, int]) -> None:
        self.seen.add(where)
        shape = tuple(value.shape)
        if len(letters) != len(shape):
            self.lies.append(f"{where} has shape {shape}")
            return
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                self.lies.append(f"{where} has shape {shape}, but {letter} is {sizes[letter]}")


def use_a_model(**fields) -> None:
    """Everything that computes, once."""
    sizes = {"dim": 24, "n_heads": 3, "dim_ff": 40}
    lm = LM(tiny_params(**(sizes | fields)), CharTokenizer(31)).eval()
    lm("hello", get_embeddings=True, get_attns=any(kind in ATTENTIVE for kind in lm.model_params.kinds))
    with lm.record():
        lm("hello")
    cache = Cache(16)
    for T in (3, 4, 9):
        lm(random_ids(2, T), cache=cache)
    lm.get_losses(batch_of(random_ids(5, 8)), None)[0]["main"].backward()
    lm.perplexities(["hello", "hi"], per_token=True)
    for settings in ({}, {"top_k": 3}, {"nucleus": 0.5}, {"temperature": 0}):
        generate(lm, [[1, 2], [1]], 3, **settings)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        *(
            ({"layer_architecture": kind, "positions": positions}, OPEN.get(kind, {}))
            for kind, positions in COMBINATIONS
            if (kind, positions) != NOT_TOLD
        ),
        ({"layer_architecture": tuple(KINDS), "n_layers": len(KINDS)}, OPEN["based"]),
        ({"positions": "rotary"}, {"A": 4}),
        ({"positions": "rotary", "rotary_frac": 0.5}, {"A": 2}),
        ({"n_kv_heads": 1}, {"G": 1}),
        ({"n_kv_heads": 1, "separate_heads": True}, {"G": 1}),
        ({"separate_heads": True, "qk_norm": True}, {"G": 3}),
        ({"attention": "fused"}, {}),
        ({"attention": "fused", "sliding_window": 3, "positions": "alibi"}, {}),
        ({"norm_position": "post"}, {}),
        ({"norm_position": "sandwich", "norm": "rmsnorm", "bias": False}, {}),
        ({"norm_position": "none", "dim_ff": 0}, {}),
        ({"parallel_blocks": True, "gated": True}, {}),
        ({"canon": "abcd", "value_embeddings": True}, {}),
        ({"n_experts": 5, "n_shared_experts": 2, "gated": True}, {"E": 5}),
        ({"n_experts": 5, "experts_per_token": 1, "balance": "bias"}, {"E": 5}),
        ({"qk_norm": "all-heads", "norm_position": "inside", "n_kv_heads": 1}, {"G": 1}),
    ],
    ids=str,
)
def test_names_tell_shapes(fields, sizes):
    with Watch(**sizes) as watch:
        use_a_model(**fields)
    assert watch.lies == []
    assert len(watch.seen) > 20


def test_the_shape_watch_covers_attention_and_layers():
    with Watch() as watch:
        use_a_model(positions="rotary")
        use_a_model(layer_architecture=tuple(MIXERS), n_layers=len(MIXERS))
    for where in (
        "Attention.attend: scores_BHTS",
        "Attention.attend: pattern_BHTS",
        "Attention.forward: q_BHTK",
        "Rotary.forward: a_BHTA",
        "TransformerEncoderLayer._ff_block: x_BTF",
        "keep_nucleus: before_BV",
        "Transformer.forward: x_BTD",
        "Attention.out_of_heads: heads_BHTD",
        "CausalConv.forward: x_BSC",
        "LinearAttention.forward: z1_BHTL",
        "delta_rule: overlap_BHNCC",
        "HeadDecay.__init__: between_AGNCC",
        "ChannelDecay.__init__: log_decay_BHTK",
        "add_values: added_BHNKM",
    ):
        assert where in watch.seen


def z_transposed_too_early(self, q_BHTK, k_BHSK, v_BHSK, ctx):
    z_BTHK = (q_BHTK @ k_BHSK.mT).softmax(dim=-1) @ v_BHSK
    return self.dropout(z_BTHK)


def k_without_heads(self, q_BHTK, k_BSK, v_BHSK, ctx):
    return v_BHSK


def hidden_of_the_wrong_width(self, x_BTD, ctx):
    x_BTF = self.linear2(self.linear1(x_BTD))
    return self.dropout_ff(x_BTF)


def heads_of_the_wrong_size(self, q_BHTD, k_BHSK, v_BHSK, ctx):
    return q_BHTD


@pytest.mark.parametrize(
    ("owner", "method", "lie"),
    [
        (Attention, "attend", z_transposed_too_early),
        (Attention, "attend", k_without_heads),
        (Attention, "attend", heads_of_the_wrong_size),
        (TransformerEncoderLayer, "_ff_block", hidden_of_the_wrong_width),
    ],
)
def test_a_wrong_shape_suffix_is_detected(owner, method, lie, monkeypatch):
    monkeypatch.setattr(owner, method, lie)
    with Watch(FOLDER, __file__) as watch, torch.no_grad():
        LM(tiny_params(dim=24, n_heads=3, dim_ff=40), CharTokenizer(31))("hello")
    assert watch.lies
    assert all(lie.__name__ in complaint for complaint in watch.lies)


def test_only_returning_functions_of_the_model_are_watched():
    with Watch() as watch:
        x_BTD = torch.zeros(2)
        next_token_probs(torch.zeros(2, 31))
    assert x_BTD.dim() == 1
    assert watch.lies == []
    assert "next_token_probs: logits_BV" in watch.seen
