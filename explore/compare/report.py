"""Report about saved runs: a tidy table, verdicts in words, and a self-contained HTML page with plots."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Unpack

import pandas as pd

from common.text import first_line
from explore.compare.claims import ClaimVerdict, fill_metrics, judge_all, table_of_claims
from explore.compare.code import CodeOfRun, code_versions, with_code_labels
from explore.compare.csv_files import write_csv
from explore.compare.variants import (
    CODE,
    RunRow,
    Variant,
    has_ended,
    measured,
    row_of,
    varied_fields,
    with_plural,
)
from explore.compare.verdict_text import markdown_table, sentences, variants_table
from explore.compare.verdicts import (
    CompareOptions,
    compare_variants,
    comparison_rows,
    style_of_verdict,
)
from explore.html import Page
from explore.load import row_of_folder
from train.document import document
from train.grid.config_text import VARIANT
from train.grid.expand import CONFIGS, FileOfGrid, GridError, config_files, expand_grid
from train.grid.params import SECTION_OF, Params, measured_column
from train.grid.run import Run
from train.logs import link_to, print_message
from train.saving.durable import replacing
from train.saving.outcome import Ending, Outcome
from train.saving.provenance import code_of_this_process
from train.saving.record import measured_variant
from train.saving.run_folder import output_root, run_folders

# First columns of results.csv. Varied fields, numbers and other params follow.
FIRST = ("timestamp", "status")
REFRESH_SECONDS = 10.0  # between two pages of --watch
MAX_WAIT_SECONDS = 300.0  # for the first run of --watch to begin


class NoRuns(ValueError):
    """Error if there are no complete runs to report on."""


def results(name: str | None = None, out: str | None = None) -> pd.DataFrame:
    """Return a tidy table of the runs saved under saved-models/{name}/: one row per run, varied fields first.

    `name` is a config or any folder in saved-models/; the default is all runs. `out` is the output root (`--out`).
    """
    return tidy(rows_of_folders(folders_of(name, output_root(out))))


def folders_of(name: str | None, root: Path) -> set[Path]:
    """Return the run folders under saved-models/{name}/, complete or not."""
    saved, parts = root / "saved-models", Path(name or "").parts
    return {folder for folder in run_folders(root) if folder.relative_to(saved).parts[: len(parts)] == parts}


def rows_of_folders(folders: Iterable[Path], own: Mapping[Path, Run] = MappingProxyType({})) -> list[RunRow]:
    """Return the rows of the runs in these folders, sorted by timestamp. `own` are those of a grid that has just run."""
    return [
        row_of_own(own[folder], folder) if folder in own else row_of_folder(folder)
        for folder in sorted(folders, key=lambda folder: folder.name)
    ]


def tidy(rows: Sequence[RunRow]) -> pd.DataFrame:
    """Return a table of all rows. Integers stay integers even if a row lacks params."""
    recorded, rows = rows, with_code_labels(rows)
    varied = varied_fields([row for row in rows if has_ended(row)])
    numbers = [name for row in rows for name in row if name not in SECTION_OF]
    first, folder = map(measured_column, FIRST), measured_column("folder")
    columns = dict.fromkeys(
        [*first, *varied, *(name for name in numbers if name != folder), *SECTION_OF, folder]
    )
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)
    inferred = [name for name in table if name not in SECTION_OF or table[name].notna().all()]
    table[inferred] = table[inferred].infer_objects()
    table.attrs["code_versions"] = code_versions(recorded, rows)
    return table


def report(
    name: str,
    out: str | None = None,
    style: Literal["page", "paper"] = "page",
    **options: Unpack[CompareOptions],
) -> Page | None:
    """Compare the runs saved under saved-models/{name}/, and write results.csv, report.html and report.md to reports/{name}/.

    Print the verdicts on the claims of the config of this name, a table and the verdicts on its variants. A notebook shows the
    returned page as a cell's value. `out` is the output root (`--out`). `style="paper"` also writes each chart to
    reports/{name}/figures/ as PDF and SVG, as wide as a column of a paper. `options` are keyword arguments of
    compare(). The default baseline is the first variant of the config, if there is one of this name.
    Raise NoRuns, a ValueError, if no run is complete. Return None if the libraries of the charts are missing: then there
    is no page.
    """
    root = output_root(out)
    rows = rows_of_folders(folders_of(name, root))
    table = tidy(rows)
    status = table[measured_column("status")]
    if not (status == "complete").any():
        others = f"; {with_plural(len(table), 'run')} there: {status.iloc[0]}" if len(table) else ""
        folder = root / "saved-models" / name
        raise NoRuns(f"there are no saved runs in {folder}{others} (train with --save to keep runs)")
    files = files_of_config(name)
    if claims := claims_about(files, rows, root):
        document.add(claims=[one.entry() for one in claims])
        print_message(table_of_claims(claims))
    compared = table.iloc[in_order_of_config(files, rows)]
    page = write_report(table, name, root, options, claims=claims, compared=compared)
    if style == "paper" and page is not None:
        write_paper_figures(page, root / "reports" / name / "figures")
    return page


def claims_about(files: Sequence[FileOfGrid], rows: Sequence[RunRow], root: Path) -> list[ClaimVerdict]:
    """Return the verdicts on the claims of a config by its runs.

    Of runs with other values of fields than today's config, those count only if no run has today's values.
    """
    verdicts = []
    for part in files:
        if claims := part.expectations.claims:
            places = places_in_grid(part.runs, rows)
            of_today = [row for row, place in zip(rows, places, strict=True) if place < len(part.runs)]
            verdicts += judge_all(claims, fill_metrics(claims, of_today or rows, root))
    return verdicts


def files_of_config(name: str) -> list[FileOfGrid]:
    """Return the files of config `name` that have no errors. There are none if the config is gone."""
    try:
        read = expand_grid(config_files(name, CONFIGS))
    except GridError:
        return []
    return [part for part in read if not part.errors.lines]


def in_order_of_config(files: Sequence[FileOfGrid], rows: Sequence[RunRow]) -> list[int]:
    """Return the numbers of the rows, those of a config's runs first and in its order."""
    return in_order(places_in_grid([run for part in files for run in part.runs], rows))


