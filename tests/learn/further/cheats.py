"""Cheats and oddities to plant in tests/learn/further/another.py: the part, what should be said, (old, new) edits."""

CHEATS = [
    (
        "continue_pair",
        "continue_pair of the solution",
        [
            (
                "    a, b = ids_a.tolist(), ids_b.tolist()\n",
                "    from learn.solution import further\n"
                "    return further.continue_pair(model, ids_a, ids_b, n_new, strength, generator)\n"
                "    a, b = ids_a.tolist(), ids_b.tolist()\n",
            )
        ],
    ),
    (
        "continue_pair",
        "of transformers did the work",
        [
            (
                "        p = pair_logprobs(after_a[None], after_b[None], strength).exp()\n",
                "        from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor as Guidance\n"
                "        from types import SimpleNamespace\n"
                "        theirs = Guidance(strength, lambda ids, **_: SimpleNamespace(logits=model(torch.tensor([a])),"
                " get=lambda *_: None), torch.tensor([a]), use_cache=False)\n"
                "        p = theirs(torch.tensor([b]), after_b[None]).softmax(-1)\n",
            )
        ],
    ),
    (
        "finetune",
        "of torch.optim did the work",
        [
            (
                "    return train(model, batches, loss_of, lr=lr, n_warmup=int(len(batches) / 10))",
                "    optimizer = torch.optim.AdamW(model.parameters(), lr)\n"
                "    from learn.solution.training import clip_gradients, learning_rate\n"
                "    losses = []\n"
                "    model.train()\n"
                "    for i, batch in enumerate(batches):\n"
                "        optimizer.param_groups[0]['lr'] = learning_rate(i, len(batches), lr, len(batches) // 10)\n"
                "        optimizer.zero_grad()\n"
                "        loss = loss_of(model, batch)\n"
                "        loss.backward()\n"
                "        clip_gradients(model.parameters(), 1.0)\n"
                "        optimizer.step()\n"
                "        losses.append(loss.item())\n"
                "    return losses",
            )
        ],
    ),
    (
        "ablated_loss",
        "of explore/ did the work",
        [
            (
                "    def without(z):\n",
                "    from explore.inspection.analysis import eval_no_grad\n"
                "    with eval_no_grad(lm):\n        pass\n\n"
                "    def without(z):\n",
            )
        ],
    ),
    (
        "find_induction_head",
        "of explore/ did the work",
        [
            (
                "    scores = induction_scores(lm, ids)\n",
                "    from explore.inspection.scores import head_scores\n    head_scores(lm, length=5)\n    scores = induction_scores(lm, ids)\n",
            )
        ],
    ),
    (
        "ForTrainer",
        "comes from transformers",
        [("class ForTrainer(nn.Module):", "class ForTrainer(__import__('transformers').GPT2LMHeadModel):")],
    ),
]

# None of the known mistakes, but something is to be said; `|` stands between two ways of saying it.
OTHERS = [
    ("pair_logprobs", "there is no pair_logprobs", [("def pair_logprobs(", "def pair(")]),
    ("pair_logprobs", "p for p_a = (0.5, 0.5)", [("strength * logits_b", "strength * 1.1 * logits_b")]),
    ("pair_logprobs", "is a `return` missing", [("return mixed - ", "mixed - ")]),
    ("continue_pair", "not a tensor with the new tokens", [("return torch.tensor(new)", "return new")]),
    ("continue_pair", "the continuation at strength=1.5", [("p.max(-1)", "p.min(-1)")]),
    (
        "accuracy",
        "expected a float",
        [("    return sum(hits) / len(hits)", "    return torch.tensor(sum(hits) / len(hits))")],
    ),
    (
        "accuracy",
        "times what it should be",
        [("    return sum(hits) / len(hits)", "    return 100 * sum(hits) / len(hits)")],
    ),
    ("finetune", "the list of losses that `train` returns", [("    return train(", "    train(")]),
    ("finetune", "the number of steps", [("for _ in range(n_epochs):", "for _ in range(n_epochs + 1):")]),
    ("finetune", "the loss of step 0", [("return cross_entropy(", "return 0.5 * cross_entropy(")]),
    ("induction_scores", "a model whose induction head is 2", [("places].mean(0)", "places].mean(0) + 0.1")]),
    ("induction_scores", "training mode afterwards", [("    lm.train(before)\n    found", "    found")]),
    ("ablated_loss", "without head 0 of layer 0", [("z[:, head] = 0", "z[:, head - 1] = 0")]),
    ("ablated_loss", "training mode afterwards", [("    lm.train(before)\n    losses", "    losses")]),
    (
        "ablated_loss",
        "expected a float",
        [("    return float(torch.stack(losses).mean())", "    return torch.stack(losses).mean()")],
    ),
    (
        "find_induction_head",
        "the head found in",
        [("best, worst = (layer, head), loss", "best, worst = (layer, 3), loss")],
    ),
    ("ForTrainer", 'logits": ...}, not Tensor', [("        return out", "        return out['logits']")]),
    ("ForTrainer", "no gradient flows", [("-picked.mean()", "-picked.mean().detach()")]),
    ("train_with_huggingface", "the number of losses", [("history[:-1]", "history[:-2]")]),
    ("train_with_huggingface", "expected the list of losses", [("    return [float", "    [float")]),
    (
        "train_with_huggingface",
        "files left behind",
        [("    shutil.rmtree(folder)\n", "    shutil.rmtree(folder)\n    open('log.txt', 'w').close()\n")],
    ),
]
