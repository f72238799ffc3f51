"""From DataParams to batches: get_data, LMDataModule and its loaders. What a batch holds is said in data/batch.py."""

import functools
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from data.batch import Row, mycollate, parts
from data.check import args_problems
from data.data_params import DataParams
from data.samples import Prompt, TaskData, TaskRows
from data.syntheticdata import tasks
from data.text import TextData, TextRows
from data.tokenizer import Tokenizer, TokenizerSpec

__all__ = ["DataParams", "LMDataModule", "TokenizerSpec", "get_data", "mycollate"]


def get_data(
    data_params: DataParams, tokenizer_spec: TokenizerSpec, cache: Path, tokenizer: Tokenizer | None = None
) -> TaskData | TextData:
    """The splits of a task or a corpus, and their tokenizer: the one given, or one made by the spec."""
    task = tasks.get(data_params.dataset_name)
    if task is not None:
        for problem in args_problems(task, data_params):  # of a saved run, say, whose task has changed
            raise ValueError(problem)
        return TaskData(task, data_params, cache, tokenizer)
    return TextData(data_params, tokenizer_spec, cache, tokenizer)


class LMDataModule:
    """The data of a run: its tokenizer, and loaders of the splits "train", "val" and "test".

    `task` is what is registered under the data set's name, None for text. `chance` is the accuracy on scored tokens that
    takes no skill. `val_bytes` is the UTF-8 size of the validation text, None for tasks; `val_unknown_bytes` of
    them stand behind unknown tokens. With `mask` the tokenizer has a mask token.
    """

    def __init__(
        self,
        data_params: DataParams,
        tokenizer_spec: TokenizerSpec,
        max_seq_len: int,
        *,
        cache: Path,
        data_workers: int = 0,
        tokenizer: Tokenizer | None = None,
        mask: bool = False,
    ) -> None:
        self.max_seq_len = max_seq_len
        self.data_workers = data_workers
        self.dataset_name = data_params.dataset_name
        self.masked = mask
        self.task = tasks.get(data_params.dataset_name)
        self.get_data = functools.partial(get_data, data_params, tokenizer_spec, Path(cache), tokenizer)
        self.datasets: dict[str, TaskRows | TextRows] = {}
        own = tokenizer or self.data.tokenizer
        self.tokenizer = own.with_mask() if mask else own

    @functools.cached_property
    def data(self) -> TaskData | TextData:
        """Made on first use: a saved run brings its tokenizer, so it opens at once, and also where its text is gone."""
        return self.get_data()

    @property
    def chance(self) -> float:
        return self.data.chance

    @property
    def content(self) -> str:
        """Tells whether the text is what it was; nothing of a task, whose params and code say it all."""
        return self.data.content

    @property
    def val_bytes(self) -> int | None:
        return self.data.val_bytes

    @property
    def val_unknown_bytes(self) -> int:
        return self.data.val_unknown_bytes

    def rows(self, split: str) -> TaskRows | TextRows:
        """The rows of a split, a torch Dataset."""
        if split not in self.datasets:
            self.datasets[split] = self.data.rows(split, self.max_seq_len)
        return self.datasets[split]

    def n_rows(self, split: str) -> int:
        return len(self.rows(split))

    def check_scored(self) -> None:
        """Raise ValueError if no token of the training split, or none of the validation split, is scored."""
        for split, name in (("train", "training"), ("val", "validation")):
            if not self.is_scored(split):
                objective = " and objective='masked'" if self.masked else ""
                raise ValueError(
                    f"dataset_name={self.dataset_name!r} with max_seq_len={self.max_seq_len}{objective}: no token of the "
                    f"{name} split is scored, so there is no {name} loss; take longer rows, or samples in which something is "
                    "to be predicted"
                )

    def is_scored(self, split: str) -> bool:
        """Return whether a token of the split is scored; of texts without a character none is."""
        if split == "val" and self.val_bytes == 0:
            return False
        rows = self.rows(split)
        width = self.max_seq_len if self.masked else None  # a masked model is not shown the last position
        return any(
            bool(mycollate(rows.__getitems__(list(indices)))["target_mask"][:, 1:width].any())
            for indices in batched(range(len(rows)), 64)
        )

    def train_dataloader(
        self,
        b: int,
        accumulate: int = 1,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        batches: int = 0,
    ) -> "Loader":
        """Batches of `b` rows in an order that seed and epoch decide; `accumulate` of them in each of `world` processes make a step.

        The first pass is that of `epoch`, without its first `batches`, which are whole steps.
        """
        rows = self.rows("train")
        order = Shuffled(len(rows), seed, epoch, left_out=batches * b * world)
        return self.loader(rows, b, accumulate, rank, world, order)

    def val_dataloader(self, b: int) -> "Loader":
        return self.loader(self.rows("val"), b)

    def test_dataloader(self, b: int) -> "Loader":
        return self.loader(self.rows("test"), b)

    def loader(
        self,
        rows: TaskRows | TextRows,
        b: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        sampler: "Shuffled | None" = None,
    ) -> "Loader":
        return Loader(
            rows,
            b,
            accumulate,
            rank,
            world,
            sampler=sampler,
            collate_fn=functools.partial(mycollate, pad=self.tokenizer.pad),
            num_workers=self.data_workers,
            persistent_workers=self.data_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else every pass would take a number from the one that dropout draws from
        )

    def prompts(self, n: int) -> list[Prompt]:
        """What stands before the first scored token in the first `n` validation samples of a task."""
        assert isinstance(self.data, TaskData), "text has no prompts"
        return self.data.prompts(n)

    def show_sample(self, i: int, split: str = "train") -> None:
        """Prints row i of a split; in tasks the scored part stands between « and »."""
        print(f"{split} {i}: {self.text_of(self.rows(split)[i])}")

    def text_of(self, row: Row) -> str:
        return self.tokenizer.decode(row.ids) if self.task is None else self.marked_text(row)

    def marked_text(self, row: Row) -> str:
        """Its scored parts stand between « and »."""
        spans = groupby(zip(row.ids, row.scored, strict=True), key=lambda token: token[1])
        texts = [(self.tokenizer.decode(i for i, _ in span), scored) for scored, span in spans]
        return " ".join(f"«{text}»" if scored else text for text, scored in texts if text)


