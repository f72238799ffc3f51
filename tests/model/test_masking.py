"""The masked objective: what is hidden, how it is scored, and what a bidirectional model may see."""

import hashlib
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import BertTokenizer

from data.batch import mycollate
from data.dataloader import TokenizerSpec
from data.tokenizer import Tokenizer, char_tokenizer, from_transformers, make_tokenizer
from model.context import Cache, Context, Uncacheable
from model.generation.sampling import generate
from model.lm import LM
from model.masking import MASK_FRAC, mask_tokens, unmasked_batch
from model.model_params import ModelParams
from model.observe import ignored_fields
from model.perplexity import NOT_SCORED
from model.problems import model_problems
from tests.model.tiny import MIXERS, CharTokenizer, perturb, random_ids, tiny_lm, tiny_params
from train.train_params import TrainParams

BOTH_SIDES = {"causal": False, "objective": "masked"}
BERT = BOTH_SIDES | {
    "norm_position": "post",
    "embedding_norm": True,
    "readout_transform": True,
    "readout_bias": True,
}
SHAPES = [
    {},
    {"attention": "fused"},
    {"positions": "alibi"},
    {"positions": "rotary"},
    {"positions": "alibi", "sliding_window": 3},
    {"positions": "alibi", "sliding_window": 3, "attention": "fused"},
    {"layer_architecture": "torch-transformer"},
    {"separate_heads": True, "n_kv_heads": 1},
    BERT,
]
EVERY_SHAPE = pytest.mark.parametrize("fields", SHAPES, ids=str)
MASK = CharTokenizer.mask


def rows(*lengths, seed=0):
    ids = random_ids(len(lengths), max(lengths), 26, seed) + 4  # letters
    return [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]


def batch(*lengths, seed=0):
    return mycollate(rows(*lengths, seed=seed))


# What a position sees


def test_a_position_that_sees_its_target_is_refused():
    with pytest.raises(
        ValueError, match="causal=False with objective='next-token' would show each position the"
    ):
        ModelParams(causal=False)
    assert ModelParams(causal=True, objective="masked").causal


@EVERY_SHAPE
def test_every_position_sees_every_other(fields):
    """Without a window, which two layers reach beyond."""
    lm, ids = tiny_lm(**BOTH_SIDES | fields), random_ids(1, 9)
    for t in range(9):
        other = ids.clone()
        other[0, t] = (ids[0, t] + 1) % 30
        reached = (lm(other) - lm(ids)).abs().amax(dim=-1)[0] > 1e-9
        near = (torch.arange(9) - t).abs() <= 2 * (fields.get("sliding_window", 9) - 1)
        assert torch.equal(reached, near)


@EVERY_SHAPE
def test_batch_composition_and_padding_do_not_change_a_sample(fields):
    lm = tiny_lm(**BOTH_SIDES | fields)
    samples = rows(16, 5, 9, 12)
    together = mycollate(samples, pad=2)
    with torch.no_grad():
        z_BTV = lm(together["x_indices"], mask=together["mask"])
        xyz = lm.get_batch_xyz(together)
        for i, sample in enumerate(samples):
            n = len(sample)
            assert_close(z_BTV[i, :n], lm(sample)[0], rtol=0, atol=1e-12)
            alone = lm.get_batch_xyz(mycollate([sample]))
            assert torch.equal(alone.y[0], xyz.y[i, :n])  # the same tokens are hidden
            assert torch.equal(alone.x[0], xyz.x[i, :n])
            assert_close(alone.z[0], xyz.z[i, :n], rtol=0, atol=1e-12)
            assert (xyz.y[i, n:] == NOT_SCORED).all()
        seen = lm(together["x_indices"])
    assert (seen - z_BTV)[1, :5].abs().max() > 1e-6, "unhidden padding would be seen"


@EVERY_SHAPE
def test_patterns_sum_to_1_over_visible_positions(fields):
    lm, padded = tiny_lm(**BOTH_SIDES | fields), batch(16, 5)
    attns = lm(padded["x_indices"], mask=padded["mask"], get_attns=True)["attns"]
    assert_close(attns.sum(dim=-1), torch.ones_like(attns.sum(dim=-1)))
    assert not attns[1, ..., :5, 5:].any()
    if "sliding_window" not in fields:
        assert (attns[0] > 0).all()


