"""whatif: train a grid of small language models, as in `python3 main.py --config=test --no-wandb`."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from train.document import document, run_entry, stdout_for_document
from train.grid.claims import Expectations
from train.grid.expand import CONFIGS, FileOfGrid, GridError, check_grid, config_files, expand_grid
from train.grid.params import Params
from train.grid.run import Call, Run
from train.launch.options import parse_arguments, refuse_options
from train.logs import log, log_to_console, log_to_file, status
from train.processes import INTERRUPTED, import_all, rank, silence_rank, start_server_of_workers

if TYPE_CHECKING:  # these import torch, which is slow
    from explore.compare.claims import ClaimVerdict
    from explore.compare.verdicts import CompareOptions
    from explore.evals.evaluation import HarnessTasks
    from train.launch.against import Baseline
    from train.saving.outcome import Outcome

MAIN_PROJ = "base"  # first part of the wandb project and save folder of every run; name your project here
wandb_username = None  # your wandb account; None: wandb's own default

RECORDS = Path(__file__).resolve().parent / "reproductions"


class Namer:
    """Names of one run. Edit the methods to show in a name what your experiment varies."""

    def __init__(self, params, args, variant=None):
        self.data_params, self.train_params, self.model_params = params
        self.args = args
        self.variant = variant  # name of the variant, if the config has variants
        self.task = self.data_params.label.replace("/", "--")  # sotu+pydoc for a mixture

    def wandb_proj_name(self) -> str:
        return f"{MAIN_PROJ}-{self.args.wandb_proj_name or self.args.config}-{self.task}"

    def run_name(self) -> str | None:
        """Return the name of the run; None lets wandb invent one."""
        return None

    def save_folder_name(self, timestamp: str, wandb_name: str | None = None) -> str:
        """Return the run's folder, relative to saved-models/."""
        name = self.run_name() or wandb_name
        return "/".join([runs_folder(self.args.config), self.task, *([name] if name else []), timestamp])


