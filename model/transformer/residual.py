"""Residual connections: x + f(x), x + gain * f(x), and x * omega + f(x) for deep post-norm stacks.

ReZero: Bachlechner et al. 2020, arXiv:2003.04887. LayerScale: Touvron et al. 2021, arXiv:2103.17239.
Admin: Liu et al. 2020, arXiv:2004.08249. DeepNet: Wang et al. 2022, arXiv:2203.00555. In your own network:

    self.residual = as_module(n)  # n: the residual connections of the network, two to a transformer layer
    x = self.norm(self.residual(x, f(x)))
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from model.model_params import ModelParams
from model.transformer.scaling import Readout, depth_mult  # muP

# Initial omega, by how the output of n sub-layers changes with a small change of all weights.
omegas: dict[str, Callable[[int], float]] = {
    "O(n)": lambda n: 1.0,
    "O(logn)": lambda n: math.sqrt((n + 1) / math.log(n + 1) - 1),
    "O(1)": math.sqrt,
}


class Residual(nn.Module):
    """Residual connection: (x, f) -> x * omega + f. Without an omega it is x + f.

    omega is a number, or with `dim` a trained vector. It is part of the state dict.
    `branch` scales the branch output by `branch_mult`.
    """

    omega: Tensor | None

    def __init__(self, omega: float | None = None, dim: int | None = None, branch_mult: float = 1.0) -> None:
        super().__init__()
        self.branch_mult = branch_mult
        if omega is None or dim is None:
            self.register_buffer("omega", None if omega is None else torch.tensor(float(omega)))
        else:
            self.omega = nn.Parameter(torch.full((dim,), float(omega)))

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        return x + f if self.omega is None else x * self.omega.to(x.dtype) + f

    def branch(self, f: Tensor) -> Tensor:  # muP
        """Scale the output of a branch as CompleteP does."""
        return f if self.branch_mult == 1 else f * self.branch_mult  # muP


class ScaledResidual(Residual):
    """Residual connection with a trained gain: (x, f) -> x + gain * f."""

    def __init__(self, gain: Tensor, branch_mult: float = 1.0) -> None:
        super().__init__(branch_mult=branch_mult)
        self.gain = nn.Parameter(gain)

    def branch(self, f: Tensor) -> Tensor:
        """Scale the output of a branch by the gain."""
        return super().branch(self.gain.to(f.dtype) * f)


def initial_gain(model_params: ModelParams) -> Tensor:
    """Return the gain of ReZero, the number 0, or that of LayerScale: a vector that is smaller in deeper models."""
    p = model_params
    if p.residual == "rezero":
        return torch.zeros(())
    return torch.full((p.dim,), 0.1 if p.depth <= 18 else 1e-5 if p.depth <= 24 else 1e-6)


class StreamMix(nn.Module):
    """The input of each layer: a x + b x0, a trained mix of the stream and the embeddings, at first x.

    From speed runs of nanoGPT (Jordan et al. 2024, modded-nanogpt), and in nanochat. In CompleteP the change of x is
    divided as the output of a block is, since the changes of all layers add up.
    """

    def __init__(self, n_passes: int, mult: float = 1.0) -> None:
        super().__init__()
        self.mult = mult  # muP
        self.of_stream = nn.Parameter(torch.ones(n_passes))
        self.of_embeddings = nn.Parameter(torch.zeros(n_passes))

    def forward(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        mixed = self.of_stream[i] * x + self.of_embeddings[i] * x0
        return mixed if self.mult == 1 else x + (mixed - x) * self.mult  # muP


def stream_mix(model_params: ModelParams, n_passes: int) -> StreamMix | None:
    if not model_params.stream_lambdas:
        return None
    return StreamMix(n_passes, mult=1 / depth_mult(model_params.at(0, n_passes)))  # muP


def initial_omega(n: int, change: str = "O(logn)") -> float:
    """Return Admin's omega for a network with `n` residual connections. Raise ValueError for an unknown `change`."""
    if n < 1 or change not in (*omegas, "default"):
        raise ValueError(
            f"n={n!r}, change={change!r}: n must be at least 1, and change one of: default, {', '.join(omegas)}"
        )
    return omegas["O(logn)" if change == "default" else change](n)


def as_module(
    num_res_layers: int,
    output_change_scale: str = "O(logn)",
    as_parameter: bool = False,
    embed_dim: int | None = None,
) -> Residual:
    """Return one of a network's `num_res_layers` residual connections. Arguments are those of the package admin-torch.

    as_parameter trains a vector of `embed_dim` numbers; otherwise embed_dim is ignored.
    output_change_scale is "O(logn)", also called "default", "O(1)" or "O(n)".
    """
    if as_parameter and embed_dim is None:
        raise ValueError("as_parameter=True trains a vector of embed_dim numbers, but embed_dim is None")
    omega = initial_omega(num_res_layers, output_change_scale)
    return Residual(omega, embed_dim if as_parameter else None)


