"""Evaluation: losses, accuracy and samples over a validation split."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.batch import Batch, Row, mycollate
from data.dataloader import LMDataModule, Loader
from data.task_rows import TaskRows
from model.generation.decoding import NoNextToken
from model.generation.sampling import eval_mode, generate
from model.lm import LM, XYZ
from model.perplexity import NOT_SCORED
from train.train_params import TrainParams

SliceRow = tuple[str, int, int, float, float]  # see SLICE_COLUMNS
# Columns of slices.csv, after that of the evaluation set. `accuracy` is that of scored tokens, `all_right` the share of
# samples whose scored tokens are all right, each predicted from the true tokens before it.
SLICE_COLUMNS = ("slice", "value", "samples", "accuracy", "all_right")
SLICES_FILE = "slices.csv"  # in a run folder
CHECKED_ANSWERS = 100  # generated answers that are passed to a task's own check
SAMPLE_LENGTH = 100  # tokens


class LoaderWhenDue:
    """A loader whose batches come only in those passes for which `is_due()` is true, and no batches in others."""

    def __init__(self, loader: Loader, is_due: Callable[[], bool]) -> None:
        self.loader = loader
        self.is_due = is_due

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: it asks at its first batch, when the validation has begun.
        if self.is_due():
            yield from self.loader


def of_set(name: str, result: Mapping[str, float]) -> dict[str, float]:
    """Return the results of an evaluation set by the names of their columns, such as "val_loss[long]"."""
    columns = {"val_loss:main": "val_loss", "val_bits_per_byte": "bits_per_byte"}
    chosen = {columns.get(key, key): value for key, value in result.items()}
    return {f"{key}[{name}]": value for key, value in chosen.items() if ":" not in key and "[" not in key}


def make_evaluation(lm: LM, data: LMDataModule) -> "Evaluation | MixtureEvaluation":
    """Return a new evaluation on the validation split, whose batches come in order."""
    return MixtureEvaluation(lm, data) if data.parts else Evaluation(lm, data)


class Evaluation:
    """Sums of losses and correct predictions over batches. They stay on the device until `result` reads them.

    `val_loss:main` is the plain loss of the objective, computed here from the logits. It is the mean cross entropy of
    scored tokens, or of masked tokens with objective="masked". With objective="diffusion" it is the bound of the mean
    cross entropy of all tokens that may be hidden.

    Losses of `get_losses`, which training minimizes, are reported beside it. Further ones are `val_loss:{name}`. If
    their "main" is not the plain loss, the sum of all is `val_loss:trained`.
    """

    def __init__(self, lm: LM, data: LMDataModule) -> None:
        self.lm = lm
        self.data = data
        self.plain: list[Tensor] = []  # the plain loss of each batch, left on the device
        self.n_right: list[Tensor] = []
        self.n_scored: list[Tensor] = []
        self.weights: list[Tensor] = []  # number of tokens in the plain loss of each batch
        self.trained: dict[str, list[Tensor]] = defaultdict(list)  # what get_losses returns for each batch
        self.trained_weights: list[Tensor] = []  # and the number of tokens in its means
        self.is_masked = lm.model_params.hides_tokens  # fills gaps, and generates nothing
        # A model that never sees its answers cannot generate them one after another.
        asks = data.task is not None and not self.is_masked and not data.hides_answers
        n_prompts = CHECKED_ANSWERS if data.task is not None and data.task.check is not None else 1
        self.prompts = data.prompts(n_prompts) if asks else []
        self.by_sample: list[Tensor] = []  # of each batch of a task: right and scored tokens by sample

    @torch.no_grad()
    def add(self, batch: dict, train_params: TrainParams) -> None:
        """Add the losses and correct predictions of a batch."""
        xyz = self.lm.get_batch_xyz(batch, train_params=train_params)
        n_scored = (xyz.y != NOT_SCORED).sum()
        plain, weight = plain_loss(xyz, n_scored), n_scored
        if self.lm.model_params.objective == "diffusion":
            plain, weight = diffusion_bound(xyz, batch["target_mask"].to(n_scored.device))
        self.plain.append(plain)
        self.weights.append(weight)
        self.n_right.append((xyz.z.argmax(dim=-1) == xyz.y).sum())
        self.n_scored.append(n_scored)
        if self.data.task is not None:
            self.by_sample.append(self.counts_by_sample(batch["x_indices"], xyz))
        # After the plain loss, because get_losses may change targets and logits in place.
        self.lm.n_scored = None
        losses, _ = self.lm.get_losses(batch, train_params, xyz=xyz)
        for name, loss in losses.items():
            self.trained[name].append(loss.detach())
        weight = n_scored if self.lm.n_scored is None else self.lm.n_scored
        self.trained_weights.append(torch.as_tensor(weight, device=n_scored.device))

    def result(self) -> dict[str, float]:
        """Return mean losses, accuracy over scored positions, and further metrics of the validation split, by name.

        Text adds bits per byte. Tasks add exact match, unless their answers are random.
        Bits per byte count 8 bits for every byte behind an unknown token, which the loss does not cover.
        A masked model has neither bits per byte nor exact match: it predicts only some tokens, and not in order.
        Exact match is the share of samples whose scored tokens are all right, each predicted from the true tokens before it.
        For an answer at the end of a sample, this equals greedy generation: up to the first wrong token, both see the same.
        A task with several right answers has a check, which judges generated answers instead.
        """
        weights = fetch(self.weights)  # losses are weighted by tokens, not by batch
        plain = float(fetch(self.plain) @ weights)
        means = {"val_loss:main": plain / float(weights.sum())} | self.trained_means()
        means["val_accuracy"] = int(torch.stack(self.n_right).sum()) / float(fetch(self.n_scored).sum())
        if self.data.val_bytes and not self.is_masked:
            bits = plain / math.log(2) + 8 * self.data.val_unknown_bytes
            means["val_bits_per_byte"] = bits / self.data.val_bytes
        task = self.data.task
        if task is None or task.reference is not None or self.is_masked:
            return means
        if task.check is not None and self.prompts:
            return means | {"val_exact_match": self.exact_match(task.check)}
        right_N, scored_N = self.right_and_scored()
        # With packed=True the last row may have places without a sample.
        is_sample_N = scored_N > 0
        all_right = (right_N == scored_N)[is_sample_N].float().mean()
        return means | {"val_exact_match": float(all_right)}

    def bytes_per_token(self) -> float:
        """Return the number of bytes of the validation text per scored token."""
        return (self.data.val_bytes or 0) / float(fetch(self.n_scored).sum())

    def counts_by_sample(self, x_indices_BT: Tensor, xyz: XYZ) -> Tensor:
        """Return the numbers of right and of scored tokens [2, B, N] of the N samples of each row."""
        is_scored_BT = xyz.y != NOT_SCORED
        is_right_BT = (xyz.z.argmax(dim=-1) == xyz.y) & is_scored_BT
        rows = self.data.rows("val")
        assert isinstance(rows, TaskRows), "text has no samples"
        n = rows.per_row
        # Each sample begins with bos. Bos is never scored, so a scored token is in the sample of the token before it.
        tokens_BT = x_indices_BT.to(xyz.y.device)[:, : xyz.y.shape[1]]
        sample_BT = tokens_BT.eq(self.data.tokenizer.start[0]).cumsum(dim=1) - 1
        counts = torch.stack([is_right_BT, is_scored_BT]).long()
        index = sample_BT.clamp(0, n - 1).expand_as(counts)
        return counts.new_zeros(2, len(x_indices_BT), n).scatter_add_(2, index, counts)

    def slices(self) -> list[SliceRow]:
        """Return the accuracy by slice of the samples, in rows. Empty for text."""
        if not self.by_sample:
            return []
        return slice_rows(self.data.slices("val"), *self.right_and_scored().numpy())

    def right_and_scored(self) -> Tensor:
        """Return the numbers of right and of scored tokens of all samples so far, [2, N], on the CPU."""
        return torch.cat(self.by_sample, dim=1).cpu().flatten(1)

    def trained_means(self) -> dict[str, float]:
        """Return the further losses of get_losses, and the sum of all if its "main" is not the plain loss."""
        weights = fetch(self.trained_weights)
        batches = {name: fetch(losses) for name, losses in self.trained.items()}
        sums = {name: float(losses @ weights) for name, losses in batches.items()}
        means = {f"val_loss:{name}": loss / max(1.0, float(weights.sum())) for name, loss in sums.items()}
        main = means.pop("val_loss:main", 0.0)
        # Equal up to rounding: an edit may compute the same mean by other operations.
        is_plain = "main" in batches and torch.allclose(batches["main"], fetch(self.plain), equal_nan=True)
        return means if is_plain else means | {"val_loss:trained": main + sum(means.values())}

    def exact_match(self, check: Callable[[str, str], bool]) -> float:
        """Return the share of prompts whose greedy answer passes the task's check; NaN if logits are NaN."""
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
        """Return an example of the model's output as text.

        For a task it is the most probable answer to a validation prompt, for a text 100 sampled tokens. A masked model, and
        a diffusion model on a task, fills the first validation row; its predictions stand between « and ».
        """
        p = self.lm.model_params
        unmasks = p.objective == "diffusion" and self.data.task is None and p.max_seq_len > 1
        if (self.is_masked and not unmasks) or self.data.hides_answers:
            return self.gaps_filled()
        # A separate generator, so that training is unaffected.
        dice = torch.Generator().manual_seed(0)
        try:
            if unmasks:
                text: str = self.lm.sample(self.data.tokenizer.start, SAMPLE_LENGTH, generator=dice)
                return text
            if self.prompts:
                ids, _, answer_length = self.prompts[0]
                [row] = generate(self.lm, [ids], answer_length, temperature=0)
            else:
                [row] = generate(self.lm, [self.data.tokenizer.start], SAMPLE_LENGTH, generator=dice)
        except NoNextToken as error:  # the run diverged, which the trainer reports
            return f"({error})"
        return self.lm.tokenizer.decode(row)

    @torch.no_grad()
    def gaps_filled(self) -> str:
        """Return the first validation row with its predictions in the gaps, or in the place of hidden answers."""
        batch = mycollate([self.data.rows("val")[0]], pad=self.lm.tokenizer.pad)
        with eval_mode(self.lm):
            [x], [y], [z] = self.lm.get_batch_xyz(batch)
        shown = x if self.is_masked else batch["x_indices"][0, 1:].to(y.device)
        ids = torch.where(y == NOT_SCORED, shown, z.argmax(dim=-1)).tolist()
        return self.data.marked_text(Row(ids, (y != NOT_SCORED).tolist()))


