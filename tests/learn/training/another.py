"""A right student's file in another spelling than the solution's: what the checks find must not hang on spelling."""

import math

import torch


class AdamW:
    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        self.all = tuple(parameters)
        self.lr, self.eps, self.decay = lr, eps, weight_decay
        self.b1, self.b2 = betas
        self.state = {}

    def step(self):
        given = [p for p in self.all if p.grad is not None]
        for p in given:
            t, m, v = self.state.get(p, (1, 0.0, 0.0))
            g = p.grad.detach()
            m = g + self.b1 * (m - g)
            v = g * g + self.b2 * (v - g * g)
            m_hat = m / (1 - self.b1**t)
            v_hat = v / (1 - self.b2**t)
            new = p.detach() * (1 - self.lr * self.decay)
            new = new - self.lr * m_hat / (v_hat**0.5 + self.eps)
            p.data.copy_(new)
            self.state[p] = (t + 1, m, v)

    def zero_grad(self):
        for p in self.all:
            p.grad = None


def clip_gradients(parameters, max_norm):
    having = [p for p in parameters if p.grad is not None]
    norm = torch.zeros(())
    if having:
        flat = torch.cat([p.grad.flatten() for p in having])
        norm = torch.linalg.vector_norm(flat)
        factor = max_norm / (norm + 1e-6)
        if factor < 1:
            for p in having:
                p.grad = p.grad * factor
    return norm


def learning_rate(step, n_steps, lr, n_warmup=0, min_lr=0.0):
    if step >= n_steps:
        return min_lr
    if step < n_warmup:
        return lr * (step / n_warmup)
    angle = math.pi * (step - n_warmup) / (n_steps - n_warmup)
    share = 0.5 + 0.5 * math.cos(angle)
    return lr * share + min_lr * (1 - share)


def train(
    model,
    batches,
    loss_of,
    lr=1e-3,
    *,
    n_warmup=0,
    min_lr=0.0,
    weight_decay=0.01,
    max_norm=1.0,
    n_accumulate=1,
):
    before = model.training
    model.train()
    optimizer = AdamW(model.parameters(), weight_decay=weight_decay)
    optimizer.zero_grad()
    losses, of_this_step = [], []
    last = len(batches) // n_accumulate
    for i, batch in enumerate(batches):
        loss = loss_of(model, batch)
        (loss / n_accumulate).backward()
        of_this_step.append(float(loss.detach()))
        if (i + 1) % n_accumulate == 0:
            optimizer.lr = learning_rate(i // n_accumulate, last, lr, n_warmup, min_lr)
            clip_gradients(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(sum(of_this_step) / n_accumulate)
            of_this_step = []
    model.train(before)
    return losses