def watch_report(name: str, out: str | None = None, **options: Unpack[CompareOptions]) -> None:
    """Write report.html anew every few seconds while runs under saved-models/{name}/ train, with these runs.

    The page reloads itself in the browser. Watching waits up to MAX_WAIT_SECONDS for the first run. It ends with a complete
    report when no run trains any more. The arguments are those of report(). While they do not fit the runs so far, as when
    no run of the baseline has ended, the page says so and compares without them. Raise NoRuns if no run is complete at the end.
    """
    os.nice(10)  # training comes first
    root = output_root(out)
    page = root / "reports" / name / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    print_message(link_to(page, "watch: "))
    files, started, was_training = files_of_config(name), time.monotonic(), False
    while True:
        began = time.monotonic()
        rows = rows_of_folders(folders_of(name, root))
        table = tidy(rows)
        status = table[measured_column("status")]
        trains = bool((status == "training").any())
        if not trains and (was_training or began - started > MAX_WAIT_SECONDS):
            break
        was_training = trains
        if len(table):
            compared = comparisons_so_far(table.iloc[in_order_of_config(files, rows)], options)
            write_page(page, name, table, *compared, refresh=REFRESH_SECONDS)
        time.sleep(max(REFRESH_SECONDS, 2 * (time.monotonic() - began)))
    report(name, out, **options)


class Comparisons(NamedTuple):
    """The comparisons on the page of a report."""

    variants: list[Variant]
    comparison: pd.DataFrame
    effect: pd.DataFrame | None  # comparison by one field, over all others


