"""Evaluation sets: further samples on which a run is evaluated, without those that occur in training."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from data.cache import cached, changed_fields
from data.corpora import corpus_fingerprint, is_corpus, log_once
from data.data_params import DataParams
from data.mixture import MixtureData
from data.problems import task_problems
from data.syntheticdata import Marked, Sample, Task, read_marks, tasks
from data.task_rows import (
    MAX_DRAWS,
    DrawnSamples,
    FixedSamples,
    TaskData,
    number_of_samples,
    short_hash,
    short_repr,
    task_key,
)
from data.text_rows import Documents, TextData, TextRows, read_tokens, write_tokens
from data.tokenizer import Tokenizer

MANY = 1_000_000  # training samples whose drawing takes so long that it is logged


def set_heading(data_params: DataParams, name: str) -> str:
    """Return an evaluation set as the beginning of an error message."""
    return f"eval_sets={{{name!r}: {short_repr(data_params.eval_sets[name])}}}"


def eval_set_problems(data_params: DataParams, max_seq_len: int) -> Iterator[str]:
    """Yield a sentence for each reason why an evaluation set cannot be used, before anything is built."""
    is_task = data_params.dataset_name in [*tasks]
    for name in data_params.eval_sets:
        params, heading = data_params.eval_params(name), set_heading(data_params, name)
        if params.shares:
            yield f"{heading}: an evaluation set is one text: set its dataset_name, for example to {next(iter(params.shares))!r}"
            continue
        other = params.label
        if not (other in tasks if is_task else is_corpus(other) and other not in tasks):
            kind = "task" if is_task else "text"
            yield f"{heading}: {other!r} is no {kind}, but the run trains on a {kind}: dataset_name={data_params.dataset_name!r}"
        elif is_task:
            problems = task_problems(tasks[other], params, max_seq_len, is_split=False)
            yield from (f"{heading}: {problem}" for problem in problems)


def eval_data(
    data_params: DataParams,
    name: str,
    training: TaskData | TextData | MixtureData,
    cache: Path,
    tokenizer: Tokenizer,
) -> "EvalTask | EvalText":
    """Load an evaluation set: its split "val", in the tokens of the run.

    `training` is the data of the run, `data_params` its params. Raise ValueError if no sample is left, or if the
    tokenizer of a task lacks a token.
    """
    params = data_params.eval_params(name)
    try:
        if isinstance(training, TaskData):
            found: EvalTask | EvalText = EvalTask(params, training, cache, tokenizer)
        else:
            found = EvalText(params, training, cache, tokenizer)
    except ValueError as error:
        raise ValueError(f"{set_heading(data_params, name)}: {error}") from None
    if found.n_dropped:
        log_once(f"evaluation set {name!r}: {found.n_dropped:,} samples occur in training and are left out")
    return found


def nothing_left(n_dropped: int) -> ValueError:
    return ValueError(
        f"no sample is left: all {n_dropped:,} occur in training" if n_dropped else "there is no sample"
    )


class EvalTask(TaskData):
    """The samples of a task for evaluation, none of which occurs in training."""

    def __init__(self, params: DataParams, training: TaskData, cache: Path, tokenizer: Tokenizer) -> None:
        self.data_params = params
        self.task = tasks[params.label]
        key = (task_key(training.task, training.data_params), task_key(self.task, params))
        folder = cached(cache, "evaluation", key, partial(self.draw, training=training, cache=cache))
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.n_dropped: int = facts["n_dropped"]
        self.samples = FixedSamples(facts["samples"])
        self.tokenizer = tokenizer
        if not self.samples.rows:
            raise nothing_left(self.n_dropped)
        marked = [read_marks(sample) for sample in self.samples.rows]
        self.longest = max(len(one.tokens) for one in marked)
        self.reference_loss = None
        self.hides_answers = any(True in one.hidden for one in marked)
        self.check_vocabulary({token for one in marked for token in one.tokens})
        chance = self.task.chance(**self.task.arguments(params.task_args)) if self.task.chance else None
        self.chance = most_common_target(marked) if chance is None else chance

    def check_vocabulary(self, tokens: set[str]) -> None:
        known = self.tokenizer.ids_of(sorted(tokens))
        if unknown := [
            token for token, i in zip(sorted(tokens), known, strict=True) if i == self.tokenizer.unk
        ]:
            raise ValueError(
                f"the tokens {short_repr(unknown)} do not occur in training, so the model has no embedding of them"
            )

    def draw(self, folder: Path, training: TaskData, cache: Path) -> None:
        """Draw the samples, drop those that occur in training, and write the others to `folder`."""
        drawn = [*evaluation_samples(self.task, self.data_params)]
        hashes = np.array([short_hash(sample) for sample in drawn], np.uint64)
        in_training = np.isin(hashes, training_hashes(training, cache))
        kept = [sample for sample, found in zip(drawn, in_training, strict=True) if not found]
        facts = {"n_dropped": int(in_training.sum()), "samples": kept}
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def most_common_target(marked: Sequence[Marked]) -> float:
    """Return the share of the most common scored token, the end of the sequence included."""
    targets = Counter(
        token
        for one in marked
        for token, scored in zip([*one.tokens, None], [*one.scored, one.end_scored], strict=True)
        if scored
    )
    return max(targets.values(), default=0) / max(1, targets.total())


def evaluation_samples(task: Task, params: DataParams) -> Iterator[Sample]:
    """Yield up to n_samples samples: the rows of a finite task in random order, else different drawn ones.

    A task may have fewer: the drawing ends after MAX_DRAWS draws without a new sample. A row that a finite task lists twice
    counts twice, as in the verification set of AdderBoard.
    """
    n = number_of_samples(params)
    if task.rows:
        rows = [*task.rows(**params.task_args)]
        random.Random(params.data_seed).shuffle(rows)
        yield from islice(rows, n)
        return
    source, seen = DrawnSamples(task, params), set[int]()
    for i in range(n):
        for attempt in range(MAX_DRAWS):
            sample = source.draw("evaluation", i, attempt)
            if (found := short_hash(sample)) not in seen:
                seen.add(found)
                yield sample
                break
        else:
            return


def training_hashes(training: TaskData, cache: Path) -> np.ndarray:
    """Return the sorted hashes of all training samples, cached."""

    def build(folder: Path) -> None:
        if (n := training.samples.sizes["train"]) > MANY:
            log_once(f"drawing all {n:,} training samples once, to drop them from evaluation sets")
        hashes = np.fromiter(map(short_hash, training.split("train")), np.uint64, n)
        np.save(folder / "hashes.npy", np.unique(hashes))

    folder = cached(cache, "training", task_key(training.task, training.data_params), build)
    return np.load(folder / "hashes.npy")


class EvalText:
    """The documents of a text for evaluation, without those of the training split.

    They come from the validation split. Another text than that of the run adds documents of its training split until
    there are n_samples, and has its test split if it has no other.
    """

    held_out_text = "", ""  # only that of the validation split is kept

    def __init__(
        self, params: DataParams, training: TextData | MixtureData, cache: Path, tokenizer: Tokenizer
    ) -> None:
        self.data_params = params
        self.tokenizer = tokenizer
        self.content = corpus_fingerprint(params.label)
        key = (
            training.source,
            self.content,
            params.label,
            changed_fields(params),
            tokenizer.fingerprint,
        )
        folder = cached(cache, "evaluation", key, partial(self.write, training=training, cache=cache))
        self.val = read_tokens(folder)
        self.n_dropped = self.val.n_in_training
        if not self.val.n_bytes:
            raise nothing_left(self.n_dropped)
        self.chance = self.val.chance
        self.val_bytes = self.val.n_bytes
        self.val_unknown_bytes = self.val.unscored_bytes(params.packed is not False)

    def write(self, folder: Path, training: TextData | MixtureData, cache: Path) -> None:
        """Tokenize the documents that do not occur in training."""
        is_same = training.has_text(self.data_params.dataset_name)
        documents = Documents(self.data_params, cache, own_splits=not is_same)
        known = training.training_hashes()
        chosen = chosen_documents(documents.indices, self.data_params, is_same)
        kept = [i for i in chosen if documents.hashes[i] not in known]
        texts = documents.read_all(kept)
        write_tokens(texts, self.tokenizer, folder, n_in_training=len(chosen) - len(kept))

    def rows(self, split: str, max_seq_len: int) -> TextRows:
        assert split == "val", "an evaluation set has one split"
        return TextRows(self.val, self.tokenizer, max_seq_len, packed=self.data_params.packed is not False)


def chosen_documents(
    indices: Mapping[str, Sequence[int]], params: DataParams, is_same_text: bool
) -> list[int]:
    """Return the indices of at most n_samples documents, chosen by data_seed where there are more."""
    splits = ["val"] if is_same_text else ["val", "train"]
    pools = [indices[split] for split in splits if indices.get(split)] or [indices.get("test", [])]
    chosen: list[int] = []
    for pool in pools:
        n = min(len(pool), params.n_samples - len(chosen))
        chosen += sorted(random.Random(params.data_seed).sample(pool, n))
    return chosen
