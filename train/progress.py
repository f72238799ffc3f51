"""Progress of a run while it trains, as the display of a grid shows it."""

from collections.abc import Callable

import torch

Report = Callable[[int, float, torch.device], None]  # called with step, loss and device