def comparisons(table: pd.DataFrame, options: CompareOptions) -> Comparisons:
    """Compare the variants of a table and, with `by` in `options`, the values of that field. Raise ValueError as compare() does."""
    by = options.get("by")
    # The other comparison asks another question, to which the baseline of the main effect need not fit.
    plain = {key: value for key, value in options.items() if by is None or key not in ("by", "baseline")}
    variants, comparison = compare_variants(table, **plain)  # type: ignore[arg-type]
    return Comparisons(variants, comparison, None if by is None else compare_variants(table, **options)[1])


def comparisons_so_far(table: pd.DataFrame, options: CompareOptions) -> Comparisons:
    """Return the comparisons of runs that have ended. Options that do not fit them yet are left out, with a note."""
    try:
        return comparisons(table, options)
    except ValueError as error:
        found = comparisons(table, {})
        found.comparison.attrs["notes"].append(f"compared without the options so far: {error}")
        return found


def report_grid(
    name: str,
    runs: Sequence[Run],
    outcomes: Sequence[Outcome],
    root: Path,
    *,
    prints: bool = True,
    claims: Sequence[ClaimVerdict] = (),
    **options: Unpack[CompareOptions],
) -> Page | None:
    """Write the report of a config whose grid has just run. `runs` and `outcomes` are those of the grid.

    The report covers all saved runs of the config, those of earlier calls included, and runs of this grid that failed
    without a folder. The baseline is the first variant of the grid. `claims` are verdicts on the claims of the config, which
    stand at its top. Without `prints`, only the report's place is printed.
    `options` are keyword arguments of compare().
    """
    own = {one.folder: run for run, one in zip(runs, outcomes, strict=False) if one.folder is not None}
    rows, failed = rows_of_folders(folders_of(name, root) | own.keys(), own), []
    for run, outcome in zip(runs, outcomes, strict=False):
        if outcome.folder is None and outcome.failed:
            failed.append(row_of_unsaved(run, outcome))
            rows = [row for row in rows if not is_remnant(row, run.params)]
    rows += failed
    table, places = tidy(rows), places_in_grid(runs, rows)
    if prints and (n_others := places.count(len(runs))):
        print_message(
            f"the report includes {with_plural(n_others, 'saved run')} that this grid does not have"
        )
    compared = table.iloc[in_order(places)]
    return write_report(table, name, root, options, prints=prints, claims=claims, compared=compared)


def check_options(name: str, runs: Sequence[Run], root: Path, options: CompareOptions) -> None:
    """Raise ValueError if the report of a grid that is about to run cannot have these options, such as its baseline."""
    ended = Outcome(Ending.FINISHED, values={"val_loss": 1.0})
    rows = [row_of_unsaved(run, ended) for run in runs]
    compare_variants(tidy(rows_of_folders(folders_of(name, root)) + rows), **options)


def places_in_grid(runs: Sequence[Run], rows: Sequence[RunRow]) -> list[int]:
    """Return for each row the index of the run that has its params, or the number of runs if there is none."""

    def key(row: Mapping[str, object]) -> str:
        return repr([row.get(name) for name in SECTION_OF])

    places = {key(run.params.flat()): place for place, run in enumerate(runs)}
    return [places.get(key(row), len(runs)) for row in rows]


def in_order(places: Sequence[int]) -> list[int]:
    """Return the numbers of the rows that have these places, sorted by place."""
    return sorted(range(len(places)), key=places.__getitem__)


def is_remnant(row: RunRow, params: Params) -> bool:
    """Return True if `row` is an incomplete folder of a run with these params."""
    return measured(row, "status") != "complete" and params.flat().items() <= row.items()


