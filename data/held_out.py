"""HeldOut: what the validation loss of a run was measured on, so that runs of different code can be compared."""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

DOCUMENTS = "documents.jsonl.gz"  # in the cache folder of a validation split
FOLDER = re.compile("tokens-[0-9a-f]{20}")


class HeldOut(NamedTuple):
    """Hashes of a validation split. They are equal in two runs whose validation losses were measured on the same samples."""

    rows: str = ""  # token ids and scored positions of all rows
    vocabulary: str = ""
    text: str = ""  # the documents before they were tokenized; empty for a task
    folder: str = ""  # the folder in the cache that holds these documents; empty for a task


def keep_documents(documents: Iterable[str], folder: Path) -> Iterator[str]:
    """Yield documents, and write them to a cache folder, in which `read_documents` finds them."""
    with gzip.open(folder / DOCUMENTS, "wt", encoding="utf-8", compresslevel=1) as file:
        for document in documents:
            file.write(json.dumps(document) + "\n")
            yield document


def read_documents(cache: Path, folder: str) -> list[str] | None:
    """Return the documents kept in this folder of the cache, or None if there are none."""
    path = cache / folder / DOCUMENTS
    if (
        not FOLDER.fullmatch(folder) or not path.is_file()
    ):  # the name comes from a run folder, which may be anybody's
        return None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [str(json.loads(line)) for line in file]
