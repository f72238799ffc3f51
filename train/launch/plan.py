"""Plan a grid before it starts: read its texts, size its models, and look up what earlier calls did."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from data import cache
from data.data_params import DataParams
from data.tokenizer import Tokenizer
from model.model_params import ModelParams
from model.observe import observed
from model.shapes import ModelSize, size_of
from train.data import data_options, make_data
from train.document import document, run_entry
from train.flops import row_flops
from train.grid.expand import GridError, located
from train.grid.params import SECTION_OF, Params, Texts
from train.grid.run import NEW, Call, DataFacts, Run, RunSize
from train.launch.match import match_notes, matched
from train.launch.metrics import metric_problems
from train.launch.observe import Unused, observed_spec, unused_data_fields, unused_fields
from train.launch.remote import scheduler_option
from train.launch.tables import MAX_PLAN_ROWS, as_time, plan_table, settings_of
from train.length import RunCosts, count_steps, mean_row_length, rows_per_step
from train.logs import log, status
from train.pretrained import saved_tokenizer, weights_problems
from train.saving.earlier_runs import description, for_all_processes, run_identity, steps_for
from train.saving.provenance import code_of_this_process
from train.saving.record import Namer
from train.saving.run_folder import partial_folder
from train.train_params import TrainParams

REFUSED_BY_WANDB, MAX_WANDB_NAME = "/\\#?%:", 128  # characters in a project name, and how many it may have
# Fields of TrainParams that have an effect only with an option.
FIELDS_WITH_OPTION = {"checkpoint_every": "--save", "cpus": "--ray or --slurm", "gpus": "--ray or --slurm"}
MAX_SAID = 40  # log lines about --resume, and run numbers in one line


def prepare(runs: list[Run], call: Call) -> list[Run]:
    """Return the runs of a grid with all that is known before they train.

    Read, tokenize and cache every text, and size every model. Raise GridError with all failures.
    """
    if call.save:
        code_of_this_process()  # now, as files may be edited while texts are read and runs train
    errors: list[str] = []
    numbered = [replace(run, number=number) for number, run in enumerate(runs, 1)]
    tokenizers: dict[int, Tokenizer] = {}  # by number of the run
    with_facts = with_data(numbered, call, tokenizers, errors)
    planned = with_sizes(matched(with_facts, errors), call, tokenizers, errors)
    planned = [replace(run, name=name) for run, name in zip(planned, names_of(planned), strict=True)]
    errors += device_problems({run.params.train.devices for run in runs}, call)
    errors += [
        located(problem, run.places) for run in runs for problem in time_problems(run.params.train, call)
    ]
    if not errors:
        errors += [located(problem, run.places) for run, problem in metric_problems(planned, call)]
    if errors:
        raise GridError(errors)
    if call.resume is None:
        return planned
    steps = for_all_processes(lambda: steps_for(planned, call.out, any_code=call.resume == "anyway"))
    return [replace(run, first_step=step) for run, step in zip(planned, steps, strict=True)]


def with_data(runs: list[Run], call: Call, tokenizers: dict[int, Tokenizer], errors: list[str]) -> list[Run]:
    """Return the runs whose data can be built, with facts about it, and put their tokenizers into `tokenizers`."""
    data_of: dict[str, tuple[Tokenizer, DataFacts] | None] = {}
    text, found = Texts(), []
    for run in runs:
        data, _, model = run.params
        key = f"{text(data)} {data_options(model)} {model.from_saved}"
        try:
            if key not in data_of:
                with status(f"reading {data.label}"):
                    tokenizer = saved_tokenizer(model, call.out)
                    data_of[key] = measure_data(data, model, call.cache, tokenizer, call.save)
        except ValueError as error:
            data_of[key] = None
            whose = f" (with the tokenizer of from_saved={model.from_saved!r})" if model.from_saved else ""
            field = "eval_sets" if str(error).startswith("eval_sets=") else "dataset_name"
            errors.append(f"{run.places.get(field, 'defaults')}: {error}{whose}")
        if (made := data_of[key]) is not None:
            tokenizers[run.number], facts = made
            found.append(replace(run, data=facts))
    return found


def with_sizes(runs: list[Run], call: Call, tokenizers: dict[int, Tokenizer], errors: list[str]) -> list[Run]:
    """Return the runs whose models can be built, with their sizes and identities."""
    sizes: dict[tuple[str, int], ModelSize] = {}
    text, found = Texts(), []
    for run in runs:
        model, tokenizer, places = run.params.model, tokenizers[run.number], run.places
        try:
            if (key := (text(model), id(tokenizer))) not in sizes:
                sizes[key] = size_of(model, tokenizer.n_tokens)
                problems = weights_problems(model, tokenizer, call.out)
                errors += [located(problem, places) for problem in problems]
            size = size_of_run(run.params, run.data, sizes[key])
        except ValueError as error:
            errors.append(located(str(error), places))
            continue
        found.append(replace(run, size=size, identity=run_identity(run.params, run.data.content)))
    return found


def size_of_run(params: Params, data: DataFacts, model: ModelSize) -> RunSize:
    """Return the size of a run. Raise ValueError if its length depends on operations that cannot be counted."""
    train = params.train
    flops = None
    if train.max_flops is not None:
        flops = row_flops(params.model, data.n_tokens, max(1, round(data.row_length)), train)
    n_steps = count_steps(train, data.n_rows, RunCosts(data.row_length, model.n_params, flops))
    if n_steps is None:
        return RunSize(model.n_params, None, None, model.state_size, model.n_active)
    per_epoch = math.ceil(data.n_rows / rows_per_step(train))
    epochs, rest = divmod(n_steps, per_epoch)  # the last step of an epoch may have fewer rows
    rows = epochs * data.n_rows + min(data.n_rows, rest * rows_per_step(train))
    n_tokens = round(rows * data.row_length)
    return RunSize(model.n_params, n_steps, n_tokens, model.state_size, model.n_active)


def names_of(runs: list[Run]) -> list[str]:
    """Return a name for each run, from the values that distinguish it, such as "dim 64, lr 0.001"."""
    return [", ".join(f"{key} {value}" for key, value in own.items()) for own in settings_of(runs)]


def measure_data(
    params: DataParams, model: ModelParams, folder: Path, tokenizer: Tokenizer | None, saves: bool = False
) -> tuple[Tokenizer, DataFacts]:
    """Build the data of a run, and record which fields this reads. `saves` adds hashes of the held-out samples.

    Raise ValueError if there is nothing to train on or to validate with.
    """
    with cache.note_reads() as reads:
        spec = observed_spec(model, reads.names)
        data = make_data(observed(params, reads.names), model, folder, tokenizer=tokenizer, spec=spec)
        data.check_scored()
        sizes = data.n_rows("train"), data.n_rows("val"), mean_row_length(data)
        next(iter(data.val_dataloader(1)))
    names = frozenset(reads.names) if reads.known else None
    facts = DataFacts(data.tokenizer.n_tokens, *sizes, data.content, (*reads.folders,), names)
    return data.tokenizer, facts._replace(held_out=data.held_out()) if saves else facts


def device_problems(devices: set[int], call: Call) -> Iterator[str]:
    """Yield an error message for combinations of devices, --jobs, --ray, --slurm and --gpu-id that are not supported.

    The processes that the first run starts go through the whole grid with it, so all runs need as many devices.
    """
    gpu_id = call.gpu_id
    if call.jobs > 1 and devices != {1}:
        yield f"--jobs={call.jobs} runs side by side have one device each, but devices={max(devices)}"
    scheduler = scheduler_option(call)
    if scheduler is not None and devices != {1}:
        yield f"{scheduler} gives a run one device, but devices={max(devices)}"
    if scheduler is not None and gpu_id is not None:
        yield f"--gpu-id={gpu_id} is a GPU of this machine; with {scheduler} set gpus in TrainParams"
    if len(devices) > 1:
        yield f"devices={sorted(devices)}: all runs of a call need the same number; make a call for each"
    if gpu_id is not None and devices != {1}:
        yield f"--gpu-id={gpu_id} is one GPU, but devices={max(devices)}"


def time_problems(train: TrainParams, call: Call) -> Iterator[str]:
    """Yield an error message if a run that ends by time would share its machine with others."""
    if train.max_seconds is not None and (call.jobs > 1 or call.cluster is not None):
        option = scheduler_option(call) or f"--jobs={call.jobs}"
        yield (
            f"max_seconds={train.max_seconds} measures a machine that one run has for itself, so it does not go with "
            f"{option}; use max_flops or max_tokens"
        )


def gpu_problems(gpu_id: int | None) -> Iterator[str]:
    if gpu_id is not None and not 0 <= gpu_id < torch.cuda.device_count():
        yield f"--gpu-id={gpu_id}: this machine has {torch.cuda.device_count()} GPUs (numbered from 0)"


def check_names(runs: list[Run], make_namer: Callable[..., Namer], call: Call) -> None:
    """Call Namer for every run, so that errors in it show before training. Raise GridError with all of them."""
    timestamp, errors = f"{datetime.now():%Y-%m-%d--%H-%M-%S}", []
    for run in runs:
        namer = make_namer(run.params, variant=run.variant)
        try:
            project = namer.wandb_proj_name()
            errors += wandb_problems(project) if call.wandb else []
            namer.run_name()
            partial_folder(call.out / "saved-models", namer.save_folder_name(timestamp), timestamp)
        except Exception as error:  # it is the user's own code
            errors.append(f"Namer in main.py: {type(error).__name__}: {error}")
    if errors:
        raise GridError(errors)


def wandb_problems(project: str) -> list[str]:
    """Return an error message if wandb would refuse this project name, which it does only when a run starts."""
    bad = " ".join(sorted(set(project) & set(REFUSED_BY_WANDB)))
    fault = f"must not contain {bad}" if bad else f"must not be longer than {MAX_WANDB_NAME} characters"
    if not bad and len(project) <= MAX_WANDB_NAME:
        return []
    return [
        f"wandb refuses the project name {project!r:.160}: it {fault}; give another by --wandb-proj-name "
        "or wandb_proj_name in main.py, or use --no-wandb"
    ]


def announce(runs: list[Run], call: Call) -> None:
    """Log facts about the runs that a reader of the results must know, each once."""
    say_steps(runs)
    models = [run.params.model for run in runs]
    if any("fused" in model.values_of("attention") for model in models):
        log.info("attention='fused' is torch's kernel: it ignores edits to the explicit attention")
    foreign = sorted({kind for m in models for kind in m.kinds if kind.startswith("torch-")})
    if foreign:
        log.info(f"{', '.join(foreign)}: torch's own layers, which ignore edits to ours")
    say_objectives(runs)
    say_unused(runs)
    say_idle(runs, call)
    say_lengths(runs)
    say_matches(runs)
    short: defaultdict[str, list[str]] = defaultdict(list)
    for number, run in enumerate(runs, 1):
        warmup, n_steps = run.params.train.warmup_steps, run.size.n_steps
        if n_steps is not None and isinstance(warmup, int) and warmup >= n_steps:
            steps = f"warmup_steps={warmup} of {n_steps} steps"
            short[steps].append(str(number))
    for steps, numbers in short.items():
        log.info(f"run {list_of_numbers(numbers)} ends before its learning rate has risen to lr: {steps}")


def say_lengths(runs: list[Run]) -> None:
    """Log which runs repeat their data, and what runs that end by time have for a consequence."""
    repeats: defaultdict[str, list[str]] = defaultdict(list)
    for number, run in enumerate(runs, 1):
        train, n_steps = run.params.train, run.size.n_steps
        per_epoch = math.ceil(run.data.n_rows / rows_per_step(train)) if run.data.n_rows else 0
        if train.repeats_data and n_steps and per_epoch and n_steps > per_epoch:
            repeats["the length is more than one pass over the training data, which is repeated"].append(
                str(number)
            )
    say_of_runs(repeats)
    if any(run.params.train.max_seconds is not None for run in runs):
        log.info(
            "max_seconds: schedules follow the share of training time that has passed, and the data is repeated if it "
            "runs out. Results depend on the speed of the machine, so they are not bitwise repeatable."
        )


def say_matches(runs: list[Run]) -> None:
    """Log the widths that `Grid match` chose."""
    chosen: defaultdict[str, list[str]] = defaultdict(list)
    for run, note in match_notes(runs):
        chosen[note].append(str(run.number))
    say_of_runs(chosen)


def say_objectives(runs: list[Run]) -> None:
    """Log how to read the numbers of masked models."""
    if any(run.params.model.objective == "masked" for run in runs):
        log.info(
            "objective='masked': losses are those of masked tokens, which cannot be compared with losses of next tokens; "
            "there is neither bits per byte nor exact match, and a validation fills gaps in place of a sample"
        )
    if any(run.params.model.objective == "diffusion" for run in runs):
        log.info(
            "objective='diffusion': losses are bounds of the loss of a token, which cannot be compared with losses of other "
            "objectives; accuracy is that of hidden tokens, and there is neither bits per byte nor exact match"
        )


def say_unused(runs: list[Run]) -> None:
    """Log every field that has no effect on a run, if the run sets it: to another value than its default, or as an axis."""
    text = Texts()
    runs_of: defaultdict[str, list[Params]] = defaultdict(list)
    for run in runs:
        runs_of[run.config].append(run.params)
    axes_by_config = {config: axes_of(params) for config, params in runs_of.items()}
    unused: dict[tuple[tuple[str, ...], str, str], list[Unused]] = {}
    runs_with: defaultdict[str, list[str]] = defaultdict(list)
    for number, run in enumerate(runs, 1):
        _, train, model = run.params
        # A field that only other variants set is at its default here: it needs no note.
        axes = axes_by_config[run.config].intersection(run.places)
        key = tuple(sorted(axes)), text(model), text(train)
        if key not in unused:
            unused[key] = unused_fields(model, train, axes)
        for field in unused[key] + unused_data_fields(run.params, run.data.reads, axes):
            runs_with[str(field)].append(str(number))
    say_of_runs(runs_with)


def say_idle(runs: list[Run], call: Call) -> None:
    """Log every field that is set and has no effect without an option that is missing."""
    given = {"--save": call.save, "--ray or --slurm": call.cluster is not None}
    runs_with: defaultdict[str, list[str]] = defaultdict(list)
    for name, option in FIELDS_WITH_OPTION.items():
        for number, run in enumerate(runs, 1):
            value = getattr(run.params.train, name)
            if value != getattr(TrainParams, name) and not given[option]:
                runs_with[f"{name}={value!r} has no effect without {option}"].append(str(number))
    for number, run in enumerate(runs, 1):
        metric = run.params.train.patience_metric
        if metric != TrainParams.patience_metric and run.params.train.patience is None:
            runs_with[f"patience_metric={metric!r} has no effect without patience"].append(str(number))
    say_of_runs(runs_with)


def say_of_runs(runs_with: Mapping[str, list[str]]) -> None:
    """Log each message with the numbers of its runs."""
    for what, numbers in runs_with.items():
        log.info(f"run{'s' * (len(numbers) > 1)} {list_of_numbers(numbers)}: {what}")


def axes_of(runs: list[Params]) -> set[str]:
    """Return the names of the fields that differ between runs."""
    flats = [params.flat() for params in runs]
    return {name for name in SECTION_OF if len({repr(flat[name]) for flat in flats}) > 1}


def list_of_numbers(numbers: list[str]) -> str:
    """Return ascending numbers as text, four or more in a row as a range."""
    parts: list[list[str]] = []
    for number in numbers:
        if parts and int(number) == int(parts[-1][-1]) + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = parts[:MAX_SAID]
    texts = [f"{part[0]} to {part[-1]}" if len(part) > 3 else ", ".join(part) for part in shown]
    hidden = len(numbers) - sum(map(len, shown))
    return ", ".join(texts) + (f" and {hidden} more" if hidden else "")


def say_steps(runs: list[Run]) -> None:
    """Log what --resume does with each run."""
    if all(run.first_step == NEW for run in runs):
        return
    counts = Counter(run.first_step.what for run in runs)
    log.info("--resume: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    said = [f"run {number}: {description(run.first_step)}" for number, run in enumerate(runs, 1)]
    hidden = len(said) - MAX_SAID
    log.info("\n".join(said[:MAX_SAID] + [f"... and {hidden} more"] * (hidden > 0)))


def report_plan(runs: list[Run], call: Call, *, times: bool = True) -> int:
    """Log the plan of a grid for --dry-run, with estimates of time and memory, and advice on speed, if `times`.

    Return the exit code: 1 if a run cannot train, else 0.
    """
    from train.launch import advice, memory  # no other call needs these
    from train.launch.estimate import estimate

    trained = [run for run in runs if run.first_step.trains and times]
    bytes_of = memory.memory_of_runs(trained)
    fits = [not memory.too_large(one) for one in bytes_of]
    seconds, notes, grown = estimate(trained, call, fits)
    bytes_of = memory.with_kept(trained, bytes_of, grown)
    known = {run.number: pair for run, *pair in zip(trained, seconds, bytes_of, strict=True)}
    entries = [(run, *known.get(run.number, (None, None))) for run in runs]
    document.add(runs=[run_entry(run, seconds=time, memory=size) for run, time, size in entries])
    shown = [
        (as_time(time), memory.as_bytes(size.total) if size else "?") if run.number in known else ("-", "-")
        for run, time, size in entries
    ]
    log.info(plan_table(runs, *zip(*shown, strict=True)))
    if len(runs) > MAX_PLAN_ROWS:
        log.info(f"... and {len(runs) - MAX_PLAN_ROWS:,} more")
    for note in [*notes, *memory.lines_about(trained, bytes_of, call)]:
        log.info(note)
    if known_seconds := [one for one in seconds if one is not None]:
        n_runs = f"{len(known_seconds):,} run{'s' * (len(known_seconds) != 1)}"
        log.info(f"about {as_time(sum(known_seconds))} for {n_runs}, one after another on this machine")
        if (found := advice.advice(trained, seconds, bytes_of, call)) is not None:
            document.add(faster=found.entries(), not_measured=found.not_measured)
            for line in found.lines():
                log.info(line)
    return int(bool(notes))