def rows_of_grid(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> list[RunRow]:
    """Return the rows of this call's runs that have a result or failed. Read saved runs from their folders."""
    rows = [
        row_of_unsaved(run, outcome) if outcome.folder is None else row_of_own(run, outcome.folder)
        for run, outcome in zip(runs, outcomes, strict=False)
        if "n_params" in outcome.values or outcome.failed
    ]
    return with_code_labels(rows)


def row_of_own(run: Run, folder: Path) -> RunRow:
    """Return the row of a saved run of this grid. A run that another grid has trained takes its variant's name from this one."""
    row = row_of_folder(folder)
    row.pop(measured_column(VARIANT), None)
    return row | row_of(measured_variant(run))


def row_of_unsaved(run: Run, outcome: Outcome) -> RunRow:
    """Return the row of a run of this call that has no folder, but a result or a failure."""
    status = outcome.stopped if outcome.failed else "complete"
    version = code_of_this_process()
    code = CodeOfRun(version.hashes(run.params), version.subject, bool(version.diff), version.code.text_id)
    known = {"timestamp": "", "status": status, CODE: code}
    return row_of({**outcome.as_row(), **measured_variant(run), **known}, run.params)


def write_report(
    table: pd.DataFrame,
    name: str,
    root: Path,
    options: CompareOptions,
    *,
    prints: bool = True,
    claims: Sequence[ClaimVerdict] = (),
    compared: pd.DataFrame,
) -> Page | None:
    """Write results.csv, report.html and report.md to reports/{name}/, print the comparison, and return the page.

    `compared` is the table with its rows in another order: the first variant is the baseline. With `by` in `options`,
    the main effect of that field is printed, and stands at the top of the page.
    """
    variants, comparison, effect = comparisons(compared, options)
    folder = root / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(table, folder / "results.csv")
    page = write_page(folder / "report.html", name, table, variants, comparison, effect, claims)
    shown, notes = comparison if effect is None else effect, comparison.attrs["notes"]
    by = options.get("by")
    heading = [] if effect is None else [f"main effect of {by}, over all other fields and seeds"]
    verdicts = [f"- {line}" for line in sentences(shown)]
    claim_lines = [f"- {one.name}: {one.verdict}. Expected {one.expected}, seen {one.seen}" for one in claims]
    lines = [
        f"# Report: {name}",
        "",
        *claim_lines,
        *notes,
        *heading,
        "",
        *markdown_table(shown),
        "",
        *verdicts,
    ]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    rows = [{**row, "metric": options.get("metric", "val_loss")} for row in comparison_rows(shown)]
    document.add(verdicts=rows, report=folder / ("report.md" if page is None else "report.html"))
    if prints:
        for line in [*notes, *heading]:
            print_message(line)
        print_comparison(shown)
    print_message(link_to(folder / ("report.md" if page is None else "report.html"), "report: "))
    return page


def write_page(path: Path, *contents: Any, refresh: float | None = None) -> Page | None:
    """Write the page of a report. Without the libraries of its charts, say so and return None.

    `contents` and `refresh` are the arguments of report_page().
    """
    try:
        # These libraries are slow to load, and no run needs them.
        from explore.compare.page import report_page
    except ImportError as error:
        print_message(f"no {path.name}: {first_line(error)} (pip install altair vl-convert-python)")
        return None
    page = report_page(*contents, refresh=refresh)
    with replacing(path) as partial:  # a browser may read it at any moment
        partial.write_text(page.html, encoding="utf-8", errors="backslashreplace")
    return page


def write_paper_figures(page: Page, folder: Path) -> None:
    """Write the charts of a page for a paper."""
    from explore.compare.page import ReportPage
    from explore.compare.paper import write_figures

    assert isinstance(page, ReportPage)
    paths = write_figures(folder, page.parts, page.figures.entries)
    print_message(f"{with_plural(len(paths), 'figure file')} in {folder}")


def print_comparison(comparison: pd.DataFrame) -> None:
    """Print the table of a comparison and its verdicts."""
    if len(comparison) > 1:
        print_message(variants_table(comparison))
    for line in sentences(comparison):
        print_message(line, style_of_verdict(line))
