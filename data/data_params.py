"""DataParams: the data of a run, its split, and its layout in rows."""

import re
from dataclasses import field, fields, replace
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from common.text import did_you_mean

SampleCount = Annotated[PositiveInt, Field(le=10**8)]
Percent = Annotated[float, Field(ge=0, lt=100)]
EVAL_SAMPLES = 1000  # samples of an evaluation set, unless it sets n_samples
EVAL_NAME = re.compile(r"[A-Za-z]\w*([.-]\w+)*")  # a name stands in columns such as val_loss[long]
# Marks a field that only adds measurements: it changes nothing that is trained, so it is no axis of a grid.
MEASURES = "only adds measurements"


def check_eval_sets(eval_sets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return `eval_sets`. Raise ValueError for a bad name or for a field that a set cannot change."""
    allowed = sorted({one.name for one in fields(DataParams)} - measuring_fields())
    for name, changes in eval_sets.items():
        if not EVAL_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name of an evaluation set; a name has letters, digits, _, - and ., and begins with a letter"
            )
        for key in changes.keys() - set(allowed):
            raise ValueError(
                f"the evaluation set {name!r} cannot change {key!r}: it changes fields of DataParams, and keeps the run's model and "
                f"tokenizer; {did_you_mean(key, allowed, list_all=True)}"
            )
        if not isinstance(changes.get("task_args", {}), dict):
            raise ValueError(f"the evaluation set {name!r}: task_args needs a dict of arguments")
    return eval_sets


EvalSets = Annotated[dict[str, dict[str, Any]], AfterValidator(check_eval_sets), MEASURES]
EvalEvery = Annotated[PositiveInt | None, MEASURES]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class DataParams:
    dataset_name: str = "sotu"  # a corpus, a synthetic task, or a subfolder of your data folder
    task_args: dict[str, Any] = Field(default_factory=dict)  # arguments of the synthetic task's function
    n_samples: SampleCount = 100_000  # samples of a synthetic task, validation and test included
    val_pct: Annotated[Percent, Field(gt=0)] = 5.0  # percent for validation, unless the corpus has its own
    test_pct: Percent = 5.0  # percent for the test split, unless the corpus has its own; runs never read it
    debug_crop: PositiveInt | None = None  # use only this many samples, from each split that the corpus has
    packed: bool | None = None  # cut rows from one stream of samples, without padding; None: for text only
    data_seed: NonNegativeInt = 0  # seed of the split and of a task's samples
    eval_sets: EvalSets = field(default_factory=dict)  # further evaluation sets: {name: {field: value}}
    eval_every: EvalEvery = None  # validations between evaluations on eval_sets; None: only at the end

    def __post_init__(self) -> None:
        if self.val_pct + self.test_pct >= 100:
            raise ValueError(
                f"val_pct={self.val_pct} and test_pct={self.test_pct} leave no samples to train on: "
                "their sum must be under 100"
            )
        if self.eval_every is not None and not self.eval_sets:
            raise ValueError(f"eval_every={self.eval_every} needs eval_sets")
        for name in self.eval_sets:
            try:
                self.eval_params(name)
            except ValidationError as error:
                first = error.errors()[0]
                why = " ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
                raise ValueError(f"eval_sets={{{name!r}: ...}}: {why}") from None

    def training_data(self) -> "DataParams":
        """Return these params without their evaluation sets, as they do not change what is trained."""
        return replace(self, eval_sets={}, eval_every=None)

    def eval_params(self, name: str) -> "DataParams":
        """Return the params of an evaluation set: these, with the changes of the set.

        `task_args` are merged with those of the run if the task is the same. `n_samples` is EVAL_SAMPLES by default.
        """
        changes: dict[str, Any] = {"n_samples": EVAL_SAMPLES} | self.eval_sets[name]
        is_same_task = changes.get("dataset_name", self.dataset_name) == self.dataset_name
        task_args = (self.task_args if is_same_task else {}) | changes.pop("task_args", {})
        return replace(self, eval_sets={}, eval_every=None, task_args=task_args, **changes)


def measuring_fields() -> frozenset[str]:
    """Return the fields that only add measurements. They are marked in their annotations."""
    hints = get_type_hints(DataParams, include_extras=True)
    return frozenset(name for name, hint in hints.items() if MEASURES in getattr(hint, "__metadata__", ()))