@pytest.mark.parametrize(
    "fields", [{}, {"positions": "alibi", "sliding_window": 4}, {"n_kv_heads": 1}], ids=str
)
@pytest.mark.parametrize("lengths", [(16, 16), (16, 5)])
def test_fused_attention_is_equal(fields, lengths):
    explicit = tiny_lm(**BERT | fields)
    fused = tiny_lm(**BERT | fields, attention="fused")
    padded = batch(*lengths)
    ids, mask = padded["x_indices"], padded["mask"]
    assert_close(fused(ids, mask=mask), explicit(ids, mask=mask), rtol=0, atol=1e-12)
    for lm in (explicit, fused):
        lm.get_losses(padded, None)[0]["main"].backward()
    for ours, theirs in zip(explicit.parameters(), fused.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_torchs_layer_is_equal():
    theirs = tiny_lm(**BOTH_SIDES, layer_architecture="torch-transformer", norm_position="post")
    layer = theirs.decoder.layers[0]
    x, real = torch.randn(2, 9, 16, dtype=torch.float64), torch.arange(9) < torch.tensor([[9], [4]])
    ours = tiny_lm(**BOTH_SIDES, norm_position="post").decoder.layers[0]
    block = layer.block
    for to, of in (
        (ours.mixer.qkv.weight, block.self_attn.in_proj_weight),
        (ours.mixer.qkv.bias, block.self_attn.in_proj_bias),
    ):
        to.data = of.data
    for to, of in (
        (ours.mixer.out, block.self_attn.out_proj),
        (ours.norm1.after, block.norm1),
        (ours.norm2.after, block.norm2),
        (ours.linear1, block.linear1),
        (ours.linear2, block.linear2),
    ):
        to.load_state_dict(of.state_dict())
    ids = torch.zeros(2, 9, dtype=torch.int64)
    expected = layer(x, Context(ids, real_BT=real))[real]
    assert_close(ours(x, Context(ids, real_BT=real))[real], expected, rtol=0, atol=1e-12)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask of shape \(2, 4\) for an input of shape \(1, 3\)"):
        tiny_lm(**BERT)([4, 5, 6], mask=torch.ones(2, 4))


def test_a_causal_model_accepts_a_padding_mask():
    lm, padded = tiny_lm(), batch(9, 4)
    ids, mask = padded["x_indices"], padded["mask"]
    assert_close(lm(ids, mask=mask.long())[mask], lm(ids)[mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["torch-gru", "torch-lstm", *MIXERS])
def test_layer_kinds_that_are_causal_only_are_refused(kind):
    for kinds in (kind, ("custom-transformer", kind)):
        params = tiny_params(layer_architecture=kinds, **BOTH_SIDES)
        [problem] = model_problems(params)
        assert problem.startswith(f"causal=False does not work with layer_architecture={kind!r}")
    assert not list(model_problems(tiny_params(layer_architecture=kind, objective="masked")))


def test_an_activation_of_the_readout_alone_is_no_ignored_field():
    fields = {"dim_ff": 0, "activation": "relu"}
    assert ignored_fields(tiny_params(**BERT, **fields)) == []
    assert ignored_fields(tiny_params(**fields)) == ["activation='relu'"]


# What is hidden


def draw(lm, lengths, mask_frac=MASK_FRAC, scored=None):
    data = batch(*lengths)
    if scored is not None:
        data["target_mask"] &= scored
    whole = unmasked_batch(data, lm)
    return whole, mask_tokens(whole, lm, mask_frac)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 16), min_size=1, max_size=4), st.floats(0.01, 1.0), st.booleans())
def test_a_share_of_each_row_is_hidden(lengths, mask_frac, training):
    lm = tiny_lm(**BERT).train(training)
    whole, (x, y) = draw(lm, lengths, mask_frac)
    chosen = y != NOT_SCORED
    for n, row in zip(lengths, chosen, strict=True):
        assert row.sum() == max(1, round((n - 1) * mask_frac))
        assert not row[0]
        assert not row[n:].any()
    assert torch.equal(y[chosen], whole.ids[chosen])
    assert torch.equal(x[~chosen], whole.ids[~chosen])


