"""The command line: its options in groups, their help, and which of them do not go together."""

import argparse
import math
import sys
import textwrap
from typing import NoReturn

from train.grid.expand import GridError

WHAT_IT_IS = (
    "whatif: train a grid of small language models, as in `python3 main.py --config=test --no-wandb`."
)
CHECKS = {  # each ends with a verdict: pass, or fail and why
    "--coord-check": "judge whether activations keep their size over dim in the first steps: --config=mup-width --coord-check",
    "--transfer": "train, then judge whether the best lr stays over dim, n_layers or batch_size: --config=mup-width --transfer",
    "--stability": "judge how the effect of a small weight change grows with n_layers: --config=output-change --stability",
}

EPILOG = """\
Examples
  python3 main.py --config=test --no-wandb             train two tiny runs, in a minute
  python3 main.py --config=copy --dry-run              what would run, and for how long
  python3 main.py --config=copy --save --seed=[1,2,3]  three seeds, kept for the explorer
  python3 main.py --fields lr                          which fields are about lr

Exit codes
  0    done
  1    a run or a check failed
  2    nothing was run: the input has an error, or outputs cannot be written
  3    --against: worse; --reproduce: a claim fails
  4    --against and --reproduce: cannot tell
  130  interrupted
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        allow_abbrev=False,
        usage="main.py --config=NAME [options]",
        description=WHAT_IT_IS,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add_what_to_do(
        parser.add_argument_group("What to do (one of these)").add_mutually_exclusive_group(required=True)
    )
    add_changes(parser.add_argument_group("Change the config"))
    add_ways_to_train(parser.add_argument_group("Train"))
    add_checks(parser.add_argument_group("Check"))
    add_comparisons(parser.add_argument_group("Compare"))
    add_outputs(parser.add_argument_group("Outputs"))
    args = parser.parse_args(arguments)
    # A job that starts again continues from its run folder, and lm_eval evaluates saved runs.
    args.save = args.save or args.slurm is not None or args.lm_eval is not None
    return args


class Parser(argparse.ArgumentParser):
    """Parser that raises GridError for options that it does not know."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise GridError([message])


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter that fits help texts to the terminal and never breaks an option at its hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def add_what_to_do(group: argparse._MutuallyExclusiveGroup) -> None:
    add = group.add_argument
    add("--config", metavar="NAME", help="run configs/NAME.txt and configs/NAME-*.txt: --config=test")
    add(
        "--report",
        metavar="NAME",
        help="report on the runs that --config=NAME --save kept, train nothing: --report=test",
    )
    add(
        "--reproduce",
        nargs="?",
        const="",
        metavar="NAME",
        help="list published results with what was seen here, or train one of them anew and judge its claims: "
        "--reproduce, --reproduce=induction",
    )
    add("--configs", action="store_true", help="list the configs, with the number of their runs: --configs")
    add(
        "--fields",
        nargs="?",
        const="",
        metavar="WORD",
        help="list the fields of a config, or those that WORD occurs in: --fields, --fields lr",
    )
    add("--tasks", action="store_true", help="list the tasks and texts to train on: --tasks")


def add_changes(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--with",
        action="append",
        default=[],
        dest="own_parts",
        metavar="FILE",
        help="use the layers, norms, activations, optimizers, schedules, tasks, texts, tokenizers and metrics that this Python file registers: --with my_parts.py",
    )
    add("--task", metavar="NAME", help="use this task or text in place of the config's: --task=copy")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set any field, a list for a grid: --set lr=[1e-3,3e-4]",
    )
    add("--seed", metavar="N", help="the same as --set random_seed=N: --seed 7, --seed [1,2,3]")
    add(
        "--ablate",
        action="store_true",
        help="train the ablations that run_all in main.py defines too: --config=test --ablate",
    )


def add_ways_to_train(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--save",
        action="store_true",
        help="keep every trained model and its statistics: --config=test --save",
    )
    add(
        "--resume",
        nargs="?",
        const="same",
        choices=["same", "anyway"],
        metavar="anyway",
        help="skip runs that are saved already, continue those that were killed: --config=test --resume. "
        "Runs that other code trained are trained again; --resume=anyway takes them over",
    )
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs",
        metavar="N",
        default="1",
        help="train N runs side by side; auto is one per CPU core: --jobs=2",
    )
    where.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="HOST:PORT",
        help="train on the Ray cluster whose head has this address; without one, start a cluster on this machine: --ray",
    )
    where.add_argument(
        "--slurm",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help="train each run as a job of Slurm, with these options of sbatch, and save it: --slurm=partition=gpu,time=60,gpus=1",
    )
    add(
        "--fail-fast",
        action="store_true",
        help="stop at the first run that fails: --config=test --fail-fast",
    )
    add("--gpu-id", type=int, metavar="N", help="train on this GPU only: --gpu-id=1")


