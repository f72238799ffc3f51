"""Params: the three dataclasses that say everything about a run. Imports nothing heavy."""

import difflib
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from data.data_params import DataParams
from model.model_params import ModelParams
from train.train_params import TrainParams

SECTIONS = {cls.__name__: cls for cls in (DataParams, TrainParams, ModelParams)}
SECTION_OF = {field.name: name for name, cls in SECTIONS.items() for field in fields(cls)}
MEASURED = "measured_"


def column(name: str) -> str:
    """Return the column in which tables of runs keep the measured value `name`.

    A field of params keeps its own name; a measured value of the same name gets the prefix `measured_`.
    """
    while name in SECTION_OF:
        name = MEASURED + name
    return name


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """What to add to "there is no `word`": the nearest allowed names, or all of them."""
    close = difflib.get_close_matches(word, allowed := sorted(allowed), n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(allowed)}"


class Params(NamedTuple):
    """What a run reads, how it trains, and what it trains."""

    data: DataParams
    train: TrainParams
    model: ModelParams

    def changed(self, **values: Any) -> "Params":
        """A copy with other values for some fields of any of the three, checked like all params."""
        for name in values.keys() - SECTION_OF.keys():
            raise ValueError(f"there is no field {name!r}; {did_you_mean(name, SECTION_OF)}")
        own = {name: {k: v for k, v in values.items() if SECTION_OF[k] == name} for name in SECTIONS}
        return Params(
            replace(self.data, **own["DataParams"]),
            replace(self.train, **own["TrainParams"]),
            replace(self.model, **own["ModelParams"]),
        )

    def flat(self) -> dict[str, Any]:
        """All fields by name; no name occurs in two classes."""
        return {key: value for part in self.by_part().values() for key, value in part.items()}

    def by_part(self) -> dict[str, dict[str, Any]]:
        """{"data": {field: value}, "train": ..., "model": ...}"""
        parts = self._asdict().items()
        return {name: {k: v for k, v in vars(part).items() if k in SECTION_OF} for name, part in parts}


class Texts:
    """The text of params, by which equal ones are known; what many runs share is written out once."""

    def __init__(self) -> None:
        self.texts: dict[
            int, tuple[Any, str]
        ] = {}  # by id, which stays one's own as long as the object is kept

    def __call__(self, part: Any) -> str:
        if id(part) not in self.texts:
            self.texts[id(part)] = part, repr(part)
        return self.texts[id(part)][1]
