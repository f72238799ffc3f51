"""Optimizers of the package pytorch_optimizer that have names of their own here."""

from torch.optim import Optimizer

from train.library import from_library
from train.optimizers import optimizers
from train.train_params import TrainParams


@optimizers.register
def soap(groups: list[dict], params: TrainParams) -> Optimizer:
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner, renewed every 10 steps (arXiv:2409.11321)."""
    return from_library("SOAP", groups, params)


@optimizers.register(name="schedule-free")
def schedule_free(groups: list[dict], params: TrainParams) -> Optimizer:
    """AdamW whose weights are averaged in place of a schedule; the averages are validated and saved (arXiv:2405.15682)."""
    return from_library("ScheduleFreeAdamW", groups, params)


@optimizers.register
def adopt(groups: list[dict], params: TrainParams) -> Optimizer:
    """ADOPT: Adam that converges with any beta2 (arXiv:2411.02853)."""
    return from_library("ADOPT", groups, params)


@optimizers.register
def laprop(groups: list[dict], params: TrainParams) -> Optimizer:
    """LaProp: Adam that normalizes gradients before it averages them (arXiv:2002.04839)."""
    return from_library("LaProp", groups, params)


@optimizers.register
def lamb(groups: list[dict], params: TrainParams) -> Optimizer:
    """LAMB: Adam whose update of each tensor has the size of the tensor, for large batches (arXiv:1904.00962)."""
    return from_library("Lamb", groups, params)
