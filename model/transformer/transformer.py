"""The stack of layers between embedding and unembedding.

Shape suffixes:  B batch  T position  D model dim
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from model.context import Context, layer_kinds
from model.model_params import ModelParams
from model.transformer import (  # noqa: F401 -- layer kinds
    based,
    decay,
    delta,
    latent_attention,
    mixers,
    mlstm,
    torchlayers,
    transformerencoderlayer,
)
from model.transformer.attention import zero_queries  # muP
from model.transformer.norms import final_norm
from model.transformer.recompute import call_layer, caller_of_layers
from model.transformer.residual import init_omegas, stream_mix
from model.transformer.share import share_between


class Transformer(nn.Module):
    """Layers, of one kind or of several that take turns, and a final norm if layers normalize their input."""

    recompute = False  # training with recompute="layer": do not store the activations inside of layers

    def __init__(self, model_params: ModelParams, dropout: float = 0.0, n_tokens: int | None = None) -> None:
        super().__init__()
        self.model_params = model_params

        def make_layer(i: int) -> nn.Module:
            own_params = model_params.at(i, self.depth, n_tokens)
            return layer_kinds[own_params.layer_architecture](own_params, dropout)

        # Initial weights depend on the number of layers in a forward pass. Placeholders let `passes` count them first.
        self.layers = nn.ModuleList(nn.Identity() for _ in range(self.model_params.n_layers))
        self.depth = len(self.passes())
        self.layers = nn.ModuleList([make_layer(i) for i in range(self.model_params.n_layers)])
        # Layers from which the second, third ... next token are predicted, in training only.
        self.further = nn.ModuleList(
            [make_layer(max(0, model_params.n_layers - 1)) for _ in range(model_params.n_predict - 1)]
        )
        self.norm = final_norm(model_params)
        self.mix = stream_mix(model_params, len(self.passes()))
        share_between(self.layers, model_params)
        init_omegas([layer for _, layer in self.passes()], model_params)
        if model_params.query_zero_init:  # muP
            zero_queries(self)  # muP

    def passes(self) -> list[tuple[int, nn.Module]]:
        """Return the layers in the order of one forward pass, each with the number that names its activations.

        A layer may occur several times, each time with another number. All code that iterates over layers uses this
        method.
        """
        return list(enumerate([*self.layers] * self.model_params.n_loops))

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        run_layer = caller_of_layers(self.recompute, ctx)
        x0_BTD = x_BTD
        for i, layer in self.passes():
            ctx.layer = i
            x_BTD = x_BTD if self.mix is None else self.mix(x_BTD, x0_BTD, i)
            x_BTD = ctx.tap("resid_pre", x_BTD)
            x_BTD = run_layer(layer, x_BTD, ctx)
            x_BTD = ctx.tap("resid_post", x_BTD)
        ctx.layer = None
        if self.further:
            ctx.shared["stack"] = x_BTD
        return ctx.tap("final_norm", self.norm(x_BTD))

    def further_streams(self, ctx: Context) -> Iterator[Tensor]:
        """Yield the streams that predict the second, third ... next token, after `forward` (see `n_predict`).

        Each is the output of one layer on top of the stack, normalized. Its activations are not recorded.
        """
        for layer in self.further:
            yield self.norm(call_layer(layer, ctx.shared["stack"], replace(ctx, taps=(), written=set())))
