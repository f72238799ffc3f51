"""Claims of published results find wrong implementations: each of five faults, planted in a copy of the product, makes one fail.

The configs are small, so that each claim holds within seconds without its fault.
"""

import json
from typing import NamedTuple

import pytest

from tests.project_copy import ProjectCopy

pytestmark = pytest.mark.slow


class Fault(NamedTuple):
    """A config with one claim, and an edit of the product that makes it fail."""

    config: str
    file: str
    right: str
    wrong: str


TRAINING = """TrainParams
lr = 3e-3
batch_size = 32
max_steps = STEPS
val_every = None
threads = 1
random_seed = [1, 2, 3]

ModelParams
dim = 32
n_heads = 2
"""
DECAY = "return torch.optim.AdamW(groups, lr=params.lr, betas=params.betas, eps=params.adam_eps, fused=fused)"

# The rotation of a pair of numbers is a product of complex numbers, and scores depend on distances only (arXiv:2104.09864,
# equation 16). The metric computes scores in this way, from the queries and keys before they are turned.
METRIC = '''"""A metric of rotary positions, by complex numbers."""

import torch

from train.final_metrics import metric


@metric
def score_error(lm, data):
    with lm.record("q", "k", "scores") as record:
        lm(torch.arange(8)[None] + 3)
    q, k, scores = (record[f"layers.0.{name}"] for name in ("q", "k", "scores"))
    half = q.shape[-1] // 2
    turns = torch.arange(q.shape[2])[:, None] * 10_000 ** (-torch.arange(half) / half)
    q, k = (torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * turns) for x in (q, k))
    expected = torch.einsum("bhtk,bhsk->bhts", q, k.conj()).real / (2 * half) ** 0.5
    return float((scores - expected).tril().abs().max())
'''

FAULTS = {
    "rotary": Fault(
        'DataParams\ndataset_name = "copy"\nn_samples = 1000\n'
        + TRAINING.replace("STEPS", "5")
        + 'n_layers = 1\nmax_seq_len = 48\npositions = "rotary"\n'
        'Expect\nclaims = {"scores are products of turned pairs": "score_error() <= 1e-4"}\n',
        "model/transformer/embeddings.py",
        "(angles.sin() * size)",
        "((angles + frequencies_A).sin() * size)",
    ),
    "leak": Fault(
        'DataParams\ndataset_name = "parity"\ntask_args = {"min_length": 20, "max_length": 20}\nn_samples = 8000\n'
        + TRAINING.replace("STEPS", "200")
        + "n_layers = 1\nmax_seq_len = 40\n"
        'Expect\nclaims = {"one layer does not learn parity": "val_accuracy() <= 0.6"}\n',
        "data/syntheticdata.py",
        "{''.join(bits)}::«",
        "{''.join(bits)}:{bits.count('1') % 2}:«",
    ),
    "decay": Fault(
        'DataParams\ndataset_name = "sort"\nn_samples = 10_000\n'
        + TRAINING.replace("STEPS", "200")
        + "n_layers = 1\nmax_seq_len = 48\n"
        'Expect\nclaims = {"AdamW learns with much decay": "val_accuracy() >= 0.5"}\n',
        "train/optimizers.py",
        DECAY,
        DECAY.replace("AdamW", "Adam"),
    ),
    "wsd": Fault(
        'DataParams\ndataset_name = "sort"\nn_samples = 10_000\n'
        + TRAINING.replace("STEPS", "200").replace(
            "lr = 3e-3", 'lr = 1e-2\nlr_schedule = ["wsd", "constant"]'
        )
        + "n_layers = 1\nmax_seq_len = 48\n"
        "Expect\nclaims = {"
        "\"the decay at the end helps\": \"val_loss(lr_schedule='wsd') < val_loss(lr_schedule='constant') - 0.02\"}\n",
        "train/schedules.py",
        "    left = (1 - now.progress) / now.params.wsd_decay_frac\n",
        "    left = (1 + now.params.wsd_decay_frac - now.progress) / now.params.wsd_decay_frac\n",
    ),
    "mqar": Fault(
        'DataParams\ndataset_name = "mqar"\nn_samples = 10_000\n'
        'task_args = {"n_pairs": 2, "length": 8, "vocab_size": 12, "show_answer": False}\n'
        + TRAINING.replace("STEPS", "300").replace("3e-3", "5e-3")
        + 'n_layers = 1\nmax_seq_len = 32\npositions = "none"\nlayer_architecture = "linear-attention"\n'
        'Expect\nclaims = {"without positions it guesses among two values": "val_accuracy() <= 0.6"}\n',
        "data/syntheticdata.py",
        '    begin, end = "«»" if show_answer else "‹›"\n',
        '    begin, end = "«»"\n',
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    copy = ProjectCopy(tmp_path_factory.mktemp("faults") / "project", tmp_path_factory.mktemp("out"))
    (copy.folder / "rotary_metric.py").write_text(METRIC, encoding="utf-8")
    for name, fault in FAULTS.items():
        (copy.folder / "configs" / f"faulty-{name}.txt").write_text(fault.config, encoding="utf-8")
    copy.commit("configs whose claims hold")
    return copy


def verdicts(project: ProjectCopy, config: str) -> dict[str, str]:
    """Return the verdicts on the claims of the configs, by the names of the claims."""
    code, said = project.main(f"--config={config}", "--with=rotary_metric.py", "--json", separate=True)
    assert code == 0, said
    return {claim["name"]: f"{claim['verdict']}: {claim['seen']}" for claim in json.loads(said)["claims"]}


def test_the_claims_hold_without_a_fault(project):
    found = verdicts(project, "faulty")
    assert len(found) == len(FAULTS)
    assert {name: verdict for name, verdict in found.items() if not verdict.startswith("holds")} == {}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_makes_a_claim_fail(project, name):
    fault = FAULTS[name]
    project.edit(fault.file, fault.right, fault.wrong)
    try:
        [verdict] = verdicts(project, f"faulty-{name}").values()
    finally:
        project.git("checkout", "-q", ".")
    assert verdict.startswith("fails"), verdict
