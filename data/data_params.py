"""DataParams: the data of a run, its split, and its layout in rows."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

SampleCount = Annotated[PositiveInt, Field(le=10**8)]
Percent = Annotated[float, Field(ge=0, lt=100)]


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

    def __post_init__(self) -> None:
        if self.val_pct + self.test_pct >= 100:
            raise ValueError(
                f"val_pct={self.val_pct} and test_pct={self.test_pct} leave no samples to train on: "
                "their sum must be under 100"
            )
