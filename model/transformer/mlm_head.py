"""BERT's transform between the stack of layers and the unembedding.

Shape suffixes:  B batch  T position  D model dim
"""

from torch import Tensor, nn

from model.model_params import ModelParams
from model.transformer.linear import draw_weights
from model.transformer.norms import make_norm
from model.transformer.transformerencoderlayer import activations


class ReadoutTransform(nn.Module):
    """A linear map, the activation of the layers and a norm (Devlin et al. 2019, in their code)."""

    def __init__(self, model_params: ModelParams) -> None:
        super().__init__()
        p = model_params
        self.linear = nn.Linear(p.dim, p.dim, bias=p.readout_bias)
        draw_weights(self.linear.weight, p)
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)
        self.activation = activations[p.activation]
        self.norm = make_norm(p)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.norm(self.activation(self.linear(x_BTD)))


def readout_transform(model_params: ModelParams) -> nn.Module:
    return ReadoutTransform(model_params) if model_params.readout_transform else nn.Identity()
