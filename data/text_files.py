"""Texts in files on this machine: .txt, .jsonl and .parquet files, by split."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from common.text import did_you_mean, first_line
from data.data_params import DataParams

# Names of splits, in files and on the hub, and those in this project.
SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
LINES = "data.txt"  # a file with a document in each line
KINDS = (".txt", ".jsonl", ".parquet")
MAX_FOLDER_DEPTH = 3  # of a file in its folder: subset/split/0000.parquet
TEXT = "text"  # the column of text if a table has several
Split = TypeVar("Split")


@dataclass(frozen=True)
class Files:
    """UTF-8 text files: each file is a document or, with `per_line`, each line that is not blank."""

    paths: list[Path]
    per_line: bool = False

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            with reading(path), path.open(encoding="utf-8-sig") as file:
                if self.per_line:
                    yield from (line.rstrip("\n") for line in file if not line.isspace())
                else:
                    yield file.read()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn OSError and UnicodeDecodeError inside the `with` block into a ValueError that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: {first_wrong_byte(path)}; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def first_wrong_byte(path: Path) -> str:
    """Return a phrase with the value, position (from 0) and line (from 1) of the first byte that is not UTF-8."""
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                at = error.start
                return f"byte 0x{line[at]:02x} at position {position + at} in line {number}"
            position += len(line)
    return "the file has changed while it was read"


@dataclass(frozen=True)
class Folder:
    """A folder of text files of one kind: .txt files, a document each, or tables in .jsonl or .parquet files."""

    path: Path
    documents: Callable[[Iterable[str]], Iterable[str]] = iter  # turns the rows of a split into documents
    column: str | None = None  # of the text, if the params name none
    # To read if the params name none. Without a folder of this name, all files are read.
    subset: str | None = None

    def read(self, params: DataParams) -> dict[str, Iterator[str]]:
        """Return the documents of each split by name: "train", "val" and "test". Raise ValueError if a file is bad."""
        subsets = [path.name for path in self.path.iterdir() if path.is_dir()]
        if params.subset is not None and params.subset not in subsets:
            raise ValueError(f"{self.path} has no folder subset={params.subset!r}; {listed(subsets)}")
        subset = params.subset or self.subset
        folder = self.path / subset if subset in subsets and subset is not None else self.path
        files = text_files(folder)
        splits = chosen_splits(files_by_split(folder, files, params.train_split), params, str(folder))
        if files[0].suffix == ".txt":
            per_line = files == [folder / LINES]
            return {name: iter(self.documents(Files(paths, per_line))) for name, paths in splits.items()}
        in_order = [*chain.from_iterable(splits.values())]
        column = column_of_files(in_order, params.text_column or self.column)
        return {name: iter(self.documents(texts_of_tables(paths, column))) for name, paths in splits.items()}


def text_files(folder: Path) -> list[Path]:
    """Return the text files in a folder and its subfolders, sorted, or only its data.txt if it has one.

    Raise ValueError if they are of several kinds.
    """
    if (folder / LINES).exists():
        return [folder / LINES]
    with reading(folder):
        files = sorted(files_in(folder))
    kinds = sorted({path.suffix for path in files})
    if len(kinds) > 1:
        examples = [next(path for path in files if path.suffix == kind) for kind in kinds]
        names = " and ".join(path.relative_to(folder).as_posix() for path in examples)
        raise ValueError(f"{folder} has files of several kinds, {names}: keep those of one kind")
    return files


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files with an ending of KINDS, up to MAX_FOLDER_DEPTH folders deep. Hidden files do not count."""
    for depth in range(MAX_FOLDER_DEPTH):
        for path in folder.glob("*/" * depth + "*.*"):
            is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.suffix in KINDS and not is_hidden and path.is_file():
                yield path


def has_text(folder: Path) -> bool:
    """Return whether there is a text in this folder."""
    return (folder / LINES).exists() or any(True for _ in files_in(folder))


def files_by_split(folder: Path, files: Iterable[Path], train_split: str | None) -> dict[str, list[Path]]:
    """Return the files of each split, by the name of the split. Without such names all files are "train".

    Raise ValueError if some files have a split, others not.
    """
    names = [*SPLITS, *([train_split] if train_split else [])]
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(split_of(path.relative_to(folder), names), []).append(path)
    if "" in splits and len(splits) > 1:
        other = next(path for name, paths in splits.items() if name for path in paths)
        raise ValueError(
            f"{splits[''][0]} belongs to no split, but {other.relative_to(folder)} does: let the names of all files begin "
            "with train, validation or test, or none"
        )
    return {name or "train": paths for name, paths in splits.items()}


def split_of(path: Path, names: Sequence[str]) -> str:
    """Return the split of a file by its path in its folder, or "".

    The name of a folder may be one of `names`, or that of the file may begin with one, as in train-00000.parquet. The layout
    of the hub shows other splits: unsupervised-00000-of-00001.parquet or unsupervised/0000.parquet.
    """
    for part in reversed(path.parts[:-1]):
        if part in names:
            return part
    if found := re.match(f"({'|'.join(map(re.escape, names))})(?=[-_.0-9]|$)", path.stem):
        return found[1]
    if found := re.fullmatch("(.+)-[0-9]{5}-of-[0-9]{5}", path.stem):
        return found[1]
    return path.parts[-2] if path.suffix == ".parquet" and path.stem.isdigit() and len(path.parts) > 1 else ""


