"""A grid's runs one after another: the table before, the loop, the table after."""

import argparse
import math
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from data.dataloader import LMDataModule
from model.check import ignored_fields
from model.model_params import ModelParams
from train.build import count_steps, make_data, parameter_shapes, tokenizer_spec
from train.grid import GridError, Run, axes, located
from train.history import NEW, Step, clear_away, for_all_processes, identity, steps_for
from train.jobs import Board, SideBySide, n_jobs, say_threads
from train.logs import log
from train.params import Params, Texts
from train.pretrained import saved_tokenizer, weights_problems
from train.processes import give_way, rank
from train.provenance import code_of_this_process
from train.run import Call, of_variant, train_run
from train.saver import output_root, partial_folder
from train.settings import VARIANT
from train.soundness import UNCHECKED
from train.trainer import INTERRUPTED

MOST_SAID = 40  # lines of what --resume does, numbers of runs in a line
MOST_RESULTS = 200  # rows of the table of results


def make_call(args: argparse.Namespace, wandb_entity: str | None) -> Call:
    """What the command line says about all runs; GridError for what it cannot say."""
    save = args.save or args.resume is not None
    if save:
        code_of_this_process()  # now: the files may be edited while texts are read and runs train
    return Call(
        out=output_root(args.out),
        save=save,
        resume=args.resume,
        fail_fast=args.fail_fast,
        jobs=n_jobs(args.jobs),
        wandb=not args.no_wandb and rank() == 0,
        wandb_entity=wandb_entity,
        wandb_group=f"{args.config}--{datetime.now():%Y-%m-%d--%H-%M-%S}",
        gpu_id=args.gpu_id,
        command=sys.argv,
    )


def gpu_problems(gpu_id: int | None) -> Iterator[str]:
    if gpu_id is not None and not 0 <= gpu_id < torch.cuda.device_count():
        yield f"--gpu-id={gpu_id}: this machine has {torch.cuda.device_count()} GPUs (numbered from 0)"


MOST_ROWS = 1_000  # that --dry-run shows


class Plan(NamedTuple):
    """One run of the grid and what is known of it before it starts."""

    config: str  # the name of its file
    params: Params
    n_params: int
    n_steps: int
    n_tokens: int  # estimated: rows to be trained on, times their length
    identity: str
    measured: "Measured"
    variant: str | None = None  # its name, where the grid has variants
    step: Step = NEW  # what is to be done with it


def prepare(runs: list[Run], call: Call) -> list[Plan]:
    """Read, tokenise and cache every text of the grid, and size every model; raises GridError for what cannot be had."""
    plans, errors = [], []
    data_of: dict[str, Measured | None] = {}  # what `measure` says of each data set
    size_of: dict[str, int] = {}
    begun: set[str] = set()  # what has been tried of weights to begin with
    text = Texts()
    for params, places, config, variant in runs:
        data, train, model = params
        key = f"{text(data)} {(tokenizer_spec(model), model.max_seq_len, model.from_saved)}"
        try:
            if key not in data_of:
                tokenizer = saved_tokenizer(model, call.out)
                data_of[key] = measure(make_data(data, model, call.cache, tokenizer=tokenizer))
        except ValueError as error:
            data_of[key] = None
            whose = f" (with the tokenizer of from_saved={model.from_saved!r})" if model.from_saved else ""
            errors.append(f"{places.get('dataset_name', 'defaults')}: {error}{whose}")
        if (measured := data_of[key]) is None:
            continue
        tokenizer, n_rows = measured.tokenizer, measured.n_rows
        if (size_key := text(model) + key) not in size_of:
            try:
                size_of[size_key] = count_params(model, tokenizer.n_tokens)
            except ValueError as error:
                errors.append(located(str(error), places))
                continue
        begun_with = repr((model.from_pretrained, model.from_saved, model.lora_rank > 0, key))
        if begun_with not in begun:
            begun.add(begun_with)
            errors += [located(problem, places) for problem in weights_problems(model, tokenizer, call.out)]
        n_steps = count_steps(train, n_rows)
        per_step = train.batch_size * train.accumulate_grad_batches * train.devices
        rows = min(n_rows * train.epochs, n_steps * per_step)
        n_tokens = round(rows * measured.row_length)
        known = (identity(params, measured.content), measured, variant)
        plans.append(Plan(config, params, size_of[size_key], n_steps, n_tokens, *known))
    errors += device_problems({run.params.train.devices for run in runs}, call)
    if errors:
        raise GridError(errors)
    if call.resume is None:
        return plans
    identities = [plan.identity for plan in plans]
    steps = for_all_processes(lambda: steps_for(identities, call.out, any_code=call.resume == "anyway"))
    return [plan._replace(step=step) for plan, step in zip(plans, steps, strict=True)]