def test_80_percent_of_chosen_tokens_are_masked_and_10_percent_are_random():
    lm = LM(tiny_params(**BERT, max_seq_len=512), CharTokenizer()).train()
    torch.manual_seed(0)
    whole, (x, y) = draw(lm, [512] * 100, 0.5)
    chosen = y != NOT_SCORED
    n = int(chosen.sum())
    masks, same = (x[chosen] == MASK).sum() / n, (x[chosen] == y[chosen]).sum() / n
    assert masks == pytest.approx(0.8 + 0.1 / 30, abs=0.01)
    assert same == pytest.approx(0.1 + 0.1 / 30, abs=0.01)
    others = x[chosen & (x != whole.ids) & (x != MASK)]
    assert set(others.tolist()) == set(range(30)) - {MASK}
    counts = chosen.float().mean(dim=0)[1:]  # every position is as likely
    assert counts.min() > 0.3
    assert counts.max() < 0.7


def test_only_scored_tokens_are_hidden():
    lm, scored = tiny_lm(**BERT).train(), torch.zeros(2, 16, dtype=torch.bool)
    scored[0, 3:5] = True
    for _ in range(20):
        _, (x, y) = draw(lm, (16, 12), 1.0, scored)
        assert torch.equal(y != NOT_SCORED, scored)
        assert not (x != draw(lm, (16, 12), 1.0, scored)[0].ids)[~scored].any()


def test_the_first_token_of_a_row_is_never_hidden():
    lm, data = tiny_lm(**BERT), batch(16, 9)
    data["target_mask"] = data["mask"]
    for training in (True, False):
        xyz = lm.train(training).get_batch_xyz(data, train_params=TrainParams(mask_frac=1.0))
        assert torch.equal((xyz.y != NOT_SCORED).sum(dim=1), torch.tensor([15, 8]))
        assert (xyz.y[:, 0] == NOT_SCORED).all()


def test_the_last_token_of_a_row_that_is_too_long_is_left_out():
    """The data's rows are a token longer, for models that predict it: the next row of a text begins with it."""
    lm = tiny_lm(**BERT, max_seq_len=8)
    assert unmasked_batch(batch(9, 5), lm).ids.tolist() == batch(9, 5)["x_indices"][:, :8].tolist()
    assert lm.get_batch_xyz(batch(5, 5)).z.shape[1] == 5


def test_training_masks_other_tokens_every_time_by_the_global_generator():
    lm, data = tiny_lm(**BERT).train(), batch(16, 16)
    torch.manual_seed(3)
    first, second = lm.get_batch_xyz(data), lm.get_batch_xyz(data)
    torch.manual_seed(3)
    assert torch.equal(lm.get_batch_xyz(data).x, first.x)
    assert not torch.equal(second.y, first.y)


def test_evaluation_masks_the_same_tokens_every_time():
    lm, data = tiny_lm(**BERT), batch(16, 16)
    first, state = lm.get_batch_xyz(data), torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = lm.get_batch_xyz(data)
    assert torch.equal(again.x, first.x)
    # Not at the same places in all rows.
    assert not torch.equal(first.y[0] == NOT_SCORED, first.y[1] == NOT_SCORED)


def test_the_loss_is_the_mean_over_masked_tokens():
    lm, data = tiny_lm(**BERT), batch(16, 9)
    xyz = lm.get_batch_xyz(data, train_params=TrainParams(mask_frac=0.4))
    losses, n = lm.get_losses(data, TrainParams(mask_frac=0.4))
    chosen = xyz.y != NOT_SCORED
    assert_close(losses["main"], F.cross_entropy(xyz.z[chosen], xyz.y[chosen]))
    assert n == 2
    assert int(chosen.sum()) == round(15 * 0.4) + round(8 * 0.4)


def test_loss_requests_change_the_input_and_not_the_targets():
    lm, data = tiny_lm(**BERT), batch(16, 9)
    plain, other = lm.get_batch_xyz(data), lm.get_batch_xyz(data, loss_requests=lambda x: (x + 1) % 30)
    assert torch.equal(other.x, (plain.x + 1) % 30)
    assert torch.equal(other.y, plain.y)


def test_the_default_share_is_that_of_the_params():
    assert TrainParams().mask_frac == MASK_FRAC


# What a masked model says


def test_a_masked_model_refuses_to_continue_text():
    for fields in (BERT, {"objective": "masked"}):
        lm = tiny_lm(**fields)
        for speak in (lm.sample, lm.beam_search, partial(generate, lm, [[1]], 3)):
            with pytest.raises(ValueError, match=r"cannot continue a text; use lm\.fill") as error:
                speak()
            assert "\n" not in str(error.value)
    with pytest.raises(Uncacheable, match="causal=False"):
        tiny_lm(**BERT)([4, 5], cache=Cache(4))


