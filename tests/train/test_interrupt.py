"""Ctrl-C: the run ends after the step at hand, and --resume goes on from that step bit by bit as if nothing had been."""

from itertools import count

import pytest
import torch

import main
from explore.load import runs
from tests.marks import all_slow_but
from tests.own_texts import register_texts
from tests.train.killed import before, interrupt
from tests.train.test_checkpoint import CONFIG, KINDS, assert_same, outcome
from tests.train.test_mixture import TEXTS
from train.checkpoint import ResumePoint
from train.saving.run_folder import RESUME_FILE, find_run
from train.saving.timestamps import run_folders
from train.schedules import Schedule
from train.trainer import LMTrainer

# 3 epochs of 135 rows in batches of 8, two to a step except for the last one of an epoch.
N_BATCHES, N_STEPS = 51, 27
MOMENTS = {  # where Ctrl-C is pressed, and at which optimizer step the run then ends; a step has two batches
    "in the first batch of a step": (LMTrainer, "training_step", 11, 6),
    "in the last batch of a step": (LMTrainer, "training_step", 12, 6),
    "in the very first batch": (LMTrainer, "training_step", 1, 1),
    "in the first batch of an epoch": (LMTrainer, "training_step", 18, 10),
    "in the last batch of an epoch": (LMTrainer, "training_step", 17, 9),
    "as the optimizer steps": (LMTrainer, "on_before_optimizer_step", 8, 8),
    "in a validation": (LMTrainer, "validation_step", 2, 14),
    "after a validation": (Schedule, "add_val_loss", 2, 14),
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """main.py with the config of the resume tests, in this process. `batches` are the steps of those trained last."""
    (tmp_path / "trial.txt").write_text(CONFIG)
    register_texts(monkeypatch, TEXTS)
    monkeypatch.setattr(main, "CONFIGS", tmp_path)
    training_step, batches = LMTrainer.training_step, []

    def noted(self, *args):
        if self.trainer.max_steps > 1:  # not the step that the check of a grid trains to know the metrics
            batches.append(self.global_step)
        return training_step(self, *args)

    monkeypatch.setattr(LMTrainer, "training_step", noted)

    def call(*fields, out="out", options=("--resume",)):
        del batches[:]
        words = ["--config=trial", "--no-wandb", "--out", str(tmp_path / out), *options]
        return main.main(words + [f"--set={field}" for field in fields])

    call.root, call.batches = tmp_path, batches
    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of a run to which nothing happened."""
    root = tmp_path_factory.mktemp("whole")
    (root / "trial.txt").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "CONFIGS", root)
        assert main.main(["--config=trial", "--no-wandb", "--save", "--out", str(root)]) == 0
    return outcome(root)


@pytest.fixture
def ctrl_c(monkeypatch):
    """Give the result of a function in which Ctrl-C is pressed before the n-th call of a method."""

    def pressed(function, owner, name, n, **options):
        with monkeypatch.context() as patch:
            before(owner, name, n, patch, what=interrupt, **options)
            return function()

    return pressed


def interrupted_run(root):
    """The folder and the row of the only run below `root`, which Ctrl-C has ended."""
    [row] = runs(str(root), all=True).itertuples()
    assert (row.status, row.stopped) == ("complete", "interrupted")
    return find_run(row.Index, str(root)), row


def is_resume_checkpoint(content, *_):
    return isinstance(content, dict) and "loops" in content


@pytest.mark.parametrize("moment", all_slow_but(["in the first batch of a step", "in a validation"], MOMENTS))
def test_a_run_goes_on_from_the_step_at_which_ctrl_c_came(moment, call, ctrl_c, whole):
    *where, step = MOMENTS[moment]
    assert ctrl_c(call, *where) == 130
    folder, row = interrupted_run(call.root / "out")
    assert row.steps == step
    assert (folder / RESUME_FILE).exists()
    assert call() == 0
    assert (min(call.batches), max(call.batches)) == (step, N_STEPS - 1), "no step is trained twice"
    assert_same(outcome(call.root / "out"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_every_kind_of_run_goes_on_after_ctrl_c(kind, call, ctrl_c):
    """Patience, a plateau, weights kept at every fifth step: none of them hears of the interruption."""
    fields = KINDS[kind]
    assert call(*fields, out="whole", options=["--save"]) == 0
    n = len(call.batches) // 2 | 1
    assert ctrl_c(lambda: call(*fields), LMTrainer, "training_step", n) == 130
    step = interrupted_run(call.root / "out")[1].steps
    assert call(*fields) == 0
    assert min(call.batches) == step > 0
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))


@pytest.mark.slow
@pytest.mark.ci
def test_ctrl_c_again_and_again(call, ctrl_c, whole):
    presses = 0
    while (code := ctrl_c(call, LMTrainer, "training_step", 9)) != 0:
        assert code == 130
        presses += 1
    assert presses == 5  # five steps a time, of 27
    assert_same(outcome(call.root / "out"), whole)


@pytest.mark.slow
@pytest.mark.ci
def test_ctrl_c_while_a_checkpoint_is_written(call, ctrl_c, monkeypatch, whole):
    monkeypatch.setattr(ResumePoint, "is_due", lambda *_: True)
    assert ctrl_c(call, torch, "save", 3, when=is_resume_checkpoint) == 130
    assert interrupted_run(call.root / "out")[1].steps == 3
    assert call() == 0
    assert_same(outcome(call.root / "out"), whole)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("where", [(ResumePoint, "setup"), (LMTrainer, "configure_optimizers")])
def test_ctrl_c_before_the_first_step_leaves_nothing_to_go_on_from(where, call, ctrl_c):
    assert ctrl_c(call, *where, 1) == 130
    assert call.batches == []
    folder, row = interrupted_run(call.root / "out")
    assert row.steps == 0
    assert not (folder / RESUME_FILE).exists()
    assert call() == 0
    assert call.batches[0] == 0


@pytest.mark.slow
@pytest.mark.ci
def test_ctrl_c_before_the_first_step_of_a_run_that_goes_on_keeps_its_checkpoint(call, ctrl_c, whole):
    assert ctrl_c(call, LMTrainer, "training_step", 12) == 130
    assert ctrl_c(call, LMTrainer, "configure_optimizers", 1) == 130
    assert call.batches == []
    assert call() == 0
    assert call.batches[0] == 6
    assert_same(outcome(call.root / "out"), whole)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("where", "n"), [((LMTrainer, "training_step"), N_BATCHES), ((ResumePoint, "on_fit_end"), 1)]
)
def test_a_run_whose_last_step_is_interrupted_is_finished_and_the_grid_ends(where, n, call, ctrl_c, capsys):
    assert call("random_seed=1", out="whole", options=["--save"]) == 0
    assert ctrl_c(lambda: call("random_seed=[1,2]"), *where, n) == 130
    assert len(call.batches) == N_BATCHES, "the second run did not begin"
    assert "finished, then Ctrl-C" in " ".join(capsys.readouterr().out.split())
    assert_same(outcome(call.root / "out"), outcome(call.root / "whole"))
    assert call("random_seed=[1,2]") == 0
    assert len(call.batches) == N_BATCHES, "the second run alone"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("n", [5, 12])
def test_a_second_ctrl_c_ends_the_run_at_once(n, call, monkeypatch, whole):
    """A later call resumes from the last checkpoint, or trains the run from the start."""
    training_step, batches = LMTrainer.training_step, count(1)

    def twice(self, *args):
        if next(batches) == n:
            interrupt()
            interrupt()
            pytest.fail("is not reached")
        return training_step(self, *args)

    with monkeypatch.context() as patch:
        steps = count()
        patch.setattr(ResumePoint, "is_due", lambda *_: next(steps) == 4)
        patch.setattr(LMTrainer, "training_step", twice)
        assert call() == 130
    folders = list(run_folders(call.root / "out"))
    assert [folder.name.endswith(".partial") for folder in folders] == [True] * (n == 12)
    assert call() == 0
    assert call.batches[0] == (4 if n == 12 else 0)
    assert_same(outcome(call.root / "out"), whole)


@pytest.mark.slow
@pytest.mark.ci
def test_a_second_ctrl_c_while_the_checkpoint_is_written_leaves_the_one_before(
    call, ctrl_c, monkeypatch, whole
):
    steps = count()
    monkeypatch.setattr(ResumePoint, "is_due", lambda *_: next(steps) == 4)

    def second():
        return ctrl_c(call, torch, "save", 2, when=is_resume_checkpoint)

    assert ctrl_c(second, LMTrainer, "training_step", 21) == 130
    [folder] = run_folders(call.root / "out")
    assert folder.name.endswith(".partial"), "there was no time to save it"
    assert {path.name for path in folder.glob("resume*")} == {RESUME_FILE}
    assert call() == 0
    assert call.batches[0] == 4
    assert_same(outcome(call.root / "out"), whole)
