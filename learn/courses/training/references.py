"""References for training, by torch.optim and transformers, under the names of the student's file."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the course's attribute `lr`."""

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group.update(lr=lr)

    lr = property(fset=set_lr)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def learning_rate(step: int, n_steps: int, lr: float, n_warmup: int = 0, min_lr: float = 0.0) -> float:
    """Return transformers' schedule. After its end it would rise again; here it stays at min_lr."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, n_warmup, n_steps, min_lr=min_lr)
    for _ in range(min(step, n_steps)):
        optimizer.step()
        schedule.step()
    return schedule.get_last_lr()[0]


def train(
    model: nn.Module,
    batches: Sequence[Any],
    loss_of: Callable[[nn.Module, Any], Tensor],
    lr: float = 1e-3,
    *,
    n_warmup: int = 0,
    min_lr: float = 0.0,
    weight_decay: float = 0.01,
    max_norm: float = 1.0,
    n_accumulate: int = 1,
) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
    n_steps = len(batches) // n_accumulate
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, n_warmup, n_steps, min_lr=min_lr)
    losses = []
    mode = model.training
    model.train()
    for start in range(0, len(batches), n_accumulate):
        step_losses = [loss_of(model, batch) for batch in batches[start : start + n_accumulate]]
        loss = torch.stack(step_losses).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.train(mode)
    return losses