def count_params(model: ModelParams, n_tokens: int) -> int:
    return sum(shape.numel() for shape in parameter_shapes(model, n_tokens).values())


def device_problems(devices: set[int], call: Call) -> Iterator[str]:
    """The processes that a first run starts go through the whole grid with it."""
    gpu_id = call.gpu_id
    if call.jobs > 1 and devices != {1}:
        yield f"--jobs={call.jobs} runs side by side have one device each, but devices={max(devices)}"
    if len(devices) > 1:
        yield f"devices={sorted(devices)}: all runs of a call need the same number; make a call for each"
    if gpu_id is not None and devices != {1}:
        yield f"--gpu-id={gpu_id} is one GPU, but devices={max(devices)}"


def check_names(plans: list[Plan], make_namer: Callable[..., Any], call: Call) -> None:
    """Asks Namer for every name, so that a mistake in it shows before there are results to lose; raises GridError."""
    timestamp, errors = f"{datetime.now():%Y-%m-%d--%H-%M-%S}", []
    for plan in plans:
        namer = make_namer(plan.params, variant=plan.variant)
        try:
            namer.wandb_proj_name()
            namer.run_name()
            partial_folder(call.out / "saved-models", namer.save_folder_name(timestamp), timestamp)
        except Exception as error:  # it is the user's own code
            errors.append(f"Namer in main.py: {type(error).__name__}: {error}")
    if errors:
        raise GridError(errors)


class Measured(NamedTuple):
    """What planning a run asks of its data."""

    tokenizer: Any
    n_rows: int  # to train on
    n_val_rows: int
    row_length: float  # real tokens in a row, from one batch
    content: str  # of the text


def measure(data: LMDataModule) -> Measured:
    batch = next(iter(data.train_dataloader(min(64, data.n_rows("train")))))
    row_length = batch["n_tokens"] / len(batch["x_indices"])
    return Measured(data.tokenizer, data.n_rows("train"), data.n_rows("val"), row_length, data.content)


def announce(plans: list[Plan]) -> None:
    """What a reader of the results must know about the runs, said once."""
    say_steps(plans)
    models = [plan.params.model for plan in plans]
    if any(model.attention == "fused" for model in models):
        log.info("attention='fused' is torch's kernel: it ignores edits to the explicit attention")
    foreign = sorted({kind for m in models for kind in m.kinds if kind.startswith("torch-")})
    if foreign:
        log.info(f"{', '.join(foreign)}: torch's own layers, which ignore edits to ours")
    runs_with: defaultdict[str, list[str]] = defaultdict(list)
    text, ignored = Texts(), {}
    for number, model in enumerate(models, 1):
        if text(model) not in ignored:
            ignored[text(model)] = ", ".join(ignored_fields(model))
        if settings := ignored[text(model)]:
            runs_with[settings].append(str(number))
    for settings, numbers in runs_with.items():
        log.info(f"no layer of run {listed(numbers)} has a use for {settings}")
    short: defaultdict[str, list[str]] = defaultdict(list)
    for number, plan in enumerate(plans, 1):
        if plan.params.train.warmup_steps >= plan.n_steps:
            steps = f"warmup_steps={plan.params.train.warmup_steps} of {plan.n_steps} steps"
            short[steps].append(str(number))
    for steps, numbers in short.items():
        log.info(f"run {listed(numbers)} ends before its learning rate has risen to lr: {steps}")


def listed(numbers: list[str]) -> str:
    hidden = len(numbers) - MOST_SAID
    return ", ".join(numbers[:MOST_SAID]) + (f" and {hidden} more" if hidden > 0 else "")


