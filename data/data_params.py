"""DataParams: what a run reads, how it is split, and how it is laid out in rows."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

SampleCount = Annotated[PositiveInt, Field(le=10**8)]
Percent = Annotated[float, Field(ge=0, lt=100)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class DataParams:
    dataset_name: str = "sotu"  # a corpus, a synthetic task, or a folder of your data folder
    task_args: dict[str, Any] = Field(default_factory=dict)  # arguments of the synthetic task's function
    n_samples: SampleCount = 100_000  # of a synthetic task, held-out ones included
    val_pct: Annotated[Percent, Field(gt=0)] = 5.0  # kept for validation, unless the corpus has its own split
    test_pct: Percent = 5.0  # read only when the test split is asked for, unless the corpus has its own
    debug_crop: PositiveInt | None = None  # only the first so many samples (of each split the corpus brings)
    packed: bool | None = None  # fill every row with several samples; None: yes for text, no for tasks
    data_seed: NonNegativeInt = 0  # decides the split and a task's samples

    def __post_init__(self) -> None:
        if self.val_pct + self.test_pct >= 100:
            raise ValueError(
                f"val_pct={self.val_pct} and test_pct={self.test_pct} leave nothing to train on (under 100 together)"
            )
