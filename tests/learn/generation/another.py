"""A right student's file in another spelling than the solution's: what the checks find must not hang on spelling."""

import torch


def cached_attention(attention, x, cache=None):
    length, size = x.shape[1], x.shape[2] // attention.n_heads
    q, k, v = attention.qkv(x).unflatten(2, (3, attention.n_heads, size)).permute(2, 0, 3, 1, 4)
    if cache is not None:
        old_k, old_v = cache
        k = torch.cat((old_k, k), 2)
        v = torch.cat((old_v, v), 2)
    n_old = k.shape[2] - length
    outs = []
    for t in range(length):  # one new position after another needs no mask
        seen = n_old + t + 1
        weights = torch.einsum("bhk,bhsk->bhs", q[:, :, t], k[:, :, :seen]) * size**-0.5
        outs.append(torch.einsum("bhs,bhsk->bhk", weights.softmax(2), v[:, :, :seen]).flatten(1))
    out = torch.stack(outs, 1)
    return attention.out(out), (k, v)


def cached_gpt2(model, ids, cache=None):
    start = cache[0][0].size(2) if cache else 0
    places = torch.arange(start, start + ids.size(1))
    x = model.embedding.tokens[ids] + model.embedding.positions[places]
    pairs = []
    for i, block in enumerate(model.blocks):
        old = cache[i] if cache else None
        a, pair = cached_attention(block.attention, block.norm1(x), old)
        pairs.append(pair)
        x = x + a
        x = x + block.mlp(block.norm2(x))
    x = model.final_norm(x)
    return torch.einsum("btd,vd->btv", x, model.embedding.tokens), pairs


def next_token_probabilities(logits, temperature=1.0, top_k=None, nucleus=None):
    if temperature == 0:
        places = torch.arange(logits.shape[-1])
        return (places == logits.argmax(-1)[:, None]).to(logits.dtype)
    rows = []
    for row in logits:
        p = torch.softmax(row / temperature, 0)
        keep = p.argsort(descending=True)
        if top_k is not None:
            keep = keep[:top_k]
        if nucleus is not None:
            kept = p[keep] / p[keep].sum()
            n = 1
            while kept[:n].sum() < nucleus:
                n += 1
            keep = keep[:n]
        chosen = torch.zeros_like(p)
        chosen[keep] = p[keep]
        rows.append(chosen / chosen.sum())
    return torch.stack(rows)


def frequency_penalized(logits, ids, penalty):
    tokens = torch.arange(logits.shape[1])
    counts = (ids[:, :, None] == tokens).sum(1).to(logits.dtype)
    return logits - penalty * counts


def generate(
    model,
    prompts,
    n_new,
    *,
    temperature=1.0,
    top_k=None,
    nucleus=None,
    frequency_penalty=0.0,
    end=None,
    generator=None,
):
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()) + n_new, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    first = int(lengths.min())
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    cache, new = None, ids[:, :first]
    for place in range(first, ids.shape[1]):
        with torch.no_grad():
            logits, cache = model(new, cache)
        last = logits[:, -1]
        last = frequency_penalized(last, ids[:, :place], frequency_penalty)
        p = next_token_probabilities(last, temperature, top_k, nucleus)
        token = torch.multinomial(p, 1, generator=generator).squeeze(1)
        if end is not None:
            token = torch.where(ended, end, token)
        free = lengths <= place
        token = torch.where(free, token, ids[:, place])
        ended |= free & (token == end)
        ids[:, place] = token
        new = token[:, None]
    return torch.stack([row[n : n + n_new] for row, n in zip(ids, lengths.tolist(), strict=True)])


def beam_search(model, prompt, n_new, n_beams, *, length_penalty=1.0, end=None, early_stopping=False):
    ids = torch.tensor([list(prompt)]).repeat(n_beams, 1)
    sums = torch.full((n_beams,), -torch.inf, dtype=torch.float64)
    sums[0] = 0
    done, cache, latest = [], None, ids
    for n in range(1, n_new + 1):
        with torch.inference_mode():
            logits, cache = model(latest, cache)
        logp = torch.log_softmax(logits[:, -1].double(), 1)
        values, places = (sums[:, None] + logp).flatten().sort(descending=True)
        values, places = values[: 2 * n_beams], places[: 2 * n_beams]
        rows, tokens = places // logp.shape[1], places % logp.shape[1]
        ids = torch.cat([ids[rows], tokens[:, None]], 1)
        ending = torch.tensor([n == n_new or token == end for token in tokens.tolist()])
        for rank in ending.nonzero().flatten().tolist():
            if rank < n_beams:
                done.append((values[rank].item() / n**length_penalty, ids[rank, len(prompt) :].tolist()))
        done = sorted(done, key=lambda pair: -pair[0])[:n_beams]
        if n == n_new:
            break
        go_on = (~ending).nonzero().flatten()[:n_beams]
        sums, ids, rows = values[go_on], ids[go_on], rows[go_on]
        cache = [(k[rows], v[rows]) for k, v in cache]
        latest = ids[:, -1:]
        best = float(sums[0]) / n**length_penalty
        if len(done) == n_beams and (early_stopping or best <= done[-1][0]):
            break
    return done[0][1], done[0][0]
