"""--against on edits whose effect is known: harmful ones are called worse, helpful ones better, neutral ones neither."""

import json

import pytest

from tests.project_copy import SCORES, ProjectCopy

pytestmark = pytest.mark.slow
OPTIONS = [
    "--config=test-synth",
    "--set=n_samples=4000",
    "--seed=[1,2,3,4,5]",
    "--json",
    "--against",
    "--jobs=2",
    "--set=threads=1",
]
ATTENTION = "model/transformer/attention.py"
LAYER = "model/transformer/transformerencoderlayer.py"
SCHEDULES = "train/schedules.py"
ADAM = "train/optimizers.py"
FF = "        x = self.linear2(x_BTF)\n"
STREAM = "        return self.norm2.after(self.residual_ff(mid_BTD, ff_BTD))\n"
COSINE = "    return now.floor + (1 - now.floor) * (1 + math.cos(math.pi * now.progress)) / 2\n"
EDITS = {  # what is replaced, by what
    "neutral: the same product in another order": (
        ATTENTION,
        SCORES,
        SCORES.replace("(math.sqrt(K) * self.temperature)", "(self.temperature * math.sqrt(K))"),
    ),
    "neutral: scores larger by a millionth": (
        ATTENTION,
        SCORES,
        SCORES.replace("(q_BHTK", "1.000001 * (q_BHTK", 1),
    ),
    "neutral: a sum in two steps": (LAYER, FF, "        x = 0.5 * self.linear2(x_BTF)\n        x = x + x\n"),
    "harmful: no attention scores": (ATTENTION, SCORES, SCORES.replace("(q_BHTK", "0 * (q_BHTK", 1)),
    "harmful: no feed-forward block": (LAYER, FF, "        x = 0 * self.linear2(x_BTF)\n"),
    "harmful: no residual stream": (
        LAYER,
        STREAM,
        "        return self.norm2.after(ff_BTD)\n",
    ),
    "harmful: a fifth of the learning rate": (
        ADAM,
        "AdamW(groups, lr=params.lr,",
        "AdamW(groups, lr=params.lr / 5,",
    ),
    "harmful: the learning rate falls at once": (
        SCHEDULES,
        COSINE,
        "    return now.floor + (1 - now.floor) * 0.05\n",
    ),
    "helpful: the learning rate does not fall": (SCHEDULES, COSINE, "    return 1.0\n"),
    "helpful: scores grow faster": (ATTENTION, SCORES, SCORES.replace("(q_BHTK", "2 * (q_BHTK", 1)),
}

# Five seeds do not suffice for this one, and the verdict says so.
OF_THE_SIZE_OF_NOISE = {"harmful: no residual stream"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return ProjectCopy(tmp_path_factory.mktemp("planted") / "project", tmp_path_factory.mktemp("out"))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_judged_by_its_effect(project, name):
    project.edit(*EDITS[name])
    try:
        code, said = project.main(*OPTIONS, separate=True)
    finally:
        project.git("checkout", "-q", ".")
    found = json.loads(said)
    [verdict] = found["verdicts"]
    kind = name.split(":")[0]
    if name in OF_THE_SIZE_OF_NOISE:
        assert code in (3, 4)
        return
    if kind == "neutral":
        assert verdict["verdict"] not in ("better", "worse")
    else:
        assert verdict["verdict"] == {"harmful": "worse", "helpful": "better"}[kind]
        assert code == {"harmful": 3, "helpful": 0}[kind]
