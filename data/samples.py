"""A synthetic task as rows of tokens: held-out samples are fixed first, training samples drawn when they are asked for."""

import contextlib
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
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from data.batch import Row
from data.cache import cached, changed_fields, function_digest
from data.data_params import DataParams
from data.syntheticdata import Sample, Task, identity, read_marks
from data.tokenizer import OWN_SPECIALS, Tokenizer, char_tokenizer, word_tokenizer

MOST_DRAWS = 1000  # before a task counts as having too few different samples
MOST_TRIED = 10_000  # held-out samples to look for before a run starts
MAX_SHOWN = 160  # characters of an argument in a message
NOTHING_NEW = 1000  # samples in a row without a new token end the search for the vocabulary


def sizes(data_params: DataParams, n_rows: int | None) -> dict[str, int]:
    """How many samples each split has; `n_rows` is the number of all rows of a finite task."""
    n = min(
        number for number in (data_params.n_samples, data_params.debug_crop, n_rows) if number is not None
    )
    shares = {"val": data_params.val_pct, "test": data_params.test_pct}
    held_out = {split: max(1, round(n * pct / 100)) if pct else 0 for split, pct in shares.items()}
    if sum(held_out.values()) >= n:
        raise ValueError(
            f"n_samples={data_params.n_samples} with debug_crop={data_params.debug_crop} gives {n} samples, too few "
            f"to split by val_pct={data_params.val_pct} and test_pct={data_params.test_pct}"
        )
    return {"train": n - sum(held_out.values()), **held_out}


def described(data_params: DataParams) -> str:
    return f"dataset_name={data_params.dataset_name!r} with task_args={short(data_params.task_args)}"


def short(value: object) -> str:
    """Return the repr of a value that a user gave, cut to a length that a sentence can hold."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


class ListedSamples:
    """Of a finite task: every row stands in one split."""

    def __init__(self, rows: Iterator[Sample], data_params: DataParams) -> None:
        self.rows = list({identity(row): row for row in rows}.values())
        random.Random(data_params.data_seed).shuffle(self.rows)
        self.sizes = sizes(data_params, len(self.rows))
        self.first = {"val": 0, "test": self.sizes["val"], "train": self.sizes["val"] + self.sizes["test"]}

    def sample(self, split: str, i: int) -> Sample:
        return self.rows[self.first[split] + i]


class DrawnSamples:
    """Sample i of a split is drawn from (data_seed, split, i) alone; those held out are all different, and never trained on."""

    def __init__(self, task: Task, data_params: DataParams) -> None:
        self.task = task
        self.data_params = data_params
        self.rng = random.Random()
        self.sizes = sizes(data_params, None)

    def load(self, cache: Path) -> None:
        """What is held out, found now or earlier; no sample can be asked for before that."""
        folder = cached(cache, "heldout", task_key(self.task, self.data_params), self.hold_out)
        self.hashes = np.load(folder / "hashes.npy")
        self.attempts = {split: np.load(folder / f"{split}.npy") for split in ("val", "test")}

    def draw(self, split: str, i: int, attempt: int) -> Sample:
        self.rng.seed(f"{self.data_params.data_seed}/{split}/{i}/{attempt}")
        return self.task.draw(self.rng, **self.data_params.task_args)

    def hold_out(self, folder: Path) -> None:
        """Finds for each held-out sample the attempt that gives a new one."""
        seen: set[int] = set()
        for split in ("val", "test"):
            attempts = array("H", (self.first_new(split, i, seen) for i in range(self.sizes[split])))
            np.save(folder / f"{split}.npy", np.array(attempts, np.uint16))
        np.save(folder / "hashes.npy", np.array(sorted(seen), np.uint64))

    def check(self, n_held_out: int) -> None:
        """ValueError if there are too few different samples for the first so many held out and one to train on."""
        seen: set[int] = set()
        held_out = ((split, i) for split in ("val", "test") for i in range(self.sizes[split]))
        for split, i in islice(held_out, n_held_out):
            self.first_new(split, i, seen)
        self.first_new("train", 0, seen)

    def first_new(self, split: str, i: int, seen: set[int]) -> int:
        for attempt in range(MOST_DRAWS):
            if (found := short_hash(self.draw(split, i, attempt))) not in seen:
                seen.add(found)
                return attempt
        raise self.too_few_samples()

    def sample(self, split: str, i: int) -> Sample:
        if split != "train":
            return self.draw(split, i, int(self.attempts[split][i]))
        for attempt in range(MOST_DRAWS):
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
            f"{described(d)} has too few different samples: n_samples={d.n_samples} with val_pct={d.val_pct} "
            f"and test_pct={d.test_pct} holds out {n_held_out}"
        )


def samples_of(task: Task, data_params: DataParams) -> ListedSamples | DrawnSamples:
    if task.rows:
        return ListedSamples(task.rows(**data_params.task_args), data_params)
    return DrawnSamples(task, data_params)


def check_split(task: Task, data_params: DataParams, n_rows: int | None, until: float = math.inf) -> None:
    """Raise ValueError if the task's samples are too few to be split, as far as that shows without long drawing.

    `n_rows` is the number of all rows of a finite task; `until`, in time.monotonic(), is when to stop drawing.
    """

    def draw(rng: random.Random, **task_args: Any) -> Sample:
        if time.monotonic() > until:
            raise TimeoutError
        return task.draw(rng, **task_args)

    if n_rows is not None:
        sizes(data_params, n_rows)
        return
    with contextlib.suppress(TimeoutError):
        DrawnSamples(task._replace(draw=draw), data_params).check(MOST_TRIED)


def short_hash(sample: Sample) -> int:
    return int.from_bytes(hashlib.blake2b(identity(sample).encode(), digest_size=8).digest(), "big")


def task_key(task: Task, data_params: DataParams) -> tuple[object, ...]:
    """Return all that a task's samples depend on: its name, its code and every field that is not at its default."""
    functions = [f for f in (task.draw, task.rows, task.chance) if f is not None]
    return task.name, sorted(map(function_digest, functions)), changed_fields(data_params)


