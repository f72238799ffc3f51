"""Train a single run, from params to results: seed, build, fit, validate, save."""

import logging
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from data.dataloader import LMDataModule
from data.tokenizer import Tokenizer
from model.generation.sampling import eval_mode
from model.lm import LM, n_params
from model.transformer.residual import profile, wants_profile
from train.checkpoint import ResumePoint, WholeFiles, is_out_of_resources
from train.data import count_steps, make_data
from train.flops import flops_per_row, peak_flops
from train.grid.config_text import VARIANT
from train.grid.params import Params, column
from train.logs import log, log_to_file, say_at_once
from train.pretrained import begin_with, first_weights, saved_tokenizer
from train.probe import probe
from train.processes import rank
from train.saving.claims import note_folder
from train.saving.earlier_runs import clear_away
from train.saving.outcome import INTERRUPTED
from train.saving.run_folder import RESUME_FILE, RunFolder, begin, partial_name, read_json, save
from train.saving.weights import Checkpoints, one_line
from train.sharding import FSDP, whole
from train.stats import Stats, start_wandb
from train.stopwatch import Stopwatch
from train.train_params import TrainParams
from train.trainer import NEVER, LMTrainer

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)  # its remarks on hardware and logging are not ours
warnings.filterwarnings("ignore", module="lightning")


PROFILED = 4  # batches that residual_profile looks at

Report = Callable[[int, float, torch.device], None]  # (step, loss, device)


REPORT_EVERY = 0.3  # seconds
LATE = ", then Ctrl-C"  # ends what a call says of a run that was interrupted when nothing was left to train


class Call(NamedTuple):
    """Options of the command line for all runs of a grid, and the variant of the current run."""

    out: Path  # root of all outputs
    save: bool
    wandb: bool
    wandb_entity: str | None
    wandb_group: str
    gpu_id: int | None
    command: list[str]
    resume: str | None = None  # "same" code or "anyway"; None: every run is new
    fail_fast: bool = False
    variant: str | None = None  # its name, where the grid has variants
    jobs: int = 1  # runs side by side
    ray: str | None = None  # the address of a Ray cluster on which to train
    progress: Report | None = None  # hears of each run's progress, in place of a bar

    @property
    def cache(self) -> Path:
        return self.out / "cache"


