"""Admin's residual connections for any module of PyTorch, so that deep post-norm stacks train."""

from model.transformer.residual import (
    Residual,
    as_buffer,
    as_module,
    as_parameter,
    initial_omega,
    profile_omegas,
)

__all__ = ["Residual", "as_buffer", "as_module", "as_parameter", "initial_omega", "profile_omegas"]
