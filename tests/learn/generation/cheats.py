"""Cheats and oddities to plant in tests/learn/generation/another.py: the part, what should be said, (old, new) edits."""

PROBABILITIES = "return torch.stack(rows)"
CHEATS = [
    (
        "cached_attention",
        "`scaled_dot_product_attention`",
        [
            (
                "out = torch.stack(outs, 1)",
                "seen = torch.ones(length, k.shape[2]).tril(n_old).bool()\n"
                "    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)",
            )
        ],
    ),
    (
        "cached_attention",
        "cached_attention of the solution",
        [
            (
                "    length, size = x",
                "    from learn.solution import generation\n    return generation.cached_attention(attention, x, cache)\n    length, size = x",
            )
        ],
    ),
    (
        "cached_attention",
        "ran on 20 positions where 10 are new",
        [("out = torch.stack(outs, 1)", "return attention(x), (k, v)\n    out = 0")],
    ),
    (
        "cached_gpt2",
        "cached_gpt2 of the solution",
        [
            (
                "    start = cache",
                "    from learn.solution import generation\n    return generation.cached_gpt2(model, ids, cache)\n    start = cache",
            )
        ],
    ),
    (
        "cached_gpt2",
        "`embedding`",
        [("model.embedding.tokens[ids] +", "torch.nn.functional.embedding(ids, model.embedding.tokens) +")],
    ),
    (
        "next_token_probabilities",
        "TemperatureLogitsWarper of transformers",
        [
            (
                "row / temperature",
                "__import__('transformers').TemperatureLogitsWarper(float(temperature))(None, row)",
            )
        ],
    ),
    (
        "next_token_probabilities",
        "next_token_probabilities of the checks",
        [
            (
                PROBABILITIES,
                "from learn.courses.generation import references\n"
                "    return references.next_token_probabilities(0, logits, temperature, top_k, nucleus)",
            )
        ],
    ),
    (
        "next_token_probabilities",
        "keep_top_k of model/",
        [
            (
                PROBABILITIES,
                "from model.generation.sampling import keep_top_k\n    keep_top_k(logits, 2)\n    return torch.stack(rows)",
            )
        ],
    ),
    (
        "frequency_penalized",
        "comes from learn.solution",
        [("def generate(", "from learn.solution.generation import frequency_penalized\n\n\ndef generate(")],
    ),
    (
        "generate",
        "generate of the solution",
        [
            (
                "    lengths = torch",
                "    from learn.solution import generation\n"
                "    return generation.generate(model, prompts, n_new, temperature=temperature, top_k=top_k, nucleus=nucleus,"
                " frequency_penalty=frequency_penalty, end=end, generator=generator)\n    lengths = torch",
            )
        ],
    ),
    (
        "generate",
        "of transformers did the work",
        [
            (
                "last = logits[:, -1]",
                "last = __import__('transformers').TemperatureLogitsWarper(1.0)(None, logits[:, -1])",
            )
        ],
    ),
    (
        "beam_search",
        "beam_search of the solution",
        [
            (
                "    ids = torch.tensor([list(prompt)])",
                "    from learn.solution import generation\n"
                "    return generation.beam_search(model, prompt, n_new, n_beams, length_penalty=length_penalty, end=end,"
                " early_stopping=early_stopping)\n    ids = torch.tensor([list(prompt)])",
            )
        ],
    ),
]

