"""Known mistakes to plant in tests/learn/bert/another.py: the part, what should be said, and (old, new) edits."""

TANH = "0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))"
ERF = "torch.special.ndtr(x)"
NORM = "return self.norm(x)"
SUM = "x = x + self.positions[places]"
TYPES = "t = self.types[0] if types is None else self.types[types]"
BIAS = "bias = padded[:, None, :]"
ADDED = "self.softmax(scores + bias)"
DIVIDED = "return weights / weights.sum(2, keepdim=True)"
MINE = "mine = slice(h * size, (h + 1) * size)"
SIDE_BY_SIDE = "torch.cat(heads, dim=2)"
DRAWN = "nn.init.normal_(linear.weight, std=std)"
ZEROS = "                nn.init.zeros_(linear.bias)\n\n    def forward(self, ids, mask=None, types=None):\n        x = self.embedding"
ENCODED = "x = self.bert(ids, mask=mask, types=types)"
CLASSIFIED = "x = self.bert(ids, types=types, mask=mask)"
FIRST = "first = x.unbind(1)[0]"
POOLED = "y = self.pooler(first).tanh()"
SEEN = "dice = [torch.rand(ids.shape, generator=generator) < p for p in (0.15, 0.8, 0.5)]"
CHOSEN = "chosen = dice[0] & ~special.bool()"
RETURNED = "return new, chosen"
GUESSED = "for t in guess.nonzero().flatten().tolist():"
MEAN = "return total / max(n, 1)"

