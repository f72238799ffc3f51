"""Cheats and oddities to plant in tests/learn/another_student.py: the part, what should be said, (old, new) edits."""

CHEATS = [
    (
        "layernorm",
        "layer_norm`",
        [
            (
                "return y + self.bias",
                "return torch.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)",
            )
        ],
    ),
    (
        "layernorm",
        "layer_norm`",
        [
            (
                "return y + self.bias",
                "return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)",
            )
        ],
    ),
    (
        "layernorm",
        "layer_norm`",
        [
            (
                "return y + self.bias",
                "return torch.ops.aten.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)[0]",
            )
        ],
    ),
    ("layernorm", "comes from torch.nn", [("class LayerNorm(nn.Module)", "class LayerNorm(nn.LayerNorm)")]),
    ("layernorm", "comes from torch.nn", [("def gelu(x)", "LayerNorm = nn.LayerNorm\n\n\ndef gelu(x)")]),
    (
        "layernorm",
        "group_norm`",
        [
            (
                "return y + self.bias",
                "flat = x.flatten(0, -2)\n        return nn.functional.group_norm(flat, 1, self.weight, self.bias, self.eps).view(x.shape)",
            )
        ],
    ),
    ("gelu", "`gelu`", [("return x * (0.5 + 0.5 * t)", "return torch._C._nn.gelu(x, approximate='tanh')")]),
    ("gelu", "`gelu`", [("return x * (0.5 + 0.5 * t)", "return nn.functional.gelu(x, approximate='tanh')")]),
    ("gelu", "`gelu`", [("return x * (0.5 + 0.5 * t)", "return torch.ops.aten.gelu(x, approximate='tanh')")]),
    ("gelu", "comes from torch", [("class Embedding", "gelu = torch._C._nn.gelu\n\n\nclass Embedding")]),
    (
        "embedding",
        "`embedding`",
        [
            (
                "self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)",
                "nn.functional.embedding(ids, self.tokens)",
            )
        ],
    ),
    (
        "embedding",
        "`embedding`",
        [
            (
                "self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)",
                "torch.embedding(self.tokens, ids)",
            )
        ],
    ),
    (
        "embedding",
        "`embedding`",
        [
            (
                "self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)",
                "torch.ops.aten.embedding(self.tokens, ids)",
            )
        ],
    ),
    (
        "embedding",
        "Embedding inside",
        [("std = 0.02", "std = 0.02\n        self.inner = nn.Embedding(2, 2)")],
    ),
    (
        "attention",
        "scaled_dot_product",
        [
            (
                "heads.append(self.softmax(scores, v[..., mine]))",
                "heads.append(nn.functional.scaled_dot_product_attention(q[..., mine], k[..., mine], v[..., mine], is_causal=True))",
            )
        ],
    ),
    (
        "attention",
        "scaled_dot_product",
        [
            (
                "heads.append(self.softmax(scores, v[..., mine]))",
                "heads.append(torch.ops.aten.scaled_dot_product_attention(q[..., mine], k[..., mine], v[..., mine], is_causal=True))",
            )
        ],
    ),
    (
        "attention",
        "MultiheadAttention inside",
        [
            (
                "self.n_heads = n_heads",
                "self.n_heads = n_heads\n        self.real = nn.MultiheadAttention(dim, n_heads)",
            )
        ],
    ),
    ("mlp", "`gelu`", [("x = gelu(x)", "x = nn.functional.gelu(x, approximate='tanh')")]),
    (
        "mlp",
        "GELU inside",
        [("self.up, self.down =", "self.act = nn.GELU('tanh')\n        self.up, self.down =")],
    ),
    (
        "block",
        "layer_norm`",
        [("self.norm2(x)", "torch.layer_norm(x, x.shape[-1:], self.norm2.weight, self.norm2.bias)")],
    ),
    (
        "block",
        "comes from learn.solution",
        [("class GPT2(", "from learn.solution.gpt2 import Block\n\n\nclass GPT2(")],
    ),
    (
        "gpt2",
        "tied",
        [
            (
                "self.final_norm = LayerNorm(dim)",
                "self.final_norm = LayerNorm(dim)\n        self.head = nn.Linear(dim, n_tokens)",
            )
        ],
    ),
    (
        "loss",
        "a ready-made loss",
        [
            (
                "return torch.stack(losses).mean()",
                "return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())",
            )
        ],
    ),
    (
        "loss",
        "log_softmax",
        [("now = logits[:, t] - logits[:, t].amax(-1, keepdim=True)", "now = logits[:, t].log_softmax(-1)")],
    ),
    (
        "attention",
        "multi_head_attention_forward",
        [
            (
                "return self.out(torch.cat(heads, dim=2))",
                "future = torch.ones(length, length).triu(1).bool()\n"
                "        w = (self.qkv.weight, self.qkv.bias, None, None, False, 0.0, self.out.weight, self.out.bias)\n"
                "        y = x.transpose(0, 1)\n"
                "        return nn.functional.multi_head_attention_forward(\n"
                "            y, y, y, dim, self.n_heads, *w, attn_mask=future)[0].transpose(0, 1)",
            )
        ],
    ),
    (
        "attention",
        "CausalAttention in gpt2.py",
        [
            (
                "self.n_heads = n_heads",
                "self.n_heads = n_heads\n        from learn.solution import gpt2\n        self.hidden = [gpt2.CausalAttention(dim, n_heads)]",
            ),
            (
                "length, dim = x.shape[1:]",
                "self.hidden[0].__dict__['_modules'].update(qkv=self.qkv, out=self.out); return self.hidden[0](x)",
            ),
        ],
    ),
    (
        "gelu",
        "gelu in gpt2.py",
        [("root = (2 / math.pi) ** 0.5", "from learn.solution import gpt2; return gpt2.gelu(x)")],
    ),
    (
        "gelu",
        "NewGELUActivation in activations.py",
        [
            (
                "root = (2 / math.pi) ** 0.5",
                "from transformers.activations import NewGELUActivation; return NewGELUActivation()(x)",
            )
        ],
    ),
]

