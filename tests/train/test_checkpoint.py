"""Runs that are killed and go on: bit by bit what they would have been. Each kill is a real one, of a forked process."""

import random
import signal
from collections import deque
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main
from explore.load import runs
from tests.marks import all_slow_but
from tests.own_texts import register_texts
from tests.train.killed import KILLS, forked, killed_at
from tests.train.test_mixture import TEXTS
from train.saving.run_folder import RESUME_FILE, find_run
from train.stats import Stats
from train.trainer import LMTrainer

CONFIG = """
DataParams
dataset_name = "maskedcopy"
task_args = {"max_length": 8}
n_samples = 150
TrainParams
lr = 1e-2
batch_size = 8
accumulate_grad_batches = 2
epochs = 3
val_every = 7
dropout = 0.1
threads = 1
hyperparams_log_freq = 1
ModelParams
dim = 16
n_layers = 1
n_heads = 2
max_seq_len = 24
"""
KINDS = {
    "plain": [],
    "plateau and patience, muP by Muon, omegas from a profile": [
        "optimizer='muon'",
        "parametrization='mup'",
        "mup_base_dim=4",
        "residual='admin'",
        "residual_profile=True",
        "norm_position='post'",
        "lr_schedule='plateau'",
        "lr_plateau_patience=1",
        "patience=2",
        "lr=0.1",
        "epochs=6",
    ],
    "validation after every epoch": [
        "val_every=None",
        "precision='64-true'",
        "accumulate_grad_batches=1",
        "optimizer='sgd'",
    ],
    "a length in tokens, shares of the run, conditions": [
        "max_tokens=4000",
        "warmup_steps=0.2",
        "val_every=0.15",
        "hyperparams_log_freq=0.1",
        "checkpoint_every=0.3",
        "patience=9",
        "patience_metric='max update_ratio:embed.tokens'",
        "stop_when='val_accuracy > 0.99'",
    ],
    "lion with averages, cautious decay, settings by pattern": [
        "optimizer='lion'",
        "lr=1e-3",
        "ema_decay=0.9",
        "cautious_decay=True",
        "param_groups={'embed.*': {'lr': 3, 'betas': (0.5, 0.9)}}",
        "checkpoint_every=5",
        "patience=3",
    ],
    "evaluation sets": [
        "eval_sets={'long': {'n_samples': 20, 'task_args': {'min_length': 9, 'max_length': 10}}}",
        "eval_every=2",
    ],
    "a mixture of texts": [
        "dataset_name={'abc': 3, 'defg': 1}",
        "task_args={}",
        "n_samples=10_000",
        "val_pct=20.0",
        "tokenizer_source_name='char'",
    ],
    "experts balanced by biases": ["n_experts=4", "balance='bias'", "dim_ff=16"],
    "masked, seeing both sides": ["causal=False", "objective='masked'", "mask_frac=0.3"],
    "recurrent, in bf16, with weights kept": [
        "layer_architecture='torch-gru'",
        "precision='bf16-mixed'",
        "checkpoint_every=5",
    ],
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """main.py with the config above, in this process; gives the exit code."""
    (tmp_path / "trial.txt").write_text(CONFIG)
    register_texts(monkeypatch, TEXTS)
    monkeypatch.setattr(main, "CONFIGS", tmp_path)

    def call(*fields, out="out", options=("--resume",)):
        words = ["--config=trial", "--no-wandb", "--out", str(tmp_path / out), *options]
        return main.main(words + [f"--set={field}" for field in fields])

    call.root = tmp_path
    return call


def outcome(root: Path) -> dict:
    """All that a finished run leaves, but for times."""
    table = runs(str(root), all=True)
    assert list(table.status) == ["complete"]
    folder = find_run(table.index[0], str(root))
    assert not (folder / RESUME_FILE).exists()
    assert not list(folder.glob("*.partial"))
    stats = Stats.load(folder / "stats.json").train_stats
    del stats["stat/train_seconds"]
    files = [folder / "model.safetensors", *sorted(folder.glob("checkpoints/*"))]
    weights = {f"{file.name}/{name}": w for file in files for name, w in load_file(file).items()}
    summary = {
        key: table[key].iloc[0] for key in ("val_loss", "steps", "trained_samples", "stopped", "weights")
    }
    return {"weights": weights, "stats": stats, "summary": summary}


def assert_same(a: dict, b: dict) -> None:
    assert a["summary"] == b["summary"]
    assert a["stats"] == b["stats"]
    assert a["weights"].keys() == b["weights"].keys()
    for name, w in a["weights"].items():
        assert torch.equal(w, b["weights"][name]), name


def assert_the_end_is_the_same(call, kind: str, kills: dict[str, list[int]]) -> None:
    fields = KINDS[kind]
    assert forked(lambda: call(*fields, out="whole", options=["--save"])) == 0
    whole = outcome(call.root / "whole")
    for kill, moments in kills.items():
        for n in moments:
            out = f"{kill}-{n}"
            died = forked(lambda kill=kill, n=n, out=out: killed_at(kill, n, lambda: call(*fields, out=out)))
            assert died == -signal.SIGKILL or (n > 1 and died == 0), "the first of everything comes"
            assert forked(lambda out=out: call(*fields, out=out)) == 0
            assert_same(outcome(call.root / out), whole)


NOT_IN_CI = ["a length in tokens, shares of the run, conditions", "evaluation sets"]


@pytest.mark.parametrize("kind", all_slow_but(["plain"], KINDS, skipped=NOT_IN_CI))
def test_a_killed_run_ends_as_it_would_have(kind, call):
    dice = random.Random(kind)
    chosen = ["the end", *dice.sample([kill for kill in KILLS if kill != "the end"], 2)]
    assert_the_end_is_the_same(call, kind, {kill: [dice.randint(1, 9)] for kill in chosen})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whenever_it_is_killed(kind, call):
    dice = random.Random()
    assert_the_end_is_the_same(call, kind, {kill: [1, *dice.sample(range(2, 25), 3)] for kill in KILLS})


@pytest.mark.slow
def test_killed_again_and_again(call):
    assert forked(lambda: call(out="whole", options=["--save"])) == 0
    dice, deaths = random.Random(0), 0
    while (died := forked(lambda: killed_at("batch", dice.randint(3, 9), call))) != 0:
        assert died == -signal.SIGKILL
        deaths += 1
    assert deaths > 3
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))


