"""The student's Block as a layer of the harness: `layer_architecture = "student"`.

Shape suffixes:  B batch  T position  S position so far  D model dim  H head
"""

import importlib
from dataclasses import fields
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from learn.outline import Outline
from model.context import Context, Layer, all_except, layer_kind
from model.model_params import ModelParams
from model.transformer.embeddings import acts_in_attention
from model.transformer.linear import draw_weights

FILE = Outline("gpt2").student.name
# Fields that may be set: sizes, and fields that act outside the layers. The student's file decides the rest.
FREE_FIELDS = {
    "layer_architecture",
    "dim",
    "n_layers",
    "n_heads",
    "max_seq_len",
    "tied_embeddings",
    "init",
    "from_saved",
    "tokenizer_source_name",
    "tokenizer_vocab_size",
    "tokenizer_crop",
}
SOFTMAX = {torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax}


def students_file() -> ModuleType:
    """Return the module learn/gpt2_student.py, which defines Block."""
    return importlib.import_module("learn.gpt2_student")


@layer_kind("student")
class StudentLayer(Layer):
    """Block(dim, n_heads) of learn/gpt2_student.py, with dropout on what it adds to the residual stream."""

    refuses = {
        **{
            field.name: all_except(field.default)
            for field in fields(ModelParams)
            if field.name not in FREE_FIELDS
        },
        "positions": acts_in_attention,
    }
    computes_past_again = True

    def __init__(self, model_params: ModelParams, dropout: float) -> None:
        super().__init__()
        check_block(model_params.dim, model_params.n_heads)
        self.block = students_file().Block(model_params.dim, model_params.n_heads)
        self.dropout = nn.Dropout(dropout)
        for name, parameter in self.block.named_parameters():
            if parameter.dim() == 2:  # other parameters keep the student's initial values
                into_stream = name.endswith(("out.weight", "down.weight"))
                draw_weights(parameter, model_params, into_stream)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        T = x_BTD.shape[1]
        x_BSD = ctx.with_past("x", x_BTD, dim=1)  # a Block has no cache: it needs all positions so far
        if ctx.wants("scores") or ctx.wants("pattern"):
            with Softmaxes(ctx, T):
                y_BSD = self.block(x_BSD)
        else:
            y_BSD = self.block(x_BSD)
        if self.training and self.dropout.p:
            y_BSD = x_BSD + self.dropout(y_BSD - x_BSD)
        return y_BSD[:, x_BSD.shape[1] - T :]


def check_block(dim: int, n_heads: int) -> None:
    """Raise ValueError if the student's Block fails to build or run, or changes the shape of its input."""
    hint = "`python3 -m learn check gpt2.Block` says more"
    name = f"Block of learn/{FILE}"
    try:
        with torch.random.fork_rng(), torch.device("cpu"):
            x_BTD = torch.zeros(1, 2, dim)
            y = students_file().Block(dim, n_heads)(x_BTD)
    except NotImplementedError as error:
        raise ValueError(
            f"layer_architecture='student': in learn/{FILE} a part of Block is not built yet; {hint}"
        ) from error
    # The student's code may raise any exception.
    except Exception as error:
        raise ValueError(
            f"layer_architecture='student': {name} stops with {type(error).__name__}: {error}; {hint}"
        ) from error
    if not isinstance(y, Tensor) or y.shape != x_BTD.shape:
        raise ValueError(f"layer_architecture='student': {name} does not keep the shape [B, T, D]; {hint}")


class Softmaxes(TorchFunctionMode):
    """Mode that taps every softmax over [B, H, S, S] in its `with` block: "scores" is the input, "pattern" the output."""

    def __init__(self, ctx: Context, n_new: int) -> None:
        super().__init__()
        self.ctx, self.n_new = ctx, n_new

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        scores = args[0] if args else kwargs.get("input")
        if func not in SOFTMAX or not isinstance(scores, Tensor) or scores.dim() != 4:
            return func(*args, **kwargs)
        return self.tap("pattern", func(self.tap("scores", scores), *args[1:], **kwargs))

    def tap(self, name: str, x_BHSS: Tensor) -> Tensor:
        """Tap the new positions only. With a cache, earlier calls have tapped the other positions."""
        n_old = x_BHSS.shape[2] - self.n_new
        new_BHTS = x_BHSS[:, :, n_old:]
        tapped_BHTS = self.ctx.tap(name, new_BHTS)
        return x_BHSS if tapped_BHTS is new_BHTS else torch.cat([x_BHSS[:, :, :n_old], tapped_BHTS], dim=2)
