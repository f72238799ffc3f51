"""BERT from scratch: a worked solution of learn/bert_student.py. Look here last.

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head  K dim of a head  V vocabulary
                 C classes  N chosen positions of the whole batch
"""

import math

import torch
from torch import Tensor, nn

from learn.solution.gpt2 import LayerNorm


def gelu(x: Tensor) -> Tensor:
    """x times the probability that a standard normal number is below x."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Embedding(nn.Module):
    """Normalized sum of a vector for the token, one for its position and one for its type."""

    def __init__(self, n_tokens: int, max_seq_len: int, dim: int, n_types: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(n_tokens, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(max_seq_len, dim) * 0.02)
        self.types = nn.Parameter(torch.randn(n_types, dim) * 0.02)
        self.norm = LayerNorm(dim, eps=1e-12)

    def forward(self, ids_BT: Tensor, types_BT: Tensor | None = None) -> Tensor:
        if types_BT is None:
            types_BT = torch.zeros_like(ids_BT)
        T = ids_BT.shape[1]
        return self.norm(self.tokens[ids_BT] + self.positions[:T] + self.types[types_BT])


class SelfAttention(nn.Module):
    """Multi-head self-attention: every position mixes the values of all real positions."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        B, T, D = x_BTD.shape
        H, K = self.n_heads, D // self.n_heads
        q_BHTK = self.query(x_BTD).view(B, T, H, K).transpose(1, 2)
        k_BHSK = self.key(x_BTD).view(B, T, H, K).transpose(1, 2)
        v_BHSK = self.value(x_BTD).view(B, T, H, K).transpose(1, 2)
        scores_BHTS = q_BHTK @ k_BHSK.transpose(-1, -2) / math.sqrt(K)
        if mask_BS is not None:
            padding_B11S = mask_BS[:, None, None, :] == 0
            scores_BHTS = scores_BHTS.masked_fill(padding_B11S, -math.inf)
        pattern_BHTS = scores_BHTS.softmax(dim=-1)
        z_BHTK = pattern_BHTS @ v_BHSK
        return self.out(z_BHTK.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Widen to four times the width, apply the exact GELU, and go back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(gelu(self.up(x_BTD)))


class Block(nn.Module):
    """Attention and MLP, each added and then normalized (post-norm)."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, n_heads)
        self.norm1 = LayerNorm(dim, eps=1e-12)
        self.mlp = MLP(dim)
        self.norm2 = LayerNorm(dim, eps=1e-12)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.norm1(x_BTD + self.attention(x_BTD, mask_BT))
        return self.norm2(x_BTD + self.mlp(x_BTD))


class Bert(nn.Module):
    """The encoder: token ids to a vector at every position."""

    def __init__(
        self, n_tokens: int, max_seq_len: int, dim: int, n_layers: int, n_heads: int, *, n_types: int = 2
    ) -> None:
        super().__init__()
        self.embedding = Embedding(n_tokens, max_seq_len, dim, n_types)
        self.blocks = nn.ModuleList(Block(dim, n_heads) for _ in range(n_layers))
        for linear in self.blocks.modules():
            if isinstance(linear, nn.Linear):
                _draw(linear)

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, types_BT: Tensor | None = None
    ) -> Tensor:
        x_BTD = self.embedding(ids_BT, types_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_BT)
        return x_BTD


def _draw(linear: nn.Linear) -> None:
    """Draw the initial weights of a linear layer, and set its bias to zero."""
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)


class MaskedLMHead(nn.Module):
    """Vectors to logits of the original token at each position."""

    def __init__(self, n_tokens: int, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = LayerNorm(dim, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(n_tokens))
        _draw(self.dense)

    def forward(self, x_BTD: Tensor, tokens_VD: Tensor) -> Tensor:
        x_BTD = self.norm(gelu(self.dense(x_BTD)))
        return x_BTD @ tokens_VD.T + self.bias


class BertForMaskedLM(nn.Module):
    """Encoder and masked-LM head, which share the token vectors."""

    def __init__(
        self, n_tokens: int, max_seq_len: int, dim: int, n_layers: int, n_heads: int, *, n_types: int = 2
    ) -> None:
        super().__init__()
        self.bert = Bert(n_tokens, max_seq_len, dim, n_layers, n_heads, n_types=n_types)
        self.head = MaskedLMHead(n_tokens, dim)

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, types_BT: Tensor | None = None
    ) -> Tensor:
        x_BTD = self.bert(ids_BT, mask_BT, types_BT)
        return self.head(x_BTD, self.bert.embedding.tokens)


class ClassificationHead(nn.Module):
    """The first position's vector to logits of the classes."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, n_classes)
        _draw(self.pooler)
        _draw(self.out)

    def forward(self, x_BTD: Tensor) -> Tensor:
        pooled_BD = torch.tanh(self.pooler(x_BTD[:, 0]))
        return self.out(pooled_BD)


class BertForClassification(nn.Module):
    """Encoder and classification head: one answer for each text."""

    def __init__(
        self,
        n_tokens: int,
        max_seq_len: int,
        dim: int,
        n_layers: int,
        n_heads: int,
        *,
        n_classes: int,
        n_types: int = 2,
    ) -> None:
        super().__init__()
        self.bert = Bert(n_tokens, max_seq_len, dim, n_layers, n_heads, n_types=n_types)
        self.head = ClassificationHead(dim, n_classes)

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, types_BT: Tensor | None = None
    ) -> Tensor:
        return self.head(self.bert(ids_BT, mask_BT, types_BT))


class BertForPretraining(nn.Module):
    """Encoder with a masked-LM head and a classification head."""

    def __init__(
        self,
        n_tokens: int,
        max_seq_len: int,
        dim: int,
        n_layers: int,
        n_heads: int,
        *,
        n_classes: int = 2,
        n_types: int = 2,
    ) -> None:
        super().__init__()
        self.bert = Bert(n_tokens, max_seq_len, dim, n_layers, n_heads, n_types=n_types)
        self.tokens_head = MaskedLMHead(n_tokens, dim)
        self.text_head = ClassificationHead(dim, n_classes)

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, types_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        encoded_BTD = self.bert(ids_BT, mask_BT, types_BT)
        return self.tokens_head(encoded_BTD, self.bert.embedding.tokens), self.text_head(encoded_BTD)


def mask_tokens(
    ids_BT: Tensor, special_BT: Tensor, mask_id: int, n_tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose the tokens to be guessed, and hide most of them."""

    def happens(probability: float) -> Tensor:
        return torch.bernoulli(torch.full(ids_BT.shape, probability), generator=generator).bool()

    chosen_BT = happens(0.15) & (special_BT == 0)
    masked_BT = chosen_BT & happens(0.8)
    random_BT = chosen_BT & ~masked_BT & happens(0.5)
    words_BT = torch.randint(n_tokens, ids_BT.shape, generator=generator)
    hidden_BT = torch.where(masked_BT, mask_id, ids_BT)
    return torch.where(random_BT, words_BT, hidden_BT), chosen_BT


def masked_lm_loss(logits_BTV: Tensor, ids_BT: Tensor, chosen_BT: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, at the chosen positions."""
    logits_NV, ids_N = logits_BTV[chosen_BT], ids_BT[chosen_BT]
    right_N = logits_NV.gather(1, ids_N[:, None])[:, 0]
    losses_N = logits_NV.logsumexp(dim=-1) - right_N
    return losses_N.sum() / max(1, len(losses_N))
