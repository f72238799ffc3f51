"""Tables of a grid's runs: before training, for --dry-run, and after it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from train.data import data_options
from train.fitted_table import FittedTable, TableColumn, without_repeats
from train.grid.config_text import VARIANT
from train.grid.expand import axes
from train.grid.params import measured_column
from train.grid.run import Run, RunSize
from train.probe import UNCHECKED
from train.saving.outcome import Outcome, Value

MAX_PLAN_ROWS = 1_000  # rows that --dry-run shows
MAX_RESULTS = 200  # rows of the table of results
MAX_BEST = 5  # data of which the best run is named


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


def as_time(seconds: float | None) -> str:
    """Return seconds as readable text: 0.4 s, 12 s, 5 min, 3.2 h, 4 days."""
    if seconds is None:
        return "?"
    for size, unit in ((86_400 * 2, "days"), (3600 * 1.5, "h"), (90, "min")):
        if seconds >= size:
            value = seconds / {"days": 86_400, "h": 3600, "min": 60}[unit]
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def plan_table(runs: list[Run], times: Sequence[str], memory: Sequence[str]) -> FittedTable:
    """Return the table for --dry-run: all runs, or the first runs of a very large grid."""
    shown = runs[:MAX_PLAN_ROWS]
    sizes = [run.size for run in shown]
    columns = [
        TableColumn("run", [str(number) for number in range(1, len(shown) + 1)]),
        *axis_columns(settings_of(runs)[:MAX_PLAN_ROWS]),
        TableColumn("parameters", [f"{size.n_params:,}" for size in sizes], rank=4),
        TableColumn("active", [f"{size.n_active:,}" for size in sizes], rank=4, beside="parameters"),
        *state_column(sizes),
        TableColumn("steps", [run.length.removesuffix(" steps") for run in shown], rank=3),
        TableColumn(
            "tokens (estimate)",
            ["?" if size.n_tokens is None else f"{size.n_tokens:,}" for size in sizes],
            rank=5,
        ),
        TableColumn("memory (estimate)", memory[: len(shown)], rank=2),
        TableColumn("time (estimate)", times[: len(shown)], rank=1),
    ]
    return FittedTable(without_repeats(columns), key="run")


def state_column(sizes: list[RunSize]) -> list[TableColumn]:
    """Return the column of state sizes, if they differ."""
    cells = ["?" if size.state_size is None else f"{size.state_size:,}" for size in sizes]
    return [TableColumn("state size", cells, rank=5)] if len(set(cells)) > 1 else []


def axis_columns(settings: list[dict[str, str]]) -> list[TableColumn]:
    """Return the columns of the values that distinguish runs."""
    return [TableColumn(name, [own[name] for own in settings]) for name in settings[0]] if settings else []


class ResultColumn(NamedTuple):
    """A column of the table of results: its text for a run, and its rank in a FittedTable."""

    text: Callable[[Outcome], str]
    rank: int
    if_equal: bool = True  # False: the column is left out where all its cells are equal
    beside: str = ""  # as in a TableColumn


RESULT_COLUMNS = {
    "val\nloss": ResultColumn(lambda run: formatted(run.values.get("val_loss"), ".4f"), 0),
    "leak": ResultColumn(lambda run: leak_mark(run.values.get("leak")), 0),
    "bits/\nbyte": ResultColumn(lambda run: formatted(run.values.get("bits_per_byte"), ".3f"), 2),
    "unknown\nbytes": ResultColumn(lambda run: formatted(run.values.get("unknown_bytes") or None, ".2%"), 6),
    "accu-\nracy": ResultColumn(lambda run: formatted(run.values.get("val_accuracy"), ".1%"), 1),
    "chance": ResultColumn(lambda run: formatted(run.values.get("chance"), ".1%"), 9),
    "exact\nmatch": ResultColumn(lambda run: formatted(run.values.get("val_exact_match"), ".1%"), 3),
    "para-\nmeters": ResultColumn(lambda run: formatted(run.values.get("n_params"), ",.0f"), 5),
    "active": ResultColumn(
        lambda run: formatted(run.values.get("n_active_params"), ",.0f"), 5, beside="para-\nmeters"
    ),
    "state\nsize": ResultColumn(
        lambda run: formatted(run.values.get("state_size"), ",.0f"), 8, if_equal=False
    ),
    "tokens\n/s": ResultColumn(lambda run: formatted(run.values.get("tokens_per_second"), ",.0f"), 8),
    "seconds": ResultColumn(lambda run: formatted(run.values.get("wall_seconds"), ".1f"), 7),
}


def result_table(runs: list[Run], outcomes: list[Outcome], added: Sequence[str] = ()) -> FittedTable:
    """Return the table of results: each run's final numbers beside the fields that vary.

    A very large grid shows only the most interesting runs. The lowest loss is marked, on each data of several ones.
    `added` are further measured columns, such as "acc[blimp]".
    """
    chosen, best = most_telling(outcomes), best_runs(runs, outcomes)
    shown, settings = [outcomes[i] for i in chosen], settings_of(runs)
    styles = [row_style(outcomes[i], i in best) for i in chosen]
    columns = [
        TableColumn("run", [str(i + 1) for i in chosen], styles=styles),
        *(replace(column, styles=styles) for column in axis_columns([settings[i] for i in chosen])),
    ]
    for title, (text, rank, if_equal, beside) in (RESULT_COLUMNS | added_columns(added)).items():
        cells = [text(outcome) for outcome in shown]
        if set(cells) != {"-"} and (if_equal or len(set(cells)) > 1):
            columns.append(TableColumn(title, cells, rank, styles=styles, beside=beside))
    columns = without_repeats(columns)
    if len(outcomes) > 1:
        columns = [mark_best(column, [i in best for i in chosen]) for column in columns]
    ended = [str(run) + (", best" if run.values.get("weights") == "best" else "") for run in shown]
    # Failures are never left out.
    columns.append(TableColumn("ended", ended, 4 * (len(set(ended)) == 1), goes_below=True, styles=styles))
    notes = ["* lowest loss" + " on its data" * (len(best) > 1)] if best and len(outcomes) > 1 else []
    if hidden := len(outcomes) - len(chosen):
        notes.append(f"... and {hidden:,} more; shown are failed runs and those of the lowest loss")
    return FittedTable(columns, notes, key="run")


def added_columns(names: Sequence[str]) -> dict[str, ResultColumn]:
    """Return columns for measured values of these names."""
    return {
        name.replace("[", "\n["): ResultColumn(
            lambda run, name=name: formatted(run.values.get(name), ".4f"),  # type: ignore[misc]
            1,
        )
        for name in names
    }


def mark_best(column: TableColumn, is_best: Sequence[bool]) -> TableColumn:
    """Return the column of the loss with a star beside the best one, and other columns as they are."""
    if column.title != next(iter(RESULT_COLUMNS)):
        return column
    cells = [f"* {cell}" if best else cell for cell, best in zip(column.cells, is_best, strict=True)]
    return replace(column, cells=cells)


def row_style(outcome: Outcome, is_best: bool) -> str:
    """Return the style of a run's row: red for a failure, yellow for a leak, green for the best run."""
    if outcome.failed or outcome.diverged:
        return "red"
    if outcome.values.get("leak") is not None:
        return "yellow"
    return "bold green" if is_best else ""