def train_run(
    params: Params,
    namer: Any,
    call: Call,
    identity: str = "",
    go_on: Path | None = None,
    replaces: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train one run and return its summary. With `call.save` it is saved in a run folder.

    `go_on` is the folder of an earlier call that did not finish the run. The folders that the run `replaces` are
    removed once its own records how it ended.
    """
    tracker = start_tracker(params, namer, call, go_on)
    summary = None
    try:
        if call.save and rank() == 0:
            folder = run_folder(params, namer, call, tracker, identity, go_on)
            summary = train_saved(folder, params, Stats(tracker), call, replaces)
            return summary
        # The first process saves for all; the others take part in its resume checkpoints.
        resume_point = ResumePoint(go_on and partial_name(go_on) / RESUME_FILE) if call.save else None
        with threads(params.train.threads):
            lm_trainer = fit(params, Stats(tracker), call, resume_point=resume_point)
            summary = of_variant(call) | summarise(lm_trainer)
            return {**summary, "stopped": ending(lm_trainer)}
    finally:
        if tracker is not None:
            tracker.finish(failed=summary is None or summary["stopped"].startswith("diverged"))


def run_folder(
    params: Params, namer: Any, call: Call, tracker: Any, identity: str, go_on: Path | None
) -> RunFolder:
    """Return the folder in which a run continues, or a new one that identifies it."""
    if go_on is not None:
        return RunFolder.take_up(go_on)
    wandb_name = None if tracker is None else tracker.name
    folder = RunFolder.claim(call.out, lambda timestamp: namer.save_folder_name(timestamp, wandb_name))
    try:
        begin(folder.path, params, call.command, identity, wandb=tracker and tracker.id)
        if call.resume is not None:
            note_folder(call.out, identity, folder.path)
    except BaseException:
        folder.discard()
        raise
    return folder


def train_saved(
    folder: RunFolder, params: Params, stats: Stats, call: Call, replaces: Iterable[Path]
) -> dict[str, Any]:
    """Train a run in its folder, and record there how it ended."""
    try:
        summary = train_in(folder, params, stats, call)
    except KeyboardInterrupt:
        folder.give_up(None) if folder.has_checkpoint else folder.discard()
        raise
    except BaseException as error:
        folder.give_up(f"{type(error).__name__}: {one_line(error)}", resumable=is_out_of_resources(error))
        if folder.is_new:  # what it replaces has no checkpoint to go on from, either
            clear_away(replaces)
        raise
    clear_away(replaces)
    return summary


def train_in(folder: RunFolder, params: Params, stats: Stats, call: Call) -> dict[str, Any]:
    """Train a run and save it in its folder."""
    with threads(params.train.threads), log_to_file(folder.log_file):
        with keeping_weights(folder, params.train) as checkpoints:
            resume_point = ResumePoint(folder.path / RESUME_FILE)
            lm_trainer = fit(params, stats, call, checkpoints, resume_point)
        summary = of_variant(call) | summarise(lm_trainer)
        save(folder.path, lm=lm_trainer.model, stats=lm_trainer.stats, summary=summary)
        folder.finish(resumable=lm_trainer.stopped == INTERRUPTED)
        log.info(f"saved as {folder.timestamp} in {folder.path.parent}")
    return {**summary, "stopped": ending(lm_trainer), "folder": str(folder.path)}


def ending(lm_trainer: LMTrainer) -> str:
    """Return why a run ended, with LATE if Ctrl-C came when nothing was left to train: the grid ends after this run."""
    is_late = lm_trainer.is_interrupted and lm_trainer.stopped != INTERRUPTED
    return lm_trainer.stopped + LATE * is_late


def start_tracker(params: Params, namer: Any, call: Call, go_on: Path | None) -> Any:
    if not call.wandb:
        return None
    wandb_id = None if go_on is None else read_json(go_on / "about.json").get("wandb")
    return start_wandb(
        project=namer.wandb_proj_name(),
        entity=call.wandb_entity,
        group=call.wandb_group,
        run_name=namer.run_name(),
        run_id=wandb_id,
        config={column(name): value for name, value in of_variant(call).items()} | params.flat(),
        folder=call.out / "logs",
    )


def of_variant(call: Call) -> dict[str, str]:
    """Return the entries beside the params by which a run's variant is found later; empty without variants."""
    return {} if call.variant is None else {VARIANT: call.variant}


def keeping_weights(folder: RunFolder, train: TrainParams) -> AbstractContextManager[Checkpoints | None]:
    """Return a context that keeps weights during training, or a null context if none are to be kept."""
    if train.checkpoint_every is None:
        return nullcontext()
    return Checkpoints(folder.path / "checkpoints", train.checkpoint_every)


def fit(
    params: Params,
    stats: Stats,
    call: Call,
    checkpoints: Checkpoints | None = None,
    resume_point: ResumePoint | None = None,
) -> LMTrainer:
    """Build everything, train, and make sure that a validation of the final weights is recorded."""
    wall_time = Stopwatch()
    train, tokenizer = params.train, saved_tokenizer(params.model, call.out)
    data = make_data(
        params.data, params.model, call.cache, data_workers=train.data_workers, tokenizer=tokenizer
    )
    lm = make_lm(params, data.tokenizer, call.out)
    if params.model.from_saved is None and wants_profile(lm):
        profile_residuals(lm, data, train)
    if train.compile:
        lm.compile()
    n_steps = count_steps(train, data.n_rows("train"))
    lm_trainer = LMTrainer(lm, data, train, stats, n_steps, checkpoints=checkpoints)
    lm_trainer.wall_time = wall_time
    lm_trainer.leak = warn_of_flaws(lm, params.train)
    callbacks: list[L.Callback] = [resume_point] if resume_point else []
    if call.progress is not None:
        callbacks.append(Reporter(call.progress))
    quiet = call.progress is not None
    trainer = lightning_trainer(train, n_steps, call.gpu_id, callbacks=callbacks, quiet=quiet)
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
    held_out = data.val_dataloader(train.batch_size)
    with stop_on_interrupt(lm_trainer, quiet):
        has_origin = params.model.from_pretrained is not None or params.model.from_saved is not None
        if has_origin and position is None:
            trainer.validate(lm_trainer, held_out, verbose=False)  # how good it is to begin with
        path = resume_point.path if resume_point and position else None
        trainer.fit(lm_trainer, batches, held_out, ckpt_path=path, weights_only=True)
        if lm_trainer.restore_best() or lm_trainer.validated_at != lm_trainer.global_step:
            trainer.validate(lm_trainer, held_out, verbose=False)
    lm_trainer.model = whole(lm_trainer.model, train.dropout)
    return lm_trainer


class Reporter(L.Callback):
    """Callback that reports the first step, after which memory is allocated, and then progress at intervals."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.last = -REPORT_EVERY

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        if time.monotonic() - self.last >= REPORT_EVERY:
            self.report(trainer.global_step, float(outputs["loss"]), module.device)
            self.last = time.monotonic()


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
        profile(lm, (batch["x_indices"][:, :-1] for batch in islice(batches, PROFILED)))


def make_lm(params: Params, tokenizer: Tokenizer, root: Path) -> LM:
    """Return the model with its initial weights. Random ones follow from the seed."""
    train, model = params.train, params.model
    first = first_weights(model, tokenizer, root)  # before the seed is set: libraries may draw from it
    L.seed_everything(train.random_seed, verbose=False)
    lm = LM(model, tokenizer=tokenizer, dropout=train.dropout)
    if train.precision == "64-true":
        lm.double()  # Lightning would after weights are loaded, when their last bits are lost
    if first is not None:
        begin_with(first, lm, root)
    return lm


def lightning_trainer(
    train: TrainParams,
    n_steps: int,
    gpu_id: int | None,
    *,
    callbacks: Sequence[L.Callback] = (),
    quiet: bool = False,
) -> L.Trainer:
    cpus = train.devices > 1 and not torch.cuda.is_available()
    return L.Trainer(
        max_steps=n_steps,
        max_epochs=train.epochs,
        accumulate_grad_batches=train.accumulate_grad_batches,
        gradient_clip_val=train.gradient_clip_val,
        val_check_interval=NEVER if train.val_every else None,  # LMTrainer says when
        check_val_every_n_epoch=None if train.val_every else 1,
        precision=train.precision,
        accelerator="cpu" if cpus else "auto" if gpu_id is None else "gpu",
        devices=train.devices if gpu_id is None else [gpu_id],
        strategy=strategy_of(train),
        use_distributed_sampler=False,  # our Loader shares the rows out
        callbacks=list(callbacks),
        plugins=[WholeFiles()],
        num_sanity_val_steps=0,
        inference_mode=False,  # what a model keeps from a validation, a mask say, is fit for training then
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty() and not quiet,
    )


def strategy_of(train: TrainParams) -> str | Strategy:
    """Return the strategy for Lightning. Its own FSDP needs GPUs; torch's newer FSDP also runs on CPUs."""
    if train.strategy != FSDP:
        return train.strategy
    return ModelParallelStrategy(
        data_parallel_size=train.devices, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def summarise(lm_trainer: LMTrainer) -> dict[str, Any]:
    """Return the values of a run that the results table and `runs()` show."""
    result, train, data = lm_trainer.result, lm_trainer.train_params, lm_trainer.data
    losses = lm_trainer.stats.train_stats.get("stat/val_loss:main", [])
    flops = training_flops(lm_trainer)
    seconds = max(lm_trainer.train_seconds, 1e-9)
    return {
        "val_loss": result["val_loss:main"],
        "val_accuracy": result["val_accuracy"],
        "chance": data.chance,
        "bits_per_byte": result.get("val_bits_per_byte"),
        "unknown_bytes": data.val_unknown_bytes / data.val_bytes if data.val_bytes else None,
        "val_exact_match": result.get("val_exact_match"),
        "n_params": n_params(lm_trainer.model),
        "tokens_per_second": lm_trainer.n_tokens / seconds,
        "wall_seconds": lm_trainer.wall_seconds,
        "steps": lm_trainer.global_step,
        "trained_samples": lm_trainer.n_samples,
        "trained_tokens": lm_trainer.n_tokens,
        "flops": flops,
        "achieved_flops": None if flops is None else flops / seconds,
        "peak_flops": peak_flops(lm_trainer.trainer.strategy.root_device, train.precision) * train.devices,
        "threads": torch.get_num_threads(),
        "stopped": lm_trainer.stopped,
        "leak": lm_trainer.leak,
        "weights": "last" if lm_trainer.best_weights is None else "best",
        "final_loss": losses[-1].v if losses and losses[-1].s == lm_trainer.global_step else None,
        "sample": lm_trainer.sample,
    }


def training_flops(lm_trainer: LMTrainer) -> int | None:
    """Return the operations of training, for rows of the mean number of real tokens. Padding does not count as work."""
    length = max(1, round(lm_trainer.n_tokens / max(1, lm_trainer.n_samples)))
    per_row = flops_per_row(lm_trainer.model, length, lm_trainer.train_params)
    return None if per_row is None else per_row * lm_trainer.n_samples


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Set the number of CPU threads inside the block; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stop_on_interrupt(lm_trainer: LMTrainer, quiet: bool = False) -> Iterator[None]:
    """Stop training after its current step at the first Ctrl-C, to keep the results. The second ends the program."""

    def stop(signal_number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not logged: the signal may come while a log is being written, and logs cannot be entered twice.
        if not quiet:
            say_at_once("interrupted: stopping after this step; press Ctrl-C once more to leave at once")
        lm_trainer.is_interrupted = True

    before = signal.signal(signal.SIGINT, signal.SIG_IGN if rank() else stop)
    try:
        yield
    except SystemExit as error:  # what Lightning makes of the second one
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGINT, before)
