"""Texts that a test makes itself, under names for `dataset_name`."""

from collections.abc import Mapping, Sequence

import pytest

from data.corpora import corpora


def register_texts(patch: pytest.MonkeyPatch, texts: Mapping[str, Sequence[str]]) -> None:
    """Register each list of documents under its name, until the test ends."""
    for name, documents in texts.items():
        patch.setitem(corpora, name, lambda documents=documents: iter(documents))
