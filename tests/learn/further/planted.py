"""Known mistakes to plant in tests/learn/further/another.py: the part, what should be said, and (old, new) edits."""

MIX = "mixed = (1 - strength) * logits_a + strength * logits_b"
NORMALIZED = "mixed - mixed.logsumexp(-1, keepdim=True)"
DRAW = "int(torch.multinomial(p, 1, generator=generator))"
LOGPROBS = "    logits_a, logits_b = logits_a.log_softmax(-1), logits_b.log_softmax(-1)\n    "
EVAL = "    before = model.training\n    model.eval()\n"
COUNT = "    return sum(hits) / len(hits)"
SCORES = "    return there[rows, :, :, places].mean(0)"
TRAIN = "    return train(model, batches"
HEADS = "    before = lm.training\n    lm.eval()\n    with torch.no_grad():\n"

MISTAKES = [
    ("pair_logprobs", "swapped", [(MIX, "mixed = strength * logits_a + (1 - strength) * logits_b")]),
    (
        "pair_logprobs",
        "added to b",
        [(MIX, "mixed = (1 + strength) * logits_b - strength * logits_a")],
    ),
    ("pair_logprobs", "wrong way round", [(MIX, "mixed = logits_a + strength * (logits_a - logits_b)")]),
    (
        "pair_logprobs",
        "probabilities are mixed",
        [(MIX, "mixed = torch.log((1 - strength) * logits_a.softmax(-1) + strength * logits_b.softmax(-1))")],
    ),
    (
        "pair_logprobs",
        "not normalized",
        [(f"    {MIX}", LOGPROBS + MIX), (NORMALIZED, "mixed")],
    ),
    ("pair_logprobs", "probabilities are returned", [(NORMALIZED, "mixed.softmax(-1)")]),
    (
        "pair_logprobs",
        "over the rows",
        [(f"    {MIX}", LOGPROBS + MIX), (NORMALIZED, "mixed - mixed.logsumexp(0, keepdim=True)")],
    ),
    ("pair_logprobs", "mean of both", [(MIX, "mixed = (logits_a + logits_b) / 2")]),
    ("continue_pair", "to a only", [("        b.append(token)\n", "")]),
    ("continue_pair", "to b only", [("        a.append(token)\n", "")]),
    (
        "continue_pair",
        "contexts are swapped",
        [("(after_a[None], after_b[None], ", "(after_b[None], after_a[None], ")],
    ),
    (
        "continue_pair",
        "continues b alone",
        [("pair_logprobs(after_a[None], after_b[None], strength).exp()", "after_b[None].softmax(-1)")],
    ),
    (
        "continue_pair",
        "first position",
        [
            ("model(torch.tensor([a]))[0, -1]", "model(torch.tensor([a]))[0, 0]"),
            ("model(torch.tensor([b]))[0, -1]", "model(torch.tensor([b]))[0, 0]"),
        ],
    ),
    (
        "continue_pair",
        "contexts are concatenated",
        [("model(torch.tensor([a]))", "model(torch.tensor([ids_a.tolist() + b]))")],
    ),
    ("continue_pair", "although there is a generator", [("if generator is not None:", "if not model:")]),
    (
        "continue_pair",
        "not given to torch.multinomial",
        [
            (DRAW, "int(torch.multinomial(p, 1))"),
        ],
    ),
    (
        "continue_pair",
        "from log-probabilities",
        [(DRAW, "int(torch.multinomial(p.log() - p.log().min(), 1, generator=generator))")],
    ),
    ("continue_pair", "context is returned", [("return torch.tensor(new)", "return torch.tensor(b)")]),
    ("continue_pair", "one token is missing", [("len(new) < n_new", "len(new) + 1 < n_new")]),
    ("accuracy", "are counted", [(COUNT, "    return float(sum(hits))")]),
    ("accuracy", "the wrong ones", [("int(row.argmax()) == int(label)", "int(row.argmax()) != int(label)")]),
    (
        "accuracy",
        "the mask is not used",
        [
            (
                "logits = model(ids, mask)\n    model.train",
                "logits = model(ids, mask * 0 + 1)\n    model.train",
            )
        ],
    ),
    ("accuracy", "not put into evaluation mode", [(EVAL, "    before = model.training\n")]),
    ("accuracy", "left in evaluation mode", [("    model.train(before)\n", "")]),
    ("accuracy", "left in training mode", [("    model.train(before)\n", "    model.train()\n")]),
    (
        "accuracy",
        "gradients are recorded",
        [
            (
                "    with torch.no_grad():\n        logits = model(ids, mask)",
                "    if True:\n        logits = model(ids, mask)",
            )
        ],
    ),
    (
        "finetune",
        "only the head",
        [
            (
                "    n = len(ids)\n",
                "    n = len(ids)\n    for p in model.bert.parameters():\n        p.requires_grad = False\n",
            )
        ],
    ),
    ("finetune", "labels are not put", [("labels[rows]", "labels[: len(rows)]")]),
    ("finetune", "the mask is not used", [("mask[rows]", "torch.ones_like(mask[rows])")]),
    (
        "finetune",
        "order is drawn once",
        [
            ("    batches = []\n", "    batches = []\n    order = torch.randperm(n, generator=generator)\n"),
            ("        order = torch.randperm(n, generator=generator)\n        for", "        for"),
        ],
    ),
    (
        "finetune",
        "not shuffled",
        [("torch.randperm(n, generator=generator)", "torch.arange(n)")],
    ),
    (
        "finetune",
        "not given to torch.randperm",
        [
            (
                "torch.randperm(n, generator=generator)",
                "torch.randperm(n)",
            )
        ],
    ),
    ("finetune", "is left out", [("range(0, n, batch_size)", "range(0, n - batch_size + 1, batch_size)")]),
    ("finetune", "one epoch only", [("    batches = []\n", "    n_epochs, batches = 1, []\n")]),
    ("finetune", "all texts are one batch", [("    batches = []\n", "    batch_size, batches = n, []\n")]),
    ("finetune", "there is no warm-up", [(", n_warmup=int(len(batches) / 10)", "")]),
    ("finetune", "a tenth of the texts", [("int(len(batches) / 10)", "n // 10")]),
    ("finetune", "lr is not passed", [("lr=lr, ", "")]),
    ("finetune", "losses are summed", [('batch["labels"])', 'batch["labels"]) * len(logits)')]),
    (
        "induction_scores",
        "earlier place",
        [
            (
                "    found = matches(ids)\n",
                "    found = matches(ids).roll(-1, 2)\n    found[:, :, -1] = 0\n    found *= torch.ones(ids.shape[1], ids.shape[1]).tril(-1)\n",
            )
        ],
    ),
    (
        "induction_scores",
        "before the same token",
        [
            (
                "    found = matches(ids)\n",
                "    same = ids[:, :, None] == ids[:, None, :]\n    found = same.tril(-1).roll(-1, 2)\n",
            )
        ],
    ),
    ("induction_scores", "queries and keys are swapped", [("blhts,bts", "blhst,bts")]),
    ("induction_scores", "over all positions", [(SCORES, "    return there.mean((0, 3))")]),
    ("induction_scores", "over all pairs", [(SCORES, "    return there.sum((0, 3)) / found.sum()")]),
    (
        "induction_scores",
        "rows are summed",
        [(SCORES, "    return there[rows, :, :, places].mean(0) * len(ids)")],
    ),
    ("induction_scores", "attention is summed", [("places].mean(0)", "places].sum(0)")]),
    ("induction_scores", "the table is [head, layer]", [("places].mean(0)", "places].mean(0).T")]),
    (
        "induction_scores",
        "with its dropout on",
        [("    lm.eval()\n    with torch.no_grad():\n", "    with torch.no_grad():\n")],
    ),
    ("ablated_loss", "nothing is ablated", [("        z[:, head] = 0\n", "        z[:, head] *= 1\n")]),
    ("ablated_loss", "all heads", [("z[:, head] = 0", "z[:] = 0")]),
    ("ablated_loss", "in every layer", [('f"layers.{layer}.z"', '"layers.*.z"')]),
    ("ablated_loss", "by its mean", [("z[:, head] = 0", "z[:, head] = z[:, head].mean(0)")]),
    ("ablated_loss", "over all positions", [("if row[t] in row[:t]:", "if True:")]),
    ("ablated_loss", "whose next token", [("if row[t] in row[:t]:", "if row[t + 1] in row[: t + 1]:")]),
    ("ablated_loss", "its own token", [("[row[t + 1]])", "[row[t]])")]),
    ("ablated_loss", "losses are summed", [("torch.stack(losses).mean()", "torch.stack(losses).sum()")]),
    (
        "ablated_loss",
        "its dropout is on",
        [("    lm.eval()\n    with torch.no_grad(), lm", "    with torch.no_grad(), lm")],
    ),
    (
        "find_induction_head",
        "largest score",
        [("loss = ablated_loss(lm, ids, layer, head)", "loss = scores[layer, head]")],
    ),
    ("find_induction_head", "hurts most of all", [("< 0.5", "< 0")]),
    (
        "find_induction_head",
        "first head",
        [
            (
                "            loss = ablated_loss",
                "            return layer, head\n            loss = ablated_loss",
            )
        ],
    ),
    (
        "find_induction_head",
        "layer and head are swapped",
        [("best, worst = (layer, head)", "best, worst = (head, layer)")],
    ),
    ("find_induction_head", "although none", [("< 0.5", "< min(0.5, scores.max())")]),
    ("ForTrainer", "its own token", [("targets = labels[:, 1:]", "targets = labels")]),
    (
        "ForTrainer",
        "wrong way",
        [("targets = labels[:, 1:]", "targets = labels[:, :-1]"), ("[:, : targets.shape[1]]", "[:, 1:]")],
    ),
    ("ForTrainer", "losses are summed", [("-picked.mean()", "-picked.sum()")]),
    ("ForTrainer", "count in the mean", [("-picked.mean()", "-picked.sum() / targets.numel()")]),
    (
        "ForTrainer",
        "as if they were token 0",
        [("targets = labels[:, 1:]", "targets = labels[:, 1:].clip(min=0)")],
    ),
    (
        "ForTrainer",
        "lack the last",
        [("        return out", "            out['logits'] = out['logits'][:, :-1]\n        return out")],
    ),
    (
        "ForTrainer",
        'under "logits"',
        [("        return out", "            out['logits'] = out['logits'].softmax(-1)\n        return out")],
    ),
    (
        "ForTrainer",
        "nothing is returned",
        [("        return out", "        return out if labels is not None else {}")],
    ),
    ("train_with_huggingface", "labels are shifted", [("row.clone()", "row.roll(-1)")]),
    ("train_with_huggingface", "seed is not passed", [("        seed=seed,\n", "")]),
    ("train_with_huggingface", "lr is not passed", [("        learning_rate=lr,\n", "")]),
    (
        "train_with_huggingface",
        "batch_size is not passed",
        [("        per_device_train_batch_size=batch_size,\n", "")],
    ),
    ("train_with_huggingface", "n_epochs is not passed", [("        num_train_epochs=n_epochs,\n", "")]),
    ("train_with_huggingface", "not every step is logged", [("logging_steps=1", "logging_steps=2")]),
    (
        "train_with_huggingface",
        "does not fall",
        [("        seed=seed,\n", "        seed=seed,\n        lr_scheduler_type='constant',\n")],
    ),
    (
        "train_with_huggingface",
        "the weights decay",
        [("        seed=seed,\n", "        seed=seed,\n        weight_decay=0.01,\n")],
    ),
    (
        "train_with_huggingface",
        "checkpoints are saved",
        [
            ("    folder = tempfile.mkdtemp()\n", ""),
            ('f"{folder}/out"', '"trainer_output"'),
            ('save_strategy="no"', 'save_strategy="epoch"'),
            ("    shutil.rmtree(folder)\n", ""),
        ],
    ),
    (
        "train_with_huggingface",
        "the whole training",
        [
            (
                '[float(entry["loss"]) for entry in history[:-1]]',
                '[float(entry.get("loss", entry.get("train_loss"))) for entry in history]',
            )
        ],
    ),
]
