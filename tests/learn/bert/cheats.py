"""Cheats and oddities to plant in tests/learn/bert/another.py: the part, what should be said, (old, new) edits."""

HEADS = "return self.out(torch.cat(heads, dim=2))"
WEIGHTS = (
    "w = (torch.cat([self.query.weight, self.key.weight, self.value.weight]),\n"
    "             torch.cat([self.query.bias, self.key.bias, self.value.bias]))\n        "
)
SPLIT = "q, k, v = (y.unflatten(2, (self.n_heads, size)).transpose(1, 2) for y in (q, k, v))\n        "
TOKENS = "self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)"
LOSS = "return total / max(n, 1)"

CHEATS = [
    ("gelu", "`gelu`", [("return x * below", "return nn.functional.gelu(x)")]),
    ("gelu", "`gelu`", [("return x * below", "return torch.ops.aten.gelu(x)")]),
    ("gelu", "comes from torch", [("class Embedding", "gelu = torch._C._nn.gelu\n\n\nclass Embedding")]),
    (
        "gelu",
        "GELUActivation of transformers",
        [
            (
                "return x * below",
                "from transformers.activations import GELUActivation; return GELUActivation(True)(x)",
            )
        ],
    ),
    (
        "gelu",
        "gelu of the solution",
        [("return x * below", "from learn.solution import bert; return bert.gelu(x)")],
    ),
    ("Embedding", "`embedding`", [(TOKENS, "nn.functional.embedding(ids, self.tokens)")]),
    ("Embedding", "`embedding`", [(TOKENS, "torch.ops.aten.embedding(self.tokens, ids)")]),
    (
        "Embedding",
        "layer_norm`",
        [
            (
                "return self.norm(x)",
                "return torch.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, 1e-12)",
            )
        ],
    ),
    (
        "Embedding",
        "Embedding: write that yourself",
        [("std, eps =", "self.inner = nn.Embedding(2, 2); std, eps =")],
    ),
    (
        "Embedding",
        "LayerNorm: write that yourself",
        [("LayerNorm(dim, eps)\n        self.types", "nn.LayerNorm(dim, eps)\n        self.types")],
    ),
    (
        "SelfAttention",
        "scaled_dot_product",
        [
            (
                HEADS,
                f"{SPLIT}z = nn.functional.scaled_dot_product_attention(q, k, v, bias[:, None])\n"
                "        return self.out(z.transpose(1, 2).flatten(2))",
            )
        ],
    ),
    (
        "SelfAttention",
        "scaled_dot_product",
        [
            (
                HEADS,
                f"{SPLIT}z = torch.ops.aten.scaled_dot_product_attention(q, k, v, bias[:, None])\n"
                "        return self.out(z.transpose(1, 2).flatten(2))",
            )
        ],
    ),
    (
        "SelfAttention",
        "multi_head_attention_forward",
        [
            (
                HEADS,
                f"{WEIGHTS}y = x.transpose(0, 1)\n"
                "        w = (*w, None, None, False, 0.0, self.out.weight, self.out.bias)\n"
                "        return nn.functional.multi_head_attention_forward(\n"
                "            y, y, y, dim, self.n_heads, *w, key_padding_mask=mask == 0)[0].transpose(0, 1)",
            )
        ],
    ),
    (
        "SelfAttention",
        "MultiheadAttention: write that yourself",
        [
            (
                "self.n_heads = n_heads",
                "self.n_heads, self.real = n_heads, nn.MultiheadAttention(dim, n_heads)",
            )
        ],
    ),
    (
        "SelfAttention",
        "SelfAttention of the solution",
        [
            (
                "self.n_heads = n_heads",
                "self.n_heads = n_heads\n        from learn.solution import bert\n        self.hidden = [bert.SelfAttention(dim, n_heads)]",
            ),
            (
                "n, length, dim = x.shape",
                "self.hidden[0].__dict__['_modules'].update(self._modules); return self.hidden[0](x, mask)",
            ),
        ],
    ),
    (
        "SelfAttention",
        "of transformers",
        [
            (
                "weights = self.softmax(scores + bias)",
                "from transformers.models.bert.modeling_bert import eager_attention_forward\n"
                "            z, _ = eager_attention_forward(self, *(y[:, None, :, mine] for y in (q, k, v)), bias[:, None], size**-0.5)",
            ),
            ('torch.einsum("bts,bsk->btk", weights, v[..., mine])', "z[:, :, 0]"),
        ],
    ),
    ("MLP", "`gelu`", [("x = gelu(x)", "x = nn.functional.gelu(x)")]),
    (
        "MLP",
        "GELU: write that yourself",
        [("self.up, self.down =", "self.act = nn.GELU()\n        self.up, self.down =")],
    ),
    (
        "Block",
        "TransformerEncoderLayer: write that yourself",
        [
            (
                "        eps = 1e-12",
                "        eps = 1e-12\n        self.real = nn.TransformerEncoderLayer(dim, n_heads)",
            )
        ],
    ),
    (
        "Block",
        "layer_norm`",
        [
            (
                "self.norm2(y + m)",
                "torch.layer_norm(y + m, x.shape[-1:], self.norm2.weight, self.norm2.bias, 1e-12)",
            )
        ],
    ),
    (
        "Block",
        "comes from learn.solution",
        [("class Bert(", "from learn.solution.bert import Block\n\n\nclass Bert(")],
    ),
    (
        "Bert",
        "comes from transformers",
        [("class MaskedLMHead(", "from transformers import BertModel as Bert\n\n\nclass MaskedLMHead(")],
    ),
    ("MaskedLMHead", "`gelu`", [("y = gelu(y)", "y = nn.functional.gelu(y)")]),
    (
        "MaskedLMHead",
        "layer_norm`",
        [
            (
                "y = self.norm(y)",
                "y = torch.layer_norm(y, y.shape[-1:], self.norm.weight, self.norm.bias, 1e-12)",
            )
        ],
    ),
    (
        "BertForMaskedLM",
        "tied",
        [
            (
                "self.head = MaskedLMHead(n_tokens, dim)",
                "self.head = MaskedLMHead(n_tokens, dim)\n        self.readout = nn.Linear(dim, n_tokens)",
            )
        ],
    ),
    (
        "mask_tokens",
        "DataCollatorForLanguageModeling of transformers",
        [
            (
                "return new, chosen",
                "from transformers import DataCollatorForLanguageModeling as Collator\n"
                "    from types import SimpleNamespace as Names\n"
                "    Collator(Names(mask_token='[MASK]'), mlm_probability=0.15)\n"
                "    return new, chosen",
            )
        ],
    ),
    (
        "masked_lm_loss",
        "a ready-made loss",
        [(LOSS, "return nn.functional.cross_entropy(logits[chosen], ids[chosen])")],
    ),
    (
        "masked_lm_loss",
        "log_softmax",
        [("now = row[t] - row[t].amax()", "now = row[t].log_softmax(0)")],
    ),
    (
        "masked_lm_loss",
        "masked_lm_loss of the solution",
        [(LOSS, "from learn.solution import bert; return bert.masked_lm_loss(logits, ids, chosen)")],
    ),
]

