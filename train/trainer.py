"""LMTrainer: what happens to an LM in training, hook by hook, in order of time."""

import math
import time
from collections import defaultdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from data.dataloader import LMDataModule
from model.lm import LM
from train.evaluation import Evaluation
from train.logs import log
from train.optimizers import freeze, group_settings, make_optimizer
from train.schedules import Schedule
from train.sharding import FSDP, gathered, number, shard
from train.stats import Stats
from train.train_params import TrainParams
from train.weights import Checkpoints

FINISHED, INTERRUPTED = "finished", "interrupted"  # why a run ended; there are others
DRAIN_EVERY = 50  # steps between moments when statistics leave the device
DIVERGED = 3.0  # a training loss so many times the first one has diverged


class LMTrainer(L.LightningModule):
    """Trains `model` on `data` for `n_steps` optimiser steps. Lightning does the rest."""

    def __init__(
        self,
        model: LM,
        data: LMDataModule,
        train_params: TrainParams,
        stats: Stats,
        n_steps: int,
        *,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.data = data
        self.train_params = train_params
        self.stats = stats
        self.schedule = Schedule(train_params, n_steps)
        self.checkpoints = checkpoints
        self.n_samples = 0  # rows trained on so far, by all processes together
        self.n_tokens = 0  # real tokens among them
        self.train_seconds, self.clock = 0.0, time.perf_counter()  # without validation
        self.earlier_seconds, self.began = 0.0, time.perf_counter()
        self.stopped = FINISHED  # or why it ended before its time
        self.best_loss, self.best_step, self.validations_without_gain = math.inf, 0, 0
        self.best_weights: dict[str, Tensor] | None = None  # with patience
        self.restored_best = False
        self.validated_at = -1  # the step of the last validation
        self.result: dict[str, float] = {}  # of that validation
        self.leak: str | None = None  # what predictions see that they must not
        self.sample = ""  # what the model said in the last validation
        freeze(model, train_params)

    def log_stat(self, name: str, value: float | Tensor) -> None:
        """Keep a number (or a tensor of one) under `stat/name`, for the saved run and for wandb; never waits."""
        self.stats.log(name, number(value), step=self.global_step, n_samples=self.n_samples)

    def configure_model(self) -> None:
        if self.train_params.strategy == FSDP:
            assert self.device_mesh is not None, "Lightning makes one with this strategy"
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(self.model, self.train_params)
        self.scheduler = LambdaLR(
            optimizer, lambda step: self.schedule(step)
        )  # saved below, with all the rest
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The course of the run, beside the weights and the optimiser."""
        now = time.perf_counter()
        if self.checkpoints is not None:
            self.checkpoints.wait()  # a run that goes on from here does not write them again
        checkpoint["course"] = {
            "stats": self.stats.state(),
            "schedule": self.schedule.state(),
            "rows": self.n_samples,
            "tokens": self.n_tokens,
            "train_seconds": self.train_seconds + now - self.clock,
            "seconds": self.wall_seconds,
            "stopped": FINISHED if self.stopped == INTERRUPTED else self.stopped,  # what goes on was not
            "best": (self.best_loss, self.best_step, self.validations_without_gain),
            "best_weights": self.best_weights,
            "validated_at": self.validated_at,
            "result": self.result,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        course = checkpoint["course"]
        self.stats.restore(course["stats"])
        self.schedule.restore(course["schedule"])
        self.n_samples, self.n_tokens = course["rows"], course["tokens"]
        self.train_seconds, self.earlier_seconds = course["train_seconds"], course["seconds"]
        self.stopped = course["stopped"]
        self.best_loss, self.best_step, self.validations_without_gain = course["best"]
        self.best_weights = course["best_weights"]
        self.validated_at, self.result = course["validated_at"], course["result"]
        self.trainer.should_stop = self.stopped != FINISHED

    @property
    def wall_seconds(self) -> float:
        """Since the run began, without the time it lay dead."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def on_train_start(self) -> None:
        self.clock = time.perf_counter()
        if self.global_step == 0:
            self.train_seconds = 0.0  # a validation before does not count
        if self.global_rank:  # not the same dropout in every process
            torch.manual_seed(self.train_params.random_seed + self.global_rank)
        if self.checkpoints is not None and self.global_step == 0:
            self.checkpoints.keep(self.model, 0)
        self.trainer.should_stop = self.stopped != FINISHED  # by Ctrl-C in a validation before

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        losses, _ = self.model.get_losses(batch, self.train_params)
        self.n_samples += batch["n_rows"]
        self.n_tokens += batch["n_tokens"]
        for name, loss in self.of_all_processes(losses, batch["n_scored"]).items():
            self.log_stat(f"train_loss:{name}", loss)
        # Lightning divides by the number of accumulated batches and of processes; a batch counts by its scored tokens instead.
        n_batches = self.train_params.accumulate_grad_batches * self.trainer.world_size
        return sum(losses.values()) * (batch["n_scored"] / max(1, batch["n_scored_step"]) * n_batches)

    def of_all_processes(self, losses: dict[str, Tensor], n_scored: int) -> dict[str, Tensor]:
        """The losses over what all processes score at this moment; the same message says who wants to stop."""
        if self.trainer.world_size == 1:
            return losses
        means = torch.stack([loss.detach() for loss in losses.values()])
        wants_to_stop = self.stopped != FINISHED
        sums = torch.cat(
            [means * n_scored, means.new_full((1,), n_scored), means.new_full((1,), wants_to_stop)]
        )
        torch.distributed.all_reduce(sums)
        self.n_want_to_stop = sums[-1]
        return dict(zip(losses, sums[:-2] / sums[-2].clamp(min=1), strict=True))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step % self.train_params.hyperparams_log_freq == 0:
            self.log_hyperparams_and_time()

    @torch.no_grad()
    def log_hyperparams_and_time(self) -> None:
        """Called every `hyperparams_log_freq` steps, when gradients are complete and not yet clipped."""
        lm = self.model
        self.log_stat("lr", self.scheduler.get_last_lr()[0])
        self.log_stat("train_seconds", self.train_seconds + time.perf_counter() - self.clock)
        self.log_groups()
        weights, gradients = defaultdict(list), defaultdict(list)
        for name, parameter in lm.named_parameters():
            layer = layer_of(name)
            weights[layer].append(parameter)
            if parameter.grad is not None:
                gradients[layer].append(parameter.grad)
        for kind, tensors in (("weight_norm", weights), ("grad_norm", gradients)):
            for layer, group in tensors.items():
                self.log_stat(f"{kind}:{layer}", torch.nn.utils.get_total_norm(group))

    def log_groups(self) -> None:
        """The settings of each group of parameters at this step; tau is the time, in steps, over which weights are a mean."""
        for name, lr, decay, eps in group_settings(self.scheduler.optimizer):
            self.log_stat(f"lr:{name}", lr)
            if lr * decay:
                self.log_stat(f"tau:{name}", 1 / (lr * decay))
            if eps is not None:
                self.log_stat(f"eps:{name}", eps)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own refuses fused optimisers under bf16, for the sake of loss scalers that bf16 does not have.
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_train_batch_end(self, outputs: object, batch: dict, batch_idx: int) -> None:
        if self.checkpoints is not None and self.global_step % self.checkpoints.every == 0:
            self.checkpoints.keep(self.model, self.global_step)
        if batch_idx % DRAIN_EVERY == 0:
            self.drain_and_judge()
            if self.trainer.world_size > 1 and self.n_want_to_stop > 0:
                self.stop(INTERRUPTED)

    def drain_and_judge(self) -> None:
        """Let statistics leave the device, and stop if the latest training loss says that training has diverged."""
        losses = self.stats.train_stats.get("stat/train_loss:main")
        if losses and not losses[-1].v < DIVERGED * losses[0].v:  # so that NaN counts
            latest, first = losses[-1], losses[0]
            self.stop(f"diverged: training loss {latest.v:.4g} at step {latest.s}, first {first.v:.4g}")

    def stop(self, why: str, agreed: bool = True) -> None:
        """End training after this step; the first reason stands in the summary.

        With agreed=False the other processes do not know of it: all stop together when statistics are next drained.
        """
        if self.stopped == FINISHED:
            self.stopped = why
        if agreed or self.trainer.world_size == 1:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.keep(self.model, self.global_step)

    def on_validation_start(self) -> None:
        self.pause_clock()
        self.evaluation = Evaluation(self.model, self.data)

    def pause_clock(self) -> None:
        now = time.perf_counter()
        self.train_seconds += now - self.clock
        self.clock = now

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.evaluation.add(batch, self.train_params)

    def on_validation_end(self) -> None:
        self.drain_and_judge()
        # Every process validates all rows; the first one's numbers hold for all, so that all judge alike.
        with gathered(self.model):
            self.result = self.trainer.strategy.broadcast(self.evaluation.result())
            self.sample = self.evaluation.sample()
        of_best = "best_" if self.restored_best else ""
        for name, value in self.result.items():
            self.log_stat(of_best + name, value)
        self.stats.drain()
        self.validated_at = self.global_step
        numbers = ", ".join(f"{name.removeprefix('val_')} {value:.4g}" for name, value in self.result.items())
        log.info(
            f"{of_best and 'weights of '}step {self.best_step if of_best else self.global_step}: validation {numbers}\n  sample: {self.sample!r}"
        )
        if self.trainer.state.fn == "fit":
            self.judge(self.result["val_loss:main"])
        self.clock = time.perf_counter()

    def judge(self, val_loss: float) -> None:
        """What depends on the course of validation loss: the plateau schedule, patience, the best weights."""
        self.schedule.see(val_loss)
        if val_loss < self.best_loss:
            self.best_loss, self.best_step, self.validations_without_gain = val_loss, self.global_step, 0
            if self.train_params.patience:
                self.best_weights = {
                    name: w.detach().cpu().clone() for name, w in self.model.state_dict().items()
                }
            return
        self.validations_without_gain += 1
        if self.train_params.patience and self.validations_without_gain >= self.train_params.patience:
            self.stop(f"early stop: no better validation in {self.validations_without_gain}")

    def restore_best(self) -> bool:
        """Put the best weights back, if there are better ones than the last."""
        if self.best_weights is not None and self.best_step < self.global_step:
            self.model.load_state_dict(self.best_weights)
            self.restored_best = True
        return self.restored_best


def layer_of(parameter_name: str) -> str:
    """The layer a parameter is counted under: `decoder.layers.0`, `embed` ..."""
    parts = parameter_name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["decoder", "layers"] else ".".join(parts[:-1])