def as_buffer(
    network: nn.Module, buffer_name: str, num_res_layers: int, output_change_scale: str = "O(logn)"
) -> None:
    """Register a number omega in `network`, as a buffer, for its own x * omega + f(x)."""
    omega = initial_omega(num_res_layers, output_change_scale)
    network.register_buffer(buffer_name, torch.tensor(omega))


def as_parameter(
    network: nn.Module,
    parameter_name: str,
    num_res_layers: int,
    embed_dim: int,
    output_change_scale: str = "O(logn)",
) -> None:
    """Register a trained vector omega in `network` for its own x * omega + f(x)."""
    omega = initial_omega(num_res_layers, output_change_scale)
    network.register_parameter(parameter_name, nn.Parameter(torch.full((embed_dim,), omega)))


def make_residual(model_params: ModelParams) -> Residual:
    """Return a residual connection of a layer. `init_omegas` sets omega once all layers are made and counted."""
    p, branch_mult = model_params, 1 / depth_mult(model_params)  # muP
    if p.residual == "plain":
        return Residual(branch_mult=branch_mult)  # muP
    if p.residual in ("rezero", "layerscale"):
        return ScaledResidual(initial_gain(p), branch_mult)
    return Residual(1.0, dim=p.dim if p.residual_trainable else None, branch_mult=branch_mult)  # muP


def omegas_by_residual(model: nn.Module) -> dict[Residual, Tensor]:
    """Return the residual connections of `model` that have an omega, with their omegas."""
    found = [module for module in model.modules() if isinstance(module, Residual)]
    return {residual: residual.omega for residual in found if residual.omega is not None}


@torch.no_grad()
def init_omegas(passes: Sequence[nn.Module], model_params: ModelParams) -> None:
    """Set the initial omegas and, for DeepNet, redraw the initial weights.

    Both depend on the number of residual connections in a forward pass. `passes` lists its layers in order; a layer that
    runs twice occurs twice.
    """
    p, layers = model_params, nn.ModuleList(passes)
    n = sum(len(omegas_by_residual(layer)) for layer in passes)
    if p.residual == "plain" or not n:
        return
    for omega in omegas_by_residual(layers).values():
        omega.fill_(initial_omega(n, p.residual_change) if p.residual == "admin" else n**0.25)
    if p.residual == "deepnet":
        deepnet_init(layers, gain=(4 * n) ** -0.25)


@runtime_checkable
class Mixer(Protocol):
    """A module with matrices for queries, keys and values, or for their equivalents."""

    def query_key_value(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]: ...


def deepnet_init(layers: nn.Module, gain: float) -> None:
    """Draw Xavier's initial weights. Multiply all but queries and keys, which only make scores, by `gain`."""
    for module in layers.modules():
        if isinstance(module, nn.Linear) and not isinstance(module, Readout):
            xavier([module.weight], gain)
    for module in layers.modules():
        if isinstance(module, Mixer):
            for weights, own_gain in zip(module.query_key_value(), (1.0, 1.0, gain), strict=True):
                xavier(weights, own_gain)


def xavier(weights: list[Tensor], gain: float) -> None:
    """Draw the weights of one matrix that is split along its outputs: normal, with Xavier's deviation times `gain`."""
    n_out, n_in = sum(map(len, weights)), weights[0].shape[1]
    for weight in weights:
        nn.init.normal_(weight, std=gain * math.sqrt(2 / (n_in + n_out)))


def wants_profile(model: nn.Module, model_params: ModelParams) -> bool:
    """Return True if `residual_profile` sets the omegas of `model` from the first batches."""
    return bool(omegas_by_residual(model)) and model_params.residual_profile


@torch.no_grad()
def profile_omegas(model: nn.Module, batches: Iterable[object]) -> None:
    """Set every omega as the original Admin does: omega² = 1 + the sum of Var(f) over all earlier residual connections.

    Variances are means over `batches`. `model` is called with each batch, and stays in training or evaluation mode as
    it is.
    """
    variances: dict[Tensor, list[float]] = {}  # of f, by the omega beside it, in the order of the calls
    n_batches = 0

    def measure(residual: nn.Module, x_and_f: tuple[Tensor, Tensor]) -> None:
        omega = cast(Residual, residual).omega
        assert omega is not None
        omega.fill_(math.sqrt(1 + sum(so_far)))
        so_far.append(x_and_f[1].double().var(correction=0).item())
        variances.setdefault(omega, []).append(so_far[-1])

    hooks = [residual.register_forward_pre_hook(measure) for residual in omegas_by_residual(model)]
    try:
        for batch in batches:
            so_far: list[float] = []
            model(batch)
            n_batches += 1
    finally:
        for hook in hooks:
            hook.remove()
    squared = 1.0
    for omega, values in variances.items():
        omega.fill_(math.sqrt(squared))
        squared += sum(values) / n_batches
