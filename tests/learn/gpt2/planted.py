"""Known mistakes to plant in tests/learn/gpt2/another.py: the part, what should be said, and (old, new) edits."""

MISTAKES = [
    ("LayerNorm", "eps is missing", [("(var + self.eps)", "var")]),
    ("LayerNorm", "divides by D - 1", [(", correction=0", "")]),
    ("LayerNorm", "under the root", [("(var + self.eps).rsqrt()", "(var.sqrt() + self.eps) ** -1")]),
    ("LayerNorm", "without the square root", [("rsqrt()", "reciprocal()")]),
    ("LayerNorm", "mean is not subtracted", [("(x - mean)", "x")]),
    ("LayerNorm", "`weight` is missing", [("y = y * self.weight", "y = 1 * y")]),
    ("LayerNorm", "`bias` is missing", [("y + self.bias", "y")]),
    ("LayerNorm", "over the positions", [("mean(-1", "mean(-2"), ("var(-1", "var(-2")]),
    (
        "gelu",
        "exact GELU",
        [("torch.tanh(root * x + root * 0.044715 * x * x * x)", "torch.special.erf(x * 0.5**0.5)")],
    ),
    ("gelu", "1.702", [("x * (0.5 + 0.5 * t)", "x / (1 + (-1.702 * x).exp())")]),
    ("gelu", "both terms", [("root * 0.044715", "0.044715")]),
    ("gelu", "cube is a square", [("x * x * x)", "x * x)")]),
    ("gelu", "root of 2 / pi", [("** 0.5", "** 1")]),
    ("Embedding", "count from 1", [("torch.arange(ids.shape[1])", "torch.arange(ids.shape[1]) + 1")]),
    ("Embedding", "not added", [("return x + self.positions[places]", "return x")]),
    ("Embedding", "position 0", [("torch.arange(ids.shape[1])", "0 * torch.arange(ids.shape[1])")]),
    ("Embedding", "along the batch", [("torch.arange(ids.shape[1])", "torch.arange(len(ids))[:, None]")]),
    ("Embedding", "standard deviation of 1", [("std = 0.02", "std = 1")]),
    (
        "Embedding",
        "positions are drawn before tokens",
        [
            ("        tokens = torch.empty(n_tokens, dim).normal_() * std\n", ""),
            (
                "self.positions = nn",
                "tokens = torch.empty(n_tokens, dim).normal_() * std; self.positions = nn",
            ),
        ],
    ),
    ("CausalAttention", "not divided", [(" * size**-0.5", "")]),
    ("CausalAttention", "sqrt(D)", [("size**-0.5", "dim**-0.5")]),
    ("CausalAttention", "multiplied by sqrt(K)", [("size**-0.5", "size**0.5")]),
    ("CausalAttention", "divided by K", [("size**-0.5", "size**-1")]),
    (
        "CausalAttention",
        "after the softmax",
        [
            ("scores = torch.where(place[:, None] >= place, scores, -torch.inf)", ""),
            (
                "weights = weights / weights.sum(2, keepdim=True)",
                "weights = (weights / weights.sum(2, True)).tril()",
            ),
        ],
    ),
    (
        "CausalAttention",
        "no causal mask",
        [("torch.where(place[:, None] >= place, scores, -torch.inf)", "scores")],
    ),
    ("CausalAttention", "sees the next one", [("place[:, None] >= place", "place[:, None] >= place - 1")]),
    ("CausalAttention", "does not see itself", [("place[:, None] >= place", "place[:, None] > place")]),
    ("CausalAttention", "wrong way round", [("place[:, None] >= place", "place[:, None] <= place")]),
    ("CausalAttention", "become 0", [("-torch.inf", "0.0")]),
    ("CausalAttention", "over the queries", [("amax(2", "amax(1"), ("weights.sum(2", "weights.sum(1")]),
    (
        "CausalAttention",
        "over the heads",
        [
            ("heads.append(self.softmax(scores, v[..., mine]))", "heads.append(scores)"),
            (
                "return self.out(torch.cat(heads, dim=2))",
                "p = torch.stack(heads).softmax(0)\n"
                "        return self.out(torch.cat([p[h] @ v[..., h * size : (h + 1) * size] for h in range(len(p))], 2))",
            ),
        ],
    ),
    (
        "CausalAttention",
        "view(B, T, K, H)",
        [("slice(h * size, (h + 1) * size)", "slice(h, None, self.n_heads)")],
    ),
    (
        "CausalAttention",
        "view(B, H, T, K)",
        [
            (
                "chunk(3, dim=2)",
                "chunk(3, dim=2)\n        flat = [y.flatten(1).chunk(self.n_heads, 1) for y in (q, k, v)]",
            ),
            (
                "mine = slice(h * size, (h + 1) * size)",
                "a, b, c = (y[h].view(-1, length, size) for y in flat)",
            ),
            ("q[..., mine], k[..., mine]", "a, b"),
            ("v[..., mine]", "c"),
        ],
    ),
    (
        "CausalAttention",
        "transpose back",
        [("torch.cat(heads, dim=2)", "torch.stack(heads, 1).reshape(x.shape)")],
    ),
    (
        "CausalAttention",
        "out of each head's numbers",
        [
            (
                "self.qkv(x).chunk(3, dim=2)",
                "(self.qkv(x).unflatten(2, (-1, 3, size))[:, :, :, i].flatten(2) for i in range(3))",
            )
        ],
    ),
    ("CausalAttention", "swapped", [("q, k, v =", "k, q, v =")]),
    (
        "CausalAttention",
        "`out` is not applied",
        [("self.out(torch.cat(heads, dim=2))", "torch.cat(heads, dim=2)")],
    ),
    ("MLP", "activation is missing", [("x = gelu(x)", "")]),
    ("MLP", "ReLU", [("x = gelu(x)", "x = x.clamp(min=0)")]),
    ("MLP", "after `down`", [("x = gelu(x)", ""), ("self.down(x)", "gelu(self.down(x))")]),
    (
        "Block",
        "post-norm",
        [
            ("self.norm1(x))", "x)"),
            ("x = x + a", "x = self.norm1(x + a)"),
            ("self.norm2(x))", "x)"),
            ("return x + m\n", "return self.norm2(x + m)\n"),
        ],
    ),
    ("MLP", "exact GELU", [("x = gelu(x)", "x = x * torch.special.ndtr(x)")]),
    ("Block", "around the attention is missing", [("x = x + a", "x = a")]),
    ("Block", "around the MLP is missing", [("return x + m\n", "return m\n")]),
    (
        "Block",
        "adds the normalized input",
        [("x = x + a", "x = self.norm1(x) + a"), ("return x + m\n", "return self.norm2(x) + m\n")],
    ),
    ("Block", "side by side", [("self.norm2(x)", "self.norm2(x - a)")]),
    ("Block", "same norm", [("self.norm2(x)", "self.norm1(x)")]),
    ("GPT2", "final norm is missing", [("x = self.final_norm(x)", "")]),
    ("GPT2", "reverse order", [("self.blocks[i](x)", "self.blocks[-1 - i](x)")]),
    ("GPT2", "only the last one counts", [("self.blocks[i](x)", "self.blocks[i](self.embedding(ids))")]),
    (
        "GPT2",
        "start with 0.02",
        [("small = linear in (block.attention.out, block.mlp.down)", "small = False")],
    ),
    ("GPT2", "by sqrt(n_layers)", [("(2 * n_layers) ** -0.5", "n_layers**-0.5")]),
    (
        "GPT2",
        "as nn.Linear makes them",
        [
            (
                "for linear in (block.attention.qkv, block.attention.out, block.mlp.up, block.mlp.down):",
                "for linear in (block.attention.qkv,) * 0:",
            ),
            (
                "    def forward(self, ids):\n        x = self.embedding(ids)\n",
                "        for name, p in self.blocks.named_parameters():\n            if name.endswith(('.out.bias', 'v.bias', 'up.bias', 'down.bias')):\n                nn.init.zeros_(p)\n\n    def forward(self, ids):\n        x = self.embedding(ids)\n",
            ),
        ],
    ),
    (
        "next_token_loss",
        "its own token",
        [("ids.shape[1] - 1", "ids.shape[1]"), ("ids[:, t + 1]", "ids[:, t]")],
    ),
    (
        "next_token_loss",
        "wrong way",
        [("range(ids.shape[1] - 1)", "range(1, ids.shape[1])"), ("t + 1", "t - 1")],
    ),
    ("next_token_loss", "summed; it should be the mean", [(".mean()", ".sum()")]),
    ("next_token_loss", "averaged over samples only", [(".mean()", ".mean(1).sum()")]),
    ("next_token_loss", "in bits", [(".mean()", ".mean() / math.log(2)")]),
    ("next_token_loss", "log-likelihood", [("return torch.stack(losses)", "return -torch.stack(losses)")]),
    ("next_token_loss", "overflows", [(" - logits[:, t].amax(-1, keepdim=True)", "")]),
    ("LayerNormOverDims", "over the last dimension only", [("flat = x.flatten(-n)", "flat = x")]),
    (
        "LayerNormOverDims",
        "over the first dimension of `shape` only",
        [("flat = x.flatten(-n)", "flat = x.mT"), ("y.view(x.shape)", "y.mT")],
    ),
    (
        "LayerNormOverDims",
        "divides by one less",
        [
            (
                "** 2).sum(-1, keepdim=True) / flat.shape[-1]",
                "** 2).sum(-1, keepdim=True) / (flat.shape[-1] - 1)",
            )
        ],
    ),
    ("LayerNormOverDims", "eps is missing", [("(var_all + self.eps)", "var_all")]),
    (
        "LayerNormOverDims",
        "`weight` is missing",
        [("torch.addcmul(self.bias, y.view(x.shape), self.weight)", "self.bias + y.view(x.shape)")],
    ),
]
