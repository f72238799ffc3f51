"""Main claims of muP, CompleteP and Admin, at a size that tests can afford. The full configs take minutes to an hour.

Losses are compared with each other and with the entropy of single characters: no absolute number is expected.
"""

import math
from collections import Counter
from itertools import islice

import pandas as pd
import pytest

import main
from data.corpora import sotu
from model_explorer import results

pytestmark = pytest.mark.slow


def trained(tmp_path, config: str, **settings: object) -> pd.DataFrame:
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    call = [f"--config={config}", "--no-wandb", "--save", "--out", str(tmp_path), *options]
    assert main.main(call) == 0
    return results(config, out=str(tmp_path))


def losses(table: pd.DataFrame, *fields: str) -> dict:
    return table.set_index(list(fields))["val_loss"].to_dict()


def test_at_a_high_learning_rate_width_helps_in_mup_and_hurts_in_standard(tmp_path):
    found = trained(tmp_path, "mup-width", dim="[64,256]", lr=2**-5, early_stop_nsamples=320)
    loss = losses(found, "parametrization", "dim")
    assert loss["standard", 64] == loss["mup", 64], "at the base they are one model"
    assert loss["standard", 256] - loss["mup", 256] >= 0.06
    assert loss["mup", 64] - loss["mup", 256] >= 0.02


def test_muon_keeps_its_learning_rate_in_mup_as_it_does_not_in_standard(tmp_path):
    found = trained(tmp_path, "mup-muon", dim="[64,256]", lr=2**-4, early_stop_nsamples=320)
    loss = losses(found, "parametrization", "dim")
    assert loss["standard", 64] == loss["mup", 64], "at the base they are one model"
    assert loss["standard", 256] - loss["mup", 256] >= 0.04


def test_sixteen_layers_train_at_the_learning_rate_of_two_in_completep_only(tmp_path):
    found = trained(tmp_path, "completep-depth", n_layers=16, lr=2**-5, early_stop_nsamples=480)
    loss = losses(found, "parametrization")
    assert loss["standard"] - loss["completep"] >= 0.1


def test_eighteen_post_norm_layers_learn_with_admin_and_not_without(tmp_path, monkeypatch):
    text = main.CONFIGS.joinpath("admin-deep.txt").read_text(encoding="utf-8")
    skip = "skip = [\"variant in ('deepnet', 'pre-norm') or residual_trainable\"]"
    tmp_path.joinpath("two.txt").write_text(text.replace("Grid\n", f"Grid\n{skip}\n", 1), encoding="utf-8")
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    loss = losses(trained(tmp_path, "two", early_stop_nsamples=2000), "variant")
    characters = Counter("".join(islice(sotu(), 40)))
    entropy = -sum(n / characters.total() * math.log(n / characters.total()) for n in characters.values())
    assert loss["plain"] == pytest.approx(entropy, abs=0.1)
    assert loss["admin"] <= entropy - 0.3
