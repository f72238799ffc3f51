"""A mixture: rows of several texts in one vocabulary, drawn by weights.   Shape suffixes:  P text"""

import functools
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from data.batch import Block, Row
from data.cache import cached, changed_fields
from data.corpora import log_once
from data.data_params import DataParams
from data.text_rows import Documents, TextData, TextRows, text_source, text_tokenizer
from data.tokenizer import Tokenizer, TokenizerSpec


class MixtureData:
    """The texts of a mixture, each a TextData with splits of its own, and their common tokenizer.

    The tokenizer is made from the training documents of all texts, each taken once.
    """

    held_out_text = "", ""  # the validation documents of a mixture are not kept

    def __init__(
        self, data_params: DataParams, spec: TokenizerSpec, cache: Path, tokenizer: Tokenizer | None = None
    ) -> None:
        self.data_params = data_params
        self.shares = data_params.shares
        params = {name: data_params.part_params(name) for name in self.shares}
        # Each text is read at most once, and only if something is not in the cache.
        self.documents = {
            name: functools.cache(functools.partial(Documents, params[name], cache)) for name in params
        }
        sources = [text_source(part) for part in params.values()]
        self.tokenizer = tokenizer or text_tokenizer(
            spec,
            (*sources,),
            lambda: chain.from_iterable(documents().read("train") for documents in self.documents.values()),
            cache,
        )
        self.parts = {
            name: TextData(params[name], spec, cache, self.tokenizer, self.documents[name]) for name in params
        }
        self.content = " ".join(part.content for part in self.parts.values())
        self.source = self.content, changed_fields(data_params)
        self.log_shared_documents(sources, cache)
        self.clear_documents()
        self.chance = self.share_of_most_common()
        self.val_bytes = sum(part.val_bytes for part in self.parts.values())
        self.val_unknown_bytes = sum(part.val_unknown_bytes for part in self.parts.values())

    def clear_documents(self) -> None:
        """Free the disk space of the temporary files."""
        for documents in self.documents.values():
            documents.cache_clear()

    def has_text(self, dataset_name: object) -> bool:
        """Return whether this text is part of the mixture: then its validation split is not trained on."""
        return dataset_name in self.parts

    def training_hashes(self) -> set[int]:
        """Return the hashes of all training documents."""
        found = {found for documents in self.documents.values() for found in documents().hashes_of("train")}
        self.clear_documents()
        return found

    def log_shared_documents(self, sources: list, cache: Path) -> None:
        """Log the validation documents of each text that another one trains on."""

        def build(folder: Path) -> None:
            training = {name: documents().hashes_of("train") for name, documents in self.documents.items()}
            shared = {}
            for name, documents in self.documents.items():
                others = [hashes for other, hashes in training.items() if other != name]
                shared[name] = documents().count_among("val", np.array([*chain(*others)], np.int64))
            (folder / "facts.json").write_text(json.dumps(shared), encoding="utf-8")

        folder = cached(cache, "mixture", (*sources,), build)
        for name, n in json.loads((folder / "facts.json").read_text(encoding="utf-8")).items():
            if n:
                log_once(
                    f"dataset_name={self.data_params.label!r}: {n} validation documents of {name!r} are in the training "
                    "split of another text, so the validation loss says less about new text"
                )

    def share_of_most_common(self) -> float:
        """Return the share of the most common token among those to be predicted in the mixture."""
        tokenizer, shares = self.tokenizer, np.zeros(self.tokenizer.n_tokens)
        for name, part in self.parts.items():
            counts = np.bincount(part.val.ids, minlength=tokenizer.n_tokens).astype(float)
            if tokenizer.bos != tokenizer.eos:
                counts[tokenizer.begin] = 0  # never scored
            shares += self.shares[name] * counts / max(1.0, counts.sum())
        return float(shares.max())

    def rows(self, split: str, max_seq_len: int) -> "MixtureRows":
        parts = {name: part.rows(split, max_seq_len) for name, part in self.parts.items()}
        return MixtureRows(parts, self.shares, self.tokenizer.pad)