def run_all(params: Params, ablate: bool) -> list[Params]:
    """Return the runs of one grid point: itself and, with --ablate, its ablations."""
    ablations: list[Params] = []  # such as params.changed(positions="none")
    return [params, *ablations] if ablate else [params]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit code: see `--help`."""
    typed = sys.argv[1:] if arguments is None else arguments
    out = None
    with stdout_for_document("--json" in typed):
        log_to_console()
        if rank() > 0:
            silence_rank()
        try:
            args = parse_arguments(typed)
            out = args.out
            refuse_options(args)
            load_own_parts(args.own_parts)
            code = command_of(args)(args)
        except GridError as error:
            document.add(errors=error.errors)
            print(error, file=sys.stderr)
            code = 2
        except OSError as error:
            document.add(errors=[sentence_about(error, out)])
            print(sentence_about(error, out), file=sys.stderr)
            code = 2
        except KeyboardInterrupt:  # before or after training
            print("interrupted", file=sys.stderr)
            code = INTERRUPTED
    code = bisect_code(code) if "--bisect" in typed else code
    if "--json" in typed and rank() == 0:
        document.write(code, typed)
    return code


def load_own_parts(paths: list[str]) -> None:
    """Load the files of `--with`. Raise GridError for a file that cannot be used."""
    if not paths:
        return
    from train.own_parts import load_parts  # imports torch

    for path in paths:
        try:
            log.info(f"--with {path}: {', '.join(load_parts(path)) or 'registers nothing'}")
        except ValueError as error:
            raise GridError([f"--with {error}"]) from error


def command_of(args: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """Return the function that does what the command line asks for, and returns the exit code."""
    if args.reproduce:
        args.config, args.save, args.resume = f"reproduce/{args.reproduce}", True, args.resume or "same"
    if args.config is not None:
        return run_grid
    if args.reproduce is not None:
        return list_reproductions
    return list_names if args.report is None else report_saved_runs


def list_names(args: argparse.Namespace) -> int:
    """Show the fields, the tasks or the configs. Return the exit code."""
    if args.configs:
        from train.launch.list_configs import show_configs

        return show_configs(CONFIGS)
    from train.launch import discover  # imports torch

    return discover.show_tasks() if args.tasks else discover.show_fields(args.fields)


def list_reproductions(args: argparse.Namespace) -> int:
    """Show the claims of the configs in configs/reproduce with what was seen. Return the exit code."""
    from explore.compare.reproductions import all_reproductions, table_of_reproductions

    found = all_reproductions(CONFIGS, RECORDS)
    document.add(claims=[entry for one in found for entry in one.entries()])
    log.info(table_of_reproductions(found))
    return 0


def sentence_about(error: OSError, out: str | None) -> str:
    """Return an error message that points to --out if the file is an output or the disk cannot be written."""
    from train.saving.run_folder import output_root

    no_room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    path = None if error.filename is None else Path(os.fsdecode(error.filename)).resolve()
    if no_room or (path is not None and path.is_relative_to(output_root(out))):
        return f"cannot write outputs (see --out): {error}"
    return f"cannot use a file or folder: {error}"


class CheckedGrid(NamedTuple):
    """The runs of a grid that can be trained, and what they have in common."""

    runs: list[Run]
    call: Call
    namer: partial[Namer]
    baseline: "Baseline | None"  # with --against
    expected: dict[str, Expectations]  # by config
    tasks: "HarnessTasks"  # of --lm-eval


def run_grid(args: argparse.Namespace) -> int:
    """Check all runs of the grid, then train them and report on them. Return the exit code."""
    runs, call, namer, baseline, expected, tasks = checked_grid(args)
    n_claims = sum(len(one.claims) for one in expected.values())
    if (code := look_at_grid(args, runs, call, baseline, n_claims)) is not None:
        return code
    from train.launch import against, plan, sweep, tables

    log_file = call.out / "logs" / f"{args.config}--{datetime.now():%Y-%m-%d--%H-%M-%S}.log"
    with log_to_file(None if rank() else log_file):
        plan.announce(runs, call)
        before = (
            []
            if baseline is None
            else against.baseline_outcomes(baseline, runs, args.config, call, passed_on(args))
        )
        if baseline is not None and not before and rank() == 0:
            return 1
        with watch_of(args, call):
            outcomes = sweep.train_runs(runs, namer, call)
        outcomes, columns = evaluated(args, tasks, outcomes)
        log.info(tables.result_table(runs, outcomes, columns))
        for line in sweep.last_lines(runs, outcomes, call):
            log.info(line)
    document.add(runs=[outcome_entry(run, outcome) for run, outcome in zip(runs, outcomes, strict=False)])
    claim_results = judge_claims(expected, runs, outcomes, call.out) if rank() == 0 else ClaimResults([], [])
    if call.save and rank() == 0 and any(outcome.folder for outcome in outcomes):
        save_report(args, runs, [*outcomes, *before], call, claim_results.verdicts)
    code = sweep.exit_code(outcomes)
    if rank() or code == INTERRUPTED:
        return code
    if args.transfer:
        return check_scaling(args, runs, outcomes)
    if args.noise:
        say_noise(runs, outcomes)
    if args.reproduce:
        return code or judge_reproduction(args.reproduce, expected, claim_results)
    if baseline is None or any(outcome.failed for outcome in outcomes):
        return code
    return judge_code(args, baseline, runs, (outcomes, before), call)


def watch_of(args: argparse.Namespace, call: Call) -> AbstractContextManager[None]:
    """Return a context that keeps the page of the report up to date. Without --watch it does nothing."""
    if not args.watch or rank():
        return nullcontext()
    from train.launch.watch import report_watched

    options = [f"--with={Path(path).resolve()}" for path in args.own_parts]
    options += [f"--baseline={args.baseline}"] if args.baseline is not None else []
    options += [f"--compare={args.compare}"] if args.compare is not None else []
    return report_watched(args.config, call.out / "reports" / runs_folder(args.config), call.out, options)


def checked_grid(args: argparse.Namespace) -> CheckedGrid:
    """Read the configs and check all runs. Raise GridError with all errors in the input."""
    files = config_files(args.config, CONFIGS)
    if args.jobs != "1" and not args.dry_run:
        start_server_of_workers()
    with status("reading the config"):
        read = read_configs(args, files)
        status.show("checking the grid")
        # These modules import torch, which is slow. What the text alone shows has been said.
        import_all("train.launch.against", "train.launch.plan", "train.launch.sweep")
        from train.launch import against, plan, sweep
        from train.launch.metrics import claim_problems

        call = sweep.make_call(args, wandb_username)
        baseline = None if args.against is None else against.export(args.against, call.out)
        expected = {Path(part.config.source).stem: part.expectations for part in read}
        runs = check_runs(args, read, call, expected)
        namer = partial(Namer, args=args)
        plan.check_names(runs, namer, call)
        tasks = harness_tasks(args, runs)
        if errors := list(claim_problems(runs, expected, call, tasks)):
            raise GridError(errors)
    return CheckedGrid(runs, call, namer, baseline, expected, tasks)


def look_at_grid(
    args: argparse.Namespace, runs: list[Run], call: Call, baseline: "Baseline | None", n_claims: int
) -> int | None:
    """Do what the options ask for in place of training, and return the exit code. Return None if the runs are to train."""
    from train.launch import against, plan

    if args.check is not None:
        from train.launch import check_models

        if args.check == "only":
            return check_models.report_checks(runs, call)
        check_models.refuse_leaks(runs, call)
    if args.dry_run:
        plan.announce(runs, call)
        if n_claims:
            log.info(f"claims: {n_claims}, judged when the runs have ended")
        if baseline is not None:
            against.find_saved(baseline, runs, args.config, call.out)
        return plan.report_plan(runs, call, times=not (args.coord_check or args.stability))
    return check_scaling(args, runs) if args.coord_check or args.stability else None


def harness_tasks(args: argparse.Namespace, runs: Sequence[Run] = ()) -> "HarnessTasks":
    """Return the tasks of --lm-eval, none without it. Raise GridError if a task, or a run on it, cannot be evaluated."""
    if args.lm_eval is None or rank():
        return {}
    for run in runs:
        if run.params.model.hides_tokens:
            shown = f"run {run.number}: objective={run.params.model.objective!r}"
            raise GridError([f"--lm-eval needs probabilities of texts, so objective='next-token'; {shown}"])
    from explore.evals.evaluation import NoTasks, tasks_of_harness

    try:
        status.show(f"loading {', '.join(args.lm_eval)}")
        return tasks_of_harness(args.lm_eval)
    except NoTasks as error:
        raise GridError([f"--lm-eval={','.join(args.lm_eval)}: {error}"]) from error


def evaluated(
    args: argparse.Namespace, tasks: "HarnessTasks", outcomes: "list[Outcome]"
) -> "tuple[list[Outcome], list[str]]":
    """Evaluate the runs of a grid on the tasks of --lm-eval, unless Ctrl-C has ended it. Return them, and their new columns."""
    if not tasks or any(outcome.interrupted for outcome in outcomes):
        return outcomes, []
    from explore.evals.evaluation import evaluate_outcomes

    return evaluate_outcomes(tasks, outcomes, device_of(args))


def device_of(args: argparse.Namespace) -> str:
    """Return the device on which saved runs are evaluated."""
    import torch

    return f"cuda:{args.gpu_id or 0}" if torch.cuda.is_available() else "cpu"


class ClaimResults(NamedTuple):
    """The verdicts on the claims of a call, and the runs that they are about."""

    verdicts: "list[ClaimVerdict]"
    rows: list[dict[str, object]]  # one for each run, with the columns of `runs()`


def judge_claims(
    expected: dict[str, Expectations], runs: Sequence[Run], outcomes: "Sequence[Outcome]", out: Path
) -> ClaimResults:
    """Judge the claims of the configs by the runs of this call, and log the verdicts."""
    claim_results = ClaimResults([], [])
    if not any(one.claims for one in expected.values()):
        return claim_results
    from explore.compare.claims import fill_metrics, judge_all, table_of_claims
    from explore.compare.report import rows_of_grid

    for config, one in expected.items():
        own = [(run, end) for run, end in zip(runs, outcomes, strict=False) if run.config == config]
        rows = rows_of_grid([run for run, _ in own], [end for _, end in own])
        rows = fill_metrics(one.claims, rows, out)
        claim_results.rows.extend(rows)
        claim_results.verdicts.extend(judge_all(one.claims, rows))
    document.add(claims=[one.entry() for one in claim_results.verdicts])
    log.info(table_of_claims(claim_results.verdicts))
    return claim_results


def outcome_entry(run: Run, outcome: "Outcome") -> dict[str, object]:
    """Return a run that has ended, for the document."""
    ended = {"ended": outcome.stopped, "earlier": outcome.is_earlier}
    return run_entry(run, **ended, values=outcome.values, folder=outcome.folder)


def save_report(
    args: argparse.Namespace,
    runs: Sequence[Run],
    outcomes: "Sequence[Outcome]",
    call: Call,
    verdicts: "Sequence[ClaimVerdict]" = (),
) -> None:
    """Write the report of a grid that has run."""
    from explore.compare.report import report_grid

    try:
        options, prints = report_options(args), args.against is None
        name = runs_folder(args.config)
        report_grid(name, runs, outcomes, call.out, prints=prints, claims=verdicts, **options)
    except (OSError, ValueError) as error:
        log.error(f"no report: {error}")


def judge_reproduction(name: str, expected: dict[str, Expectations], claim_results: ClaimResults) -> int:
    """Keep the runs of a published result in the repository. Return the exit code by its claims."""
    from explore.compare.claims import decision_on
    from explore.compare.reproductions import keep

    claims = [claim for one in expected.values() for claim in one.claims]
    keep(RECORDS / f"{name}.json", claims, claim_results.rows)
    return decision_on(claim_results.verdicts)


def say_noise(runs: Sequence[Run], outcomes: "Sequence[Outcome]") -> None:
    """Log how the final loss varies over the seeds of each config of a grid."""
    from explore.compare.noise import noise, noise_table
    from explore.compare.report import rows_of_grid

    found = noise(rows_of_grid(runs, outcomes))
    document.add(noise=found)
    log.info(noise_table(found))
    log.info(
        "seeds for 1 %: so many of each of two variants show a difference of 1 % of the loss, in 4 of 5 cases"
    )


def judge_code(
    args: argparse.Namespace,
    baseline: "Baseline",
    runs: Sequence[Run],
    outcomes: "tuple[list[Outcome], list[Outcome]]",
    call: Call,
) -> int:
    """Judge the code of the working tree against the baseline's by the same runs of both. Return the exit code."""
    from explore.compare.against import Decision, decide, table_of_points
    from explore.compare.held_out import NotComparable, comparable_rows

    try:
        rows, baseline_rows, metric = comparable_rows(runs, *outcomes, call.cache)
    except NotComparable as error:
        document.add(judgement=f"cannot tell: {error}")
        log.error(str(error))
        return Decision.CANNOT_TELL
    judgement = decide(rows, baseline_rows, args.margin, metric)
    document.add(verdicts=judgement.entries(), judgement=judgement.sentence, margin=judgement.margin)
    log.info(table_of_points(judgement, baseline.ref))
    log.info(f"against {baseline.named}: {judgement.sentence}")
    return judgement.decision


