"""Training from scratch: replace each `raise NotImplementedError` and run `python3 -m learn check training`.

learn/training.md says what to read first and how long it takes. Work in any order: a check borrows the parts that are
not right yet from the solution. Use neither torch.optim nor torch.nn.utils' clipping: arithmetic on tensors and
`.backward()` are all you need.

All numbers are compared with torch's own in float64, step by step. The formulas below define them completely.
"""

import math  # noqa: F401  here it is for you to use
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch  # noqa: F401
from torch import Tensor, nn


class AdamW:
    """Adam with decoupled weight decay (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2).

    For each parameter p with gradient g, in its t-th step (t = 1, 2, ...), where m and v start at 0:
        m = beta1 m + (1 - beta1) g                   a running mean of gradients
        v = beta2 v + (1 - beta2) g^2                 and one of their squares, element by element
        p = (1 - lr weight_decay) p                   the decay, which has nothing to do with g
        p = p - lr m' / (sqrt(v') + eps)              with m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t)
    Skip a parameter whose .grad is None: no decay, and its m, v and t stay the same. So every parameter has its own
    m, v and t.
    Attributes:  lr, which may be changed between steps; name the others as you like
    Hints:  `parameters` may be a generator, as model.parameters() is: you can iterate over it only once.
            Change parameters in place (`sub_`, `mul_`), under torch.no_grad(), so that the model sees the change.
            `p = p - ...` only binds the name to a new tensor.
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
    """Scale all gradients by one factor if their common norm is too large (Pascanu et al. 2013, section 3.2).

    The norm is that of all gradients as one long vector: the root of the sum of all squares. The factor is
    max_norm / (norm + 1e-6), but never more than 1. Each parameter's .grad then holds the scaled gradient.
    Returns the norm before scaling, a tensor with one number. Parameters without a gradient do not count. If none has
    a gradient, the norm is 0.
    Hint:  `parameters` may again be a generator.
    """
    raise NotImplementedError


def learning_rate(step: int, n_steps: int, lr: float, n_warmup: int = 0, min_lr: float = 0.0) -> float:
    """The learning rate of a step, counted from 0 (Loshchilov and Hutter 2017, equation 5; Vaswani et al. 2017, 5.3).

    In the first n_warmup steps it rises linearly from 0: at step s it is lr s / n_warmup, so step n_warmup is the
    first with the full `lr`. From there to step n_steps it falls to min_lr along half a cosine:
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

    A step takes the next n_accumulate batches, so there are len(batches) / n_accumulate steps; the division leaves no
    remainder. `loss_of(model, batch)` is a mean. The loss of a step is the mean over its batches, and the gradient is
    that of this mean. In every step:
        set the learning rate by `learning_rate`, for this step of all steps
        clear all gradients, also those from before the call, and compute new ones by .backward(), batch by batch, so
            that only one graph is in memory at a time
        clip them to max_norm, all parameters together
        make a step of AdamW, with its default betas and eps, and `weight_decay` on all parameters
    The losses are those before the step. Run the model in training mode (dropout on), and restore its mode
    afterwards.
    Hint:  .backward() adds to what .grad holds: divided by n_accumulate, the losses' gradients sum to that of the mean.
    """
    raise NotImplementedError
