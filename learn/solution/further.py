"""Further exercises with a model that works: a worked solution of learn/further_student.py. Look here last.

Shape suffixes:  B batch  T position  S position attended to  L layer  H head  V vocabulary  N text
"""

import tempfile
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from learn.solution.training import train
from model.generation.sampling import eval_mode
from model.lm import LM
from model.recording import at


def pair_logprobs(logits_a_BV: Tensor, logits_b_BV: Tensor, strength: float) -> Tensor:
    """Log-probabilities of the next token, mixed from the predictions of two contexts."""
    a_BV, b_BV = logits_a_BV.log_softmax(dim=-1), logits_b_BV.log_softmax(dim=-1)
    mixed_BV = a_BV + strength * (b_BV - a_BV)
    return mixed_BV.log_softmax(dim=-1)


@torch.no_grad()
def continue_pair(
    model: nn.Module,
    ids_a: Tensor,
    ids_b: Tensor,
    n_new: int,
    strength: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One continuation of two contexts at once."""
    new = ids_a[:0]
    for _ in range(n_new):
        logits_a = model(torch.cat([ids_a, new])[None])[:, -1]
        logits_b = model(torch.cat([ids_b, new])[None])[:, -1]
        logprobs = pair_logprobs(logits_a, logits_b, strength)[0]
        if generator is None:
            token = logprobs.argmax(dim=-1, keepdim=True)
        else:
            token = torch.multinomial(logprobs.exp(), 1, generator=generator)
        new = torch.cat([new, token])
    return new


def accuracy(model: nn.Module, ids_NT: Tensor, mask_NT: Tensor, labels_N: Tensor) -> float:
    """Share of texts that are classified correctly."""
    with torch.no_grad(), eval_mode(model):
        right_N = model(ids_NT, mask_NT).argmax(dim=-1) == labels_N
    return right_N.double().mean().item()


def finetune(
    model: nn.Module,
    ids_NT: Tensor,
    mask_NT: Tensor,
    labels_N: Tensor,
    *,
    n_epochs: int = 4,
    batch_size: int = 32,
    lr: float = 2e-3,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Train all parameters of a classifier on labeled texts."""
    batches = list[Tensor]()
    for _ in range(n_epochs):
        order = torch.randperm(len(ids_NT), generator=generator)
        batches += order.split(batch_size)

    def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
        return F.cross_entropy(model(ids_NT[rows], mask_NT[rows]), labels_N[rows])

    return train(model, batches, loss_of, lr, n_warmup=len(batches) // 10)


def _after_same(ids_BT: Tensor) -> Tensor:
    """Return a mask [B, T, S]: True if s is at most t and the token at s - 1 equals the token at t."""
    after_BTS = torch.zeros(*ids_BT.shape, ids_BT.shape[1], dtype=torch.bool)
    after_BTS[:, :, 1:] = ids_BT[:, :, None] == ids_BT[:, None, :-1]
    return after_BTS.tril()


def induction_scores(lm: LM, ids_BT: Tensor) -> Tensor:
    """Induction score of each head: its attention to the token that followed the same token."""
    with torch.no_grad(), eval_mode(lm), lm.record("pattern") as seen:
        lm(ids_BT)
    patterns_LBHTS = torch.stack(seen.of_all_layers("pattern"))
    after_BTS = _after_same(ids_BT)
    attention_LH = (patterns_LBHTS * after_BTS[:, None]).sum(dim=(1, 3, 4))
    return attention_LH / after_BTS.any(dim=-1).sum()


def ablated_loss(lm: LM, ids_BT: Tensor, layer: int, head: int) -> float:
    """Loss of the tokens that could be copied, without one head."""
    seen_before_BT = _after_same(ids_BT).any(dim=-1)[:, :-1]
    with torch.no_grad(), eval_mode(lm), lm.patch({f"layers.{layer}.z": at(0, heads=head)}):
        logits_BTV = lm(ids_BT)[:, :-1]
    return F.cross_entropy(logits_BTV[seen_before_BT], ids_BT[:, 1:][seen_before_BT]).item()


def find_induction_head(lm: LM, ids_BT: Tensor) -> tuple[int, int] | None:
    """The head with a high induction score that copying needs most."""
    looking = (induction_scores(lm, ids_BT) >= 0.5).nonzero().tolist()
    losses = {(layer, head): ablated_loss(lm, ids_BT, layer, head) for layer, head in looking}
    return max(losses, key=lambda place: losses[place], default=None)


class ForTrainer(nn.Module):
    """A language model as HuggingFace's Trainer wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits_BTV = self.model(input_ids)
        if labels is None:
            return {"logits": logits_BTV}
        predicting_BTV, targets_BT = logits_BTV[:, :-1], labels[:, 1:]
        loss = F.cross_entropy(predicting_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits_BTV}


def train_with_huggingface(
    model: nn.Module,
    ids_NT: Tensor,
    *,
    n_epochs: int = 1,
    batch_size: int = 8,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train by transformers.Trainer, without output or files."""
    rows: Any = [{"input_ids": ids_T, "labels": ids_T} for ids_T in ids_NT]
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder,
            num_train_epochs=n_epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=lr,
            seed=seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(ForTrainer(model), settings, train_dataset=rows)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