def test_gaps_are_filled_with_the_most_probable_tokens():
    lm = tiny_lm(**BERT).train()
    ids = [1, 4, MASK, 6, MASK, 2]
    with torch.no_grad():
        best = lm.eval()(ids)[0].softmax(dim=-1).max(dim=-1)
    lm.train()
    expected = [1, 4, int(best.indices[2]), 6, int(best.indices[4]), 2]
    assert lm.fill(ids, as_str=False) == expected
    assert lm.fill("a_c_", as_str=False) == expected
    assert lm.fill("a_c_") == lm.tokenizer.decode(expected)
    text, probs = lm.fill("a_c_", return_probs=True)
    assert text == lm.fill(ids)
    assert probs == pytest.approx([float(best.values[2]), float(best.values[4])])
    assert lm.training


def test_texts_that_cannot_be_filled_are_refused():
    with pytest.raises(ValueError, match=r"needs objective=.masked.; .*use lm\.sample"):
        tiny_lm().fill("a_")
    with pytest.raises(ValueError, match="the text has no _ to fill in"):
        tiny_lm(**BERT).fill("ab")
    lm = LM(tiny_params(**BERT), char_tokenizer("abc"))
    for use in (lambda: lm.fill("a"), lambda: lm.get_losses(batch(4), None)):
        with pytest.raises(ValueError, match="mask token"):
            use()


@pytest.mark.parametrize(
    "fields", [BERT, {"objective": "masked"}, BOTH_SIDES | {"attention": "fused"}], ids=str
)
def test_pseudo_perplexities_hide_one_token_after_the_other(fields):
    lm, samples = tiny_lm(**fields), rows(16, 3, 9, 12)
    expected = torch.full((4, 15), -1.0, dtype=torch.float64)
    for i, sample in enumerate(samples):
        for t in range(1, len(sample)):
            shown = [*sample[:t], MASK, *sample[t + 1 :]]
            with torch.no_grad():
                expected[i, t - 1] = -lm(shown)[0, t].log_softmax(dim=-1)[sample[t]]
    result = lm.perplexities(samples, per_token=True, before_exp=True)
    assert_close(result.per_token_res.double(), expected, rtol=0, atol=1e-5)
    scored = expected[expected >= 0]
    assert result.total_tokens == len(scored) == 36
    assert result[:3] == pytest.approx(
        (scored.mean().item(), scored.max().item(), scored.min().item()), rel=1e-5
    )


def test_a_string_ends_with_eos_which_is_not_scored():
    lm = tiny_lm(**BERT)
    of_text, of_ids = (
        lm.perplexities(s, per_token=True, before_exp=True) for s in (["abc"], [[1, 4, 5, 6, 2]])
    )
    assert of_text.total_tokens == 3
    assert_close(of_text.per_token_res[0, :3], of_ids.per_token_res[0, :3])
    assert of_text.per_token_res[0, 3] == -1
    with pytest.raises(ValueError, match="input of 17 tokens is longer than max_seq_len=16"):
        lm.perplexities(rows(17))


# Tokenizers


@pytest.mark.parametrize("source", ["char", "custom"])
def test_our_tokenizers_have_the_mask_as_last_id(source, tmp_path):
    text = "we the people of the United States"
    plain = make_tokenizer(TokenizerSpec(source, vocab_size=300), lambda: [text])
    plain.save(tmp_path)
    assert "mask" not in (tmp_path / "tokenizer_ids.json").read_text()
    tokenizer = plain.with_mask()
    assert plain.mask is None
    assert tokenizer.mask == plain.n_tokens == tokenizer.n_tokens - 1
    assert tokenizer.with_mask() is tokenizer
    assert tokenizer.fingerprint == plain.fingerprint
    assert tokenizer(text + " <mask>") == plain(text + " <mask>")
    ids = tokenizer.with_gaps("we the <mask> of")
    head = "we the" if source == "custom" else "we the "
    assert ids == [1, *plain(head)[1:], tokenizer.mask, *plain(" of")[1:], 2]
    assert tokenizer.tokens([tokenizer.mask]) == ["<mask>"]
    assert tokenizer.decode(ids) == head + " of"
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.mask, again.n_tokens) == (tokenizer.mask, tokenizer.n_tokens)
    assert again.with_gaps("we the <mask> of") == ids


