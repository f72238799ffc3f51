"""Resume checkpoints: the complete state of a run, from which it continues bitwise as if it had never been killed.

The file is Lightning's. This file adds random states, and LMTrainer adds its attributes.
"""

import os
import pickle
import random
import time
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from train.logs import log
from train.processes import rank
from train.saving.durable import replacing
from train.saving.outcome import Ending
from train.saving.run_folder import RESUME_FILE
from train.saving.weights import one_line, regular_file
from train.trainer import LMTrainer

UNREADABLE = (OSError, RuntimeError, EOFError, pickle.UnpicklingError)  # errors of torch.load for a bad file
SECONDS_BETWEEN_CHECKPOINTS = 120.0  # between two checkpoints; there is one at the end of every epoch, too


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint by the next one atomically, so a complete one always exists.

    If writing fails, the last checkpoint stays and training continues. The first failure is a warning.
    """

    has_warned = False

    def save_checkpoint(
        self, checkpoint: dict[str, object], path: str | os.PathLike[str], storage_options: object = None
    ) -> None:
        try:
            with replacing(Path(path)) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, MemoryError, RuntimeError) as error:
            # torch raises an error about positions in the file; the actual reason is its context.
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            if not self.has_warned:
                last = "the last one that was written" if Path(path).exists() else "the beginning"
                log.warning(
                    f"{path} cannot be written: {one_line(reason)}. Training continues; if it is killed, --resume "
                    f"continues from {last}. Free some space: the next checkpoint is tried again."
                )
            self.has_warned = True


class Position(NamedTuple):
    """The progress of a run through its rows."""

    epoch: int
    batches: int  # of this epoch


class RandomState(TypedDict):
    """The states of all global random generators, in types that a checkpoint may hold."""

    torch: Tensor
    cuda: list[Tensor]
    numpy: dict[str, Any]
    python: tuple[Any, ...]


class ResumePoint(L.Callback):
    """Callback that keeps the latest checkpoint of a run in `path`, and resumes from one that exists at the start.

    Only the first process of a run writes. Other processes use the path only for reading.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path or Path(RESUME_FILE)
        self.written_at = time.monotonic()
        self.random_states: list[RandomState] | None = None  # to be restored, one for each process
        self.position = self.read()  # where the run continues; None: it begins

    def read(self) -> Position | None:
        """Return the position in the checkpoint, which is read as data, never as code.

        Return None if there is no file; warn and return None if it is not a valid checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            path = regular_file(self.path)
            return position_in(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        except (*UNREADABLE, ValueError, LookupError, TypeError) as error:
            log.warning(f"{self.path} cannot be read, so the run begins anew: {one_line(error)}")
            return None

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.random_states = checkpoint["random_states"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Write checkpoints between two batches: all earlier ones are complete, and this one has not begun."""
        assert isinstance(pl_module, LMTrainer)
        if self.random_states is not None:
            set_random_state(self.random_states[rank()])
            self.random_states = None
        elif pl_module.is_leaving or (
            batch_idx % trainer.accumulate_grad_batches == 0 and self.is_due(trainer, batch_idx)
        ):
            self.write(trainer)

    def is_due(self, trainer: L.Trainer, batch_idx: int) -> bool:
        if batch_idx == 0:
            return trainer.current_epoch > 0
        # The first process decides for all, and not at every step, since the others wait for it.
        if trainer.world_size == 1:
            return time.monotonic() - self.written_at > SECONDS_BETWEEN_CHECKPOINTS
        return trainer.global_step % 50 == 0 and trainer.strategy.broadcast(
            time.monotonic() - self.written_at > SECONDS_BETWEEN_CHECKPOINTS
        )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMTrainer)
        if pl_module.stopped != Ending.INTERRUPTED:  # an interrupted run has just written its checkpoint
            self.write(trainer)

    def write(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.written_at = time.monotonic()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = [random_state()] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, random_state())
        checkpoint["random_states"] = states
        # Lightning counts the current batch as begun, so a resumed run would skip it.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]


def position_in(checkpoint: dict[str, Any]) -> Position:
    loops = checkpoint["loops"]["fit_loop"]
    epoch = loops["epoch_progress"]["current"]["processed"]
    batches = loops["epoch_loop.batch_progress"]["current"]["completed"]
    if not isinstance(epoch, int) or not isinstance(batches, int) or "random_states" not in checkpoint:
        raise ValueError("it is not a resume checkpoint")
    return Position(epoch, batches)


def random_state() -> RandomState:
    """Return the state of every global random generator."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 -- for libraries that draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].tolist()}},
        "python": random.getstate(),
    }


def set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
