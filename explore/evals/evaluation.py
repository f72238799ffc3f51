"""Evaluation of models on tasks of lm_eval, the LM evaluation harness: in a notebook, and of saved runs for --lm-eval."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from common.text import first_line
from data.hub import hub_answers, offline
from data.tokenizer import Tokenizer
from explore.compare.report import folders_of, rows_of_folders
from explore.compare.variants import ended_badly, measured
from model.lm import LM
from train.logs import log
from train.probe import own_randomness
from train.saving.outcome import Outcome
from train.saving.run_folder import add_to_summary, load_run, read_json, write_json
from train.saving.timestamps import TIMESTAMP

HarnessTasks = dict[str, Any]  # tasks and groups of the harness, by name
EVALS_FILE = "lm_eval.json"  # of a run folder: the results of each task and of its subtasks
MAX_UNKNOWN_SHARE = 0.01  # share of the tokens of tasks that a tokenizer may not know
HARNESS_ROWS = 16


class NoTasks(ValueError):
    """Error if the harness or a task cannot be loaded, in one sentence."""


class HarnessResults(NamedTuple):
    """The results of one model on some tasks."""

    found: dict[str, Any]  # as the harness returns them
    unknown_share: float  # of the tokens of the tasks


def lm_eval(
    lm: LM,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = HARNESS_ROWS,
    add_bos: bool | None = None,
) -> pd.DataFrame:
    """Evaluate a model on tasks of the LM evaluation harness (github.com/EleutherAI/lm-evaluation-harness).

    `tasks` are names of its tasks or groups, such as "blimp" or ["lambada_openai", "arc_easy"], "minimal_pairs", or YAML files
    of tasks. Return a table with a row for each metric of each task and subtask: value, standard error, number of documents.

    - limit: number of documents of each task; None: all.
    - num_fewshot: number of examples before each question; None: as the task defines.
    - batch_size: rows in a forward pass.
    - add_bos: begin every text with bos. None: as in training for models that were trained here, and for others as their
      tokenizer does in transformers. The results of others are then those of the harness's own adapter.

    Raise ValueError if a task cannot be loaded, or if the model has no tokenizer or predicts hidden tokens. Warn if the
    tokenizer does not know all of the text.
    """
    names = [tasks] if isinstance(tasks, str) else tasks
    results = harness_results(lm, tasks_of_harness(names), limit, num_fewshot, batch_size, add_bos)
    if results.unknown_share:
        warnings.warn(unknown_text(results.unknown_share), stacklevel=2)
    return table_of_results(results.found)


def tasks_of_harness(names: Sequence[str]) -> HarnessTasks:
    """Load tasks. Raise NoTasks without the harness, for an unknown task, and for data that cannot be loaded."""
    if find_spec("lm_eval") is None:
        raise NoTasks("lm_eval is not installed: pip install -r requirements-evals.txt")
    from explore.evals.adapter import UnknownTask, load_tasks

    try:
        if hub_answers():
            return load_tasks(names)
        with offline():  # the client of the hub would wait for an answer
            return load_tasks(names)
    except UnknownTask as error:
        raise NoTasks(str(error)) from error
    except Exception as error:  # `datasets`, and the code of a task, may raise anything
        raise NoTasks(
            f"the data of {','.join(names)} cannot be loaded ({first_line(error)}): they need a network the first time; "
            "minimal_pairs needs none"
        ) from error


def harness_results(
    lm: LM,
    tasks: HarnessTasks,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = HARNESS_ROWS,
    add_bos: bool | None = None,
) -> HarnessResults:
    """Return the results of a model on loaded tasks. The other arguments are those of `lm_eval`."""
    from explore.evals.adapter import HarnessLM, run_tasks

    model = HarnessLM(lm, batch_size=batch_size, add_bos=begins_with_bos(lm) if add_bos is None else add_bos)
    with own_randomness():  # for tasks that sample
        found = run_tasks(model, [*tasks.values()], limit, num_fewshot)
    return HarnessResults(found, model.n_unknown / max(1, model.n_tokens))


def begins_with_bos(lm: LM) -> bool:
    """Return True for a model that was trained here, else whether its tokenizer adds bos in transformers."""
    is_ours = not lm.name or TIMESTAMP.match(lm.name) is not None
    return is_ours or not isinstance(lm.tokenizer, Tokenizer) or bool(lm.tokenizer.rust.encode("").ids)


def unknown_text(share: float) -> str:
    return f"the tokenizer does not know {share:.1%} of the tokens of these tasks, and choices that it cannot tell apart count as right"


def metrics_of(results: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield name, value and standard error of each metric of a task: "acc", or "exact_match,strict-match" with a filter."""
    for key, value in results.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = results.get(f"{metric}_stderr,{chosen}")
            yield key.removesuffix(",none"), float(value), stderr if isinstance(stderr, float) else math.nan