class MixtureRows(Dataset):
    """The rows of several texts, one text after the other. Only `epoch_order` says how often each is drawn.

    Every row is of one text. Packed rows are full, so shares of rows are shares of tokens.
    """

    def __init__(self, parts: Mapping[str, TextRows], shares: Mapping[str, float], pad: int) -> None:
        self.names = [*parts]
        self.parts = [*parts.values()]
        self.share_P = np.array([shares[name] for name in parts])
        self.pad = pad
        self.first_row_P = np.cumsum([0, *map(len, self.parts)])  # then the number of all rows

    def __len__(self) -> int:
        return int(self.first_row_P[-1])

    def __getitems__(self, indices: list[int]) -> Block:
        rows_B = np.array(indices)
        part_B = np.searchsorted(self.first_row_P, rows_B, side="right") - 1
        blocks = {
            int(i): self.parts[i].__getitems__((rows_B[part_B == i] - self.first_row_P[i]).tolist())
            for i in np.unique(part_B)
        }
        shape = len(rows_B), max(block.x_BT.shape[1] for block in blocks.values())
        made = Block(np.full(shape, self.pad, np.int64), np.zeros(shape, bool), np.zeros(shape, bool))
        for i, block in blocks.items():
            width = block.x_BT.shape[1]
            made.x_BT[part_B == i, :width] = block.x_BT
            made.mask_BT[part_B == i, :width] = block.mask_BT
            made.target_mask_BT[part_B == i, :width] = block.target_mask_BT
        return made

    def __getitem__(self, i: int) -> Row:
        i = range(len(self))[i]
        part = int(np.searchsorted(self.first_row_P, i, side="right")) - 1
        return self.parts[part][i - int(self.first_row_P[part])]

    def check_shares(self) -> None:
        """Raise ValueError if a text has no rows, or a share of less than one row in an epoch."""
        for name, share, part in zip(self.names, self.share_P, self.parts, strict=True):
            reason = "" if len(part) else "it has no rows in the training split"
            if share * len(self) < 1:
                reason = f"its weight gives it less than one of the {len(self)} rows of an epoch"
            if reason:
                raise ValueError(f"dataset_name={{{name!r}: ...}}: {reason}")

    def rows_before(self, epoch: int) -> np.ndarray:
        """Return the number of rows [P] of each text that are drawn before an epoch: its share, rounded up or down."""
        n_rows = epoch * len(self)
        exact_P = self.share_P * n_rows
        drawn_P = np.floor(exact_P).astype(int)
        largest_first = np.argsort(drawn_P - exact_P, kind="stable")
        drawn_P[largest_first[: n_rows - drawn_P.sum()]] += 1
        return drawn_P

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the indices of the rows of an epoch in their order, which depends only on `seed` and `epoch`.

        Texts take turns as evenly as possible. The rows of a text come in random order, all of them before any comes
        again, across epochs too. Raise ValueError if a text has no share.
        """
        self.check_shares()
        first_P = self.rows_before(epoch)
        n_P = self.rows_before(epoch + 1) - first_P
        due = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in n_P])
        turns = np.repeat(np.arange(len(n_P)), n_P)[np.argsort(due, kind="stable")]
        order = np.empty(len(self), np.int64)
        for i, (first, n) in enumerate(zip(first_P, n_P, strict=True)):
            order[turns == i] = self.first_row_P[i] + self.drawn(i, int(first), int(n), seed)
        return order

    def drawn(self, part: int, first: int, n: int, seed: int) -> np.ndarray:
        """Return `n` rows of a text after its first `first` draws. Each pass over its rows has another random order."""
        n_rows = len(self.parts[part])
        passes = range(first // n_rows, (first + n) // n_rows + 1)
        rows = [np.random.default_rng([seed, part, one]).permutation(n_rows) for one in passes]
        start = first - passes[0] * n_rows
        return np.concatenate(rows)[start : start + n]
