"""A synthetic task as rows of tokens: held-out samples are fixed first, training samples are drawn on demand."""

import contextlib
import functools
import hashlib
import json
import math
import random
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from data.batch import Row
from data.cache import cached, changed_fields, function_digest
from data.data_params import DataParams
from data.syntheticdata import Sample, Task, read_marks, text_without_marks
from data.tokenizer import OWN_SPECIALS, Tokenizer, char_tokenizer, word_tokenizer

MAX_DRAWS = 1000  # draws without a new sample before a task counts as having too few
MAX_TRIED = 10_000  # held-out samples to try before a run starts
MAX_ARGUMENT_CHARS = 160  # characters of an argument in a message
MAX_WITHOUT_NEW_TOKEN = 1000  # samples in a row without a new token, after which the vocabulary is complete


def split_sizes(data_params: DataParams, n_rows: int | None) -> dict[str, int]:
    """Return the number of samples of each split: "train", "val" and "test".

    `n_rows` is the number of rows of a finite task, else None. Raise ValueError if no sample is left to train on.
    """
    n = number_of_samples(data_params, n_rows)
    shares = {"val": data_params.val_pct, "test": data_params.test_pct}
    held_out = {split: max(1, round(n * pct / 100)) if pct else 0 for split, pct in shares.items()}
    if sum(held_out.values()) >= n:
        raise ValueError(
            f"n_samples={data_params.n_samples} with debug_crop={data_params.debug_crop} gives {n} samples, too few "
            f"to split by val_pct={data_params.val_pct} and test_pct={data_params.test_pct}"
        )
    return {"train": n - sum(held_out.values()), **held_out}


def number_of_samples(data_params: DataParams, n_rows: int | None = None) -> int:
    """Return the number of samples of all splits together. `n_rows` is the number of rows of a finite task."""
    return min(n for n in (data_params.n_samples, data_params.debug_crop, n_rows) if n is not None)


def task_heading(data_params: DataParams) -> str:
    """Return the task and its arguments as the beginning of an error message."""
    return f"dataset_name={data_params.dataset_name!r} with task_args={short_repr(data_params.task_args)}"


def short_repr(value: object) -> str:
    """Return the repr of `value`, cut to MAX_ARGUMENT_CHARS characters for an error message."""
    text = repr(value)
    return text if len(text) <= MAX_ARGUMENT_CHARS else f"{text[:MAX_ARGUMENT_CHARS]}..."


class ListedSamples:
    """The shuffled rows of a finite task; every row is in exactly one split."""

    def __init__(self, rows: Iterator[Sample], data_params: DataParams) -> None:
        self.rows = list({text_without_marks(row): row for row in rows}.values())
        random.Random(data_params.data_seed).shuffle(self.rows)
        self.sizes = split_sizes(data_params, len(self.rows))
        self.first = {"val": 0, "test": self.sizes["val"], "train": self.sizes["val"] + self.sizes["test"]}

    def sample(self, split: str, i: int) -> Sample:
        return self.rows[self.first[split] + i]


class DrawnSamples:
    """Samples of a task without a list of rows: sample i of a split is a function of (data_seed, split, i).

    Held-out samples are all different, and no training sample equals one of them.
    """

    def __init__(self, task: Task, data_params: DataParams) -> None:
        self.task = task
        self.data_params = data_params
        self.rng = random.Random()
        self.sizes = split_sizes(data_params, None)

    def load(self, cache: Path) -> None:
        """Find the held-out samples, or load them from the cache. Call this method before `sample`."""
        folder = cached(cache, "heldout", task_key(self.task, self.data_params), self.hold_out)
        self.hashes = np.load(folder / "hashes.npy")
        self.attempts = {split: np.load(folder / f"{split}.npy") for split in ("val", "test")}

    def draw(self, split: str, i: int, attempt: int) -> Sample:
        self.rng.seed(f"{self.data_params.data_seed}/{split}/{i}/{attempt}")
        return self.task.draw(self.rng, **self.data_params.task_args)

    def hold_out(self, folder: Path) -> None:
        """Find, for each held-out sample, the first attempt that draws a new one; write the attempts to `folder`."""
        seen: set[int] = set()
        for split in ("val", "test"):
            attempts = array("H", (self.first_new(split, i, seen) for i in range(self.sizes[split])))
            np.save(folder / f"{split}.npy", np.array(attempts, np.uint16))
        np.save(folder / "hashes.npy", np.array(sorted(seen), np.uint64))

    def check(self, n_held_out: int) -> None:
        """Raise ValueError if the task has too few different samples.

        Draw the first `n_held_out` held-out samples and one to train on.
        """
        seen: set[int] = set()
        held_out = ((split, i) for split in ("val", "test") for i in range(self.sizes[split]))
        for split, i in islice(held_out, n_held_out):
            self.first_new(split, i, seen)
        self.first_new("train", 0, seen)

    def first_new(self, split: str, i: int, seen: set[int]) -> int:
        """Return the first attempt that draws a sample whose hash is not in `seen`, and add it there."""
        for attempt in range(MAX_DRAWS):
            if (found := short_hash(self.draw(split, i, attempt))) not in seen:
                seen.add(found)
                return attempt
        raise self.too_few_samples()

    def sample(self, split: str, i: int) -> Sample:
        if split != "train":
            return self.draw(split, i, int(self.attempts[split][i]))
        for attempt in range(MAX_DRAWS):
            drawn = self.draw(split, i, attempt)
            if not self.is_held_out(short_hash(drawn)):
                return drawn
        raise self.too_few_samples()

    def is_held_out(self, found: int) -> bool:
        place = int(self.hashes.searchsorted(np.uint64(found)))
        return place < len(self.hashes) and int(self.hashes[place]) == found

    def too_few_samples(self) -> ValueError:
        d, n_held_out = self.data_params, self.sizes["val"] + self.sizes["test"]
        return ValueError(
            f"{task_heading(d)} has too few different samples: n_samples={d.n_samples} with val_pct={d.val_pct} "
            f"and test_pct={d.test_pct} holds out {n_held_out}; hold out fewer"
        )


