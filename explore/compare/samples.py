"""Samples of a report: the prompt of a task, the expected answer, and what each model made of it."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

from data.tokenizer import Tokenizer
from explore.compare.parts import ReportPart
from explore.compare.variants import RunRow, measured
from train.data import make_data
from train.saving.run_folder import read_about, read_params

MAX_SAMPLES = 12  # samples shown without a click
MAX_TASK_SAMPLES = 200_000  # data with more samples is not generated anew just to show its prompt


class TaskExample(NamedTuple):
    """The first validation sample of a task, of which every run saves its answer."""

    prompt: str
    expected: str

    def answer_in(self, sample: str) -> str | None:
        """Return what the model added to the prompt, or None if `sample` has another prompt."""
        return (
            sample[len(self.prompt) :].lstrip(" ") if self.prompt and sample.startswith(self.prompt) else None
        )


def example_of(part: ReportPart) -> TaskExample | None:
    """Return the prompt and the expected answer of a part's samples. Return None for texts, and if they are unknown.

    The data of one run is generated anew. If today's code generates other data, no run's sample begins with the prompt.
    """
    for variant in part.variants:
        for run in variant.runs.values():
            folder = measured(run, "folder")
            if isinstance(folder, str) and isinstance(measured(run, "sample"), str):
                try:
                    return example_of_run(Path(folder))
                except (OSError, ValueError):
                    return None
    return None


def example_of_run(folder: Path) -> TaskExample | None:
    params = read_params(folder, read_about(folder))
    root = next((path.parent for path in folder.parents if path.name == "saved-models"), folder)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if params.data.n_samples is None or params.data.n_samples > MAX_TASK_SAMPLES:
        return None
    data = make_data(params.data, params.model, root / "cache", tokenizer=tokenizer)
    if data.task is None or data.hides_answers or params.model.hides_tokens:
        return None
    [prompt] = data.prompts(1)
    n, ids = len(prompt.ids), data.rows("val")[0].ids
    if ids[:n] != prompt.ids:
        return None
    return TaskExample(tokenizer.decode(prompt.ids), tokenizer.decode(ids[n : n + prompt.answer_length]))


def sample_of(row: RunRow, examples: Iterable[TaskExample | None]) -> str:
    """Return the sample of a run as text: with prompt, expected and got if its prompt is among the examples'."""
    sample = measured(row, "sample")
    if not isinstance(sample, str):
        return ""
    for example in examples:
        if example is not None and (got := example.answer_in(sample)) is not None:
            return f"prompt:   {example.prompt}\nexpected: {example.expected}\ngot:      {got}"
    return sample


def samples_section(part: ReportPart, example: TaskExample | None) -> str:
    """Return the text that the best run of each variant generated in its last validation, as HTML."""
    items = []
    for i in part.order:
        variant = part.variants[i]
        texts = [text for run in variant.best_runs if (text := sample_of(run, [example]))]
        if texts:
            items.append(f"<h3>{escape(variant.name)}</h3><pre>{escape(texts[0])}</pre>")
    shown, hidden = items[:MAX_SAMPLES], items[MAX_SAMPLES:]
    more = f"<details><summary>{len(hidden)} more</summary>{''.join(hidden)}</details>" if hidden else ""
    return "".join(shown) + more
