"""GPT-2 from scratch: a worked solution of learn/gpt2_student.py. Look here last.

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head  K dim of a head  V vocabulary
"""

import math

import torch
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 over the features, then a learned scale and shift."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        if not isinstance(dim, int):
            raise TypeError(f"dim={dim!r} must be an int: only the last dimension is normalized")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        centered_BTD = x_BTD - x_BTD.mean(dim=-1, keepdim=True)
        variance_BT1 = (centered_BTD**2).mean(dim=-1, keepdim=True)
        normal_BTD = centered_BTD / torch.sqrt(variance_BT1 + self.eps)
        return normal_BTD * self.weight + self.bias


def gelu(x: Tensor) -> Tensor:
    """x times the probability that a standard normal number is below x, approximated by a tanh."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + torch.tanh(inner))


class Embedding(nn.Module):
    """A vector for each token plus a vector for each position."""

    def __init__(self, n_tokens: int, max_seq_len: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(n_tokens, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(max_seq_len, dim) * 0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        T = ids_BT.shape[1]
        return self.tokens[ids_BT] + self.positions[:T]


class CausalAttention(nn.Module):
    """Multi-head causal self-attention: every position mixes the values of itself and its past."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        H, K = self.n_heads, D // self.n_heads
        q_BTD, k_BTD, v_BTD = self.qkv(x_BTD).split(D, dim=-1)
        q_BHTK, k_BHSK, v_BHSK = (y_BTD.view(B, T, H, K).transpose(1, 2) for y_BTD in (q_BTD, k_BTD, v_BTD))
        scores_BHTS = q_BHTK @ k_BHSK.transpose(-1, -2) / math.sqrt(K)
        future_TS = torch.ones(T, T, device=x_BTD.device).triu(diagonal=1).bool()
        pattern_BHTS = scores_BHTS.masked_fill(future_TS, -math.inf).softmax(dim=-1)
        z_BHTK = pattern_BHTS @ v_BHSK
        return self.out(z_BHTK.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Widen each position to four times the width, apply GELU, and go back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(gelu(self.up(x_BTD)))


class Block(nn.Module):
    """Attention and MLP, each on a normalized copy of the residual stream and added to it (pre-norm)."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attention = CausalAttention(dim, n_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class GPT2(nn.Module):
    """Token ids to logits of the next token, at every position."""

    def __init__(self, n_tokens: int, max_seq_len: int, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.embedding = Embedding(n_tokens, max_seq_len, dim)
        self.blocks = nn.ModuleList(Block(dim, n_heads) for _ in range(n_layers))
        self.final_norm = LayerNorm(dim)
        self.initialize()

    def initialize(self) -> None:
        """Draw the matrices of the blocks anew, in the order of their creation, and set biases to zero."""
        for name, parameter in self.blocks.named_parameters():
            if parameter.dim() == 2:
                into_stream = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * len(self.blocks)) if into_stream else 0.02
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(ids_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.final_norm(x_BTD) @ self.embedding.tokens.T


def next_token_loss(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of each token given those before it."""
    logits_BTV, targets_BT = logits_BTV[:, :-1], ids_BT[:, 1:]
    right_BT = logits_BTV.gather(2, targets_BT[:, :, None])[:, :, 0]
    return (logits_BTV.logsumexp(dim=-1) - right_BT).mean()


class LayerNormOverDims(nn.Module):
    """Mean 0 and variance 1 over several last dimensions, then a learned scale and shift for each number."""

    def __init__(self, shape: tuple[int, ...], eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.dims = tuple(range(-len(shape), 0))
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(dim=self.dims, keepdim=True)
        variance = (centered**2).mean(dim=self.dims, keepdim=True)
        normal = centered / torch.sqrt(variance + self.eps)
        return self.bias + self.weight * normal


class Dropout(nn.Module):
    """In training, set each number to zero with probability p, and scale the rest so that the mean stays."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        dropped = torch.rand_like(x) < self.p
        return (x / max(1 - self.p, 1e-12)).masked_fill(dropped, 0.0)
