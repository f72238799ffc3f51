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
# Marks a field that says what is read of a text: each text of a mixture may have its own value.
OF_TEXT = "what is read of a text"
MIN_WEIGHT, MAX_WEIGHT = 1e-9, 1e9
WEIGHT = "weight"  # the key of a part's weight beside its fields


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


def check_dataset_name(value: str | dict[str, Any]) -> str | dict[str, Any]:
    """Return a dataset_name; a mixture with its parts in order of their weights, so that equal mixtures are equal.

    Raise ValueError for a mixture without parts and for weights that are not positive. The same goes for fields that a
    part cannot have, and for parts whose results would have the same names.
    """
    if isinstance(value, str):
        return value
    if not value:
        raise ValueError("a mixture needs at least one text and its weight, such as {'sotu': 3, 'pydoc': 1}")
    parts = {name: check_part(name, part) for name, part in value.items()}
    columns = [column_of_part(name) for name in parts]
    if len(set(columns)) < len(columns):
        raise ValueError(f"two texts of a mixture have the same name in results: {', '.join(columns)}")
    weights = {name: weight_and_fields(part)[0] for name, part in parts.items()}
    return {name: parts[name] for name in sorted(parts, key=lambda name: (-weights[name], name))}


def check_part(name: str, part: object) -> float | dict[str, Any]:
    """Return one part of a mixture in its normal form: a weight or, if it has fields of its own, a dict of weight and fields.

    Raise ValueError for an invalid weight and for a field that a part cannot have.
    """
    weight, own = weight_and_fields(part)
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise ValueError(
            f"the weight of {name!r} is {weight!r:.80}: a mixture gives each text a number from {MIN_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}, or a dict such as {{'weight': 3, 'text_column': 'title'}}"
        )
    allowed = sorted(marked_fields(OF_TEXT))
    for key in own.keys() - set(allowed):
        raise ValueError(
            f"{name!r} in a mixture cannot have {key!r}; {did_you_mean(key, [WEIGHT, *allowed], list_all=True)}"
        )
    weight = int(weight) if weight == int(weight) else weight  # 3 and 3.0 are the same run
    return {WEIGHT: weight, **{key: own[key] for key in sorted(own)}} if own else weight


def weight_and_fields(part: Any) -> tuple[Any, dict[str, Any]]:
    """Return the weight of a part of a mixture, and its own fields."""
    if not isinstance(part, dict):
        return part, {}
    return part.get(WEIGHT), {key: value for key, value in part.items() if key != WEIGHT}


def column_of_part(name: str) -> str:
    """Return the name of a text in columns such as val_loss[sotu]: "stanfordnlp-imdb" for "stanfordnlp/imdb"."""
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "text"


def dataset_label(dataset_name: object) -> str:
    """Return a dataset_name as one word, in which the texts of a mixture are joined by "+"."""
    return "+".join(dataset_name) if isinstance(dataset_name, dict) else str(dataset_name)


DatasetName = Annotated[str | dict[str, Any], AfterValidator(check_dataset_name)]
EvalSets = Annotated[dict[str, dict[str, Any]], AfterValidator(check_eval_sets), MEASURES]
TextField = Annotated[str | None, OF_TEXT]
TextCrop = Annotated[PositiveInt | None, OF_TEXT]
EvalEvery = Annotated[PositiveInt | None, MEASURES]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class DataParams:
    dataset_name: DatasetName = "sotu"  # task, text, your folder, "owner/name" of the hub, or {text: weight}
    task_args: dict[str, Any] = Field(default_factory=dict)  # arguments of the synthetic task's function
    n_samples: SampleCount = 100_000  # samples of a synthetic task, validation and test included
    val_pct: Annotated[Percent, Field(gt=0)] = 5.0  # percent for validation, unless the corpus has its own
    test_pct: Percent = 5.0  # percent for the test split, unless the corpus has its own; runs never read it
    text_column: TextField = None  # column of a table that is read; None: "text", or the only one with text
    subset: TextField = None  # configuration of a data set of the hub, such as "wikitext-2-raw-v1"
    train_split: TextField = None  # split of a text to train on; None: "train", or the only one
    debug_crop: TextCrop = None  # use only this many samples, from each split that the corpus has
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
        for name in self.shares:
            try:
                self.part_params(name)
            except ValidationError as error:
                raise ValueError(f"dataset_name={{{name!r}: ...}}: {reason_of(error)}") from None
        for name in self.eval_sets:
            if name in map(column_of_part, self.shares):
                raise ValueError(
                    f"eval_sets={{{name!r}: ...}}: a text of the mixture has this name in results; choose another one"
                )
            try:
                self.eval_params(name)
            except ValidationError as error:
                raise ValueError(f"eval_sets={{{name!r}: ...}}: {reason_of(error)}") from None

    @property
    def label(self) -> str:
        """The dataset_name as one word, in which the texts of a mixture are joined by "+"."""
        return dataset_label(self.dataset_name)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each text of a mixture in the rows that are drawn; their sum is 1. Empty if it is no mixture."""
        if isinstance(self.dataset_name, str):
            return {}
        weights = {name: float(weight_and_fields(part)[0]) for name, part in self.dataset_name.items()}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    def part_params(self, name: str) -> "DataParams":
        """Return the params of one text of a mixture: these params, changed by the text's own fields."""
        assert isinstance(self.dataset_name, dict), "only a mixture has parts"
        _, own = weight_and_fields(self.dataset_name[name])
        return replace(self, eval_sets={}, eval_every=None, dataset_name=name, **own)

    def training_data(self) -> "DataParams":
        """Return these params without their evaluation sets, as they do not change what is trained."""
        return replace(self, eval_sets={}, eval_every=None)

    def eval_params(self, name: str) -> "DataParams":
        """Return the params of an evaluation set: these, with the changes of the set.

        `task_args` are merged with those of the run if the task is the same. `n_samples` is EVAL_SAMPLES by default.
        """
        changes: dict[str, Any] = {"n_samples": EVAL_SAMPLES} | self.eval_sets[name]
        other = changes.get("dataset_name", self.dataset_name)
        is_same_task = other == self.dataset_name
        base = self.part_params(other) if isinstance(other, str) and other in self.shares else self
        task_args = (self.task_args if is_same_task else {}) | changes.pop("task_args", {})
        return replace(base, eval_sets={}, eval_every=None, task_args=task_args, **changes)


def reason_of(error: ValidationError) -> str:
    """Return the first problem of an error, after the name of its field."""
    first = error.errors()[0]
    return " ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])


def measuring_fields() -> frozenset[str]:
    """Return the fields that only add measurements."""
    return marked_fields(MEASURES)


def marked_fields(mark: str) -> frozenset[str]:
    """Return the fields that have this mark in their annotations."""
    hints = get_type_hints(DataParams, include_extras=True)
    return frozenset(name for name, hint in hints.items() if mark in getattr(hint, "__metadata__", ()))
