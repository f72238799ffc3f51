"""Generation with a cache: the logits are those without one, and where they would not be it is noticed and done without."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from model.context import Cache, Context, Layer, Uncacheable
from model.generation import decoding
from model.generation.decoding import NoNextToken, logits_agree
from model.generation.sampling import generate
from model.lm import LM
from tests.model.tiny import (
    COMBINATIONS,
    KINDS,
    CharTokenizer,
    architectures,
    perturb,
    perturbed_lm,
    random_ids,
    tiny_lm,
    tiny_params,
)

HYBRID = {"layer_architecture": tuple(KINDS), "n_layers": len(KINDS)}
PROMPTS = [[1], [1, 4, 5, 6, 7, 8], [1, 9, 10], [1] + [11] * 15, [1, 3]]


class Lengths(nn.Module):
    """Stands before the layers and notes how many positions come through at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x_BTD: Tensor) -> Tensor:
        self.seen.append(x_BTD.shape[1])
        return x_BTD


def in_chunks(lm: LM, ids: Tensor, chunks: list[int]) -> Tensor:
    cache, parts = Cache(ids.shape[1]), []
    for end in torch.tensor(chunks).cumsum(0).tolist():
        parts.append(lm(ids[:, :end], cache=cache))
    return torch.cat(parts, dim=1)


@st.composite
def chunked(draw) -> list[int]:
    """Lengths of chunks, 16 positions together at most, most of them one."""
    length = draw(st.integers(2, 16))
    chunks = []
    while sum(chunks) < length:
        chunks.append(min(draw(st.sampled_from([1, 1, 1, 2, 3, 5, 9])), length - sum(chunks)))
    return chunks


