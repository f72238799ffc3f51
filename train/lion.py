"""Lion: the sign of an interpolated momentum is the update of every weight."""

from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """Lion of Chen et al. (arXiv:2302.06675, algorithm 2), with decoupled weight decay."""

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                update = momentum.lerp(gradient, 1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"])
                momentum.lerp_(gradient, 1 - beta2)
        return loss