def passed_on(args: argparse.Namespace) -> list[str]:
    """Return the options that hold for the runs of the baseline's code, too."""
    given = {
        "--jobs": args.jobs,
        "--ray": args.ray,
        "--slurm": args.slurm,
        "--gpu-id": args.gpu_id,
        "--wandb-proj-name": args.wandb_proj_name,
    }
    flags = {"--no-wandb": args.no_wandb, "--fail-fast": args.fail_fast}
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    options += [f"--with={Path(path).resolve()}" for path in args.own_parts]
    return options + [name for name, is_set in flags.items() if is_set]


def bisect_code(code: int) -> int:
    """Return an exit code for `git bisect run`: 125 skips a commit about which nothing can be said."""
    return 125 if code in (1, 2, 4) else code


def read_configs(args: argparse.Namespace, files: list[Path]) -> list[FileOfGrid]:
    """Read the configs and log how many runs they have. Raise GridError for a misspelt name or a syntax error."""

    def fields_of_source(
        from_pretrained: str | None = None, from_saved: str | None = None, **others: object
    ) -> dict[str, object]:
        if from_pretrained is None and from_saved is None:
            return {}
        from train.pretrained import defaults  # imports torch
        from train.saving.run_folder import output_root

        return defaults(output_root(args.out), from_pretrained=from_pretrained, from_saved=from_saved)

    read = expand_grid(files, grid_options(args), partial(run_all, ablate=args.ablate), fields_of_source)
    if not any(part.errors.lines for part in read):
        log.info(description_of_grid(files, read))
    return read


