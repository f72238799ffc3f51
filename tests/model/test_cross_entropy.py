"""The cross entropy in chunks equals torch's, with all its derivatives."""

import pytest
import torch
from torch.nn import functional as F

from data.batch import mycollate
from model import cross_entropy
from model.cross_entropy import cross_entropy_sum
from model.perplexity import NOT_SCORED
from tests.model.tiny import tiny_lm


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", 3 * 11)  # three rows of 11 logits
    monkeypatch.setattr(cross_entropy, "MIN_LOGITS", 0)


def logits_and_targets(dtype):
    z_NV = 5 * torch.randn(10, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y_N = torch.arange(10).masked_fill(torch.tensor([0, 1, 0, 0, 1, 0, 0, 0, 0, 1]).bool(), NOT_SCORED)
    return z_NV.to(dtype).requires_grad_(), y_N


def by_torch(z_NV, y_N):
    return F.cross_entropy(z_NV, y_N, ignore_index=NOT_SCORED, reduction="sum")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-3)]
)
def test_loss_and_gradient_equal_those_of_torch(dtype, tolerance):
    z_NV, y_N = logits_and_targets(dtype)
    loss = cross_entropy_sum(z_NV, y_N)
    expected = by_torch(z_NV.double(), y_N)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=min(tolerance, 1e-6), atol=0)
    (2.5 * loss).backward()
    [gradient] = torch.autograd.grad(2.5 * expected, z_NV)
    assert z_NV.grad.dtype == dtype
    torch.testing.assert_close(z_NV.grad, gradient, rtol=tolerance, atol=tolerance)
    assert not z_NV.grad[y_N == NOT_SCORED].any()


def test_second_derivatives_equal_those_of_torch():
    z_NV, y_N = logits_and_targets(torch.float64)
    second = []
    for loss_of in (cross_entropy_sum, by_torch):
        [gradient] = torch.autograd.grad(loss_of(z_NV, y_N) ** 2, z_NV, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), z_NV)[0])
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("wrong", [-1, 11])
def test_a_target_outside_the_vocabulary_is_an_error(wrong):
    z_NV, y_N = logits_and_targets(torch.float32)
    with pytest.raises((RuntimeError, IndexError)):
        cross_entropy_sum(z_NV, y_N.index_fill(0, torch.tensor([3]), wrong))


def test_a_batch_without_a_target_has_no_loss():
    z_NV, y_N = logits_and_targets(torch.float32)
    loss = cross_entropy_sum(z_NV, torch.full_like(y_N, NOT_SCORED))
    loss.backward()
    assert loss == 0
    assert not z_NV.grad.any()


def test_only_logits_are_saved():
    z_NV, y_N = logits_and_targets(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        cross_entropy_sum(z_NV, y_N)
    assert [x.shape for x in saved if x.dim() > 1] == [z_NV.shape]
    assert next(x for x in saved if x.dim() > 1).data_ptr() == z_NV.data_ptr()


def test_the_losses_of_a_model_use_it_and_patched_logits_count(monkeypatch):
    lm, batch = tiny_lm(n_tokens=30), mycollate([[1, 5, 7, 9, 4], [1, 8, 6]])
    in_chunks = lm.get_losses(batch, None)[0]["main"]
    with lm.patch({"logits": lambda z: 2 * z}):
        patched = lm.get_losses(batch, None)[0]["main"]
    monkeypatch.setattr(cross_entropy, "MIN_LOGITS", 2**22)
    torch.testing.assert_close(in_chunks, lm.get_losses(batch, None)[0]["main"])
    assert in_chunks.grad_fn is not None
    assert not torch.isclose(patched, in_chunks)


def test_training_takes_the_same_course_as_with_torch(monkeypatch):
    batch = mycollate([[1, 5, 7, 9, 4], [1, 8, 6, 11, 12]])
    courses = []
    for min_logits in (0, 2**22):
        monkeypatch.setattr(cross_entropy, "MIN_LOGITS", min_logits)
        lm = tiny_lm(n_tokens=30, n_layers=1).train()
        optimizer = torch.optim.AdamW(lm.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            loss = lm.get_losses(batch, None)[0]["main"]
            loss.backward()
            optimizer.step()
        courses.append(loss.detach())
    torch.testing.assert_close(*courses, rtol=1e-9, atol=0)
    assert courses[0] < 2.5, "nothing was learned, so the courses may agree by chance"
