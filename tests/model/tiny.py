"""Tiny models and a stand-in tokenizer: model/ must work with any object of that interface."""

import torch
from torch import Tensor, nn

from model.lm import LM
from model.model_params import ModelParams

KINDS = ["custom-transformer", "torch-transformer", "torch-lstm", "torch-gru"]
COMBINATIONS = [
    (kind, positions)
    for kind in KINDS
    for positions in ("none", "learned", "sin", "rotary")
    if kind == "custom-transformer" or positions != "rotary"
]


class CharTokenizer:
    """Letters a to z and so on, after four special ids."""

    pad, bos, eos, unk = 0, 1, 2, 3

    def __init__(self, n_tokens: int = 30) -> None:
        self.n_tokens = n_tokens

    def __call__(self, text):
        if isinstance(text, list):
            return [self(one) for one in text]
        return [self.bos, *(4 + (ord(c) - ord("a")) % (self.n_tokens - 4) for c in text)]

    def decode(self, ids) -> str:
        return "".join(chr(ord("a") + int(i) - 4) for i in ids if i >= 4)


def tiny_params(**fields) -> ModelParams:
    return ModelParams(**({"dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 16} | fields))


def tiny_lm(*, seed: int = 0, n_tokens: int = 30, dropout: float = 0.0, dtype=torch.float64, **fields) -> LM:
    """An LM with every parameter perturbed, so that no zero or one hides a mistake; in eval mode."""
    torch.manual_seed(seed)
    lm = LM(tiny_params(**fields), CharTokenizer(n_tokens), dropout)
    perturb(lm)
    return lm.to(dtype).eval()


@torch.no_grad()
def perturb(module: nn.Module, size: float = 0.3) -> None:
    for parameter in module.parameters():
        parameter.add_(size * torch.randn_like(parameter))


def random_ids(B: int, T: int, n_tokens: int = 30, seed: int = 0) -> Tensor:
    return torch.randint(n_tokens, (B, T), generator=torch.Generator().manual_seed(seed))


def batch_of(ids: Tensor, scored: Tensor | None = None) -> dict:
    """A batch as the data loaders make them; all but the first token scored unless said otherwise."""
    scored = torch.ones_like(ids, dtype=torch.bool) if scored is None else scored
    return {"x_indices": ids, "target_mask": scored, "n_scored": int(scored[:, 1:].sum())}
