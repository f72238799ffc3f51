"""A corpus as rows of tokens, split by document, tokenized once and cached.   Shape suffixes:  B row  T position"""

import functools
import json
import random
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from data.batch import Block, Row
from data.cache import cached, changed_fields
from data.corpora import corpus_fingerprint, log_once, read_corpus
from data.data_params import DataParams
from data.held_out import keep_documents
from data.tokenizer import Tokenizer, TokenizerSpec, make_tokenizer, recipes, spec_identity

CHARS_AT_ONCE = 1 << 18  # characters to tokenize together; a longer document is cut into pieces


class Documents:
    """The documents of a corpus by split, in an unnamed temporary file, so that memory holds one at a time.

    The splits are those of a run or, with `own_splits`, only those that the corpus itself has.
    """

    def __init__(self, data_params: DataParams, folder: Path, *, own_splits: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- lives as long as this object
        self.ends = array("Q", [0])
        self.hashes = array("q")  # of each document, to find those that occur again
        own: dict[str, range] = {}
        for split, documents in read_corpus(data_params.label, data_params.debug_crop, data_params).items():
            first = len(self.ends) - 1
            for document in documents:
                text = document.encode()
                self.ends.append(self.ends[-1] + self.file.write(text))
                self.hashes.append(document_hash(text))
            own[split] = range(first, len(self.ends) - 1)
        self.indices = {**own} if own_splits else split_by_document(own, data_params)

    def read(self, split: str) -> Iterator[str]:
        return self.read_all(self.indices[split])

    def read_all(self, indices: Iterable[int]) -> Iterator[str]:
        """Yield the documents of these indices."""
        for i in indices:
            self.file.seek(self.ends[i])
            yield self.file.read(self.ends[i + 1] - self.ends[i]).decode()

    def hashes_of(self, split: str) -> list[int]:
        return [self.hashes[i] for i in self.indices[split]]

    def n_in_training(self, split: str) -> int:
        """Count the documents of a split that the training split contains too, without empty ones."""
        return self.count_among(split, np.array(self.hashes_of("train"), np.int64))

    def count_among(self, split: str, others: np.ndarray) -> int:
        """Count the documents of a split whose hashes are among `others`, without empty ones."""
        hashes = np.array(self.hashes, np.int64)
        lengths = np.diff(np.array(self.ends, np.int64))
        here = np.array(self.indices[split], np.int64)
        return int(np.isin(hashes[here[lengths[here] > 0]], others).sum())


def document_hash(text: bytes) -> int:
    """Return a 64-bit hash of a document in UTF-8."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big", signed=True)


def split_by_document(own: dict[str, range], data_params: DataParams) -> dict[str, list[int] | range]:
    """Return the document indices of each split.

    `own` are the splits of the corpus itself, which stay as they are. Missing splits are drawn from its training
    documents. Raise ValueError if no training document is left.
    """
    train = own.get("train", range(0))
    splits: dict[str, list[int] | range] = dict(own)
    sizes: dict[str, int] = {}
    for split in ("val", "test"):
        if split in own:
            continue
        pct = data_params.val_pct if split == "val" else data_params.test_pct
        sizes[split] = max(1, round(len(train) * pct / 100)) if pct and train else 0
    if train and sum(sizes.values()) >= len(train):
        raise too_few_documents(len(train), data_params)
    n_held_out = sum(sizes.values())
    held_out = random.Random(data_params.data_seed).sample(train, n_held_out) if n_held_out else []
    for split, size in sizes.items():
        splits[split] = sorted(held_out[:size])
        held_out = held_out[size:]
    left_out = {i for split in sizes for i in splits[split]}
    splits["train"] = [i for i in train if i not in left_out]
    return splits


def too_few_documents(n: int, data_params: DataParams) -> ValueError:
    return ValueError(
        f"dataset_name={data_params.dataset_name!r} with debug_crop={data_params.debug_crop} has only {n} documents, too few "
        f"to split by val_pct={data_params.val_pct} and test_pct={data_params.test_pct}"
    )


def text_source(data_params: DataParams) -> tuple[str, tuple[tuple[str, object], ...]]:
    """Return everything that the documents of a split depend on: a digest of the text, and the fields that are set."""
    return corpus_fingerprint(data_params.label), changed_fields(data_params)


def text_tokenizer(
    spec: TokenizerSpec, source: tuple, texts: Callable[[], Iterator[str]], cache: Path
) -> Tokenizer:
    """Return the tokenizer of `spec`, made from training texts if it depends on them. `source` identifies the texts."""

    def build(folder: Path) -> None:
        make_tokenizer(spec, texts).save(folder)

    if spec.source not in recipes and not spec.crop:  # independent of the training text
        return make_tokenizer(spec, list)
    return Tokenizer.load(cached(cache, "tokenizer", (spec, source, spec_identity(spec)), build))


class TextData:
    """The tokens of each split of a corpus, cached on disk, and the tokenizer."""

    def __init__(
        self,
        data_params: DataParams,
        spec: TokenizerSpec,
        cache: Path,
        tokenizer: Tokenizer | None = None,
        documents: Callable[[], Documents] | None = None,
    ) -> None:
        self.data_params = data_params
        self.cache = cache
        read = functools.cache(lambda: Documents(data_params, cache))
        self.documents = documents or read
        self.source = text_source(data_params)
        self.content = self.source[0]  # changes when the text changes
        self.tokenizer = tokenizer or text_tokenizer(
            spec, self.source, lambda: self.documents().read("train"), cache
        )
        self.val = self.tokens("val")
        self.train = self.tokens("train")
        self.chance: float = self.val.chance
        self.val_bytes: int = self.val.n_bytes
        self.val_unknown_bytes: int = self.val.unscored_bytes(data_params.packed is not False)
        read.cache_clear()  # frees the disk space of the temporary file
        self.log_flaws()

    def has_text(self, dataset_name: object) -> bool:
        """Return whether this is the text that is trained on: then its validation split is not."""
        return dataset_name == self.data_params.dataset_name

    def training_hashes(self) -> set[int]:
        """Return the hashes of the training documents."""
        return set(Documents(self.data_params, self.cache).hashes_of("train"))

    def log_flaws(self) -> None:
        """Log the flaws of a text that limit the meaning of its validation loss, once for each text."""
        n, about = len(self.val.starts), f"dataset_name={self.data_params.dataset_name!r}"
        if self.val.n_in_training:
            log_once(
                f"{about}: {self.val.n_in_training} of {n} validation documents are in the training split too, so the "
                "validation loss says less about new text"
            )
        if self.val.n_empty:
            log_once(f"{about}: {self.val.n_empty} of {n} validation documents have no token")

    def tokens(self, split: str) -> "Tokens":
        def build(folder: Path) -> None:
            n_in_training = 0 if split == "train" else self.documents().n_in_training(split)
            documents = self.documents().read(split)
            kept = keep_documents(documents, folder) if split == "val" else documents
            write_tokens(kept, self.tokenizer, folder, n_in_training)

        key = (self.source, self.tokenizer.fingerprint, split)
        return read_tokens(cached(self.cache, "tokens", key, build))

    @property
    def held_out_text(self) -> tuple[str, str]:
        """The hash of the validation documents, and the folder of the cache that holds them."""
        return self.val.text, self.val.folder.name

    def rows(self, split: str, max_seq_len: int) -> "TextRows":
        tokens = {"train": self.train, "val": self.val}.get(split) or self.tokens(split)
        return TextRows(tokens, self.tokenizer, max_seq_len, packed=self.data_params.packed is not False)


class Tokens(NamedTuple):
    """The memory-mapped token ids [N] of a split and the index of each document's first token."""

    ids: np.ndarray
    starts: np.ndarray
    n_bytes: int  # of the text, in UTF-8
    chance: float  # share of the most common token among those to be predicted
    n_unknown_bytes: int = 0  # bytes that unknown tokens cover
    n_first_bytes: int = 0  # bytes of the first tokens of documents without bos
    n_empty: int = 0  # documents without a token
    n_in_training: int = 0  # documents that the training split contains too; 0 for that split itself
    text: str = ""  # hash of the documents
    folder: Path = Path()  # from which they were read

    def unscored_bytes(self, packed: bool) -> int:
        """Return the bytes that the loss does not cover: those of unknown tokens and of unscored first ones.

        A packed row continues the previous one, so only unpacked documents have an unscored first token.
        """
        return self.n_unknown_bytes + (0 if packed else self.n_first_bytes)


class Piece(NamedTuple):
    """A document, or a part of one."""

    text: str
    first: bool
    last: bool


def write_tokens(
    documents: Iterable[str], tokenizer: Tokenizer, folder: Path, n_in_training: int = 0
) -> None:
    """Write the ids of all documents, and facts about them, to `folder`: bos, document, eos, bos, document, eos ...

    If bos and eos are the same id, one separates the documents. A tokenizer without bos puts nothing before a document.
    `n_in_training` is stored for `Tokens`.
    """
    dtype = np.dtype(np.uint16 if tokenizer.n_tokens <= 1 << 16 else np.uint32)
    separate = tokenizer.bos != tokenizer.eos
    counts = np.zeros(tokenizer.n_tokens, np.int64)
    starts, position, text = array("Q"), 0, blake2b(digest_size=10)
    facts: dict[str, Any] = dict.fromkeys(("n_bytes", "n_unknown_bytes", "n_first_bytes", "n_empty"), 0)
    with (folder / "tokens.bin").open("wb") as file:
        for batch in batches(documents):
            ids: list[int] = []
            for piece, encoded in zip(
                batch, tokenizer.encode_batch([text for text, _, _ in batch]), strict=True
            ):
                if piece.first:
                    starts.append(position + len(ids))
                    ids += tokenizer.begin
                    facts["n_first_bytes"] += 0 if tokenizer.begin else tokenizer.first_bytes(piece.text)
                ids += encoded
                if piece.last and separate:
                    ids += tokenizer.end
                encoded_text = piece.text.encode()
                text.update(encoded_text + b"\0" * piece.last)
                facts["n_bytes"] += len(encoded_text)
                facts["n_unknown_bytes"] += tokenizer.unknown_bytes(piece.text, encoded)
                facts["n_empty"] += piece.first and piece.last and not encoded
            position += file.write(np.array(ids, dtype).tobytes()) // dtype.itemsize
            counts += np.bincount(ids, minlength=tokenizer.n_tokens)
        if position and not separate:
            file.write(np.array(tokenizer.end, dtype).tobytes())
    if separate:
        counts[tokenizer.begin] = 0  # never scored
    chance = float(counts.max() / max(1, counts.sum()))
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    facts |= {"dtype": dtype.name, "chance": chance, "n_in_training": n_in_training, "text": text.hexdigest()}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def batches(documents: Iterable[str]) -> Iterator[list[Piece]]:
    """Yield documents, or pieces of long ones, in lists of about CHARS_AT_ONCE characters to tokenize together."""
    batch: list[Piece] = []
    size = 0
    for document in documents:
        for piece in cut_document(document):
            batch.append(piece)
            size += len(piece.text) + 1
            if size >= CHARS_AT_ONCE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def cut_document(document: str) -> Iterator[Piece]:
    """Cut a document into pieces of up to CHARS_AT_ONCE characters, if possible before a space: a word boundary."""
    start = 0
    while len(document) - start > CHARS_AT_ONCE:
        cut = document.rfind(" ", start + 1, start + CHARS_AT_ONCE)
        cut = cut if cut > 0 else start + CHARS_AT_ONCE
        yield Piece(document[start:cut], start == 0, False)
        start = cut
    yield Piece(document[start:], start == 0, True)


def read_tokens(folder: Path) -> Tokens:
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    dtype, file = np.dtype(facts["dtype"]), folder / "tokens.bin"
    ids = np.asarray(np.memmap(file, dtype, mode="r")) if file.stat().st_size else np.zeros(0, dtype)
    del facts["dtype"]
    return Tokens(ids, np.load(folder / "starts.npy"), **facts, folder=folder)


class TextRows(Dataset):
    """Rows of up to max_seq_len + 1 tokens.

    The last token of a row is the first token of the next, so each token is predicted once. With `packed`, a row may
    continue with the next document. Otherwise each document has its own rows.
    """

    def __init__(self, tokens: Tokens, tokenizer: Tokenizer, max_seq_len: int, packed: bool) -> None:
        self.ids = tokens.ids
        self.stride = max_seq_len
        self.pad = tokenizer.pad
        self.unscored = -1 if tokenizer.bos in (None, tokenizer.eos) else tokenizer.bos
        overlap = tokenizer.bos == tokenizer.eos  # neighbors share the separator
        starts = tokens.starts[: 1 if packed else None]
        self.starts = starts
        self.ends = np.append(starts[1:] + overlap, len(self.ids))[: len(starts)]
        rows = -(-(self.ends - self.starts - 1) // self.stride)
        self.first_row = np.append(0, np.cumsum(rows))  # of each document, and the number of all

    def __len__(self) -> int:
        return int(self.first_row[-1])

    def __getitems__(self, indices: list[int]) -> Block:
        rows_B = np.array(indices)
        document_B = np.searchsorted(self.first_row, rows_B, side="right") - 1
        start_B = self.starts[document_B] + (rows_B - self.first_row[document_B]) * self.stride
        length_B = np.minimum(self.ends[document_B] - start_B, self.stride + 1)
        offset_T = np.arange(length_B.max())
        mask_BT = offset_T < length_B[:, None]
        x_BT = self.ids[np.minimum(start_B[:, None] + offset_T, len(self.ids) - 1)].astype(np.int64)
        x_BT[~mask_BT] = self.pad
        target_mask_BT = mask_BT & (x_BT != self.unscored)
        target_mask_BT[:, 0] = False
        return Block(x_BT, mask_BT, target_mask_BT)

    def __getitem__(self, i: int) -> Row:
        block = self.__getitems__([range(len(self))[i]])
        return Row(block.x_BT[0].tolist(), block.target_mask_BT[0].tolist())
