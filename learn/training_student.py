"""Training from scratch: replace each `raise NotImplementedError` and run `python3 -m learn check training`.

What to read first, and how long it takes, is in learn/training.md. Any order will do: a part that is not yet right is
borrowed from the solution while another is checked. Nothing of torch.optim, nor torch.nn.utils' clipping: arithmetic
on tensors and `.backward()` are all you need.

All numbers are compared with torch's own in float64, step by step; the formulas below leave nothing open.
"""

import math  # noqa: F401  here it is for you to use
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch  # noqa: F401
from torch import Tensor, nn


class AdamW:
    """Adam with decoupled weight decay (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2).

    For each parameter p with gradient g, in its t-th step (t = 1, 2, ...), m and v being 0 before the first:
        m = beta1 m + (1 - beta1) g                   a running mean of gradients
        v = beta2 v + (1 - beta2) g^2                 and one of their squares, element by element
        p = (1 - lr weight_decay) p                   the decay, which has nothing to do with g
        p = p - lr m' / (sqrt(v') + eps)              with m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t)
    A parameter whose .grad is None is left alone: no decay, m and v stay, and t does not count for it. So every
    parameter has an m, a v and a t of its own.
    Attributes:  lr, which may be changed between steps; the rest is named as you like
    Hints:  `parameters` may be a generator, as model.parameters() is, and can then be gone through only once.
            Change parameters in place (`sub_`, `mul_`), under torch.no_grad(): whoever holds them sees the change.
            `p = p - ...` only gives a new tensor that name.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        raise NotImplementedError

    def step(self) -> None:
        """One step of every parameter that has a gradient. The gradients stay as they are."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradients: every .grad becomes None (a gradient of 0 would be one, and let a parameter decay)."""
        raise NotImplementedError


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients by one factor where they are too long together (Pascanu et al. 2013, section 3.2).

    The norm is the length of all gradients as one long vector: the root of the sum of all squares. The factor is
    max_norm / (norm + 1e-6), but never more than 1. Afterwards the .grad of the parameters are the scaled ones.
    Returns the norm before scaling, a tensor with one number. Parameters without a gradient do not count; if none has
    one, the norm is 0.
    Hint:  `parameters` may again be a generator.
    """
    raise NotImplementedError


def learning_rate(step: int, n_steps: int, lr: float, n_warmup: int = 0, min_lr: float = 0.0) -> float:
    """The learning rate of a step, counted from 0 (Loshchilov and Hutter 2017, equation 5; Vaswani et al. 2017, 5.3).

    In the first n_warmup steps it rises in a straight line from 0: at step s it is lr s / n_warmup, so that step
    n_warmup is the first with all of `lr`. From there to step n_steps it falls to min_lr along half a cosine:
        min_lr + (lr - min_lr) (1 + cos(pi x)) / 2    where x goes from 0 at step n_warmup to 1 at step n_steps
    At n_steps and later it is min_lr. Without warm-up (n_warmup = 0) it begins with `lr`. Returns a float.
    """
    raise NotImplementedError


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
    """Train a model, and return the loss of every step: a list of floats.

    A step takes the next n_accumulate batches, and there are as many steps as that makes of len(batches), which
    n_accumulate divides. `loss_of(model, batch)` is a mean; the loss of a step is the mean over its batches, and its
    gradient is that of this mean. In every step:
        the learning rate is that of `learning_rate`, for this step and this number of steps
        gradients are forgotten (also those that were there before you came), then made anew by .backward(), batch
            by batch, so that no two graphs are in memory at once
        they are clipped to max_norm, all parameters together
        AdamW makes a step, with its own betas and eps, and `weight_decay` on all parameters
    The losses are those before the step. The model is in training mode meanwhile (its dropout is on), and afterwards in
    the mode in which you found it.
    Hint:  .backward() adds to what .grad holds: divided by n_accumulate, the losses' gradients sum to that of the mean.
    """
    raise NotImplementedError
