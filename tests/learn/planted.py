"""Known mistakes to plant in tests/learn/another_student.py: the part, what should be said, and (old, new) edits."""

MISTAKES = [
    ("layernorm", "eps is missing", [("(var + self.eps)", "var")]),
    ("layernorm", "divides by D - 1", [(", correction=0", "")]),
    ("layernorm", "under the root", [("(var + self.eps).rsqrt()", "(var.sqrt() + self.eps) ** -1")]),
    ("layernorm", "without the square root", [("rsqrt()", "reciprocal()")]),
    ("layernorm", "mean is not subtracted", [("(x - mean)", "x")]),
    ("layernorm", "`weight` is missing", [("y = y * self.weight", "y = 1 * y")]),
    ("layernorm", "`bias` is missing", [("y + self.bias", "y")]),
    ("layernorm", "over the positions", [("mean(-1", "mean(-2"), ("var(-1", "var(-2")]),
    (
        "gelu",
        "exact GELU",
        [("torch.tanh(root * x + root * 0.044715 * x * x * x)", "torch.special.erf(x * 0.5**0.5)")],
    ),
    ("gelu", "1.702", [("x * (0.5 + 0.5 * t)", "x / (1 + (-1.702 * x).exp())")]),
    ("gelu", "both terms", [("root * 0.044715", "0.044715")]),
    ("gelu", "root of 2 / pi", [("** 0.5", "** 1")]),
    ("embedding", "count from 1", [("torch.arange(ids.shape[1])", "torch.arange(ids.shape[1]) + 1")]),
    ("embedding", "not added", [("return x + self.positions[places]", "return x")]),
    ("embedding", "position 0", [("torch.arange(ids.shape[1])", "0 * torch.arange(ids.shape[1])")]),
    ("embedding", "along the batch", [("torch.arange(ids.shape[1])", "torch.arange(len(ids))[:, None]")]),
    ("embedding", "standard deviation of 1", [("std = 0.02", "std = 1")]),
    (
        "embedding",
        "positions are drawn before tokens",
        [
            ("        tokens = torch.empty(n_tokens, dim).normal_() * std\n", ""),
            (
                "self.positions = nn",
                "tokens = torch.empty(n_tokens, dim).normal_() * std; self.positions = nn",
            ),
        ],
    ),
    ("attention", "not divided", [(" * size**-0.5", "")]),
    ("attention", "sqrt(D)", [("size**-0.5", "dim**-0.5")]),
    ("attention", "divided by K", [("size**-0.5", "size**-1")]),
    (
        "attention",
        "after the softmax",
        [
            ("scores = torch.where(place[:, None] >= place, scores, -torch.inf)", ""),
            (
                "weights = weights / weights.sum(2, keepdim=True)",
                "weights = (weights / weights.sum(2, True)).tril()",
            ),
        ],
    ),
    ("attention", "no causal mask", [("torch.where(place[:, None] >= place, scores, -torch.inf)", "scores")]),
    ("attention", "sees the next one", [("place[:, None] >= place", "place[:, None] >= place - 1")]),
    ("attention", "does not see itself", [("place[:, None] >= place", "place[:, None] > place")]),
    ("attention", "wrong way round", [("place[:, None] >= place", "place[:, None] <= place")]),
    ("attention", "become 0", [("-torch.inf", "0.0")]),
    ("attention", "over the queries", [("amax(2", "amax(1"), ("weights.sum(2", "weights.sum(1")]),
    (
        "attention",
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
    ("attention", "view(B, T, K, H)", [("slice(h * size, (h + 1) * size)", "slice(h, None, self.n_heads)")]),
    (
        "attention",
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
    ("attention", "transpose back", [("torch.cat(heads, dim=2)", "torch.stack(heads, 1).reshape(x.shape)")]),
    (
        "attention",
        "out of each head's numbers",
        [
            (
                "self.qkv(x).chunk(3, dim=2)",
                "(self.qkv(x).unflatten(2, (-1, 3, size))[:, :, :, i].flatten(2) for i in range(3))",
            )
        ],
    ),
    ("attention", "swapped", [("q, k, v =", "k, q, v =")]),
    ("attention", "`out` is not applied", [("self.out(torch.cat(heads, dim=2))", "torch.cat(heads, dim=2)")]),
    ("mlp", "activation is missing", [("x = gelu(x)", "")]),
    ("mlp", "ReLU", [("x = gelu(x)", "x = x.clamp(min=0)")]),
    ("mlp", "after `down`", [("x = gelu(x)", ""), ("self.down(x)", "gelu(self.down(x))")]),
    (
        "block",
        "post-norm",
        [
            ("self.norm1(x))", "x)"),
            ("x = x + a", "x = self.norm1(x + a)"),
            ("self.norm2(x))", "x)"),
            ("return x + m\n", "return self.norm2(x + m)\n"),
        ],
    ),
    ("block", "around the attention is missing", [("x = x + a", "x = a")]),
    ("block", "around the MLP is missing", [("return x + m\n", "return m\n")]),
    (
        "block",
        "adds what was normalised",
        [("x = x + a", "x = self.norm1(x) + a"), ("return x + m\n", "return self.norm2(x) + m\n")],
    ),
    ("block", "side by side", [("self.norm2(x)", "self.norm2(x - a)")]),
    ("block", "same norm", [("self.norm2(x)", "self.norm1(x)")]),
    ("gpt2", "final norm is missing", [("x = self.final_norm(x)", "")]),
    ("gpt2", "reverse order", [("self.blocks[i](x)", "self.blocks[-1 - i](x)")]),
    ("gpt2", "only the last one counts", [("self.blocks[i](x)", "self.blocks[i](self.embedding(ids))")]),
    (
        "gpt2",
        "start with 0.02",
        [("small = linear in (block.attention.out, block.mlp.down)", "small = False")],
    ),
    ("gpt2", "by sqrt(n_layers)", [("(2 * n_layers) ** -0.5", "n_layers**-0.5")]),
    (
        "gpt2",
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
    ("loss", "its own token", [("ids.shape[1] - 1", "ids.shape[1]"), ("ids[:, t + 1]", "ids[:, t]")]),
    ("loss", "wrong way", [("range(ids.shape[1] - 1)", "range(1, ids.shape[1])"), ("t + 1", "t - 1")]),
    ("loss", "summed; the mean", [(".mean()", ".sum()")]),
    ("loss", "averaged over samples only", [(".mean()", ".mean(1).sum()")]),
    ("loss", "in bits", [(".mean()", ".mean() / math.log(2)")]),
    ("loss", "log-likelihood", [("return torch.stack(losses)", "return -torch.stack(losses)")]),
    ("loss", "overflows", [(" - logits[:, t].amax(-1, keepdim=True)", "")]),
    ("sampler", "multiplied", [("row / temperature", "row * temperature")]),
    ("sampler", "not used", [("row / temperature", "row")]),
    ("sampler", "one token too many", [("keep[:top_k]", "keep[: top_k + 1]")]),
    (
        "sampler",
        "crosses",
        [("n = 1", "n = 0"), ("kept[:n].sum() < nucleus", "kept[: n + 1].sum() <= nucleus")],
    ),
    (
        "sampler",
        "order of tokens",
        [("keep = keep[:n]", "keep = torch.arange(n)")],
    ),
]