# None of the known mistakes, but something is to be said; `|` stands between two ways of saying it.
OTHERS = [
    ("layernorm", "there is no LayerNorm", [("class LayerNorm(", "class Norm(")]),
    (
        "layernorm",
        "`bias` of LayerNorm is missing",
        [("self.bias = nn.Parameter(torch.zeros(dim))", "self.shift = 0")],
    ),
    ("layernorm", "only an nn.Parameter", [("nn.Parameter(torch.ones(dim))", "torch.ones(dim)")]),
    ("layernorm", "has shape [1, 12], expected [12]", [("torch.ones(dim)", "torch.ones(1, dim)")]),
    ("layernorm", "start as 1 everywhere", [("torch.ones(dim)", "torch.rand(dim)")]),
    ("layernorm", "is a `return` missing", [("return y + self.bias", "y + self.bias")]),
    ("layernorm", "changes its input", [("(x - mean)", "x.sub_(mean)")]),
    ("layernorm", "gradient of `weight`|reaches `weight`", [("y * self.weight", "y * self.weight.detach()")]),
    (
        "layernorm",
        "gradient of input 1",
        [("mean = x.mean(-1, keepdim=True)", "mean = x.mean(-1, keepdim=True).detach()")],
    ),
    ("layernorm", "AttributeError", [("x.var(-1", "x.variance(-1")]),
    ("layernorm", "another_student.py, line 18", [("x.var(-1", "x.variance(-1")]),
    ("layernorm", "float64, expected float32", [("return y + self.bias", "return (y + self.bias).double()")]),
    ("gelu", "times what it should be (1/2)", [("0.5 + 0.5 * t", "0.25 + 0.25 * t")]),
    ("gelu", "no gradient flows", [("return x * (0.5 + 0.5 * t)", "return (x * (0.5 + 0.5 * t)).detach()")]),
    (
        "embedding",
        "another order",
        [("return x + self.positions[places]", "return (x + self.positions[places]).mT")],
    ),
    ("embedding", "0.0283, expected 0.02|standard deviation", [("std = 0.02", "std = 0.03")]),
    ("embedding", "drawn in another order", [("std = 0.02", "std = 0.02; torch.rand(1)")]),
    (
        "embedding",
        "only position 3 differ",
        [("places = torch.arange(ids.shape[1])", "places = torch.arange(ids.shape[1]); places[3:4] = 0")],
    ),
    (
        "attention",
        "expected Linear",
        [("self.out = nn.Linear(dim, dim)", "self.out = nn.Sequential(nn.Linear(dim, dim))")],
    ),
    (
        "attention",
        "off by the same",
        [("self.out(torch.cat(heads, dim=2))", "self.out(torch.cat(heads, dim=2)) + 1.5")],
    ),
    (
        "attention",
        "not finite",
        [("scores = torch.where(place[:, None] >= place, scores, -torch.inf)", "scores = scores / 0")],
    ),
    (
        "block",
        "expected LayerNorm",
        [("self.norm2, self.mlp = LayerNorm(dim)", "self.norm2, self.mlp = nn.Linear(dim, dim)")],
    ),
    (
        "gpt2",
        "does not belong there",
        [
            (
                "self.final_norm = LayerNorm(dim)",
                "self.final_norm = LayerNorm(dim)\n        self.scale = nn.Linear(1, 1)",
            )
        ],
    ),
    ("gpt2", "should start as 0", [("nn.init.zeros_(linear.bias)", "nn.init.ones_(linear.bias)")]),
    ("sampler", "temperature=0.7, top_k=5, nucleus=0.8", [("n = 1", "n = 1 if temperature == 1 else 4")]),
]