def batched(indices: range, n: int) -> Iterator[range]:
    """Yield `indices` in portions of up to `n`."""
    return (indices[first : first + n] for first in range(0, len(indices), n))


class Shuffled(Sampler[int]):
    """All rows in an order that is a function of (seed, epoch); epochs count themselves unless they are set."""

    def __init__(self, n_rows: int, seed: int, epoch: int = 0, left_out: int = 0) -> None:
        self.n_rows = n_rows
        self.seed = seed
        self.epoch = epoch
        self.left_out = left_out  # rows at the beginning of the first pass

    def __len__(self) -> int:
        return self.n_rows

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_rows)
        left_out, self.left_out = self.left_out, 0
        self.epoch += 1
        return map(int, order[left_out:])


class Loader(DataLoader):
    """Draws the rows of a whole optimiser step together and hands them out in batches of `b`.

    Each of `world` processes draws the same rows and hands out its own batches of them.
    """

    def __init__(
        self, rows: TaskRows | TextRows, b: int, accumulate: int, rank: int, world: int, **options
    ) -> None:
        super().__init__(rows, b * accumulate * world, **options)
        self.b = b
        self.rank = rank
        self.world = world
        self.whole = accumulate * world == 1  # a step is one batch
        self.n_batches = -(-len(rows) // (b * world))

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self):
        steps = super().__iter__()
        if self.whole:
            return steps
        return (part for step in steps for part in parts(step, self.b, self.rank, self.world))
