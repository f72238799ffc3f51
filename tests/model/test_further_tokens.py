"""Multi-token prediction: further losses of tokens further ahead, which change nothing else."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from model.context import Context
from model.lm import LM
from model.perplexity import NOT_SCORED
from tests.model.tiny import CharTokenizer, batch_of, random_ids, tiny_lm, tiny_params
from train.evaluation import plain_loss
from train.train_params import TrainParams

IDS = random_ids(2, 9)
SCORED = torch.ones_like(IDS, dtype=torch.bool)
SCORED[0, :5] = False


def test_each_further_loss_is_the_cross_entropy_of_its_token():
    lm = tiny_lm(n_predict=3, predict_weight=0.5, norm_position="pre")
    losses, _ = lm.get_losses(batch_of(IDS, SCORED), TrainParams())
    assert list(losses) == ["main", "token2", "token3"]
    with torch.no_grad(), lm.record("resid_post") as seen:
        lm(IDS[:, :-1])
    stack = seen["layers.1.resid_post"]
    for ahead, layer in zip((2, 3), lm.decoder.further, strict=True):
        z = lm.unembed(lm.decoder.norm(layer(stack, Context(IDS[:, :-1]))))
        found = [
            F.cross_entropy(z[row, t], IDS[row, t + ahead])
            for row in range(2)
            for t in range(9 - ahead)
            if SCORED[row, t + ahead]
        ]
        assert_close(losses[f"token{ahead}"], 0.5 * torch.stack(found).mean())


def test_the_loss_of_the_next_token_and_generation_are_as_without():
    torch.manual_seed(0)
    plain = LM(tiny_params(), CharTokenizer()).eval()
    torch.manual_seed(0)
    lm = LM(tiny_params(n_predict=3), CharTokenizer()).eval()
    lm.load_state_dict(plain.state_dict(), strict=False)
    one, other = (model.get_batch_xyz(batch_of(IDS)) for model in (plain, lm))
    assert torch.equal(one.z, other.z)
    assert torch.equal(
        plain_loss(one, (one.y != NOT_SCORED).sum()), plain_loss(other, (other.y != NOT_SCORED).sum())
    )
    assert torch.equal(
        plain.get_losses(batch_of(IDS), None)[0]["main"], lm.get_losses(batch_of(IDS), None)[0]["main"]
    )
    assert plain.sample("abc", temperature=0) == lm.sample("abc", temperature=0)
    assert plain.activation_names() == lm.activation_names()


def test_rows_too_short_for_a_further_token_have_no_loss_of_it():
    losses, _ = tiny_lm(n_predict=4).get_losses(batch_of(random_ids(2, 3)), None)
    assert losses["token2"] > 0
    assert losses["token3"] == losses["token4"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "masked"}, "needs objective='next-token', not 'masked'"),
        ({"residual": "admin", "norm_position": "post"}, "residual='admin' has no rule"),
        ({"parametrization": "completep"}, "parametrization='completep' has no rule"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_params(n_predict=2, **fields)
