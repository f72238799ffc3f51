"""Known mistakes to plant in tests/learn/generation/another.py: the part, what should be said, (old, new) edits."""

CAT = "k = torch.cat((old_k, k), 2)\n        v = torch.cat((old_v, v), 2)"
DRAW = "torch.multinomial(p, 1, generator=generator).squeeze(1)"
MISTAKES = [
    ("cached_attention", "there is no mask: several", [("seen = n_old + t + 1", "seen = n_old + length")]),
    (
        "cached_attention",
        "no mask once there is a cache",
        [("seen = n_old + t + 1", "seen = k.shape[2] if cache else t + 1")],
    ),
    ("cached_attention", "counts from 0 whatever", [("seen = n_old + t + 1", "seen = t + 1")]),
    (
        "cached_attention",
        "off by one",
        [("seen = n_old + t + 1", "seen = n_old + t + 2")],
    ),
    (
        "cached_attention",
        "come before the old ones",
        [(CAT, "k = torch.cat((k, old_k), 2)\n        v = torch.cat((v, old_v), 2)")],
    ),
    (
        "cached_attention",
        "holds the new positions only",
        [("(k, v)\n", "(k[:, :, n_old:], v[:, :, n_old:])\n")],
    ),
    (
        "cached_attention",
        "kept as [B, S, D]",
        [
            (
                "return attention.out(out), (k, v)",
                "return attention.out(out), tuple(y.mT.flatten(1, 2).mT.unflatten(2, (-1, size)).flatten(2) for y in (k, v))",
            )
        ],
    ),
    ("cached_attention", "values first", [("(k, v)\n", "(v, k)\n")]),
    ("cached_attention", "along the heads", [(CAT, CAT.replace("), 2)", "), 1)"))]),
    ("cached_attention", "along the batch", [(CAT, CAT.replace("), 2)", "), 0)"))]),
    ("cached_attention", "is not used", [("if cache is not None", "if cache == 0")]),
    ("cached_attention", "not divided by sqrt(K)", [(" * size**-0.5", "")]),
    ("cached_attention", "`out` is not applied", [("attention.out(out)", "out")]),
    (
        "cached_gpt2",
        "restart at 0",
        [("torch.arange(start, start + ids.size(1))", "torch.arange(ids.size(1))")],
    ),
    ("cached_gpt2", "one too far", [("cache[0][0].size(2)", "1 + cache[0][0].size(2)")]),
    ("cached_gpt2", "the number of blocks", [("cache[0][0].size(2)", "len(cache)")]),
    ("cached_gpt2", "the number of heads", [("cache[0][0].size(2)", "cache[0][0].size(1)")]),
    (
        "cached_gpt2",
        "same position vector",
        [("torch.arange(start, start + ids.size(1))", "torch.tensor([start])")],
    ),
    ("cached_gpt2", "not added", [(" + model.embedding.positions[places]", "")]),
    ("cached_gpt2", "the first block's cache", [("cache[i]", "cache[0]")]),
    ("cached_gpt2", "go without the cache", [("cache[i] if cache else None", "None")]),
    (
        "cached_gpt2",
        "returned cache is the given one",
        [("tokens), pairs", "tokens), cache if cache else pairs")],
    ),
    (
        "cached_gpt2",
        "for the last new position only",
        [("x = model.final_norm(x)", "x = model.final_norm(x)[:, -1:]")],
    ),
    ("cached_gpt2", "final norm is missing", [("x = model.final_norm(x)", "")]),
    ("cached_gpt2", "not normalized", [("block.norm1(x)", "x")]),
    ("cached_gpt2", "residual around the attention", [("x = x + a", "x = a")]),
    ("next_token_probabilities", "multiplied", [("row / temperature", "row * temperature")]),
    ("next_token_probabilities", "temperature is not used", [("row / temperature", "row")]),
    ("next_token_probabilities", "one token too many", [("keep[:top_k]", "keep[: top_k + 1]")]),
    (
        "next_token_probabilities",
        "crosses",
        [("n = 1", "n = 0"), ("kept[:n].sum() < nucleus", "kept[: n + 1].sum() <= nucleus")],
    ),
    ("next_token_probabilities", "order of tokens", [("keep = keep[:n]", "keep = torch.arange(n)")]),
    (
        "next_token_probabilities",
        "temperature comes last",
        [
            ("row / temperature", "row"),
            ("chosen[keep] = p[keep]", "chosen[keep] = (row[keep] / temperature).exp()"),
        ],
    ),
    (
        "next_token_probabilities",
        "nucleus is chosen before top_k",
        [("p[keep] / p[keep].sum()", "p[keep]"), ("while kept", "while n < len(keep) and kept")],
    ),
    ("next_token_probabilities", "not renormalized: it", [("chosen / chosen.sum()", "chosen")]),
    ("frequency_penalized", "over the whole batch", [(".sum(1)", ".sum((0, 1))")]),
    ("frequency_penalized", "only once", [(".sum(1)", ".any(1)")]),
    ("frequency_penalized", "sign is wrong", [("logits - penalty", "logits + penalty")]),
    (
        "frequency_penalized",
        "multiplied by the penalty",
        [("logits - penalty * counts", "logits * penalty**counts")],
    ),
    (
        "frequency_penalized",
        "CTRL",
        [
            (
                "return logits - penalty * counts",
                "other = torch.maximum(logits, logits * 0) / penalty + torch.minimum(logits, logits * 0) * penalty\n"
                "    return torch.where(counts > 0, other, logits)",
            )
        ],
    ),
    (
        "frequency_penalized",
        "number of tokens so far",
        [(".sum(1).to(logits.dtype)", ".to(logits.dtype).mean(1)")],
    ),
    ("frequency_penalized", "only the last token", [("ids[:, :, None]", "ids[:, -1:, None]")]),
    ("generate", "take the drawn token", [("token = torch.where(free, token, ids[:, place])", "")]),
    ("generate", "the end of the shortest prompt", [("row[n : n + n_new]", "row[first : first + n_new]")]),
    ("generate", "ended go on", [("token = torch.where(ended, end, token)", "pass")]),
    (
        "generate",
        "in the prompt ends the row",
        [
            (
                "torch.zeros(len(prompts), dtype=torch.bool)",
                "torch.tensor([end in prompt for prompt in prompts])",
            )
        ],
    ),
    ("generate", "filled up with 0", [("torch.where(ended, end, token)", "torch.where(ended, 0, token)")]),
    ("generate", "first new position", [("last = logits[:, -1]", "last = logits[:, 0]")]),
    ("generate", "cache is not passed on", [("model(new, cache)", "model(new)")]),
    ("generate", "computed anew", [("model(new, cache)", "model(ids[:, :place], None)")]),
    ("generate", "all ids again", [("new = token[:, None]", "new = ids[:, : place + 1]")]),
    (
        "generate",
        "penalty is not used",
        [("last = frequency_penalized(last, ids[:, :place], frequency_penalty)", "")],
    ),
    ("generate", "tokens just given", [("ids[:, :place], frequency", "new, frequency")]),
    (
        "generate",
        "after the temperature",
        [
            ("last = logits[:, -1]", "last = logits[:, -1] / temperature if temperature else logits[:, -1]"),
            ("(last, temperature, top_k", "(last, float(temperature > 0), top_k"),
        ],
    ),
    ("generate", "temperature is not used", [("(last, temperature, top_k", "(last, 1.0, top_k")]),
    (
        "generate",
        "top_k is not used",
        [("temperature, top_k, nucleus)\n        token", "temperature, None, nucleus)\n        token")],
    ),
    ("generate", "nucleus is not used", [("top_k, nucleus)\n        token", "top_k)\n        token")]),
    ("generate", "generator is not used", [(DRAW, "torch.multinomial(p, 1).squeeze(1)")]),
    ("generate", "nothing is drawn", [(DRAW, "p.max(1).indices")]),
    (
        "generate",
        "first row's draw",
        [(DRAW, "torch.multinomial(p[0], 1, generator=generator).repeat(len(p))")],
    ),
    ("beam_search", "not divided", [(".item() / n**length_penalty", ".item()")]),
    ("beam_search", "are multiplied", [(".item() / n**", ".item() * n**")]),
    (
        "beam_search",
        "prompt's tokens count",
        [(".item() / n**length_penalty", ".item() / ids.shape[1] ** length_penalty")],
    ),
    ("beam_search", "begin as the prompt", [("-torch.inf", "0.0")]),
    ("beam_search", "probabilities are added", [("torch.log_softmax", "torch.softmax")]),
    (
        "beam_search",
        "logits are added",
        [("torch.log_softmax(logits[:, -1].double(), 1)", "logits[:, -1].double()")],
    ),
    (
        "beam_search",
        "earlier tokens are not added",
        [("(sums[:, None] + logp)", "torch.where(sums[:, None].isinf(), sums[:, None], logp)")],
    ),
    ("beam_search", "cache stays", [("cache = [(k[rows], v[rows]) for k, v in cache]", "")]),
    (
        "beam_search",
        "should be over",
        [("(early_stopping or best <= done[-1][0])", "early_stopping")],
    ),
    ("beam_search", "the worst beam is compared", [("float(sums[0])", "float(sums[-1])")]),
    (
        "beam_search",
        "rows of the previous step",
        [
            ("repeat(n_beams, 1)", "repeat(1, 1)"),
            ("torch.full((n_beams,), -torch.inf", "torch.full((1,), 0.0"),
            ("cache = [(k[rows], v[rows]) for k, v in cache]", ""),
        ],
    ),
    ("beam_search", "that have ended go on", [("n == n_new or token == end", "n == n_new")]),
    (
        "beam_search",
        "only n_beams candidates",
        [
            ("values[: 2 * n_beams], places[: 2 * n_beams]", "values[:n_beams], places[:n_beams]"),
            ("if n == n_new:", "if ending.all():"),
        ],
    ),
    ("beam_search", "not among the first n_beams", [("if rank < n_beams:", "if rank >= 0:")]),
    (
        "beam_search",
        "reach n_new are left out",
        [("if rank < n_beams:", "if rank < n_beams and not (done and tokens[rank] != end):")],
    ),
    (
        "beam_search",
        "early_stopping is ignored",
        [("(early_stopping or best <= done[-1][0])", "best <= done[-1][0]")],
    ),
    ("beam_search", "always stops", [(" and (early_stopping or best <= done[-1][0])", "")]),
    ("beam_search", "when one is finished", [("len(done) == n_beams", "len(done) > 0")]),
    ("beam_search", "the best of the finished", [("best <= done[-1][0]", "best <= done[0][0]")]),
    ("beam_search", "the first to end", [("sorted(done, key=lambda pair: -pair[0])", "done")]),
]
