"""Progress of a run while it trains, as the display of a grid shows it."""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Progress(NamedTuple):
    """The progress of a run at one moment."""

    step: int  # optimizer steps so far
    loss: float | None = None  # of the last training batch
    tokens_per_second: float | None = None  # real tokens, without the time of validations
    device: torch.device = torch.device("cpu")
    is_validating: bool = False


Report = Callable[[Progress], None]