@pytest.mark.slow
@pytest.mark.ci
def test_checkpoints_change_nothing(call):
    assert forked(lambda: call(out="whole", options=["--save"])) == 0
    assert forked(lambda: killed_at("batch", 1000, lambda: call(out="often"))) == 0
    assert_same(outcome(call.root / "often"), outcome(call.root / "whole"))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("content", ["code", "garbage", "empty", "foreign", "cut"])
def test_a_bad_checkpoint_executes_nothing_and_the_run_begins_anew(content, call, capfd):
    assert forked(lambda: call(out="whole", options=["--save"])) == 0
    assert forked(lambda: killed_at("batch", 30, call)) == -signal.SIGKILL
    [path] = (call.root / "out").rglob(RESUME_FILE)
    mark = call.root / "executed"
    if content == "code":
        torch.save({"loops": Payload(mark)}, path)
    elif content == "foreign":
        torch.save({"loops": {}}, path)
    else:
        path.write_bytes(
            {"garbage": b"no checkpoint" * 99, "empty": b"", "cut": path.read_bytes()[:-900]}[content]
        )
    assert forked(call) == 0
    assert not mark.exists()
    assert f"{path} cannot be read, so the run begins anew: " in capfd.readouterr().out
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))


class Payload:
    """Touches a file when it is unpickled by whoever executes what it finds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Sketchpad:
    """A place outside the trainer, which no checkpoint holds."""


def remember(training_step):
    """Add state as users do to a training step. Each kind of state affects the next loss or is logged."""

    def step(self, batch, batch_idx):
        if not hasattr(self, "seen"):  # made in a hook, not in __init__
            self.seen, self.by_task, self.recent = 0, {"a": [0.0]}, deque(maxlen=3)
            self.ema, self.dice = torch.zeros(3), torch.Generator().manual_seed(5)
        self.seen += 1
        self.ema = 0.9 * self.ema + 0.1 * self.seen
        self.recent.append(self.seen)
        self.by_task["a"][0] += sum(self.recent)
        drawn = torch.rand(1, generator=self.dice)
        for name in ("seen", "drawn"):
            self.log_stat(name, {"seen": self.seen, "drawn": drawn}[name])
        self.log_stat("ema", self.ema.sum())
        self.log_stat("by_task", self.by_task["a"][0])
        return training_step(self, batch, batch_idx)

    return step


@pytest.mark.slow
@pytest.mark.ci
def test_state_that_users_add_to_the_trainer_is_resumed(call, monkeypatch):
    monkeypatch.setattr(LMTrainer, "training_step", remember(LMTrainer.training_step))
    assert call("val_every=None", out="whole", options=["--save"]) == 0
    died = forked(lambda: killed_at("optimizer", 11, lambda: call("val_every=None")))
    assert died == -signal.SIGKILL
    assert call("val_every=None") == 0
    resumed, whole = outcome(call.root / "out"), outcome(call.root / "whole")
    assert_same(resumed, whole)
    seen = [stat.v for stat in resumed["stats"]["stat/seen"]]
    assert seen == [*range(1, len(seen) + 1)]


def test_state_that_no_checkpoint_holds_is_named_once(call, monkeypatch, capsys):
    begins = LMTrainer.on_train_start

    def with_state(self):
        begins(self)
        self.sketchpad, self.window = Sketchpad(), (lambda: 0)
        self.register_buffer("late", torch.zeros(2))

    monkeypatch.setattr(LMTrainer, "on_train_start", with_state)
    assert call(options=["--save"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("a resumed run begins without") == 1
    assert "without LMTrainer.sketchpad, LMTrainer.window, LMTrainer.late: checkpoints hold" in shown


@pytest.mark.slow
@pytest.mark.ci
def test_a_plain_run_has_no_state_that_is_lost(call, capsys):
    for kind in ("plateau and patience, muP by Muon, omegas from a profile", "validation after every epoch"):
        assert call(*KINDS[kind], "checkpoint_every=5", out=kind[:4], options=["--save"]) == 0
    assert "begins without" not in capsys.readouterr().out
