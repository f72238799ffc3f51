"""--json: everything that a call found, as one JSON document on stdout. All other output goes to stderr.

docs/automation.md shows these types as tables.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from typing import Any

from typing_extensions import TypedDict

from train.grid.run import Run

DOCUMENT_FORMAT = 1  # of the document; it changes when a key gets another meaning or goes


class RunEntry(TypedDict, total=False):
    """A run of the grid."""

    number: int  # from 1, in the order of the grid
    name: str  # the values that distinguish it from the other runs
    config: str  # the file that it comes from, without ".txt"
    variant: str | None  # the name of its variant, if the config names variants
    params: dict[str, dict[str, Any]]  # all fields, by "data", "train" and "model"
    identity: str  # a hash that is the same for runs with the same params and text
    size: dict[str, Any]  # parameters, optimizer steps and tokens, known before it trains
    seconds: float | None  # --dry-run: the estimated time
    memory: dict[str, float] | None  # --dry-run: bytes of each part of its memory
    ended: str  # "finished", "early stop: ...", "diverged: ...", "interrupted" or "failed: ..."
    earlier: bool  # an earlier call trained it
    values: dict[str, Any]  # final numbers: val_loss, val_accuracy, wall_seconds and others
    folder: str | None  # where it is saved


class VerdictEntry(TypedDict, total=False):
    """The comparison of a variant with its baseline or, with --against, of two codes at one grid point."""

    variant: str  # the fields that vary, except the seed and tuned fields
    data: str  # the fields of DataParams that vary
    metric: str  # "val_loss" (nats), "bits_per_byte" or another one
    best: str  # the tuned fields at their best setting
    edge: str  # "smallest" or "largest" if that setting is so among those tried
    n_settings: int  # settings tried
    n_seeds: int  # seeds that ran with every setting, of both sides with --against
    n_bad: int  # runs that failed or diverged
    n_censored: int  # runs that never got to the limit of a metric such as "steps_to: val_loss < 3"
    mean: float | None  # of the metric, over seeds
    low: float | None  # 95 % interval of the mean
    high: float | None
    baseline_mean: float | None  # --against: the mean with the code of the ref
    difference: float | None  # mean minus the baseline's, over the seeds of both
    difference_low: float | None  # 95 % interval of the difference, corrected for the number of comparisons
    difference_high: float | None
    p: float | None  # corrected, too
    verdict: str  # "better", "worse", "no worse", "the same", "baseline", or "cannot tell" with a reason


class CheckEntry(TypedDict, total=False):
    """The result of a check."""

    name: str
    subject: str  # the architecture or the config that was checked
    result: str  # "pass", "FAIL" or "skip", or the verdict of a scaling check
    found: str  # what was found wrong


class NoiseEntry(TypedDict, total=False):
    """--noise: the final loss of one config over seeds."""

    name: str  # the fields that vary, except the seed
    n_seeds: int
    mean: float | None
    deviation: float | None  # standard deviation over seeds
    low: float | None  # 95 % interval of the deviation
    high: float | None
    seeds_for: dict[str, int | None]  # seeds that show a difference, by its share of the loss


class ClaimEntry(TypedDict, total=False):
    """The judgement on a claim of the config. Without a name, --reproduce adds the fields of its config and of the kept runs."""

    config: str  # its name in configs/reproduce; only --reproduce without a name has the first seven keys
    topic: str  # the heading in lists of published results
    source: str  # the paper
    minutes: float | None  # duration of its grid on two CPU cores, as the config says
    date: str | None  # day of the latest kept run; None if none is kept
    has_todays_code: bool  # the kept runs were trained by the code as it is now
    has_todays_runs: bool  # they are the runs of the config as it is now
    name: str
    expected: str  # the claim as it is written
    seen: str  # the numbers that it compares
    margin: float | None  # by how much it holds, in the mean over seeds; negative if it does not
    margin_low: float | None  # bounds of that, each with 95 % confidence
    margin_high: float | None
    n_seeds: int
    p: float | None  # corrected for the number of claims
    verdict: str  # "holds", "fails", or "cannot tell" with a reason


class FasterEntry(TypedDict, total=False):
    """--dry-run: a setting with which this machine trains the grid faster, as measured."""

    run: int  # number of the run that was measured
    setting: str  # what to write: 'precision="bf16-mixed"'
    share: float  # of the time that the grid takes without it: the median of several turns
    share_low: float  # the smallest and the largest share of a turn
    share_high: float


class Content(TypedDict, total=False):
    """The document."""

    format: int  # 1
    command: list[str]  # what was typed
    exit_code: int  # see --help
    errors: list[str]  # why nothing was run, one message each
    runs: list[RunEntry]
    verdicts: list[VerdictEntry]
    checks: list[CheckEntry]
    noise: list[NoiseEntry]
    claims: list[ClaimEntry]
    judgement: str  # --against: the verdict in one sentence
    faster: list[FasterEntry]
    not_measured: list[str]  # --dry-run: settings that may be faster, each with the reason
    margin: float | None  # --against: the smallest difference that matters
    report: str  # the page with the report


class Document:
    """The document of this call. Functions add to it what they find."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}

    def add(self, **parts: object) -> None:
        """Add parts by name, in place of what is there."""
        self.content |= parts

    def add_check(self, name: str, subject: str, result: str, found: str) -> None:
        """Add the result of a check."""
        check = CheckEntry(name=name, subject=subject, result=result, found=found)
        self.content.setdefault("checks", []).append(check)

    def write(self, exit_code: int, command: list[str]) -> None:
        """Write the document to stdout."""
        whole = {
            "format": DOCUMENT_FORMAT,
            "command": command,
            "exit_code": exit_code,
            "errors": [],
        } | self.content
        print(json.dumps(plain(whole), indent=2, allow_nan=False))


document = Document()


@contextmanager
def stdout_for_document(wanted: bool) -> Iterator[None]:
    """Send what this process and its children print to stderr inside the block, if `wanted`."""
    if not wanted:
        yield
        return
    document.content.clear()
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def run_entry(run: Run, **more: object) -> dict[str, object]:
    """Return what is known of a run before it trains, and more."""
    known = {"number": run.number, "name": run.name, "config": run.config, "variant": run.variant}
    return known | {"params": run.params.by_part(), "identity": run.identity, "size": run.size, **more}


def plain(value: object) -> Any:
    """Return a value as JSON has it: numbers that are not finite become None, paths and all other objects text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if hasattr(value, "item"):  # a number of numpy
        return plain(value.item())
    return str(value)