# None of the known mistakes, but something is to be said; `|` stands between two ways of saying it.
OTHERS = [
    ("gelu", "there is no gelu", [("def gelu(x)", "def gelus(x)")]),
    (
        "masked_lm_loss",
        "Tensor without a gradient",
        [("    return total / max(n, 1)", "    return total / n if n else torch.tensor(0.0)")],
    ),
    (
        "masked_lm_loss",
        "float without a gradient",
        [("    return total / max(n, 1)", "    return total / n if n else 0.0")],
    ),
    ("gelu", "times what it should be (2)", [("return x * below", "return 2 * x * below")]),
    (
        "Embedding",
        "`types` of Embedding is missing",
        [("self.types, self.positions =", "self.kinds, self.positions =")],
    ),
    (
        "Embedding",
        "has shape [3, 12], expected [4, 12]",
        [("torch.empty(n_types, dim)", "torch.empty(n_types - 1, dim)")],
    ),
    ("Embedding", "but other numbers: draw", [("std, eps =", "torch.rand(1); std, eps =")]),
    (
        "Embedding",
        "(with types)",
        [
            (
                "t = self.types[0] if",
                "t = self.types[0] if ids is None else self.types[types.flip(1)] if types is not None else self.types[0] if",
            )
        ],
    ),
    ("Embedding", "IndexError", [("self.types[types]", "self.types[types + 3]")]),
    (
        "SelfAttention",
        "not finite at padding",
        [("bias = padded[:, None, :]", "bias = (mask[:, None, :] * mask[:, :, None]).to(x.dtype).log()")],
    ),
    ("SelfAttention", "(with mask)", [("bias = padded[:, None, :]", "bias = padded[:, None, :].roll(1, 2)")]),
    ("SelfAttention", "(with mask)", [("bias = padded[:, None, :]", "bias = padded[:1, None, :]")]),
    (
        "SelfAttention",
        "changes its input",
        [("padded = (1 - mask.to(x.dtype)) * -1e9", "padded = mask.sub_(1).to(x.dtype) * 1e9")],
    ),
    (
        "SelfAttention",
        "no gradient reaches `query.weight`",
        [("weights = self.softmax(scores + bias)", "weights = self.softmax(scores + bias).detach()")],
    ),
    (
        "SelfAttention",
        "no gradient reaches `query.weight`",
        [("q, k, v = self.query(x),", "q, k, v = self.query(x).detach(),")],
    ),
    (
        "SelfAttention",
        "expected Linear",
        [
            (
                "self.add_module(name, nn.Linear(dim, dim))",
                "self.add_module(name, nn.Sequential(nn.Linear(dim, dim)))",
            )
        ],
    ),
    (
        "SelfAttention",
        "TypeError",
        [
            (
                "def forward(self, x, mask=None):\n        n, length",
                "def forward(self, x):\n        mask = None; n, length",
            )
        ],
    ),
    (
        "Block",
        "expected SelfAttention",
        [
            (
                "self.attention, self.norm1 = SelfAttention(dim, n_heads)",
                "self.attention, self.norm1 = nn.Linear(dim, dim)",
            )
        ],
    ),
    ("Block", "off by the same", [("return self.norm2(y + m)", "return self.norm2(y + m) + 0.5")]),
    (
        "Bert",
        "0.0297, expected 0.02|standard deviation",
        [("        std = 0.02\n        for block", "        std = 0.03\n        for block")],
    ),
    (
        "Bert",
        "should start as 0",
        [
            (
                "                nn.init.zeros_(linear.bias)\n\n    def forward(self, ids, mask",
                "                nn.init.ones_(linear.bias)\n\n    def forward(self, ids, mask",
            )
        ],
    ),
    (
        "Bert",
        "does not belong there",
        [
            (
                "self.embedding = Embedding(",
                "self.pooler = nn.Linear(dim, dim)\n        self.embedding = Embedding(",
            )
        ],
    ),
    (
        "Bert",
        "is a `return` missing",
        [
            (
                "            x = self.blocks[i](x, mask)\n        return x",
                "            x = self.blocks[i](x, mask)\n",
            )
        ],
    ),
    (
        "MaskedLMHead",
        "only an nn.Parameter",
        [("nn.Parameter(torch.zeros(n_tokens))", "torch.zeros(n_tokens)")],
    ),
    (
        "MaskedLMHead",
        "the shape is [2, 7, 12], expected [2, 7, 13]",
        [('torch.einsum("btd,vd->btv", y, tokens) + self.bias', "y")],
    ),
    (
        "ClassificationHead",
        "the shape is [2, 7, 5], expected [2, 5]",
        [("first = x.unbind(1)[0]", "first = x")],
    ),
    (
        "BertForClassification",
        "expected ClassificationHead",
        [("self.head = ClassificationHead(dim, n_classes)", "self.head = nn.Linear(dim, n_classes)")],
    ),
    ("mask_tokens", "changes its input", [("new = ids.clone()", "new = ids")]),
    (
        "mask_tokens",
        "tuple, expected a tuple of two|the result is Tensor",
        [("return new, chosen", "return new")],
    ),
    ("mask_tokens", "int64, expected bool", [("return new, chosen", "return new, chosen.long()")]),
    ("mask_tokens", "should be torch.long", [("return new, chosen", "return new.float(), chosen")]),
    ("mask_tokens", "% of the tokens are chosen, expected 15 %", [("(0.15, 0.8, 0.5)", "(0.3, 0.8, 0.5)")]),
    ("mask_tokens", "expected 80, 10 and 10 %", [("(0.15, 0.8, 0.5)", "(0.15, 0.1, 0.9)")]),
    (
        "mask_tokens",
        "special tokens are chosen; they should never be",
        [
            (
                "chosen = dice[0] & ~special.bool()",
                "chosen = dice[0] & ~(special.bool() & (torch.arange(100) > 0))",
            ),
        ],
    ),
    (
        "mask_tokens",
        "a token that is not chosen is changed",
        [("swap = chosen & dice[2]", "swap = dice[2] & dice[0].flip(0)")],
    ),
    (
        "mask_tokens",
        "the shares are right",
        [
            (
                "words = torch.randint(0, n_tokens, ids.shape, generator=generator)\n",
                "words = torch.randint(0, n_tokens, ids.shape[1:], generator=generator).expand_as(ids)\n",
            )
        ],
    ),
    (
        "mask_tokens",
        "0 and 1 gives another",
        [
            ("~special.bool()", "(~special if special.dtype == torch.bool else special < 5)"),
        ],
    ),
    ("masked_lm_loss", "expected 0", [("return total / max(n, 1)", "return total / n")]),
    (
        "masked_lm_loss",
        "the result is float",
        [("return total / max(n, 1)", "return float(total / max(n, 1))")],
    ),
    (
        "masked_lm_loss",
        "no gradient flows",
        [("return total / max(n, 1)", "return total.detach() / max(n, 1)")],
    ),
    (
        "BertForPretraining",
        "tokens' logits [B, T, V] come first",
        [("return words, self.text_head(encoded)", "return self.text_head(encoded), words")],
    ),
    (
        "BertForPretraining",
        "the result should be two tensors",
        [("return words, self.text_head(encoded)", "return words")],
    ),
    (
        "BertForPretraining",
        "the logits of classes: ",
        [("return words, self.text_head(encoded)", "return words, self.text_head(encoded.flip(1))")],
    ),
    (
        "BertForPretraining",
        "expected MaskedLMHead",
        [("MaskedLMHead(n_tokens, dim), ClassificationHead", "nn.Linear(dim, n_tokens), ClassificationHead")],
    ),
]
