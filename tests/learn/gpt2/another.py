"""A right student's file in another spelling than the solution's: what the checks find must not hang on spelling."""

import math

import torch
from torch import nn


class LayerNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        var = x.var(-1, keepdim=True, correction=0)
        y = (x - mean) * (var + self.eps).rsqrt()
        y = y * self.weight
        return y + self.bias


def gelu(x):
    root = (2 / math.pi) ** 0.5
    t = torch.tanh(root * x + root * 0.044715 * x * x * x)
    return x * (0.5 + 0.5 * t)


class Embedding(nn.Module):
    def __init__(self, n_tokens, max_seq_len, dim):
        super().__init__()
        std = 0.02
        tokens = torch.empty(n_tokens, dim).normal_() * std
        positions = torch.empty(max_seq_len, dim).normal_() * std
        self.positions = nn.Parameter(positions)
        self.tokens = nn.Parameter(tokens)

    def forward(self, ids):
        x = self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)
        places = torch.arange(ids.shape[1])
        return x + self.positions[places]


class CausalAttention(nn.Module):
    def __init__(self, dim, n_heads):
        super().__init__()
        self.qkv = nn.Linear(dim, dim * 3)
        self.out = nn.Linear(dim, dim)
        self.n_heads = n_heads

    def forward(self, x):
        length, dim = x.shape[1:]
        size = dim // self.n_heads
        q, k, v = self.qkv(x).chunk(3, dim=2)
        heads = []
        for h in range(self.n_heads):
            mine = slice(h * size, (h + 1) * size)
            scores = torch.einsum("btk,bsk->bts", q[..., mine], k[..., mine]) * size**-0.5
            place = torch.arange(length)
            scores = torch.where(place[:, None] >= place, scores, -torch.inf)
            heads.append(self.softmax(scores, v[..., mine]))
        return self.out(torch.cat(heads, dim=2))

    def softmax(self, scores, v):
        weights = (scores - scores.amax(2, keepdim=True)).exp()
        weights = weights / weights.sum(2, keepdim=True)
        return torch.einsum("bts,bsk->btk", weights, v)


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
        self.norm1, self.attention = LayerNorm(dim), CausalAttention(dim, n_heads)
        self.norm2, self.mlp = LayerNorm(dim), MLP(dim)

    def forward(self, x):
        a = self.attention(self.norm1(x))
        x = x + a
        m = self.mlp(self.norm2(x))
        return x + m


class GPT2(nn.Module):
    def __init__(self, n_tokens, max_seq_len, dim, n_layers, n_heads):
        super().__init__()
        self.embedding = Embedding(n_tokens, max_seq_len, dim)
        self.blocks = nn.ModuleList([Block(dim, n_heads) for _ in range(n_layers)])
        self.final_norm = LayerNorm(dim)
        for block in self.blocks:
            for linear in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down):
                small = linear in (block.attention.out, block.mlp.down)
                nn.init.normal_(linear.weight, std=0.02 * (2 * n_layers) ** -0.5 if small else 0.02)
                nn.init.zeros_(linear.bias)

    def forward(self, ids):
        x = self.embedding(ids)
        for i in range(len(self.blocks)):
            x = self.blocks[i](x)
        x = self.final_norm(x)
        return torch.einsum("btd,vd->btv", x, self.embedding.tokens)


def next_token_loss(logits, ids):
    losses = []
    for t in range(ids.shape[1] - 1):
        now = logits[:, t] - logits[:, t].amax(-1, keepdim=True)
        wanted = now[torch.arange(len(ids)), ids[:, t + 1]]
        losses.append(now.exp().sum(-1).log() - wanted)
    return torch.stack(losses).mean()


class LayerNormOverDims(nn.Module):
    def __init__(self, shape, eps=1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = (
            nn.Parameter(torch.ones(*shape)),
            nn.Parameter(torch.zeros(*shape)),
            eps,
        )

    def forward(self, x):
        n = self.weight.dim()
        flat = x.flatten(-n)
        mean_all = flat.sum(-1, keepdim=True) / flat.shape[-1]
        var_all = ((flat - mean_all) ** 2).sum(-1, keepdim=True) / flat.shape[-1]
        y = (flat - mean_all) * (var_all + self.eps) ** -0.5
        return torch.addcmul(self.bias, y.view(x.shape), self.weight)


class Dropout(nn.Module):
    def __init__(self, p=0.1):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.training and self.p == 1:
            return torch.zeros_like(x)
        keep = torch.bernoulli(torch.full(x.shape, 1 - self.p, dtype=x.dtype))
        return x * keep / (1 - self.p) if self.training else x
