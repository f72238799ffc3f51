"""One run from params to results: seed, build, fit, validate, save."""

import logging
import math
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import torch

from data.check import check_data
from data.data_params import DataParams
from data.dataloader import LMDataModule
from data.tokenizer import TokenizerSpec
from model.check import check_model
from model.lm import LM, n_params
from model.model_params import ModelParams
from train.grid import Place, Run, did_you_mean
from train.logs import log, log_to_file
from train.optimizers import frozen_names, optimizers
from train.params import Params
from train.saver import RunFolder, save
from train.schedules import schedules
from train.stats import Stats, start_wandb
from train.train_params import TrainParams
from train.trainer import LMTrainer

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its remarks on hardware and logging are not ours
warnings.filterwarnings("ignore", module="lightning")


class Call(NamedTuple):
    """What the command line says about all runs of a grid."""

    out: Path  # root of all outputs
    save: bool
    wandb: bool
    wandb_entity: str | None
    wandb_group: str
    gpu_id: int | None
    command: list[str]

    @property
    def cache(self) -> Path:
        return self.out / "cache"


def problems(runs: list[Run]) -> Iterator[tuple[str, dict[str, Place]]]:
    """What the parts of whatif have against these params, before anything is built: (message, places of its fields)."""
    seen = set()
    for run in runs:
        data, train, model = run.params
        checks = (
            (check_model, model),
            (check_data, data, tokenizer_spec(model), model.max_seq_len),
            (check_train, train, model),
        )
        for check, *arguments in checks:
            if (key := repr((check, arguments))) not in seen:
                seen.add(key)
                try:
                    check(*arguments)
                except ValueError as error:
                    yield str(error), run.places


def check_train(train: TrainParams, model: ModelParams) -> None:
    """ValueError for what this machine or this model cannot do."""
    if train.lr_schedule not in schedules:
        raise ValueError(f"lr_schedule={train.lr_schedule!r} is not registered; {did_you_mean(train.lr_schedule, schedules)}")
    if train.optimizer not in optimizers:
        raise ValueError(f"optimizer={train.optimizer!r} is not registered; {did_you_mean(train.optimizer, optimizers)}")
    if train.compile and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise ValueError("compile=True needs a C++ compiler (g++ or clang++), and none is on this machine's path")
    if train.precision == "16-mixed" and not torch.cuda.is_available():
        raise ValueError("precision='16-mixed' needs a GPU; on a CPU use '32-true' or 'bf16-mixed'")
    if torch.cuda.is_available() and train.devices > torch.cuda.device_count():
        raise ValueError(f"devices={train.devices}, but this machine has {torch.cuda.device_count()} GPUs")
    if train.freeze:
        with torch.device("meta"):
            lm = LM(model, tokenizer=SimpleNamespace(n_tokens=2))
        frozen_names([name for name, _ in lm.named_parameters()], train.freeze)


def tokenizer_spec(model: ModelParams) -> TokenizerSpec:
    return TokenizerSpec(model.tokenizer_source_name, model.tokenizer_vocab_size, model.tokenizer_crop)


def make_data(data: DataParams, model: ModelParams, cache: Path, data_workers: int = 0) -> LMDataModule:
    return LMDataModule(data, tokenizer_spec(model), model.max_seq_len, cache=cache, data_workers=data_workers)


def count_steps(train: TrainParams, n_rows: int) -> int:
    """Optimiser steps of a run over `n_rows` training rows an epoch."""
    rows_per_step = train.batch_size * train.accumulate_grad_batches
    n_steps = train.epochs * math.ceil(n_rows / rows_per_step)
    if train.early_stop_nsamples is None:
        return n_steps
    return min(n_steps, math.ceil(train.early_stop_nsamples / rows_per_step))


