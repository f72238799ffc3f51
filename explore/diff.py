"""Differences between two saved runs: fields, code, data, and the step at which they part."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from explore.compare.code import CodeOfRun, changes_between
from explore.compare.pairs import first_difference, losses_of_batches
from train.grid.params import SECTION_OF
from train.saving.code import differing_files
from train.saving.run_folder import find_run, read_about, read_params
from train.saving.weights import regular_file
from train.stats import Stats

LOSS = "stat/train_loss:main"


class RunDiff(NamedTuple):
    """The differences between two runs. `print` shows all of them."""

    fields: dict[str, tuple[object, object]]  # by field: the value of each run
    code: str  # unified diff; the names of changed files if the text was not kept; empty if the code is the same
    data: str  # sentence; empty if both trained on the same data
    first_step: int | None  # first step whose training losses differ; None: none of those both trained

    def __str__(self) -> str:
        lines = [f"{name}: {one!r} -> {other!r}" for name, (one, other) in self.fields.items()]
        lines += [text for text in (self.data, self.code) if text]
        parted = (
            "all training losses that both runs have are equal"
            if self.first_step is None
            else f"training losses first differ at step {self.first_step}"
        )
        return "\n".join([*lines, parted])

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        """Show the text in a notebook."""
        printer.text(str(self))  # type: ignore[attr-defined]


def diff(a: str, b: str, out: str | None = None) -> RunDiff:
    """Compare two saved runs, given by their timestamps. `out` is the output root (`--out`).

    Raise ValueError if there is no such run, or if a folder is damaged.
    """
    sides = [find_run(timestamp, out) for timestamp in (a, b)]
    abouts = [read_about(folder) for folder in sides]
    values = [read_params(folder, about).flat() for folder, about in zip(sides, abouts, strict=True)]
    fields = {
        name: (values[0][name], values[1][name]) for name in SECTION_OF if values[0][name] != values[1][name]
    }
    return RunDiff(fields, changed_code(sides, abouts), changed_data(abouts), parting_step(sides))


def changed_code(folders: list[Path], abouts: list[dict]) -> str:
    one, other = (CodeOfRun.of(about, folder) for about, folder in zip(abouts, folders, strict=True))
    return changes_between(one, other) if differing_files(one.hashes, other.hashes) else ""


def changed_data(abouts: Sequence[Mapping[str, object]]) -> str:
    contents = [about.get("content") for about in abouts]
    return "" if contents[0] == contents[1] else "the text or the samples differ"


def parting_step(folders: list[Path]) -> int | None:
    """Return the first step at which the training losses differ. Steps that only one run trained do not count."""
    all_stats = [Stats.load(regular_file(folder / "stats.json")).train_stats for folder in folders]
    one, other = (losses_of_batches(stats.get(LOSS, [])) for stats in all_stats)
    return first_difference(one[np.isin(one[:, 0], other[:, 0])], other[np.isin(other[:, 0], one[:, 0])])
