"""Train a single run, from its params to its outcome: data, model, probe, fit, validate, save."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from data.dataloader import LMDataModule
from data.tokenizer import Tokenizer
from model.generation.sampling import eval_mode
from model.lm import LM, n_params
from model.shapes import state_size_of
from model.transformer.experts import n_active_params
from model.transformer.residual import profile_omegas, wants_profile
from train.callbacks import (
    Clock,
    CompileTraining,
    KeepBest,
    KeepWeights,
    ReportProgress,
    StopOnInterrupt,
    StopWhen,
)
from train.checkpoint import AtomicCheckpointIO, ResumePoint
from train.data import make_data
from train.evaluation import SLICES_FILE, write_slices
from train.final_metrics import values_of_metrics
from train.flops import flops_per_row, peak_flops
from train.grid.params import Params
from train.grid.run import Call, Run
from train.length import costs_of, count_steps
from train.logs import log
from train.optimizers import freeze
from train.pretrained import first_weights, load_initial_weights, saved_tokenizer
from train.probe import probe
from train.processes import rank
from train.progress import Report
from train.saving.outcome import Outcome, Value
from train.saving.record import Record, measured_variant
from train.sharding import FSDP, unshard
from train.train_params import TrainParams
from train.trainer import NEVER, LMTrainer

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)  # no remarks of Lightning on hardware and logging
warnings.filterwarnings("ignore", module="lightning")

PROFILED = 4  # batches from which the omegas are set


def train_run(run: Run, record: Record, call: Call, report: Report | None = None) -> Outcome:
    """Train one run, save it in its `record`, and return its outcome.

    `report` is called with the progress now and then. Errors of the data, the model or the training are not caught.
    """
    params, train = run.params, run.params.train
    with cpu_threads(train.threads):
        clock, interrupt = Clock(), StopOnInterrupt(quiet=call.jobs > 1 or call.cluster is not None)
        data = run_data(params, call)
        lm = make_lm(params, data.tokenizer, call.out)  # sets the seed
        if params.model.from_saved is None and wants_profile(lm, lm.model_params):
            profile_residuals(lm, data, train)
        freeze(lm, train)
        n_steps = count_steps(train, data.n_rows("train"), costs_of(lm, data, train))
        lm_trainer = LMTrainer(lm, data, train, record.stats, n_steps, clock.training)
        leak = warn_of_flaws(lm, train)

        keep_best = KeepBest(train.patience, train.patience_metric) if train.patience else None
        stop_when = StopWhen(train.stop_when) if train.stop_when else None
        keep_weights = KeepWeights(record.checkpoints) if record.checkpoints else None
        resume_point = ResumePoint(record.resume_file) if record.resume_file else None
        progress = ReportProgress(report) if report else None
        compiler = CompileTraining(call.cache) if train.compile else None
        callbacks = [resume_point, interrupt, keep_weights, keep_best, stop_when, compiler, clock, progress]
        trainer = lightning_trainer(train, n_steps, call.gpu_id, callbacks=[*filter(None, callbacks)])

        with interrupt.listening():
            fit(trainer, lm_trainer, resume_point)
            unaveraged = use_averages(trainer, lm_trainer)
            if keep_best:
                keep_best.restore(lm_trainer)
            if not lm_trainer.is_all_evaluated:
                trainer.validate(lm_trainer, lm_trainer.held_out(at_end=True), verbose=False)

        lm = unshard(lm_trainer.model, train.dropout)
        values = measured_variant(run) | final_values(lm_trainer, lm, clock)
        last = "last" if unaveraged is None else "averaged"
        values |= values_of_metrics(run.metrics, lm, data)
        values |= {"leak": leak, "weights": "best" if keep_best and keep_best.best_weights else last}
        values |= {} if unaveraged is None else {"unaveraged_val_loss": unaveraged}
        outcome = Outcome.of(lm_trainer.stopped, values, was_pressed=interrupt.is_pressed)
        if record.folder is not None:
            write_slices(record.folder.path / SLICES_FILE, lm_trainer.slices)
        return record.save(lm, outcome)


def fit(trainer: L.Trainer, lm_trainer: LMTrainer, resume_point: ResumePoint | None) -> None:
    """Train, from the resume point if there is one."""
    data, train = lm_trainer.data, lm_trainer.train_params
    position = resume_point.position if resume_point else None
    batches = data.train_dataloader(
        train.batch_size,
        accumulate=train.accumulate_grad_batches,
        seed=train.random_seed,
        rank=rank(),
        world=train.devices,
        epoch=position.epoch if position else 0,
        batches=position.batches if position else 0,
    )
    held_out = lm_trainer.held_out()
    model_params = lm_trainer.model.model_params
    if position is None and (model_params.from_pretrained or model_params.from_saved):
        trainer.validate(lm_trainer, held_out, verbose=False)  # the loss before training
    path = resume_point.path if resume_point and position else None
    trainer.fit(lm_trainer, batches, held_out, ckpt_path=path, weights_only=True)


def use_averages(trainer: L.Trainer, lm_trainer: LMTrainer) -> float | None:
    """Validate the weights that were trained, then replace them by their averages, for good.

    Return the validation loss without averages. A run without averages keeps its weights, and None is returned.
    """
    if not lm_trainer.averaged.averaged_parameters(lm_trainer.scheduler.optimizer):
        return None
    lm_trainer.is_unaveraged = True
    batches = lm_trainer.data.val_dataloader(lm_trainer.train_params.batch_size)
    trainer.validate(lm_trainer, batches, verbose=False)
    lm_trainer.is_unaveraged, lm_trainer.validated_at, lm_trainer.evaluated_at = False, -1, -1
    loss = lm_trainer.result["val_loss:main"]
    lm_trainer.averaged.adopt(lm_trainer.scheduler.optimizer)
    return loss


def run_data(params: Params, call: Call) -> LMDataModule:
    """Return the data of a run."""
    tokenizer = saved_tokenizer(params.model, call.out)
    workers = params.train.data_workers
    return make_data(params.data, params.model, call.cache, data_workers=workers, tokenizer=tokenizer)


def make_lm(params: Params, tokenizer: Tokenizer, root: Path) -> LM:
    """Return the model with its initial weights. Random ones follow from the seed."""
    train, model = params.train, params.model
    first = first_weights(model, tokenizer, root)  # before the seed is set: libraries may draw from it
    L.seed_everything(train.random_seed, verbose=False)
    lm = LM(model, tokenizer=tokenizer, dropout=train.dropout)
    if train.precision == "64-true":
        lm.double()  # Lightning would convert after the weights are loaded, and lose their last bits
    if first is not None:
        load_initial_weights(first, lm, root)
    return lm


def warn_of_flaws(lm: LM, train: TrainParams) -> str | None:
    """Log a leak and parameters without gradients. Return the leak, which is saved with the run, or None."""
    leak, without_gradient = probe(lm, train)
    if leak:
        log.warning(f"leak: {leak}")
    if without_gradient:
        log.warning(f"no gradient reaches {', '.join(without_gradient)}")
    return leak


def profile_residuals(lm: LM, data: LMDataModule, train: TrainParams) -> None:
    """Set the omegas from the first batches, the same in every process. A resumed run keeps its own."""
    batches = data.train_dataloader(train.batch_size, seed=train.random_seed)
    with eval_mode(lm):
        profile_omegas(lm, (batch["x_indices"][:, :-1] for batch in islice(batches, PROFILED)))


def lightning_trainer(
    train: TrainParams,
    n_steps: int | None,
    gpu_id: int | None,
    *,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """Return Lightning's trainer for a run."""
    cpus = train.devices > 1 and not torch.cuda.is_available()
    return L.Trainer(
        max_steps=-1 if n_steps is None else n_steps,  # -1: no limit
        max_epochs=-1 if train.repeats_data else train.epochs or 1,
        accumulate_grad_batches=train.accumulate_grad_batches,
        gradient_clip_val=train.gradient_clip_val,
        val_check_interval=NEVER if train.val_every else None,  # LMTrainer decides when
        check_val_every_n_epoch=None if train.val_every else 1,
        precision=train.precision,
        accelerator="cpu" if cpus else "auto" if gpu_id is None else "gpu",
        devices=train.devices if gpu_id is None else [gpu_id],
        strategy=strategy_of(train),
        use_distributed_sampler=False,  # our Loader distributes the rows
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        inference_mode=False,  # so that training can use tensors that a validation cached, such as a mask
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # the grid has a display of its own
    )