class Prompt(NamedTuple):
    """The start of a sample: what stands before its first scored token."""

    ids: list[int]
    text: str
    answer_length: int  # tokens from there to the end, eos included


class TaskData:
    """The samples of each split, and the tokenizer."""

    val_bytes = None  # text only
    val_unknown_bytes = 0
    content = ""  # params and code say it all

    def __init__(
        self, task: Task, data_params: DataParams, cache: Path, tokenizer: Tokenizer | None = None
    ) -> None:
        self.data_params = data_params
        self.samples = samples_of(task, data_params)
        if isinstance(self.samples, DrawnSamples):
            self.samples.load(cache)
        folder = cached(cache, "vocabulary", task_key(task, data_params), self.explore)
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.longest: int = facts["longest"]
        self.chance: float = task.chance(**data_params.task_args) if task.chance else facts["chance"]
        self.tokenizer = tokenizer or Tokenizer.load(folder)

    def explore(self, folder: Path) -> None:
        """Finds chance level, vocabulary and longest sample, of all for validation and as many for training as it takes."""
        targets, words, longest, quiet = Counter[str](), set[str](), 0, 0
        for sample in self.split("val"):
            tokens, scored, end_scored = read_marks(sample)
            targets.update(token for token, is_scored in zip(tokens, scored, strict=True) if is_scored)
            targets[OWN_SPECIALS[2]] += end_scored
            words.update(tokens)
            longest = max(longest, len(tokens))
        for sample in self.split("train"):
            tokens = read_marks(sample).tokens
            quiet = 0 if set(tokens) - words else quiet + 1
            words.update(tokens)
            longest = max(longest, len(tokens))
            if quiet == NOTHING_NEW:
                break
        (char_tokenizer if isinstance(sample, str) else word_tokenizer)(words).save(folder)
        facts = {"longest": longest, "chance": max(targets.values()) / max(1, targets.total())}
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    def split(self, split: str) -> Iterator[Sample]:
        return (self.samples.sample(split, i) for i in range(self.samples.sizes[split]))

    def rows(self, split: str, max_seq_len: int) -> "TaskRows":
        return TaskRows(self, split, max_seq_len)

    def marked_row(self, split: str, i: int) -> Row:
        """One sample as a row: bos, its tokens, eos."""
        tokens, scored, end_scored = read_marks(self.samples.sample(split, i))
        t = self.tokenizer
        ids = t.ids_of(tokens)
        if t.unk in ids:
            raise ValueError(
                f"{described(self.data_params)} has the token {tokens[ids.index(t.unk)]!r}, too rare to be in the vocabulary: "
                "let the task draw it more often, or not at all"
            )
        return Row([*t.begin, *ids, *t.end], [False, *scored, end_scored])

    def prompts(self, n: int) -> list[Prompt]:
        """What stands before the first scored token in the first `n` validation samples."""
        rows = (self.marked_row("val", i) for i in range(min(n, self.samples.sizes["val"])))
        parts = [(list(row.ids), [*row.scored, True].index(True)) for row in rows]
        return [Prompt(ids[:n], self.tokenizer.decode(ids[:n]), len(ids) - n) for ids, n in parts]


class TaskRows(Dataset):
    """Rows of one sample, or, packed, of as many as surely fit."""

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
            ids, scored = self.data.marked_row(self.split, j)
            check_fits(len(ids) - 2, self.data.data_params, self.room - 1)
            if len(row.ids) + len(ids) > self.room:  # longer than any that was seen at the start
                raise ValueError(
                    f"packed=True needs all samples of up to {self.data.longest} tokens, the longest found at the start, but "
                    f"{described(self.data.data_params)} has one of {len(ids) - 2}: take packed=False"
                )
            row = Row([*row.ids, *ids], [*row.scored, *scored])
        return row

    def __getitems__(self, indices: list[int]) -> list[Row]:
        return [self[i] for i in indices]


def check_fits(n_tokens: int, data_params: DataParams, max_seq_len: int) -> None:
    """ValueError if a sample of so many tokens, with bos and without eos, is longer than the model's input."""
    if n_tokens + 1 > max_seq_len:
        raise ValueError(
            f"max_seq_len={max_seq_len} is too small: {described(data_params)} has samples of {n_tokens} tokens, "
            f"so at least {n_tokens + 1} are needed"
        )
