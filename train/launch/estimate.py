"""Estimate how long a grid takes on this machine: time the steps of its smallest and largest runs, scale by FLOPs."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from statistics import median
from typing import Any, NamedTuple

import torch

from data.batch import Batch
from model.lm import LM
from train.data import make_data
from train.evaluation import make_evaluation
from train.flops import row_flops
from train.grid.run import Call, Run
from train.launch.growth import growth
from train.pretrained import saved_tokenizer
from train.probe import in_one_line, own_randomness, probe
from train.run import cpu_threads, lightning_trainer
from train.stats import Stats
from train.train_params import LENGTHS, TrainParams
from train.trainer import LMTrainer

TIMING_SECONDS = 4.0  # for the steps of all timed runs together
MIN_STEPS, MAX_STEPS = 4, 30  # of one run
TIMED_VAL_BATCHES = 3


class Pace(NamedTuple):
    """Seconds for each part of a run."""

    start: float  # before the second step
    batch: float  # forward, backward and optimizer step
    val_batch: float  # one batch of a validation
    generation: float  # the rest of a validation: metrics, answers and a sample


class Estimate(NamedTuple):
    """Estimates for all runs, from the timed steps of some."""

    seconds: list[float | None]  # of each run; None: unknown
    notes: list[str]  # for each timed run that cannot train
    # Bytes by which this process grew, by index of the timed run. Empty where the system does not tell.
    grown: dict[int, int]


def estimate(plans: Sequence[Run], call: Call, fits: Sequence[bool] | None = None) -> Estimate:
    """Estimate the seconds of each run. Time the steps of some.

    A run that does not fit into the memory, as `fits` says, is not timed and gets a note. Nothing is written, and random
    generators keep their state.
    """
    seconds: list[float | None] = [None] * len(plans)
    notes, grown = list[str](), dict[int, int]()
    flops = [batch_flops(run) for run in plans]
    families: defaultdict[str, list[int]] = defaultdict(list)
    for i, run in enumerate(plans):
        if fits is None or fits[i]:
            families[family(run)].append(i)
        else:
            notes.append(f"run {run.number} needs more memory than this machine has")
    for runs in families.values():
        runs_by_size = sorted(runs, key=flops.__getitem__)
        # Equal steps are timed once.
        ends = {flops[i]: i for i in (runs_by_size[0], runs_by_size[-1])}
        paces: dict[float, Pace] = {}
        for size, i in ends.items():
            try:
                with growth() as measured:
                    paces[size] = time_steps(plans[i], call, TIMING_SECONDS / 2 / len(families))
                if measured.n_bytes is not None:
                    grown[i] = measured.n_bytes
            except Exception as error:  # it is the user's own code, or too large for this machine
                notes.append(f"a training step of run {plans[i].number} fails: {in_one_line(error)}")
        for i in runs:
            if paces and (flops[i] not in ends or flops[i] in paces):
                seconds[i] = estimated_seconds(plans[i], scaled(flops[i], paces))
    return Estimate(seconds, notes, grown)


def family(run: Run) -> str:
    """Return a key that is equal for runs whose steps differ only in size."""
    data, train, model = run.params
    return repr((data.dataset_name, model.kinds, model.attention, step_params(replace(train, batch_size=1))))


def step_params(train: TrainParams) -> TrainParams:
    """Return params with every field that does not affect the time of a step set to a fixed value."""
    # An lr so small that 30 steps hardly change the model. Exploding weights would change the time of a step.
    train = replace(train, lr=1e-9, min_lr=0.0, lr_schedule="constant", warmup_steps=0, weight_decay=0.1)
    train = replace(train, betas=(0.9, 0.95), beta2_half_life=None, momentum=0.9, random_seed=0)
    length: dict[str, Any] = dict.fromkeys(LENGTHS) | {"max_steps": MAX_STEPS}
    train = replace(train, **length)
    train = replace(train, val_every=None, patience=None, patience_metric="val_loss", stop_when=None)
    if isinstance(train.hyperparams_log_freq, float):  # a share of the run, which is long
        train = replace(train, hyperparams_log_freq=MAX_STEPS)
    train = replace(train, checkpoint_every=None)
    # Compiling takes longer than everything else here.
    return replace(
        train, accumulate_grad_batches=1, devices=1, strategy="auto", data_workers=0, compile=False
    )


def batch_flops(run: Run) -> float:
    """Return the operations of a training step on one batch."""
    n_rows, length = min(run.params.train.batch_size, run.data.n_rows), round(run.data.row_length)
    counted = row_flops(run.params.model, run.data.n_tokens, max(1, length))
    return n_rows * (counted or 6 * run.size.n_params * length)


def scaled(flops: float, paces: dict[float, Pace]) -> Pace:
    """Return the pace at `flops` a batch, on the line through the two timed paces, or in proportion to a single one."""
    (small, slow), (large, fast) = min(paces.items()), max(paces.items())
    if small == large:
        return Pace(slow.start, *(value * flops / large for value in slow[1:]))
    share = (flops - small) / (large - small)
    return Pace(*(a + share * (b - a) for a, b in zip(slow, fast, strict=True)))


def estimated_seconds(run: Run, pace: Pace) -> float:
    """Return the seconds from the start of a run to its results."""
    train, model = run.params.train, run.params.model
    n_batches = estimated_steps(run, pace) * train.accumulate_grad_batches
    per_epoch = max(1, math.ceil(run.data.n_rows / (train.batch_size * train.devices)))
    every = train.val_every
    if isinstance(every, float):
        n_validations = math.ceil(1 / every)
    else:
        n_validations = math.ceil(n_batches / (every * train.accumulate_grad_batches if every else per_epoch))
    n_validations += model.from_pretrained is not None or model.from_saved is not None
    validation = run.data.n_val_rows / train.batch_size * pace.val_batch + pace.generation
    return pace.start + n_batches * pace.batch + n_validations * validation


def estimated_steps(run: Run, pace: Pace) -> float:
    """Return the number of optimizer steps of a run. With max_seconds it follows from the time of one step."""
    if run.size.n_steps is not None:
        return run.size.n_steps
    return (run.params.train.max_seconds or 0.0) / (pace.batch * run.params.train.accumulate_grad_batches)


def time_steps(run: Run, call: Call, seconds: float) -> Pace:
    """Train like `run` for up to `seconds`, then validate on some batches. Return the measured pace."""
    data_params, train, model = run.params
    begun = time.perf_counter()
    with own_randomness(), cpu_threads(train.threads):
        data = make_data(data_params, model, call.cache, tokenizer=saved_tokenizer(model, call.out))
        lm = LM(model, tokenizer=data.tokenizer, dropout=train.dropout)
        probe(lm, train)
        timed = TimedTrainer(lm, data, step_params(train), Stats(None), MAX_STEPS)
        timed.seconds = seconds
        trainer = lightning_trainer(timed.train_params, MAX_STEPS, call.gpu_id)
        try:
            trainer.fit(timed, data.train_dataloader(train.batch_size))
        except SystemExit as error:  # Lightning turns Ctrl-C into this
            raise KeyboardInterrupt from error
        took = [later - earlier for earlier, later in pairwise(timed.ends)]
        evaluation, validated = make_evaluation(lm.eval(), data), [time.perf_counter()]
        for batch in islice(data.val_dataloader(train.batch_size), TIMED_VAL_BATCHES):
            evaluation.add(batch, train)
            validated.append(time.perf_counter())
        n_rows = min(run.data.n_val_rows, train.batch_size * TIMED_VAL_BATCHES)
        val_batch = (validated[-1] - validated[0]) * train.batch_size / n_rows
        evaluation.result()
        evaluation.sample()
        return Pace(timed.ends[0] - begun, median(took[1:]), val_batch, time.perf_counter() - validated[-1])


class TimedTrainer(LMTrainer):
    """Trainer that records when each batch ends, and stops when time is up."""

    seconds: float

    def on_train_start(self) -> None:
        super().on_train_start()
        self.ends: list[float] = []

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if len(self.ends) >= MIN_STEPS and self.ends[-1] - self.ends[0] > self.seconds:
            self.stop("time is up")
