"""A right student's file in another spelling than the solution's: what the checks find must not hang on spelling."""

import shutil
import tempfile

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainingArguments

from learn.solution.training import train


def pair_logprobs(logits_a, logits_b, strength):
    mixed = (1 - strength) * logits_a + strength * logits_b
    return mixed - mixed.logsumexp(-1, keepdim=True)


def continue_pair(model, ids_a, ids_b, n_new, strength, generator=None):
    a, b = ids_a.tolist(), ids_b.tolist()
    new = []
    while len(new) < n_new:
        with torch.no_grad():
            after_a = model(torch.tensor([a]))[0, -1]
            after_b = model(torch.tensor([b]))[0, -1]
        p = pair_logprobs(after_a[None], after_b[None], strength).exp()
        if generator is not None:
            token = int(torch.multinomial(p, 1, generator=generator))
        else:
            token = int(p.max(-1).indices)
        a.append(token)
        b.append(token)
        new.append(token)
    return torch.tensor(new)


def accuracy(model, ids, mask, labels):
    before = model.training
    model.eval()
    with torch.no_grad():
        logits = model(ids, mask)
    model.train(before)
    hits = [int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)]
    return sum(hits) / len(hits)


def finetune(model, ids, mask, labels, *, n_epochs=4, batch_size=32, lr=2e-3, generator=None):
    n = len(ids)
    batches = []
    for _ in range(n_epochs):
        order = torch.randperm(n, generator=generator)
        for i in range(0, n, batch_size):
            rows = order[i : i + batch_size]
            batches.append({"ids": ids[rows], "mask": mask[rows], "labels": labels[rows]})

    def loss_of(model, batch):
        logits = model(batch["ids"], batch["mask"])
        return cross_entropy(logits, batch["labels"])

    return train(model, batches, loss_of, lr=lr, n_warmup=int(len(batches) / 10))


def matches(ids):
    n = ids.shape[1]
    found = torch.zeros(len(ids), n, n)
    for t in range(n):
        for s in range(1, t + 1):
            found[:, t, s] = ids[:, s - 1] == ids[:, t]
    return found


def induction_scores(lm, ids):
    before = lm.training
    lm.eval()
    with torch.no_grad():
        attention = lm(ids, get_attns=True)["attns"]
    lm.train(before)
    found = matches(ids)
    there = torch.einsum("blhts,bts->blht", attention, found.to(attention.dtype))
    counts = found.sum(-1) > 0
    rows, places = counts.nonzero(as_tuple=True)
    return there[rows, :, :, places].mean(0)


def ablated_loss(lm, ids, layer, head):
    def without(z):
        z[:, head] = 0
        return z

    before = lm.training
    lm.eval()
    with torch.no_grad(), lm.patch({f"layers.{layer}.z": without}):
        logits = lm(ids)
    lm.train(before)
    losses = []
    for row, predicted in zip(ids.tolist(), logits, strict=True):
        for t in range(len(row) - 1):
            if row[t] in row[:t]:
                losses.append(-predicted[t].log_softmax(-1)[row[t + 1]])
    return float(torch.stack(losses).mean())


def find_induction_head(lm, ids):
    scores = induction_scores(lm, ids)
    best, worst = None, -1.0
    for layer in range(scores.shape[0]):
        for head in range(scores.shape[1]):
            if scores[layer, head] < 0.5:
                continue
            loss = ablated_loss(lm, ids, layer, head)
            if loss > worst:
                best, worst = (layer, head), loss
    return best


class ForTrainer(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, labels=None):
        out = {"logits": self.model(input_ids)}
        if labels is not None:
            targets = labels[:, 1:]
            logprobs = out["logits"][:, : targets.shape[1]].log_softmax(-1)
            chosen = targets != -100
            picked = logprobs[chosen].gather(1, targets[chosen][:, None])
            out["loss"] = -picked.mean()
        return out


def train_with_huggingface(model, ids, *, n_epochs=1, batch_size=8, lr=1e-3, seed=0):
    data = []
    for row in ids:
        data.append({"input_ids": row, "labels": row.clone()})
    folder = tempfile.mkdtemp()
    arguments = TrainingArguments(
        output_dir=f"{folder}/out",
        per_device_train_batch_size=batch_size,
        num_train_epochs=n_epochs,
        learning_rate=lr,
        seed=seed,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model=ForTrainer(model), args=arguments, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    shutil.rmtree(folder)
    history = trainer.state.log_history
    return [float(entry["loss"]) for entry in history[:-1]]
