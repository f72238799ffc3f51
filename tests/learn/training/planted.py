"""Known mistakes to plant in tests/learn/training/another.py: the part, what should be said, and (old, new) edits."""

KEEP = "            self.state[p] = (t + 1, m, v)\n"
UPDATE = (
    "            new = p.detach() * (1 - self.lr * self.decay)\n"
    "            new = new - self.lr * m_hat / (v_hat**0.5 + self.eps)\n"
)
CLIP = "clip_gradients(model.parameters(), max_norm)"
BACKWARD = "(loss / n_accumulate).backward()"

MISTAKES = [
    (
        "AdamW",
        "there is no bias correction",
        [("m / (1 - self.b1**t)", "m"), ("v / (1 - self.b2**t)", "v")],
    ),
    ("AdamW", "bias correction of v, the mean of squares, is missing", [("v / (1 - self.b2**t)", "v")]),
    ("AdamW", "bias correction of m, the mean of gradients, is missing", [("m / (1 - self.b1**t)", "m")]),
    ("AdamW", "divides by 1 - beta at every step", [("self.b1**t", "self.b1"), ("self.b2**t", "self.b2")]),
    ("AdamW", "counted from 0", [("(1, 0.0, 0.0)", "(0, 0.0, 0.0)")]),
    ("AdamW", "one step ahead", [("(1, 0.0, 0.0)", "(2, 0.0, 0.0)")]),
    ("AdamW", "eps is inside the root", [("(v_hat**0.5 + self.eps)", "(v_hat + self.eps) ** 0.5")]),
    (
        "AdamW",
        "eps is added before the bias correction",
        [("(v_hat**0.5 + self.eps)", "((v**0.5 + self.eps) * (1 - self.b2**t) ** -0.5)")],
    ),
    ("AdamW", "eps is missing", [("(v_hat**0.5 + self.eps)", "v_hat**0.5")]),
    ("AdamW", "divided by v' itself", [("v_hat**0.5", "v_hat")]),
    (
        "AdamW",
        "as in Adam with L2",
        [
            ("g = p.grad.detach()", "g = p.grad.detach() + self.decay * p.detach()"),
            (" * (1 - self.lr * self.decay)", ""),
        ],
    ),
    ("AdamW", "not multiplied by lr", [("1 - self.lr * self.decay", "1 - self.decay")]),
    ("AdamW", "there is no weight decay", [(" * (1 - self.lr * self.decay)", "")]),
    (
        "AdamW",
        "comes after the step",
        [
            (
                UPDATE,
                "            new = p.detach() - self.lr * m_hat / (v_hat**0.5 + self.eps)\n"
                "            new = new - new * self.lr * self.decay\n",
            )
        ],
    ),
    ("AdamW", "parameters grow", [("(1 - self.lr * self.decay)", "(1 + self.lr * self.decay)")]),
    ("AdamW", "swapped", [("self.b1, self.b2 = betas", "self.b2, self.b1 = betas")]),
    (
        "AdamW",
        "mean of m squared",
        [("v = g * g + self.b2 * (v - g * g)", "v = self.b2 * v + (1 - self.b2) * m * m")],
    ),
    ("AdamW", "not of their squares", [("v = g * g + self.b2 * (v - g * g)", "v = g + self.b2 * (v - g)")]),
    ("AdamW", "momentum in SGD", [("m = g + self.b1 * (m - g)", "m = g + self.b1 * m")]),
    (
        "AdamW",
        "the wrong way round",
        [
            ("m = g + self.b1 * (m - g)", "m = m + self.b1 * (g - m)"),
            ("v = g * g + self.b2 * (v - g * g)", "v = v + self.b2 * (g * g - v)"),
        ],
    ),
    ("AdamW", "begin at 0 in every step", [(KEEP, "            self.state[p] = (t + 1, 0.0, 0.0)\n")]),
    ("AdamW", "corrected m and v are kept", [(KEEP, "            self.state[p] = (t + 1, m_hat, v_hat)\n")]),
    ("AdamW", "up the gradient", [("new = new - self.lr", "new = new + self.lr")]),
    ("AdamW", "parameters do not move", [("p.data.copy_(new)", "p = new")]),
    (
        "AdamW",
        "one step counter serves",
        [
            ("self.state = {}", "self.state, self.t = {}, 0"),
            ("given = [", "self.t += 1\n        given = ["),
            ("v / (1 - self.b2**t)", "v / (1 - self.b2**self.t)"),
            ("m / (1 - self.b1**t)", "m / (1 - self.b1**self.t)"),
        ],
    ),
    (
        "AdamW",
        "as if its gradient were 0",
        [
            ("[p for p in self.all if p.grad is not None]", "self.all"),
            ("g = p.grad.detach()", "g = torch.zeros_like(p.detach()) if p.grad is None else p.grad"),
        ],
    ),
    (
        "AdamW",
        "without a gradient decays",
        [
            (
                "        for p in given:\n",
                "        for p in self.all:\n            if p.grad is None:\n"
                "                p.data *= 1 - self.lr * self.decay\n        for p in given:\n",
            )
        ],
    ),
    (
        "AdamW",
        "read once",
        [
            ("self.lr, self.eps, self.decay = lr,", "self.lr, self.eta, self.eps, self.decay = lr, lr,"),
            ("(1 - self.lr * self.decay)", "(1 - self.eta * self.decay)"),
            ("new - self.lr * m_hat", "new - self.eta * m_hat"),
        ],
    ),
    (
        "AdamW",
        "gradient is changed by the step",
        [("g = p.grad.detach()", "p.grad += self.decay * p.detach(); g = p.grad")],
    ),
    ("AdamW", "the generator they came in", [("tuple(parameters)", "parameters")]),
    (
        "AdamW",
        "fills gradients with 0",
        [
            (
                "        for p in self.all:\n            p.grad = None",
                "        for p in self.all:\n            if p.grad is not None:\n                p.grad = 0 * p.grad",
            )
        ],
    ),
    ("AdamW", "under torch.no_grad()", [("p.data.copy_(new)", "p.copy_(new)")]),
    ("AdamW", "zero_grad does nothing", [("            p.grad = None", "            g = None")]),
    (
        "clip_gradients",
        "clipped by its own norm",
        [
            (
                "        if factor < 1:\n            for p in having:\n                p.grad = p.grad * factor",
                "        for p in having:\n            p.grad = p.grad * min(1, max_norm / (p.grad.norm() + 1e-6))",
            )
        ],
    ),
    ("clip_gradients", "always scaled", [("if factor < 1", "if True")]),
    (
        "clip_gradients",
        "norm after clipping",
        [("    return norm", "    return norm * min(1, factor) if having else norm")],
    ),
    (
        "clip_gradients",
        "one by one",
        [
            ("        if factor < 1:\n", "        if True:\n"),
            ("p.grad * factor", "p.grad.clip(-max_norm, max_norm)"),
        ],
    ),
    (
        "clip_gradients",
        "added up",
        [("torch.linalg.vector_norm(flat)", "sum(p.grad.norm() for p in having)")],
    ),
    ("clip_gradients", "root is missing", [("torch.linalg.vector_norm(flat)", "flat @ flat")]),
    (
        "clip_gradients",
        "mean over the parameters",
        [("torch.linalg.vector_norm(flat)", "torch.linalg.vector_norm(flat) / len(having) ** 0.5")],
    ),
    ("clip_gradients", "largest number", [("torch.linalg.vector_norm(flat)", "flat.abs().max()")]),
    ("clip_gradients", "1e-6 is missing", [("(norm + 1e-6)", "norm")]),
    ("clip_gradients", "gradients do not change", [("p.grad = p.grad * factor", "grad = p.grad * factor")]),
    ("learning_rate", "begins with lr / n_warmup", [("(step / n_warmup)", "((step + 1) / n_warmup)")]),
    ("learning_rate", "there is no warm-up", [("lr * (step / n_warmup)", "lr")]),
    ("learning_rate", "warm-up is as long as all steps", [("(step / n_warmup)", "(step / n_steps)")]),
    (
        "learning_rate",
        "begins at min_lr",
        [("lr * (step / n_warmup)", "min_lr + (lr - min_lr) * (step / n_warmup)")],
    ),
    (
        "learning_rate",
        "runs over all steps",
        [("(step - n_warmup) / (n_steps - n_warmup)", "step / n_steps")],
    ),
    (
        "learning_rate",
        "never reaches its end",
        [
            ("    if step >= n_steps:\n        return min_lr\n", ""),
            ("(step - n_warmup) / (n_steps - n_warmup)", "min(1, (step - n_warmup) / n_steps)"),
        ],
    ),
    (
        "learning_rate",
        "n_steps - 1",
        [
            ("if step >= n_steps", "if step >= n_steps - 1"),
            ("(n_steps - n_warmup)", "max(1, n_steps - n_warmup - 1)"),
        ],
    ),
    (
        "learning_rate",
        "min_lr is ignored",
        [("        return min_lr", "        return 0.0"), (" + min_lr * (1 - share)", "")],
    ),
    ("learning_rate", "min_lr is added", [(" + min_lr * (1 - share)", " + min_lr")]),
    (
        "learning_rate",
        "cut off at min_lr",
        [("lr * share + min_lr * (1 - share)", "max(lr * share, min_lr)")],
    ),
    (
        "learning_rate",
        "the half is missing",
        [
            ("0.5 + 0.5 * math.cos(angle)", "1 + math.cos(angle)"),
            ("* (1 - share)", "* (1 - share) * 1"),
        ],
    ),
    (
        "learning_rate",
        "below 0",
        [
            ("0.5 + 0.5 * math.cos(angle)", "math.cos(angle)"),
            ("        return min_lr", "        return min_lr - (lr - min_lr)"),
        ],
    ),
    (
        "learning_rate",
        "whole cosine",
        [("        return min_lr", "        return lr"), ("angle = math.pi", "angle = 2 * math.pi")],
    ),
    ("learning_rate", "falls linearly", [("0.5 + 0.5 * math.cos(angle)", "1 - angle / math.pi")]),
    ("learning_rate", "it rises again", [("    if step >= n_steps:\n        return min_lr\n", "")]),
    (
        "train",
        "never cleared",
        [
            ("    optimizer.zero_grad()\n    losses,", "    losses,"),
            ("            optimizer.zero_grad()\n", ""),
        ],
    ),
    (
        "train",
        "between backward and step",
        [(f"            {CLIP}\n", "            optimizer.zero_grad()\n")],
    ),
    ("train", "not before it", [("    optimizer.zero_grad()\n    losses,", "    losses,")]),
    (
        "train",
        "counts twice",
        [(BACKWARD, "(loss / n_accumulate).backward(retain_graph=True); (loss / n_accumulate).backward()")],
    ),
    (
        "train",
        "not clipped",
        [
            (
                f"            {CLIP}\n            optimizer.step()\n",
                f"            optimizer.step()\n            {CLIP}\n",
            )
        ],
    ),
    ("train", "clipped by itself", [(CLIP, "[clip_gradients([p], max_norm) for p in model.parameters()]")]),
    (
        "train",
        "clipped after every batch",
        [(f"            {CLIP}\n", ""), (BACKWARD, f"{BACKWARD}; {CLIP}")],
    ),
    (
        "train",
        "schedule is not used",
        [("learning_rate(i // n_accumulate, last, lr, n_warmup, min_lr)", "lr")],
    ),
    (
        "train",
        "one step ahead",
        [("learning_rate(i // n_accumulate,", "learning_rate(i // n_accumulate + 1,")],
    ),
    (
        "train",
        "schedule counts batches",
        [
            (
                "learning_rate(i // n_accumulate, last,",
                "learning_rate(i // n_accumulate * n_accumulate, len(batches),",
            )
        ],
    ),
    ("train", "min_lr is not passed", [("lr, n_warmup, min_lr)", "lr, n_warmup)")]),
    (
        "train",
        "weight_decay is not passed",
        [("AdamW(model.parameters(), weight_decay=weight_decay)", "AdamW(model.parameters())")],
    ),
    (
        "train",
        "new optimizer",
        [
            (
                "            optimizer.lr =",
                "            optimizer = AdamW(model.parameters(), weight_decay=weight_decay)\n            optimizer.lr =",
            )
        ],
    ),
    ("train", "gradients of the batches of one step are summed", [(BACKWARD, "loss.backward()")]),
    (
        "train",
        "losses of the batches of one step are summed",
        [("sum(of_this_step) / n_accumulate", "sum(of_this_step)")],
    ),
    ("train", "of its last batch", [("sum(of_this_step) / n_accumulate", "of_this_step[-1]")]),
    (
        "train",
        "before every batch",
        [
            (
                "        loss = loss_of(model, batch)",
                "        optimizer.zero_grad()\n        loss = loss_of(model, batch)",
            )
        ],
    ),
    (
        "train",
        "a step of its own",
        [
            (
                "    losses, of_this_step",
                "    n_accumulate, last = 1, len(batches)\n    losses, of_this_step",
            ),
            ("    last = len(batches) // n_accumulate\n", ""),
        ],
    ),
    ("train", "not put into training mode", [("    model.train()\n", "")]),
    ("train", "left in training mode", [("    model.train(before)\n", "")]),
    ("train", "left in evaluation mode", [("model.train(before)", "model.eval()")]),
]