def description_of_grid(files: list[Path], read: list[FileOfGrid]) -> str:
    """Return the first line of a call: "configs/copy.txt: 12 runs"."""
    names = [f"{file.parent.name}/{file.name}" for file in files]
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    n_runs = sum(len(part.runs) for part in read)
    return f"{', '.join(names[:3] if more else names)}{more}: {n_runs:,} run{'s' * (n_runs != 1)}"


def check_runs(
    args: argparse.Namespace, read: list[FileOfGrid], call: Call, expected: dict[str, Expectations]
) -> list[Run]:
    """Return the runs of the grid, with their data and sizes. Raise GridError with all errors in the input."""
    from train.launch import metrics, plan, problems

    runs = check_grid(read, partial(problems.grid_problems, root=call.out), plan.gpu_problems(args.gpu_id))
    refuse_report_options(args, runs, call)
    runs = metrics.with_metrics(plan.prepare(runs, call), expected)
    if args.noise and len({run.params.train.random_seed for run in runs}) < 2:
        raise GridError(["--noise needs several seeds: --seed=[1,2,3,4,5]"])
    if args.transfer:
        from explore.scaling.commands import refuse_transfer

        refuse_transfer(runs)
    return runs


def check_scaling(
    args: argparse.Namespace, runs: Sequence[Run] = (), outcomes: "Sequence[Outcome]" = ()
) -> int:
    """Check how the models of a grid, or saved runs, scale. Log the verdict as the last line. Return the exit code."""
    from explore.scaling import commands as checks
    from train.saving.run_folder import output_root

    root, name = output_root(args.out), runs_folder(args.config or args.report)
    if args.coord_check:
        judgement = checks.check_coordinates(runs, root / "cache")
    elif args.stability:
        judgement = checks.check_stability(runs, root / "cache")
    elif args.report is None:
        judgement = checks.check_transfer(runs, outcomes)
    else:
        judgement = checks.transfer_of_saved(name, args.out)
    return judgement.say(root / "reports" / name)