def table_of_results(found: Mapping[str, Any]) -> pd.DataFrame:
    """Return the results of the harness as a table, groups first."""
    names = dict.fromkeys([*found.get("groups", {}), *found["results"]])
    rows = [
        {"task": name, "metric": metric, "value": value, "stderr": stderr, "n": results.get("sample_len")}
        for name, results in ((name, found["results"][name]) for name in names)
        for metric, value, stderr in metrics_of(results)
    ]
    return pd.DataFrame(rows, columns=["task", "metric", "value", "stderr", "n"]).set_index(
        ["task", "metric"]
    )


class EvaluatedRuns(NamedTuple):
    """The runs of a grid, and the columns that their tasks have added to their values."""

    outcomes: list[Outcome]
    columns: list[str]


def evaluate_outcomes(tasks: HarnessTasks, outcomes: Sequence[Outcome], device: str) -> EvaluatedRuns:
    """Evaluate the runs of a grid that are saved, and neither failed nor diverged."""
    results, added = [], dict[str, float]()
    for number, outcome in enumerate(outcomes, 1):
        columns = {}
        if outcome.folder is not None and not (outcome.failed or outcome.diverged):
            columns = evaluate_folder(f"run {number}", outcome.folder, tasks, device)
        results.append(replace(outcome, values={**outcome.values, **columns}))
        added |= columns
    return EvaluatedRuns(results, [*added])


def evaluate_saved(tasks: HarnessTasks, name: str, root: Path, device: str) -> None:
    """Evaluate the complete runs under saved-models/{name}/ that neither failed nor diverged."""
    for row in rows_of_folders(folders_of(name, root)):
        if measured(row, "status") == "complete" and not ended_badly(row):
            folder = Path(str(measured(row, "folder")))
            evaluate_folder(folder.name, folder, tasks, device)


def evaluate_folder(name: str, folder: Path, tasks: HarnessTasks, device: str) -> dict[str, float]:
    """Return the columns of a saved run, such as "acc[blimp]", and add them to its folder.

    Only tasks of which the folder has no results are run. A run that cannot be evaluated is logged, and has no columns.
    """
    try:
        path = folder / EVALS_FILE
        kept = read_json(path) if path.exists() else {}
        if new := {task: loaded for task, loaded in tasks.items() if task not in kept}:
            log.info(f"{name}: evaluating on {', '.join(new)}")
            kept |= results_of_run(folder, new, device)
            add_to_summary(folder, columns_of_results(kept))
            write_json(path, kept)  # last: it marks the tasks as done
        return columns_of_results({task: kept[task] for task in tasks})
    except Exception as error:  # an edited model, or the code of a task
        log.error(f"{name} has no results of lm_eval: {first_line(error)}")
        return {}


def results_of_run(folder: Path, tasks: HarnessTasks, device: str) -> dict[str, Any]:
    """Return the results of each task for a saved run. Raise ValueError if its tokenizer knows too little of the text."""
    lm = load_run(folder).lm.to(device)
    found, unknown_share = harness_results(lm, tasks)
    if unknown_share > MAX_UNKNOWN_SHARE:
        raise ValueError(unknown_text(unknown_share))
    return {
        task: {
            "lm_eval": version("lm_eval"),
            "results": {
                part: found["results"][part]
                for part in parts_of_task(task, found)
                if part in found["results"]
            },
        }
        for task in tasks
    }


def parts_of_task(task: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the name of a task or group, and those of all of its subtasks."""
    yield task
    for part in found["group_subtasks"].get(task, []):
        yield from parts_of_task(part, found)


def columns_of_results(kept: Mapping[str, Any]) -> dict[str, float]:
    """Return the columns of a run from its file of results: those of each task or, if a group has none, of its subtasks."""
    columns: dict[str, float] = {}
    for task, content in kept.items():
        results = content["results"]
        own = {task: results[task]} if any(metrics_of(results.get(task, {}))) else results
        columns |= {f"{metric}[{name}]": value for name in own for metric, value, _ in metrics_of(own[name])}
    return columns
