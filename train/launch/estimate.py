"""Estimate how long a grid takes on this machine: time a few real training steps, and extrapolate to all runs."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice, pairwise, zip_longest
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from data.batch import Batch, mycollate, n_real_tokens
from data.dataloader import LMDataModule
from model.generation.sampling import generate
from model.lm import LM, n_params
from train.data import make_data
from train.evaluation import CHECKED_ANSWERS, SAMPLE_LENGTH, Evaluation
from train.grid.params import Texts
from train.grid.run import Call, Run
from train.launch.tables import MOST_ROWS, as_time, plan_table
from train.logs import log
from train.pretrained import saved_tokenizer
from train.probe import in_one_line, own_randomness, probe
from train.run import cpu_threads, lightning_trainer
from train.stats import Stats
from train.train_params import TrainParams
from train.trainer import LMTrainer

SECONDS = 4.0  # for all measurements together
MOST_KINDS = 6  # of steps that are measured; the times of others follow from theirs
LEAST_STEPS, MOST_STEPS = 4, 30  # of one kind
LEAST_TOKENS = 256  # of a batch: with fewer, time is not in proportion to them
SLOWEST_CPU, PASSES = (
    5e10,
    8,
)  # operations a second, and batches in the time there is: by these a batch is cut
TRIED_TOKENS = 4  # generated
TRIED_BATCHES, TRIED_SECONDS = 3, 0.3  # validated, at most


class Pace(NamedTuple):
    """Seconds for each part of a run."""

    start: float  # before the first step
    batch: float  # forward, backward and optimizer step
    val_row: float  # one row of a validation
    generation: float  # what a validation generates


class Kind(NamedTuple):
    """Runs with equal steps, and the work of one of their batches: parameters times tokens."""

    runs: list[int]
    work: float
    family: str  # kinds of one family differ in size alone


class Forecast(NamedTuple):
    """Estimated seconds for each run, None if unknown, with notes for the reader."""

    seconds: list[float | None]
    notes: list[str]
    failed: bool  # whether a run cannot train


def report(plans: list[Run], call: Call, *, times: bool = True) -> int:
    """Log the plan of a grid for --dry-run, with estimated training times if `times`.

    Return the exit code: 1 if a run cannot train, else 0.
    """
    trained = [run for run in plans if run.first_step.trains and times]
    seconds, notes, failed = forecast(trained, call)
    shown = dict(zip(map(id, trained), map(as_time, seconds), strict=True))
    log.info(plan_table(plans, [shown.get(id(run), "-") for run in plans]))
    if len(plans) > MOST_ROWS:
        log.info(f"... and {len(plans) - MOST_ROWS:,} more")
    known = [run for run in seconds if run is not None]
    for note in notes:
        log.info(note)
    if known:
        n_runs = f"{len(known):,} run{'s' * (len(known) != 1)}"
        log.info(f"about {as_time(sum(known))} for {n_runs}, one after another on this machine")
    return int(failed)


def forecast(plans: Sequence[Run], call: Call) -> Forecast:
    """Measure some runs and extrapolate to all. Nothing is written, and random generators keep their state."""
    kinds = kinds_of(plans)
    chosen = choose(kinds)
    paces: dict[int, Pace] = {}
    notes, failed = [], set()
    end = time.perf_counter() + SECONDS
    for left, i in zip(range(len(chosen), 0, -1), chosen, strict=True):
        seconds = (end - time.perf_counter()) / left
        if seconds < 0 and paces:
            break
        first = kinds[i].runs[0]
        try:
            paces[i] = measure(plans[first], call, max(0.1, seconds))
        except Exception as error:  # it is the user's own code, or too large for this machine
            failed.add(i)
            notes.append(f"a training step of run {first + 1} fails: {in_one_line(error)}")
    seconds_of: list[float | None] = [None] * len(plans)
    for i, kind in enumerate(kinds):
        if i not in failed and (pace := paces.get(i) or extrapolate(kind, kinds, paces)):
            for run in kind.runs:
                seconds_of[run] = duration(plans[run], pace)
    if len(paces) < len(kinds) - len(failed):
        notes.append(f"times follow from {len(paces)} of {len(kinds)} kinds of steps, by their sizes")
    return Forecast(seconds_of, notes, bool(failed))


def kinds_of(plans: Sequence[Run]) -> list[Kind]:
    text = Texts()
    groups: defaultdict[str, list[int]] = defaultdict(list)
    steps: dict[TrainParams | str, str] = {}
    for i, run in enumerate(plans):
        data, train, model = run.params
        if text(train) not in steps:
            steps[text(train)] = repr(step_params(train))
        groups[text(data) + steps[text(train)] + text(model)].append(i)
    return [Kind(runs, work(plans[runs[0]]), family(plans[runs[0]])) for runs in groups.values()]


def step_params(train: TrainParams) -> TrainParams:
    """Return params with every field that does not affect the time of a step set to a fixed value."""
    # An lr so small that 30 steps hardly change the model. Exploding weights would change the time of a step.
    train = replace(train, lr=1e-9, min_lr=0.0, lr_schedule="constant", warmup_steps=0, weight_decay=0.1)
    train = replace(train, betas=(0.9, 0.95), momentum=0.9, random_seed=0, epochs=MOST_STEPS)
    train = replace(train, early_stop_nsamples=None, val_every=None, patience=None, checkpoint_every=None)
    train = replace(train, accumulate_grad_batches=1, devices=1, strategy="auto", data_workers=0)
    return replace(train, compile=False)  # it takes longer than all else here


def work(run: Run) -> float:
    return max(1.0, run.size.n_params * run.params.train.batch_size * run.data.row_length)


def family(run: Run) -> str:
    _, train, model = run.params
    return repr((model.kinds, model.attention, train.precision, train.optimizer, train.threads))


def choose(kinds: Sequence[Kind]) -> list[int]:
    """Return the indices of the kinds to measure, in order of importance.

    Families take turns, starting with the one with the most work. Each offers its largest kind first, then its
    smallest, then kinds between.
    """
    families: defaultdict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(kinds)), key=lambda i: -kinds[i].work):
        families[kinds[i].family].append(i)
    heaviest = sorted(
        families.values(), key=lambda own: -sum(kinds[i].work * len(kinds[i].runs) for i in own)
    )
    turns = zip_longest(*map(extremes_first, heaviest))
    return [i for turn in turns for i in turn if i is not None][:MOST_KINDS]


def extremes_first(ordered: list[int]) -> list[int]:
    """Return the first item, the last, and then those in the middle of the widest gaps."""
    n = len(ordered)
    places = [0, n - 1]
    while len(places) < min(n, MOST_KINDS):
        low, high = max(pairwise(sorted(places)), key=lambda gap: gap[1] - gap[0])
        places.append((low + high) // 2)
    return [ordered[place] for place in dict.fromkeys(places)]


def extrapolate(kind: Kind, kinds: Sequence[Kind], paces: dict[int, Pace]) -> Pace | None:
    """Interpolate the pace of a kind by its work, between measured kinds of its family, or else of all families.

    Outside their range the pace is proportional to the work.
    """
    like = [i for i in paces if kinds[i].family == kind.family] or list(paces)
    if not like:
        return None
    like.sort(key=lambda i: kinds[i].work)
    works = [math.log(kinds[i].work) for i in like]
    inside = min(max(math.log(kind.work), works[0]), works[-1])
    beyond = math.exp(math.log(kind.work) - inside)
    logs = [[math.log(max(value, 1e-9)) for value in paces[i]] for i in like]
    start, *rest = (math.exp(np.interp(inside, works, column)) for column in zip(*logs, strict=True))
    return Pace(start, *(beyond * value for value in rest))


def duration(run: Run, pace: Pace) -> float:
    """Return the seconds from the start of a run to its results."""
    train, model = run.params.train, run.params.model
    n_batches = run.size.n_steps * train.accumulate_grad_batches
    per_epoch = math.ceil(run.data.n_rows / (train.batch_size * train.devices))
    n_validations = math.ceil(
        run.size.n_steps / train.val_every if train.val_every else n_batches / max(1, per_epoch)
    )
    n_validations += model.from_pretrained is not None or model.from_saved is not None
    validation = run.data.n_val_rows * pace.val_row + pace.generation
    return pace.start + n_batches * pace.batch + n_validations * validation


def measure(run: Run, call: Call, seconds: float) -> Pace:
    """Measure the pace of a run like `plan` by up to `seconds` of training and a short validation."""
    data_params, train, model = run.params
    begun = time.perf_counter()
    with own_randomness(), cpu_threads(train.threads):
        tokenizer = saved_tokenizer(model, call.out)
        data = make_data(data_params, model, call.cache, tokenizer=tokenizer)
        lm = LM(model, tokenizer=data.tokenizer, dropout=train.dropout)
        n_tokens = max(LEAST_TOKENS, seconds * SLOWEST_CPU / (6 * n_params(lm)) / PASSES)
        whole = run.data.row_length * train.batch_size <= n_tokens or torch.cuda.is_available()
        if whole:
            probe(lm, train)
        timed = TimedTrainer(lm, data, step_params(train), Stats(None), MOST_STEPS)
        timed.deadline = time.perf_counter() + seconds / 2
        weights = {name: weight.clone() for name, weight in lm.state_dict().items()}
        trainer = lightning_trainer(timed.train_params, MOST_STEPS, call.gpu_id, quiet=True)
        try:
            trainer.fit(timed, data.train_dataloader(train.batch_size) if whole else parts(data, n_tokens))
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from error
        start = timed.ends[0] - begun
        n_rows = min(train.batch_size, run.data.n_rows)
        batch = timed.seconds(run.data.row_length * n_rows)
        lm.load_state_dict(weights)  # a loss that is NaN has made them so, and nothing can be generated
        per_row = validation_seconds(lm, data, train, n_tokens)
        return Pace(start, batch, per_row, generation_seconds(lm, data))


class TimedTrainer(LMTrainer):
    """Trainer that records when each batch ends, and stops when time is up."""

    deadline = 0.0

    def on_train_start(self) -> None:
        super().on_train_start()
        self.sizes: list[int] = []  # tokens of each batch
        self.ends: list[float] = []

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.sizes.append(int(n_real_tokens(batch)))
        self.ends.append(time.perf_counter())
        if len(self.ends) >= LEAST_STEPS and self.ends[-1] > self.deadline:
            self.stop("time is up")

    def seconds(self, n_tokens: float) -> float:
        """Return the seconds of a batch of `n_tokens`, from the batches timed.

        They were full batches, or alternated between two smaller sizes.
        """
        took = [later - earlier for earlier, later in pairwise(self.ends)][1:]
        sizes = self.sizes[2:]
        small, large = min(sizes), max(sizes)
        if large > n_tokens / 2:
            return median(took)
        of_small, of_large = (
            median(t for t, of in zip(took, sizes, strict=True) if of == size) for size in (small, large)
        )
        per_token = max((of_large - of_small) / (large - small), of_large / large / 2)
        return of_large + (n_tokens - large) * per_token


def parts(data: LMDataModule, n_tokens: float) -> Iterator[Batch]:
    """Yield batches of about `n_tokens` and half as many in turn, used where full batches could take too long."""
    rows = data.rows("train")
    batches = []
    for size in (int(n_tokens / 2), int(n_tokens)):
        ids: list[Sequence[int]] = []
        while (missing := size - sum(len(row) - 1 for row in ids)) > 0:
            ids.append(rows[len(ids) % len(rows)].ids[: missing + 1])
        batches.append(mycollate([row for row in ids if len(row) > 1], pad=data.tokenizer.pad))
    return islice(cycle(batches), MOST_STEPS)


def validation_seconds(lm: LM, data: LMDataModule, train: TrainParams, n_tokens: float) -> float:
    """Return the seconds that validation takes per row."""
    lm.eval()
    evaluation = Evaluation(lm, data)
    rows = max(1, min(train.batch_size, int(n_tokens / data.max_seq_len)))
    n_rows, begun = 0, time.perf_counter()
    for batch in islice(data.val_dataloader(rows), TRIED_BATCHES):
        evaluation.add(batch, train)
        n_rows += len(batch["x_indices"])
        if time.perf_counter() - begun > TRIED_SECONDS:
            break
    return (time.perf_counter() - begun) / n_rows


def generation_seconds(lm: LM, data: LMDataModule) -> float:
    """Return the seconds that a validation generates: its sample, and the answers that the task's check reads.

    A masked model generates nothing.
    """
    if lm.model_params.objective == "masked":
        return 0.0
    if data.task is None:
        return SAMPLE_LENGTH * seconds_a_token(lm, [data.tokenizer.start])
    prompts = data.prompts(CHECKED_ANSWERS)
    longest = max(prompt.answer_length for prompt in prompts)
    sample = prompts[0].answer_length * seconds_a_token(lm, [prompts[0].ids])
    checked = data.task.check is not None
    return sample + (longest * seconds_a_token(lm, [prompt.ids for prompt in prompts]) if checked else 0.0)


def seconds_a_token(lm: LM, prompts: list[list[int]]) -> float:
    generate(lm, prompts[:1], 1, temperature=0)  # the first time the cache is tried out
    begun = time.perf_counter()
    rows = generate(lm, prompts, TRIED_TOKENS, temperature=0)
    made = max(len(row) - len(prompt) for row, prompt in zip(rows, prompts, strict=True))
    return (time.perf_counter() - begun) / max(1, made)