# None of the known mistakes, but something is to be said; `|` stands between two ways of saying it.
OTHERS = [
    ("cached_attention", "there is no cached_attention", [("def cached_attention(", "def attend(")]),
    (
        "cached_attention",
        "expected two values",
        [("return attention.out(out), (k, v)", "return attention.out(out)")],
    ),
    ("cached_attention", "a pair of tensors", [("(k, v)\n", "None\n")]),
    (
        "cached_attention",
        "gradient",
        [("old_k, old_v = cache", "old_k, old_v = cache[0].detach(), cache[1].detach()")],
    ),
    (
        "cached_attention",
        "changed in place",
        [("old_k, old_v = cache", "old_k, old_v = cache; old_k *= 1.5")],
    ),
    (
        "cached_attention",
        "only position 4",
        [("seen = n_old + t + 1", "seen = min(4, n_old + t + 1)")],
    ),
    ("cached_attention", "only position 3", [("seen = n_old + t + 1", "seen = n_old + t + (t != 3)")]),
    (
        "cached_attention",
        "float64, expected float32",
        [("return attention.out(out)", "return attention.out(out).double()")],
    ),
    (
        "cached_attention",
        "ran on 0 positions",
        [("attention.qkv(x)", "(x @ attention.qkv.weight.T + attention.qkv.bias)")],
    ),
    (
        "cached_attention",
        "ran on 20 positions",
        [("out = torch.stack(outs, 1)", "attention.qkv(x)\n    out = torch.stack(outs, 1)")],
    ),
    ("cached_attention", "stops with", [("old_k, old_v = cache", "old_k, old_v, _ = cache")]),
    ("cached_gpt2", "changed in place|list of 4", [("pairs = []", "pairs = cache if cache else []")]),
    ("cached_gpt2", "expected a list with a pair", [("pairs.append(pair)", "pairs = [pair]")]),
    ("cached_gpt2", "every number is 2 times", [("tokens), pairs", "tokens) * 2, pairs")]),
    ("cached_gpt2", "keys kept in layer 0", [("tokens), pairs", "tokens), pairs[::-1]")]),
    (
        "next_token_probabilities",
        "temperature=0.7, top_k=5, nucleus=0.8",
        [("n = 1", "n = 1 if temperature != 0.7 else 4")],
    ),
    ("next_token_probabilities", "not finite", [("if temperature == 0:", "if temperature == -1:")]),
    ("frequency_penalized", "gradient", [("return logits - penalty", "return logits.detach() - penalty")]),
    (
        "frequency_penalized",
        "changes its input",
        [("return logits - penalty * counts", "logits -= penalty * counts\n    return logits")],
    ),
    ("generate", "not a tensor", [("return torch.stack([row", "return ([row")]),
    ("generate", "shape is", [("row[n : n + n_new]", "row[n : n + n_new - 1]")]),
    ("generate", "gradients on", [("with torch.no_grad()", "with torch.enable_grad()")]),
    ("generate", "changes the prompts", [("    first = int", "    prompts[0].append(1)\n    first = int")]),
    (
        "generate",
        "Frequencies are right",
        [
            (
                DRAW := "torch.multinomial(p, 1, generator=generator).squeeze(1)",
                f"{DRAW}; torch.rand(1, generator=generator)",
            )
        ],
    ),
    (
        "generate",
        "expected some",
        [
            (
                "p = next_token_probabilities(last, ",
                "p = next_token_probabilities(last * (0.7 if last.shape[1] == 5 else 1), ",
            )
        ],
    ),
    (
        "generate",
        "2 of them without",
        [
            (
                "with torch.no_grad():\n            logits, cache = model(new, cache)",
                "with torch.no_grad():\n            model(new, cache)\n            logits, cache = model(new, cache)",
            )
        ],
    ),
    ("generate", "probability 0", [(DRAW, f"{DRAW}; token = (token + 1) % 5 if len(p) == 1500 else token")]),
    (
        "generate",
        "the new tokens of prompt 1 are",
        [("ended |= free", "ids[1, place] = 0; token[1] = 0; ended |= free")],
    ),
    ("beam_search", "expected two values", [("return done[0][1], done[0][0]", "return done[0][1]")]),
    (
        "beam_search",
        "but their score is",
        [("return done[0][1], done[0][0]", "return done[0][1], done[0][0] - 1")],
    ),
    (
        "beam_search",
        "the tokens are",
        [("return done[0][1], done[0][0]", "return done[0][1][:3], done[0][0]")],
    ),
    (
        "beam_search",
        "Sizes of tensors must match",
        [
            (
                "cache = [(k[rows], v[rows]) for k, v in cache]",
                "cache = [(k[rows][..., :2], v[rows][..., :2]) for k, v in cache]",
            )
        ],
    ),
]
