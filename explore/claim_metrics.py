"""Final metrics for claims about published results: frequencies, attention sinks, sizes of scores and logits, counts.

Each raises ValueError for a model or a task that it does not fit. The run then has no value, and a warning says why.

Shape suffixes:  B batch  T position  S position attended to  D model dim  H head  V vocabulary
                 N number to be added  F frequency
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch, mycollate
from data.dataloader import LMDataModule, batched
from explore.inspection.scores import head_scores
from model.lm import LM
from model.perplexity import NOT_SCORED
from train.final_metrics import metric

MAX_VAL_ROWS = 256  # validation rows on which a model runs
BATCH_ROWS = 16
N_KEY_FREQUENCIES = 6  # of the embedding of a model that adds modulo p
FIRST_SINK_QUERY = 3  # position: earlier queries have few other tokens to attend to


def validation_batches(data: LMDataModule, max_rows: int | None = MAX_VAL_ROWS) -> Iterator[Batch]:
    """Yield the first validation rows in batches; None: all rows."""
    rows = data.rows("val")
    for indices in batched(range(len(rows))[:max_rows], BATCH_ROWS):
        yield mycollate(rows.__getitems__(list(indices)), pad=data.tokenizer.pad)


def arguments_of(data: LMDataModule, task: str) -> dict[str, Any]:
    """Return all arguments of a task, defaults included. Raise ValueError if the data are those of another task."""
    if data.task is None or data.dataset_name != task:
        raise ValueError(f"it needs dataset_name={task!r}, not {data.dataset_name!r}")
    return data.task.arguments(data.data_params.task_args)


@metric
def fourier_share(lm: LM, data: LMDataModule) -> float:
    """Share of the six strongest frequencies in the energy of the embeddings of 0 to p - 1, for `modular_addition`
    (Nanda et al. 2023, arXiv:2301.05217).

    The Fourier transform is taken over the numbers. The energy of a frequency is that of its cosine and sine, summed over
    the dimensions of the embedding. Frequency 0, the mean, does not count.
    """
    p = arguments_of(data, "modular_addition")["p"]
    if p // 2 <= N_KEY_FREQUENCIES:
        raise ValueError(f"p={p} has only {p // 2} frequencies; allowed: p from {2 * N_KEY_FREQUENCIES + 2}")
    ids_N = torch.tensor(data.tokenizer.ids_of([str(number) for number in range(p)]), device=lm.device)
    spectrum_FD = torch.fft.rfft(lm.embed.tokens(ids_N).double(), dim=0)
    energy_F = spectrum_FD.abs().square().sum(dim=1)[1:]
    if p % 2 == 0:
        energy_F[-1] /= 2  # all other frequencies stand for two in the full transform
    return float(energy_F.topk(N_KEY_FREQUENCIES).values.sum() / energy_F.sum())


class HeadActivations(NamedTuple):
    """An activation of all heads on a batch."""

    x_BT: Tensor  # the input ids
    real_BT: Tensor  # False at padding, and at the last token of a row if it predicts nothing
    of_layers: list[Tensor]  # [B, H, T, S] of each layer that records it


def head_activations(lm: LM, data: LMDataModule, name: str) -> Iterator[HeadActivations]:
    """Yield the "pattern" or "scores" of all layers on validation rows. Raise ValueError if no layer records them."""
    if not any(known.endswith(f".{name}") for known in lm.activation_names()):
        kind, n = lm.model_params.layer_architecture, lm.model_params.n_layers
        raise ValueError(f"no layer records attention {name}: layer_architecture={kind!r}, n_layers={n!r}")
    for batch in validation_batches(data):
        with lm.record(f"layers.*.{name}") as seen:
            x_BT = lm.get_batch_xyz(batch).x
        # With "next-token" the last token of a row predicts nothing, whether the batch has longer rows or not.
        first = 0 if lm.model_params.hides_tokens else 1
        real_BT = batch["mask"][:, first : first + x_BT.shape[1]].to(x_BT.device)
        yield HeadActivations(x_BT, real_BT, list(seen.values()))


@metric
def sink_share(lm: LM, data: LMDataModule) -> float:
    """Mean attention to the first token, from 0 to 1, over all heads and the queries from the fourth position on. Triggers
    of `bigram_backcopy` do not count as queries (attention sinks: Guo et al. 2024, arXiv:2410.13835).
    """
    return float(sink_shares(lm, data).mean())


@metric
def largest_sink_share(lm: LM, data: LMDataModule) -> float:
    """The `sink_share` of the head in which it is largest (Guo et al. 2024)."""
    return float(sink_shares(lm, data).max())


def sink_shares(lm: LM, data: LMDataModule) -> Tensor:
    """Return the mean attention of each head of the model to the first token of a row."""
    triggers: list[int] = []
    if data.dataset_name == "bigram_backcopy":
        n = arguments_of(data, data.dataset_name)["n_trigger_tokens"]
        triggers = data.tokenizer.ids_of([f"t{i}" for i in range(n)])
    sums, n_queries = [], 0
    for x_BT, real_BT, patterns in head_activations(lm, data, "pattern"):
        counts_BT = real_BT & ~torch.isin(x_BT, torch.tensor(triggers, device=x_BT.device, dtype=x_BT.dtype))
        counts_BT[:, :FIRST_SINK_QUERY] = False
        to_first = [(one[..., 0].double() * counts_BT[:, None]).sum(dim=(0, 2)) for one in patterns]
        sums.append(torch.cat(to_first))
        n_queries += int(counts_BT.sum())
    if not n_queries:
        raise ValueError(f"no validation row has a query from position {FIRST_SINK_QUERY} on to average over")
    return torch.stack(sums).sum(dim=0) / n_queries


@metric
def induction_score(lm: LM, data: LMDataModule) -> float:
    """Largest induction score of a head, from 0 to 1. Random tokens are written twice, and the score is the mean attention
    of the second copy to the token after the same one in the first (Olsson et al. 2022, arXiv:2209.11895).
    """
    return float(head_scores(lm)["induction"].max())


@metric
def largest_attention_score(lm: LM, data: LMDataModule) -> float:
    """Largest attention score before the softmax, over all heads and real tokens (growth of attention logits: Wortsman et
    al. 2023, arXiv:2309.14322).
    """
    found = [
        scores_BHTS.transpose(1, 2)[real_BT].max()
        for _, real_BT, of_layers in head_activations(lm, data, "scores")
        for scores_BHTS in of_layers
    ]
    return float(torch.stack(found).max())


@metric
def mean_log_z(lm: LM, data: LMDataModule) -> float:
    """Mean of log(sum(exp(logits))) over scored tokens, which a z-loss keeps near 0 (divergence of output logits: Wortsman
    et al. 2023, arXiv:2309.14322).
    """
    total, n_scored = 0.0, 0
    for batch in validation_batches(data):
        _, y_BT, z_BTV = lm.get_batch_xyz(batch)
        scored_BT = y_BT != NOT_SCORED
        total += float(z_BTV[scored_BT].double().logsumexp(dim=-1).sum())
        n_scored += int(scored_BT.sum())
    if not n_scored:
        raise ValueError("no token of these validation rows is scored")
    return total / n_scored


@metric(name="output_change")
def change_of_output(lm: LM, data: LMDataModule) -> float:
    """Mean squared change of the final residual stream if every weight in the matrices changes by ±0.0001, as in
    `--stability` (Admin: Liu et al. 2020, arXiv:2004.08249).

    The input is a batch of 16 training rows. For the value at initialization, train one step with a tiny `lr`.
    """
    # Imported here, because it imports matplotlib.
    from explore.scaling.stability import output_change

    batch = next(iter(data.train_dataloader(BATCH_ROWS)))
    return output_change(lm, batch["x_indices"][:, :-1], generator=torch.Generator().manual_seed(0))


@metric
def unigram_loss(lm: LM, data: LMDataModule) -> float:
    """Loss in nats of predicting each scored token by the counts of all tokens in its sample so far, each plus 1 (Edelman
    et al. 2024, arXiv:2402.11004).
    """
    return loss_by_counts(lm, data, after_same_token=False)


@metric
def bigram_loss(lm: LM, data: LMDataModule) -> float:
    """Loss in nats of predicting each scored token by the counts of those that followed the same token in its sample so
    far, each plus 1 (Edelman et al. 2024, arXiv:2402.11004).
    """
    return loss_by_counts(lm, data, after_same_token=True)


def loss_by_counts(lm: LM, data: LMDataModule, after_same_token: bool) -> float:
    """Return the mean loss of predicting the scored tokens of all validation rows by counts in the sample so far.

    All tokens that are scored somewhere in the split are counted, and no others. Raise ValueError for a model that does not
    predict the next token.
    """
    if lm.model_params.hides_tokens:
        raise ValueError(
            f"objective={lm.model_params.objective!r} predicts hidden tokens, but counts of a sample so far predict the next one"
        )
    vocabulary_V = torch.tensor([*scored_counts(data)])
    start = torch.tensor(data.tokenizer.start[:1], dtype=torch.int64)
    nats = [
        nats_by_counts(batch, vocabulary_V, start, after_same_token)
        for batch in validation_batches(data, None)
    ]
    return float(torch.cat(nats).mean())


def nats_by_counts(batch: Batch, vocabulary_V: Tensor, start: Tensor, after_same_token: bool) -> Tensor:
    """Return the nats of each scored token of a batch. Counts begin anew at each token `start`."""
    y_BT, ids_BT = batch["x_indices"], batch.get("shown", batch["x_indices"])
    sample_BT = torch.isin(y_BT, start).cumsum(dim=1)
    counts_BS = torch.isin(ids_BT, vocabulary_V) & batch["mask"]
    earlier_BTS = counts_BS[:, None] & (sample_BT[:, :, None] == sample_BT[:, None])
    earlier_BTS = earlier_BTS.tril(-1)
    if after_same_token:
        before_BT = ids_BT.roll(1, dims=1)
        before_BT[:, 0] = -1
        earlier_BTS &= before_BT[:, :, None] == before_BT[:, None]
    same_BT = (earlier_BTS & (y_BT[:, :, None] == ids_BT[:, None])).sum(dim=-1)
    probability_BT = (same_BT + 1).double() / (earlier_BTS.sum(dim=-1) + len(vocabulary_V))
    return -probability_BT[batch["target_mask"]].log()


@metric
def token_entropy(lm: LM, data: LMDataModule) -> float:
    """Entropy in nats of the frequencies of scored validation tokens: the loss of the best predictor without context
    (Shannon 1948).
    """
    counts_V = torch.tensor([*scored_counts(data).values()]).double()
    return float(torch.distributions.Categorical(counts_V).entropy())


def scored_counts(data: LMDataModule) -> dict[int, int]:
    """Return how often each id is scored in the validation split. Raise ValueError if none is."""
    counts = np.zeros(data.tokenizer.n_tokens, np.int64)
    for batch in validation_batches(data, None):
        counts += np.bincount(batch["x_indices"][batch["target_mask"]].numpy(), minlength=len(counts))
    if not counts.any():
        raise ValueError("no token of the validation split is scored")
    return {int(i): int(counts[i]) for i in counts.nonzero()[0]}