def say_steps(plans: list[Plan]) -> None:
    """What --resume makes of each run."""
    if all(plan.step is NEW for plan in plans):
        return
    counts = Counter(plan.step.what for plan in plans)
    log.info("--resume: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    said = [f"run {number}: {plan.step}" for number, plan in enumerate(plans, 1)]
    hidden = len(said) - MOST_SAID
    log.info("\n".join(said[:MOST_SAID] + [f"... and {hidden} more"] * (hidden > 0)))


def run_plans(plans: list[Plan], make_namer: Callable[..., Any], call: Call) -> list[dict[str, Any]]:
    """Train every run; one that fails is shown at once and does not stop the rest, unless it has several processes."""
    names = [", ".join(f"{key} {value}" for key, value in own.items()) for own in settings_of(plans)]
    jobs = [
        Job(number, name, plan.params, plan.variant, plan.identity, plan.step, make_namer)
        for number, (name, plan) in enumerate(zip(names, plans, strict=True), 1)
    ]
    said = {
        job.number: f"run {job.number} of {len(jobs)}: {job.name}, {plan.n_params:,} parameters, {plan.n_steps} steps"
        for job, plan in zip(jobs, plans, strict=True)
    }
    if call.jobs > 1:
        return run_side_by_side(jobs, said, Board([plan.n_steps for plan in plans]), call)
    summaries: list[dict[str, Any]] = []
    for job in jobs:
        if not job.step.trains:
            summaries.append(earlier_summary(job.step))
            continue
        log.info(said[job.number])
        summary = train_job(job, call)
        summaries.append(summary)
        failed = summary["stopped"].startswith("failed")
        if summary["stopped"] == INTERRUPTED or (failed and (call.fail_fast or job.params.train.devices > 1)):
            break  # after a failure several processes may stand at different points
    return summaries


class Job(NamedTuple):
    """A run to be trained."""

    number: int  # from 1
    name: str  # what tells it apart
    params: Params
    variant: str | None
    identity: str
    step: Step
    make_namer: Callable[..., Any]


def train_job(job: Job, call: Call) -> dict[str, Any]:
    """The summary of a run, whatever becomes of it."""
    started, one = time.perf_counter(), call._replace(variant=job.variant)
    try:
        namer = job.make_namer(job.params, variant=job.variant)
        return train_run(job.params, namer, one, job.identity, go_on=taken_up(job.step))
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    except Exception as error:
        give_way()
        log.error(f"run {job.number} failed with {job.name}:\n{traceback.format_exc()}")
        stopped = f"failed: {type(error).__name__}: {error}"
    return of_variant(one) | {"stopped": stopped, "wall_seconds": time.perf_counter() - started}


def run_side_by_side(jobs: list[Job], said: dict[int, str], board: Board, call: Call) -> list[dict[str, Any]]:
    """The same, several at a time."""
    say_threads({job.params.train.threads for job in jobs}, call.jobs)
    summaries = {job.number: earlier_summary(job.step) for job in jobs if not job.step.trains}
    to_train = {job.number: job for job in jobs if job.step.trains}
    summaries |= SideBySide(train_job, to_train, said, board, call).run()
    return [summaries.get(job.number, {"stopped": "not run"}) for job in jobs]


def taken_up(step: Step) -> Path | None:
    """The folder in which a run goes on; one that trains again has its old one cleared away."""
    if step.earlier is None:
        return None
    if step.what == "continued":
        return step.earlier.folder
    if rank() == 0:
        clear_away(step.earlier)
    return None


def earlier_summary(step: Step) -> dict[str, Any]:
    """The final numbers of a run that is not trained now."""
    assert step.earlier is not None
    if not step.earlier.summary:
        return {"stopped": "training elsewhere"}
    ended = {"stopped": f"{step.earlier.summary['stopped']} earlier", "folder": str(step.earlier.folder)}
    return step.earlier.summary | ended


def settings_of(plans: list[Plan]) -> list[dict[str, str]]:
    """What tells the runs apart: the config, where there are several, the variant, and the fields that vary besides."""
    varied = axes(((plan.config, plan.variant), plan.params) for plan in plans)
    named = any(plan.variant is not None for plan in plans)
    several = len({plan.config for plan in plans}) > 1 or not (varied or named)
    return [
        ({"config": plan.config} if several else {})
        | ({VARIANT: plan.variant or "-"} if named else {})
        | {key: as_text(own[key]) for key in varied}
        for plan, own in ((plan, plan.params.flat()) for plan in plans)
    ]


def as_text(value: object) -> str:
    """A number without the last digits of what it was derived by."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def as_time(seconds: float | None) -> str:
    """Seconds as a reader wants them: 0.4 s, 12 s, 5 min, 3.2 h, 4 days."""
    if seconds is None:
        return "?"
    for size, unit in ((86_400 * 2, "days"), (3600 * 1.5, "h"), (90, "min")):
        if seconds >= size:
            value = seconds / {"days": 86_400, "h": 3600, "min": 60}[unit]
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def plan_table(plans: list[Plan], times: list[str]) -> Table:
    """What --dry-run shows: of a very large grid the first runs."""
    settings = settings_of(plans)
    table = new_table("run", *settings[0], "parameters", "steps", "tokens (estimate)", "time (estimate)")
    for number, (plan, own) in enumerate(zip(plans[:MOST_ROWS], settings, strict=False), 1):
        sizes = (f"{plan.n_params:,}", f"{plan.n_steps:,}", f"{plan.n_tokens:,}", times[number - 1])
        table.add_row(str(number), *map(escape, own.values()), *sizes)
    return table


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "val\nloss": lambda s: shown(s.get("val_loss"), ".4f"),
    "leak": lambda s: leak_mark(s.get("leak")),
    "bits/\nbyte": lambda s: shown(s.get("bits_per_byte"), ".3f"),
    "accu-\nracy": lambda s: shown(s.get("val_accuracy"), ".1%"),
    "chance": lambda s: shown(s.get("chance"), ".1%"),
    "exact\nmatch": lambda s: shown(s.get("val_exact_match"), ".1%"),
    "para-\nmeters": lambda s: shown(s.get("n_params"), ",d"),
    "tokens\n/s": lambda s: shown(s.get("tokens_per_second"), ",.0f"),
    "seconds": lambda s: shown(s.get("wall_seconds"), ".1f"),
    "ended": lambda s: s["stopped"] + (", best" if s.get("weights") == "best" else ""),
}


NUMBERS = {*COLUMNS} - {"leak", "ended"}  # never broken over lines


def result_table(plans: list[Plan], summaries: list[dict[str, Any]]) -> Table:
    """Every run's final numbers beside what varied; of a very large grid those of the runs one would look for first."""
    settings, chosen = settings_of(plans), most_telling(summaries)
    cells = {name: [cell(summaries[i]) for i in chosen] for name, cell in COLUMNS.items()}
    cells = {name: column for name, column in cells.items() if set(column) != {"-"}}
    table = new_table("run", *settings[0], *cells)
    for i, *row in zip(chosen, *cells.values(), strict=True):
        table.add_row(str(i + 1), *map(escape, (*settings[i].values(), *row)))
    if hidden := len(summaries) - len(chosen):
        table.caption = f"... and {hidden:,} more; shown are failed runs and those of the lowest loss"
    return table


def most_telling(summaries: list[dict[str, Any]]) -> list[int]:
    """The places, in order, of at most MOST_RESULTS runs: failed ones in up to half of them, then the lowest losses."""
    everything = range(len(summaries))
    if len(summaries) <= MOST_RESULTS:
        return [*everything]
    failed = [i for i in everything if summaries[i]["stopped"].startswith(("failed", "diverged"))]
    first = failed[: MOST_RESULTS // 2]
    rest = sorted(set(everything).difference(first), key=lambda i: (loss_of(summaries[i]), i))
    return sorted(first + rest[: MOST_RESULTS - len(first)])


def loss_of(summary: dict[str, Any]) -> float:
    """To rank runs by: infinite if there is none."""
    loss = summary.get("val_loss")
    return math.inf if loss is None or math.isnan(loss) else loss


def leak_mark(leak: str | None) -> str:
    """No row without it shows the numbers of a model that sees what it predicts."""
    if leak is None:
        return "-"
    return "unknown" if leak.startswith(UNCHECKED) else "yes"


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold", no_wrap=column in NUMBERS)
    return table


def exit_code(summaries: list[dict[str, Any]]) -> int:
    """130 after Ctrl-C, 1 if a run failed or diverged, else 0."""
    if rank() and torch.distributed.is_initialized():
        return 0  # the first process will notice and report; Lightning kills it when another one ends with an error
    ends = [summary["stopped"] for summary in summaries]
    if INTERRUPTED in ends:
        return 130
    return int(any(end.startswith(("failed", "diverged")) for end in ends))
