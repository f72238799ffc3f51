"""The stack of layers between embedding and readout.

Shape suffixes:  B batch  T position  D model dim
"""

from torch import Tensor, nn

from model.context import Context, Layer
from model.model_params import ModelParams
from model.transformer.torchlayers import TorchGRU, TorchLSTM, TorchTransformer
from model.transformer.transformerencoderlayer import TransformerEncoderLayer

layer_kinds: dict[str, type[Layer]] = {  # by layer_architecture; made as kind(model_params, dropout)
    "custom-transformer": TransformerEncoderLayer,
    "torch-transformer": TorchTransformer,
    "torch-lstm": TorchLSTM,
    "torch-gru": TorchGRU,
}


class Transformer(nn.Module):
    """Layers of one kind and, when they normalise their input, a norm after the last."""

    def __init__(self, model_params: ModelParams, dropout: float = 0.0) -> None:
        super().__init__()
        self.model_params = model_params

        def make_layer() -> Layer:
            return layer_kinds[model_params.layer_architecture](model_params, dropout)

        self.layers = nn.ModuleList([make_layer() for _ in range(self.model_params.n_layers)])
        pre = model_params.norm_position == "pre"
        self.norm = nn.LayerNorm(model_params.dim, bias=model_params.bias) if pre else nn.Identity()

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        for ctx.layer, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, ctx) if isinstance(layer, Layer) else layer(x_BTD)
            x_BTD = ctx.tap("resid_post", x_BTD)
        return self.norm(x_BTD)
