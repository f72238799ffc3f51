"""Forked processes that kill themselves, as `kill -9` would, at a moment of a run."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

import train.run
import train.saving.record
from train.checkpoint import ResumePoint
from train.saving.run_folder import RESUME_FILE
from train.schedules import Schedule
from train.trainer import LMTrainer


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(function: Callable[[], int | None]) -> int:
    """Run `function` in a forked process. Return its result, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        # The engine that draws charts (V8, in vl_convert) hangs in a fork of a process that has used it. A run without this
        # page is not lost. The first name is for a copy of the product, which imports its modules anew.
        for name in ("vl_convert", "explore.compare.page"):
            sys.modules[name] = None  # type: ignore[assignment]
        code = 99
        try:
            code = function() or 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def interrupt(*_: object) -> None:
    """Press Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def before(
    owner: object,
    name: str,
    n: int,
    patch: pytest.MonkeyPatch,
    when: Callable[..., bool] = lambda *_: True,
    what: Callable[[], None] = die,
) -> None:
    """Death, or what else is given, comes before the n-th call of a method, of those for which `when` holds."""
    method, calls = getattr(owner, name), count(1)

    def mortal(*args, **kwargs):
        if when(*args) and next(calls) == n:
            what()
        return method(*args, **kwargs)

    patch.setattr(owner, name, mortal)


def half_written(n: int, patch: pytest.MonkeyPatch) -> None:
    """Death comes when half of the n-th checkpoint is on the disk."""

    def cut(path: Path, target: Path) -> Path:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        die()
        return target

    replace, calls = Path.replace, count(1)
    patch.setattr(
        Path,
        "replace",
        lambda path, target: (cut if is_checkpoint(path) and next(calls) == n else replace)(path, target),
    )


def is_checkpoint(path: Path, *_: object) -> bool:
    return path.name.startswith(RESUME_FILE)


KILLS: dict[str, Callable[[int, pytest.MonkeyPatch], None]] = {
    "batch": lambda n, patch: before(
        LMTrainer, "training_step", n, patch
    ),  # odd ones begin a step, even ones end it
    "optimizer": lambda n, patch: before(LMTrainer, "on_before_optimizer_step", n, patch),
    "validation": lambda n, patch: before(LMTrainer, "validation_step", n, patch),
    "judgement": lambda n, patch: before(Schedule, "add_val_loss", n, patch),
    "half a checkpoint": half_written,
    "a whole checkpoint": lambda n, patch: before(Path, "replace", n, patch, is_checkpoint),
    "the end": lambda n, patch: before(train.run, "unshard", n, patch),
    "the last save": lambda n, patch: before(train.saving.record, "save", n, patch),
    "the last name": lambda n, patch: before(train.saving.record.RunFolder, "finish", n, patch),
}


def killed_at(kill: str, n: int, function: Callable[[], int | None]) -> int | None:
    """`function`, in which death comes at the n-th such moment; there is a checkpoint at every other step."""
    with pytest.MonkeyPatch.context() as patch:
        steps = count()
        patch.setattr(ResumePoint, "is_due", lambda *_: next(steps) % 2 == 1)
        KILLS[kill](n, patch)
        return function()