def train_run(params: Params, namer: Any, call: Call) -> dict[str, Any]:
    """Train one run and return its summary; with `call.save` it lies in a run folder afterwards."""
    started = time.perf_counter()
    tracker = start_tracker(params, namer, call)
    stats = Stats(tracker)
    folder = None
    if call.save:
        folder = RunFolder.claim(call.out, lambda timestamp: namer.save_folder_name(timestamp, tracker and tracker.name))
    try:
        with threads(params.train.threads), log_to_file(folder and folder.log_file):
            lm_trainer = fit(params, stats, call)
            summary = summarise(lm_trainer, time.perf_counter() - started)
            if folder is not None:
                save(folder.path, params=params, lm=lm_trainer.model, stats=stats, summary=summary, command=call.command)
                folder.finish()
                log.info(f"saved as {folder.timestamp} in {folder.path.parent}")
    finally:
        if tracker is not None:
            tracker.finish()
    return summary


def start_tracker(params: Params, namer: Any, call: Call) -> Any:
    if not call.wandb:
        return None
    return start_wandb(
        project=namer.wandb_proj_name(),
        entity=call.wandb_entity,
        group=call.wandb_group,
        run_name=namer.run_name(),
        config=params.flat(),
        folder=call.out / "logs",
    )


def fit(params: Params, stats: Stats, call: Call) -> LMTrainer:
    """Build everything, train, and make sure that a validation of the final weights is recorded."""
    train = params.train
    data = make_data(params.data, params.model, call.cache, train.data_workers)
    L.seed_everything(train.random_seed, verbose=False)
    lm = LM(params.model, tokenizer=data.tokenizer, dropout=train.dropout)
    if train.compile:
        lm.compile()
    n_steps = count_steps(train, data.n_rows("train"))
    lm_trainer = LMTrainer(lm, data, train, stats, n_steps)
    trainer = lightning_trainer(train, n_steps, call.gpu_id)
    batches = data.train_dataloader(train.batch_size, accumulate=train.accumulate_grad_batches, seed=train.random_seed)
    held_out = data.val_dataloader(train.batch_size)
    with stop_on_interrupt(lm_trainer):
        trainer.fit(lm_trainer, batches, held_out)
        if lm_trainer.best_weights is not None:
            lm.load_state_dict(lm_trainer.best_weights)
        if lm_trainer.best_weights is not None or lm_trainer.validated_at != lm_trainer.global_step:
            trainer.validate(lm_trainer, held_out, verbose=False)
    return lm_trainer


def lightning_trainer(train: TrainParams, n_steps: int, gpu_id: int | None) -> L.Trainer:
    return L.Trainer(
        max_steps=n_steps,
        max_epochs=train.epochs,
        accumulate_grad_batches=train.accumulate_grad_batches,
        gradient_clip_val=train.gradient_clip_val,
        val_check_interval=train.val_every,
        check_val_every_n_epoch=None if train.val_every else 1,
        precision=train.precision,
        accelerator="auto" if gpu_id is None else "gpu",
        devices=train.devices if gpu_id is None else [gpu_id],
        strategy=train.strategy,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )


def summarise(lm_trainer: LMTrainer, wall_seconds: float) -> dict[str, Any]:
    """What the results table and `runs()` show of a run."""
    result = lm_trainer.result
    return {
        "val_loss": result["val_loss:main"],
        "val_accuracy": result["val_accuracy"],
        "chance": lm_trainer.data.chance,
        "bits_per_byte": result.get("val_bits_per_byte"),
        "val_exact_match": result.get("val_exact_match"),
        "n_params": n_params(lm_trainer.model),
        "tokens_per_second": lm_trainer.n_tokens / max(lm_trainer.train_seconds, 1e-9),
        "wall_seconds": wall_seconds,
        "steps": lm_trainer.global_step,
        "n_samples": lm_trainer.n_samples,
        "stopped": lm_trainer.stopped,
        "weights": "last" if lm_trainer.best_weights is None else "best",
    }


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """CPU threads for one run."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stop_on_interrupt(lm_trainer: LMTrainer) -> Iterator[None]:
    """The first Ctrl-C ends training after the step at hand, so that what there is can be kept; the second ends it all."""

    def stop(signal_number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.info("interrupted: stopping after this step; press Ctrl-C once more to leave at once")
        lm_trainer.stop("interrupted")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except SystemExit as error:  # what Lightning makes of the second one
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)
