"""Data loading, from DataParams to batches: get_data, LMDataModule, loaders.

See data/batch.py for the content of a batch.
"""

import copy
import functools
from collections.abc import Iterator
from hashlib import blake2b
from itertools import groupby, product
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from data.batch import Row, mycollate, parts
from data.data_params import DataParams, column_of_part
from data.eval_sets import EvalTask, EvalText, eval_data, set_heading
from data.held_out import HeldOut
from data.mixture import MixtureData, MixtureRows
from data.problems import args_problems
from data.syntheticdata import Task, tasks
from data.task_rows import TaskData, TaskPrompt, TaskRows
from data.text_rows import TextData, TextRows
from data.tokenizer import Tokenizer, TokenizerSpec

SplitRows = TaskRows | TextRows | MixtureRows
__all__ = ["DataParams", "LMDataModule", "TokenizerSpec", "get_data", "mycollate"]


def get_data(
    data_params: DataParams, tokenizer_spec: TokenizerSpec, cache: Path, tokenizer: Tokenizer | None = None
) -> TaskData | TextData | MixtureData:
    """Load the splits of a task, a corpus or a mixture of corpora.

    Use `tokenizer` if given, else make one from `tokenizer_spec`. Files are cached in `cache`. Raise ValueError for
    invalid params or unreadable text.
    """
    task = task_of(data_params)
    if task is not None:
        # A saved run may have arguments that its task no longer takes.
        for problem in args_problems(task, data_params):
            raise ValueError(problem)
        return TaskData(task, data_params, cache, tokenizer)
    if data_params.shares:
        return MixtureData(data_params, tokenizer_spec, cache, tokenizer)
    return TextData(data_params, tokenizer_spec, cache, tokenizer)


def task_of(data_params: DataParams) -> Task | None:
    """Return the registered task, or None for text."""
    return None if data_params.shares else tasks.get(data_params.label)


