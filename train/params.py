"""Params: the three dataclasses that say everything about a run. Imports nothing heavy."""

from dataclasses import fields, replace
from typing import Any, NamedTuple

from data.data_params import DataParams
from model.model_params import ModelParams
from train.train_params import TrainParams

SECTIONS = {cls.__name__: cls for cls in (DataParams, TrainParams, ModelParams)}
SECTION_OF = {field.name: name for name, cls in SECTIONS.items() for field in fields(cls)}


class Params(NamedTuple):
    """What a run reads, how it trains, and what it trains."""

    data: DataParams
    train: TrainParams
    model: ModelParams

    def changed(self, **values: Any) -> "Params":
        """A copy with other values for some fields of any of the three, checked like all params."""
        parts = ({k: v for k, v in values.items() if SECTION_OF[k] == type(part).__name__} for part in self)
        return Params(*(replace(part, **own) for part, own in zip(self, parts, strict=True)))

    def flat(self) -> dict[str, Any]:
        """All fields by name; no name occurs in two classes."""
        return {key: value for part in self for key, value in vars(part).items() if key in SECTION_OF}
