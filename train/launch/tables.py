"""Tables of a grid's runs: before training, for --dry-run, and after it."""

import math
from collections.abc import Callable

from rich import box
from rich.markup import escape
from rich.table import Table

from train.grid.config_text import VARIANT
from train.grid.expand import axes
from train.grid.params import measured_column
from train.grid.run import Run
from train.logs import printable
from train.probe import UNCHECKED
from train.saving.outcome import Outcome, Value

MAX_PLAN_ROWS = 1_000  # rows that --dry-run shows
MAX_RESULTS = 200  # rows of the table of results


def settings_of(runs: list[Run]) -> list[dict[str, str]]:
    """Return the values that distinguish each run: its config and variant, if there are several, and varied fields."""
    varied = axes(((run.config, run.variant), run.params) for run in runs)
    named = any(run.variant is not None for run in runs)
    several = len({run.config for run in runs}) > 1 or not (varied or named)
    return [
        ({measured_column("config"): run.config} if several else {})
        | ({measured_column(VARIANT): run.variant or "-"} if named else {})
        | {key: value_as_text(own[key]) for key in varied}
        for run, own in ((run, run.params.flat()) for run in runs)
    ]


def value_as_text(value: object) -> str:
    """Return a value as text; floats with 6 digits, without rounding errors of derived values."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def escaped(text: str) -> str:
    """Return `text` escaped for a cell of a rich table. Control characters become escapes."""
    return escape(printable(text))


def as_time(seconds: float | None) -> str:
    """Return seconds as readable text: 0.4 s, 12 s, 5 min, 3.2 h, 4 days."""
    if seconds is None:
        return "?"
    for size, unit in ((86_400 * 2, "days"), (3600 * 1.5, "h"), (90, "min")):
        if seconds >= size:
            value = seconds / {"days": 86_400, "h": 3600, "min": 60}[unit]
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def plan_table(runs: list[Run], times: list[str]) -> Table:
    """Return the table for --dry-run: all runs, or the first runs of a very large grid."""
    settings = settings_of(runs)
    table = new_table("run", *settings[0], "parameters", "steps", "tokens (estimate)", "time (estimate)")
    for number, (run, own) in enumerate(zip(runs[:MAX_PLAN_ROWS], settings, strict=False), 1):
        sizes = (
            f"{run.size.n_params:,}",
            run.length.removesuffix(" steps"),
            "?" if run.size.n_tokens is None else f"{run.size.n_tokens:,}",
            times[number - 1],
        )
        table.add_row(str(number), *map(escaped, own.values()), *sizes)
    return table


RESULT_COLUMNS: dict[str, Callable[[Outcome], str]] = {
    "val\nloss": lambda run: formatted(run.values.get("val_loss"), ".4f"),
    "leak": lambda run: leak_mark(run.values.get("leak")),
    "bits/\nbyte": lambda run: formatted(run.values.get("bits_per_byte"), ".3f"),
    "unknown\nbytes": lambda run: formatted(run.values.get("unknown_bytes") or None, ".2%"),
    "accu-\nracy": lambda run: formatted(run.values.get("val_accuracy"), ".1%"),
    "chance": lambda run: formatted(run.values.get("chance"), ".1%"),
    "exact\nmatch": lambda run: formatted(run.values.get("val_exact_match"), ".1%"),
    "para-\nmeters": lambda run: formatted(run.values.get("n_params"), ",.0f"),
    "tokens\n/s": lambda run: formatted(run.values.get("tokens_per_second"), ",.0f"),
    "seconds": lambda run: formatted(run.values.get("wall_seconds"), ".1f"),
    "ended": lambda run: str(run) + (", best" if run.values.get("weights") == "best" else ""),
}
NUMBERS = {*RESULT_COLUMNS} - {"leak", "ended"}  # never broken over lines


def result_table(runs: list[Run], outcomes: list[Outcome]) -> Table:
    """Return the table of results: each run's final numbers beside the fields that vary.

    A very large grid shows only the most interesting runs.
    """
    settings, chosen = settings_of(runs), most_telling(outcomes)
    cells = {name: [cell(outcomes[i]) for i in chosen] for name, cell in RESULT_COLUMNS.items()}
    cells = {name: column for name, column in cells.items() if set(column) != {"-"}}
    table = new_table("run", *settings[0], *cells)
    for i, *row in zip(chosen, *cells.values(), strict=True):
        table.add_row(str(i + 1), *map(escaped, (*settings[i].values(), *row)))
    if hidden := len(outcomes) - len(chosen):
        table.caption = f"... and {hidden:,} more; shown are failed runs and those of the lowest loss"
    return table


def most_telling(outcomes: list[Outcome]) -> list[int]:
    """Return the indices of at most MAX_RESULTS runs, sorted: failed ones in up to half, then the lowest losses."""
    everything = range(len(outcomes))
    if len(outcomes) <= MAX_RESULTS:
        return [*everything]
    failed = [i for i in everything if outcomes[i].failed or outcomes[i].diverged]
    first = failed[: MAX_RESULTS // 2]
    rest = sorted(set(everything).difference(first), key=lambda i: (loss_of(outcomes[i]), i))
    return sorted(first + rest[: MAX_RESULTS - len(first)])


def loss_of(outcome: Outcome) -> float:
    """Return the loss by which runs are ranked, infinite if there is none."""
    loss = outcome.values.get("val_loss")
    return loss if isinstance(loss, float) and not math.isnan(loss) else math.inf


def leak_mark(leak: Value) -> str:
    """Return the mark of a leaking model in the results table: "yes", "unknown" or "-"."""
    if leak is None:
        return "-"
    return "unknown" if str(leak).startswith(UNCHECKED) else "yes"


def formatted(value: Value, form: str) -> str:
    return "-" if value is None else format(value, form)


def new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption_justify="left")
    for title in columns:
        table.add_column(title, justify="right", overflow="fold", no_wrap=title in NUMBERS)
    return table