MISTAKES = [
    ("gelu", "tanh approximation", [("return x * below", f"return {TANH}")]),
    ("gelu", "1.702", [("return x * below", "return x / (1 + (-1.702 * x).exp())")]),
    ("gelu", "by sqrt(2)", [(ERF, "torch.special.ndtr(x * 2**0.5)")]),
    ("gelu", "the 1 beside", [("return x * below", "return x * (below - 0.5)")]),
    ("gelu", "does not multiply", [("return x * below", "return below")]),
    ("Embedding", "types are not added", [("x = x + t", "")]),
    ("Embedding", "positions are not added", [(SUM, "")]),
    ("Embedding", "count from 1", [("torch.arange(ids.shape[1])", "1 + torch.arange(ids.shape[1])")]),
    ("Embedding", "after the sum is missing", [(NORM, "return x")]),
    (
        "Embedding",
        "only the token's",
        [(SUM, "x = self.norm(x) + self.positions[places]"), (NORM, "return x")],
    ),
    ("Embedding", "1e-5", [("std, eps = 0.02, 1e-12", "std, eps = 0.02, 1e-5")]),
    ("Embedding", "sqrt(D)", [(SUM, "x = x * x.shape[2] ** 0.5 + self.positions[places]")]),
    ("Embedding", "of type 1", [(TYPES, TYPES.replace("types[0]", "types[1]"))]),
    ("Embedding", "without types nothing", [(TYPES, TYPES.replace("self.types[0]", "0"))]),
    ("Embedding", "standard deviation of 1", [("std, eps = 0.02", "std, eps = 1")]),
    (
        "Embedding",
        "types are drawn before",
        [
            ("        types = torch.empty(n_types, dim).normal_() * std\n", ""),
            (
                "        positions =",
                "        types = torch.empty(n_types, dim).normal_() * std\n        positions =",
            ),
        ],
    ),
    ("SelfAttention", "attended to like tokens", [(ADDED, "self.softmax(scores)")]),
    (
        "SelfAttention",
        "wrong way round",
        [
            ("(1 - mask.to(x.dtype))", "mask.to(x.dtype)"),
        ],
    ),
    (
        "SelfAttention",
        "after the softmax",
        [(ADDED, "self.softmax(scores) * mask[:, None, :]")],
    ),
    ("SelfAttention", "only 1 lower", [("-1e9", "-1")]),
    ("SelfAttention", "become 0", [("scores + bias", "scores * mask[:, None, :]")]),
    (
        "SelfAttention",
        "looks both ways",
        [("scores + bias", "scores + bias + torch.ones(length, length).tril().log()")],
    ),
    ("SelfAttention", "not divided", [(" * size**-0.5", "")]),
    ("SelfAttention", "sqrt(D)", [("size**-0.5", "dim**-0.5")]),
    ("SelfAttention", "divided by D", [("size**-0.5", "dim**-1")]),
    ("SelfAttention", "divided by K", [("size**-0.5", "size**-1")]),
    ("SelfAttention", "over the queries", [("amax(2", "amax(1"), (DIVIDED, DIVIDED.replace("2", "1"))]),
    (
        "SelfAttention",
        "over the heads",
        [
            ("weights = self.softmax(scores + bias)", "heads.append(scores + bias)"),
            ('            heads.append(torch.einsum("bts,bsk->btk", weights, v[..., mine]))\n', ""),
            (
                f"return self.out({SIDE_BY_SIDE})",
                "p = torch.stack(heads).softmax(0)\n"
                "        return self.out(torch.cat([p[h] @ v[..., h * size : (h + 1) * size] for h in range(len(p))], 2))",
            ),
        ],
    ),
    ("SelfAttention", "view(B, T, K, H)", [(MINE, "mine = slice(h, None, self.n_heads)")]),
    (
        "SelfAttention",
        "view(B, H, T, K)",
        [
            (MINE, "a, b, c = (y.reshape(n, self.n_heads, length, size)[:, h] for y in (q, k, v))"),
            ("q[..., mine], k[..., mine]", "a, b"),
            ("v[..., mine]", "c"),
        ],
    ),
    ("SelfAttention", "transpose back", [(SIDE_BY_SIDE, "torch.stack(heads, 1).reshape(x.shape)")]),
    ("SelfAttention", "queries and keys are swapped", [("q, k, v =", "k, q, v =")]),
    ("SelfAttention", "keys are mixed", [("weights, v[", "weights, k[")]),
    ("SelfAttention", "`out` is not applied", [(f"self.out({SIDE_BY_SIDE})", SIDE_BY_SIDE)]),
    ("SelfAttention", "before query", [('("query", "key",', '("key", "query",')]),
    ("MLP", "activation is missing", [("x = gelu(x)", "")]),
    ("MLP", "ReLU", [("x = gelu(x)", "x = x.clamp(min=0)")]),
    ("MLP", "after `down`", [("x = gelu(x)", ""), ("self.down(x)", "gelu(self.down(x))")]),
    ("MLP", "approximate", [("x = gelu(x)", f"x = {TANH}")]),
    (
        "Block",
        "pre-norm",
        [
            ("self.attention(x, mask)", "self.attention(self.norm1(x), mask)"),
            ("y = self.norm1(x + a)", "y = x + a"),
            ("self.mlp(y)", "self.mlp(self.norm2(y))"),
            ("self.norm2(y + m)", "y + m"),
        ],
    ),
    (
        "Block",
        "before they are added",
        [("y = self.norm1(x + a)", "y = x + self.norm1(a)"), ("self.norm2(y + m)", "y + self.norm2(m)")],
    ),
    ("Block", "around the attention is missing", [("x + a", "a")]),
    ("Block", "around the MLP is missing", [("y + m", "m")]),
    ("Block", "the block's input", [("y + m", "x + m")]),
    ("Block", "after the attention is missing", [("y = self.norm1(x + a)", "y = x + a")]),
    ("Block", "after the MLP is missing", [("self.norm2(y + m)", "y + m")]),
    ("Block", "same norm", [("self.norm2(y + m)", "self.norm1(y + m)")]),
    ("Block", "1e-5", [("        eps = 1e-12", "        eps = 1e-5")]),
    ("Block", "not handed on", [("self.attention(x, mask)", "self.attention(x)")]),
    ("Bert", "not handed on to the blocks", [("self.blocks[i](x, mask)", "self.blocks[i](x)")]),
    ("Bert", "first block only", [("self.blocks[i](x, mask)", "self.blocks[i](x, None if i else mask)")]),
    ("Bert", "types are not handed on", [("self.embedding(ids, types)", "self.embedding(ids)")]),
    ("Bert", "mixed up", [("self.embedding(ids, types)", "self.embedding(ids, mask)")]),
    ("Bert", "reverse order", [("self.blocks[i](x, mask)", "self.blocks[-1 - i](x, mask)")]),
    (
        "Bert",
        "only the last one counts",
        [("self.blocks[i](x, mask)", "self.blocks[i](self.embedding(ids, types), mask)")],
    ),
    (
        "Bert",
        "set to zero",
        [
            (
                "self.embedding(ids, types)",
                "self.embedding(ids, types) * (1 if mask is None else mask.unsqueeze(2))",
            ),
            ("self.blocks[i](x, mask)", "self.blocks[i](x)"),
        ],
    ),
    (
        "Bert",
        "as nn.Linear makes them; they",
        [(ZEROS, ZEROS.replace("nn.init.zeros_(linear.bias)", "pass"))],
    ),
    ("Bert", "the matrices of the blocks are left", [(DRAWN, "")]),
    (
        "Bert",
        "as in GPT-2",
        [
            (
                DRAWN,
                "nn.init.normal_(linear.weight, std=std * ((2 * n_layers) ** -0.5 if linear in (a.out, m.down) else 1))",
            )
        ],
    ),
    ("MaskedLMHead", "gelu is missing", [("y = gelu(y)", "")]),
    ("MaskedLMHead", "the norm is missing", [("y = self.norm(y)", "")]),
    ("MaskedLMHead", "dense is missing", [("y = self.dense(x)", "y = x")]),
    ("MaskedLMHead", "are all missing", [("y = self.norm(y)", "y = x")]),
    ("MaskedLMHead", "bias of the tokens", [("y, tokens) + self.bias", "y, tokens)")]),
    ("MaskedLMHead", "before gelu", [("y = gelu(y)", ""), ("y = self.norm(y)", "y = gelu(self.norm(y))")]),
    (
        "MaskedLMHead",
        "before dense",
        [("self.dense(x)", "self.dense(self.norm(x))"), ("y = self.norm(y)", "")],
    ),
    ("MaskedLMHead", "is a tanh", [("y = gelu(y)", "y = y.tanh()")]),
    ("MaskedLMHead", "approximate", [("y = gelu(y)", f"x = y; y = {TANH}")]),
    ("MaskedLMHead", "1e-5", [("LayerNorm(dim, eps=1e-12)", "LayerNorm(dim)")]),
    ("MaskedLMHead", "residual", [("y = self.norm(y)", "y = x + self.norm(y)")]),
    ("BertForMaskedLM", "mask is not handed on", [(ENCODED, "x = self.bert(ids, types=types)")]),
    ("BertForMaskedLM", "types are not handed on", [(ENCODED, "x = self.bert(ids, mask=mask)")]),
    ("BertForMaskedLM", "swapped", [(ENCODED, "x = self.bert(ids, types, mask)")]),
    ("BertForMaskedLM", "reads the embedding", [(ENCODED, "x = self.bert.embedding(ids, types)")]),
    (
        "BertForMaskedLM",
        "log-probabilities",
        [("self.head(x, vectors)", "self.head(x, vectors).softmax(2).log()")],
    ),
    ("ClassificationHead", "takes the mean", [(FIRST, "first = x.mean(1)")]),
    ("ClassificationHead", "the last position", [(FIRST, "first = x.unbind(1)[-1]")]),
    ("ClassificationHead", "largest number", [(FIRST, "first = x.max(1).values")]),
    ("ClassificationHead", "first sample", [(FIRST, "first = x.unbind(0)[0]")]),
    ("ClassificationHead", "tanh after the pooler is missing", [(POOLED, "y = self.pooler(first)")]),
    ("ClassificationHead", "activation is gelu", [(POOLED, "y = gelu(self.pooler(first))")]),
    ("ClassificationHead", "goes to `out` as it is", [(POOLED, "y = first")]),
    ("ClassificationHead", "comes before the pooler", [(POOLED, "y = self.pooler(first.tanh())")]),
    (
        "ClassificationHead",
        "as nn.Linear makes them",
        [("            nn.init.normal_(linear.weight, std=0.02)\n", "")],
    ),
    ("ClassificationHead", "before pooler", [("in (self.pooler, self.out)", "in (self.out, self.pooler)")]),
    ("BertForClassification", "mask is not handed on", [(CLASSIFIED, "x = self.bert(ids, types=types)")]),
    ("BertForClassification", "types are not handed on", [(CLASSIFIED, "x = self.bert(ids, mask=mask)")]),
    ("BertForClassification", "swapped", [(CLASSIFIED, "x = self.bert(ids, types, mask)")]),
    (
        "BertForClassification",
        "probabilities",
        [("return self.head(x)\n", "return torch.softmax(self.head(x), 1)\n")],
    ),
    (
        "BertForClassification",
        "before the encoder",
        [
            ("        self.head = ClassificationHead(dim, n_classes)\n", ""),
            (
                "*, n_classes, n_types=2):\n        super().__init__()\n",
                "*, n_classes, n_types=2):\n        super().__init__()\n        self.head = ClassificationHead(dim, n_classes)\n",
            ),
        ],
    ),
    ("mask_tokens", "special tokens are chosen too", [(CHOSEN, "chosen = dice[0]")]),
    ("mask_tokens", "only special tokens", [(CHOSEN, "chosen = dice[0] & special.bool()")]),
    ("mask_tokens", "every chosen token is hidden", [("hide = chosen & dice[1]", "hide = chosen")]),
    ("mask_tokens", "becomes a random one", [("new[swap] = words[swap]", "")]),
    ("mask_tokens", "stays as it was", [("swap = chosen & dice[2]", "swap = chosen")]),
    ("mask_tokens", "10 % of those not hidden", [("(0.15, 0.8, 0.5)", "(0.15, 0.8, 0.1)")]),
    (
        "mask_tokens",
        "over hidden ones",
        [("new[swap] = words[swap]", ""), (RETURNED, "new[swap] = words[swap]\n    return new, chosen")],
    ),
    ("mask_tokens", "only the hidden tokens", [(RETURNED, "return new, hide")]),
    ("mask_tokens", "only changed tokens", [(RETURNED, "return new, hide | swap")]),
    ("mask_tokens", "marks what is not chosen", [(RETURNED, "return new, ~chosen")]),
    ("mask_tokens", "chosen or not", [("hide = chosen & dice[1]", "hide = dice[1]")]),
    (
        "mask_tokens",
        "one draw decides",
        [
            ("< p for p in (0.15, 0.8, 0.5)]", "for _ in range(2)]"),
            (CHOSEN, "chosen = (dice[0] < 0.15) & ~special.bool()"),
            ("chosen & dice[2]", "chosen & (dice[1] < 0.9)"),
            ("chosen & dice[1]", "chosen & (dice[1] < 0.8)"),
        ],
    ),
    (
        "mask_tokens",
        "torch's own generator",
        [
            (
                SEEN,
                "first = torch.initial_seed()\n    made = [torch.Generator().manual_seed(first) for _ in range(3)]\n    dice = [torch.rand(ids.shape, generator=g) < p for p, g in zip((0.15, 0.8, 0.5), made, strict=True)]",
            )
        ],
    ),
    ("mask_tokens", "the last token is never put in", [("randint(0, n_tokens", "randint(0, n_tokens - 1")]),
    ("mask_tokens", "begin at 1", [("randint(0, n_tokens", "randint(1, n_tokens")]),
    ("masked_lm_loss", "over all positions", [("guess.nonzero().flatten().tolist()", "range(len(row))")]),
    ("masked_lm_loss", "over the positions that are", [("guess.nonzero()", "(~guess).nonzero()")]),
    ("masked_lm_loss", "all positions, B T", [(MEAN, "return total / ids.numel()")]),
    (
        "masked_lm_loss",
        "in each sample and then",
        [
            ("now[wanted[t]]\n", "now[wanted[t]]\n            pass\n"),
            ("total = total + now", "total = total + 1 / guess.sum() * now"),
            (" - now[wanted[t]]", " - now[wanted[t]] / guess.sum()"),
            (MEAN, "return total / len(ids)"),
        ],
    ),
    ("masked_lm_loss", "summed; it should be the mean", [(MEAN, "return total")]),
    ("masked_lm_loss", "the number of samples", [(MEAN, "return total / len(ids)")]),
    (
        "masked_lm_loss",
        "shifted by one",
        [
            (GUESSED, "for t in guess[1:].nonzero().flatten().tolist():"),
            ("now[wanted[t]]", "now[wanted[t + 1]]"),
        ],
    ),
    (
        "masked_lm_loss",
        "the token after it",
        [
            (GUESSED, "for t in guess[:-1].nonzero().flatten().tolist():"),
            ("now[wanted[t]]", "now[wanted[t + 1]]"),
        ],
    ),
    ("masked_lm_loss", "in bits", [(MEAN, "return total / max(n, 1) / 0.6931471805599453")]),
    ("masked_lm_loss", "log-likelihood", [(MEAN, "return -total / max(n, 1)")]),
    ("masked_lm_loss", "overflows", [(" - row[t].amax()", "")]),
    (
        "masked_lm_loss",
        "set to zero and still count",
        [
            ("guess.nonzero().flatten().tolist()", "range(len(row))"),
            ("row[t] - row[t].amax()", "guess[t] * (row[t] - row[t].amax())"),
        ],
    ),
    (
        "BertForPretraining",
        "the mask is not handed on",
        [("encoded = self.bert(ids, types=types, mask=mask)", "encoded = self.bert(ids, types=types)")],
    ),
    (
        "BertForPretraining",
        "types are not handed on",
        [("encoded = self.bert(ids, types=types, mask=mask)", "encoded = self.bert(ids, mask=mask)")],
    ),
    (
        "BertForPretraining",
        "second head reads the embedding",
        [("self.text_head(encoded)", "self.text_head(self.bert.embedding(ids, types))")],
    ),
]