def report_saved_runs(args: argparse.Namespace) -> int:
    """Report on saved runs. Return the exit code."""
    if args.coord_check or args.stability:
        raise GridError(["--coord-check and --stability need a --config, not saved runs (--report)"])
    from explore.compare.report import report, watch_report

    if tasks := harness_tasks(args):
        from explore.evals.evaluation import evaluate_saved
        from train.saving.run_folder import output_root

        evaluate_saved(tasks, runs_folder(args.report), output_root(args.out), device_of(args))
    try:
        write = watch_report if args.watch else report
        write(runs_folder(args.report), args.out, **report_options(args))
        if args.transfer:
            return check_scaling(args)
    except ValueError as error:
        print(f"--report={args.report}: {error}", file=sys.stderr)
        return 2
    return 0


def report_options(args: argparse.Namespace) -> "CompareOptions":
    """Return the options of the report that the command line sets."""
    options: CompareOptions = {}
    if args.baseline is not None:
        options["baseline"] = args.baseline
    if args.compare is not None:
        options["by"] = args.compare
    return options


def refuse_report_options(args: argparse.Namespace, runs: Sequence[Run], call: Call) -> None:
    """Raise GridError if the report of a grid cannot have the options of the command line."""
    if not (options := report_options(args)):
        return
    from explore.compare.report import check_options

    try:
        check_options(runs_folder(args.config), runs, call.out, options)
    except ValueError as error:
        raise GridError([f"no report is possible: {error}"]) from error


def runs_folder(config: str) -> str:
    """Return the folder of a config's runs, relative to saved-models/, as Namer chooses it."""
    return config if MAIN_PROJ == "base" else f"{MAIN_PROJ}/{config}"


def grid_options(args: argparse.Namespace) -> dict[str, str]:
    """Return the fields that the command line sets in every config: {option as typed: "field=value"}."""
    options = {f"--set {option}": option for option in args.set}
    if args.task is not None:
        options[f"--task={args.task}"] = f"dataset_name={args.task!r}"
    if args.seed is not None:
        options[f"--seed={args.seed}"] = f"random_seed={args.seed}"
    return options


if __name__ == "__main__":
    exit_code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a late Ctrl-C would only print a traceback
    sys.exit(exit_code)
