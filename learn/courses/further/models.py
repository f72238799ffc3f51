"""Small models as inputs of checks, some with weights set by hand so that the role of every head is known."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learn.courses.further.text import LONGEST, WORDS
from learn.solution.bert import BertForClassification
from learn.solution.gpt2 import GPT2
from model.lm import LM
from model.model_params import ModelParams


class Numbers:
    """Tokenizer whose texts are numbers: "3 5" is [0, 3, 5], where 0 begins a sequence."""

    bos: int | None = 0
    eos: int | None = 0
    pad = 0
    stops: tuple[int, ...] = (0,)
    mask: int | None = None

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.special_ids: dict[str, int] = {}

    def __call__(self, text: Any, *, parse_special: bool = False) -> Any:
        return [self.bos, *map(int, text.split())]

    def with_gaps(self, text: str) -> list[int]:
        return self(text)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(i) for i in ids]


class BagOfWords(nn.Module):
    """Classifier of the mean of the words' vectors, with BERT's interface. It notes in which mode it was called."""

    def __init__(self, n_tokens: int, n_classes: int) -> None:
        super().__init__()
        self.bert = nn.Sequential(nn.Embedding(n_tokens, 6), nn.Linear(6, 6, bias=False))
        self.head = nn.Linear(6, n_classes, bias=False)
        self.notes: dict[str, None] = {}

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        mode = "training" if self.training else "evaluation"
        self.notes[f"{mode} mode, {'with' if torch.is_grad_enabled() else 'without'} gradients"] = None
        weights = mask[:, :, None].to(self.head.weight.dtype)
        vectors = (self.bert(ids) * weights).sum(1) / weights.sum(1)
        return self.head(F.tanh(vectors))


def seeded(make, seed: int = 0):
    """Call `make` under a fixed seed and restore the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def tiny_bert() -> BertForClassification:
    """Return a BERT of the course with its matrices 5 times as large.

    Larger initial weights let 200 steps suffice.
    """
    model = seeded(lambda: BertForClassification(len(WORDS), LONGEST, 48, 2, 4, n_classes=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
    return model


def tiny_gpt2(spread: float = 0.0) -> GPT2:
    """Return a GPT-2 of the course in float64, with normal noise of deviation `spread` added to every parameter."""
    model = seeded(lambda: GPT2(11, 16, 12, 1, 2)).double()
    generator = torch.Generator().manual_seed(5)  # with this seed, continuations tell all mistakes apart
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def random_lm(dropout: float = 0.0) -> LM:
    """Return an LM of 3 layers in float64 with large random weights."""
    params = ModelParams(dim=24, n_layers=3, n_heads=4, max_seq_len=24)

    def make() -> LM:
        lm = LM(params, Numbers(9), dropout).double()
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return lm

    return seeded(make)


V, T, H, K = 10, 20, 5, 20  # of the model with a known induction head: tokens, positions, heads, their size
TOKEN, PLACE, BEFORE, ANSWER = 0, V, V + T, V + T + V  # where in the stream each block of numbers begins


def induction_lm(order: tuple[int, ...]) -> LM:
    """Return an LM of two attention-only layers that copies repeated sequences, with weights set by hand.

    The residual stream has four blocks: current token, position, previous token, token to predict.
    In layer 0 head order[0] writes the previous token. In layer 1:
    - order[0] finds what followed the same token and copies it: the induction head.
    - order[1] does the same, half as well.
    - order[2] attends there even more sharply, but writes nothing.
    - order[3] attends to the same token.

    All other weights are small and random.
    """
    params = ModelParams(
        dim=H * K,
        n_layers=2,
        n_heads=H,
        max_seq_len=T,
        dim_ff=0,
        norm_position="none",
        bias=False,
        tied_embeddings=False,
    )
    lm = seeded(lambda: LM(params, Numbers(V))).double()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(0.05)
        lm.embed.tokens.weight[:, TOKEN : TOKEN + V] += torch.eye(V)
        lm.embed.positions.table.weight[:, PLACE : PLACE + T] += torch.eye(T)
        one_back = torch.eye(T).roll(-1, dims=0)
        one_back[:, 0] = 0.0
        token, place, before = (TOKEN, torch.eye(V)), (PLACE, torch.eye(T)), (BEFORE, torch.eye(V))
        set_head(lm, (0, order[0]), 40.0, (PLACE, one_back), place, write=(BEFORE, 1.0))
        for head, sharp, gain in ((order[0], 40.0, 6.0), (order[1], 15.0, 3.0), (order[2], 60.0, 0.0)):
            set_head(lm, (1, head), sharp, token, before, write=(ANSWER, gain))
        set_head(lm, (1, order[3]), 40.0, token, token, write=(ANSWER, 0.5))
        lm.unembed.weight[:, ANSWER : ANSWER + V] += torch.eye(V)
    return lm


def set_head(
    lm: LM,
    head: tuple[int, int],
    sharp: float,
    query: tuple[int, Tensor],
    key: tuple[int, Tensor],
    write: tuple[int, float],
) -> None:
    """Set the weights of one attention head, `head` = (layer, head).

    `query` and `key` are (first dimension of a stream block, map that reads it). `sharp` multiplies the queries.
    `write` is (first dimension of the block the head writes tokens to, gain).
    """
    layer, h = head
    mixer = lm.decoder.layers[layer].get_submodule("mixer")
    q_HKD, k_HKD, v_HKD = mixer.get_parameter("qkv.weight").view(3, H, K, H * K)
    for weight_HKD, (block, read) in ((q_HKD, query), (k_HKD, key), (v_HKD, (TOKEN, torch.eye(V)))):
        n = len(read)
        weight_HKD[h, :n, block : block + n] += read
    q_HKD[h] *= sharp
    block, gain = write
    out_DK = mixer.get_parameter("out.weight")[:, h * K : (h + 1) * K]
    out_DK[block : block + V, :V] += gain * torch.eye(V)


def repeated(n: int = 4, length: int = 8) -> Tensor:
    """Return rows of a 0, `length` tokens in random order, and the same tokens again."""
    generator = torch.Generator().manual_seed(0)
    half = torch.stack([1 + torch.randperm(V - 1, generator=generator)[:length] for _ in range(n)])
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), half, half], dim=1)
