"""GPT-2 from scratch: replace each `raise NotImplementedError` and run `python3 -m learn check`.

learn/gpt2.md says what to read first and how long it takes. Work in any order: a check borrows the parts that are
not right yet from the solution. From torch.nn use Module, Parameter, Linear, ModuleList and init.
Write out everything else yourself, with arithmetic, indexing, matrix products, softmax and the like.

In the comments  B batch  T position  D model dim  H head  K = D / H dim of a head  V vocabulary.
"Order" says in which order random numbers are drawn: with one seed your weights then equal the solution's.
"""

import torch  # noqa: F401  here it is for you to use
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Layer normalization over the last dimension (Ba et al. 2016, section 3, equation 4).

    Subtract the mean of the features, divide by sqrt(variance + eps), scale by `weight`, shift by `bias`.
    `dim` is an int. (torch.nn.LayerNorm also takes a tuple, and then normalizes over several last dimensions.)
    Attributes:  weight [D], ones   bias [D], zeros   eps
    Hints:  the variance divides by D, not by D - 1, so `x.var()` needs `correction=0`;  `keepdim=True` keeps
            the mean's shape such that it can be subtracted.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        raise NotImplementedError


def gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit in the approximation GPT-2 uses (Hendrycks and Gimpel 2016, section 2).

    0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), element by element; any shape.
    """
    raise NotImplementedError


class Embedding(nn.Module):
    """A vector for each token plus a learned vector for each position (GPT, Radford et al. 2018, section 3.1).

    Attributes:  tokens [n_tokens, D]   positions [max_seq_len, D]
    Order:  tokens, then positions, both normal with standard deviation 0.02 (torch.randn times 0.02).
    Hint:   a tensor of ids indexes a matrix: `matrix[ids]`. Positions count from 0.
    """

    def __init__(self, n_tokens: int, max_seq_len: int, dim: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to vectors [B, T, D]."""
        raise NotImplementedError


class CausalAttention(nn.Module):
    """Multi-head self-attention that never sees the future (Vaswani et al. 2017, sections 3.2.1 to 3.2.3).

    In each head the scores are q k^T / sqrt(K), T x T numbers. Softmax over the keys turns scores into weights of the
    values: softmax(scores) v. The results of all heads are concatenated to D numbers and go through `out`.
    Attributes:  n_heads   qkv: nn.Linear(D, 3 D)   out: nn.Linear(D, D)
    Order:  qkv, then out, both as nn.Linear makes them.
    Hints:  the output of qkv is all of q (D numbers), then all of k, then all of v. In each of the three, head 0 has
            the first K numbers, head 1 the next K, and so on: `.view(B, T, H, K)`, then `.transpose(1, 2)`.
            Position t may attend to positions 0 to t, itself included. Scores of later positions become minus
            infinity before the softmax, by `masked_fill`. `torch.ones(T, T).triu(1).bool()` is True just there.
            On the way back transpose first, then `.reshape(B, T, D)`.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        raise NotImplementedError


class MLP(nn.Module):
    """At each position: widen to 4 D, apply gelu, and go back to D (Vaswani et al. 2017, section 3.3).

    Attributes:  up: nn.Linear(D, 4 D)   down: nn.Linear(4 D, D)
    Order:  up, then down, both as nn.Linear makes them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        raise NotImplementedError


class Block(nn.Module):
    """One transformer layer (GPT-2, Radford et al. 2019, section 2.3: the norms moved to the input of each sub-block).

    Attributes:  norm1: LayerNorm   attention: CausalAttention   norm2: LayerNorm   mlp: MLP
    Order:  as listed.
    Hint:   only the inputs of attention and mlp are normalized. Their outputs are added to the stream itself.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        raise NotImplementedError


class GPT2(nn.Module):
    """Ids to logits of the next token at every position (Radford et al. 2019, section 2.3).

    Embedding, blocks, a final norm. Logits are products with the embedding's own token vectors: this is
    called weight tying (Press and Wolf 2017).
    Attributes:  embedding: Embedding   blocks: nn.ModuleList of n_layers Block   final_norm: LayerNorm
    Order:  make the three as listed. Then go over `self.blocks.named_parameters()` in their own order and draw each
            matrix anew by nn.init.normal_ with std 0.02, or 0.02 / sqrt(2 n_layers) where it writes into the
            residual stream (attention.out, mlp.down). Biases become 0. Norms and embedding stay as they are.
    """

    def __init__(self, n_tokens: int, max_seq_len: int, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B, T] to logits [B, T, V]."""
        raise NotImplementedError


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats, one number (Bengio et al. 2003, section 2).

    logits [B, T, V] were computed from ids [B, T]. Position t predicts the token at t + 1. So the last position has
    nothing to predict, and no position predicts the first token.
    Hints:  the loss at a position is log(sum over V of exp(logits)) minus the right token's logit. Logits may
            be as large as 1000, where exp overflows: `logsumexp` does not. `gather` picks the right token's logit.
    """
    raise NotImplementedError


class LayerNormOverDims(nn.Module):
    """Layer normalization over several last dimensions at once, as torch.nn.LayerNorm with a tuple (Ba et al. 2016).

    GPT-2 does not need it. `shape` is a tuple with the sizes of these dimensions: with (3, 4), each sample of shape
    [3, 4] gets one mean and one variance, over its 12 numbers. Scale and shift have a number for each of the 12.
    Attributes:  weight [*shape], ones   bias [*shape], zeros   eps
    Hint:  `x.mean(dim=(-2, -1), keepdim=True)` takes a tuple of dimensions; counted from the end, they are
           -len(shape) to -1.
    """

    def __init__(self, shape: tuple[int, ...], eps: float = 1e-5) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., *shape] to [..., *shape]."""
        raise NotImplementedError


class Dropout(nn.Module):
    """Set numbers to zero at random, in training only (Srivastava et al. 2014, section 4).

    GPT-2 was trained with p = 0.1 after the embedding and after each sub-block. Each number becomes 0 with probability
    p, independently of all others and anew in every call. The rest is divided by 1 - p, so that the mean stays. In
    evaluation nothing changes: `nn.Module` sets `self.training`, by `train()` and `eval()`.
    Attributes:  p
    Hint:  `torch.rand_like(x)` is below p with probability p. With p = 1 everything is 0: mind the division.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        raise NotImplementedError
