"""BERT from scratch: replace each `raise NotImplementedError` and run `python3 -m learn check bert`.

What to read first, and how long it takes, is in learn/bert.md. Any order will do: a part that is not yet right is
borrowed from the solution while another is checked. From torch.nn use Module, Parameter, Linear, ModuleList and init;
everything else is yours to write out, by arithmetic, indexing, matrix products, softmax and the like. LayerNorm you
have built for GPT-2; as long as it is not right, it too is borrowed.

In the comments  B batch  T position  D model dim  H head  K = D / H dim of a head  V vocabulary  C classes.
"Order" says in which order random numbers are drawn: with one seed your weights then equal the solution's.
What is called `mask` says of each position whether it is real: whole numbers [B, T], 1 for a token, 0 for padding. None
means that there is no padding. Every text has a real token, and padding may be anywhere, not only at the end.
BERT's eps is 1e-12, in every LayerNorm.
"""

import torch
from torch import Tensor, nn

from learn.gpt2_student import LayerNorm  # noqa: F401  here it is for you to use


def gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit, exactly (Hendrycks and Gimpel 2016, section 2).

    x P(Z <= x) for a standard normal Z, element by element; any shape. GPT-2's was an approximation of it.
    Hint:  the probability is (1 + erf(x / sqrt(2))) / 2, and torch.erf is there to be used.
    """
    raise NotImplementedError


class Embedding(nn.Module):
    """The sum of three vectors, then LayerNorm (Devlin et al. 2019, section 3 and figure 2).

    One vector for the token, one for its position, counted from 0, one for its type: which of two texts it is of.
    Attributes:  tokens [n_tokens, D]   positions [max_seq_len, D]   types [n_types, D]   norm: LayerNorm, eps 1e-12
    Order:  as listed, all three normal with standard deviation 0.02 (torch.randn times 0.02).
    """

    def __init__(self, n_tokens: int, max_seq_len: int, dim: int, n_types: int = 2) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, ids: Tensor, types: Tensor | None = None) -> Tensor:
        """Ids [B, T] and types [B, T] to vectors [B, T, D]. Without types all tokens are of type 0."""
        raise NotImplementedError


class SelfAttention(nn.Module):
    """Multi-head self-attention to all real positions, before and after (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

    softmax(q k^T / sqrt(K)) v in each head, the heads side by side, then `out`. Padding gets no weight from anyone.
    Attributes:  n_heads   query, key, value, out: nn.Linear(D, D)
    Order:  query, key, value, out, each as nn.Linear makes it.
    Hints:  head 0 has the first K numbers of q, head 1 the next K, and so on: `.view(B, T, H, K)`, `.transpose(1, 2)`;
            on the way back transpose first, then `.reshape(B, T, D)`.
            Scores [B, H, T, S] have the queries' positions before the keys'. Scores of padded keys become minus infinity
            before the softmax: the mask [B, S] has to be given two more dimensions, so that it broadcasts.
            What comes out at padded positions themselves does not matter, as long as it is finite.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] and a mask [B, T] to [B, T, D]."""
        raise NotImplementedError


class MLP(nn.Module):
    """Position by position, to four times the width, gelu, and back (Vaswani et al. 2017, section 3.3).

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
    """One layer, LayerNorm(x + sublayer(x)) for attention and then for the MLP (Vaswani et al. 2017, section 3.1).

    Attributes:  attention: SelfAttention   norm1: LayerNorm   mlp: MLP   norm2: LayerNorm
    Order:  as listed.
    Hint:   this is not GPT-2's order: what is added to is what the norm before left, and nothing goes around a norm.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] and a mask [B, T] to [B, T, D]."""
        raise NotImplementedError


