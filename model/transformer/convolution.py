"""Short causal convolutions: that of the mixers, and Canon layers.

Shape suffixes:  B batch  T position  S position seen  C channel  W width of a convolution  P one less than W
"""

import math

import torch
from torch import Tensor, nn

from model.context import Context
from model.model_params import ModelParams
from model.transformer.attention_parts import FirstInput


class CausalConv(nn.Module):
    """Depthwise causal convolution: in each channel a weighted sum of the last `conv_width` positions.

    `name` is that of its state in the cache: the last positions, one less than it is wide.
    """

    def __init__(self, model_params: ModelParams, n_channels: int, name: str = "conv") -> None:
        super().__init__()
        width, self.name = model_params.conv_width, name
        self.weight_WC = nn.Parameter(torch.randn(width, n_channels) / math.sqrt(width))

    def forward(self, x_BTC: Tensor, ctx: Context) -> Tensor:
        B, T, C = x_BTC.shape
        past_BPC = ctx.recall(self.name)
        if past_BPC is None:
            past_BPC = x_BTC.new_zeros(B, len(self.weight_WC) - 1, C)
        x_BSC = torch.cat([past_BPC, x_BTC], dim=1)
        ctx.keep(self.name, x_BSC[:, T:])
        out_BTC = torch.zeros_like(x_BTC)
        # On a CPU this is faster than nn.Conv1d with a group for each channel.
        for i, w_C in enumerate(self.weight_WC):
            out_BTC = out_BTC + w_C * x_BSC[:, i : i + T]
        return out_BTC

    def state_size(self, T: int) -> int:
        width, n_channels = self.weight_WC.shape
        return (width - 1) * n_channels


class Canon(CausalConv):
    """Canon layer: x + conv(x), which mixes neighboring positions (Allen-Zhu 2025, arXiv:2512.17351).

    Its weights begin as those of nn.Conv1d.
    """

    def __init__(self, model_params: ModelParams, n_channels: int, name: str) -> None:
        super().__init__(model_params, n_channels, name)
        bound = 1 / math.sqrt(model_params.conv_width)
        nn.init.uniform_(self.weight_WC, -bound, bound)

    def forward(self, x_BTC: Tensor, ctx: Context) -> Tensor:
        return x_BTC + super().forward(x_BTC, ctx)


def canon(place: str, model_params: ModelParams, n_channels: int) -> nn.Module:
    """Return the Canon layer at a place of a layer if `canon` has its letter: the first one of "a", "b", "c", "d", "d2"."""
    is_wanted = place[0] in (model_params.canon or "")
    return Canon(model_params, n_channels, f"canon_{place}") if is_wanted else FirstInput()


def sizes_of_canons(layer: nn.Module, T: int) -> int:
    """Return the sizes of the states of all Canon layers in a layer together."""
    return sum(module.state_size(T) for module in layer.modules() if isinstance(module, Canon))
