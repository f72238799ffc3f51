"""Lion: the sign of an interpolated momentum is the update of every weight."""

from operator import itemgetter
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
            lr, decay, (beta1, beta2) = itemgetter("lr", "weight_decay", "betas")(group)
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"]
                update = momentum.lerp(gradient, 1 - beta1).sign_()
                parameter.mul_(1 - lr * decay)
                parameter.sub_(update, alpha=lr)
                momentum.lerp_(gradient, 1 - beta2)
        return loss
