"""Muon for matrices and AdamW for all other parameters, as one optimizer for Lightning, schedules and checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon for the groups with the key "muon", AdamW for the others. Both share this optimizer's state.

    `muon` and `adamw` are the keyword arguments of torch's classes.
    """

    def __init__(self, groups: list[dict], muon: Mapping[str, Any], adamw: Mapping[str, Any]) -> None:
        of_muon = [group for group in groups if "muon" in group]
        of_adamw = [group for group in groups if "muon" not in group]
        self.parts: list[Optimizer] = []
        if of_muon:
            self.parts.append(torch.optim.Muon(of_muon, **muon))
        if of_adamw:
            self.parts.append(torch.optim.AdamW(of_adamw, **adamw))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.share()

    def share(self) -> None:
        """Make both parts work on the parameter groups and the state of this optimizer."""
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        self.share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
