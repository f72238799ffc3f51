"""Rows padded on the left have the logits that they have without padding, with a cache too."""

import pytest
import torch
from torch.testing import assert_close

from model.context import Cache
from model.hf.weights import from_hf
from tests.model.hf.hf_models import EVERY_FAMILY, random_hf
from tests.model.tiny import MIXERS, POSITIONS, perturb, random_ids, tiny_lm

PADS = (3, 0, 5)  # before each row
T = 10
MASK = torch.tensor([[False] * n + [True] * (T - n) for n in PADS])
IDS = random_ids(len(PADS), T, 10).masked_fill(~MASK, 0)
BERT = {"causal": False, "objective": "masked"}


def lm_of(**fields):
    lm = tiny_lm(**{"dim": 16, "n_heads": 4, "max_seq_len": T} | fields)
    perturb(lm)
    return lm.eval()


@pytest.mark.parametrize("attention", ["explicit", "fused"])
@pytest.mark.parametrize("sliding_window", [None, 3])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", [{}, BERT], ids=["causal", "masked"])
@torch.no_grad()
def test_logits_are_those_without_padding(kind, positions, sliding_window, attention):
    lm = lm_of(positions=positions, sliding_window=sliding_window, attention=attention, **kind)
    padded = lm(IDS, mask=MASK)
    assert padded.isfinite().all()
    for row, n in enumerate(PADS):
        assert_close(padded[row, n:], lm(IDS[row : row + 1, n:])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_with_a_cache_one_token_at_a_time(positions):
    lm, cache = lm_of(positions=positions), Cache(T)
    whole = lm(IDS, mask=MASK)
    for end in (6, 7, 8, 9, T):
        new = lm(IDS[:, :end], mask=MASK[:, :end], cache=cache)
        assert_close(new[:, -1], whole[:, end - 1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_keeps_every_bit():
    """A mask without padding at the left is not to change how positions are looked up."""
    lm, mask = lm_of(), MASK.flip(1)
    unpadded = lm(IDS)
    assert torch.equal(lm(IDS, mask=mask)[1], unpadded[1])
    assert_close(lm(IDS, mask=mask)[0, :7], unpadded[0, :7])


@EVERY_FAMILY
@torch.no_grad()
def test_equal_to_transformers_with_positions_from_the_mask(family):
    hf_model = random_hf(family, 0)
    positions = (MASK.cumsum(1) - 1).clamp(min=0)
    theirs = hf_model(IDS, attention_mask=MASK.long(), position_ids=positions).logits
    assert_close(from_hf(hf_model)(IDS, mask=MASK)[MASK], theirs[MASK], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [*MIXERS, "torch-gru", "torch-lstm", "torch-transformer"])
@torch.no_grad()
def test_layers_that_would_see_the_padding_refuse_it(kind):
    lm = lm_of(layer_architecture=kind, positions="none")
    with pytest.raises(ValueError, match="mask has padding at the left of rows") as error:
        lm(IDS, mask=MASK)
    assert "\n" not in str(error.value)
    lm(IDS, mask=MASK.flip(1))
