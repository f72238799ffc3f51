"""Tables of a grid's runs: before training, for --dry-run, and after it."""

import math
from collections.abc import Callable
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from train.grid.config_text import VARIANT
from train.grid.expand import axes
from train.grid.params import column
from train.launch.plan import Plan
from train.logs import printable
from train.probe import UNCHECKED

MOST_ROWS = 1_000  # that --dry-run shows
MOST_RESULTS = 200  # rows of the table of results


def settings_of(plans: list[Plan]) -> list[dict[str, str]]:
    """Return what distinguishes the runs: the config if there are several, the variant, and the fields that vary."""
    varied = axes(((plan.config, plan.variant), plan.params) for plan in plans)
    named = any(plan.variant is not None for plan in plans)
    several = len({plan.config for plan in plans}) > 1 or not (varied or named)
    return [
        ({column("config"): plan.config} if several else {})
        | ({column(VARIANT): plan.variant or "-"} if named else {})
        | {key: as_text(own[key]) for key in varied}
        for plan, own in ((plan, plan.params.flat()) for plan in plans)
    ]


def as_text(value: object) -> str:
    """Return a value as text; floats with 6 digits, without rounding errors of derived values."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def plain(text: str) -> str:
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


def plan_table(plans: list[Plan], times: list[str]) -> Table:
    """Return the table for --dry-run: all runs, or the first runs of a very large grid."""
    settings = settings_of(plans)
    table = new_table("run", *settings[0], "parameters", "steps", "tokens (estimate)", "time (estimate)")
    for number, (plan, own) in enumerate(zip(plans[:MOST_ROWS], settings, strict=False), 1):
        sizes = (f"{plan.n_params:,}", f"{plan.n_steps:,}", f"{plan.n_tokens:,}", times[number - 1])
        table.add_row(str(number), *map(plain, own.values()), *sizes)
    return table


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "val\nloss": lambda s: shown(s.get("val_loss"), ".4f"),
    "leak": lambda s: leak_mark(s.get("leak")),
    "bits/\nbyte": lambda s: shown(s.get("bits_per_byte"), ".3f"),
    "unknown\nbytes": lambda s: shown(s.get("unknown_bytes") or None, ".2%"),
    "accu-\nracy": lambda s: shown(s.get("val_accuracy"), ".1%"),
    "chance": lambda s: shown(s.get("chance"), ".1%"),
    "exact\nmatch": lambda s: shown(s.get("val_exact_match"), ".1%"),
    "para-\nmeters": lambda s: shown(s.get("n_params"), ",.0f"),
    "tokens\n/s": lambda s: shown(s.get("tokens_per_second"), ",.0f"),
    "seconds": lambda s: shown(s.get("wall_seconds"), ".1f"),
    "ended": lambda s: s["stopped"] + (", best" if s.get("weights") == "best" else ""),
}
NUMBERS = {*COLUMNS} - {"leak", "ended"}  # never broken over lines


def result_table(plans: list[Plan], summaries: list[dict[str, Any]]) -> Table:
    """Return the table of results: each run's final numbers beside the fields that vary.

    A very large grid shows only the most interesting runs.
    """
    settings, chosen = settings_of(plans), most_telling(summaries)
    cells = {name: [cell(summaries[i]) for i in chosen] for name, cell in COLUMNS.items()}
    cells = {name: column for name, column in cells.items() if set(column) != {"-"}}
    table = new_table("run", *settings[0], *cells)
    for i, *row in zip(chosen, *cells.values(), strict=True):
        table.add_row(str(i + 1), *map(plain, (*settings[i].values(), *row)))
    if hidden := len(summaries) - len(chosen):
        table.caption = f"... and {hidden:,} more; shown are failed runs and those of the lowest loss"
    return table


def most_telling(summaries: list[dict[str, Any]]) -> list[int]:
    """Return the indices of at most MOST_RESULTS runs, sorted: failed ones in up to half, then the lowest losses."""
    everything = range(len(summaries))
    if len(summaries) <= MOST_RESULTS:
        return [*everything]
    failed = [i for i in everything if summaries[i]["stopped"].startswith(("failed", "diverged"))]
    first = failed[: MOST_RESULTS // 2]
    rest = sorted(set(everything).difference(first), key=lambda i: (loss_of(summaries[i]), i))
    return sorted(first + rest[: MOST_RESULTS - len(first)])


def loss_of(summary: dict[str, Any]) -> float:
    """Return the loss by which runs are ranked, infinite if there is none."""
    loss = summary.get("val_loss")
    return math.inf if loss is None or math.isnan(loss) else loss


def leak_mark(leak: str | None) -> str:
    """Return the mark of a leaking model in the results table: "yes", "unknown" or "-"."""
    if leak is None:
        return "-"
    return "unknown" if leak.startswith(UNCHECKED) else "yes"


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption_justify="left")
    for title in columns:
        table.add_column(title, justify="right", overflow="fold", no_wrap=title in NUMBERS)
    return table
