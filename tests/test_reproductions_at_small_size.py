"""Published results at small size: the claims of the quickest configs hold after a few seconds; at full size, all are as kept."""

import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

import pytest

import main
from docs.generate import published_results
from explore.compare.claims import decision_on
from tests.marks import all_slow_but


class Small(NamedTuple):
    """Fields that make a config small, and how far each number may then be on the wrong side of a claim.

    `too_large` are claims about numbers that a small run does not reach.
    """

    fields: Mapping[str, object]
    slack: float = 0.0
    too_large: Collection[str] = ()


COMMON = {
    "threads": 1,
    "val_every": None,
    "stop_when": None,
    "random_seed": [1, 2],
    "init": "unit",  # learns sooner
    "tied_embeddings": False,
}
SHORT_PARITY = Small(
    {
        "task_args": {"min_length": 1, "max_length": 10},
        "eval_sets": {"bits80": {"task_args": {"min_length": 40, "max_length": 40}}},
        "n_samples": 20_000,
        "max_seq_len": 84,
        "max_steps": 220,
    },
    slack=0.05,
)
SMALL = {
    "sort": Small(
        {"task_args": {"max_length": 8}, "n_samples": 30_000, "val_pct": 2.0, "max_steps": 320, "lr": 5e-3},
        slack=0.05,
    ),
    "strict-mqar": Small(
        {
            "task_args": {"n_pairs": 4, "length": 16, "vocab_size": 20, "show_answer": False},
            "n_samples": 30_000,
            "max_steps": 280,
            "max_seq_len": 24,
            "lr": 5e-3,
        },
        slack=0.1,
    ),
    "induction": Small(
        {
            "task_args": {"length": 32, "min_period": 8, "max_period": 16, "vocab_size": 32},
            "n_samples": 30_000,
            "max_steps": 200,
            "lr": 5e-3,
            "max_seq_len": 36,
        },
        slack=0.1,
    ),
    "parity-length": SHORT_PARITY,
    "negative-eigenvalues": SHORT_PARITY,
    "markov-chains": Small(
        {"n_samples": 20_000, "max_steps": 400, "lr": 3e-3, "val_pct": 1.0},
        slack=0.02,
        too_large=["unigrams last a hundred steps"],
    ),
}
FAST = ("sort",)  # at most 20 seconds on one idle core


@pytest.mark.parametrize("name", all_slow_but(FAST, SMALL))
def test_claims_hold_at_small_size(name, tmp_path, capfd):
    fields, slack, too_large = SMALL[name]
    settings = [part for key, value in (COMMON | fields).items() for part in ("--set", f"{key}={value!r}")]
    code = main.main(
        [f"--config=reproduce/{name}", "--no-wandb", "--json", "--out", str(tmp_path), *settings]
    )
    found = json.loads(capfd.readouterr().out)
    assert code == 0, found["errors"]
    claims = [claim for claim in found["claims"] if claim["name"] not in too_large]
    assert len(claims) == len(found["claims"]) - len(too_large)
    assert {claim["name"]: claim["seen"] for claim in claims if not claim["margin"] >= -slack} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in (main.CONFIGS / "reproduce").glob("*.txt")))
def test_claims_are_as_kept_at_full_size(name, tmp_path, monkeypatch):
    kept = {one.name: one for one in published_results()}[name]
    if not kept.date:
        pytest.skip("no runs are kept")
    monkeypatch.setattr(main, "RECORDS", tmp_path)
    code = main.main([f"--reproduce={name}", "--no-wandb", "--jobs=2", "--out", str(tmp_path)])
    assert code == decision_on(kept.verdicts)
