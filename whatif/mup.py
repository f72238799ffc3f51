"""muP for any module of PyTorch: base shapes, roles of parameters, initial weights, optimizer groups, attention scores."""

from model.mup.base_shapes import Shapes, load_base_shapes, make_base_shapes, save_base_shapes
from model.mup.parametrization import Role, init_, lr_factor, make_readouts, param_groups, roles
from model.mup.scores import scale_scores
from model.transformer.scaling import Readout

__all__ = [
    "Readout",
    "Role",
    "Shapes",
    "init_",
    "load_base_shapes",
    "lr_factor",
    "make_base_shapes",
    "make_readouts",
    "param_groups",
    "roles",
    "save_base_shapes",
    "scale_scores",
]
