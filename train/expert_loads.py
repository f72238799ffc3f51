"""Loads of experts: how many tokens the router of a layer sends to each, for statistics and to balance them."""

import torch
from torch import Tensor

from data.batch import Batch
from model.lm import LM
from model.transformer.experts import Experts


class ExpertLoads:
    """The loads of the experts of a model over the batches of an optimizer step, in all processes together."""

    def __init__(self) -> None:
        self.by_layer: dict[int, Tensor] = {}  # by the number of the layer in Transformer.passes

    def add(self, model: LM, batch: Batch) -> None:
        """Add the loads of `batch`, whose losses `model` has just computed."""
        # A process without rows of its own gets a filler batch, in which no token is scored.
        is_real = batch["target_mask"].any() if model.added_losses.expert_loads else False
        for i, load_E in model.added_losses.expert_loads.items():
            self.by_layer[i] = self.by_layer.get(i, 0) + load_E * is_real

    def end_step(self, model: LM, n_processes: int) -> dict[int, Tensor]:
        """Move the biases that balance experts. Return the loads of the step, and begin the next one."""
        loads, self.by_layer = self.by_layer, {}
        if not loads:
            return loads
        if n_processes > 1:
            for i in sorted(loads):
                torch.distributed.all_reduce(loads[i])
        of_module: dict[Experts, Tensor] = {}  # a layer may run several times
        for i, layer in model.decoder.passes():
            experts = getattr(layer, "experts", None)
            if i in loads and isinstance(experts, Experts):
                of_module[experts] = loads[i] + of_module.get(experts, 0)
        for experts, load_E in of_module.items():
            experts.move_bias(load_E)
        return loads
