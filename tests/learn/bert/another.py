"""A right student's file in another spelling than the solution's: what the checks find must not hang on spelling."""

import torch
from torch import nn

from learn.solution.gpt2 import LayerNorm


def gelu(x):
    below = torch.special.ndtr(x)
    return x * below


class Embedding(nn.Module):
    def __init__(self, n_tokens, max_seq_len, dim, n_types=2):
        super().__init__()
        std, eps = 0.02, 1e-12
        tokens = torch.empty(n_tokens, dim).normal_() * std
        positions = torch.empty(max_seq_len, dim).normal_() * std
        types = torch.empty(n_types, dim).normal_() * std
        self.norm = LayerNorm(dim, eps)
        self.types, self.positions = nn.Parameter(types), nn.Parameter(positions)
        self.tokens = nn.Parameter(tokens)

    def forward(self, ids, types=None):
        places = torch.arange(ids.shape[1])
        x = self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)
        x = x + self.positions[places]
        t = self.types[0] if types is None else self.types[types]
        x = x + t
        return self.norm(x)


class SelfAttention(nn.Module):
    def __init__(self, dim, n_heads):
        super().__init__()
        for name in ("query", "key", "value", "out"):
            self.add_module(name, nn.Linear(dim, dim))
        self.n_heads = n_heads

    def forward(self, x, mask=None):
        n, length, dim = x.shape
        size = dim // self.n_heads
        q, k, v = self.query(x), self.key(x), self.value(x)
        if mask is None:
            mask = torch.ones(n, length)
        padded = (1 - mask.to(x.dtype)) * -1e9
        bias = padded[:, None, :]
        heads = []
        for h in range(self.n_heads):
            mine = slice(h * size, (h + 1) * size)
            scores = torch.einsum("btk,bsk->bts", q[..., mine], k[..., mine]) * size**-0.5
            weights = self.softmax(scores + bias)
            heads.append(torch.einsum("bts,bsk->btk", weights, v[..., mine]))
        return self.out(torch.cat(heads, dim=2))

    def softmax(self, scores):
        weights = (scores - scores.amax(2, keepdim=True)).exp()
        return weights / weights.sum(2, keepdim=True)


class MLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = self.up(x)
        x = gelu(x)
        return self.down(x)


class Block(nn.Module):
    def __init__(self, dim, n_heads):
        super().__init__()
        eps = 1e-12
        self.attention, self.norm1 = SelfAttention(dim, n_heads), LayerNorm(dim, eps)
        self.mlp, self.norm2 = MLP(dim), LayerNorm(dim, eps)

    def forward(self, x, mask=None):
        a = self.attention(x, mask)
        y = self.norm1(x + a)
        m = self.mlp(y)
        return self.norm2(y + m)


class Bert(nn.Module):
    def __init__(self, n_tokens, max_seq_len, dim, n_layers, n_heads, *, n_types=2):
        super().__init__()
        self.embedding = Embedding(n_tokens, max_seq_len, dim, n_types)
        self.blocks = nn.ModuleList([Block(dim, n_heads) for _ in range(n_layers)])
        std = 0.02
        for block in self.blocks:
            a, m = block.attention, block.mlp
            for linear in (a.query, a.key, a.value, a.out, m.up, m.down):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, ids, mask=None, types=None):
        x = self.embedding(ids, types)
        for i in range(len(self.blocks)):
            x = self.blocks[i](x, mask)
        return x


class MaskedLMHead(nn.Module):
    def __init__(self, n_tokens, dim):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_tokens))
        self.dense, self.norm = nn.Linear(dim, dim), LayerNorm(dim, eps=1e-12)
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x, tokens):
        y = self.dense(x)
        y = gelu(y)
        y = self.norm(y)
        return torch.einsum("btd,vd->btv", y, tokens) + self.bias


class BertForMaskedLM(nn.Module):
    def __init__(self, n_tokens, max_seq_len, dim, n_layers, n_heads, *, n_types=2):
        super().__init__()
        self.bert = Bert(n_tokens, max_seq_len, dim, n_layers, n_heads, n_types=n_types)
        self.head = MaskedLMHead(n_tokens, dim)

    def forward(self, ids, mask=None, types=None):
        vectors = self.bert.embedding.tokens
        x = self.bert(ids, mask=mask, types=types)
        return self.head(x, vectors)


class ClassificationHead(nn.Module):
    def __init__(self, dim, n_classes):
        super().__init__()
        self.pooler, self.out = nn.Linear(dim, dim), nn.Linear(dim, n_classes)
        for linear in (self.pooler, self.out):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x):
        first = x.unbind(1)[0]
        y = self.pooler(first).tanh()
        return self.out(y)


class BertForClassification(nn.Module):
    def __init__(self, n_tokens, max_seq_len, dim, n_layers, n_heads, *, n_classes, n_types=2):
        super().__init__()
        self.bert = Bert(n_tokens, max_seq_len, dim, n_layers, n_heads, n_types=n_types)
        self.head = ClassificationHead(dim, n_classes)

    def forward(self, ids, mask=None, types=None):
        x = self.bert(ids, types=types, mask=mask)
        return self.head(x)


class BertForPretraining(nn.Module):
    def __init__(self, n_tokens, max_seq_len, dim, n_layers, n_heads, *, n_classes=2, n_types=2):
        super().__init__()
        self.bert = Bert(n_tokens, max_seq_len, dim, n_layers, n_heads, n_types=n_types)
        self.tokens_head, self.text_head = MaskedLMHead(n_tokens, dim), ClassificationHead(dim, n_classes)

    def forward(self, ids, mask=None, types=None):
        encoded = self.bert(ids, types=types, mask=mask)
        words = self.tokens_head(encoded, self.bert.embedding.tokens)
        return words, self.text_head(encoded)


def mask_tokens(ids, special, mask_id, n_tokens, generator):
    dice = [torch.rand(ids.shape, generator=generator) < p for p in (0.15, 0.8, 0.5)]
    words = torch.randint(0, n_tokens, ids.shape, generator=generator)
    chosen = dice[0] & ~special.bool()
    new = ids.clone()
    swap = chosen & dice[2]
    new[swap] = words[swap]
    hide = chosen & dice[1]
    new[hide] = mask_id
    return new, chosen


def masked_lm_loss(logits, ids, chosen):
    total, n = 0 * logits.sum(), 0
    for row, wanted, guess in zip(logits, ids, chosen, strict=True):
        for t in guess.nonzero().flatten().tolist():
            now = row[t] - row[t].amax()
            total = total + now.exp().sum().log() - now[wanted[t]]
            n += 1
    return total / max(n, 1)
