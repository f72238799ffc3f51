"""Cheats and oddities to plant in tests/learn/gpt2/another.py: the part, what should be said, (old, new) edits."""

CHEATS = [
    (
        "LayerNorm",
        "layer_norm`",
        [
            (
                "return y + self.bias",
                "return torch.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)",
            )
        ],
    ),
    (
        "LayerNorm",
        "layer_norm`",
        [
            (
                "return y + self.bias",
                "return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)",
            )
        ],
    ),
    (
        "LayerNorm",
        "layer_norm`",
        [
            (
                "return y + self.bias",
                "return torch.ops.aten.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)[0]",
            )
        ],
    ),
    ("LayerNorm", "comes from torch.nn", [("class LayerNorm(nn.Module)", "class LayerNorm(nn.LayerNorm)")]),
    ("LayerNorm", "comes from torch.nn", [("def gelu(x)", "LayerNorm = nn.LayerNorm\n\n\ndef gelu(x)")]),
    (
        "LayerNorm",
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
        "Embedding",
        "`embedding`",
        [
            (
                "self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)",
                "nn.functional.embedding(ids, self.tokens)",
            )
        ],
    ),
    (
        "Embedding",
        "`embedding`",
        [
            (
                "self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)",
                "torch.embedding(self.tokens, ids)",
            )
        ],
    ),
    (
        "Embedding",
        "`embedding`",
        [
            (
                "self.tokens.index_select(0, ids.flatten()).view(*ids.shape, -1)",
                "torch.ops.aten.embedding(self.tokens, ids)",
            )
        ],
    ),
    (
        "Embedding",
        "Embedding: write that yourself",
        [("std = 0.02", "std = 0.02\n        self.inner = nn.Embedding(2, 2)")],
    ),
    (
        "CausalAttention",
        "scaled_dot_product",
        [
            (
                "heads.append(self.softmax(scores, v[..., mine]))",
                "heads.append(nn.functional.scaled_dot_product_attention(q[..., mine], k[..., mine], v[..., mine], is_causal=True))",
            )
        ],
    ),
    (
        "CausalAttention",
        "scaled_dot_product",
        [
            (
                "heads.append(self.softmax(scores, v[..., mine]))",
                "heads.append(torch.ops.aten.scaled_dot_product_attention(q[..., mine], k[..., mine], v[..., mine], is_causal=True))",
            )
        ],
    ),
    (
        "CausalAttention",
        "MultiheadAttention: write that yourself",
        [
            (
                "self.n_heads = n_heads",
                "self.n_heads = n_heads\n        self.real = nn.MultiheadAttention(dim, n_heads)",
            )
        ],
    ),
    ("MLP", "`gelu`", [("x = gelu(x)", "x = nn.functional.gelu(x, approximate='tanh')")]),
    (
        "MLP",
        "GELU: write that yourself",
        [("self.up, self.down =", "self.act = nn.GELU('tanh')\n        self.up, self.down =")],
    ),
    (
        "Block",
        "layer_norm`",
        [("self.norm2(x)", "torch.layer_norm(x, x.shape[-1:], self.norm2.weight, self.norm2.bias)")],
    ),
    (
        "Block",
        "comes from learn.solution",
        [("class GPT2(", "from learn.solution.gpt2 import Block\n\n\nclass GPT2(")],
    ),
    (
        "GPT2",
        "tied",
        [
            (
                "self.final_norm = LayerNorm(dim)",
                "self.final_norm = LayerNorm(dim)\n        self.head = nn.Linear(dim, n_tokens)",
            )
        ],
    ),
    (
        "next_token_loss",
        "a ready-made loss",
        [
            (
                "return torch.stack(losses).mean()",
                "return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())",
            )
        ],
    ),
    (
        "next_token_loss",
        "log_softmax",
        [("now = logits[:, t] - logits[:, t].amax(-1, keepdim=True)", "now = logits[:, t].log_softmax(-1)")],
    ),
    (
        "CausalAttention",
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
        "CausalAttention",
        "CausalAttention of the solution",
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
        "Dropout",
        "a ready-made dropout",
        [("return x * keep / (1 - self.p) if", "return nn.functional.dropout(x, self.p) if")],
    ),
    (
        "LayerNormOverDims",
        "a ready-made normalization",
        [
            (
                "return torch.addcmul(self.bias, y.view(x.shape), self.weight)",
                "return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)",
            )
        ],
    ),
    (
        "gelu",
        "gelu of the solution",
        [("root = (2 / math.pi) ** 0.5", "from learn.solution import gpt2; return gpt2.gelu(x)")],
    ),
    (
        "gelu",
        "NewGELUActivation of transformers",
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
    ("LayerNorm", "there is no LayerNorm", [("class LayerNorm(", "class Norm(")]),
    (
        "LayerNorm",
        "`bias` of LayerNorm is missing",
        [("self.bias = nn.Parameter(torch.zeros(dim))", "self.shift = 0")],
    ),
    ("LayerNorm", "only an nn.Parameter", [("nn.Parameter(torch.ones(dim))", "torch.ones(dim)")]),
    ("LayerNorm", "has shape [1, 12], expected [12]", [("torch.ones(dim)", "torch.ones(1, dim)")]),
    ("LayerNorm", "start as 1 everywhere", [("torch.ones(dim)", "torch.rand(dim)")]),
    ("LayerNorm", "is a `return` missing", [("return y + self.bias", "y + self.bias")]),
    ("LayerNorm", "changes its input", [("(x - mean)", "x.sub_(mean)")]),
    ("LayerNorm", "gradient of `weight`|reaches `weight`", [("y * self.weight", "y * self.weight.detach()")]),
    (
        "LayerNorm",
        "gradient of input 1",
        [("mean = x.mean(-1, keepdim=True)", "mean = x.mean(-1, keepdim=True).detach()")],
    ),
    ("LayerNorm", "AttributeError", [("x.var(-1", "x.variance(-1")]),
    ("LayerNorm", "another.py, line 18", [("x.var(-1", "x.variance(-1")]),
    ("LayerNorm", "float64, expected float32", [("return y + self.bias", "return (y + self.bias).double()")]),
    ("gelu", "times what it should be (1/2)", [("0.5 + 0.5 * t", "0.25 + 0.25 * t")]),
    ("gelu", "no gradient flows", [("return x * (0.5 + 0.5 * t)", "return (x * (0.5 + 0.5 * t)).detach()")]),
    (
        "Embedding",
        "another order",
        [("return x + self.positions[places]", "return (x + self.positions[places]).mT")],
    ),
    ("Embedding", "0.0283, expected 0.02|standard deviation", [("std = 0.02", "std = 0.03")]),
    ("Embedding", "but other numbers: draw", [("std = 0.02", "std = 0.02; torch.rand(1)")]),
    (
        "Embedding",
        "only position 3 differ",
        [("places = torch.arange(ids.shape[1])", "places = torch.arange(ids.shape[1]); places[3:4] = 0")],
    ),
    (
        "CausalAttention",
        "expected Linear",
        [("self.out = nn.Linear(dim, dim)", "self.out = nn.Sequential(nn.Linear(dim, dim))")],
    ),
    (
        "CausalAttention",
        "off by the same",
        [("self.out(torch.cat(heads, dim=2))", "self.out(torch.cat(heads, dim=2)) + 1.5")],
    ),
    (
        "CausalAttention",
        "not finite",
        [("scores = torch.where(place[:, None] >= place, scores, -torch.inf)", "scores = scores / 0")],
    ),
    (
        "Block",
        "expected LayerNorm",
        [("self.norm2, self.mlp = LayerNorm(dim)", "self.norm2, self.mlp = nn.Linear(dim, dim)")],
    ),
    (
        "GPT2",
        "does not belong there",
        [
            (
                "self.final_norm = LayerNorm(dim)",
                "self.final_norm = LayerNorm(dim)\n        self.scale = nn.Linear(1, 1)",
            )
        ],
    ),
    ("GPT2", "should start as 0", [("nn.init.zeros_(linear.bias)", "nn.init.ones_(linear.bias)")]),
    (
        "gelu",
        "which is sqrt(2) / pi; it should be sqrt(2 / pi)",
        [("(2 / math.pi) ** 0.5", "2**0.5 / math.pi")],
    ),
    ("gelu", "which is sqrt(pi / 2); it should be sqrt(2 / pi)", [("(2 / math.pi)", "(math.pi / 2)")]),
    ("gelu", "the factor inside tanh is 0.8; it should be", [("(2 / math.pi) ** 0.5", "0.8")]),
    ("gelu", "is 0.44715; it should be 0.044715: is the decimal point misplaced?", [("0.044715", "0.44715")]),
    ("gelu", "the factor of x^3 is 0.044175; it should be 0.044715.", [("0.044715", "0.044175")]),
    ("gelu", "which is sqrt(2), and|which is sqrt(2); it", [("(2 / math.pi)", "2"), ("0.044715", "0.04")]),
    ("Dropout", "in evaluation the input changes", [(" if self.training else x", "")]),
    ("Dropout", "multiplied by 1, expected 1 / (1 - p) = 1.333", [("x * keep / (1 - self.p)", "x * keep")]),
    (
        "Dropout",
        "is p the share that stays?",
        [("torch.full(x.shape, 1 - self.p", "torch.full(x.shape, self.p")],
    ),
    (
        "Dropout",
        "of the numbers become 0, expected 25%.",
        [("torch.full(x.shape, 1 - self.p", "torch.full(x.shape, 0.5")],
    ),
    ("Dropout", "rows are dropped as a whole", [("torch.full(x.shape,", "torch.full((len(x), 1),")]),
    ("Dropout", "columns are dropped as a whole", [("torch.full(x.shape,", "torch.full(x.shape[1:],")]),
    ("Dropout", "drop the same numbers", [("keep = torch", "torch.manual_seed(0)\n        keep = torch")]),
    ("Dropout", "not finite", [("if self.training and self.p == 1:", "if x is None:")]),
]
