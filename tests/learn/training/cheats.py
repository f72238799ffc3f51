"""Cheats and oddities to plant in tests/learn/training/another.py: the part, what should be said, (old, new) edits."""

OPTIMIZER = "optimizer = AdamW(model.parameters(), weight_decay=weight_decay)"

CHEATS = [
    ("AdamW", "comes from torch.optim", [("class AdamW:", "class AdamW(torch.optim.AdamW):")]),
    (
        "AdamW",
        "comes from torch.optim",
        [("def clip_gradients", "from torch.optim import AdamW\n\n\ndef clip_gradients")],
    ),
    (
        "AdamW",
        "of torch.optim did the work",
        [
            ("        given = [", "        return self.torchs()\n        given = ["),
            (
                "    def zero_grad",
                "    def torchs(self):\n"
                "        if not hasattr(self, 'real'):\n"
                "            self.real = torch.optim.AdamW(self.all, self.lr, (self.b1, self.b2), self.eps, self.decay)\n"
                "        self.real.param_groups[0]['lr'] = self.lr\n"
                "        self.real.step()\n\n"
                "    def zero_grad",
            ),
        ],
    ),
    (
        "AdamW",
        "_fused_adamw_`",
        [
            ("        given = [", "        return self.fused()\n        given = ["),
            (
                "    def zero_grad",
                "    def fused(self):\n"
                "        for p in [p for p in self.all if p.grad is not None]:\n"
                "            if p not in self.state:\n"
                "                self.state[p] = [torch.zeros_like(p).detach(), torch.zeros_like(p).detach(), torch.zeros(())]\n"
                "            m, v, t = self.state[p]\n"
                "            t += 1\n"
                "            torch._fused_adamw_([p.data], [p.grad], [m], [v], [], [t], lr=self.lr, beta1=self.b1,\n"
                "                beta2=self.b2, weight_decay=self.decay, eps=self.eps, amsgrad=False, maximize=False)\n\n"
                "    def zero_grad",
            ),
        ],
    ),
    (
        "AdamW",
        "AdamW of the solution",
        [
            (
                "        self.all = tuple(parameters)\n",
                "        from learn.solution import training\n"
                "        self.all = tuple(parameters)\n"
                "        self.real = training.AdamW(self.all, lr, betas, eps, weight_decay)\n",
            ),
            (
                "        given = [",
                "        self.real.lr = self.lr\n        return self.real.step()\n        given = [",
            ),
        ],
    ),
    (
        "clip_gradients",
        "torch.nn.utils",
        [
            (
                "    having = [",
                "    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)\n    having = [",
            )
        ],
    ),
    (
        "clip_gradients",
        "torch.nn.utils",
        [("torch.linalg.vector_norm(flat)", "torch.nn.utils.get_total_norm([p.grad for p in having])")],
    ),
    (
        "clip_gradients",
        "torch.nn.utils",
        [
            (
                "if factor < 1:",
                "torch.nn.utils.clip_grads_with_norm_(having, max_norm, norm)\n        if False:",
            ),
        ],
    ),
    (
        "learning_rate",
        "of torch.optim did the work",
        [
            (
                "    angle = ",
                "    optimizer = torch.optim.SGD([torch.zeros(1)], lr)\n"
                "    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps - n_warmup, min_lr)\n"
                "    for _ in range(step - n_warmup):\n        optimizer.step()\n        schedule.step()\n"
                "    return schedule.get_last_lr()[0]\n"
                "    angle = ",
            )
        ],
    ),
    (
        "learning_rate",
        "of transformers did the work",
        [
            (
                "    angle = ",
                "    from transformers.optimization import _get_cosine_schedule_with_warmup_lr_lambda as theirs\n"
                "    share = theirs(step, num_warmup_steps=n_warmup, num_training_steps=n_steps, num_cycles=0.5)\n"
                "    return min_lr + (lr - min_lr) * share\n"
                "    angle = ",
            )
        ],
    ),
    (
        "train",
        "of torch.optim did the work",
        [
            (OPTIMIZER, "optimizer = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay)"),
            ("            optimizer.lr = ", "            optimizer.param_groups[0]['lr'] = "),
        ],
    ),
    ("train", "torch.nn.utils", [("clip_gradients(model", "torch.nn.utils.clip_grad_norm_(model")]),
    (
        "train",
        "train of the solution",
        [
            (
                "    before = model.training\n",
                "    from learn.solution import training\n"
                "    settings = dict(n_warmup=n_warmup, min_lr=min_lr, weight_decay=weight_decay)\n"
                "    more = dict(max_norm=max_norm, n_accumulate=n_accumulate)\n"
                "    return training.train(model, batches, loss_of, lr, **settings, **more)\n"
                "    before = model.training\n",
            )
        ],
    ),
]

# None of the known mistakes, but something is to be said; `|` stands between two ways of saying it.
OTHERS = [
    ("AdamW", "there is no AdamW", [("class AdamW:", "class Adam:")]),
    ("AdamW", "the attribute `lr` of AdamW is missing", [("self.lr, self.eps", "self.rate, self.eps")]),
    ("AdamW", "`matrix` after step 1 (weight_decay=0): ", [("self.lr * m_hat", "2 * self.lr * m_hat")]),
    ("AdamW", "IndexError: invalid index of a 0-dim", [("copy_(new)", "copy_(new[0][0][0])")]),
    ("AdamW", "another.py, line 26", [("copy_(new)", "copy_(new[0][0][0])")]),
    ("AdamW", "`matrix` after step 2", [("self.b2 * (v - g * g)", "self.b2 * (v - g * g) * (1 + t // 2)")]),
    (
        "AdamW",
        "`late` after step 6 (gradients missing",
        [("if p.grad is not None]\n        for", "if p.grad is not None][:2]\n        for")],
    ),
    ("clip_gradients", "not a tensor", [("    return norm", "    return norm.item()")]),
    ("clip_gradients", "is a `return` missing", [("    return norm", "")]),
    (
        "clip_gradients",
        "(one gradient missing)|TypeError|AttributeError",
        [("[p for p in parameters if p.grad is not None]", "[*parameters]")],
    ),
    ("clip_gradients", "expected a non-empty list", [("if having:", "if True:")]),
    ("clip_gradients", "the gradient of `matrix`", [("norm + 1e-6", "norm + 1")]),
    (
        "learning_rate",
        "it is Tensor, expected float|'Tensor', expected|Tensor",
        [("return lr * share", "return torch.tensor(lr) * share")],
    ),
    ("learning_rate", "ZeroDivisionError", [("if step < n_warmup", "if step <= n_warmup")]),
    (
        "learning_rate",
        "at step 3 (of 10, no warm-up): ",
        [("angle = math.pi *", "angle = (math.pi if step != 3 else 3) *")],
    ),
    ("train", "list of floats", [("float(loss.detach())", "loss.detach()")]),
    ("train", "list of floats", [("    return losses", "    return torch.tensor(losses)")]),
    ("train", "list of floats", [("    return losses", "")]),
    ("train", "the number of losses", [("    return losses", "    return losses[:-1]")]),
    (
        "train",
        "`embedding.tokens`|the loss of step 1",
        [("optimizer.step()", "optimizer.step() if i else None")],
    ),
    ("train", "backward through the graph a second time", [(".backward()", ".backward(); loss.backward()")]),
]