class LMDataModule:
    """The data of a run: its tokenizer, and loaders of the splits "train", "val" and "test".

    `task` is the registered Task, or None for text. `chance` is the chance level of the accuracy on scored tokens,
    from 0 to 1. `val_bytes` is the UTF-8 size of the validation text, or None for tasks; unknown tokens cover
    `val_unknown_bytes` of it. With `mask` the tokenizer has a mask token.
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
        self.task = task_of(data_params)
        self.data_params = data_params
        self.cache = Path(cache)
        self.get_data = functools.partial(
            get_data, data_params.training_data(), tokenizer_spec, self.cache, tokenizer
        )
        self.datasets: dict[str, SplitRows] = {}
        own = tokenizer or self.data.tokenizer
        self.tokenizer = own.with_mask() if mask else own

    @functools.cached_property
    def data(self) -> TaskData | TextData | MixtureData | EvalTask | EvalText:
        """The data set, loaded on first use.

        A saved run has its own tokenizer, so opening it reads no text, and works even if the text is gone.
        """
        return self.get_data()

    @functools.cached_property
    def eval_sets(self) -> dict[str, "LMDataModule"]:
        """The evaluation sets by name: each is the split "val" of a data module."""
        return {name: self.eval_set(name) for name in self.data_params.eval_sets}

    def eval_set(self, name: str) -> "LMDataModule":
        """Return the data module of an evaluation set, in the tokens of the run. Raise ValueError if it is empty."""
        assert isinstance(self.data, TaskData | TextData | MixtureData), (
            "an evaluation set has none of its own"
        )
        return self.module_of(eval_data(self.data_params, name, self.data, self.cache, self.tokenizer))

    @functools.cached_property
    def parts(self) -> dict[str, "LMDataModule"]:
        """The texts of a mixture, by their names in columns such as val_loss[sotu]; empty for other data."""
        found = self.data.parts if isinstance(self.data, MixtureData) else {}
        return {column_of_part(name): self.module_of(part) for name, part in found.items()}

    @property
    def shares(self) -> dict[str, float]:
        """The share of each of `parts` in the rows of training and in the validation loss; their sum is 1."""
        return {column_of_part(name): share for name, share in self.data_params.shares.items()}

    def module_of(self, data: TextData | EvalTask | EvalText) -> "LMDataModule":
        """Return the data module of an evaluation set or of one text of a mixture."""
        module = copy.copy(self)
        # The copy must not keep what this module has cached.
        for name in ("parts", "eval_sets"):
            vars(module).pop(name, None)
        module.data, module.data_params, module.datasets = data, data.data_params, {}
        module.dataset_name = data.data_params.dataset_name
        module.task, module.data_workers = task_of(data.data_params), 0
        return module

    @property
    def n_dropped(self) -> int:
        """Number of samples of an evaluation set that were left out, because they occur in training."""
        return self.data.n_dropped if isinstance(self.data, EvalTask | EvalText) else 0

    @property
    def chance(self) -> float:
        return self.data.chance

    @property
    def content(self) -> str:
        """A digest of all text. Empty for a task: its params and code determine its samples."""
        return " ".join([self.data.content, *(data.content for data in self.eval_sets.values())]).strip()

    @property
    def val_bytes(self) -> int | None:
        return self.data.val_bytes

    @property
    def val_unknown_bytes(self) -> int:
        return self.data.val_unknown_bytes

    def rows(self, split: str) -> SplitRows:
        """Return the rows of "train", "val" or "test" as a torch Dataset, made on first use."""
        if split not in self.datasets:
            self.datasets[split] = self.data.rows(split, self.max_seq_len)
        return self.datasets[split]

    def n_rows(self, split: str) -> int:
        return len(self.rows(split))

    def check_scored(self) -> None:
        """Raise ValueError if the training split, the validation split or an evaluation set has no scored token."""
        for split, name in (("train", "training"), ("val", "validation")):
            if not self.is_scored(split):
                objective = " and objective='masked'" if self.masked else ""
                raise ValueError(
                    f"dataset_name={self.dataset_name!r} with max_seq_len={self.max_seq_len}{objective}: no token of the "
                    f"{name} split is scored, so there is no {name} loss; use longer rows, or samples with scored tokens"
                )

        for (name, part), split in product(self.parts.items(), ("train", "val")):
            if not part.is_scored(split):
                raise ValueError(f"dataset_name={{{name!r}: ...}}: no token of its split {split!r} is scored")
        for name, data in self.eval_sets.items():
            if not data.is_scored("val"):
                raise ValueError(f"{set_heading(self.data_params, name)}: no token is scored")

    def is_scored(self, split: str) -> bool:
        """Return whether any token of the split is scored. An empty text has none."""
        if split == "val" and self.val_bytes == 0:
            return False
        rows = self.rows(split)
        width = self.max_seq_len if self.masked else None  # a masked model does not get the last position
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
        """Return a loader of batches of `b` rows, shuffled by `seed` and the epoch.

        A step takes `accumulate` batches in each of `world` processes. The loader is for process `rank`. To resume
        within an epoch, the first pass is that of `epoch` and skips `batches` batches, a multiple of `accumulate`.
        """
        rows = self.rows("train")
        left_out = batches * b * world
        if isinstance(rows, MixtureRows):
            order: Shuffled = ShuffledMixture(rows, seed, epoch, left_out)
        else:
            order = Shuffled(len(rows), seed, epoch, left_out)
        return self.loader(rows, b, accumulate, rank, world, order)

    def val_dataloader(self, b: int) -> "Loader":
        return self.loader(self.rows("val"), b)

    def test_dataloader(self, b: int) -> "Loader":
        return self.loader(self.rows("test"), b)

    def loader(
        self,
        rows: SplitRows,
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
            # Without this generator, every pass would draw from the global one and so change dropout.
            generator=torch.Generator(),
        )

    def held_out(self) -> HeldOut:
        """Return hashes of the validation split. This reads all its rows."""
        rows, found = self.rows("val"), blake2b(digest_size=10)
        for indices in batched(range(len(rows)), 256):
            batch = mycollate(rows.__getitems__(list(indices)), pad=self.tokenizer.pad)
            for name in sorted(batch):
                found.update(batch[name].numpy().tobytes())
        return HeldOut(found.hexdigest(), self.tokenizer.fingerprint, *self.data.held_out_text)

    @property
    def reference_loss(self) -> float | None:
        """The loss in nats of the best predictor of a task that knows one, on the validation split."""
        return self.data.reference_loss if isinstance(self.data, TaskData) else None

    @property
    def hides_answers(self) -> bool:
        """True for a task with answers that the model does not see."""
        return isinstance(self.data, TaskData) and self.data.hides_answers

    def prompts(self, n: int) -> list[TaskPrompt]:
        """Return the prompts of the first `n` validation samples of a task: the tokens before the first scored one."""
        assert isinstance(self.data, TaskData), "text has no prompts"
        return self.data.prompts(n)

    def slices(self, split: str) -> dict[str, list[int]]:
        """Return the value of each sample of a task's split, by the name of the slice. Text has no slices."""
        return self.data.slices(split) if isinstance(self.data, TaskData) else {}

    def show_sample(self, i: int, split: str = "train") -> None:
        """Print row i of a split, with « and » around the scored part of a task."""
        print(f"{split} {i}: {self.text_of(self.rows(split)[i])}")

    def text_of(self, row: Row) -> str:
        """Return the text of a row, with « and » around the scored parts of a task."""
        return self.tokenizer.decode(row.ids) if self.task is None else self.marked_text(row)

    def marked_text(self, row: Row) -> str:
        """Return the text of a row with « and » around its scored parts."""
        spans = groupby(zip(row.ids, row.scored, strict=True), key=lambda token: token[1])
        texts = [(self.tokenizer.decode(i for i, _ in span), scored) for scored, span in spans]
        return " ".join(f"«{text}»" if scored else text for text, scored in texts if text)


def batched(indices: range, n: int) -> Iterator[range]:
    """Yield `indices` in ranges of up to `n`."""
    return (indices[first : first + n] for first in range(0, len(indices), n))


class Shuffled(Sampler[int]):
    """Sampler of all rows in an order that depends only on (seed, epoch). Every pass advances the epoch by one."""

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
        order = self.order()
        left_out, self.left_out = self.left_out, 0
        self.epoch += 1
        return map(int, order[left_out:])

    def order(self) -> np.ndarray:
        """Return the rows of the epoch in their order."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.n_rows)


class ShuffledMixture(Shuffled):
    """Sampler of a mixture. An epoch has as many rows as all texts together, and each text fills its share of them."""

    def __init__(self, rows: MixtureRows, seed: int, epoch: int = 0, left_out: int = 0) -> None:
        super().__init__(len(rows), seed, epoch, left_out)
        self.rows = rows

    def order(self) -> np.ndarray:
        return self.rows.epoch_order(self.seed, self.epoch)


class Loader(DataLoader):
    """Loader that collates the rows of a full optimizer step together and yields them in batches of `b`.

    Each of `world` processes draws the same rows and yields its own batches of them.
    """

    def __init__(self, rows: SplitRows, b: int, accumulate: int, rank: int, world: int, **options) -> None:
        super().__init__(rows, b * accumulate * world, **options)
        self.b = b
        self.rank = rank
        self.world = world
        self.step_is_batch = accumulate * world == 1
        self.n_batches = -(-len(rows) // (b * world))

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self):
        steps = super().__iter__()
        if self.step_is_batch:
            return steps
        return (part for step in steps for part in parts(step, self.b, self.rank, self.world))
