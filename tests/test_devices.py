"""What depends on the device, on the CPU and, if there is one, on a GPU: training, resuming, masks, generation."""

import math
import re

import pytest
import torch
from torch.testing import assert_close

from model.perplexity import NOT_SCORED
from tests.model.tiny import batch_of, random_ids, tiny_lm
from tests.train.killed import before, interrupt
from tests.train.test_checkpoint import assert_same, call, outcome  # noqa: F401 -- call is a fixture
from tests.train.test_trainer import equal, train_whole, weights
from train import compiled
from train.probe import leak_of
from train.trainer import LMTrainer

HAS_GPU = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not HAS_GPU, reason="no GPU"))]
KINDS_OF_MODELS = [{}, {"positions": "alibi", "sliding_window": 3}, {"objective": "masked", "causal": False}]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fields", KINDS_OF_MODELS, ids=str)
def test_a_model_computes_the_same_on_every_device(device, fields):
    """Losses, gradients, samples and what is recorded are those of the CPU."""
    lm, there = (tiny_lm(**fields) for _ in range(2))
    there = there.to(device)
    batch = batch_of(random_ids(3, 10))
    batch["mask"][0, 7:] = batch["target_mask"][0, 7:] = False
    found = []
    for model in (lm, there):
        losses, _ = model.get_losses(batch, None)
        losses["main"].backward()
        with model.record("pattern", "z") as seen:
            model([1, 5, 6, 7])
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters()}
        activations = {name: x.detach().cpu() for name, x in seen.items()}
        found.append((losses["main"].detach().cpu(), gradients, activations))
    assert_close(found[1], found[0])
    if lm.model_params.causal:
        assert there.sample("abc", 12, temperature=0) == lm.sample("abc", 12, temperature=0)
        options = {"generator": torch.Generator().manual_seed(0), "top_k": 5, "repetition_penalty": 1.2}
        again = options | {"generator": torch.Generator().manual_seed(0)}
        assert there.sample(["abc", "de"], 12, **options) == lm.sample(["abc", "de"], 12, **again)
    else:
        assert leak_of(there) is None
        assert_close(there.get_token_losses(batch).losses.cpu(), lm.get_token_losses(batch).losses)


@pytest.mark.parametrize("device", DEVICES)
def test_masks_are_drawn_on_the_device_of_the_rows(device):
    lm = tiny_lm(objective="masked", causal=False).to(device).train()
    batch = batch_of(random_ids(8, 16))
    (x, y, _), (other, _, _) = lm.get_batch_xyz(batch), lm.get_batch_xyz(batch)
    assert x.device.type == y.device.type == device
    assert not torch.equal(x, other), "another choice each time"
    assert ((y != NOT_SCORED).sum(dim=1) == round(0.15 * 15)).all()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_trains_on_the_gpu_if_there_is_one(precision, tmp_path):
    run, outcome = train_whole(tmp_path, precision=precision, early_stop_nsamples=80)
    assert run.device.type == ("cuda" if HAS_GPU else "cpu")
    assert math.isfinite(outcome.values["val_loss"])
    again, _ = train_whole(tmp_path, precision=precision, early_stop_nsamples=80)
    assert equal(weights(run), weights(again)), "bit by bit"


@pytest.mark.slow
@pytest.mark.parametrize("compile_too", [False, True])
def test_an_interrupted_run_resumes_bit_by_bit(compile_too, call, monkeypatch):  # noqa: F811
    """In this process: one that has used a GPU cannot be forked."""
    monkeypatch.setattr(compiled, "COMPILE_OPTIONS", {"backend": "aot_eager"})
    field = f"compile={compile_too}"
    assert call(field, out="whole", options=["--save"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        before(LMTrainer, "training_step", 11, patch, what=interrupt)
        assert call(field) != 0
    assert call(field) == 0
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))


@pytest.mark.slow
def test_the_benchmark_of_gpus_runs_on_the_cpu(capsys):
    pytest.importorskip("benchmarks.train")
    from benchmarks import gpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "COMPILE_OPTIONS", {"backend": "aot_eager"})
        options = ["--device=cpu", "--size=tiny", "--rounds=1", "--only", "training", "generation"]
        assert gpu.measure_device(options) == 0
    shown = capsys.readouterr()
    for name in ("ours", "plain GPT", "HuggingFace"):
        assert re.search(rf"  {name}, explicit, compiled: [\d.]+ ms a step, \d+% of the peak", shown.out)
    assert "Traceback" not in shown.err
    assert re.search(r"batch 16: [\d,]+ tokens a second, [\d.]+ times HuggingFace's", shown.out)