class MixtureEvaluation:
    """An evaluation of each text of a mixture by itself, and their means weighted by shares.

    Batches must come in the order of `val_dataloader`, in which the rows of a text follow one another.
    """

    def __init__(self, lm: LM, data: LMDataModule) -> None:
        self.shares = data.shares
        self.parts = {name: Evaluation(lm, part) for name, part in data.parts.items()}
        lengths = [part.n_rows("val") for part in data.parts.values()]
        self.ends = [*accumulate(lengths)]
        self.n_rows = 0  # of all batches so far

    @torch.no_grad()
    def add(self, batch: dict, train_params: TrainParams) -> None:
        """Add the losses and correct predictions of a batch, which may hold rows of several texts."""
        first, last = self.n_rows, self.n_rows + len(batch["x_indices"])
        starts = [0, *self.ends[:-1]]
        for one, start, end in zip(self.parts.values(), starts, self.ends, strict=True):
            here = slice(max(first, start) - first, min(last, end) - first)
            if here.start < here.stop:
                one.add({name: values[here] for name, values in batch.items()}, train_params)
        self.n_rows = last

    def result(self) -> dict[str, float]:
        """Return the results of the mixture, then those of each text, such as "val_loss[sotu]".

        Losses and accuracy of the mixture are means over its texts, weighted by their shares. For bits per byte the weights
        are bytes, where each text has its share of the tokens. Texts without a batch do not count.
        """
        parts = {name: one for name, one in self.parts.items() if one.plain}
        results = {name: one.result() for name, one in parts.items()}
        total = sum(self.shares[name] for name in parts)
        shares = {name: self.shares[name] / total for name in parts}
        names = dict.fromkeys(name for result in results.values() for name in result)
        means = {}
        for name in names:
            weights = shares
            if name == "val_bits_per_byte":
                weights = {
                    part: share * one.bytes_per_token()
                    for (part, one), share in zip(parts.items(), shares.values(), strict=True)
                }
            found = [(weights[part], result[name]) for part, result in results.items() if name in result]
            means[name] = sum(weight * value for weight, value in found) / sum(weight for weight, _ in found)
        for part, result in results.items():
            means |= of_set(part, result)
        return means

    def slices(self) -> list[SliceRow]:
        return []  # text has none

    def sample(self) -> str:
        """Return an example of the model's output as text."""
        return next(iter(self.parts.values())).sample()


