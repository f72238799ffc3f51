"""Averages of the weights, which are validated and saved in place of the weights that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class AveragedWeights:
    """Averages of a model's weights: those of the optimizer, if it is schedule-free, or a moving one with `decay`.

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

    def averages(self, optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each averaged parameter with its average."""
        if self.decay is not None:
            yield from ((self.model.get_parameter(name), average) for name, average in self.moving.items())
            return
        for group in optimizer.param_groups:
            if (
                "train_mode" in group
            ):  # the weights lie between the averages and the iterates z, by the first of betas
                states = [(p, optimizer.state[p]) for p in group["params"] if p in optimizer.state]
                beta, _ = itemgetter("betas")(group)
                yield from ((p, p.lerp(state["z"], 1 - 1 / beta)) for p, state in states)

    @torch.no_grad()
    def swap_in(self, optimizer: Optimizer) -> None:
        """Put the averages in the place of the weights. A run without averages keeps its weights."""
        for parameter, average in self.averages(optimizer):
            self.kept.append((parameter, parameter.detach().clone()))
            parameter.copy_(average)

    @torch.no_grad()
    def swap_out(self) -> None:
        """Restore the weights that train."""
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
            self.swap_out()

    def state_dict(self) -> dict[str, Tensor]:
        return self.moving

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.moving = state
