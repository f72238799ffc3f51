"""strategy = "fsdp": each process keeps a shard of all weights, and gathers a layer only to compute with it (FSDP2)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from model.lm import LM

FSDP = "fsdp"
CLIP_EPS = 1e-6  # that torch adds to a norm before it clips


def shard(lm: LM, mesh: DeviceMesh) -> None:
    """Shard the weights over the processes of `mesh`, once: each layer as a unit, and the rest as another."""
    if not isinstance(lm, FSDPModule):
        for layer in lm.decoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(lm, mesh=mesh)


@contextmanager
def gathered(lm: LM) -> Iterator[None]:
    """Gather all weights in every process inside the block, for code that does not call the model as training does."""
    shards = [module for module in lm.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(module is not lm, recurse=False)


def full_number(value: float | Tensor) -> float | Tensor:
    """Return a sharded scalar as a plain tensor, and any other number unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def scale_gradients(module: nn.Module, factor: Tensor) -> None:
    """Multiply all gradients by a scalar tensor on their device. Sharded gradients are scaled shard by shard."""
    for parameter in module.parameters():
        if (gradient := parameter.grad) is not None:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            local.mul_(factor)


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """Scale the gradients, sharded or not, so that their norm is at most `max_norm`.

    On a CPU a smaller norm ends it there: multiplying all gradients by 1 would take a pass over them.
    """
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or not float(full_number(norm)) + CLIP_EPS <= max_norm:
        clip_grads_with_norm_(parameters, max_norm, norm)


def unshard(lm: LM, dropout: float) -> LM:
    """Return an unsharded copy of the model in the first process, and `lm` itself in the others."""
    if not isinstance(lm, FSDPModule):
        return lm
    weights = get_model_state_dict(lm, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not weights:
        return lm
    alone = LM(lm.model_params, lm.tokenizer, dropout=dropout)
    alone.load_state_dict(weights)
    return alone
