"""Make the losses of two codes comparable: both must be measured on the same held-out samples."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from data.batch import mycollate
from data.held_out import HeldOut, read_documents
from data.text_rows import Documents, TextRows, document_hash, read_tokens, write_tokens
from explore.compare.variants import RunRow, row_of
from model.generation.sampling import eval_mode
from train.evaluation import Evaluation
from train.grid.config_text import VARIANT
from train.grid.params import Params
from train.grid.run import Run
from train.saving.outcome import Outcome
from train.saving.run_folder import load_run, read_about


class NotComparable(ValueError):
    """Error if two codes were judged on different samples."""


class Sides(NamedTuple):
    """The rows of the runs of two codes, and the metric by which they compare."""

    rows: list[RunRow]
    baseline_rows: list[RunRow]
    metric: str


def comparable_rows(
    runs: Sequence[Run], outcomes: Sequence[Outcome], baseline: Sequence[Outcome], cache: Path
) -> Sides:
    """Return the rows of saved runs of two codes: in nats if their held-out samples are the same, else in bits per byte.

    Texts whose vocabulary or held-out text differs are compared in bits per byte of the baseline's held-out text. Raise
    NotComparable for tasks whose held-out samples differ, and for runs that do not say what they were judged on.
    """
    # Both sides have the params and the variant of the run, so that they differ in the code only.
    ours, theirs = (
        [
            row_of(outcome.as_row() | {VARIANT: run.variant}, run.params)
            for run, outcome in zip(runs, side, strict=True)
        ]
        for side in (outcomes, baseline)
    )
    held_out = [(held_out_of(one), held_out_of(other)) for one, other in zip(outcomes, baseline, strict=True)]
    if all(one.rows == other.rows and one.vocabulary == other.vocabulary for one, other in held_out):
        return Sides(ours, theirs, "val_loss")
    for run, (one, other) in zip(runs, held_out, strict=True):
        if reason := why_not(run.params, one, other):
            raise NotComparable(f"cannot compare run {run.number}: {reason}")
    # Runs on the same data share the folders, so that each text is looked through once.
    texts = {
        (one.folder, other): run
        for run, (one, other) in zip(runs, held_out, strict=True)
        if one.text != other.text
    }
    for (_, other), run in texts.items():
        refuse_trained_on(other, run, cache)
    for row, outcome, (one, other) in zip(ours, outcomes, held_out, strict=True):
        if one.text != other.text and outcome.folder is not None:
            row |= bits_on(other, outcome.folder, cache)
    return Sides(ours, theirs, "bits_per_byte")


def held_out_of(outcome: Outcome) -> HeldOut:
    """Return what the validation loss of a saved run was measured on."""
    about = {} if outcome.folder is None else read_about(outcome.folder)
    known = about.get("held_out", {})
    return HeldOut(**{name: value for name, value in known.items() if name in HeldOut._fields})


def why_not(params: Params, one: HeldOut, other: HeldOut) -> str:
    """Return the reason why the losses of two codes cannot be compared at all, or "" if there is none."""
    if not (one.rows and other.rows):
        return "one of the two codes does not record what the loss was measured on"
    if not (one.text and other.text):
        return "the change gives this data other held-out samples, so the losses are those of different questions"
    if params.model.hides_tokens:
        return "the change gives this text other held-out rows, and models of hidden tokens have no bits per byte"
    if one.text == other.text and one.vocabulary == other.vocabulary:
        return "the two codes score different tokens of the same held-out text"
    return ""


def kept_documents(held_out: HeldOut, cache: Path) -> list[str]:
    """Return the held-out documents of the baseline. Raise NotComparable if they are no longer there."""
    documents = read_documents(cache, held_out.folder)
    if documents is None:
        raise NotComparable(f"the baseline's held-out text is no longer in {cache}")
    return documents


def refuse_trained_on(held_out: HeldOut, run: Run, cache: Path) -> None:
    """Raise NotComparable if the new code trains on more of the baseline's held-out documents than the baseline did."""
    documents = kept_documents(held_out, cache)
    n = n_trained_on(documents, run, cache)
    if n > read_tokens(cache / held_out.folder).n_in_training:
        raise NotComparable(
            f"{n} of {len(documents)} held-out documents of the baseline are in the training split of the new code"
        )


def bits_on(held_out: HeldOut, folder: Path, cache: Path) -> RunRow:
    """Return the measured bits per byte of a saved run on the held-out text of the other code."""
    documents = kept_documents(held_out, cache)
    loaded = load_run(folder)
    lm, (data_params, train_params, model_params) = loaded.lm, loaded.params
    with tempfile.TemporaryDirectory() as place:
        write_tokens(documents, loaded.tokenizer, Path(place))
        tokens = read_tokens(Path(place))
        packed = data_params.packed is not False
        unknown = tokens.unscored_bytes(packed)
        rows = TextRows(tokens, loaded.tokenizer, model_params.max_seq_len, packed)
        data: Any = SimpleNamespace(
            task=None, tokenizer=loaded.tokenizer, val_bytes=tokens.n_bytes, val_unknown_bytes=unknown
        )
        evaluation = Evaluation(lm, data)
        with eval_mode(lm):
            for first in range(0, len(rows), train_params.batch_size):
                indices = range(first, min(first + train_params.batch_size, len(rows)))
                evaluation.add(mycollate(rows.__getitems__([*indices])), train_params)
    bits = evaluation.result()["val_bits_per_byte"]
    return row_of({"bits_per_byte": bits, "unknown_bytes": unknown / max(1, tokens.n_bytes)})


def n_trained_on(documents: Sequence[str], run: Run, cache: Path) -> int:
    """Count the documents, without empty ones, in the training split of a run's text."""
    trained = set(Documents(run.params.data, cache).hashes_of("train"))
    return sum(document_hash(document.encode()) in trained for document in documents if document)
