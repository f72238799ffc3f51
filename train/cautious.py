"""Cautious weight decay: weights decay only where the update moves them towards 0, too (arXiv:2510.12402)."""

import torch
from torch import Tensor
from torch.optim import Optimizer


def decay_cautiously(optimizer: Optimizer) -> None:
    """Make `optimizer`, whose weight decay must be decoupled, decay only where update and weight have one sign.

    A weight w with the update u becomes w - lr * (u + weight_decay * w * [u * w >= 0]). A step takes the memory of
    another copy of the weights that decay.
    """
    before: list[tuple[dict, float, list[tuple[Tensor, Tensor]]]] = []

    def keep_weights(*_: object) -> None:
        for group in optimizer.param_groups:
            if decay := group.get("weight_decay"):
                copies = [(parameter, parameter.detach().clone()) for parameter in group["params"]]
                before.append((group, decay, copies))
                group.update(weight_decay=0.0)

    @torch.no_grad()
    def decay_weights(*_: object) -> None:
        for group, decay, copies in before:
            group.update(weight_decay=decay)
            for parameter, old in copies:
                if parameter.grad is not None:
                    is_decaying = (old - parameter) * old >= 0
                    parameter.sub_(old * is_decaying, alpha=group.get("lr", 0.0) * decay)
        before.clear()

    optimizer.register_step_pre_hook(keep_weights)
    optimizer.register_step_post_hook(decay_weights)