class Bert(nn.Module):
    """The encoder: ids to a vector at every position (Devlin et al. 2019, section 3).

    Embedding, then blocks; nothing after the last block, whose norm was the final one.
    Attributes:  embedding: Embedding   blocks: nn.ModuleList of n_layers Block
    Order:  make both as listed. Then go over the blocks, in each over query, key, value, out, up, down, and draw each
            weight anew by nn.init.normal_ with std 0.02. Their biases become 0. Norms and embedding stay as they are.
    """

    def __init__(
        self, n_tokens: int, max_seq_len: int, dim: int, n_layers: int, n_heads: int, *, n_types: int = 2
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Ids, mask and types [B, T] to vectors [B, T, D]."""
        raise NotImplementedError


class MaskedLMHead(nn.Module):
    """Vectors to logits of the token that stood there (Devlin et al. 2019, section 3.1 and appendix A.2).

    dense, gelu, norm; then a logit is the product with a token's vector plus that token's bias. The token vectors are
    the embedding's: they are given, not made here (tied weights). The authors' code has dense and norm, the paper not.
    Attributes:  dense: nn.Linear(D, D)   norm: LayerNorm   bias [n_tokens], zeros
    Order:  make dense; then draw its weight anew by nn.init.normal_ with std 0.02. Its bias becomes 0.
    """

    def __init__(self, n_tokens: int, dim: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """[B, T, D] and the embedding's tokens [V, D] to logits [B, T, V]."""
        raise NotImplementedError


class BertForMaskedLM(nn.Module):
    """Ids, some of them hidden, to logits of the tokens at every position (Devlin et al. 2019, section 3.1).

    Attributes:  bert: Bert   head: MaskedLMHead
    Order:  as listed.
    """

    def __init__(
        self, n_tokens: int, max_seq_len: int, dim: int, n_layers: int, n_heads: int, *, n_types: int = 2
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Ids, mask and types [B, T] to logits [B, T, V]."""
        raise NotImplementedError


class ClassificationHead(nn.Module):
    """One answer for each text, from its first position, [CLS] (Devlin et al. 2019, section 3.2 and appendix A.2).

    out(tanh(pooler(the vector at position 0))).
    Attributes:  pooler: nn.Linear(D, D)   out: nn.Linear(D, n_classes)
    Order:  make both as listed; then draw the weight of pooler anew and that of out, by nn.init.normal_ with std 0.02.
            Both biases become 0.
    """

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to logits [B, C]."""
        raise NotImplementedError


class BertForClassification(nn.Module):
    """Ids to logits of the classes, one row for each text (Devlin et al. 2019, section 3.2).

    Attributes:  bert: Bert   head: ClassificationHead
    Order:  as listed.
    """

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
        raise NotImplementedError

    def forward(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Ids, mask and types [B, T] to logits [B, C]."""
        raise NotImplementedError


def mask_tokens(
    ids: Tensor, special: Tensor, mask_id: int, n_tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose the tokens that BERT learns to guess, and hide most of them (Devlin et al. 2019, section 3.1).

    ids      [B, T], which stay as they are: make a new tensor
    special  [B, T], 1 or True at tokens such as [CLS], [SEP] and padding, which are never chosen; elsewhere 0 or False
    Every other token is chosen with probability 0.15, on its own. A chosen one becomes mask_id with probability 0.8,
    else a random token with probability 0.5, else it stays: 80, 10 and 10 %. Random tokens are any of 0 to n_tokens - 1.
    Returns two tensors [B, T]: the ids so changed, and a bool that is True where a token was chosen, changed or not.
    Order:  four draws from `generator`, each a tensor [B, T] even where not all of it is used: torch.bernoulli of
            torch.full with 0.15 (chosen), with 0.8 (hidden), with 0.5 (random, of those not hidden); then
            torch.randint for the random tokens.
    """
    raise NotImplementedError


def masked_lm_loss(logits: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the chosen positions of the whole batch, one number (Devlin et al. 2019, A.1).

    logits [B, T, V], the ids [B, T] as they were before any was hidden, and `chosen` [B, T], bool. Position t predicts
    the token at t: nothing is shifted. Where no position is chosen the loss is 0, a tensor
    whose `backward` works.
    Hint:   a bool indexes its positions, `ids[chosen]`; the rest is next_token_loss of GPT-2 once more, with logits
            as large as 1000.
    """
    raise NotImplementedError
