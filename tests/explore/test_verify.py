"""verify_stable_load accepts what is sound and complains about each thing that is not."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import model_explorer
from explore.verify import check_causal, check_deterministic
from model.transformer import attention
from tests.explore.test_load import FIRST, edit_json, folder_of


def test_a_sound_run_passes_and_prints_each_check(root, capsys):
    model_explorer.verify_stable_load(FIRST, out=str(root))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.endswith(": ok") for line in lines)


@pytest.mark.slow
@pytest.mark.ci
def test_changed_weights_and_a_changed_recorded_loss_are_detected(root):
    weights = load_file(folder_of(root) / "model.safetensors")
    scaled = {name: tensor * 1.2 for name, tensor in weights.items()}
    save_file(scaled, folder_of(root) / "model.safetensors")
    with pytest.raises(ValueError, match="validation loss is"):
        model_explorer.verify_stable_load(FIRST, out=str(root))
    save_file(weights, folder_of(root) / "model.safetensors")
    model_explorer.verify_stable_load(FIRST, out=str(root))
    edit_json(folder_of(root) / "about.json", "summary", "val_loss", value=4.0)
    with pytest.raises(ValueError, match="was 4 when the run was saved"):
        model_explorer.verify_stable_load(FIRST, out=str(root))


@pytest.mark.parametrize("recorded", [None, "low", [1]])
def test_a_recorded_loss_that_is_not_a_number_is_refused(root, recorded):
    edit_json(folder_of(root) / "about.json", "summary", "val_loss", value=recorded)
    with pytest.raises(ValueError, match=r"no validation loss|summary\.val_loss"):
        model_explorer.verify_stable_load(FIRST, out=str(root))


def test_a_diverged_run_passes_the_check_of_stable_loading(root, capsys):
    weights = load_file(folder_of(root) / "model.safetensors")
    save_file(
        {name: tensor * torch.nan for name, tensor in weights.items()}, folder_of(root) / "model.safetensors"
    )
    edit_json(folder_of(root) / "about.json", "summary", "val_loss", value=float("nan"))
    model_explorer.verify_stable_load(FIRST, out=str(root))
    assert capsys.readouterr().out.endswith("logits are NaN: leaks cannot be checked\n")


def test_randomness_and_leaks_are_detected(root, monkeypatch):
    x_BT = torch.randint(0, 10, (4, 9), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="different logits in a second pass"):
        check_deterministic(lambda x: x[..., None] + torch.rand(4, 9, 3), x_BT)
    lm = model_explorer.get_model_by_timestamp(FIRST, out=str(root)).lm
    check_causal(lm)
    monkeypatch.setattr(attention, "future", torch.zeros_like)
    with pytest.raises(ValueError, match="depends on something it must not see"):
        check_causal(lm)