def strategy_of(train: TrainParams) -> str | Strategy:
    """Return the strategy for Lightning. Its own FSDP needs GPUs; torch's newer FSDP also runs on CPUs."""
    if train.strategy != FSDP:
        return train.strategy
    return ModelParallelStrategy(
        data_parallel_size=train.devices, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def final_values(lm_trainer: LMTrainer, lm: LM, clock: Clock) -> dict[str, Value]:
    """Return the measured values of a run that the results table and `runs()` show."""
    result, train, data = lm_trainer.result, lm_trainer.train_params, lm_trainer.data
    losses = lm_trainer.stats.train_stats.get("stat/val_loss:main", [])
    flops = training_flops(lm_trainer, lm)
    seconds = max(lm_trainer.train_seconds, 1e-9)
    return {
        "val_loss": result["val_loss:main"],
        "val_accuracy": result["val_accuracy"],
        "chance": data.chance,
        "reference_loss": data.reference_loss,
        "bits_per_byte": result.get("val_bits_per_byte"),
        "unknown_bytes": data.val_unknown_bytes / data.val_bytes if data.val_bytes else None,
        "val_exact_match": result.get("val_exact_match"),
        "n_params": n_params(lm),
        "n_active_params": n_active_params(lm),
        "state_size": state_size_of(lm),
        "tokens_per_second": lm_trainer.n_tokens / seconds,
        "wall_seconds": clock.whole_run.seconds,
        "steps": lm_trainer.global_step,
        "trained_samples": lm_trainer.n_samples,
        "trained_tokens": lm_trainer.n_tokens,
        "flops": flops,
        "achieved_flops": None if flops is None else flops / seconds,
        "peak_flops": peak_flops(lm_trainer.trainer.strategy.root_device, train.precision) * train.devices,
        "threads": torch.get_num_threads(),
        "final_loss": losses[-1].v if losses and losses[-1].s == lm_trainer.global_step else None,
        "sample": lm_trainer.sample,
        **{name: value for name, value in result.items() if "[" in name},  # of the texts of a mixture
        **lm_trainer.eval_result,
        **{f"left_out[{name}]": one.n_dropped for name, one in data.eval_sets.items()},
    }


def training_flops(lm_trainer: LMTrainer, lm: LM) -> int | None:
    """Return the operations of training on the real tokens, without padding, as if all rows had their mean length."""
    length = max(1, round(lm_trainer.n_tokens / max(1, lm_trainer.n_samples)))
    per_row = flops_per_row(lm, length, lm_trainer.train_params)
    return None if per_row is None else per_row * lm_trainer.n_samples


@contextmanager
def cpu_threads(n: int | None) -> Iterator[None]:
    """Set the number of CPU threads inside the block; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