def add_comparisons(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--against",
        nargs="?",
        const="HEAD",
        metavar="REF",
        help="train the same runs with the code of a git commit, branch or tag (alone: HEAD) as well, unless they are saved, "
        "and judge whether your code is worse: --config=test --seed=[1,2,3] --against",
    )
    add(
        "--noise",
        action="store_true",
        help="say how the final loss varies over seeds, and how many seeds show 0.5, 1 and 2 %%: --config=test --seed=[1,2,3] --noise",
    )
    add(
        "--margin",
        type=float,
        metavar="NATS",
        help="the smallest loss that matters to --against, by default a third of the seeds' standard deviation: --margin=0.01",
    )
    add(
        "--bisect",
        action="store_true",
        help="with --against, exit with the codes that `git bisect run` expects: --against=REF --bisect",
    )
    add(
        "--baseline",
        metavar="VARIANT",
        help="the variant that the report compares others with, by its name or values of fields: --baseline=positions=none",
    )
    add(
        "--compare",
        metavar="FIELD",
        help="report the main effect of one field, over all other fields and seeds: --report=test --compare=positions",
    )

    add(
        "--lm-eval",
        type=lambda names: names.split(","),
        metavar="TASKS",
        help="keep every run, and evaluate it on tasks of lm_eval, which become columns: --config=sotu --lm-eval=blimp,minimal_pairs, "
        "--report=sotu --lm-eval=blimp",
    )


def add_checks(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--dry-run",
        action="store_true",
        help="show the runs, their sizes, memory and time, and what would be faster, train nothing: --config=test --dry-run",
    )
    add(
        "--check",
        nargs="?",
        const="only",
        choices=["only", "strict"],
        metavar="strict",
        help="check the architectures, train nothing: --config=test --check. "
        "--check=strict trains, but refuses a grid in which one sees the future",
    )
    judge = group.add_mutually_exclusive_group()
    for option, text in CHECKS.items():
        judge.add_argument(option, action="store_true", help=text)


def add_outputs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--out",
        metavar="DIR",
        help="root of all outputs, instead of $WHATIF_OUT or the folder above this one: --out /tmp/trial",
    )
    add(
        "--watch",
        action="store_true",
        help="update the page of the report while runs train, and reload it in the browser: "
        "--config=test --save --watch, --report=test --watch",
    )
    add(
        "--json",
        action="store_true",
        help="print what was found as one JSON document, and everything else to stderr: --config=test --json",
    )
    add("--no-wandb", action="store_true", help="do not track with wandb: --config=test --no-wandb")
    add(
        "--wandb-proj-name",
        metavar="NAME",
        help="use NAME in place of the config's in the wandb project's name: --wandb-proj-name=trial",
    )


def refuse_options(args: argparse.Namespace) -> None:
    """Raise GridError for options that do not go together."""
    if args.against is None and (args.margin is not None or args.bisect):
        raise GridError(["--margin and --bisect need --against"])
    if args.margin is not None and not 0 < args.margin < math.inf:
        raise GridError([f"--margin={args.margin:g} must be a number of nats above 0"])
    if args.reproduce and (args.set or args.task or args.ablate or args.seed is not None):
        raise GridError(["--reproduce takes the config as it is: to change it, use --config=reproduce/NAME"])
    if args.watch and not (args.report or args.reproduce or args.save or args.resume):
        raise GridError(["--watch shows the report of saved runs: add --save"])
    if args.reproduce and args.resume == "anyway":
        raise GridError(["--reproduce keeps only results of today's code: use --resume without anyway"])
    saves = args.report or args.reproduce or args.save or args.resume or args.against is not None
    if not saves and (args.baseline is not None or args.compare is not None):
        raise GridError(["--baseline and --compare are about the report of saved runs: add --save"])
    if args.lm_eval and (args.reproduce or args.check == "only" or args.coord_check or args.stability):
        raise GridError(
            ["--lm-eval evaluates runs that --config trains or --report finds: use it in a call of its own"]
        )
    others = ["report", "reproduce", "noise", "check", "transfer", "coord_check", "stability", "lm_eval"]
    if args.against is not None and (found := [name for name in others if getattr(args, name)]):
        raise GridError([f"--against and --{found[0].replace('_', '-')} are judged in separate calls"])
