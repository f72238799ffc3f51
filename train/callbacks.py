"""Callbacks of a run: interrupts, kept weights, early stopping, times and progress."""

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from data.batch import mycollate
from train.compiled import MAX_MORE_GRAPHS, CompiledForward, compile_forward, forget_graphs, graphs_so_far
from train.logs import log, say_at_once
from train.metrics import Condition, metric_and_sign
from train.processes import rank
from train.progress import Progress, Report
from train.saving.outcome import Ending
from train.saving.weights import Checkpoints
from train.state import Attributes, Saved
from train.stopwatch import Stopwatch
from train.trainer import DRAIN_EVERY, LMTrainer

FIRST_REPORT_SECONDS = 0.05  # between looks for the first step
REPORT_SECONDS = 0.3  # between reports


class Callback(L.Callback):
    """A callback with a hook for the end of an optimizer step. Its attributes are saved in resume checkpoints.

    This holds for all attributes that a subclass sets, except those it names in `not_saved`.
    """

    not_saved: tuple[str, ...] = ()
    step = 0  # optimizer steps that have ended

    def on_step_end(self, trainer: L.Trainer, module: LMTrainer) -> None:
        """Do something after the last batch of each optimizer step."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: object, *_: object
    ) -> None:
        assert isinstance(module, LMTrainer)
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.on_step_end(trainer, module)

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if "attributes" not in vars(self):
            self.attributes = Attributes(self, without=self.not_saved)

    def state_dict(self) -> Saved:
        saved, _ = self.attributes.save()
        return saved

    def load_state_dict(self, state_dict: Saved) -> None:
        self.attributes.restore(state_dict)


class StopOnInterrupt(Callback):
    """End a run before its next batch after Ctrl-C, in all its processes together."""

    not_saved = ("is_pressed",)  # a resumed run must not stop again

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet  # say nothing: another process tells the user
        self.is_pressed = False  # with several processes only set in the first one

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C inside the block: the first stops training after its current step, the second ends the program."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN if rank() else self.press)
        try:
            yield
        except SystemExit as error:  # Lightning turns the second Ctrl-C into this
            raise KeyboardInterrupt from error
        finally:
            signal.signal(signal.SIGINT, before)

    def press(self, signal_number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not logged: the signal may come while a log is being written, and logs cannot be entered twice.
        if not self.quiet:
            say_at_once("interrupted: stopping after this step; press Ctrl-C once more to leave at once")
        self.is_pressed = True

    def is_known(self, trainer: L.Trainer) -> bool:
        """Return True if Ctrl-C was pressed in any process. Several processes exchange this every DRAIN_EVERY steps."""
        if trainer.world_size == 1:
            return self.is_pressed
        if trainer.global_step % DRAIN_EVERY:
            return False
        pressed = torch.tensor(float(self.is_pressed), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(pressed)
        return bool(pressed > 0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        assert isinstance(module, LMTrainer)
        if self.is_known(trainer):  # pressed in a validation before the first step
            module.stop(Ending.INTERRUPTED)

    def on_step_end(self, trainer: L.Trainer, module: LMTrainer) -> None:
        if self.is_known(trainer):
            module.leave()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LMTrainer)
        if trainer.state.fn == "fit" and self.is_known(trainer):
            module.leave()


class KeepWeights(Callback):
    """Keep the weights of the first step, of those that are due by `checkpoints.every`, and of the last."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        assert isinstance(module, LMTrainer)
        if trainer.global_step == 0:
            self.checkpoints.keep(module.model, 0)

    def on_step_end(self, trainer: L.Trainer, module: LMTrainer) -> None:
        if module.length.is_due(self.checkpoints.every, self.step):
            with module.averages:
                self.checkpoints.keep(module.model, self.step)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LMTrainer)
        if module.stopped != Ending.INTERRUPTED:  # an interrupted run continues later
            with module.averages:
                self.checkpoints.keep(module.model, trainer.global_step)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        self.checkpoints.wait()  # a run resumed from this checkpoint does not write them again