def slice_rows(
    values: Mapping[str, Sequence[int]], n_right_N: np.ndarray, n_scored_N: np.ndarray
) -> list[SliceRow]:
    """Return a row for each value of each slice. `values` hold the value of each sample, by the slice's name."""
    rows: list[SliceRow] = []
    for name, of_samples in values.items():
        value_N = np.array(of_samples)
        for value in np.unique(value_N):
            here = np.flatnonzero(value_N == value)
            right, scored = n_right_N[here], n_scored_N[here]
            if scored.sum():
                accuracy, all_right = right.sum() / scored.sum(), (right == scored).mean()
                rows.append((name, int(value), len(here), float(accuracy), float(all_right)))
    return rows


def write_slices(path: Path, slices: Mapping[str, Sequence[SliceRow]]) -> None:
    """Write the accuracy by slice as CSV. `slices` are rows by evaluation set, the validation split as ""."""
    if any(slices.values()):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("eval_set", *SLICE_COLUMNS))
            writer.writerows((name, *row) for name, rows in slices.items() for row in rows)


def plain_loss(xyz: XYZ, n_scored: Tensor) -> Tensor:
    """Return the mean cross entropy of the scored tokens of a batch, in nats; 0 if there are none."""
    _, y, z = xyz
    total = F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=NOT_SCORED, reduction="sum")
    return total / n_scored.clamp(min=1)


def diffusion_bound(xyz: XYZ, target_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bound of the loss of a token in nats, and the number of tokens that may be hidden in the batch.

    Of n such tokens of a row, k are hidden: their cross entropies count n / k.
    """
    _, y, z = xyz
    may_hide = target_mask[:, : y.shape[1]].clone()
    may_hide[:, 0] = False
    n_rows = may_hide.sum(dim=1)
    share = (y != NOT_SCORED).sum(dim=1) / n_rows
    losses = F.cross_entropy(z.transpose(1, 2), y, ignore_index=NOT_SCORED, reduction="none").sum(dim=1)
    total = torch.where(n_rows > 0, losses / share, 0.0).sum()
    return total / n_rows.sum().clamp(min=1), n_rows.sum()


def fetch(scalars: list[Tensor]) -> Tensor:
    """Return scalars from the device as one float64 tensor on the CPU."""
    return torch.stack(scalars).cpu().double()