@pytest.mark.slow
@pytest.mark.ci
@settings(max_examples=120, deadline=None, derandomize=True)
@given(architectures(causal=True), chunked(), st.integers(1, 3))
def test_logits_with_a_cache_are_those_without(params, chunks, batch_size):
    """In float64: some of the models drawn amplify a rounding error of float32 a thousand times."""
    lm = perturbed_lm(params)
    ids = random_ids(batch_size, sum(chunks))
    with torch.no_grad():
        plain = lm(ids)
        size = float(plain.abs().max().clamp(min=1))
        assert_close(in_chunks(lm, ids, chunks), plain, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "fields",
    [
        *({"layer_architecture": kind, "positions": positions} for kind, positions in COMBINATIONS),
        {"n_kv_heads": 1},
        {"sliding_window": 3},
        {"qk_norm": True, "positions": "rotary", "rotary_frac": 0.5},
        {"parallel_blocks": True},
        {"attention": "fused"},
        {"attention": "fused", "sliding_window": 3, "positions": "alibi"},
        HYBRID,
    ],
    ids=str,
)
def test_logits_one_by_one_are_those_of_all_at_once(fields, dtype):
    """By name what the test above draws at random; the chunks here are those of generation."""
    lm = tiny_lm(dtype=dtype, **fields)
    ids = random_ids(3, 14)
    with torch.no_grad():
        plain = lm(ids)
        atol = 1e-4 * float(plain.abs().max()) if dtype == torch.float32 else 1e-12
        assert_close(in_chunks(lm, ids, [4, *[1] * 10]), plain, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_cache_are_taken_in_any_order(kind):
    lm = tiny_lm(layer_architecture=kind)
    ids, rows, cache = random_ids(4, 9), torch.tensor([3, 0, 0]), Cache(9)
    lm(ids[:, :6], cache=cache)
    cache.take(rows)
    assert_close(lm(ids[rows], cache=cache), lm(ids[rows])[:, 6:])


@pytest.mark.parametrize(
    "fields", [*({"layer_architecture": kind} for kind in KINDS), {"attention": "fused"}, HYBRID], ids=str
)
def test_prompts_of_unequal_length_are_continued_as_if_alone(fields):
    lm = tiny_lm(seed=2, **fields)
    expected = [generate(lm, [prompt], 12, temperature=0, use_cache=False)[0] for prompt in PROMPTS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(lm, PROMPTS, 12, temperature=0) == expected
    assert generate(lm, PROMPTS, 12, temperature=0, use_cache=False) == expected
    assert len(set(map(len, expected))) > 2


def test_with_a_cache_each_token_goes_through_the_layers_once():
    lm = tiny_lm()
    lengths = Lengths()
    lm.decoder.layers.insert(0, lengths)
    generate(lm, [[1, 4, 5]], 6, temperature=0)
    assert lengths.seen[-6:] == [3, 1, 1, 1, 1, 1]
    lengths.seen.clear()
    generate(lm, [[1, 4, 5]], 6, temperature=0)
    assert lengths.seen == [3, 1, 1, 1, 1, 1]  # the model is compared once
    lengths.seen.clear()
    generate(lm, [[1, 4, 5]], 6, temperature=0, use_cache=False)
    assert lengths.seen == [3, 4, 5, 6, 7, 8]


IN_PIECES = [
    *({"layer_architecture": kind} for kind in KINDS),
    {"positions": "rotary", "sliding_window": 5, "n_kv_heads": 1},
    {"positions": "alibi", "canon": "abcd", "attn_sink": "learned"},
    {"positions": "t5", "n_loops": 2, "value_residual": True},
    {"attention": "fused", "value_embeddings": True},
    {"n_experts": 4, "diff_attention": True},
]


@pytest.mark.parametrize("fields", IN_PIECES, ids=str)
def test_a_long_prompt_in_pieces_is_continued_as_without_a_cache(fields, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIECE", 4)
    lm, lengths, prompts = tiny_lm(seed=2, **fields), [], random_ids(2, 10).tolist()
    lm.embed.register_forward_hook(lambda module, inputs, x: lengths.append(x.shape[1]))
    expected = lm.sample(prompts, 13, as_str=False, temperature=0, use_cache=False, return_logprobs=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lm.sample(prompts, 13, as_str=False, temperature=0, return_logprobs=True)
    for (ids, logprobs), (expected_ids, expected_logprobs) in zip(found, expected, strict=True):
        assert ids == expected_ids
        assert_close(logprobs, expected_logprobs, rtol=0, atol=1e-10)
    n_steps = max(map(len, (logprobs for _, logprobs in found))) - 1
    first = [10] if fields.get("layer_architecture") == "torch-transformer" else [3, 3, 4]
    assert lengths[-len(first) - n_steps :] == first + [1] * n_steps


@pytest.mark.parametrize("n_rows", [1, 3])
def test_pieces_of_a_prompt_get_no_logits(n_rows, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIECE", 4)
    lm, lengths, prompts = tiny_lm(dtype=torch.float32), [], random_ids(n_rows, 10).tolist()
    lm.unembed.forward = lambda x, forward=lm.unembed.forward: lengths.append(x.shape[1]) or forward(x)
    generate(lm, prompts, 1)
    lengths.clear()
    generate(lm, prompts, 1)
    assert lengths == [0, 0, 1]
    del lm.unembed.forward
    assert generate(lm, prompts, 3, temperature=0) == generate(lm, prompts, 3, temperature=0, use_cache=False)


def test_a_prompt_of_one_piece_passes_at_once():
    lm, lengths, prompt = tiny_lm(max_seq_len=300), Lengths(), random_ids(1, decoding.MAX_PIECE).tolist()
    lm.decoder.layers.insert(0, lengths)
    generate(lm, prompt, 1, temperature=0)
    assert lengths.seen[-1] == decoding.MAX_PIECE
    generate(lm, [[*prompt[0], 4]], 1, temperature=0)
    assert sum(lengths.seen[-2:]) == decoding.MAX_PIECE + 1
    lengths.seen.clear()
    generate(lm, [[*prompt[0], 4]], 1, temperature=0, use_cache=False)
    assert lengths.seen == [decoding.MAX_PIECE + 1]


def test_rows_that_are_done_leave_the_batch():
    lm = tiny_lm()
    sizes = []
    lm.embed.register_forward_hook(lambda module, inputs, x: sizes.append(tuple(x.shape[:2])))
    stops = generate(lm, [[1, 4]] * 3, 12, generator=torch.Generator().manual_seed(1))
    sizes.clear()
    lm.sample([[1, 4, 5], [1, 4]], 4, temperature=0)
    assert sizes == [(2, 2), (2, 1)]
    sizes.clear()
    generate(lm, [[1, 4, 5], [1, 4]], 1, temperature=0)
    assert sizes == [(2, 2), (1, 1)]
    assert len(stops) == 3


def test_the_unembedding_computes_the_logits_of_the_last_position_alone():
    lm, lengths = tiny_lm(), []
    expected = lm.sample("abcde", 12, temperature=0, use_cache=False)
    lm.sample("abcde", 12)  # compares the model with and without a cache
    lm.unembed.register_forward_hook(lambda module, inputs, z: lengths.append(z.shape[1]))
    lm.sample("abcde", 12)  # compares it again, as it has a hook now
    lengths.clear()
    assert lm.sample("abcde", 12, temperature=0) == expected
    assert set(lengths) == {1}
    with lm.record("logits") as seen:
        lm.sample("abcde", 7, temperature=0)
    assert seen["logits"].shape[1] == 7  # recording gets them all


def test_an_unembedding_that_reads_other_positions_gets_them_all():
    lm = tiny_lm()
    lm.unembed.register_forward_pre_hook(lambda module, args: (args[0] - args[0].mean(dim=1, keepdim=True),))
    with pytest.warns(UserWarning, match="without a cache"):
        sample = lm.sample("abcde", 12, temperature=0)
    assert sample == lm.sample("abcde", 12, temperature=0, use_cache=False)


LAYOUTS = [
    {},
    {"n_heads": 4, "n_kv_heads": 1},
    {"n_heads": 4, "n_kv_heads": 2, "separate_heads": True},
    {"sliding_window": 3},
    {"attention": "fused", "n_heads": 4, "n_kv_heads": 2},
]


@pytest.mark.parametrize("fields", LAYOUTS, ids=str)
def test_the_memory_of_the_cache_is_two_numbers_per_key_dimension_token_and_layer(fields):
    """Keys and values of `n_kv_heads` heads: no copy per query head, none from growing, none of a larger batch."""
    lm, length, n_rows = tiny_lm(dtype=torch.float32, **fields), 12, 4
    p, ids = lm.model_params, random_ids(n_rows, length)
    cache = Cache(length)

    def n_bytes() -> int:
        storages = {kept.untyped_storage().data_ptr(): kept.untyped_storage() for kept in cache.kept.values()}
        return sum(storage.nbytes() for storage in storages.values())

    a_row = 2 * p.n_layers * p.kv_heads * p.head_width * length * 4
    with torch.no_grad():
        lm(ids[:, :5], cache=cache)
        assert n_bytes() == n_rows * a_row
        addresses = [kept.data_ptr() for kept in cache.kept.values()]
        for end in range(6, length + 1):
            lm(ids[:, :end], cache=cache)
        assert [kept.data_ptr() for kept in cache.kept.values()] == addresses  # it has not grown by copying
        cache.take(torch.tensor([2]))
        assert n_bytes() == a_row


class Noticing(Layer):
    """Adds something that all ids so far have a part in."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        so_far_BT = ctx.ids_BT.cumsum(dim=1) % 7
        assert so_far_BT.shape[1] == ctx.start + x_BTD.shape[1]
        return x_BTD + so_far_BT[:, ctx.start :, None] * torch.linspace(0, 1, x_BTD.shape[2]).to(x_BTD)


class ShiftedBack(nn.Module):
    """Each position gets the one before it: looks at the past, and keeps nothing of it."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + x_BTD.roll(1, dims=1)


class FarBack(nn.Module):
    """Each position gets the ninth before it."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + nn.functional.pad(x_BTD, (0, 0, 9, 0))[:, :-9]


class Convolution(nn.Module):
    """torch's own, over positions."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv1d(16, 16, 3, dtype=torch.float64)

    def forward(self, x_BTD: Tensor) -> Tensor:
        padded_BTD = nn.functional.pad(x_BTD, (0, 0, self.padding, 0))
        return x_BTD[:, self.padding - 2 :] + self.conv(padded_BTD.mT).mT


class WholeSample(nn.Module):
    """Positions see the mean of all, later ones as well."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD - x_BTD.mean(dim=1, keepdim=True)


class WholeBatch(Layer):
    """The largest id in the batch, wherever it stands, is felt everywhere."""

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD + ctx.ids_BT.max() * torch.linspace(0, 1, x_BTD.shape[2]).to(x_BTD)


class OffInPieces(nn.Module):
    """A few positions at once get another output than one alone, and than many."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.flip(-1) if x_BTD.shape[1] in (2, 3, 4) else x_BTD


class Gated(nn.Module):
    """Layer without effect before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.gate * x_BTD.roll(1, dims=1)


class Uncachable(nn.Module):
    """Takes no sample of one position."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        if x_BTD.shape[1] < 2:
            raise RuntimeError("too short")
        return x_BTD


def lm_with(layer: nn.Module, **fields) -> LM:
    lm = tiny_lm(seed=2, **fields)
    lm.decoder.layers.insert(1, layer)
    return lm


def test_a_layer_sees_all_ids_so_far_also_with_a_cache():
    lm = lm_with(Noticing())
    expected = generate(lm, PROMPTS, 12, temperature=0, use_cache=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(lm, PROMPTS, 12, temperature=0) == expected
    assert expected != generate(tiny_lm(seed=2), PROMPTS, 12, temperature=0)


@pytest.mark.parametrize("positions", ["none", "learned"])
@pytest.mark.parametrize("layer", [ShiftedBack(), Convolution(2), WholeSample(), WholeBatch()], ids=str)
def test_layers_that_do_not_work_with_a_cache_are_detected(layer, positions):
    lm = lm_with(layer, positions=positions)
    prompts = [[1, 4, 5], [1, 7, 8], [1, 9, 9]]
    expected = generate(lm, prompts, 12, temperature=0, use_cache=False)
    with pytest.warns(
        UserWarning, match="without a cache, which takes longer: with a cache the logits differ"
    ):
        assert generate(lm, prompts, 12, temperature=0) == expected
    with warnings.catch_warnings():  # and said once
        warnings.simplefilter("error")
        assert generate(lm, prompts, 12, temperature=0) == expected
        assert lm.sample([1, 4], 9, as_str=False, temperature=0) == lm.sample(
            [1, 4], 9, as_str=False, temperature=0, use_cache=False
        )


def test_a_repetitive_prompt_does_not_hide_a_wrong_cache():
    lm = lm_with(ShiftedBack(), positions="none")
    with pytest.warns(UserWarning, match="logits differ"):
        generate(lm, [[1]], 3, temperature=0)


def test_a_layer_that_looks_far_back_is_detected():
    lm = lm_with(FarBack())
    prompt = [[1, 4]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(lm, prompt, 5, temperature=0)
    with pytest.warns(UserWarning, match="logits differ"):
        row = generate(lm, prompt, 13, temperature=0)
    assert row == generate(lm, prompt, 13, temperature=0, use_cache=False)


def test_a_layer_that_does_not_take_pieces_is_detected(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIECE", 4)
    lm, prompts = lm_with(OffInPieces()), random_ids(2, 10).tolist()
    with pytest.warns(UserWarning, match="logits differ"):
        rows = generate(lm, prompts, 3, temperature=0)
    assert rows == generate(lm, prompts, 3, temperature=0, use_cache=False)


def test_a_layer_that_fails_with_one_position_is_detected():
    lm = lm_with(Uncachable())
    with pytest.warns(UserWarning, match=r"with a cache a layer raises RuntimeError\('too short'\)"):
        row = generate(lm, [[1, 4, 5]], 9, temperature=0)
    assert row == generate(lm, [[1, 4, 5]], 9, temperature=0, use_cache=False)
    with pytest.raises(RuntimeError, match="too short"):  # without a cache too
        generate(lm, [[1]], 9)


def test_an_edit_of_the_layers_is_compared_anew():
    lm = tiny_lm(seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(lm, [[1, 4, 5]], 9, temperature=0)
    lm.decoder.layers[0] = ShiftedBack()
    with pytest.warns(UserWarning, match="logits differ"):
        assert generate(lm, [[1, 4, 5]], 9, temperature=0) == generate(
            lm, [[1, 4, 5]], 9, temperature=0, use_cache=False
        )
    del lm.decoder.layers[0]
    generate(lm, [[1, 4, 5]], 9, temperature=0)
    assert lm.cache_check.reason is None


def test_a_gate_that_training_opens_is_compared_anew():
    lm = lm_with(Gated())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(lm, [[1, 4, 5]], 9, temperature=0)
    lm(random_ids(2, 9)).square().sum().backward()
    torch.optim.SGD(lm.parameters(), lr=0.1).step()
    with pytest.warns(UserWarning, match="logits differ"):
        assert generate(lm, [[1, 4, 5]], 9, temperature=0) == generate(
            lm, [[1, 4, 5]], 9, temperature=0, use_cache=False
        )


class Requesting(LM):
    """README's fourth edit, or one that sets attn_requests only now and then."""

    always = True

    def forward(self, x, *args, attn_requests=None, **kwargs):
        attn_requests = True if (x == 10).any() else False if self.always else None
        return super().forward(x, *args, attn_requests=attn_requests, **kwargs)


@pytest.mark.parametrize("always", [True, False])
def test_attn_requests_are_answered_without_a_cache(always, monkeypatch):
    monkeypatch.setattr(Requesting, "always", always)
    torch.manual_seed(2)
    lm = Requesting(tiny_params(), CharTokenizer(12)).eval()
    perturb(lm)
    attention = lm.decoder.layers[0].mixer
    plain = attention.attend
    attention.attend = lambda q, k, v, ctx: plain(3 * q if ctx.attn_requests else q, k, v, ctx)
    prompts = [[1, 4 + i, 5] for i in range(6)]
    generator = torch.Generator()
    expected = generate(lm, prompts, 12, generator=generator.manual_seed(0), use_cache=False)
    assert any(10 in row[3:] for row in expected)
    assert not any(10 in row[:3] for row in expected) or always
    with pytest.warns(UserWarning, match="without a cache, which takes longer: attn_requests is set"):
        assert generate(lm, prompts, 12, generator=generator.manual_seed(0)) == expected


def test_attn_requests_of_the_caller_reach_every_layer():
    lm = tiny_lm(seed=2)
    asked = []
    for layer in lm.decoder.layers:
        layer.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[1].attn_requests))
    with pytest.warns(UserWarning, match="attn_requests is set"):
        lm.sample("ab", 9, attn_requests="look", temperature=0)
    assert set(asked) == {"look"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.sample("ab", 9, attn_requests="look")
        asked.clear()
        lm.sample("ab", 9)
        assert set(asked) == {None}
        lm.sample("ab", 9, attn_requests="look", use_cache=False)
    with pytest.raises(Uncacheable):
        lm("ab", attn_requests="look", cache=Cache(9))


def test_patches_and_recordings_hold_while_generating():
    lm = tiny_lm(seed=2)
    shift = {"layers.0.resid_post": lambda x: x + x.roll(1, dims=1)}
    with lm.patch(shift):
        patched = generate(lm, PROMPTS, 9, temperature=0)
        assert patched == generate(lm, PROMPTS, 9, temperature=0, use_cache=False)
    assert patched != generate(lm, PROMPTS, 9, temperature=0)
    with lm.patch(shift), lm.record() as seen:
        row = lm.sample("ab", 9, as_str=False, temperature=0)
        with lm.record() as plain:
            lm(row)
    assert [*seen] == [*plain]
    for name in plain:
        torch.testing.assert_close(seen[name], plain[name])


@pytest.mark.parametrize("kind", ["custom-transformer", "torch-lstm", "mamba2"])
def test_a_recording_holds_all_tokens_of_all_samples(kind):
    lm = tiny_lm(seed=2, layer_architecture=kind, positions="none").train()
    lm.tokenizer.stops = tuple(range(2, 20))
    with lm.record("resid_post", "logits") as seen:
        rows = lm.sample(["a", "abcab", "ab"], 12, as_str=False, temperature=0)
    assert len({len(row) for row in rows}) > 1
    assert lm.training
    assert [len(x) for x in seen.values()] == [3, 3, 3]
    lm.eval()
    for i, row in enumerate(rows):
        with lm.record("resid_post", "logits") as plain:
            lm(row)
        for name in plain:
            torch.testing.assert_close(seen[name][i, : len(row)], plain[name][0])
    with lm.record("logits") as seen:
        best = lm.beam_search("ab", 9, as_str=False, n_best=2)
    torch.testing.assert_close(seen["logits"][0, : len(best[0].sample)], lm(best[0].sample)[0])


def test_recording_does_not_slow_generation_down():
    lm, seen_by_layer = tiny_lm(), []
    lm.decoder.layers[0].register_forward_hook(lambda layer, args, x: seen_by_layer.append(x.shape[1]))
    lm.sample("ab", 12, temperature=0)  # the cache is compared
    seen_by_layer.clear()
    with lm.record("pattern"):
        row = lm.sample("ab", 12, as_str=False, temperature=0)
    assert seen_by_layer == [3, *[1] * (len(row) - 4), len(row)]


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_changes_neither_the_model_nor_its_arguments(use_cache):
    lm = lm_with(ShiftedBack(), dropout=0.5).train()
    lm.decoder.layers[0].eval()
    modes = [module.training for module in lm.modules()]
    weights = {name: weight.clone() for name, weight in lm.state_dict().items()}
    prompts, pref, stop = [[1, 4], [1, 5, 6]], [1, 4], ["c"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm.sample(prompts, 9, n_samples=2, use_cache=use_cache)
        lm.sample(pref, 9, stop=stop, use_cache=use_cache)
        lm.beam_search(pref, 9, use_cache=use_cache)
        with pytest.raises(RuntimeError):
            lm_with(Convolution(0)).sample(pref, 9, use_cache=use_cache)
    assert (prompts, pref, stop) == ([[1, 4], [1, 5, 6]], [1, 4], ["c"])
    assert [module.training for module in lm.modules()] == modes
    assert all(torch.equal(weights[name], weight) for name, weight in lm.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_logits_that_are_no_numbers_are_no_reason_to_doubt_the_cache():
    lm = tiny_lm()
    with torch.no_grad():
        lm.unembed.weight.fill_(torch.nan)
    with pytest.raises(NoNextToken, match="row 0, step 0: no next token, some logits are NaN"):
        generate(lm, [[1, 4]], 3)
    assert lm.cache_check.reason is None


def test_an_infinite_logit_does_not_hide_a_wrong_cache():
    """The comparison with and without a cache allows a share of the largest finite logit only."""
    plain = torch.tensor([[1.0, 5.0, math.inf]])
    assert logits_agree(plain.clone(), plain)
    assert not logits_agree(torch.tensor([[5.0, 1.0, math.inf]]), plain)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rounding_is_no_reason_to_doubt_the_cache(dtype):
    for kind in KINDS:
        lm = tiny_lm(layer_architecture=kind, n_layers=4).to(dtype)
        generate(lm, [[1, 4, 5, 6], [1, 9]], 9, temperature=0)
        assert lm.cache_check.reason is None