class KeepBest(Callback):
    """Stop a run after `patience` validations without a gain in `metric`. Keep a copy of the best weights.

    `metric` is a value of `patience_metric`.
    """

    def __init__(self, patience: int, metric: str = "val_loss") -> None:
        self.patience = patience
        self.metric, self.sign = metric_and_sign(metric)
        self.best, self.best_step, self.validations_without_gain = math.inf, 0, 0
        self.best_weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LMTrainer)
        if trainer.state.fn != "fit":
            return
        value = self.sign * module.latest_values().get(self.metric, math.nan)
        if value < self.best:
            self.best, self.best_step, self.validations_without_gain = value, trainer.global_step, 0
            weights = module.model.state_dict()
            self.best_weights = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
            return
        self.validations_without_gain += 1
        if self.validations_without_gain >= self.patience:
            module.stop(f"{Ending.EARLY_STOP}: no better validation in {self.validations_without_gain}")

    def restore(self, module: LMTrainer) -> None:
        """Load the best weights if they are better than the last ones."""
        if self.best_weights is not None and self.best_step < module.global_step:
            module.load_weights_of(self.best_step, self.best_weights)


class StopWhen(Callback):
    """Stop a run after the first validation at which a condition on its metrics holds."""

    not_saved = ("condition",)

    def __init__(self, condition: str) -> None:
        self.condition = Condition(condition)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LMTrainer)
        if trainer.state.fn == "fit" and self.condition(module.latest_values()):
            module.stop(f"{Ending.EARLY_STOP}: {self.condition.text}")


class Clock(Callback):
    """Measures the seconds of training, without validation, and those of the whole run.

    A resumed run continues from the seconds in its checkpoint.
    """

    def __init__(self) -> None:
        self.training, self.whole_run = Stopwatch(), Stopwatch()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        # A validation before the first step does not count.
        self.training.start(0.0 if trainer.global_step == 0 else None)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.training.pause()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.training.start()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.training.pause()


class CompileTraining(L.Callback):
    """Compile the model before the first step. Validation, generation and everything else run uncompiled."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.forward: CompiledForward | None = None
        self.n_graphs = 0  # that torch has compiled in this process
        self.n_more = 0  # of these during training

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LMTrainer)
        rows, train = module.data.rows("train"), module.train_params
        n = min(len(rows), train.batch_size)
        batch = mycollate([rows[i] for i in range(n)], pad=module.data.tokenizer.pad)
        with isolate_rng(), trainer.precision_plugin.train_step_context():
            self.forward = compile_forward(module.model, batch, train, self.cache)
        self.n_graphs = graphs_so_far()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        assert isinstance(module, LMTrainer)
        module.model._compiled_call_impl = self.forward

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        self.end(module)
        if (n := graphs_so_far()) > self.n_graphs:
            self.n_graphs, self.n_more = n, self.n_more + 1
            forget_graphs()
            log.info(f"compiled again in step {trainer.global_step}; TORCH_LOGS=recompiles shows why")
            if self.n_more > MAX_MORE_GRAPHS and self.forward is not None:
                self.forward.give_up(f"the code changed in {self.n_more} steps and was compiled each time")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.end(module)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, error: BaseException) -> None:
        self.end(module)

    def end(self, module: L.LightningModule) -> None:
        assert isinstance(module, LMTrainer)
        module.model._compiled_call_impl = None


class ReportProgress(L.Callback):
    """Report the first step, by which all memory is allocated, and then the progress at intervals.

    A thread of its own reads the progress, so that training never waits for it.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.is_over = threading.Event()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LMTrainer)
        threading.Thread(target=self.watch, args=[module, trainer.global_step], daemon=True).start()

    def watch(self, module: LMTrainer, first_step: int) -> None:
        seconds = FIRST_REPORT_SECONDS
        with contextlib.suppress(OSError):  # nobody listens any more
            while not self.is_over.wait(seconds):
                if module.global_step > first_step:
                    self.report(progress_of(module))
                    seconds = REPORT_SECONDS

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LMTrainer)
        self.is_over.set()
        self.report(progress_of(module))

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, error: BaseException) -> None:
        self.is_over.set()


def progress_of(module: LMTrainer) -> Progress:
    """Return the progress of a run. This waits for the device, but training does not wait for this."""
    loss, seconds = module.stats.latest("train_loss:main"), module.train_seconds
    speed = float(module.n_tokens) / seconds if seconds > 0 else None
    is_validating = module.trainer.validating
    return Progress(
        module.global_step, None if loss is None else float(loss), speed, module.device, is_validating
    )
