"""Evaluation: the sums over a validation split, and what they come to."""

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from data.batch import Row, mycollate
from data.dataloader import LMDataModule
from model.decoding import NoNextToken
from model.lm import LM
from model.perplexity import NOT_SCORED
from model.sampling import eval_mode, generate
from train.train_params import TrainParams

CHECKED_ANSWERS = 100  # generated answers that a task's own check looks at
SAMPLE_LENGTH = 100  # tokens


class Evaluation:
    """Adds up losses and right answers batch by batch without waiting for the device; `result` reads them."""

    def __init__(self, lm: LM, data: LMDataModule) -> None:
        self.lm = lm
        self.data = data
        self.losses: dict[str, list[Tensor]] = defaultdict(list)  # of each batch, left on the device
        self.n_right: list[Tensor] = []
        self.n_scored: list[Tensor] = []
        self.is_masked = lm.model_params.objective == "masked"  # fills gaps, and generates nothing
        asks = data.task is not None and not self.is_masked
        self.prompts = data.prompts(CHECKED_ANSWERS) if asks else []

    @torch.no_grad()
    def add(self, batch: dict, train_params: TrainParams) -> None:
        xyz = self.lm.get_batch_xyz(batch, train_params=train_params)
        losses, _ = self.lm.get_losses(batch, train_params, xyz=xyz)
        for name, loss in losses.items():
            self.losses[name].append(loss.detach())
        self.n_right.append((xyz.z.argmax(dim=-1) == xyz.y).sum())
        self.n_scored.append((xyz.y != NOT_SCORED).sum())

    def result(self) -> dict[str, float]:
        """Mean losses and accuracy over scored positions; bits per byte for text; exact match for tasks that can check.

        The last two not of a masked model, which predicts only some tokens, and not one after the other.
        """
        n_scored = torch.stack(self.n_scored).cpu().double()  # losses are weighted by tokens, not by batch
        sums = {name: float(torch.stack(of).cpu().double() @ n_scored) for name, of in self.losses.items()}
        total = float(n_scored.sum())
        means = {f"val_loss:{name}": loss / total for name, loss in sums.items()}
        means["val_accuracy"] = int(torch.stack(self.n_right).sum()) / total
        if self.data.val_bytes and not self.is_masked:
            means["val_bits_per_byte"] = sums["main"] / math.log(2) / self.data.val_bytes
        if self.prompts and self.data.task is not None and self.data.task.check is not None:
            means["val_exact_match"] = self.exact_match(self.data.task.check)
        return means

    def exact_match(self, check: Callable[[str, str], bool]) -> float:
        """Share of the prompts whose greedily generated answer passes the task's check; NaN if logits are NaN."""
        longest = max(prompt.answer_length for prompt in self.prompts)
        try:
            rows = generate(
                self.lm, [prompt.ids for prompt in self.prompts], max_new_tokens=longest, temperature=0
            )
        except NoNextToken:
            return math.nan
        right = [
            check(prompt.text, self.lm.tokenizer.decode(row[len(prompt.ids) :]))
            for prompt, row in zip(self.prompts, rows, strict=True)
        ]
        return sum(right) / len(right)

    def sample(self) -> str:
        """What the model says: the likeliest answer to a validation prompt of its task, or 100 tokens of its own.

        Of a masked model the first validation row, with what it predicts of it between « and ».
        """
        if self.is_masked:
            return self.gaps_filled()
        try:
            if self.prompts:
                ids, _, answer_length = self.prompts[0]
                [row] = generate(self.lm, [ids], answer_length, temperature=0)
            else:
                dice = torch.Generator().manual_seed(0)  # its own, so that training does not notice
                [row] = generate(self.lm, [[self.lm.tokenizer.bos]], SAMPLE_LENGTH, generator=dice)
        except NoNextToken as error:  # the run diverged: the trainer says so
            return f"({error})"
        return self.lm.tokenizer.decode(row)

    @torch.no_grad()
    def gaps_filled(self) -> str:
        batch = mycollate([self.data.rows("val")[0]], pad=self.lm.tokenizer.pad)
        with eval_mode(self.lm):
            [x], [y], [z] = self.lm.get_batch_xyz(batch)
        is_gap = (y != NOT_SCORED).tolist()
        ids = torch.where(y == NOT_SCORED, x, z.argmax(dim=-1)).tolist()
        return self.data.marked_text(Row(ids, is_gap))
