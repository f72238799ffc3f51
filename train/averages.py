"""Averages of the weights, which are validated and saved in place of the weights that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class AveragedWeights:
    """Averages of a model's weights: those of the optimizer, if it has any, or a moving one with `decay`.

    The averages take the place of the weights between `swap_in` and `swap_out`. Training goes on from the exact weights
    that it had, whenever and however often the averages are used.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model = model
        self.decay = decay
        self.moving: dict[str, Tensor] = {}  # by name; empty before the first step
        self.kept: list[tuple[Tensor, Tensor]] = []  # what trains, while the averages are in its place

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after an optimizer step into the moving average. It begins as a copy of the first ones."""
        if self.decay is None:
            return
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.moving:
            self.moving = {name: p.detach().clone() for name, p in trained.items()}
            return
        torch._foreach_lerp_([*self.moving.values()], [trained[name] for name in self.moving], 1 - self.decay)

    def averaged_parameters(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the parameters that have an average: none before the first step, or if the run has no averages."""
        if self.decay is not None:
            return [self.model.get_parameter(name) for name in self.moving]
        groups = [group for group in optimizer.param_groups if averages_weights(group)]
        return [
            parameter for group in groups for parameter in group["params"] if parameter in optimizer.state
        ]

    @torch.no_grad()
    def swap_in(self, optimizer: Any) -> None:
        """Put the averages in the place of the weights. A run without averages keeps its weights."""
        self.kept = [(p, p.detach().clone()) for p in self.averaged_parameters(optimizer)]
        if self.decay is None and self.kept:
            optimizer.eval()
        for (parameter, _), average in zip(self.kept, self.moving.values(), strict=False):
            parameter.copy_(average)

    @torch.no_grad()
    def swap_out(self, optimizer: Any) -> None:
        """Restore the weights that train."""
        if self.decay is None and self.kept:
            optimizer.train()
        # Exactly as they were: the optimizer's own way back rounds.
        for parameter, weight in self.kept:
            parameter.copy_(weight)
        self.kept.clear()

    def adopt(self, optimizer: Optimizer) -> None:
        """Replace the weights by the averages for good."""
        self.swap_in(optimizer)
        self.kept.clear()

    @contextmanager
    def in_place(self, optimizer: Optimizer) -> Iterator[None]:
        """Put the averages in the place of the weights inside the block."""
        self.swap_in(optimizer)
        try:
            yield
        finally:
            self.swap_out(optimizer)

    def state_dict(self) -> dict[str, Tensor]:
        return self.moving

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.moving = state


def averages_weights(group: dict[str, Any]) -> bool:
    """Return True if an optimizer averages the weights of a parameter group itself, as schedule-free ones do.

    By the convention of pytorch_optimizer, eval() then puts the averages in the place of the weights.
    """
    return "train_mode" in group