class FixedSamples:
    """A list of samples as the only split, "val"."""

    def __init__(self, rows: list[Sample]) -> None:
        self.rows = rows
        self.sizes = {"val": len(rows)}

    def sample(self, split: str, i: int) -> Sample:
        return self.rows[i]


def samples_of(task: Task, data_params: DataParams) -> ListedSamples | DrawnSamples:
    if task.rows:
        return ListedSamples(task.rows(**data_params.task_args), data_params)
    return DrawnSamples(task, data_params)


def check_split(task: Task, data_params: DataParams, n_rows: int | None, until: float = math.inf) -> None:
    """Raise ValueError if the task has too few different samples to split, as far as a short trial shows.

    `n_rows` is the number of rows of a finite task, else None. Stop drawing at `until`, a value of time.monotonic().
    """

    def draw(rng: random.Random, **task_args: object) -> Sample:
        if time.monotonic() > until:
            raise TimeoutError
        return task.draw(rng, **task_args)

    if n_rows is not None:
        split_sizes(data_params, n_rows)
        return
    with contextlib.suppress(TimeoutError):
        DrawnSamples(task._replace(draw=draw), data_params).check(MAX_TRIED)


def short_hash(sample: Sample) -> int:
    """Return a 64-bit hash of a sample without its marks."""
    return int.from_bytes(hashlib.blake2b(text_without_marks(sample).encode(), digest_size=8).digest(), "big")


def task_key(task: Task, data_params: DataParams) -> tuple[object, ...]:
    """Return everything that a task's samples depend on: name, code, and every field that differs from its default."""
    functions = [f for f in (task.draw, task.rows, task.chance, task.reference, task.tokens) if f is not None]
    return task.name, sorted(map(function_digest, functions)), changed_fields(data_params)


class TaskPrompt(NamedTuple):
    """The tokens of a sample before its first scored one, bos included."""

    ids: list[int]
    text: str
    answer_length: int  # tokens from the first scored one to the end, eos included