def test_gpt2s_tokenizer_gets_one_more_id(gpt2_tokenizer):
    plain = from_transformers(gpt2_tokenizer)
    tokenizer = plain.with_mask()
    assert (plain.mask, tokenizer.mask, tokenizer.n_tokens) == (None, 50257, 50258)
    cropped = plain.cropped(plain("well the weather")).with_mask()
    assert cropped.mask == cropped.n_tokens - 1
    gaps = cropped.with_gaps("well<mask> weather")
    assert cropped.tokens(gaps)[1:-1] == ["well", "<mask>", " weather"]


def test_berts_tokenizer_brings_its_own(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "we", "the", "people", "##s"]
    theirs = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer = from_transformers(theirs)
    assert (tokenizer.pad, tokenizer.unk, tokenizer.bos, tokenizer.eos, tokenizer.mask) == (0, 1, 2, 3, 4)
    assert tokenizer.with_mask() is tokenizer
    assert tokenizer.n_tokens == 9
    text = "We the [MASK]s"
    assert tokenizer.with_gaps(text)[:4] == theirs(text)["input_ids"][:4] == [2, 5, 6, 4]
    assert tokenizer.tokens([4]) == ["[MASK]"]
    lm = LM(tiny_params(**BERT), tokenizer)
    perturb(lm)
    assert isinstance(lm.fill("we [MASK] people"), str)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).mask == 4


@pytest.mark.parametrize("mask", ["300", '"4"', "-1", "true"])
def test_a_mask_out_of_range_is_no_tokenizer(mask, tmp_path):
    tokenizer = char_tokenizer("abc")
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer_ids.json"
    file.write_text(file.read_text()[:-1] + f', "mask": {mask}}}')
    with pytest.raises(ValueError, match="holds no readable tokenizer"):
        Tokenizer.load(tmp_path)


# Decoders stay what they were


BEFORE = {  # losses of three steps before there was causal=False, and what became of the random numbers
    "explicit": ({}, [3.4659584, 3.4100688, 3.4057989], "ccd2d32362c014c9"),
    "fused": ({"attention": "fused"}, [3.4659579, 3.4100688, 3.4057989], "ccd2d32362c014c9"),
    "alibi": (
        {"positions": "alibi", "sliding_window": 4},
        [3.447999, 3.3946733, 3.3906388],
        "90b11ff420f2d462",
    ),
    "post": (
        {"positions": "rotary", "norm_position": "post", "separate_heads": True},
        [3.4750292, 3.3345222, 3.408921],
        "90b11ff420f2d462",
    ),
    "torch": (
        {"layer_architecture": "torch-transformer"},
        [3.4329193, 3.4548669, 3.3896027],
        "08a60ea2d506795a",
    ),
    "mixed": (
        {"layer_architecture": ("gated-conv", "torch-gru")},
        [3.4359152, 3.4495916, 3.4327676],
        "f78c787251292134",
    ),
    "untied": (
        {"attention": "fused", "positions": "alibi", "sliding_window": 3, "tied_embeddings": False},
        [3.4470217, 3.3781424, 3.3577714],
        "90b11ff420f2d462",
    ),
}


def losses_of_training(fields):
    torch.manual_seed(3)
    lm = LM(tiny_params(**fields), CharTokenizer(30), dropout=0.1).train()
    optimizer = torch.optim.SGD(lm.parameters(), lr=0.1)
    for step in range(3):
        ids = random_ids(4, 12, seed=step)
        real = torch.ones_like(ids, dtype=torch.bool)
        loss = lm.get_losses({"x_indices": ids, "target_mask": real}, None)[0]["main"]
        yield loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(("fields", "expected", "drawn"), BEFORE.values(), ids=BEFORE)
def test_decoders_draw_and_compute_the_same_as_before_masking(fields, expected, drawn):
    assert list(losses_of_training(fields)) == pytest.approx(expected, abs=1e-6)
    assert hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()[:16] == drawn
    names = {name.partition(".")[0] for name, _ in tiny_lm(**fields).named_parameters()}
    assert names <= {"embed", "decoder", "unembed"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_masked_model_learns():
    """Words of three equal letters: what is hidden follows from either neighbor."""
    torch.manual_seed(0)
    lm = LM(tiny_params(**BERT, dim=32), CharTokenizer()).train()
    optimizer = torch.optim.Adam(lm.parameters(), lr=3e-3)
    for step in range(300):
        words = random_ids(32, 5, 26, seed=step) + 4
        data = mycollate([[1, *row] for row in words.repeat_interleave(3, dim=1).tolist()])
        loss = lm.get_losses(data, None)[0]["main"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < math.log(26) / 2
    assert lm.eval().fill("aa_b_b") == "aaabbb"
