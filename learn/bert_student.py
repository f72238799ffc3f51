"""BERT from scratch: replace each `raise NotImplementedError` and run `python3 -m learn check bert`.

learn/bert.md says what to read first and how long it takes. Work in any order: a check borrows the parts that are
not right yet from the solution. From torch.nn use Module, Parameter, Linear, ModuleList and init.
Write out everything else yourself, with arithmetic, indexing, matrix products, softmax and the like.
LayerNorm is the one you built for GPT-2. While yours is not right, it is borrowed, too.

In the comments  B batch  T position  D model dim  H head  K = D / H dim of a head  V vocabulary  C classes.
"Order" says in which order random numbers are drawn: with one seed your weights then equal the solution's.
`mask` marks the real positions: integers [B, T], 1 for a token, 0 for padding. None means that there is no padding.
Every text has at least one token. Padding may be anywhere, not only at the end.
BERT's eps is 1e-12, in every LayerNorm.
"""

import torch
from torch import Tensor, nn

from learn.gpt2_student import LayerNorm  # noqa: F401  here it is for you to use


def gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit, exactly (Hendrycks and Gimpel 2016, section 2).

    x P(Z <= x) for a standard normal Z, element by element; any shape. GPT-2 uses an approximation of it.
    Hint:  the probability is (1 + erf(x / sqrt(2))) / 2. You may use torch.erf.
    """
    raise NotImplementedError


class Embedding(nn.Module):
    """The sum of three vectors, then LayerNorm (Devlin et al. 2019, section 3 and figure 2).

    One vector is for the token, one for its position, counted from 0, and one for its type: the text it belongs to.
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

    Each head computes softmax(q k^T / sqrt(K)) v. The heads are concatenated and go through `out`. Padded keys get no
    weight.
    Attributes:  n_heads   query, key, value, out: nn.Linear(D, D)
    Order:  query, key, value, out, each as nn.Linear makes it.
    Hints:  head 0 has the first K numbers of q, head 1 the next K, and so on: `.view(B, T, H, K)`, `.transpose(1, 2)`;
            on the way back transpose first, then `.reshape(B, T, D)`.
            Scores [B, H, T, S] have the queries' positions before the keys'. Scores of padded keys become minus infinity
            before the softmax: give the mask [B, S] two more dimensions, so that it broadcasts.
            The output at padded positions does not matter, as long as it is finite.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] and a mask [B, T] to [B, T, D]."""
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
    """One layer, LayerNorm(x + sublayer(x)) for attention and then for the MLP (Vaswani et al. 2017, section 3.1).

    Attributes:  attention: SelfAttention   norm1: LayerNorm   mlp: MLP   norm2: LayerNorm
    Order:  as listed.
    Hint:   this is not GPT-2's order: each sublayer's output is added to a normalized stream, and no path skips a norm.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] and a mask [B, T] to [B, T, D]."""
        raise NotImplementedError


class Bert(nn.Module):
    """The encoder: ids to a vector at every position (Devlin et al. 2019, section 3).

    Embedding, then blocks. No final norm follows: the last block ends in one.
    Attributes:  embedding: Embedding   blocks: nn.ModuleList of n_layers Block
    Order:  make both as listed. Then, in each block, for query, key, value, out, up and down in this order, draw the
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

    Apply dense, gelu and norm. A logit is the product with a token's vector, plus that token's bias. The token vectors
    are the embedding's and are passed as an argument (tied weights). dense and norm are in the authors' code only, not
    in the paper.
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


class BertForPretraining(nn.Module):
    """Both of BERT's heads on one encoder, as it was trained (Devlin et al. 2019, section 3.1, tasks 1 and 2).

    The first head guesses hidden tokens. The second answers from [CLS] whether the second text follows the first, with
    two classes, or any other question about the whole input.
    Attributes:  bert: Bert   tokens_head: MaskedLMHead   text_head: ClassificationHead
    Order:  as listed.
    Hint:  both heads read the same output of the encoder: run it once.
    """

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
        raise NotImplementedError

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids, mask and types [B, T] to logits of tokens [B, T, V] and logits of classes [B, C]."""
        raise NotImplementedError


def mask_tokens(
    ids: Tensor, special: Tensor, mask_id: int, n_tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose the tokens that BERT learns to guess, and hide most of them (Devlin et al. 2019, section 3.1).

    ids      [B, T]. Do not change them: make a new tensor
    special  [B, T], 1 or True at tokens such as [CLS], [SEP] and padding, which are never chosen; elsewhere 0 or False
    Every other token is chosen with probability 0.15, independently. A chosen one becomes mask_id with probability 0.8.
    Of the rest, half become a random token, half stay: that makes 80, 10 and 10 %. Random tokens are 0 to n_tokens - 1.
    Returns two tensors [B, T]: the new ids, and a bool that is True where a token was chosen, changed or not.
    Order:  four draws from `generator`, each a full tensor [B, T]: torch.bernoulli of torch.full with 0.15 (chosen),
            with 0.8 (hidden), with 0.5 (random, of those not hidden); then torch.randint for the random tokens.
    """
    raise NotImplementedError


def masked_lm_loss(logits: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the chosen positions of the whole batch, one number (Devlin et al. 2019, A.1).

    logits [B, T, V], the ids [B, T] as they were before any was hidden, and `chosen` [B, T], bool. Position t predicts
    the token at t: nothing is shifted. If no position is chosen, the loss is 0, a tensor whose `backward` works.
    Hint:   a bool tensor selects positions, `ids[chosen]`. The rest is as in GPT-2's next_token_loss, with logits
            as large as 1000.
    """
    raise NotImplementedError
