"""Evaluation: the sums over a validation split, and what they come to."""

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from data.dataloader import LMDataModule
from model.lm import LM
from model.sampling import generate
from train.train_params import TrainParams

CHECKED_ANSWERS = 100  # generated answers that a task's own check looks at
SAMPLE_LENGTH = 100  # tokens


class Evaluation:
    """Adds up losses and right answers batch by batch, on the device; `result` reads them."""

    def __init__(self, lm: LM, data: LMDataModule) -> None:
        self.lm = lm
        self.data = data
        self.loss_sums: dict[str, Tensor | float] = defaultdict(float)
        self.n_right: Tensor | int = 0
        self.n_scored = 0
        self.questions: list[tuple[list[int], list[int]]] = []  # prompts of a task, and the expected answers

    @torch.no_grad()
    def add(self, batch: dict, train_params: TrainParams) -> None:
        xyz = self.lm.get_batch_xyz(batch)
        losses, _ = self.lm.get_losses(batch, train_params, xyz=xyz)
        for name, loss in losses.items():
            self.loss_sums[name] += loss.detach().double() * batch["n_scored"]  # weighted by tokens, not by batch
        self.n_right += (xyz.z.argmax(dim=-1) == xyz.y).sum()
        self.n_scored += batch["n_scored"]
        if self.data.task is not None and len(self.questions) < CHECKED_ANSWERS:
            self.questions += questions(batch)[: CHECKED_ANSWERS - len(self.questions)]

    def result(self) -> dict[str, float]:
        """Mean losses and accuracy over scored positions; bits per byte for text; exact match for tasks that can check."""
        means = {f"val_loss:{name}": float(total) / self.n_scored for name, total in self.loss_sums.items()}
        means["val_accuracy"] = float(self.n_right) / self.n_scored
        if self.data.val_bytes:
            bits = float(self.loss_sums["main"]) / math.log(2)
            means["val_bits_per_byte"] = bits / self.data.val_bytes
        if self.data.task is not None and self.data.task.check is not None:
            means["val_exact_match"] = self.exact_match(self.data.task.check)
        return means

    def exact_match(self, check: Callable[[str, str], bool]) -> float:
        """Share of the questions whose greedily generated answer passes the task's check."""
        tokenizer = self.lm.tokenizer
        prompts = [prompt for prompt, _ in self.questions]
        longest = max(len(answer) for _, answer in self.questions)
        rows = generate(self.lm, prompts, max_new_tokens=longest, temperature=0)
        right = [
            check(tokenizer.decode(prompt), tokenizer.decode(row[len(prompt) :]))
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        return sum(right) / len(right)

    def describe(self, result: dict[str, float]) -> str:
        """One line of numbers and what the model says."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in result.items())
        if self.questions:
            prompt = self.questions[0][0]
            text = self.lm.sample(pref=prompt, temperature=0, max_seq_len=self.lm.model_params.max_seq_len)
        else:
            dice = torch.Generator(self.lm.device).manual_seed(0)  # its own, so that training does not notice
            text = self.lm.sample(max_seq_len=SAMPLE_LENGTH, generator=dice)
        return f"{numbers}\n  sample: {text!r}"


def questions(batch: dict) -> list[tuple[list[int], list[int]]]:
    """Every row of a task's batch as what stands before its first scored token, and the scored rest."""
    found = []
    for ids, scored, real in zip(batch["x_indices"], batch["target_mask"], batch["mask"], strict=True):
        start = int(scored.int().argmax())
        found.append((ids[:start].tolist(), ids[start:][real[start:]].tolist()))
    return found