def chosen_splits(splits: Mapping[str, Split], params: DataParams, about: str) -> dict[str, Split]:
    """Return the splits by the names of this project, "train" first. Raise ValueError if there is none to read.

    `params.train_split` names the one to train on. The default is "train", or the only split unless it is named like
    one for validation or test.
    """
    train_split = params.train_split
    if train_split is None and (
        "train" in splits or (len(splits) == 1 and not splits.keys() & SPLITS.keys())
    ):
        train_split = "train" if "train" in splits else next(iter(splits))
    if train_split is not None and train_split not in splits:
        raise ValueError(f"{about} has no split train_split={train_split!r}; {listed(splits)}")
    chosen: dict[str, Split] = {} if train_split is None else {"train": splits[train_split]}
    for name, ours in SPLITS.items():
        if name in splits and name != train_split and ours != "train":
            chosen.setdefault(ours, splits[name])
    if not chosen:
        raise ValueError(f"{about} has no split 'train'; {listed(splits)}: set train_split")
    return chosen


def listed(names: Iterable[str]) -> str:
    return f"there are: {', '.join(sorted(names)) or 'none'}"


def choose_column(is_text: Mapping[str, bool], chosen: str | None, about: str) -> str:
    """Return the column of text. `is_text` says of each column whether it holds text.

    Without a `chosen` one it is "text" or the only one with text. Raise ValueError if there is no such column.
    """
    if chosen is not None:
        if chosen not in is_text:
            raise ValueError(
                f"{about} has no column {chosen!r}; {did_you_mean(chosen, is_text, list_all=True)}"
            )
        return chosen
    texts = [name for name, holds_text in is_text.items() if holds_text]
    if TEXT in texts or len(texts) == 1:
        return TEXT if TEXT in texts else texts[0]
    if texts:
        raise ValueError(f"{about} has several columns of text, {', '.join(texts)}: set text_column")
    raise ValueError(f"{about} has no column of text; {listed(is_text)}")


def column_of_files(files: Iterable[Path], chosen: str | None) -> str:
    """Return the column of text of tables, from the first one that has rows. Raise ValueError if there is none."""
    for path in files:
        columns = columns_of_parquet(path) if path.suffix == ".parquet" else columns_of_jsonl(path)
        if columns:
            return choose_column(columns, chosen, str(path))
    return chosen or TEXT


def texts_of_tables(files: Iterable[Path], column: str) -> Iterator[str]:
    """Yield the texts in a column of tables, one after the other."""
    for path in files:
        yield from (parquet_texts if path.suffix == ".parquet" else jsonl_texts)(path, column)


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the number of each line that is not blank, and its object. Raise ValueError for a line without one."""
    with reading(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not JSON: {first_line(error)}") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f'{path}:{number}: {type_name(row)}, but each line must be an object such as {{"text": "..."}}'
                )
            yield number, row


def columns_of_jsonl(path: Path) -> dict[str, bool]:
    """Return the names in the first object, and whether they hold text; none for an empty file."""
    return next(
        ({name: isinstance(value, str) for name, value in row.items()} for _, row in jsonl_rows(path)), {}
    )


def jsonl_texts(path: Path, column: str) -> Iterator[str]:
    for number, row in jsonl_rows(path):
        if column not in row:
            raise ValueError(f"{path}:{number}: there is no {column!r}; {listed(row)}")
        text = row[column]
        if not isinstance(text, str):
            raise ValueError(f"{path}:{number}: column {column!r} holds {type_name(text)}, not text")
        # JSON can write half of a character, which UTF-8 cannot.
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{path}:{number}: column {column!r} holds half of a surrogate pair, not text"
            ) from None
        yield text


def columns_of_parquet(path: Path) -> dict[str, bool]:
    """Return the names of the columns, and whether they hold text."""
    from pyarrow import parquet

    with parquet_errors(path), parquet.ParquetFile(path) as file:
        return {field.name: is_text_type(field.type) for field in file.schema_arrow}


def is_text_type(kind: object) -> bool:
    """Return whether an Arrow type is that of strings, or of strings each of which is stored once."""
    from pyarrow import DictionaryType

    kind = kind.value_type if isinstance(kind, DictionaryType) else kind
    return str(kind) in ("string", "large_string", "string_view")


def parquet_texts(path: Path, column: str) -> Iterator[str]:
    from pyarrow import parquet

    row = 0
    with parquet_errors(path), parquet.ParquetFile(path) as file:
        choose_column(dict.fromkeys(file.schema_arrow.names, True), column, str(path))
        for batch in file.iter_batches(columns=[column]):
            for value in batch.column(0):
                row += 1
                try:
                    text = value.as_py()
                except UnicodeDecodeError:
                    raise ValueError(f"{path}, row {row}: column {column!r} is not UTF-8 text") from None
                if not isinstance(text, str):
                    raise ValueError(
                        f"{path}, row {row}: column {column!r} holds {type_name(text)}, not text"
                    )
                yield text


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn the errors of pyarrow inside the `with` block into a ValueError that names the file."""
    from pyarrow import ArrowException

    try:
        with reading(path):
            yield
    except ArrowException as error:
        raise ValueError(f"{path} is no parquet file, or damaged: {first_line(error)}") from None


def type_name(value: object) -> str:
    return "null" if value is None else type(value).__name__