class TaskData:
    """The samples of each split of a task, their tokenizer and their chance level."""

    val_bytes = None  # text only
    val_unknown_bytes = 0
    content = ""  # params and code determine the samples
    held_out_text = "", ""  # text only

    @functools.cached_property
    def slices_of(self) -> dict[str, dict[str, list[int]]]:
        """Results of `slices` by split."""
        return {}

    def __init__(
        self, task: Task, data_params: DataParams, cache: Path, tokenizer: Tokenizer | None = None
    ) -> None:
        self.task = task
        self.data_params = data_params
        self.samples: ListedSamples | DrawnSamples | FixedSamples = samples_of(task, data_params)
        if isinstance(self.samples, DrawnSamples):
            self.samples.load(cache)
        folder = cached(cache, "vocabulary", task_key(task, data_params), self.explore)
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.longest: int = facts["longest"]
        # The mean loss of the task's reference over the validation split, in nats; None without one.
        self.reference_loss: float | None = facts.get("reference_loss")
        # True: the model does not see what it has answered.
        self.hides_answers: bool = facts.get("hides_answers", False)
        self.chance: float = (
            task.chance(**task.arguments(data_params.task_args)) if task.chance else facts["chance"]
        )
        self.tokenizer = tokenizer or Tokenizer.load(folder)

    def explore(self, folder: Path) -> None:
        """Find chance level, vocabulary and longest sample, and write them to `folder`.

        Read all validation samples, and training samples until MAX_WITHOUT_NEW_TOKEN in a row bring no new token.
        """
        arguments = self.task.arguments(self.data_params.task_args)
        words = set(self.task.tokens(**arguments)) if self.task.tokens else set[str]()
        targets, longest, quiet, hides = Counter[str](), 0, 0, False
        nats: list[float] = []
        for sample in self.split("val"):
            tokens, scored, end_scored, hidden = read_marks(sample)
            hides = hides or any(hidden)
            targets.update(token for token, is_scored in zip(tokens, scored, strict=True) if is_scored)
            targets[OWN_SPECIALS[2]] += end_scored
            words.update(tokens)
            longest = max(longest, len(tokens))
            if self.task.reference is not None:
                nats += self.task.reference(sample, **arguments)
        for sample in self.split("train"):
            tokens = read_marks(sample).tokens
            quiet = 0 if set(tokens) - words else quiet + 1
            words.update(tokens)
            longest = max(longest, len(tokens))
            if quiet == MAX_WITHOUT_NEW_TOKEN:
                break
        (char_tokenizer if isinstance(sample, str) else word_tokenizer)(words).save(folder)
        chance = max(targets.values()) / max(1, targets.total())
        reference = sum(nats) / len(nats) if nats else None
        facts = {"longest": longest, "chance": chance, "hides_answers": hides, "reference_loss": reference}
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    def split(self, split: str) -> Iterator[Sample]:
        return (self.samples.sample(split, i) for i in range(self.samples.sizes[split]))

    def slices(self, split: str) -> dict[str, list[int]]:
        """Return the value of each sample of a split, by the name of the slice. The samples are read once."""
        if split not in self.slices_of:
            samples = [*self.split(split)]
            kinds = self.task.slices.items()
            self.slices_of[split] = {name: [int(value(one)) for one in samples] for name, value in kinds}
        return self.slices_of[split]

    def rows(self, split: str, max_seq_len: int) -> "TaskRows":
        return TaskRows(self, split, max_seq_len)

    def marked_row(self, split: str, i: int) -> Row:
        """Return sample `i` as a row: bos, its tokens, eos. Raise ValueError for a token outside the vocabulary."""
        tokens, scored, end_scored, hidden = read_marks(self.samples.sample(split, i))
        t = self.tokenizer
        ids = t.ids_of(tokens)
        if t.unk in ids:
            raise ValueError(
                f"{task_heading(self.data_params)} draws the token {tokens[ids.index(t.unk)]!r} too rarely for the vocabulary: "
                "draw it more often or not at all, or name it in the task's `tokens`"
            )
        hides = [False, *hidden, False] if self.hides_answers else ()
        return Row([*t.begin, *ids, *t.end], [False, *scored, end_scored], hides)

    def prompts(self, n: int) -> list[TaskPrompt]:
        """Return the tokens before the first scored one in each of the first `n` validation samples."""
        rows = (self.marked_row("val", i) for i in range(min(n, self.samples.sizes["val"])))
        parts = [(list(row.ids), [*row.scored, True].index(True)) for row in rows]
        return [TaskPrompt(ids[:n], self.tokenizer.decode(ids[:n]), len(ids) - n) for ids, n in parts]


class TaskRows(Dataset):
    """Rows of one sample each or, with packed=True, of as many samples as always fit.

    Raise ValueError for samples that are longer than the model's input.
    """

    def __init__(self, data: TaskData, split: str, max_seq_len: int) -> None:
        self.data = data
        self.split = split
        self.room = max_seq_len + 1
        self.n_samples = data.samples.sizes[split]
        self.per_row = max(1, self.room // (data.longest + 2)) if data.data_params.packed else 1
        check_fits(data.longest, data.data_params, max_seq_len)

    def __len__(self) -> int:
        return -(-self.n_samples // self.per_row)

    def __getitem__(self, i: int) -> Row:
        row = Row([], [])
        first = range(len(self))[i] * self.per_row
        for j in range(first, min(first + self.per_row, self.n_samples)):
            ids, scored, hidden = self.data.marked_row(self.split, j)
            check_fits(len(ids) - 2, self.data.data_params, self.room - 1)
            # A sample may be longer than every sample that `explore` has read.
            if len(row.ids) + len(ids) > self.room:
                raise ValueError(
                    f"packed=True has room for samples of up to {self.data.longest} tokens, the longest found at the start, but "
                    f"{task_heading(self.data.data_params)} has one of {len(ids) - 2}; use packed=False"
                )
            row = Row([*row.ids, *ids], [*row.scored, *scored], [*row.hidden, *hidden])
        return row

    def __getitems__(self, indices: list[int]) -> list[Row]:
        return [self[i] for i in indices]


def check_fits(n_tokens: int, data_params: DataParams, max_seq_len: int) -> None:
    """Raise ValueError if bos and a sample of `n_tokens` tokens exceed `max_seq_len`; eos is never an input."""
    if n_tokens + 1 > max_seq_len:
        raise ValueError(
            f"max_seq_len={max_seq_len} is too small: {task_heading(data_params)} has samples of {n_tokens} tokens, "
            f"so at least {n_tokens + 1} are needed"
        )