def data_of_run(run: Run) -> str:
    """Return a text that is equal for runs whose losses can be compared: same data, tokenizer and objective."""
    model = run.params.model
    return repr((run.params.data, model.objective, data_options(model)))


def best_runs(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> list[int]:
    """Return the index of the run with the lowest loss on each data, if it has a loss and does not leak."""
    best: dict[str, int] = {}
    for i, (run, outcome) in enumerate(zip(runs, outcomes, strict=False)):
        if loss_of(outcome) < math.inf and outcome.values.get("leak") is None and not outcome.diverged:
            key = data_of_run(run)
            if key not in best or loss_of(outcome) < loss_of(outcomes[best[key]]):
                best[key] = i
    return [*best.values()]


def closing_lines(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> list[str]:
    """Return what to say at the end of a grid: the best run on each data, and how to open it."""
    best = best_runs(runs, outcomes)
    lines = []
    for i in best[:MAX_BEST]:
        where = f" on {runs[i].params.data.label}" if len(best) > 1 else ""
        if len(outcomes) > 1:
            lines.append(
                f"best{where}: run {runs[i].number} ({runs[i].name}), loss {loss_of(outcomes[i]):.4f}"
            )
        if (folder := outcomes[i].folder) is not None:
            lines.append(f'open it: model_explorer.get_model_by_timestamp("{folder.name}")')
    return lines


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
