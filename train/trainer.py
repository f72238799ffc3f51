"""LMTrainer: the training of an LM as Lightning hooks, in order of time."""

import sys
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from data.batch import Batch, mycollate, n_real_tokens
from data.dataloader import LMDataModule
from model.lm import LM
from model.recording import first_nonfinite
from train.averages import AveragedWeights
from train.divergence import Divergence
from train.evaluation import Evaluation, LoaderWhenDue, MixtureEvaluation, make_evaluation, of_set
from train.expert_loads import ExpertLoads
from train.length import RunLength, with_beta2
from train.logs import DETAIL, log
from train.metrics import latest_values
from train.optimizers import group_settings, make_optimizer, set_up_training
from train.saving.outcome import Ending
from train.schedules import Schedule
from train.sharding import FSDP, clip_gradients, full_number, gathered, scale_gradients, shard
from train.state import Attributes
from train.stats import Stats
from train.stopwatch import Stopwatch
from train.train_params import TrainParams

NEVER = sys.maxsize  # batches between validations
DRAIN_EVERY = 50  # optimizer steps between moments when statistics leave the device


class LMTrainer(L.LightningModule):
    """Lightning module that trains `model` on `data` for `n_steps` optimizer steps, or None for `max_seconds`.

    `stats` takes the values that are logged. `training_time` measures seconds of training, without validation.
    """

    def __init__(
        self,
        model: LM,
        data: LMDataModule,
        train_params: TrainParams,
        stats: Stats,
        n_steps: int | None,
        training_time: Stopwatch | None = None,
    ) -> None:
        super().__init__()
        self.training_time = training_time or Stopwatch()
        self.is_leaving = False  # the run ends before its next batch
        # Of the current optimizer step. Checkpoints, which are written between steps, do not hold it.
        self.expert_loads = ExpertLoads()
        # Lightning makes `hparams` at its first use, and saves it itself.
        assert not self.hparams
        not_saved = {*vars(self)}
        self.model = model
        self.data = data
        self.train_params = train_params
        self.stats = stats
        self.length = RunLength(n_steps, train_params.max_seconds, self.training_time)
        self.schedule = Schedule(train_params, self.length)
        # Counts of all processes together; tensors on the device until the next validation.
        self.n_samples: Any = 0  # rows trained on so far
        self.n_tokens: Any = 0  # real tokens among them
        self.n_scored_in_step: Any = 0  # scored so far in the current optimizer step
        # By layer, if the current step is logged: the norm of its weights, those that train, and copies of these.
        self.weights_before: dict[str, tuple[float | Tensor, list[Tensor], list[Tensor]]] = {}
        self.n_steps_done = 0  # optimizer steps that on_train_batch_end has handled
        self.divergence = Divergence(model.n_tokens)
        self.stopped = str(Ending.FINISHED)  # or why the run ended early
        self.averaged = AveragedWeights(model, train_params.ema_decay)
        self.is_unaveraged = False  # the validation at hand is of the weights in place of their averages
        self.weights_of: int | None = None  # the step of the weights, if they are not the latest
        self.validated_at = -1  # the step of the last validation
        self.result: dict[str, float] = {}  # of that validation
        self.sample = ""  # text that the model generated in the last validation
        self.n_validations = 0  # during training
        self.evaluated_at = -1  # the step of the last evaluation on the evaluation sets
        self.eval_result: dict[str, float] = {}  # of that evaluation
        self.slices: dict[str, list] = {}  # accuracy by slice: of the last validation, and by evaluation set
        set_up_training(model, train_params)
        self.warned_of_lost_state = False
        self.initial_weights = set(self.state_dict())
        # Whatever is set or changed from here on is saved in resume checkpoints.
        self.attributes = Attributes(self, without=not_saved)

    def log_stat(self, name: str, value: float | Tensor) -> None:
        """Log a number or one-element tensor as `stat/name` for the saved run and wandb. Never waits for the device."""
        self.stats.log(name, full_number(value), step=self.global_step, n_samples=self.n_samples)

    def configure_model(self) -> None:
        if self.train_params.strategy == FSDP:
            assert self.device_mesh is not None, "Lightning makes one with this strategy"
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(self.model, with_beta2(self.train_params, self.data))
        if self.train_params.ema_decay is not None:
            optimizer.register_step_post_hook(lambda *_: self.averaged.update())
        # A lambda: the state of self.schedule is saved with the attributes, not by LambdaLR.
        self.scheduler = LambdaLR(optimizer, lambda step: self.schedule(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the attributes that changed since `__init__`, beside the weights and the optimizer."""
        checkpoint["attributes"], lost = self.attributes.save()
        weights, late = checkpoint["state_dict"], set(self.state_dict()) - self.initial_weights
        # Modules and buffers that hooks made: a resumed run has no place for them yet.
        lost += sorted(late)
        for name in late & set(weights):
            del weights[name]
        if lost and not self.warned_of_lost_state:
            log.warning(
                f"a resumed run begins without {', '.join(f'LMTrainer.{name}' for name in lost)}: checkpoints hold "
                "numbers, text, tensors, random generators and containers of these, and objects with state_dict and "
                "load_state_dict that __init__ creates"
            )
            self.warned_of_lost_state = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.attributes.restore(checkpoint["attributes"])
        self.trainer.should_stop = self.stopped != Ending.FINISHED or self.length.is_time_up

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far, without validation."""
        return self.training_time.seconds

    def on_train_start(self) -> None:
        if self.global_rank:  # different dropout in every process
            torch.manual_seed(self.train_params.random_seed + self.global_rank)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """End an interrupted run here, where ResumePoint has just written a checkpoint."""
        if not self.is_leaving:
            return None
        self.stop(Ending.INTERRUPTED)
        # Skip this batch, and Lightning's validation, which would change state that the checkpoint holds.
        return -1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses, _ = self.model.get_losses(batch, self.train_params)
        self.expert_loads.add(self.model, batch)
        for name, loss in self.count(batch, losses).items():
            self.log_stat(f"train_loss:{name}", loss)
        return torch.as_tensor(sum(losses.values())) * self.weight(losses)

    @property
    def is_step_split(self) -> bool:
        """True if an optimizer step consists of several batches, one after another or in several processes."""
        return self.train_params.accumulate_grad_batches * self.trainer.world_size > 1

    def weight(self, losses: dict[str, Tensor]) -> float | Tensor:
        """Return the factor of a batch's losses before their gradients are added up over the optimizer step.

        Losses are means over the scored tokens of a batch, but gradients must be those of the mean over the whole step.
        The number of tokens in a step is known only at its end: see `mean_over_step`.
        """
        return self.n_scored(losses) / self.n_positions if self.is_step_split else 1

    def n_scored(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the number of tokens over which the latest get_losses took means, in the dtype of losses."""
        n_scored = self.model.n_scored
        if n_scored is None:
            raise ValueError(
                "LM.get_losses must set self.n_scored, the number of tokens its losses are means over: it is the "
                "weight of a batch in its optimizer step"
            )
        loss = next(iter(losses.values()))
        return torch.as_tensor(n_scored, device=loss.device).to(
            torch.promote_types(loss.dtype, torch.float32)
        )

    @property
    def n_positions(self) -> int:
        """Number of positions in a full batch: a constant that keeps weighted losses in the range of losses."""
        return self.train_params.batch_size * self.data.max_seq_len

    @torch.no_grad()
    def mean_over_step(self) -> None:
        """Turn the gradient of weighted losses into that of the mean over all tokens scored in the step."""
        # Lightning has divided by the numbers of batches in a full step and of processes.
        n_batches = self.train_params.accumulate_grad_batches * self.trainer.world_size
        scale_gradients(self, n_batches * self.n_positions / self.n_scored_in_step.clamp(min=1))
        self.n_scored_in_step = 0

    @torch.no_grad()
    def count(self, batch: Batch, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Count rows and tokens of all processes. Return the mean losses over all tokens scored at the same time."""
        n_rows: int | Tensor = len(batch["x_indices"])
        n_tokens = n_real_tokens(batch)
        if self.is_step_split:
            n_scored = self.n_scored(losses)
            if self.trainer.world_size > 1:
                losses, n_scored, n_rows, n_tokens = self.of_all_processes(batch, losses, n_scored)
            self.n_scored_in_step = self.n_scored_in_step + n_scored
        self.n_samples = self.n_samples + n_rows
        self.n_tokens = self.n_tokens + n_tokens
        return losses

    def of_all_processes(
        self, batch: Batch, losses: dict[str, Tensor], n_scored: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Return mean losses and counts over all processes."""
        # A process without rows of its own gets a filler batch, in which no token is scored.
        is_real = batch["target_mask"].any()
        counts = is_real * len(batch["x_indices"]), is_real * n_real_tokens(batch)
        values = [*(loss * n_scored for loss in losses.values()), n_scored, *counts]
        sums = torch.stack([value.detach().to(n_scored) for value in values])
        torch.distributed.all_reduce(sums)
        *of_losses, n_scored, n_rows, n_tokens = sums
        means = {name: loss / n_scored.clamp(min=1) for name, loss in zip(losses, of_losses, strict=True)}
        return means, n_scored, n_rows.long(), n_tokens.long()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.is_step_split:
            self.mean_over_step()
        loads = self.expert_loads.end_step(self.model, self.trainer.world_size)
        self.log_stat("lr", self.scheduler.get_last_lr()[0])
        if self.length.is_due(self.train_params.hyperparams_log_freq, self.global_step):
            self.log_hyperparams_and_time()
            self.log_expert_loads(loads)

    @torch.no_grad()
    def log_hyperparams_and_time(self) -> None:
        """Log times, norms and settings of groups at every `hyperparams_log_freq`. Gradients are not yet clipped."""
        lm = self.model
        self.log_stat("train_seconds", self.train_seconds)
        self.log_groups()
        weights: defaultdict[str, list[Tensor]] = defaultdict(list)
        gradients: defaultdict[str, list[Tensor]] = defaultdict(list)
        for name, parameter in lm.named_parameters():
            layer = layer_of(name)
            weights[layer].append(parameter)
            if parameter.grad is not None:
                gradients[layer].append(parameter.grad)
        for layer, group in weights.items():
            norm = full_number(get_total_norm(group))
            self.log_stat(f"weight_norm:{layer}", norm)
            if trained := [parameter for parameter in group if parameter.grad is not None]:
                self.weights_before[layer] = norm, trained, [parameter.clone() for parameter in trained]
        for layer, group in gradients.items():
            self.log_stat(f"grad_norm:{layer}", get_total_norm(group))

    def log_expert_loads(self, loads: dict[int, Tensor]) -> None:
        """Log the load of each expert, the share of tokens that it gets over the mean share: 1 in a balanced layer."""
        for layer, load_E in loads.items():
            for expert, load in enumerate(load_E / load_E.mean().clamp(min=1e-9)):
                self.log_stat(f"expert_load:layers.{layer}.{expert}", load)

    @torch.no_grad()
    def log_updates(self) -> None:
        """Log the norm of each layer's update over that of its weights, if the step that has just ended is logged."""
        step = self.global_step - 1
        for layer, (norm, trained, before) in self.weights_before.items():
            updates = [new - old for new, old in zip(trained, before, strict=True)]
            ratio = full_number(get_total_norm(updates)) / norm
            self.stats.log(f"update_ratio:{layer}", ratio, step=step, n_samples=self.n_samples)
        self.weights_before = {}

    def log_groups(self) -> None:
        """Log the settings of each parameter group. Weights average updates over about tau steps, by weight decay."""
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
        # Lightning's own refuses fused optimizers under bf16, for the sake of loss scalers that bf16 does not have.
        if gradient_clip_val:
            clip_gradients([*self.parameters()], gradient_clip_val)

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        ends_a_step = self.global_step != self.n_steps_done
        self.n_steps_done = self.global_step
        if self.train_params.val_every is not None:
            is_due = ends_a_step and self.length.is_due(self.train_params.val_every, self.global_step)
            # Lightning counts batches, but steps differ in theirs. So validation is due after this batch, or never.
            self.trainer.val_check_batch = 1 if is_due else NEVER
        if ends_a_step:
            self.log_updates()
            if self.global_step % DRAIN_EVERY == 0:
                self.drain_and_judge()
            if self.length.is_time_up:
                self.stop(Ending.FINISHED)

    def drain_and_judge(self) -> None:
        """Drain the statistics, and stop if they show that training has diverged."""
        why = self.divergence.judge(self.stats.train_stats)
        if why is not None and self.stopped == Ending.FINISHED:
            why += self.where_not_finite()
            log.warning(f"{why}; training stops after step {self.global_step}")
            self.stop(why)

    def where_not_finite(self) -> str:
        """Return "; layers.0.q is the first activation that is not finite" for the first validation row, or ""."""
        if self.divergence.not_finite is None or self.trainer.world_size > 1:
            return ""
        row = mycollate([self.data.rows("val")[0]], pad=self.data.tokenizer.pad)
        name = first_nonfinite(self.model, row)
        return f"; {name} is the first activation that is not finite" if name else ""

    def stop(self, why: str) -> None:
        """End training after this step, in all processes. The first reason is kept: an `Ending`, or "ending: reason"."""
        if self.stopped == Ending.FINISHED:
            self.stopped = str(why)
        self.trainer.should_stop = True

    def leave(self) -> None:
        """End training before the next batch, where a resume checkpoint is written."""
        self.is_leaving = True

    def held_out(self, at_end: bool = False) -> Any:
        """Return the loader of the validation split or, with evaluation sets, a list of loaders that begins with it.

        The loader of an evaluation set is empty in a validation for which the set is not due. `at_end` is for the
        validation after training: it leaves out what has been validated since the last step.
        """
        b, sets = self.train_params.batch_size, self.data.eval_sets
        main = self.data.val_dataloader(b)
        if not sets:
            return main
        first = LoaderWhenDue(main, lambda: not at_end or self.validated_at != self.global_step)
        every = self.data.data_params.eval_every

        def is_due() -> bool:
            is_turn = every is not None and (self.n_validations + 1) % every == 0
            return at_end or (self.trainer.state.fn == "fit" and is_turn)

        return [first, *(LoaderWhenDue(data.val_dataloader(b), is_due) for data in sets.values())]

    @property
    def is_all_evaluated(self) -> bool:
        """True if the weights have been validated, and evaluated on all evaluation sets."""
        is_done = self.evaluated_at == self.global_step or not self.data.eval_sets
        return is_done and self.validated_at == self.global_step

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit":
            self.averaged.swap_in(self.scheduler.optimizer)
        # By the number of the loader; 0: the validation split.
        self.evaluations: dict[int, Evaluation | MixtureEvaluation] = {}

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx not in self.evaluations:
            data = [self.data, *self.data.eval_sets.values()][dataloader_idx]
            self.evaluations[dataloader_idx] = make_evaluation(self.model, data)
        # An evaluation set must not change the random numbers of training.
        with isolate_rng() if dataloader_idx else nullcontext():
            self.evaluations[dataloader_idx].add(batch, self.train_params)

    def on_validation_epoch_end(self) -> None:
        """Store the numbers of a validation in `result`, where callbacks read them, and log them.

        Check for divergence, and tell the schedule the loss.
        """
        self.drain_and_judge()
        evaluations = self.evaluations
        # Every process validates all rows. All take the numbers of the first one, so that they decide alike.
        with gathered(self.model):
            found = {}
            for i, one in evaluations.items():
                with isolate_rng() if i else nullcontext():
                    found[i] = one.result(), one.slices()
            found = self.trainer.strategy.broadcast(found)
            if 0 in evaluations:
                self.sample = evaluations[0].sample()
                n_samples = int(self.n_samples)
                self.stats.show_text("val_sample", self.sample, step=self.global_step, n_samples=n_samples)
        del self.evaluations
        for i, name in enumerate(self.data.eval_sets, 1):
            if i in found:
                self.record_evaluation(name, *found[i])
        if 0 in found:
            self.record_validation(*found[0])

    def on_validation_end(self) -> None:
        # After callbacks, which may keep the weights that were validated.
        if self.trainer.state.fn == "fit":
            self.averaged.swap_out(self.scheduler.optimizer)

    @property
    def averages(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that are validated and saved: the averages, if there are any."""
        return self.averaged.in_place(self.scheduler.optimizer)

    @property
    def of_best(self) -> str:
        """The prefix of statistics of weights that are not the latest, or whose averages are validated otherwise."""
        if self.is_unaveraged:
            return "unaveraged_"
        return "" if self.weights_of is None else "best_"

    def record_validation(self, result: dict[str, float], slices: list) -> None:
        """Log and store the numbers of the validation split. `slices` are rows of `Evaluation.slices`."""
        self.result, self.slices[""] = result, slices
        for name, value in result.items():
            self.log_stat(self.of_best + name, value)
        self.stats.drain()
        self.n_samples, self.n_tokens = int(self.n_samples), int(self.n_tokens)
        self.n_validations += self.trainer.state.fn == "fit"
        self.validated_at = self.global_step
        numbers = ", ".join(f"{name.removeprefix('val_')} {value:.4g}" for name, value in result.items())
        log.info(
            f"{self.of_best and 'weights of '}step {self.global_step if self.weights_of is None else self.weights_of}: validation {numbers}\n  sample: {self.sample!r}",
            extra=DETAIL,
        )
        if self.trainer.state.fn == "fit":
            self.schedule.add_val_loss(self.result["val_loss:main"])

    def latest_values(self) -> dict[str, float]:
        """Return the latest value of every statistic, the same in all processes: those of the first one."""
        return self.trainer.strategy.broadcast(latest_values(self.stats.train_stats, self.global_step))

    def record_evaluation(self, name: str, result: dict[str, float], slices: list) -> None:
        """Log and store the numbers of an evaluation set."""
        numbers = of_set(name, result)
        self.eval_result |= numbers
        self.slices[name] = slices
        for column, value in numbers.items():
            self.log_stat(self.of_best + column, value)
        self.evaluated_at = self.global_step
        log.info(
            f"evaluation set {name!r}: "
            + ", ".join(f"{column.removeprefix('val_')} {value:.4g}" for column, value in numbers.items()),
            extra=DETAIL,
        )

    def load_weights_of(self, step: int, weights: dict[str, Tensor]) -> None:
        """Replace the weights by those of an earlier step. The next validation evaluates them."""
        self.model.load_state_dict(weights)
        self.weights_of, self.validated_at, self.evaluated_at = step, -1, -1


def layer_of(parameter_name: str) -> str:
    """Return the layer of a parameter, as statistics name it: `decoder.layers.0`, `embed` ..."""
    parts = parameter_name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["decoder", "layers"] else ".".join(parts[:-1])
