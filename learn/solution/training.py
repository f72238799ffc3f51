"""Training from scratch: a worked solution of learn/training_student.py. Look here last."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class AdamW:
    """Adam with decoupled weight decay."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.n_steps = [0 for _ in self.parameters]
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2 = self.betas
        for i, parameter in enumerate(self.parameters):
            grad = parameter.grad
            if grad is None:
                continue
            self.n_steps[i] += 1
            t = self.n_steps[i]
            self.means[i] = beta1 * self.means[i] + (1 - beta1) * grad
            self.squares[i] = beta2 * self.squares[i] + (1 - beta2) * grad**2
            mean = self.means[i] / (1 - beta1**t)
            square = self.squares[i] / (1 - beta2**t)
            parameter.mul_(1 - self.lr * self.weight_decay)
            parameter.sub_(self.lr * mean / (square.sqrt() + self.eps))

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients by one factor if their common norm is too large."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    norm = torch.stack([(grad**2).sum() for grad in grads]).sum().sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale)
    return norm


def learning_rate(step: int, n_steps: int, lr: float, n_warmup: int = 0, min_lr: float = 0.0) -> float:
    """Learning rate of a step: a linear rise, then a fall along half a cosine."""
    if step < n_warmup:
        return lr * step / n_warmup
    done = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2


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
    """Train a model, and return the loss of every step."""
    optimizer = AdamW(model.parameters(), lr, weight_decay=weight_decay)
    n_steps = len(batches) // n_accumulate
    losses = []
    was_training = model.training
    model.train()
    for step in range(n_steps):
        optimizer.lr = learning_rate(step, n_steps, lr, n_warmup, min_lr)
        optimizer.zero_grad()
        step_loss = 0.0
        for batch in batches[step * n_accumulate : (step + 1) * n_accumulate]:
            loss = loss_of(model, batch) / n_accumulate
            loss.backward()
            step_loss += loss.item()
        clip_gradients(model.parameters(), max_norm)
        optimizer.step()
        losses.append(step_loss)
    model.train(was_training)
    return losses
